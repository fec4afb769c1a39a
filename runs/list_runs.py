"""`--list_runs`: what lies in the results folder, told at once: nothing heavy is loaded, and no run can stop it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..args import COMMANDS
from ..base.files import read_json
from ..base.tables import percent, text_table
from ..base.written_files import LIST, OPTIONS, RESULTS
from ..utils import UserError, program, say, shown

LEFT_BY = {"inspect": "inspect.json", "view_report": "view_report.json", "search": "best_args.json"}
_MODELS = {str: {"accuracy": float, "ci95?": ([float], None), str: object}}
_FOLDS = {"models?": _MODELS, str: object}
SUMMARY = {"labels_used?": int, "test?": _MODELS, "val?": _MODELS, "cross_validation?": _FOLDS, str: object}
COLUMNS = ("name", "date", "mode", "data", "labels", "accuracy (95% interval)", "folder")


def list_runs() -> None:
    """Print a table of everything that a command made in the results folder, the newest first."""
    made = [path for path in RESULTS.glob("*") if any((path / mark).is_file() for mark in (OPTIONS, LIST))]
    if not made:
        say(f"there is no run in {RESULTS}/ yet; train one: {program()} --name exp --data_dir DIR")
        return
    rows = sorted(((*_when(path), path) for path in made), reverse=True)
    say(text_table([COLUMNS, *(_row(path, date) for _, date, path in rows)], left=(0, 1, 2, 3, 5, 6)))


def _when(folder: Path) -> tuple[float, str]:
    """When what says most of it was written."""
    files = [folder / name for name in ("summary.json", *LEFT_BY.values(), OPTIONS)]
    seconds = next((file.stat().st_mtime for file in files if file.is_file()), folder.stat().st_mtime)
    return seconds, time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _row(folder: Path, date: str) -> list[str]:
    try:
        asked = read_json(folder / OPTIONS, {str: object}) if (folder / OPTIONS).is_file() else {}
        mode, data = _mode(asked), str(asked.get("data_dir", ""))
    except UserError:
        return [folder.name, date, "", "", "", f"damaged: {OPTIONS}", str(folder)]
    left = LEFT_BY.get(mode, "summary.json")
    labels, accuracy = "", "unfinished"
    if (folder / left).is_file():
        try:
            summary = read_json(folder / left, SUMMARY if left == "summary.json" else {str: object})
            labels, accuracy = str(summary.get("labels_used", "")), _accuracy(summary)
        except UserError:
            accuracy = f"damaged: {left}"
    return [folder.name, date, mode, shown(data), labels, accuracy, str(folder)]


def _mode(asked: Mapping[str, Any]) -> str:
    """The command, or how the run trains."""
    command = next((command for option, command in COMMANDS.items() if asked.get(option)), None)
    named = ("finetune", "switch", "cotrain")
    return command or next((name for name in named if asked.get(f"{name}_mode")), "mpl")


def _accuracy(summary: Mapping[str, Any]) -> str:
    """Of what one would use: the ensemble, or the only model."""
    folds = summary.get("cross_validation") or {}
    found = {
        "cross-validated": folds if "folds" not in folds else folds["models"],
        "": summary.get("test"),
        "on validation": summary.get("val"),
    }
    what = next((what for what, models in found.items() if models), None)
    if what is None:
        return ""
    models: Any = found[what]
    result = models.get("ensemble") or next(iter(models.values()))
    interval = result.get("ci95")
    ends = f" ({' to '.join(map(percent, interval))})" if interval else ""
    return f"{percent(result['accuracy'])}{ends} {what}".rstrip()
