"""Which views to co-train: how good each is alone, and how far their errors overlap: `MPL.py --view_report`.

Co-training gains from views that are sufficient (each can name the class) and different (they err on other images).
Both are measured on the labeled images alone, by cross-validation; the test images are not touched.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..base.metrics import wilson_interval
from ..base.progress import ProgressBar
from ..base.tables import percent
from ..data import Dataset, Split, folds_of, summary_table
from ..runs.networks import check_not_learned
from ..runs.run import write_bad_files
from ..runs.run_folder import run_folder
from ..runs.summary import made_with, summary_header
from ..runs.views import View
from ..utils import UserError, choose_device, log_to, peak_memory_bytes, say
from ..visualization import plain
from .baselines import Given, logistic_model
from .task import Task
from .view_page import table, write_files

FOLDS = 5
ALIKE = 0.6  # kappa of errors from which two views can teach each other little ("substantial" of Landis and Koch 1977)


def report(task: Task) -> dict[str, Any]:
    """Measure the views of a task and return what view_report.json holds.

    Leaves view_report.json, .csv (a row a view and a row a pair), .png and report.html. Raises UserError for a view
    that can't be had, and for a class with one labeled image.
    """
    options, dataset, split = task.options, task.dataset, task.split
    say(summary_table(dataset, split))
    folds = folds_of(dataset, split, _fold_count(dataset, split), options.run.seed)
    nothing = split.labeled[:0]  # validation and test images take no part
    # Views from scratch, too, are judged as co-training would use them: frozen.
    seen = replace(task.changed(unfreeze="head"), split=replace(split, val=nothing, test=nothing)).views()
    check_not_learned(seen.backbones.values(), dataset, split.labeled)
    predictions = held_out_predictions(seen.each, dataset, split, folds)
    folder = run_folder(options.run.name or "", options.recorded, overwrite=options.run.overwrite)
    with log_to(folder):
        options = options.changed(name=folder.name)
        write_bad_files(folder, dataset)
        views = described(seen.each, options.cotraining.views)
        labels = dataset.labels[split.labeled]
        found = {"labeled": len(labels), "folds": len(folds), **measured(views, predictions, labels)}
        summary = {
            **summary_header(folder.name),
            **{"dataset": dataset.name, "classes": list(dataset.classes)},
            **found,
            "verdict": verdict(found),
            "peak_memory_bytes": peak_memory_bytes(choose_device(options.run.device)),
            **made_with(),
            "seconds": round(time.monotonic() - task.began, 3),
        }
        names = write_files(folder, summary, options.command_line())
        say(table(summary))
        say(f"results: {folder} ({', '.join(names)})")
    return summary


# --- measuring --------------------------------------------------------------------------------------------------------


def _fold_count(dataset: Dataset, split: Split) -> int:
    labels = dataset.labels[split.labeled]
    counts = np.bincount(labels, minlength=len(dataset.classes))
    if counts.min() < 2:
        name = plain(dataset.classes[int(counts.argmin())], 40)
        raise UserError(f"--view_report needs two labeled images of each class, {name} has {counts.min()}; label more")
    return min(FOLDS, int(counts.min()))


def held_out_predictions(
    views: Sequence[View], dataset: Dataset, split: Split, folds: Sequence[Split]
) -> dict[str, np.ndarray]:
    """Each view's class probabilities [N, C] of the labeled images, in the order of `split.labeled`.

    A logistic regression on the view's features of the unaugmented images; it never saw the image that it judges, and
    chose its C on the images that it learned from.
    """
    labels = dataset.labels
    place = {row: index for index, row in enumerate(split.labeled.tolist())}
    predictions: dict[str, np.ndarray] = {}
    with ProgressBar(len(folds) * len(views), what="views", unit="fold") as bar:
        for view in views:
            features = np.concatenate([part.float().cpu().numpy() for part in view.source.inputs(split.labeled)])
            predicted = np.zeros((len(split.labeled), len(dataset.classes)))
            for fold in folds:
                learned, asked = ([place[row] for row in rows.tolist()] for rows in (fold.labeled, fold.val))
                predicted[asked] = _probabilities(features[learned], labels[fold.labeled], features[asked])
            predictions[view.name] = predicted
            bar.show(len(predictions) * len(folds))
    return predictions


def _probabilities(features: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Probabilities [n, C] of the asked images; every class has a label."""
    given = Given(features, labels, features[:0], angles=True)
    return logistic_model(given)[0].probabilities(given.scaled(asked))


def overlap(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """How far the errors, bool [N], of two views coincide: counts, what chance would give, and Cohen's kappa.

    kappa: 0 for independent errors, 1 for the same errors; None where a view makes no error, or nothing but errors.
    Returns `both_wrong`, `only_first_wrong`, `only_second_wrong`, `both_wrong_by_chance` and `kappa`.
    """
    total, both = len(first), int((first & second).sum())
    rates = first.mean(), second.mean()
    agreed, by_chance = float((first == second).mean()), rates[0] * rates[1] + (1 - rates[0]) * (1 - rates[1])
    varied = all(0 < rate < 1 for rate in rates)
    return {
        "both_wrong": both,
        "only_first_wrong": int((first & ~second).sum()),
        "only_second_wrong": int((~first & second).sum()),
        "both_wrong_by_chance": float(total * rates[0] * rates[1]),
        "kappa": float((agreed - by_chance) / (1 - by_chance)) if varied else None,
    }


def accuracy_of(wrong: np.ndarray) -> dict[str, Any]:
    """The share of images that are right, with its interval."""
    right = int((~wrong).sum())
    return {"accuracy": right / len(wrong), "ci95": wilson_interval(right, len(wrong))}


def described(views: Sequence[View], given: Sequence[str]) -> list[dict[str, Any]]:
    """`view` (its name), `given` (the words of `--views`) and `features` (their number) of each view."""
    return [
        {"view": view.name, "given": word, "features": view.backbone.num_features}
        for view, word in zip(views, given, strict=True)
    ]


def measured(
    views: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray], labels: np.ndarray
) -> dict[str, list[dict[str, Any]]]:
    """`views` with the accuracy of each, and `pairs` with the accuracy of their mean and how far their errors overlap.

    predictions: class probabilities [N, C] of each view, of images with these labels [N]. The best pair comes first.
    """
    wrong = {view: predicted.argmax(axis=1) != labels for view, predicted in predictions.items()}
    pairs = []
    for first, second in itertools.combinations(predictions, 2):
        mean = ((predictions[first] + predictions[second]) / 2).argmax(axis=1) != labels
        pairs.append({"views": [first, second], **accuracy_of(mean), **overlap(wrong[first], wrong[second])})
    return {
        "views": [{**view, **accuracy_of(wrong[view["view"]])} for view in views],
        "pairs": sorted(pairs, key=worth, reverse=True),
    }


# --- the verdict ------------------------------------------------------------------------------------------------------


def worth(pair: Mapping[str, Any]) -> tuple[float, int]:
    """By which pairs are ranked: how good their mean is, which a weak view lowers and a second opinion raises.

    Then by how few images both get wrong, since no co-training can correct those.
    """
    return pair["accuracy"], -pair["both_wrong"]


def verdict(summary: Mapping[str, Any]) -> str:
    """One sentence, or two, on which pair is the most sufficient and different.

    summary: `labeled` (the number of images), and `views` and `pairs` as `measured` returns them.
    """
    views = {view["view"]: view for view in summary["views"]}
    if not summary["pairs"]:
        return f"{summary['views'][0]['view']} is the only view; give two or more to compare their errors."
    best, *others = summary["pairs"]
    first, second = (plain(name, 60) for name in best["views"])
    alone = " and ".join(percent(views[name]["accuracy"]) for name in best["views"])
    most = "the most sufficient and different of the pairs" if others else "the only pair"
    text = (
        f"{first} and {second} are {most}: alone they are right on {alone} of {summary['labeled']} labeled images, "
        f"their mean on {percent(best['accuracy'])}, and both are wrong on {best['both_wrong']}, where errors that "
        f"know nothing of each other would meet on {best['both_wrong_by_chance']:.1f}."
    )
    if best["kappa"] is not None and best["kappa"] >= ALIKE:
        text += " They err on mostly the same images, so they can teach each other little."
    better = max(views[name]["accuracy"] for name in best["views"])
    if best["accuracy"] < better:
        text += " The mean is worse than the better of the two alone: the other may teach it wrong."
    near = [pair for pair in others if pair["accuracy"] >= best["ci95"][0]]
    if near:
        more = f"{len(near)} other pairs lie" if len(near) > 1 else "one other pair lies"
        text += f" With so few labels that is no proof: {more} within its interval."
    return text
