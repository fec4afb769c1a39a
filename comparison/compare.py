"""`--compare`: every method on the same splits of the same data, paired over seeds, and which of them to use here.

What is cheap is measured too: scikit-learn on the same features (baselines.py). A killed comparison goes on: what is
finished stands in `journal.json` and is not done again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.files import read_json, write_json, write_text
from ..base.written_files import noted_in
from ..data import write_split
from ..runs.resume import check_same_images
from ..runs.run_folder import going_on
from ..utils import UserError, log_to, say, warn
from .baselines import baseline_accuracy, baselines_of
from .methods import Method, methods_of
from .page import write_page
from .seeds import check_seeds, make_folder, seeds_of, summary_of
from .task import Accuracies, Task, prepared, train_and_test
from .verdict import DEFAULT_REPEAT, advice, picture, rows_of, table, table_as_csv


def compare(task: Task) -> dict[str, Any]:
    """Train with every method and every seed, test each once, and say which to use; returns the summary, also written.

    Leaves in `results/NAME/`: summary.json, comparison.csv, comparison.png, report.html, and `seed-<seed>/` with the
    split and each method's metrics.csv. Raises UserError and TrainingFault.
    """
    options = task.options
    seeds = seeds_of(options.run, options.study, DEFAULT_REPEAT)
    if not len(task.split.test):
        raise UserError("--compare needs test images to compare on; give --test_percent or a test folder")
    first = prepared(task.changed(cotrain_mode=bool(options.cotraining.views)))
    check_seeds(task, seeds, first.backbones)
    folder = make_folder(task)
    if options.data.show_images:
        say(f"samples: {first.draw_samples(folder / 'samples.png')}")
    task = task.changed(name=folder.name)
    with log_to(folder), going_on(folder):
        results = measure(task, seeds, folder, steps=first.total_steps)
        summary = {
            **summary_of(task, seeds, first.used_images),
            "mode": "compare",
            "comparison": rows_of(results),
            "advice": advice(results, methods_of(options.cotraining.views)),
        }
        write_json(folder / "summary.json", summary)
        write_text(folder / "comparison.csv", table_as_csv(summary["comparison"], seeds))
        picture(
            folder / "comparison.png", results, title=f"{Path(task.dataset.name).name}, {summary['labels_used']} labels"
        )
        write_page(folder, summary, results, task.options.command_line())
        say("\n" + table(results))
        say(f"\n{summary['advice']}\n\nresults: {folder}")
    return summary


def measure(
    task: Task,
    seeds: Sequence[int],
    folder: Path,
    *,
    steps: int,
    methods: Sequence[Method] | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, dict[int, Accuracies]]:
    """Test accuracies, {method: {seed: {model: accuracy}}}, of the methods and baselines (None: of all) at every seed.

    steps: of the methods without unlabeled images, so that all learn equally long. methods: what names are of; None:
    those of `--compare`. What `folder/journal.json` holds is not done again. Raises UserError when a method is wanted
    without the one that it starts from.
    """
    journal = folder / "journal.json"
    done: dict[str, dict[str, Any]] = {}
    if journal.exists():
        done = read_json(journal, JOURNAL, advice="move it away, and --resume compares again")
    methods = methods_of(task.options.cotraining.views) if methods is None else methods
    wanted = [*(method.name for method in methods), *baselines_of(task)] if names is None else list(names)
    check_starts(methods, wanted)
    for index, seed in enumerate(seeds):
        one = OneSeed(task.of_seed(seed), folder / f"seed-{seed}", steps, methods)
        one.write_split()
        for number, name in enumerate(wanted, start=index * len(wanted) + 1):
            if str(seed) in done.setdefault(name, {}):
                continue
            began = time.monotonic()
            accuracies = one.accuracies(name)
            seconds = round(time.monotonic() - began, 1)
            done[name][str(seed)] = {"test": accuracies, "seconds": seconds}
            write_json(journal, done)
            shown = ", ".join(f"{model} {100 * value:.1f}%" for model, value in accuracies.items())
            say(f"[{number}/{len(seeds) * len(wanted)}] seed {seed}, {name}: {shown}  ({seconds:.1f} s)")
        one.clear()
    lost = [name for name, is_there in noted_in(folder).items() if name.endswith("metrics.csv") and not is_there]
    if lost:
        warn(f"{folder} lacks {', '.join(lost[:3])}, which --resume can't make again; compare under another --name")
    return {name: {seed: done[name][str(seed)]["test"] for seed in seeds} for name in wanted}


def check_starts(methods: Sequence[Method], wanted: Sequence[str]) -> None:
    """Raises UserError where a method is not preceded by the one whose models it starts from."""
    for method in methods:
        if method.name in wanted and method.start not in (None, *wanted[: wanted.index(method.name)]):
            raise UserError(f"the {method.name} starts from {method.start}: name that first")


# What `journal.json` holds, by method and seed, as `fields.fault` reads it.
JOURNAL = {str: {str: {"test": {str: float}, "seconds": float}}}


@dataclass(frozen=True)
class OneSeed:
    """What all methods share at one seed: task, folder, and the number of steps of those without unlabeled images."""

    task: Task
    folder: Path
    steps: int
    methods: Sequence[Method]

    def write_split(self) -> None:
        """split.csv, which a resumed comparison must find again. Raises UserError where the images have changed."""
        check_same_images(self.folder, self.task.dataset, self.task.split)
        write_split(self.folder / "split.csv", self.task.dataset, self.task.split)

    def accuracies(self, name: str) -> Accuracies:
        """The test accuracy of each model of a method, or of a baseline."""
        method = next((method for method in self.methods if method.name == name), None)
        return self.baseline(name) if method is None else self.trained(method)

    def trained(self, method: Method) -> Accuracies:
        """Train by this method, from where it was stopped, and test once."""
        task = self.task.changed(**method.options)
        if method.supervised:
            task = task.changed(max_steps=self.steps, num_epochs=None)
        if method.start is not None:
            task = task.starting_from(self.checkpoint(method.start))
        is_start = any(other.start == method.name for other in self.methods)
        best = self.checkpoint(method.name) if is_start else None
        return train_and_test(task, self.folder / method.folder, best=best)

    def baseline(self, name: str) -> Accuracies:
        """The test accuracy of a classifier of scikit-learn on the backbone's features, or on pixels or points."""
        accuracy, what = baseline_accuracy(name, self.task)
        return {f"on {what}": accuracy}

    def checkpoint(self, name: str) -> Path:
        """Where the models of a method lie until no other method starts from them."""
        return self.folder / next(m for m in self.methods if m.name == name).folder / "checkpoints" / "best.pt"

    def clear(self) -> None:
        """Remove the models: this is a measurement, and the best method is trained by a command of its own."""
        for method in self.methods:
            checkpoints = self.folder / method.folder / "checkpoints"
            for name in ("best.pt", "last.pt"):
                (checkpoints / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it was never made, or something else lies in it
                checkpoints.rmdir()
