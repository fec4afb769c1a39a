"""The page of a comparison: which method to use, and the table and intervals that the screen and the files have."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base.tables import percent
from ..reports import charts
from ..reports.page import Section, write_report
from ..utils import program
from .verdict import Results, finals, gain_of, over_seeds


def write_page(folder: Path, summary: Mapping[str, Any], results: Results, words: Sequence[str]) -> Path:
    """Write `report.html`. words: of the command line that compares again."""
    used = finals(results)
    runs = [{name: {"accuracy": each[i]} for name, each in used.items()} for i in range(len(summary["seeds"]))]
    bars = [
        (name, row["mean"], row["ci95"] or (), percent(row["mean"]) + (f", std {_std(row)}" if _std(row) else ""))
        for name, row in over_seeds(runs).items()
    ]
    columns = ["method", "mean", "std", f"against {next(iter(used))}, 95% interval"]
    rows = [[row["method"], percent(row["mean"]), _std(row), gain_of(row)] for row in summary["comparison"]]
    found: list[Section] = [
        {
            "heading": "What each method reaches",
            "text": f"Test accuracy of what one would use of each method, the mean of {len(runs)} seeds with a split "
            "of its own each; the thin lines are 95% intervals of the mean, std is the standard deviation.",
            "figures": [charts.bars(bars, head=("method", "test accuracy"))],
        },
        {
            "heading": "Every model",
            "text": "Differences are in points, paired over the seeds.",
            "table": {"columns": columns, "rows": rows},
        },
        {"heading": "Run it again", "command": shlex.join([*program().split(), *words])},
    ]
    return write_report(folder / "report.html", folder.name, found, lead=summary["advice"])


def _std(row: Mapping[str, Any]) -> str:
    """In points; nothing of one seed."""
    return "" if row["std"] is None else f"{100 * row['std']:.1f}"
