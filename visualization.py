"""Every picture: learning curves, confusion matrices, augmented samples, comparisons of methods.

Takes plain arrays and dicts, returns the file's path and measures nothing itself. Figures are built without pyplot, so
no window opens and no state outlives a call; matplotlib is imported where it is used.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .base.files import atomic_file
from .utils import shown

Rows = list[dict[str, float | int | str | None]]
Lines = list[tuple[str, str, str, Any]]  # column, label, colour, dash
Reliability = Mapping[str, Any]  # arrays confidence, accuracy and count, and the number ece

DPI = 110
# Okabe and Ito's colours, which people with any common colour blindness can tell apart.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
ENOUGH_IMAGES = 100  # for a reliability curve: about 10 a bin
MATRIX_CLASSES = 40  # of which a confusion matrix can be read; of more, the most confused pairs are shown
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
INK, FAINT, GRID = "#333333", "#8C8C8C", "#E6E6E6"
# Fonts that take over for letters that DejaVu Sans lacks, where the machine has one of them.
OTHER_SCRIPTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "PingFang SC", "Microsoft YaHei", "SimHei",
                 "Malgun Gothic", "WenQuanYi Zen Hei", "Noto Sans Devanagari", "Noto Sans Thai")  # fmt: skip
STYLE: Any = {
    "text.parse_math": False,  # a class may be called "$5_note$"
    "font.size": 9.0, "axes.titlesize": 10.0, "axes.labelsize": 9.0, "xtick.labelsize": 8.0, "ytick.labelsize": 8.0,
    "figure.titlesize": 12.0, "legend.fontsize": 8.0, "legend.frameon": False, "legend.borderaxespad": 0.3,
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.edgecolor": "#BFBFBF", "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlelocation": "left", "axes.titlepad": 7.0, "axes.axisbelow": True, "grid.color": GRID,
    "grid.linewidth": 0.7, "axes.grid": True, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "xtick.minor.size": 0.0, "ytick.minor.size": 0.0, "lines.linewidth": 1.5, "lines.markersize": 3.5,
    "lines.solid_capstyle": "round", "figure.dpi": DPI, "image.interpolation": "nearest",
}  # fmt: skip


# --- shared ground ----------------------------------------------------------------------------------------------------


def paint(
    path: Path, size: tuple[float, float], title: str, draw: Callable[[Any], object], *, background: str = "white"
) -> Path:
    """Make a figure of `size` inches, let `draw` fill it, and write it whole or not at all.

    background: "none" for pictures made of photographs, which lie on light pages and on dark ones.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=size, layout="compressed")
        FigureCanvasAgg(figure)
        draw(figure)
        return save_figure(path, figure, title, background=background)


def save_figure(path: Path, figure: Any, title: str, *, background: str = "white") -> Path:
    """Give a figure its title and write it whole or not at all."""
    color = INK if background == "white" else FAINT
    figure.suptitle(plain(title, 120), x=0.01, ha="left", weight="bold", color=color)
    with atomic_file(path) as temporary:
        # No "Software" entry: equal input gives equal files, whatever the version of matplotlib says of itself.
        figure.savefig(temporary, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.15, facecolor=background,
                       metadata={"Software": None})  # fmt: skip
    return path


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The look of all figures, whatever the user's own settings are."""
    import matplotlib
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        matplotlib.rcdefaults()  # a user's own matplotlibrc must not change the pictures
        matplotlib.rcParams.update(STYLE)
        matplotlib.rcParams["font.family"] = ["DejaVu Sans", *(name for name in OTHER_SCRIPTS if name in installed)]
        yield


def plain(text: object, limit: int = 24) -> str:
    """One printable line of at most `limit` characters, cut in its middle: what tells names apart is at an end."""
    line = " ".join(shown(str(text)).split())
    if len(line) <= limit:
        return line
    return line[: (limit - 1) // 2].rstrip() + "…" + line[len(line) - limit // 2 :].lstrip()


def clear(axes: Any) -> None:
    """Neither grid nor frame nor tick marks: for pictures made of cells and tiles."""
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


# --- learning curves --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    title: str
    ylabel: str
    lines: Lines
    kind: str = "plain"  # or percent, signed, log


def draw_curves(path: Path, rows: Rows, *, title: str) -> Path:
    """Draw graphs.png: one panel a family of columns of metrics.csv, those without a finite number left out.

    rows: one dict an epoch. Where the teacher's name changes, a strip below shows who was teacher when.
    """
    panels = curve_panels(rows) or [Panel("Nothing was measured", "", [])]
    counted = np.array([to_number(row.get("epoch")) for row in rows])
    epochs = np.where(np.isfinite(counted), counted, np.arange(1, len(rows) + 1))
    lanes = _teachers(rows)
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    heights = [2.6] * lines + ([0.5 + 0.24 * len(lanes)] if len(lanes) > 1 else [])

    def draw(figure: Any) -> None:
        grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
        for index, panel in enumerate(panels):
            row, column = divmod(index, columns)
            alone = index == len(panels) - 1 and column == 0  # the last of an odd number takes the whole row
            _draw_panel(figure.add_subplot(grid[row, :] if alone else grid[row, column]), panel, rows, epochs)
        if len(lanes) > 1:
            _draw_strip(figure.add_subplot(grid[-1, :]), lanes, epochs, _model_colors(rows))

    return paint(path, (6.4 * columns + 0.2, sum(heights) + 0.5), title, draw)


def curve_panels(rows: Rows) -> list[Panel]:
    """The families of columns that have something to draw; rows: one dict an epoch."""
    colors = _model_colors(rows)
    names = _measured(rows)
    hidden = " (diagnostic: uses hidden labels)" if _start(names, "pseudo_label_accuracy") else ""
    losses = [name for name in names if name.endswith("_loss") or "_loss_" in name]
    unlabeled = _start(names, "pseudo_label_accuracy", "mask_rate", "student_mask_rate", "agreement")
    accuracies = _by_model(names, colors, "val_accuracy_", ", validation", dashed=False)
    accuracies += _by_model(names, colors, "labeled_accuracy_", ", labeled (train)", dashed=True)
    rates = _by_model(names, colors, "learning_rate_", "", dashed=len(colors) > 1)
    panels = [
        Panel("Losses", "loss", _tinted(losses)),
        Panel("Accuracy", "accuracy", accuracies, "percent"),
        Panel("Pseudo-labels" + hidden, "share of unlabeled images", _tinted(unlabeled), "percent"),
        Panel("Feedback h: the student's gain", "loss before − after", _tinted(_start(names, "feedback_h")), "signed"),
        Panel("Feedback gradient relative to the supervised one", "ratio of norms (log scale)",
              _tinted(_start(names, "feedback_ratio")), "log"),
        Panel("Learning rate", "learning rate", rates),
    ]  # fmt: skip
    return [panel for panel in panels if panel.lines]


def to_number(cell: Any) -> float:
    """A cell of metrics.csv, NaN where it holds no finite number."""
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return math.nan
    return value if math.isfinite(value) else math.nan


def _measured(rows: Rows) -> list[str]:
    """The columns that can be drawn: a finite number somewhere, above zero where the axis is logarithmic."""
    found: dict[str, None] = {}
    for row in rows:
        for name, cell in row.items():
            value = to_number(cell)
            if math.isfinite(value) and (value > 0 or not name.startswith("feedback_ratio")):
                found[name] = None
    return list(found)


def _start(names: Sequence[str], *starts: str) -> list[str]:
    return [name for start in starts for name in names if name == start or name.startswith(start + "_")]


def _model_colors(rows: Rows) -> dict[str, str]:
    """A colour for each model, the same in all panels."""
    starts = ("learning_rate_", "val_accuracy_", "labeled_accuracy_")
    found = [name.removeprefix(start) for start in starts for name in _measured(rows) if name.startswith(start)]
    # A student that is measured first must not take the teacher's colour.
    models = sorted(dict.fromkeys(found + list(_teachers(rows))), key=lambda model: model != "teacher")
    return {model: PALETTE[index % len(PALETTE)] for index, model in enumerate(models)}


def _tinted(names: Sequence[str]) -> Lines:
    """A colour a column; the total is in ink."""
    lines = []
    for index, name in enumerate(sorted(names, key=lambda name: name == "total_loss")):
        label = name.replace("_loss", "").replace("_", " ").replace("pseudo label", "pseudo-label")
        color = INK if name == "total_loss" else PALETTE[index % len(PALETTE)]
        # Without a threshold of its own the student learns what the teacher does: dashes show both lines.
        dashed = index >= len(PALETTE) or name.startswith("student_mask_rate")
        lines.append((name, plain(label, 32), color, (0, (4, 2)) if dashed else "-"))
    return lines


def _by_model(names: Sequence[str], colors: dict[str, str], start: str, what: str, *, dashed: bool) -> Lines:
    """A colour a model; the curves of two models often coincide, so dashes leave gaps through which one sees both."""
    models = [name.removeprefix(start) for name in names if name.startswith(start)]
    return [
        (start + model, plain(model) + what, colors[model], (4 * index, (4, 4)) if dashed else "-")
        for index, model in enumerate(models)
    ]


def _draw_panel(axes: Any, panel: Panel, rows: Rows, epochs: np.ndarray) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    for column, label, color, dash in panel.lines:
        values = np.array([to_number(row.get(column)) for row in rows])
        values = np.where(values > 0, values, np.nan) if panel.kind == "log" else values
        marked = _marked(values)
        axes.plot(epochs, values, color=color, linestyle=dash, label=label, marker="o" if marked else None,
                  markevery=marked or None)  # fmt: skip
    if panel.kind == "percent":
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.03), min(high, 1.03))
    elif panel.kind == "log":
        low, high = axes.dataLim.intervaly
        axes.set_yscale("log")
        axes.set_ylim(low / 2.5, high * 2.5)  # wide enough for two ticks, however flat the line
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,), numticks=8))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif panel.kind == "signed":
        axes.axhline(0, color=FAINT, linewidth=0.9, zorder=1)
    scale, unit = (100, "%") if panel.kind == "percent" else (1, "")
    # Ticks such as 0.005 and −2e-05: no common factor in a corner.
    axes.yaxis.set_major_formatter(lambda value, _: f"{scale * value:.4g}{unit}".replace("-", "−"))
    lone = f": {panel.lines[0][1]}" if len(panel.lines) == 1 and panel.kind in ("plain", "percent") else ""
    axes.set(title=panel.title + lone, ylabel=panel.ylabel, xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    if len(epochs):
        edge = max(0.5, 0.015 * float(np.ptp(epochs)))
        axes.set_xlim(epochs.min() - edge, epochs.max() + edge)
    if len(panel.lines) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=2.8)


def _marked(values: np.ndarray) -> list[int]:
    """Where a marker is needed: everywhere in a short curve, else at points whose neighbours are gaps."""
    there = np.isfinite(values)
    if there.sum() <= 30:
        return np.flatnonzero(there).tolist()
    padded = np.pad(there, 1)
    return np.flatnonzero(there & ~padded[:-2] & ~padded[2:]).tolist()


def _teachers(rows: Rows) -> dict[str, list[int]]:
    """For each model that was teacher, the rows in which it was."""
    found: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row.get("teacher"):
            found.setdefault(str(row["teacher"]), []).append(index)
    return dict(sorted(found.items()))


def _draw_strip(axes: Any, lanes: dict[str, list[int]], epochs: np.ndarray, colors: dict[str, str]) -> None:
    """One lane a model, filled where it was teacher: the whole width, so that 300 single epochs stay apart."""
    from matplotlib.ticker import MaxNLocator

    for lane, (name, indices) in enumerate(lanes.items()):
        axes.broken_barh([(epochs[index] - 0.5, 1.0) for index in indices], (lane - 0.42, 0.84),
                         facecolor=colors[name], edgecolor="none", antialiased=len(epochs) < 100)  # fmt: skip
    labels = [f"{plain(name)}: {len(indices)} of {len(epochs)}" for name, indices in lanes.items()]
    clear(axes)
    axes.set_yticks(range(len(lanes)), labels)
    axes.set(title="Who was teacher (number of epochs)", xlabel="epoch", ylim=(len(lanes) - 0.5, -0.5))
    axes.xaxis.set_major_locator(MaxNLocator(16, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)


# --- confusion matrix -------------------------------------------------------------------------------------------------


def draw_confusion(path: Path, matrix: np.ndarray, classes: Sequence[str], *, title: str) -> Path:
    """Draw <model>_CM.png: counts and, beside them, their shares of each row; of many classes the worst confusions.

    matrix: counts [C, C], rows are true classes; classes: C names. A class without images has a grey row of rates.
    """
    counts = np.asarray(matrix)
    size = len(classes)
    if counts.shape != (size, size):
        raise ValueError(f"a confusion matrix of {size} classes has the shape {(size, size)}, not {counts.shape}")
    if size > MATRIX_CLASSES:
        return _draw_confusions(path, counts, classes, title)
    totals = counts.sum(axis=1, keepdims=True)
    rates = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    side = max(3.4, min(0.45 * size, 7.5))
    names = [plain(name) for name in classes]
    room = 0.07 * max(map(len, names), default=0)  # inches that the longest name takes
    empty = " (grey: no image)" if bool((totals == 0).any()) else ""

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        _draw_matrix(left, counts, "{:.0f}".format, names, side / max(size, 1), max(1, counts.max(initial=0)))
        _draw_matrix(right, rates, _percent, names, side / max(size, 1), 1.0)
        left.set_title("Number of images")
        right.set_title("Share of the true class, %" + empty)

    return paint(path, (2 * (side + room + 1.0), side + room + 1.1), title, draw)


def _draw_confusions(path: Path, counts: np.ndarray, classes: Sequence[str], title: str) -> Path:
    """The pairs of classes that are confused most often, as bars: nobody can read a square of a thousand classes."""
    from .base.metrics import most_confused

    pairs = most_confused(counts)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.barh(range(len(pairs)), [count for *_, count in pairs], height=0.6, color=BLUE)
        names = [f"{plain(classes[true])} → {plain(classes[predicted])}" for true, predicted, _ in pairs]
        axes.set_yticks(range(len(pairs)), names)
        axes.set(ylim=(max(len(pairs), 1) - 0.4, -0.6), xlabel="images")
        axes.set_title("True class → predicted as, the most frequent" if pairs else "No image is confused")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(visible=False, axis="y")

    return paint(path, (10.0, 1.2 + 0.22 * max(len(pairs), 1)), title, draw)


def _draw_matrix(
    axes: Any, cells: np.ndarray, text: Callable[[float], str], names: list[str], inches: float, top: float
) -> None:
    """One pane; `inches` is the side of a cell, which decides what can be written."""
    import matplotlib
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator

    longest = max(2, len(text(float(np.nanmax(cells)))) if np.isfinite(cells).any() else 0)
    points = min(10.0, 72 * 0.8 * inches / (0.64 * longest))
    legible = points >= 5.5
    written = {place: text(float(cell)) for place, cell in np.ndenumerate(cells)} if legible else {}
    colors = matplotlib.colormaps["Blues"].with_extremes(bad="#D9D9D9")
    # Without numbers the colour alone must show a single error among many hits.
    image = axes.imshow(np.ma.masked_invalid(cells), cmap=colors, norm=PowerNorm(1.0 if legible else 0.5, 0, top))
    bar = axes.figure.colorbar(image, cax=axes.inset_axes((1.02, 0, 0.03, 1)), ticks=MaxNLocator(5, integer=top > 1))
    bar.ax.yaxis.set_major_formatter(lambda value, _: text(value))
    clear(bar.ax)
    bar.outline.set_visible(False)
    axes.set(xlabel="predicted class", ylabel="true class")
    clear(axes)
    _name_classes(axes, names, inches)
    for (row, column), label in written.items():
        color = "white" if cells[row, column] > 0.55 * top else INK if cells[row, column] else FAINT
        number = axes.text(column, row, label, ha="center", va="center", fontsize=points, color=color)
        number.set_in_layout(False)  # it lies inside its cell; asking a thousand of them takes seconds


def _name_classes(axes: Any, names: list[str], inches: float) -> None:
    every = math.ceil(0.068 / inches)  # smaller letters than that can't be read: name every second class, every third
    points = min(8.5, 72 * 0.8 * inches * every)
    upright = max(map(len, names), default=0) * points * 0.62 > 72 * inches * every
    places = range(0, len(names), every)
    axes.set_xticks(places, names[::every], rotation=90 if upright else 0, fontsize=points)
    axes.set_yticks(places, names[::every], fontsize=points)


def _percent(rate: float) -> str:
    """Whole percents, where 0 and 100 mean none and all."""
    if not math.isfinite(rate):
        return ""
    if 0 < rate < 0.005:
        return "<1"
    return ">99" if 0.995 <= rate < 1 else f"{100 * rate:.0f}"


# --- samples and their augmentations ----------------------------------------------------------------------------------


def draw_samples(
    path: Path, raw: np.ndarray, weak: np.ndarray, strong: np.ndarray, names: Sequence[str], *, title: str
) -> Path:
    """Draw samples raw and augmented: images as a grid with a column a sample, points as scatter plots.

    raw: images [n, 3, S, S] in [0, 1] or points [n, 2]; weak, strong: the same, or with k draws [n, k, ...]; names: n.
    """
    views = {"raw": np.asarray(raw)[:, None]}
    for view, array in (("weak", np.asarray(weak)), ("strong", np.asarray(strong))):
        views[view] = array if array.ndim > np.ndim(raw) else array[:, None]
    if np.ndim(raw) == 2:
        return paint(path, (11.5, 4.2), title, lambda figure: _draw_points(figure, views, names))
    tiles = [(view, array[:, draw]) for view, array in views.items() for draw in range(array.shape[1])]
    size = (1.15 * len(names) + 0.8, 1.15 * len(tiles) + 0.8)
    return paint(path, size, title, lambda figure: _draw_tiles(figure.subplots(), tiles, names), background="none")


def _draw_tiles(axes: Any, tiles: list[tuple[str, np.ndarray]], names: Sequence[str]) -> None:
    """One picture of all tiles: far faster than an axes for each."""
    side = tiles[0][1].shape[-1]
    factor = max(1, round(126 / side))  # whole pixels, so that an 8 x 8 digit stays sharp
    pitch = side * factor + max(4, side * factor // 24)
    canvas = np.zeros((len(tiles) * pitch, len(names) * pitch, 4))  # clear where no image lies
    for row, (_, images) in enumerate(tiles):
        for column, image in enumerate(images):
            enlarged = np.clip(image, 0, 1).transpose(1, 2, 0).repeat(factor, axis=0).repeat(factor, axis=1)
            top, left = row * pitch, column * pitch
            canvas[top : top + side * factor, left : left + side * factor, :3] = enlarged
            canvas[top : top + side * factor, left : left + side * factor, 3] = 1
    axes.imshow(canvas, interpolation="nearest" if side <= 64 else "antialiased")
    middle = side * factor / 2
    axes.set_xticks(middle + pitch * np.arange(len(names)), [plain(name, 17) for name in names])
    axes.set_yticks(middle + pitch * np.arange(len(tiles)), [view for view, _ in tiles])
    axes.tick_params(labeltop=True, labelbottom=False, labelcolor=FAINT)
    axes.set_facecolor("none")
    clear(axes)


def _draw_points(figure: Any, views: dict[str, np.ndarray], names: Sequence[str]) -> None:
    panes = figure.subplots(1, len(views), sharex=True, sharey=True)
    start = views["raw"][:, 0]
    classes = list(dict.fromkeys(names))
    for axes, (view, points) in zip(panes, views.items(), strict=True):
        axes.set(title=view, xlabel="x", aspect="equal")
        if view != "raw":
            axes.scatter(*start.T, s=10, color="#CFCFCF", label="raw")
            for draw in range(points.shape[1] if len(start) <= 200 else 0):
                axes.plot(*np.stack([start, points[:, draw]]).transpose(2, 0, 1), color="#CFCFCF", linewidth=0.7)
        for index, name in enumerate(classes):
            chosen = points[np.array([other == name for other in names])].reshape(-1, 2)
            axes.scatter(*chosen.T, s=16, color=PALETTE[index % len(PALETTE)], label=plain(name), zorder=3)
    panes[0].set_ylabel("y")
    panes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


# --- comparison of methods --------------------------------------------------------------------------------------------


def draw_comparison(
    path: Path,
    methods: Sequence[str],
    accuracies: Sequence[Sequence[float]],
    *,
    title: str,
    differences: Sequence[tuple[float, Sequence[float]]] | None = None,
) -> Path:
    """Draw one row a method: each seed's accuracy (in [0, 1]) as a dot, mean and Student's 95% interval as a bar.

    differences: beside that, each method's mean difference from the first, paired over seeds, and its interval.
    """

    def draw(figure: Any) -> None:
        axes, *beside = figure.subplots(1, 1 if differences is None else 2, squeeze=False)[0]
        for right in beside:
            _draw_differences(right, methods, differences or [])
        for row, values in enumerate(accuracies):
            _draw_method(axes, row, np.array([to_number(value) for value in values]))
        axes.set_yticks(range(len(methods)), [plain(name, 40) for name in methods], fontsize=9)
        axes.set_xlabel("test accuracy, %   (dots: seeds; diamond: mean; bar: its 95% interval)")
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.margins(x=0.06)
        _keep_to(axes, 0, 100)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    return paint(path, (9.0 if differences is None else 13.0, 0.42 * len(methods) + 1.3), title, draw)


def _draw_differences(axes: Any, methods: Sequence[str], differences: Sequence[tuple[float, Sequence[float]]]) -> None:
    """A bar a method, in grey where it holds zero: a difference that may be noise."""
    axes.axvline(0, color=FAINT, linewidth=0.9, zorder=1)
    for row, (difference, interval) in list(enumerate(differences))[1:]:
        low, high = (100 * end for end in interval)
        color = BLUE if low > 0 or high < 0 else FAINT
        label = f"{100 * difference:+.1f}"
        if math.isfinite(low):
            axes.plot([low, high], [row, row], color=color, linewidth=2.4)
            label += f"  ({low:+.1f} to {high:+.1f})"
        axes.plot(100 * difference, row, marker="D", color=color, markersize=5.5)
        write_beside(axes, row, label.replace("-", "−"))
    axes.set_yticks([])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.margins(x=0.06)
    _keep_to(axes, -100, 100)
    axes.set_xlabel(f"difference from {plain(methods[0], 40)}, points   (paired over seeds; grey: zero is inside)")
    axes.spines["left"].set_visible(False)


def _keep_to(axes: Any, low: float, high: float) -> None:
    """Show no more than what there is: intervals of two seeds reach beyond it."""
    left, right = axes.get_xlim()
    axes.set_xlim(max(left, low), min(right, high))


def _draw_method(axes: Any, row: int, accuracies: np.ndarray) -> None:
    from scipy import stats

    values = 100 * accuracies[np.isfinite(accuracies)]
    label = "no result"
    if len(values):
        mean = values.mean()
        label = f"{mean:.1f}  (1 seed)"
        axes.scatter(values, np.full(len(values), row + 0.17), s=15, color=SKY, linewidth=0, alpha=0.9)
        if len(values) > 1:
            half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
            axes.plot([mean - half, mean + half], [row - 0.08] * 2, color=BLUE, linewidth=2.4)
            # The same as in the table beside it; the interval, which is something else, is the bar.
            label = f"{mean:.1f}, std {values.std(ddof=1):.1f}  ({len(values)} seeds)"
        axes.plot(mean, row - 0.08, marker="D", color=BLUE, markersize=5.5)
    write_beside(axes, row, label)


def write_beside(axes: Any, row: int, label: str) -> None:
    axes.annotate(label, (1.0, row), xycoords=("axes fraction", "data"), xytext=(8, 0), textcoords="offset points",
                  va="center", fontsize=8, color=INK, annotation_clip=False)  # fmt: skip


# --- reliability ------------------------------------------------------------------------------------------------------


def few_images(count: int) -> str:
    """What to think of a reliability curve of so few images; "" of enough."""
    return f"of {count} images it is mostly noise" if count < ENOUGH_IMAGES else ""


def draw_reliability(
    path: Path, before: Mapping[str, Reliability], after: Mapping[str, Reliability], *, title: str
) -> Path:
    """Draw reliability.png: for each model how often it is right where it is so sure, before and after calibration.

    before, after: {model: what `metrics.reliability` returns, and `ece`}; after: empty where nothing was calibrated.
    The steps below are the share of the images in each bin. The title says where so few images are mostly noise.
    """
    images = int(sum(np.asarray(next(iter(before.values()))["count"]))) if before else 0
    title = f"{title}; {noise}" if (noise := few_images(images)) else title
    models = list(before)
    drawn = (
        [("before calibration", before, ORANGE), ("after calibration", after, BLUE)] if after else [("", before, BLUE)]
    )

    def draw(figure: Any) -> None:
        panes = figure.subplots(2, len(models), squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1))
        for column, model in enumerate(models):
            upper, lower = panes[:, column]
            upper.plot([0, 100], [0, 100], color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), label="exactly as sure")
            for label, found, color in drawn:
                _draw_bins(upper, lower, found[model], color, label or "not calibrated")
            errors = " → ".join(f"{100 * float(found[model]['ece']):.1f}" for _, found, _ in drawn)
            upper.set_title(f"{plain(model)}: error {errors} points")
            upper.set(xlim=(0, 100), ylim=(0, 104))
            lower.set_xlabel("probability of the predicted class, %")
        panes[0, 0].set_ylabel("right, %")
        panes[1, 0].set_ylabel("images, %")
        panes[0, -1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))

    return paint(path, (3.6 * len(models) + 2.0, 5.2), title, draw)


def _draw_bins(upper: Any, lower: Any, found: Reliability, color: str, label: str) -> None:
    """A dot a bin that holds images, with its 95% interval (Wilson), and its share of all images as a step below."""
    from .base.metrics import wilson_interval

    confidence, accuracy, count = (np.asarray(found[name]) for name in ("confidence", "accuracy", "count"))
    there = count > 0
    ends = 100 * np.array(
        [wilson_interval(round(a * n), int(n)) for a, n in zip(accuracy[there], count[there], strict=True)]
    )
    upper.vlines(100 * confidence[there], ends[:, 0], ends[:, 1], color=color, linewidth=1.0, alpha=0.55)
    upper.plot(100 * confidence[there], 100 * accuracy[there], color=color, marker="o", markersize=4.5, label=label)
    lower.stairs(100 * count / count.sum(), np.linspace(0, 100, len(count) + 1), color=color, linewidth=1.4)
