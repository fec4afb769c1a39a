"""`--repeat N` beside one method: the same training with several seeds, and the mean of what they reach.

A killed one goes on: the summary of each seed that is finished lies in its folder, and that seed is not trained again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base.files import read_json, write_json
from ..base.tables import text_table
from ..runs.resume import check_same_images
from ..runs.run import has_ended
from ..runs.run_folder import going_on
from ..utils import log_to, say
from .seeds import check_seeds, make_folder, seeds_of, summary_of
from .task import Task, prepared, whole_run
from .verdict import over_seeds


def repeat(task: Task) -> dict[str, Any]:
    """Train one method with several seeds, each a whole run in `results/NAME/seed-<seed>/`; returns the summary.

    `summary.json` of the whole holds each model's accuracies, their mean and its 95% interval over the seeds (Student's
    t, not the interval of one test). Raises UserError and TrainingFault.
    """
    seeds = seeds_of(task.options.run, task.options.study, 1)
    first = prepared(task)
    check_seeds(task, seeds, first.backbones)
    folder = make_folder(task)
    task = task.changed(name=folder.name)
    with log_to(folder), going_on(folder):
        runs = [one_of(task.of_seed(seed), folder / f"seed-{seed}") for seed in seeds]
        summary = {
            **summary_of(task, seeds, first.used_images),
            "mode": task.options.mode.name,
            **{part: over_seeds([run[part] for run in runs]) for part in ("val", "test")},
            "cross_validation": over_seeds([run.get("cross_validation", {}).get("models", {}) for run in runs]),
        }
        write_json(folder / "summary.json", summary)
        say(repeat_table(summary))
        say(f"results: {folder}")
    return summary


def one_of(task: Task, folder: Path) -> dict[str, Any]:
    """The summary of one whole run of `repeat`, which is trained unless it is there already."""
    seed = task.options.run.seed
    if has_ended(folder):
        say(f"seed {seed}: finished before")
        return read_json(folder / "summary.json", SUMMARY, advice="remove it, and --resume makes it again")
    say(f"\nseed {seed}")
    check_same_images(folder, task.dataset, task.split)
    return whole_run(task, folder, time.monotonic())


# What is read of a run's summary, as `fields.fault` reads it.
_MODELS = {str: {"accuracy": float, str: object}}
SUMMARY = {"val": _MODELS, "test": _MODELS, "cross_validation?": {"models?": _MODELS, str: object}, str: object}


def repeat_table(summary: Mapping[str, Any]) -> str:
    """Mean and interval of each model over the seeds of `repeat`."""
    cells = [("model", "mean", "std", "95% interval of the mean")]
    found = {"cross-validated": "cross_validation", "test": "test", "validation": "val"}
    where = next((where for where, part in found.items() if summary[part]), "validation")
    part = summary[found[where]]
    for name, row in part.items():
        ends = [f"{100 * end:.1f}%" for end in row["ci95"] or []]
        std = "" if row["std"] is None else f"{100 * row['std']:.1f}"
        cells.append((name, f"{100 * row['mean']:.1f}%", std, " to ".join(ends)))
    count = len(summary["seeds"])
    head = f"{where} accuracy of {count} seeds, each with a split of its own, {summary['labels_used']} labels"
    shown = text_table(cells, left=range(4), markdown=True)
    return f"\n{head}\n\n{shown}" if part else "\nnothing was held out, so nothing was tested"
