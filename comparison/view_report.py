"""Which views to co-train: how good each is alone, and how far their errors overlap: `MPL.py --view_report`.

Co-training gains from views that are sufficient (each can name the class) and different (they err on other images).
Both are measured on the labeled images alone, by cross-validation; the test split is not touched.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import shlex
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import visualization
from ..args import Options, command_line, recorded
from ..base.files import write_json, write_text
from ..base.metrics import wilson_interval
from ..data import Dataset, Split, find_dataset, folds_of, split_dataset, summary_table
from ..reports import charts
from ..reports.page import Section, write_report
from ..runs.progress import Screen, commit, versions
from ..runs.run import write_bad_files
from ..runs.run_folder import run_folder
from ..runs.setup import Setup, check_not_learned
from ..utils import UserError, peak_memory_bytes, say, warn
from ..visualization import BLUE, FAINT, INK, clear, paint, plain
from .baselines import Given, logistic_model

FOLDS = 5
ALIKE = 0.6  # kappa of errors from which two views tell each other little ("substantial" of Landis and Koch 1977)
USED = {
    "view_report", "views", "name", "overwrite", "seed", "device", "precision", "num_workers", "cache", "cache_dir",
    "cache_limit", "cache_dtype", "keep_pages", "data_dir", "data_root", "download", "labels_csv", "num_labels",
    "num_labels_percent", "val_percent", "test_percent", "label_split",
}  # fmt: skip


def report(options: Options) -> dict[str, Any]:
    """Measure the views of the options and return what view_report.json holds.

    Leaves view_report.json, .csv (a row a view and a row a pair), .png and report.html. Raises UserError for a view
    that can't be had, and for a class with one labeled image.
    """
    began = time.monotonic()
    unused = sorted(options.given - USED)
    if unused:
        warn(f"--{', --'.join(unused)}: not used by --view_report")
    # Views from scratch, too, are judged as co-training would use them: frozen.
    options = options.changed(unfreeze="head")
    dataset = find_dataset(options.data)
    split = split_dataset(dataset, options.data, options.run.seed)
    say(summary_table(dataset, split))
    count = _fold_count(dataset, split)
    nothing = split.labeled[:0]
    setup = Setup(options, dataset, replace(split, val=nothing, test=nothing))  # which take no part
    check_not_learned((view.backbone for view in setup.views), dataset, split.labeled)
    predictions = held_out_predictions(setup, count)
    folder = run_folder(options.run.name or "", overwrite=options.run.overwrite)
    options = options.changed(name=folder.name, unfreeze=None)
    write_json(folder / "commandline_args.txt", recorded(options))
    write_bad_files(folder, dataset)
    summary = summary_of(setup, folder.name, predictions, count) | {"seconds": round(time.monotonic() - began, 3)}
    write_json(folder / "view_report.json", summary)
    write_text(folder / "view_report.csv", as_csv(summary))
    picture = draw_views(folder / "view_report.png", summary)
    write_report(folder / "report.html", folder.name, sections(summary, picture, options), lead=summary["verdict"])
    say(table(summary))
    say(f"results: {folder} (view_report.json, view_report.csv, {picture.name}, report.html)")
    return summary


# --- measuring --------------------------------------------------------------------------------------------------------


def _fold_count(dataset: Dataset, split: Split) -> int:
    labels = dataset.labels[split.labeled]
    counts = np.bincount(labels, minlength=len(dataset.classes))
    if counts.min() < 2:
        name = plain(dataset.classes[int(counts.argmin())], 40)
        raise UserError(f"--view_report needs two labeled images of each class, {name} has {counts.min()}; label more")
    return min(FOLDS, int(counts.min()))


def held_out_predictions(setup: Setup, count: int) -> dict[str, np.ndarray]:
    """Each view's class probabilities [N, C] of the labeled images, in the order of `split.labeled`.

    A logistic regression on the view's features of the unaugmented images; it never saw the image that it judges, and
    chose its C on the images that it learned from.
    """
    split, labels = setup.split, setup.dataset.labels
    folds = folds_of(setup.dataset, split, count, setup.options.run.seed)
    place = {row: index for index, row in enumerate(split.labeled.tolist())}
    predictions = {}
    with Screen(count * len(setup.views), what="views", unit="fold") as screen:
        for view in setup.views:
            features = np.concatenate([part.float().cpu().numpy() for part in view.source.inputs(split.labeled)])
            predicted = np.zeros((len(split.labeled), len(setup.dataset.classes)))
            for fold in folds:
                learned, asked = ([place[row] for row in rows.tolist()] for rows in (fold.labeled, fold.val))
                predicted[asked] = _probabilities(features[learned], labels[fold.labeled], features[asked])
            predictions[view.name] = predicted
            screen.show(len(predictions) * count)
    return predictions


def _probabilities(features: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Probabilities [n, C] of the asked images; every class has a label."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that something did not converge, on data that no one has looked at before
        return logistic_model(Given(features, labels, features[:0], angles=True)).predict_proba(asked)


def overlap(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """How far errors bool [N] of two views meet: counts, what chance would give, and Cohen's kappa.

    kappa: 0 for errors that know nothing of each other, 1 for the same errors; None where one view makes no error, or
    nothing but errors.
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


def summary_of(setup: Setup, name: str, predictions: Mapping[str, np.ndarray], count: int) -> dict[str, Any]:
    """What view_report.json holds; plain lists and numbers."""
    labels = setup.dataset.labels[setup.split.labeled]
    wrong = {view: predicted.argmax(axis=1) != labels for view, predicted in predictions.items()}
    pairs = []
    for first, second in itertools.combinations(predictions, 2):
        mean = ((predictions[first] + predictions[second]) / 2).argmax(axis=1) != labels
        pairs.append({"views": [first, second], **accuracy_of(mean), **overlap(wrong[first], wrong[second])})
    specs = setup.options.cotraining.views
    views = [
        {"view": view.name, "given": spec, "features": view.backbone.num_features, **accuracy_of(wrong[view.name])}
        for view, spec in zip(setup.views, specs, strict=True)
    ]
    summary = {
        "name": name,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "dataset": setup.dataset.name,
        "classes": list(setup.dataset.classes),
        "labeled": len(labels),
        "folds": count,
        "views": views,
        "pairs": sorted(pairs, key=worth, reverse=True),
    }
    rest = {"peak_memory_bytes": peak_memory_bytes(setup.device), "versions": versions(), "commit": commit()}
    return summary | {"verdict": verdict(summary)} | rest


# --- saying -----------------------------------------------------------------------------------------------------------


def worth(pair: Mapping[str, Any]) -> tuple[float, int]:
    """By which pairs are ranked: how good their mean is, which a weak view lowers and a second opinion raises.

    Then by how few images both get wrong, since no co-training can correct those.
    """
    return pair["accuracy"], -pair["both_wrong"]


def verdict(summary: Mapping[str, Any]) -> str:
    """One sentence, or two, on which pair is the most sufficient and different."""
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


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def kappa_text(kappa: float | None) -> str:
    """Two figures; a hyphen where it is not defined."""
    return "-" if kappa is None else f"{kappa:.2f}"


VIEW_COLUMNS = ("view", "accuracy", "95% interval", "features")
PAIR_COLUMNS = ("pair", "mean of both", "95% interval", "both wrong", "by chance", "only first", "only second", "kappa")


def view_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """A line a view, in the order given, under VIEW_COLUMNS."""
    return [[plain(v["view"], 40), percent(v["accuracy"]), interval(v), str(v["features"])] for v in summary["views"]]


def pair_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """A line a pair, the best first, under PAIR_COLUMNS."""
    return [
        [
            " + ".join(plain(name, 40) for name in p["views"]), percent(p["accuracy"]), interval(p),
            str(p["both_wrong"]), f"{p['both_wrong_by_chance']:.1f}", str(p["only_first_wrong"]),
            str(p["only_second_wrong"]), kappa_text(p["kappa"]),
        ]
        for p in summary["pairs"]
    ]  # fmt: skip


def interval(found: Mapping[str, Any]) -> str:
    low, high = found["ci95"]
    return f"{percent(low)} to {percent(high)}"


def table(summary: Mapping[str, Any]) -> str:
    """The screen's account."""
    lines = ["", *aligned([VIEW_COLUMNS, *view_rows(summary)])]
    if summary["pairs"]:
        lines += ["", *aligned([PAIR_COLUMNS, *pair_rows(summary)])]
    told = f"on {summary['labeled']} labeled images, each predicted by one of {summary['folds']} folds"
    return "\n".join([*lines, told, "", summary["verdict"]])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join((row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))))
        for row in rows
    ]


def as_csv(summary: Mapping[str, Any]) -> str:
    """A row a view (second empty) and a row a pair."""
    columns = ["first", "second", "accuracy", "low", "high", "both_wrong", "both_wrong_by_chance", "only_first_wrong",
               "only_second_wrong", "kappa"]  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in (*summary["views"], *summary["pairs"]):
        first, second = row.get("views", (row.get("view"), ""))
        low, high = row["ci95"]
        writer.writerow({**row, "first": first, "second": second, "low": low, "high": high})
    return text.getvalue()


def sections(summary: Mapping[str, Any], picture: Path, options: Options) -> list[Section]:
    """The page's parts."""
    labeled, folds = summary["labeled"], summary["folds"]
    bars = [
        (v["view"], v["accuracy"], v["ci95"], f"{percent(v['accuracy'])} ({interval(v)})") for v in summary["views"]
    ]
    found: list[Section] = [
        {
            "heading": "How good each view is alone",
            "text": "A logistic regression on the view's features, learned from the labels alone; each of the "
            f"{labeled} labeled images was judged by the one of {folds} that had not seen it. "
            "The test images were not touched.",
            "figures": [charts.bars(bars, head=("view", "accuracy (95% interval)"))],
        },
    ]
    if summary["pairs"]:
        found.append(
            {
                "heading": "How far their errors overlap",
                "text": [
                    "The best pair first, by the accuracy of the two views' mean. By chance: the images on which both "
                    "would be wrong if the one's errors knew nothing of the other's.",
                    "kappa is 0 for errors that know nothing of each other and 1 for the same errors; below 0 the "
                    "views complete each other. It is not defined where a view makes no error at all.",
                ],
                "table": {"columns": list(PAIR_COLUMNS), "rows": pair_rows(summary)},
                "pictures": [(picture, "accuracy of each view, and how far the errors of each pair overlap")],
            }
        )
    line = shlex.join(["python", "MPL.py", *command_line(options)])
    return [*found, {"heading": "Run it again", "text": "Run it in the same folder.", "command": line}]


# --- drawing ----------------------------------------------------------------------------------------------------------


def draw_views(path: Path, summary: Mapping[str, Any]) -> Path:
    """Draw view_report.png: each view's accuracy with its interval; beside it the overlap of errors, pair by pair."""
    names = [plain(view["view"], 28) for view in summary["views"]]
    title = f"{summary['name']}: {len(names)} views on {summary['labeled']} labeled images"
    side = max(1.8, 0.62 * len(names))

    def fill(figure: Any) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(5.0, side))
        _draw_bars(left, names, summary["views"])
        _draw_overlap(right, names, summary)

    return paint(path, (7.6 + side, 1.5 + side), title, fill)


def _draw_bars(axes: Any, names: Sequence[str], views: Sequence[Mapping[str, Any]]) -> None:
    for row, view in enumerate(views):
        low, high = (100 * bound for bound in view["ci95"])
        axes.barh(row, 100 * view["accuracy"], height=0.55, color=BLUE, alpha=0.75)
        axes.plot([low, high], [row, row], color=INK, linewidth=1.6)
        visualization._beside(axes, row, percent(view["accuracy"]))
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set(
        xlim=(0, 100), ylim=(len(names) - 0.5, -0.5), xlabel="accuracy from labels alone, %   (line: 95% interval)"
    )
    axes.set_title("How good each view is alone")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _draw_overlap(axes: Any, names: Sequence[str], summary: Mapping[str, Any]) -> None:
    """kappa of errors in colour, and below it the number of images that both views get wrong."""
    import matplotlib

    at = {view["view"]: index for index, view in enumerate(summary["views"])}
    cells, texts = np.full((len(names), len(names)), np.nan), {}
    for pair in summary["pairs"]:
        first, second = (at[name] for name in pair["views"])
        kappa = pair["kappa"]
        for place in ((first, second), (second, first)):
            cells[place] = math.nan if kappa is None else kappa
            texts[place] = f"{kappa_text(kappa)}\n{pair['both_wrong']} shared"
    colors = matplotlib.colormaps["Blues"].with_extremes(bad="#F2F2F2", under="white")
    axes.imshow(np.ma.masked_invalid(cells), cmap=colors, vmin=0, vmax=1)
    for (row, column), text in texts.items():
        dark = cells[row, column] > 0.55
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else INK)
    for index in range(len(names)):
        axes.text(index, index, "·", ha="center", va="center", color=FAINT)
    axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 8 else 0, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_title("Shared errors: kappa, images")
    clear(axes)
