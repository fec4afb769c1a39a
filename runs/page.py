"""The page of a finished run: what came out, what to distrust, and how to do it again.

It computes nothing that a result depends on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ..base.metrics import most_confused, reliability, wilson_interval
from ..base.tables import number_of, percent
from ..reports import charts
from ..reports.page import Section, write_report
from ..visualization import BLUE, FAINT, MATRIX_CLASSES, ORANGE, Panel, curve_panels, few_images
from .decision import UNEVEN, told
from .distant_images import DistantImage, distant_images
from .finished_run import FinishedRun
from .page_warnings import warnings_section
from .run_summary import how_validated
from .unlabeled_tables import NEXT

GALLERY = 12  # images of each kind
TO_LABEL = 24
SURE = 0.9  # of its likeliest class, an image is no unsure one
CLASSES_NAMED = 12  # in a list
HARDEST = 50  # classes as bars, where there are more
METHODS = {
    "mpl": "Meta Pseudo Labels",
    "switch": "Meta Pseudo Labels with switched roles",
    "finetune": "labeled images alone",
    "labels_only": "labeled images alone",
    "cotraining": "co-training",
    "meta": "Meta Co-Training",
}


def write_run(folder: Path, summary: Mapping[str, Any], run: FinishedRun) -> Path:
    """Write `report.html` into the run's folder. Raises nothing for an image that is gone meanwhile."""
    distant = distant_images(run.source, run.dataset, run.split, run.seed)
    sections = [
        _results(summary),
        warnings_section(summary, run, len(distant)),
        _what_was_run(summary, run),
        *(_of_judged(summary, run) if run.tested else []),
        *_curves(run),
        *_reliability(summary, run),
        *_distant(run, distant),
        *([] if summary["labels_unused"] else _label_next(run)),  # known ones need nobody
        *_samples(folder, run.dataset.kind),
        _again(run),
    ]
    return write_report(folder / "report.html", f"{summary['name']}", sections, lead=_lead(summary, run))


# --- what came out ----------------------------------------------------------------------------------------------------


def _lead(summary: Mapping[str, Any], run: FinishedRun) -> str:
    labels, classes = summary["labels_used"], len(run.dataset.classes)
    more = len(np.setdiff1d(run.split.unlabeled, run.split.labeled))
    alone = run.method in ("finetune", "labels_only") or not more
    learned = f"{labels} labels" if alone else f"{labels} labels and {number_of(more, 'unlabeled image')}"
    folds = summary.get("cross_validation") or {}
    models = folds.get("models") or summary["test"]
    if not models:
        return f"Learned {classes} classes from {learned}; there was no test."
    judge = "ensemble" if "ensemble" in models else next(iter(models))
    result = models[judge]
    low, high = (percent(bound) for bound in result["ci95"])
    who = {"ensemble": "The models together are"}.get(judge, f"The {judge} is")
    if sought := summary.get("decision", {}).get("recall"):
        name, found = next(iter(sought.items()))
        return (
            f"Finds {percent(min(found['promised'], 1.0))} of {name} or more; of what it calls {name}, about "
            f"{percent(found['precision'])} is, where {percent(found['share'])} of all images are. Learned from "
            f"{learned}."
        )
    if folds:
        return (
            f"{who} right on about {percent(result['accuracy'])} of images of {classes} classes (95% interval {low} to "
            f"{high}; cross-validated on the labels), having learned from {learned}."
        )
    tested = number_of(len(run.split.test), "test image")
    return (
        f"{who} right on {percent(result['accuracy'])} of {tested} of {classes} classes "
        f"(95% interval {low} to {high}), having learned from {learned}."
    )


def _results(summary: Mapping[str, Any]) -> Section:
    folds, validated = summary.get("cross_validation") or {}, summary.get("val") or {}
    tested, across = summary["test"], folds.get("models") or {}
    columns = ["model"]
    columns += ["cross-validated", "95% interval"] if across else []
    columns += ["test accuracy", "95% interval", "balanced accuracy", "macro F1"] if tested else []
    columns += ["validation", "epoch kept"] if validated else []
    rows = []
    for name in across or tested:
        row = [name]
        for part in (across, tested):
            if part:
                low, high = (percent(bound) for bound in part[name]["ci95"])
                row += [percent(part[name]["accuracy"]), f"{low} to {high}"]
        row += [percent(tested[name]["balanced_accuracy"]), f"{tested[name]['macro_f1']:.3f}"] if tested else []
        if validated:
            row += [percent(validated[name]["accuracy"]), summary["best_epoch"].get(name)]
        rows.append(row)
    return {
        "heading": "How good it is",
        "table": {"columns": columns, "rows": rows} if rows else {},
        "text": _measured(summary) if rows else "This run kept no images for a test.",
    }


def _measured(summary: Mapping[str, Any]) -> list[str]:
    """On which images, and what that says."""
    images, folds = summary["dataset"]["images"], summary.get("cross_validation")
    with_validation = ", validation images among them" if images["val"] else ""
    lines = [f"Labels used: {summary['labels_used']}{with_validation}. "]
    if summary["test"]:
        lines[0] += f"Tested once, at the end, on {number_of(images['test'], 'image')} that took no part in any choice."
    else:
        lines[0] += "No image was kept for a test: all labels teach."
    if folds:
        why = f"{images['test']} test images say little" if summary["test"] else "There is no test"
        lines.append(
            f"{why}, so look at the labels: {how_validated(folds)}, each image predicted by trainings that saw nothing "
            "of it. The models themselves learned from all labels, and are rather a little better. The interval allows "
            "for the images that these trainings share (Nadeau and Bengio 2003)."
        )
        chosen = summary.get("decision")
        if chosen and (chosen["recall"] or chosen["balance"]["on"]):
            lines[-1] += " How classes are decided was chosen on these same images, so these figures flatter it."
    decision = told(summary["decision"]) if "decision" in summary else []
    return [*lines, *_unused(summary["labels_unused"]), *decision,
            "Accuracies that lie in each other's interval may differ by chance."]  # fmt: skip


def _unused(labels: int) -> list[str]:
    what = "known labels were not used, to show what few of them give; --num_labels_percent 100% uses all."
    return [f"{labels} {what}"] if labels else []


def _what_was_run(summary: Mapping[str, Any], run: FinishedRun) -> Section:
    dataset, split, last = run.dataset, run.split, run.rows[-1] if run.rows else {}
    unlabeled = len(np.setdiff1d(split.unlabeled, split.labeled))
    names = ", ".join(dataset.classes[:CLASSES_NAMED]) + (", ..." if len(dataset.classes) > CLASSES_NAMED else "")
    rows = [
        ("data", dataset.name),
        ("classes", f"{len(dataset.classes)}: {names}"),
        ("images", f"{len(split.labeled)} labeled, {unlabeled} unlabeled, {len(split.val)} validation, "
                   f"{len(split.test)} test"),
        ("class prior", _class_prior(summary.get("class_prior", {})) if unlabeled else ""),
        ("method", METHODS.get(run.method, run.method)),
        ("started from", run.mode.load_path or ""),
        ("network", f"{', '.join(run.views)}, a linear head{' each' if len(run.views) > 1 else ''}"),
        ("head prior", "from the unlabeled images" if summary.get("views_with_prior") else ""),
        ("trained", f"{last.get('step', 0)} steps, {len(run.rows)} epochs"),
        ("seed", str(summary["seed"])),
        ("time", _time(summary["seconds"], "since it was resumed, " * run.resumed)),
        ("memory", f"{summary['peak_memory_bytes'] / 1e9:.1f} GB at most"),
        ("program", f"commit {(summary['commit'] or 'unknown')[:12]}, "
                    + ", ".join(f"{name} {version}" for name, version in summary["versions"].items())),
    ]  # fmt: skip
    return {"heading": "What was run", "table": {"rows": [row for row in rows if row[1]]}}


def _class_prior(frequencies: Mapping[str, float]) -> str:
    """How frequent the classes were assumed to be among the unlabeled images; the most frequent of many."""
    if not frequencies:
        return ""
    first = sorted(frequencies.items(), key=lambda item: -item[1])[:CLASSES_NAMED]
    named = ", ".join(f"{100 * frequency:.0f}% {name}" for name, frequency in first)
    return f"{named}{', ...' if len(frequencies) > len(first) else ''} of the unlabeled images"


def _time(seconds: Mapping[str, float], since: str) -> str:
    parts = [f"{since}{seconds['total']:.0f} s, of which {seconds['training']:.0f} s training"]
    parts += [f"{seconds[part]:.0f} s {part}" for part in ("features", "calibration") if seconds.get(part, 0) >= 1]
    return " and ".join(parts)


def _again(run: FinishedRun) -> Section:
    text = "All options that differ from the defaults; the paths are as they were typed, so run it in the same folder."
    return {"heading": "Run it again", "text": text, "command": run.command}


# --- the judged images, one by one ------------------------------------------------------------------------------------


def _of_judged(summary: Mapping[str, Any], run: FinishedRun) -> list[Section]:
    counts, classes = run.confusion, run.dataset.classes
    confusion: Section = {"heading": "Which class is predicted as which"}
    if len(classes) <= MATRIX_CLASSES:
        images = run.judged_images[0].upper() + run.judged_images[1:]
        confusion["text"] = f"{images}, by the {run.judge}: a row is a true class, a column a predicted one."
        confusion["figures"] = [charts.matrix(counts, classes)]
    else:
        confusion["text"] = f"The {run.judge} on {run.judged_images}: the most frequent confusions."
        rows = [(classes[true], classes[predicted], count) for true, predicted, count in most_confused(counts)]
        confusion["table"] = {"columns": ["true class", "predicted as", "images"], "rows": rows}
    sections = [_classes(run, counts), *_rare(summary, run), confusion]
    if run.dataset.kind == "points":
        return sections
    return [*sections, *_galleries(run)]


def _classes(run: FinishedRun, counts: np.ndarray) -> Section:
    right, total = np.diag(counts), counts.sum(axis=1)
    order = sorted(np.flatnonzero(total).tolist(), key=lambda i: (right[i] / total[i], run.dataset.classes[i]))
    rows = []
    for i in order[:HARDEST]:
        interval = wilson_interval(int(right[i]), int(total[i]))
        note = f"{100 * right[i] / total[i]:.0f}% of {total[i]}"
        rows.append((run.dataset.classes[i], float(right[i] / total[i]), interval, note))
    text = (
        f"How many images of each class the {run.judge} gets right ({run.judged_images}), the hardest class first. "
        "The thin lines are 95% intervals."
    )
    if len(order) > HARDEST:
        text += f" The {HARDEST} hardest of {len(order)} classes; summary.json has all."
    return {"heading": "Each class", "text": text, "figures": [charts.bars(rows, head=("class", "right"))]}


def _rare(summary: Mapping[str, Any], run: FinishedRun) -> list[Section]:
    """For the classes of `--recall`, or a rare one: how many others are taken for it, the more of it are found."""
    asked = list(summary.get("decision", {}).get("recall", ()))
    counts, classes = run.class_counts(run.split.labeled), run.dataset.classes
    rare = [classes[int(counts.argmin())]] if counts.max() > UNEVEN * counts.min() else []
    figures, text = [], []
    for name in asked or rare:
        place = classes.index(name)
        true, named = run.labels == place, run.predicted(run.judge) == place
        if not 0 < true.sum() < len(true):
            continue
        figures.append(charts.precision_by_recall(name, true, run.tested[run.judge][:, place]))
        right = f"{int((true & named).sum())} of {true.sum()} images of {name} are found ({run.judged_images})"
        text.append(f"As the run decides, {right}; {int(named.sum())} are called {name}.")
    return [{"heading": "Found against mistaken", "text": text, "figures": figures}] if figures else []


def _galleries(run: FinishedRun) -> list[Section]:
    confidence, predicted = run.confidence(run.judge), run.predicted(run.judge)
    wrong = np.flatnonzero(predicted != run.labels)
    surest = run.surest_mistakes(GALLERY)
    unsure = np.argsort(confidence, kind="stable")[:GALLERY]
    unsure = unsure[confidence[unsure] < SURE]
    sections: list[Section] = []
    if len(surest):
        text = f"{len(surest)} of {len(wrong)} mistakes on {run.judged_images}; the surest first. "
        text += "Some may be no mistakes: a wrong label in the folder looks like this."
        gallery = [_card(run, position) for position in surest]
        sections.append({"heading": "The surest mistakes", "text": text, "gallery": gallery})
        sections += _explained(run)
    text = (
        f"Of the {run.judged_images}, those whose likeliest class has the lowest probability. Labels for images like "
        "these help most."
    )
    if not len(unsure):
        text = f"It is sure of each of these images: no likeliest class has a probability below {100 * SURE:.0f}%."
    gallery = [_card(run, position) for position in unsure.tolist()]
    return [*sections, {"heading": "The least sure images", "text": text, "gallery": gallery}]


def _explained(run: FinishedRun) -> list[Section]:
    """What some of the mistakes rest on, where that was drawn."""
    text = (
        "The same images in grey, glowing where they speak for the class that was predicted (Grad-CAM; of a "
        "transformer the same for its patches). --explain draws it for any images."
    )
    predicted = run.predicted(run.judge)
    gallery = [
        {"image": image, "caption": [f"for {run.dataset.classes[predicted[position]]}: {name}"]}
        for position, each in run.overlays.items()
        for name, image in each.items()
    ]
    return [{"heading": "What these mistakes rest on", "text": text, "gallery": gallery}] if gallery else []


def _card(run: FinishedRun, position: int) -> dict[str, Any]:
    """A judged image, by its position among them, with what the models predict."""
    classes, row = run.dataset.classes, int(run.judged[position])

    def prediction(name: str) -> tuple[str, str]:
        return classes[run.predicted(name)[position]], f"{100 * run.confidence(name)[position]:.0f}%"

    predicted, sure = prediction(run.judge)
    true = classes[run.labels[position]]
    lines = [f"{predicted}, {sure}", "right" if predicted == true else f"filed under {true}"]
    others = {name: prediction(name) for name in run.tested if name != run.judge}
    if len({other for other, _ in others.values()}) > 1:
        lines += [f"{name}: {other}, {sure}" for name, (other, sure) in others.items()]
    return {"image": run.image(row), "caption": [*lines, run.dataset.paths[row]]}


def _distant(run: FinishedRun, distant: Sequence[DistantImage]) -> list[Section]:
    if not distant:
        return []
    text = (
        "By the backbone's features these images are unusually far from every labeled one; the farthest come first. "
        "Check whether they belong to any class; if they do, labels for images like these help most."
    )
    gallery = []
    for found in distant[:GALLERY]:
        card = {"image": run.image(found.row), "caption": ["unlabeled", run.dataset.paths[found.row]]}
        gallery.append(card if found.position is None else _card(run, found.position))
    return [{"heading": "Far from every labeled image", "text": text, "gallery": gallery}]


def _label_next(run: FinishedRun) -> list[Section]:
    found = run.unlabeled
    if found is None or not len(found.chosen):
        return []
    gallery = []
    for place in found.chosen[:TO_LABEL].tolist():
        row, decided = int(found.rows[place]), int(found.decided[place])
        predicted = f"{run.dataset.classes[decided]}, {percent(float(found.probabilities[place, decided]))}"
        gallery.append({"image": run.image(row), "caption": [predicted, run.dataset.paths[row]]})
    text = (
        f"The first {len(gallery)} of {len(found.chosen)} unlabeled images whose labels would help most: the models "
        f"are unsure near them, and no label is near. Fill in the column label of {NEXT}, and train again with this "
        "file as --labels_csv, beside the tables of before; what stays empty stays unlabeled."
    )
    return [{"heading": "Label these next", "text": text, "gallery": gallery}]


# --- curves and pictures ----------------------------------------------------------------------------------------------


def _curves(run: FinishedRun) -> list[Section]:
    panels = curve_panels([dict(row) for row in run.rows])
    ours = [panel for panel in panels if panel.title.startswith("Pseudo-labels")]
    others = [panel for panel in panels if panel not in ours]

    def draw(chosen: Sequence[Panel]) -> list[Markup]:
        return [charts.curves(panel, run.rows) for panel in chosen]

    sections: list[Section] = []
    if others:
        sections.append({"heading": "Learning curves", "figures": draw(others)})
    if not ours:
        return sections
    hidden = any(column.startswith("pseudo_label_accuracy") for panel in ours for column, *_ in panel.lines)
    text = ["How often the teacher was sure enough of its pseudo-label (mask rate), and how often both models agreed."]
    if hidden:
        text.append(
            "Pseudo-label accuracy is a diagnostic: it needs the hidden labels of the unlabeled images, which this "
            "data set happens to know. No choice depends on it; for real unlabeled images it can't be measured."
        )
    return [
        *sections,
        {"heading": "Pseudo-labels over time", "text": text, "diagnostic": hidden, "figures": draw(ours)},
    ]


def _reliability(summary: Mapping[str, Any], run: FinishedRun) -> list[Section]:
    """The diagram and the errors of the probabilities, where the run has measured them."""
    table = _calibration(summary.get("calibration") or {})
    if not table["rows"]:
        return []
    text = [
        "On the diagonal it is right as often as its probabilities say; below, it is overconfident. The thin lines are "
        "95% intervals."
    ]
    if noise := few_images(len(run.labels)):
        text.append(f"Don't read much into this curve: {noise}.")
    figures = [_reliability_chart(model, run) for model in run.tested]
    return [{"heading": "How far its probabilities can be trusted", "text": text, "figures": figures, "table": table}]


def _reliability_chart(model: str, run: FinishedRun) -> Markup:
    """How often one model is right where it is so sure, before and after calibration."""
    states = {"after calibration" if run.uncalibrated else "its predictions": (run.tested, BLUE)}
    states = ({"before calibration": (run.uncalibrated, ORANGE)} if run.uncalibrated else {}) | states
    series = [charts.Series("exactly as sure", [(0, 0), (1, 1)], FAINT, dots=False, dash=(0, (4, 3)))]
    for label, (predictions, color) in states.items():
        confidence, accuracy, count = reliability(predictions[model], run.labels).values()
        there = np.flatnonzero(count).tolist()
        intervals = [wilson_interval(round(accuracy[i] * count[i]), int(count[i])) for i in there]
        places = [(float(confidence[i]), float(accuracy[i])) for i in there]
        series.append(charts.Series(label, places, color, intervals=intervals))
    scale = charts.Scale([0, 1], "percent")
    return charts.points(model, "share right, by the probability of the predicted class", series, scale, scale)


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


def _samples(folder: Path, kind: str) -> list[Section]:
    if not (folder / "samples.png").is_file():
        return []
    pictures = [(folder / "samples.png", "Labeled images raw, weakly and strongly augmented")]
    return [{"heading": "What the network saw", "pictures": pictures, "photographs": kind != "points"}]
