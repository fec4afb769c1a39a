"""What `--view_report` leaves of its measurements (the dict of view_report.json): files, tables, a page, a picture."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import visualization
from ..base.files import write_json, write_text
from ..base.tables import csv_text, percent, text_table
from ..reports import charts
from ..reports.page import Section, write_report
from ..utils import program
from ..visualization import BLUE, FAINT, INK, clear, paint, plain


def write_files(folder: Path, summary: Mapping[str, Any], words: Sequence[str]) -> list[str]:
    """Write view_report.json, .csv and .png, and report.html; returns their names.

    words: of the command line that makes the report again.
    """
    write_json(folder / "view_report.json", summary)
    write_text(folder / "view_report.csv", as_csv(summary))
    picture = draw_views(folder / "view_report.png", summary)
    write_report(folder / "report.html", folder.name, sections(summary, picture, words), lead=summary["verdict"])
    return ["view_report.json", "view_report.csv", picture.name, "report.html"]


# --- tables -----------------------------------------------------------------------------------------------------------


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
    """The tables of views and pairs and the verdict, as they are shown on the screen."""
    lines = ["", text_table([VIEW_COLUMNS, *view_rows(summary)])]
    if summary["pairs"]:
        lines += ["", text_table([PAIR_COLUMNS, *pair_rows(summary)])]
    how = f"on {summary['labeled']} labeled images, each predicted by one of {summary['folds']} folds"
    return "\n".join([*lines, how, "", summary["verdict"]])


def as_csv(summary: Mapping[str, Any]) -> str:
    """A row a view (second empty) and a row a pair."""
    measured = ("both_wrong", "both_wrong_by_chance", "only_first_wrong", "only_second_wrong", "kappa")
    rows: list[list[object]] = [["first", "second", "accuracy", "low", "high", *measured]]
    for row in (*summary["views"], *summary["pairs"]):
        names = row.get("views", (row.get("view"), ""))
        rows.append([*names, row["accuracy"], *row["ci95"], *(row.get(name) for name in measured)])
    return csv_text(rows)


# --- the page ---------------------------------------------------------------------------------------------------------


def sections(summary: Mapping[str, Any], picture: Path, words: Sequence[str]) -> list[Section]:
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
                    "would be wrong if their errors were independent.",
                    "kappa is 0 for independent errors and 1 for the same errors; below 0 the views complete each "
                    "other. It is not defined where a view makes no error at all.",
                ],
                "table": {"columns": list(PAIR_COLUMNS), "rows": pair_rows(summary)},
                "pictures": [(picture, "accuracy of each view, and how far the errors of each pair overlap")],
            }
        )
    line = shlex.join([*program().split(), *words])
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
        visualization.write_beside(axes, row, percent(view["accuracy"]))
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
