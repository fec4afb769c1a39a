"""The page of a finished run: what came out, what to distrust, and how to do it again. Measures nothing that counts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import args
from ..backbones.registry import view_labels
from ..base.metrics import confusion_matrix, wilson_interval
from ..data import Dataset, Split
from ..features.bank import FeatureBank
from ..features.sources import ImageRequest, Source
from ..reports import charts
from ..reports.page import Section, write_report
from ..utils import generator
from ..visualization import Panel, curve_panels

GALLERY = 12  # images of each kind
FEW_LABELS = 5  # of a class
ODD_FILES = 10  # of each kind, by name
UNEVEN = 3.0  # times as many images of one class as of another
# Of so many images distances are taken: enough to meet a kind of stranger, and done in a moment.
FAR_SAMPLE, FAR_LABELED = 4000, 1000
FAR_LEAST = 20  # images, to tell what is usual
METHODS = {
    "mpl": "Meta Pseudo Labels",
    "switch": "Meta Pseudo Labels with switched roles",
    "finetune": "labeled images alone",
    "labels_only": "labeled images alone",
    "cotraining": "co-training",
    "meta": "Meta Co-Training",
}


@dataclass(frozen=True)
class Finished:
    """What the page is made of, beside the summary.

    rows: of metrics.csv; tested: each model's probabilities {name: float32 [N, C]} for the rows of `split.test`;
    backbone: the first view's name; source: where its features are at hand, if it is a bank.
    """

    options: args.Options
    dataset: Dataset
    split: Split
    rows: Sequence[Mapping[str, Any]]
    tested: Mapping[str, np.ndarray]
    backbone: str
    source: Source | None = None

    @property
    def judge(self) -> str:
        """The model whose mistakes are shown: the ensemble where there is one."""
        return "ensemble" if "ensemble" in self.tested else next(iter(self.tested))

    @property
    def labels(self) -> np.ndarray:
        return self.dataset.labels[self.split.test]

    @property
    def method(self) -> str:
        """How it learned: the mode, of co-training the algorithm."""
        return self.options.cotraining.algorithm if self.options.mode.cotrain_mode else self.options.mode_name

    @property
    def views(self) -> list[str]:
        """The backbones by name: one, or those of co-training."""
        return view_labels(self.options.cotraining.views) if self.options.mode.cotrain_mode else [self.backbone]


def write_run(folder: Path, summary: Mapping[str, Any], run: Finished) -> Path:
    """Write `report.html` into the run's folder. Raises nothing for an image that is gone meanwhile."""
    far = far_images(run)
    sections = [
        _results(summary),
        _warnings(summary, run, far),
        _what_was_run(summary, run),
        *(_of_the_test(folder, run) if run.tested else []),
        *_curves(run),
        *_reliability(folder, summary),
        *_far(run, far),
        *_samples(folder),
        _again(run),
    ]
    return write_report(folder / "report.html", f"{summary['name']}", sections, lead=_lead(summary, run))


# --- what came out ----------------------------------------------------------------------------------------------------


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _lead(summary: Mapping[str, Any], run: Finished) -> str:
    labels, classes = summary["labels_used"], len(run.dataset.classes)
    learned = f"{labels} labels and {len(run.split.unlabeled)} unlabeled images"
    learned = f"{labels} labels" if run.method in ("finetune", "labels_only") else learned
    if not run.tested:
        return f"Learned {classes} classes from {learned}; there was no test."
    result = summary["test"][run.judge]
    low, high = (_percent(bound) for bound in result["ci95"])
    who = {"ensemble": "The models together are"}.get(run.judge, f"The {run.judge} is")
    return (
        f"{who} right on {_percent(result['accuracy'])} of {len(run.split.test)} test images of {classes} classes "
        f"(95% interval {low} to {high}), having learned from {learned}."
    )


def _results(summary: Mapping[str, Any]) -> Section:
    validated = bool(summary.get("val"))
    columns = ["model", "test accuracy", "95% interval", "macro F1"]
    columns += ["validation", "epoch kept"] if validated else []
    rows = []
    for name, result in summary["test"].items():
        low, high = result["ci95"]
        row = [name, _percent(result["accuracy"]), f"{_percent(low)} to {_percent(high)}", f"{result['macro_f1']:.3f}"]
        if validated:
            row += [_percent(summary["val"][name]["accuracy"]), summary["best_epoch"].get(name)]
        rows.append(row)
    images = summary["dataset"]["images"]
    told = [
        f"Labels used: {summary['labels_used']}" + (", validation images among them" if images["val"] else "") + ". "
        f"Tested once, at the end, on {images['test']} images that nothing was chosen by.",
        "Accuracies that lie in each other's interval may differ by chance.",
    ]
    table = {"columns": columns, "rows": rows} if rows else {}
    return {
        "heading": "How good it is",
        "table": table,
        "text": told if rows else "This run kept no images for a test.",
    }


def _shares(shares: Mapping[str, float]) -> str:
    """How frequent the classes were taken to be; the commonest of many."""
    if not shares:
        return ""
    first = sorted(shares.items(), key=lambda item: -item[1])[:12]
    told = ", ".join(f"{100 * share:.0f}% {name}" for name, share in first)
    return f"taken to be {told}{', ...' if len(shares) > len(first) else ''}"


def _what_was_run(summary: Mapping[str, Any], run: Finished) -> Section:
    options, dataset, split = run.options, run.dataset, run.split
    names = ", ".join(dataset.classes[:12]) + (", ..." if len(dataset.classes) > 12 else "")
    seconds, last = summary["seconds"], run.rows[-1] if run.rows else {}
    took = f"{seconds['total']:.0f} s, of which {seconds['training']:.0f} s training"
    took += f" and {seconds['features']:.0f} s features" if seconds["features"] >= 1 else ""
    took += f" and {seconds['calibration']:.0f} s calibration" if seconds.get("calibration", 0) >= 1 else ""
    rows = [
        ("data", dataset.name),
        ("classes", f"{len(dataset.classes)}: {names}"),
        ("images", f"{len(split.labeled)} labeled, {len(split.unlabeled)} unlabeled, {len(split.val)} validation, "
                   f"{len(split.test)} test"),
        ("unlabeled ones", _shares(summary.get("class_prior", {}))),
        ("method", METHODS.get(run.method, run.method)),
        ("started from", options.mode.load_path or ""),
        ("network", f"{', '.join(run.views)}, {_heads(options.model)}{' each' if len(run.views) > 1 else ''}"),
        ("prior of the heads", "from the unlabeled images" if summary.get("views_with_prior") else ""),
        ("targets read off", f"an image and {near} nearest to it" if (near := summary.get("neighbours")) else ""),
        ("trained", f"{last.get('step', 0)} steps, {len(run.rows)} epochs"),
        ("seed", str(summary["seed"])),
        ("took", took),
        ("memory", f"{summary['peak_memory_bytes'] / 1e9:.1f} GB at most"),
        ("program", f"commit {(summary['commit'] or 'unknown')[:12]}, "
                    + ", ".join(f"{name} {version}" for name, version in summary["versions"].items())),
    ]  # fmt: skip
    return {"heading": "What was run", "table": {"rows": [row for row in rows if row[1]]}}


def _heads(model: args.Model) -> str:
    count = model.head_ensemble
    return f"{model.head} head" if count == 1 else f"{count} {model.head} heads that learn as one"


def _again(run: Finished) -> Section:
    told = "All options that differ from the defaults; the paths are as they were typed, so run it in the same folder."
    command = shlex.join(["python", "MPL.py", *args.command_line(run.options)])
    return {"heading": "Run it again", "text": told, "command": command}


# --- what to distrust -------------------------------------------------------------------------------------------------


def _warnings(summary: Mapping[str, Any], run: Finished, far: Sequence[Far]) -> Section:
    lines = [*_warnings_of_files(run.dataset), *_warnings_of_counts(run), *_warnings_of_results(summary, run)]
    if far:
        lines.append(f"Images that are unusually far from every labeled one: {len(far)}. Do they belong to any class?")
    told = "" if lines else "Nothing odd was found in the files, the counts and the results."
    return {"heading": "Warnings", "warnings": lines, "text": told, "table": _odd_files(run.dataset)}


def _odd_files(dataset: Dataset) -> dict[str, Any]:
    """The files of the warnings by name, the first of each kind."""
    rows = [(path, reason) for path, reason in dataset.bad_files[:ODD_FILES]]
    rows += [(path, f"another class: {_some(others)}") for path, *others in dataset.conflicts[:ODD_FILES]]
    rows += [(path, f"copy of {kept}") for path, kept in dataset.duplicates[:ODD_FILES]]
    return {"columns": ["file", "what is wrong"], "rows": rows} if rows else {}


def _warnings_of_files(dataset: Dataset) -> list[str]:
    found = (
        (dataset.bad_files, "Files that can't be decoded and were left out (all of them: bad_files.txt)"),
        (dataset.conflicts, "Images that lie under more than one class, so that their labels were not used"),
        (dataset.duplicates, "Files that are copies of others and were left out"),
    )
    return [f"{what}: {len(files)}." for files, what in found if files]


def _warnings_of_counts(run: Finished) -> list[str]:
    parts = {
        "labeled": (run.split.labeled, "the rare class may be overlooked"),
        "test": (run.split.test, "the accuracy tells little of the rare class, so look at each"),
    }
    lines, classes = [], run.dataset.classes
    for part, (rows, advice) in parts.items():
        counts = _counts(run, rows)
        low, high = int(counts.argmin()), int(counts.argmax())
        if counts[high] >= UNEVEN * max(counts[low], 1):
            spread = f"{counts[high]} of {classes[high]}, {counts[low]} of {classes[low]}"
            lines.append(f"The {part} images are unevenly spread ({spread}): {advice}.")
    counts = _counts(run, run.split.labeled)
    few = [f"{classes[i]} ({counts[i]})" for i in np.flatnonzero(counts < FEW_LABELS)]
    if few:
        lines.append(f"Fewer than {FEW_LABELS} labels of {_some(few, 8)}: a few more would help most.")
    return lines


def _counts(run: Finished, rows: np.ndarray) -> np.ndarray:
    return np.bincount(run.dataset.labels[rows], minlength=len(run.dataset.classes))


def _some(names: Sequence[str], most: int = 5) -> str:
    return "; ".join(names[:most]) + (f"; and {len(names) - most} more" if len(names) > most else "")


def _warnings_of_results(summary: Mapping[str, Any], run: Finished) -> list[str]:
    if not run.tested:
        return []
    lines, classes = worse_than_guessing(summary, run), run.dataset.classes
    result, probabilities = summary["test"][run.judge], run.tested[run.judge]
    low, high = result["ci95"]
    if high - low > 0.1:
        lines.append(f"The test is small: the interval of the accuracy is {100 * (high - low):.0f} points wide.")
    predicted = np.bincount(probabilities.argmax(axis=1), minlength=len(classes))
    never = [classes[i] for i in np.flatnonzero((predicted == 0) & (_counts(run, run.split.test) > 0))]
    if never:
        lines.append(f"The {run.judge} never answers {_some(never, 8)}.")
    excess = float(probabilities.max(axis=1).mean()) - result["accuracy"]
    if abs(excess) > 0.1:
        sure = f"on average {_percent(result['accuracy'] + excess)} sure, and right on {_percent(result['accuracy'])}"
        lines.append(
            f"The {run.judge} is {'too' if excess > 0 else 'not'} sure{'' if excess > 0 else ' enough'}: {sure}."
        )
    return lines


def worse_than_guessing(summary: Mapping[str, Any], run: Finished) -> list[str]:
    """A warning where always answering the commonest class of the test would be right more often."""
    if not run.tested:
        return []
    accuracy, counts = summary["test"][run.judge]["accuracy"], _counts(run, run.split.test)
    guessing = counts.max() / counts.sum()
    if accuracy >= guessing:
        return []
    told = f"The {run.judge} is right on {_percent(accuracy)}; always answering {run.dataset.classes[counts.argmax()]}"
    return [
        f"{told} would be right on {_percent(guessing)}. Labels that a model gives to unlabeled images can confirm "
        "its first errors: try --finetune_mode, which learns from none of them, or more labels; --compare measures it."
    ]


# --- the test, image by image -----------------------------------------------------------------------------------------


def _of_the_test(folder: Path, run: Finished) -> list[Section]:
    predicted, classes = run.tested[run.judge].argmax(axis=1), run.dataset.classes
    confusion = confusion_matrix(run.labels, predicted, len(classes))
    taken: Section = {"heading": "Which class is predicted as which"}
    if len(classes) <= charts.MOST_CLASSES:
        taken["text"] = f"Test images, by the {run.judge}: a row is a true class, a column what it was predicted as."
        taken["figures"] = [charts.matrix(confusion, classes)]
    else:
        picture = folder / f"{run.judge}_CM.png"
        taken["pictures"] = [(picture, f"Confusion matrix of the {run.judge} on the test images")]
        taken["text"] = f"The {run.judge} on the test images. The commonest confusions:"
        taken["table"] = _confusions(confusion, classes)
    sections = [_classes(run, confusion), taken]
    if run.dataset.kind == "points":
        return sections
    return [*sections, *_galleries(run, predicted)]


def _confusions(confusion: np.ndarray, classes: Sequence[str], most: int = 20) -> dict[str, Any]:
    wrong = confusion * (1 - np.eye(len(classes), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(classes)) for place in order if wrong.flat[place]]
    rows = [(classes[true], classes[said], int(wrong[true, said])) for true, said in pairs]
    return {"columns": ["true class", "predicted as", "images"], "rows": rows}


def _classes(run: Finished, confusion: np.ndarray) -> Section:
    right, total = np.diag(confusion), confusion.sum(axis=1)
    order = sorted(np.flatnonzero(total).tolist(), key=lambda i: (right[i] / total[i], run.dataset.classes[i]))
    rows = []
    for i in order:
        interval = wilson_interval(int(right[i]), int(total[i]))
        note = f"{100 * right[i] / total[i]:.0f}% of {total[i]}"
        rows.append((run.dataset.classes[i], float(right[i] / total[i]), interval, note))
    told = (
        f"How many test images of each class the {run.judge} gets right, the hardest class first; lines: 95% interval."
    )
    return {"heading": "Each class", "text": told, "figures": [charts.bars(rows, head=("class", "right"))]}


def _galleries(run: Finished, predicted: np.ndarray) -> list[Section]:
    sure = run.tested[run.judge].max(axis=1)
    wrong = np.flatnonzero(predicted != run.labels)
    surest = wrong[np.argsort(-sure[wrong], kind="stable")][:GALLERY]
    unsure = np.argsort(sure, kind="stable")[:GALLERY]
    told = f"{len(surest)} of {len(wrong)} mistakes on the test, the surest first. "
    told += "Some may be right: a wrong label in the folder looks like this."
    sections: list[Section] = []
    if len(surest):
        gallery = [_card(run, place) for place in surest.tolist()]
        sections.append({"heading": "The surest mistakes", "text": told, "gallery": gallery})
    told = "The test images with the lowest probability of the likeliest class. Labels of images like these teach most."
    gallery = [_card(run, place) for place in unsure.tolist()]
    return [*sections, {"heading": "The least sure images", "text": told, "gallery": gallery}]


def _card(run: Finished, place: int) -> dict[str, Any]:
    """A test image with what was said of it; place: its position in the test."""
    classes, row = run.dataset.classes, int(run.split.test[place])

    def answer(name: str) -> tuple[str, str]:
        probabilities = run.tested[name][place]
        said = int(probabilities.argmax())
        return classes[said], f"{100 * probabilities[said]:.0f}%"

    said, sure = answer(run.judge)
    true = classes[run.labels[place]]
    lines = [f"{said}, {sure}", "right" if said == true else f"filed under {true}"]
    others = {name: answer(name) for name in run.tested if name != run.judge}
    if len({other for other, _ in others.values()}) > 1:
        lines += [f"{name}: {other}, {sure}" for name, (other, sure) in others.items()]
    return {"image": image_of(run.dataset, row), "caption": [*lines, run.dataset.paths[row]]}


def image_of(dataset: Dataset, row: int) -> Any:
    """What `report.thumbnail` takes: the file, or the pixels uint8 [H, W, 3] of an image that came in an array."""
    source = dataset.sources[row]
    if dataset.array is None:
        return source
    pixels = dataset.array[source]
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


# --- curves and pictures ----------------------------------------------------------------------------------------------


def _curves(run: Finished) -> list[Section]:
    panels = curve_panels([dict(row) for row in run.rows])
    ours = [panel for panel in panels if panel.title.startswith("Pseudo-labels")]
    others = [panel for panel in panels if panel not in ours]

    def draw(chosen: Sequence[Panel]) -> list[charts.Markup]:
        return [charts.curves(panel, run.rows) for panel in chosen]

    sections: list[Section] = []
    if others:
        sections.append({"heading": "Learning curves", "figures": draw(others)})
    if not ours:
        return sections
    hidden = any(column.startswith("pseudo_label_accuracy") for panel in ours for column, *_ in panel.lines)
    told = ["How often the teacher was sure enough to teach (mask rate), and how often both models agreed."]
    if hidden:
        told.append(
            "Pseudo-label accuracy is a diagnostic: it needs the hidden labels of the unlabeled images, which this "
            "data set happens to know. No choice was made by it, and real unlabeled images have none."
        )
    return [
        *sections,
        {"heading": "Pseudo-labels over time", "text": told, "diagnostic": hidden, "figures": draw(ours)},
    ]


def _reliability(folder: Path, summary: Mapping[str, Any]) -> list[Section]:
    """The diagram and the errors of the probabilities, where the run has measured them."""
    section: Section = {"heading": "How far its probabilities can be believed"}
    if (folder / "reliability.png").is_file():
        section["text"] = "On the diagonal it is right as often as it says; below it, it is too sure."
        section["pictures"] = [(folder / "reliability.png", "Reliability diagram of the test images")]
    table = _calibration(summary.get("calibration") or {})
    if table["rows"]:
        section["table"] = table
    return [section] if len(section) > 1 else []


def _calibration(measured: Mapping[str, Any]) -> dict[str, Any]:
    """A row a model: its temperature, and its calibration error and Brier score before and after calibration."""
    names = {"ece": "calibration error", "brier": "Brier score"}
    states = {state: measured[state] for state in ("before", "after") if measured.get(state)}
    temperatures = measured.get("temperatures") or {}
    models = list(dict.fromkeys(model for errors in states.values() for model in errors))
    columns = ["model", *(["temperature"] if temperatures else [])]
    columns += [f"{name}, {state}" if len(states) > 1 else name for name in names.values() for state in states]
    rows = [
        [model, *([temperatures.get(model)] if temperatures else []),
         *(errors.get(model, {}).get(name) for name in names for errors in states.values())]
        for model in models
    ]  # fmt: skip
    return {"columns": columns, "rows": rows}


def _samples(folder: Path) -> list[Section]:
    if not (folder / "samples.png").is_file():
        return []
    pictures = [(folder / "samples.png", "Labeled images raw, weakly and strongly augmented")]
    return [{"heading": "What the network saw", "pictures": pictures}]


# --- images that are far from every class -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Far:
    """An image that is unusually far from every labeled one; place: its position in the test, None outside it."""

    row: int
    place: int | None
    distance: float


def far_images(run: Finished) -> list[Far]:
    """Test and unlabeled images beyond Tukey's fence of distances to the nearest labeled image, the farthest first.

    The distance is 1 - cosine of a frozen backbone's features, uncentred: they say how much of what a picture holds.
    Only features that the run has computed anyway are asked; without them there are none.
    """
    bank, split = run.source, run.split
    if not isinstance(bank, FeatureBank) or run.dataset.kind == "points":
        return []
    labeled = _some_of(split.labeled, FAR_LABELED, run)
    known = _directions(bank, labeled, "weak")
    pile = _some_of(np.setdiff1d(split.unlabeled, split.labeled), FAR_SAMPLE, run)
    found = []
    for rows, view in ((split.test, "eval"), (pile, "weak")):
        images = _directions(bank, rows, view)
        if known is None or images is None or len(rows) < FAR_LEAST:
            continue
        distances = 1 - (images @ known.T).amax(dim=1).cpu().numpy()
        low, high = np.quantile(distances, [0.25, 0.75])
        for place in np.flatnonzero(distances > high + 1.5 * (high - low)).tolist():
            found.append(Far(int(rows[place]), place if view == "eval" else None, float(distances[place])))
    return sorted(found, key=lambda far: -far.distance)


def _some_of(rows: np.ndarray, most: int, run: Finished) -> np.ndarray:
    return generator(run.options.run.seed, "far images").permutation(rows)[:most] if len(rows) > most else rows


def _directions(bank: FeatureBank, rows: np.ndarray, view: str) -> torch.Tensor | None:
    """Features of length 1 [n, D] of the first draw of a view; None where some were never computed."""
    if not len(rows) or bank.missing({(view, 0): rows}):
        return None
    return torch.nn.functional.normalize(bank.rows(ImageRequest(rows, np.zeros(len(rows), dtype=np.int64), view)))


def _far(run: Finished, far: Sequence[Far]) -> list[Section]:
    if not far:
        return []
    told = (
        "By the backbone's features these are unusually far from each labeled image, the farthest first. Look whether "
        "they belong to any class; if they do, labels of images like these would teach most."
    )
    gallery = []
    for one in far[:GALLERY]:
        card = {"image": image_of(run.dataset, one.row), "caption": ["unlabeled", run.dataset.paths[one.row]]}
        gallery.append(card if one.place is None else _card(run, one.place))
    return [{"heading": "Far from every class", "text": told, "gallery": gallery}]
