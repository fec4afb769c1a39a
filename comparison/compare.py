"""Every method on the same splits of the same data, paired over seeds: which to use here, and is that more than noise.

`compare` also measures what is cheap, scikit-learn on the same features; `repeat` runs one method with several seeds.
A killed one goes on: what is finished stands in `journal.json` (of `repeat`: in summaries of its own), and is not done
again.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import visualization
from ..args import Options, recorded
from ..backbones.registry import view_labels
from ..base.files import read_json, write_json, write_text
from ..base.metrics import paired_difference
from ..data import Dataset, Split, find_dataset, split_dataset, summary_table, write_split
from ..runs.progress import commit, versions
from ..runs.resume import check_leaks, check_same_images, inherit, load_run, resumed_options
from ..runs.run import carry_out, make_training, write_bad_files
from ..runs.run_folder import going_on, run_folder
from ..runs.setup import check_not_learned
from ..runs.training import Training
from ..utils import UserError, say
from .baselines import REFERENCES, reference_accuracy

DEFAULT_REPEAT = 5  # of --compare
BASE = "labels only"
ENOUGH_SEEDS = 3  # of two, the same difference twice is a coincidence that would look like certainty

Accuracies = dict[str, float]  # of each model


@dataclass(frozen=True)
class Method:
    """A way to train: its options beside those that all share, and the method whose models it starts from.

    how: what a user does with the command line of --compare to train so.
    """

    name: str
    how: str
    options: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None

    @property
    def folder(self) -> str:
        """Its name as a folder's."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower())

    @property
    def supervised(self) -> bool:
        """Whether it learns from the labeled images alone."""
        return bool(self.options.get("finetune_mode")) or self.options.get("algorithm") == "labels_only"


METHODS = (
    Method(BASE, "put --finetune_mode in place of --compare", {"finetune_mode": True}),
    Method("UDA", "put --mpl_weight 0 in place of --compare", {"mpl_weight": 0.0}),
    Method("MPL", "leave out --compare"),
    Method("MPL with switched roles", "put --switch_mode in place of --compare", {"switch_mode": True}),
    Method(
        "fine-tuned student",
        "leave out --compare, then go on from that run with --finetune_mode --load_best --load_path NAME",
        {"finetune_mode": True},
        start="MPL",
    ),
)


def methods_of(options: Options) -> tuple[Method, ...]:
    """The methods to compare: with `--views` those of co-training, and each view alone trained by MPL."""
    specs = options.cotraining.views
    if not specs:
        return METHODS
    alone = [
        Method(f"MPL on {label}", f"train on {spec} alone, without --views", {"views": (spec,)})
        for label, spec in zip(view_labels(specs), specs, strict=True)
    ]
    together = {
        BASE: "labels_only",
        "co-training": "cotraining",
        "meta co-training": "meta",
    }
    return (
        *(
            Method(
                name, f"put --cotrain_mode --algorithm {algorithm} in place of --compare",
                {"cotrain_mode": True, "algorithm": algorithm},
            )
            for name, algorithm in together.items()
        ),
        *alone,
    )  # fmt: skip


# --- the commands -----------------------------------------------------------------------------------------------------


def compare(options: Options) -> dict[str, Any]:
    """Train with every method and every seed, test each once, and say which to use; returns the summary, also written.

    Leaves in `results/NAME/`: summary.json, comparison.csv, comparison.png, and `seed-<seed>/` with the split and each
    method's metrics.csv. Raises UserError and TrainingFault.
    """
    began = time.monotonic()
    if options.run.resume:
        options = resumed_options(options)
    seeds = seeds_of(options, DEFAULT_REPEAT)
    dataset = find_dataset(options.data)
    split = split_dataset(dataset, options.data, seeds[0])
    if not len(split.test):
        raise UserError("--compare needs test images to compare on; give --test_percent or a test folder")
    first = prepared(options.changed(cotrain_mode=bool(options.cotraining.views)), dataset, split)
    check_seeds(first, seeds)
    folder = make_folder(options, first)
    options = options.changed(name=folder.name)
    with going_on(folder):
        results = measure(options, dataset, seeds, folder, steps=first.schedule.total_steps)
    summary = {
        **summary_of(options, folder, first, seeds, began),
        "mode": "compare",
        "comparison": rows_of(results),
        "advice": advice(results, methods_of(options)),
    }
    write_json(folder / "summary.json", summary)
    write_text(folder / "comparison.csv", table_as_csv(summary["comparison"], seeds))
    draw(folder / "comparison.png", results, title=f"{Path(dataset.name).name}, {summary['labels_used']} labels")
    say("\n" + table(results))
    say(f"\n{summary['advice']}\n\nresults: {folder}")
    return summary


def repeat(options: Options) -> dict[str, Any]:
    """Train one method with several seeds, each a whole run in `results/NAME/seed-<seed>/`; returns the summary.

    `summary.json` of the whole holds each model's accuracies, their mean and its 95% interval over the seeds (Student's
    t, not the interval of one test). Raises UserError and TrainingFault.
    """
    began = time.monotonic()
    if options.run.resume:
        options = resumed_options(options)
    seeds = seeds_of(options, 1)
    dataset = find_dataset(options.data)
    split = split_dataset(dataset, options.data, seeds[0])
    first = prepared(options, dataset, split)
    check_seeds(first, seeds)
    folder = make_folder(options, first)
    options = options.changed(name=folder.name)
    with going_on(folder):
        summaries = {seed: one_of(options, dataset, seed, folder / f"seed-{seed}") for seed in seeds}
    runs = list(summaries.values())
    summary = {
        **summary_of(options, folder, first, seeds, began),
        "mode": options.mode_name,
        **{part: over_seeds([run[part] for run in runs]) for part in ("val", "test")},
    }
    write_json(folder / "summary.json", summary)
    say(repeat_table(summary))
    say(f"results: {folder}")
    return summary


def seeds_of(options: Options, default: int) -> list[int]:
    """The seeds of --repeat, counted up from --seed."""
    return [options.run.seed + index for index in range(options.study.repeat or default)]


def prepared(options: Options, dataset: Dataset, split: Split) -> Training:
    """The first training of all, which shows whether the options are right before a folder is made or replaced."""
    say(summary_table(dataset, split))
    training = make_training(options, dataset, split)
    training.show_networks()
    if options.run.overwrite:
        training.fill_bank()
    return training


def check_seeds(first: Training, seeds: Sequence[int]) -> None:
    """Each seed tests on other images: none of them may be one whose label a view was fine-tuned on."""
    backbones = [view.backbone for view in first.views]
    for seed in seeds if any(len(backbone.learned) for backbone in backbones) else ():
        split = split_dataset(first.dataset, first.options.data, seed)
        own = [] if first.options.cotraining.finetune_views else backbones  # else each seed tunes its own
        check_not_learned(own, first.dataset, np.concatenate([split.val, split.test]))


def make_folder(options: Options, first: Training) -> Path:
    """`results/NAME` with what says what it is."""
    folder = run_folder(options.run.name or "", resume=options.run.resume, overwrite=options.run.overwrite)
    write_json(folder / "commandline_args.txt", recorded(options.changed(name=folder.name)))
    write_bad_files(folder, first.dataset)
    if options.data.show_images and options.mode.compare:  # a repeated run draws its own
        say(f"samples: {first.draw_samples(folder / 'samples.png')}")
    return folder


def summary_of(options: Options, folder: Path, first: Training, seeds: Sequence[int], began: float) -> dict[str, Any]:
    """What the summaries of both commands begin with; the counts are those of the first seed's split."""
    dataset, used = first.dataset, first.used_images()
    counts = {name: len(rows) for name, rows in vars(first.split).items()}
    return {
        "name": folder.name,
        "seed": options.run.seed,
        "seeds": list(seeds),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "dataset": {"path": dataset.name, "classes": list(dataset.classes), "images": counts},
        "labels_used": len(np.union1d(used["labels"], used["validation"])),
        "seconds": {"total": round(time.monotonic() - began, 3)},
        "versions": versions(),
        "commit": commit(),
    }


# --- one run ----------------------------------------------------------------------------------------------------------


def one_of(options: Options, dataset: Dataset, seed: int, folder: Path) -> dict[str, Any]:
    """The summary of one whole run of `repeat`, which is trained unless it is there already."""
    if (folder / "summary.json").is_file():
        say(f"seed {seed}: finished before")
        return read_json(folder / "summary.json")
    say(f"\nseed {seed}")
    own = options.changed(seed=seed, repeat=None)
    split = split_dataset(dataset, own.data, seed)
    check_same_images(folder, dataset, split)
    return carry_out(make_training(own, dataset, split), folder, time.monotonic())


def measure(
    options: Options,
    dataset: Dataset,
    seeds: Sequence[int],
    folder: Path,
    *,
    steps: int,
    methods: Sequence[str] | None = None,
) -> dict[str, dict[int, Accuracies]]:
    """Test accuracies, {method: {seed: {model: accuracy}}}, of the methods (None: all of them) at every seed.

    steps: of the methods without unlabeled images, so that all learn equally long. What `folder/journal.json` holds is
    not done again. Raises UserError when a method is wanted without the one that it starts from.
    """
    journal = folder / "journal.json"
    done: dict[str, dict[str, Any]] = read_json(journal) if journal.is_file() else {}
    known = methods_of(options)
    wanted = [*(method.name for method in known), *REFERENCES] if methods is None else list(methods)
    for method in known:
        if method.name in wanted and method.start not in (None, *wanted[: wanted.index(method.name)]):
            raise UserError(f"the {method.name} starts from {method.start}: name that first")
    for index, seed in enumerate(seeds):
        split = split_dataset(dataset, options.data, seed)
        place = folder / f"seed-{seed}"
        check_same_images(place, dataset, split)
        write_split(place / "split.csv", dataset, split)
        bench = Bench(options.changed(seed=seed, repeat=None, compare=False), dataset, split, place, steps, known)
        for position, name in enumerate(wanted):
            if str(seed) not in done.setdefault(name, {}):
                began = time.monotonic()
                accuracies = bench.accuracies(name)
                seconds = round(time.monotonic() - began, 1)
                done[name][str(seed)] = {"test": accuracies, "seconds": seconds}
                write_json(journal, done)
                shown = ", ".join(f"{model} {100 * value:.1f}%" for model, value in accuracies.items())
                place_of_all = index * len(wanted) + position + 1
                say(f"[{place_of_all}/{len(seeds) * len(wanted)}] seed {seed}, {name}: {shown}  ({seconds:.1f} s)")
        bench.clear()
    return {name: {seed: done[name][str(seed)]["test"] for seed in seeds} for name in wanted}


@dataclass
class Bench:
    """What the methods of one seed share: options, data, split, folder and the number of steps without a pile."""

    options: Options
    dataset: Dataset
    split: Split
    folder: Path
    steps: int
    methods: Sequence[Method]

    def accuracies(self, name: str) -> Accuracies:
        """The test accuracy of each model of a method, or of a reference."""
        method = next((method for method in self.methods if method.name == name), None)
        return self.reference(name) if method is None else self.trained(method)

    def trained(self, method: Method) -> Accuracies:
        """Train (from where it was stopped), and test once."""
        place, options = self.folder / method.folder, self.options.changed(**method.options)
        loaded = None
        if method.supervised:
            options = options.changed(max_steps=self.steps, num_epochs=None)
        if method.start is not None:
            options = options.changed(load_path=str(self.checkpoint(method.start)))
            loaded = load_run(options)
            options = inherit(options, loaded)
            check_leaks(loaded, self.dataset, self.split)
        training = make_training(options, self.dataset, self.split, loaded)
        progress = training.restore(place)
        training.train(place, progress)
        best_epoch = training.take_best(progress)
        if any(other.start == method.name for other in self.methods):
            training.save_best(self.checkpoint(method.name), best_epoch)
        with training.evaluated() as models:
            results = training.results(models, self.split.test)
        (place / "checkpoints" / "last.pt").unlink(missing_ok=True)  # dozens of them would fill a disk
        # A teacher that stood beside the student that was tuned is no other than before.
        return {name: result["accuracy"] for name, result in results.items() if name not in training.companions}

    def checkpoint(self, name: str) -> Path:
        """Where the models of a method lie until nobody starts from them any more."""
        return self.folder / next(m for m in self.methods if m.name == name).folder / "checkpoints" / "best.pt"

    def clear(self) -> None:
        """Remove the models: this is a measurement, and the best method is trained by a command of its own."""
        for method in self.methods:
            shutil.rmtree(self.folder / method.folder / "checkpoints", ignore_errors=True)

    def reference(self, name: str) -> Accuracies:
        """The test accuracy of a classifier of scikit-learn on what the backbone gives, or on pixels."""
        accuracy, what = reference_accuracy(name, self.options, self.dataset, self.split)
        return {f"on {what}": accuracy}


# --- what came out ----------------------------------------------------------------------------------------------------

Results = Mapping[str, Mapping[int, Accuracies]]


def series(results: Results) -> dict[str, list[float]]:
    """Each model's accuracies over the seeds; a row is named `METHOD: MODEL`, `METHOD` alone where it has one model."""
    rows = {}
    for method, of_seeds in results.items():
        models = next(iter(of_seeds.values()))
        for model in models:
            alone = len(models) == 1 and not model.startswith("on ")
            name = method if alone else f"{method} {model}" if model.startswith("on ") else f"{method}: {model}"
            rows[name] = [accuracies[model] for accuracies in of_seeds.values()]
    return rows


def finals(results: Results) -> dict[str, list[float]]:
    """What one would use of each method: the ensemble, or its only model. Fixed before anything is measured."""
    return {method: [list(accuracies.values())[-1] for accuracies in of.values()] for method, of in results.items()}


def rows_of(results: Results) -> list[dict[str, Any]]:
    """The rows of `comparison`: difference and interval (None: one seed) are paired with what one would use of the
    first method, labels only: its one model, or the mean of the views.
    """
    every = series(results)
    base = next(iter(finals(results).values()))
    rows = []
    for name, accuracies in every.items():
        difference, interval = paired_difference(accuracies, base)
        rows.append({"method": name, **spread(accuracies), "difference": difference, "ci95": known(interval)})
    return rows


def spread(accuracies: Sequence[float]) -> dict[str, Any]:
    """The accuracies, their mean and standard deviation (None of one seed)."""
    several = len(accuracies) > 1
    std = float(np.std(accuracies, ddof=1)) if several else None
    return {"accuracies": list(accuracies), "mean": float(np.mean(accuracies)), "std": std}


def known(interval: Sequence[float]) -> list[float] | None:
    """An interval as JSON can hold it: None in place of NaN."""
    return list(interval) if np.isfinite(interval).all() else None


def over_seeds(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each model's accuracy over the runs: the mean and its 95% interval by Student's t, and what it is made of."""
    result = {}
    for model in runs[0]:
        each = spread([run[model]["accuracy"] for run in runs])
        interval = known(paired_difference(each["accuracies"], [0.0] * len(runs))[1])
        interval = interval and [min(1.0, max(0.0, end)) for end in interval]  # two seeds reach beyond what there is
        result[model] = {"accuracy": each["mean"], "ci95": interval, **each}
    return result


def advice(results: Results, methods: Sequence[Method] = METHODS) -> str:
    """Which method to use on this data, and whether its lead is more than noise, in plain sentences.

    Only what one would use of each method is compared (`finals`). The winner is picked from k, so its lead over labels
    only counts as more than noise when k - 1 intervals that hold all at once leave zero out (Hsu 1981, with
    Bonferroni's bound). Methods are called distinguishable from it by the plain interval: nothing is claimed of them.
    """
    every = finals(results)
    best = max(every, key=lambda name: float(np.mean(every[name])))
    named = f"{best} ({100 * np.mean(every[best]):.1f}%)"
    count, how = len(every[best]), how_to_train(best, every, methods)
    if count < ENOUGH_SEEDS:
        few = f"{count} seed{'s' * (count > 1)} can't tell a difference from noise"
        return f"{named} is the best here, but {few}: use --repeat {DEFAULT_REPEAT}. {how}"
    others = [name for name in every if name not in (best, BASE)]
    tied = [name for name in others if paired_difference(every[best], every[name])[1][0] <= 0]
    rest = f"Not distinguishable from it: {'; '.join(tied) if tied != others else 'any other'}. " if tied else ""
    rest += f"As the best of {len(every)} on these very test images it is a little flattered. {how}"
    if best == BASE:
        return f"Use {named}: nothing did better here. {rest}"
    gain, interval = paired_difference(every[best], every[BASE])
    ends = f"(95% interval {points(interval[0])} to {points(interval[1])})"
    if paired_difference(every[best], every[BASE], comparisons=len(others) + 1)[1][0] > 0:
        sure = f"also when it is picked as the best of {len(every)}"
        return f"Use {named}: its {points(gain)} points {ends} over {BASE} are more than noise, {sure}. {rest}"
    if interval[0] > 0:
        doubt = f"but {count} seeds can't make that sure when it is picked as the best of {len(every)}"
        return f"Use {named}: its {points(gain)} points {ends} over {BASE} are likely more than noise, {doubt}. {rest}"
    lead = f"{points(gain)} points {ends}; more seeds or labels may tell"
    return f"{named} is the best here, but not distinguishable from {BASE}: {lead}. {rest}"


def how_to_train(best: str, every: Mapping[str, Sequence[float]], methods: Sequence[Method]) -> str:
    """How to get a classifier by the method, or where that is a reference, by the best method of this program."""
    ours = {method.name: method.how for method in methods if method.name in every}
    own = max(ours, key=lambda name: float(np.mean(every[name])))
    prefix = "" if best == own else f"It is scikit-learn's; the best that is trained here is {own}. "
    return f"{prefix}To train {own}: {ours[own]}."


def points(difference: float) -> str:
    """A difference of accuracies in percentage points, with its sign."""
    return f"{100 * difference:+.1f}"


def table(results: Results) -> str:
    """The comparison as a table that reads well on a screen and in Markdown."""
    rows, first = rows_of(results), next(iter(results))
    base = list(series({first: results[first]}))[-1]
    cells = [("method", "mean", "std", f"against {base}, 95% interval")]
    for row in rows:
        std = "" if row["std"] is None else f"{100 * row['std']:.1f}"
        cells.append((row["method"], f"{100 * row['mean']:.1f}%", std, "" if row["method"] == base else gain_of(row)))
    return aligned(cells)


def gain_of(row: Mapping[str, Any]) -> str:
    interval = "" if row["ci95"] is None else f" ({points(row['ci95'][0])} to {points(row['ci95'][1])})"
    return points(row["difference"]) + interval


def repeat_table(summary: Mapping[str, Any]) -> str:
    """Mean and interval of each model over the seeds of `repeat`."""
    cells = [("model", "mean", "std", "95% interval of the mean")]
    part = summary["test"] or summary["val"]
    for name, row in part.items():
        ends = [f"{100 * end:.1f}%" for end in row["ci95"] or []]
        std = "" if row["std"] is None else f"{100 * row['std']:.1f}"
        cells.append((name, f"{100 * row['mean']:.1f}%", std, " to ".join(ends)))
    where, count = "test" if summary["test"] else "validation", len(summary["seeds"])
    head = f"{where} accuracy of {count} seeds, each with a split of its own, {summary['labels_used']} labels"
    return f"\n{head}\n\n{aligned(cells)}" if part else "\nnothing was held out, so nothing was tested"


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a Markdown table with straight columns; the first row is its head."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]

    def line(row: Iterable[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"

    return "\n".join([line(cells[0]), line("-" * width for width in widths), *map(line, cells[1:])])


def table_as_csv(rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """The comparison as CSV, accuracies in [0, 1], a column a seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "mean", "std", "difference", "ci95_low", "ci95_high", *(f"seed_{s}" for s in seeds)])
    for row in rows:
        ends = row["ci95"] or ["", ""]
        std = "" if row["std"] is None else row["std"]
        writer.writerow([row["method"], row["mean"], std, row["difference"], *ends, *row["accuracies"]])
    return text.getvalue()


def draw(path: Path, results: Results, *, title: str) -> Path:
    """The picture: what one would use of each method, and its difference from the first one."""
    every = finals(results)
    base = next(iter(every.values()))
    differences = [paired_difference(accuracies, base) for accuracies in every.values()]
    return visualization.draw_comparison(path, list(every), list(every.values()), title=title, differences=differences)
