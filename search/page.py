"""The page of a search: the best trials, what they were, and the pictures of all of them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ..base.tables import percent
from ..reports.page import Section, write_report
from ..utils import program
from .plots import few_trials

BEST = 20  # trials in the table
SHOWN = {
    "history": "Every trial's accuracy by its number, and the best so far",
    "importances": "The share of the variance of the accuracies that each option explains",
    "parallel": "A line a complete trial through its values",
    "slices": "The accuracy by the value of each option",
}


def write_page(
    folder: Path,
    trials: Sequence[FrozenTrial],
    pictures: Sequence[Path],
    lead: str,
    searched: Sequence[str],
    options: Mapping[str, Any],
) -> Path:
    """Write `report.html`. pictures: what `plots.draw` made; searched: options by name; options: of best_args.json."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    best = sorted(complete, key=lambda trial: -(trial.value or 0.0))[:BEST]
    varied = [name for name in searched if len({repr(trial.params.get(name)) for trial in complete}) > 1]
    rows = [[str(t.number), percent(t.value or 0.0), *(_text(t.params.get(name)) for name in varied)] for t in best]
    caution, best_options = few_trials(len(complete)), folder / "best_args.json"
    sections: list[Section] = [
        {
            "heading": "The best trials",
            "text": f"The {len(best)} most accurate of {len(complete)} complete trials. The best of many is a little "
            "flattered by chance; the run with its options measures it on the test images.",
            "table": {"columns": ["trial", "accuracy", *varied], "rows": rows},
        },
        {
            "heading": "All trials",
            "text": f"{caution}." if caution else "",
            "pictures": [(path, SHOWN.get(path.stem, path.stem)) for path in pictures],
        },
        {
            "heading": "The best options",
            "table": {"rows": [(name, _text(options.get(name))) for name in searched]},
            "command": shlex.join([*program().split(), "--name", f"{folder.name}-best", "--config", str(best_options)]),
        },
    ]
    return write_report(folder / "report.html", folder.name, sections, lead=lead[:1].upper() + lead[1:] + ".")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
