"""What `summary.json` of a run holds, and the table of its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..base.tables import number_of, text_table
from ..utils import peak_memory_bytes, shown
from .context import RunContext
from .decision import told
from .summary import data_used, made_with, summary_header
from .views import Views

HARDEST = 5  # classes that are named below the table


def run_summary(
    name: str,
    mode: str,
    context: RunContext,
    views: Views,
    used: Mapping[str, np.ndarray],
    results: Mapping[str, Any],
    seconds: Mapping[str, float],
    *,
    words: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The summary of a run or of its test, by the name of its folder.

    used: see `checkpoints.used_images`; results: what was found, with `best_epoch` last; seconds: by what took them;
    words: of the command line, where they are not those that this process was started with.
    """
    filled = sum(bank.seconds for bank in views.banks)
    return {
        **summary_header(name, words=words, mode=mode, seed=context.seed),
        **data_used(context.data, context.split, used),
        **results,
        "seconds": {name: round(value, 3) for name, value in {**seconds, "features": filled}.items()},
        "peak_memory_bytes": peak_memory_bytes(context.device),
        "precision": context.precision.described(frozen=views.frozen),
        **made_with(),
    }


def results_table(summary: Mapping[str, Any]) -> str:
    """The table at the end of a run: each model on folds, test and validation images, as far as there are some."""
    parts = [summary.get("cross_validation", {}).get("models", {}), summary["test"], summary.get("val") or {}]
    if any(parts[:2]):
        lines = ["", text_table(_result_rows(*parts)), _recalls(parts[0] or parts[1])]
    else:
        rows = [(name, f"{100 * result['accuracy']:.2f}% on validation") for name, result in parts[2].items()]
        lines = [text_table(rows, left=(0, 1))] if rows else []
    decision = told(summary["decision"]) if "decision" in summary else []
    return "\n".join([*lines, *decision, f"learned from {summary['labels_used']} labels; {_measured_on(summary)}"])


def _measured_on(summary: Mapping[str, Any]) -> str:
    images, folds = summary["dataset"]["images"]["test"], summary.get("cross_validation")
    tested = f"tested on {number_of(images, 'image')}"
    if folds:
        test = f"; {tested}, which say less" if images else "; no image was kept for a test"
        return f"{how_validated(folds)}{test}"
    return tested if images else "no image was kept for a test: the accuracy is unknown"


def how_validated(folds: Mapping[str, Any]) -> str:
    """What `calibration.cross_validation` did, in words."""
    again = f", {folds['repeats']} times" if folds["repeats"] > 1 else ""
    asked = folds.get("asked", 0)
    left = f", without the {asked} that were asked for, which are harder than other images" if asked else ""
    return f"cross-validated on {folds['images']} labels, in {folds['folds']} folds{again}{left}"


def _result_rows(folds: Mapping[str, Any], tested: Mapping[str, Any], validated: Mapping[str, Any]) -> list[list[str]]:
    rows = [["model"]]
    rows[0] += ["cross-validated", "95% interval"] if folds else []
    rows[0] += ["balanced"] if folds and not tested else []
    rows[0] += ["test accuracy", "95% interval", "balanced", "macro F1"] if tested else []
    rows[0] += ["val accuracy"] if validated else []
    for name in folds or tested:
        row = [name]
        for part in (folds, tested):
            if part:
                low, high = (f"{100 * bound:5.1f}%" for bound in part[name]["ci95"])
                row += [f"{100 * part[name]['accuracy']:.2f}%", f"{low} to {high}"]
        if folds and not tested:
            row.append(f"{100 * folds[name]['balanced_accuracy']:.2f}%")
        if tested:
            row += [f"{100 * tested[name]['balanced_accuracy']:.2f}%", f"{tested[name]['macro_f1']:.4f}"]
        rows.append([*row, *([f"{100 * validated[name]['accuracy']:.2f}%"] if validated else [])])
    return rows


def _recalls(tested: Mapping[str, Any]) -> str:
    """How many images of each class the model that is used finds; of many classes the hardest."""
    name, result = list(tested.items())[-1]
    known = sorted((recall, label) for label, recall in result["per_class"].items() if recall is not None)
    which = f"found by the {name}" + (f", the hardest of {len(known)} classes" if len(known) > HARDEST else "")
    return f"{which}: " + ", ".join(shown(f"{100 * recall:.0f}% of {label}") for recall, label in known[:HARDEST])
