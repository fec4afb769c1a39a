"""Charts for a page: inline SVG and tables that follow the page's colours, so that a phone at night can read them.

Every function returns `Markup`, in which all that came from outside is escaped. The markup is in `charts.html.j2`, the
style in `page.css`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from ..visualization import FAINT, PALETTE, Panel, to_number
from .templates import environment

WIDTH, HEIGHT = 360, 200  # of a chart in its own units: about a phone's pixels, so that letters keep their size there
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 24
MOST_TOLD = 20  # points of a series that are told in words
MOST_POINTS = 400  # of a curve: more than the pixels that it takes
NAMED_ACROSS = 14  # classes of a matrix whose names stand upright above it; of more they lie on their side


# --- curves -----------------------------------------------------------------------------------------------------------


def curves(panel: Panel, rows: Sequence[Mapping[str, Any]], by: str = "epoch") -> Markup:
    """One panel of the learning curves (see `visualization.curve_panels`); rows: one dict an epoch.

    by: the column that the curves go along: epochs, or a fraction.
    """
    rows = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_POINTS)).round().astype(int))]
    epochs = [to_number(row.get(by)) for row in rows]
    columns = [np.array([to_number(row.get(column)) for row in rows]) for column, *_ in panel.lines]
    scale = Scale([float(value) for column in columns for value in column[np.isfinite(column)]], panel.kind)
    across = Scale([epoch for epoch in epochs if math.isfinite(epoch)], "whole" if by == "epoch" else "percent")
    lines, described = [], []
    for index, ((_, label, color, dash), values) in enumerate(zip(panel.lines, columns, strict=True)):
        covers = any(_coincide(values, earlier) for earlier in columns[:index])
        style = f"stroke:{_tint(color)}{_dashes((0, (5, 5)) if covers else dash)}"
        places = [(_x(across, e), _y(scale, v)) for e, v in zip(epochs, values.tolist(), strict=True)]
        lines.append({"label": label, "style": style, "tint": _tint(color), "intervals": "", **_path(places)})
        ends = [scale.label(value) for value in values[np.isfinite(values)].tolist()]
        described += [f"{label} from {ends[0]} to {ends[-1]}"] if ends else []
    axis = f"{panel.ylabel}, by {by}" if panel.ylabel else f"by {by}"
    return _chart(panel.title, axis, across, scale, lines, described)


@dataclass(frozen=True)
class Series:
    """Points (x, y) of a chart: joined by a line, or alone; intervals: the two ends of each in y, or none at all.

    dash: of the line; a line without dots is a guide to the eye.
    """

    label: str
    points: Sequence[tuple[float, float]]
    color: str
    joined: bool = True
    dots: bool = True
    dash: Any = "-"
    intervals: Sequence[Sequence[float]] = ()


def points(title: str, axis: str, series: Sequence[Series], across: Scale, up: Scale) -> Markup:
    """Series of points; axis: what is drawn over what."""
    lines, described = [], []
    for one in series:
        tint, places = _tint(one.color), [(_x(across, x), _y(up, y)) for x, y in one.points]
        path = _path(places)["path"] if one.joined else ""
        spans = zip(places, one.intervals, strict=False)
        lines.append({
            "label": one.label, "style": f"stroke:{tint}{_dashes(one.dash)}", "tint": tint, "path": path,
            "dots": [(f"{x:.1f}", f"{y:.1f}") for x, y in places] if one.dots else [],
            "intervals": "".join(f"M{x:.1f} {_y(up, low):.1f}V{_y(up, high):.1f}" for (x, _), (low, high) in spans),
        })  # fmt: skip
        told = ", ".join(f"{up.label(y)} at {across.label(x)}" for x, y in one.points[:MOST_TOLD])
        described += [f"{one.label}: {told}"] if one.dots and told else []
    return _chart(title, axis, across, up, lines, described)


def _chart(
    title: str, axis: str, across: Scale, up: Scale, lines: Sequence[dict[str, Any]], told: Sequence[str]
) -> Markup:
    return _rendered(
        "chart", title=title, axis=axis, description="; ".join(told), width=WIDTH, height=HEIGHT, left=LEFT,
        right=WIDTH - RIGHT, ticks_up=_ticks_up(up), ticks_across=_ticks_across(across), lines=lines,
    )  # fmt: skip


def precision_by_recall(name: str, true: np.ndarray, probabilities: np.ndarray) -> Markup:
    """What part of the images called a class is of it, by how many of it are found, over all thresholds.

    true: bool [N], whether an image is of the class; probabilities: [N], of the class.
    """
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(true, probabilities)
    rows = [{"recall": r, "precision": p} for r, p in zip(recall[::-1], precision[::-1], strict=True)]
    return curves(Panel(name, "precision", [("precision", "precision", PALETTE[0], "-")], "percent"), rows, "recall")


def _rendered(macro: str, **values: Any) -> Markup:
    """A macro of charts.html.j2 with these values, which it escapes."""
    return getattr(environment().get_template("charts.html.j2").module, macro)(**values)


def _coincide(values: np.ndarray, others: np.ndarray) -> bool:
    """Whether one curve would hide the other; gaps in the upper one leave it to be seen."""
    both = np.isfinite(values) & np.isfinite(others)
    return bool(both.any()) and bool(np.allclose(values[both], others[both], rtol=1e-3, atol=1e-9))


class Scale:
    """From values to places in [0, 1] of an axis, with its ticks. kind: plain, percent, signed, log or whole."""

    def __init__(self, values: Sequence[float], kind: str) -> None:
        self.kind = kind
        values = [v for v in values if v > 0] if kind == "log" else list(values)
        low, high = (min(values), max(values)) if values else (0.1, 1.0)
        if kind == "signed":
            low, high = min(low, 0.0), max(high, 0.0)
        if kind == "log":
            low, high = math.log10(low / 1.2), math.log10(high * 1.2)
        elif kind == "whole":
            low, high = low - 0.5 * (low == high), high + 0.5 * (low == high)
        else:
            room = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
            low, high = low - room, high + room
            low, high = (max(low, -0.02), min(high, 1.02)) if kind == "percent" else (low, high)
        self.low, self.high = low, high

    def place(self, value: float) -> float:
        """Where a value lies: 0 at the axis' beginning, 1 at its end; NaN where it has no place."""
        if self.kind == "log":
            value = math.log10(value) if value > 0 else math.nan
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[float]:
        """At most about `most` round values."""
        if self.kind == "log":
            signs = (1, 2, 5) if self.high - self.low < 1.5 else (1,)
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            found = [sign * 10.0**decade for decade in decades for sign in signs]
            found = [value for value in found if self.low <= math.log10(value) <= self.high]
            return found[:: math.ceil(len(found) / most) or 1]
        step = _round_step((self.high - self.low) / most)
        step = max(1.0, step) if self.kind == "whole" else step
        return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]

    def label(self, value: float) -> str:
        """A value as it is written on this axis."""
        percent = self.kind == "percent"
        return f"{100 * value if percent else value:.4g}{'%' if percent else ''}".replace("-", "−")


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, ... (or their tenths, hundredths) that is not below `least`."""
    decade = 10.0 ** math.floor(math.log10(least))
    return next(factor * decade for factor in (1, 2, 5, 10) if factor * decade >= least * 0.999)


def _x(scale: Scale, value: float) -> float:
    return LEFT + scale.place(value) * (WIDTH - LEFT - RIGHT)


def _y(scale: Scale, value: float) -> float:
    return HEIGHT - BOTTOM - scale.place(value) * (HEIGHT - TOP - BOTTOM)


def _ticks_up(scale: Scale) -> list[dict[str, Any]]:
    """The horizontal lines of the grid with their labels."""
    places = [(value, _y(scale, value)) for value in scale.ticks(6)]
    return [
        {"y": f"{y:.1f}", "text_y": f"{y + 3.5:.1f}", "label": scale.label(value),
         "zero": value == 0 and scale.kind == "signed"}
        for value, y in places
    ]  # fmt: skip


def _ticks_across(scale: Scale) -> list[dict[str, Any]]:
    """The labels below; a label that would be cut off at the edge ends there instead of being centred."""
    places = [(scale.label(value), _x(scale, value)) for value in scale.ticks(7)]
    return [
        {"label": label, "x": f"{x:.1f}", "anchor": "middle"}
        if x < WIDTH - 2 * RIGHT
        else {"label": label, "x": WIDTH, "anchor": "end"}
        for label, x in places
    ]


def _path(points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """A curve with gaps where a value is missing; few points, and those that stand alone, get a dot."""
    there = [math.isfinite(x) and math.isfinite(y) for x, y in points]
    commands, dots = [], []
    for index, (x, y) in enumerate(points):
        if not there[index]:
            continue
        joined = index > 0 and there[index - 1]
        commands.append(f"{'L' if joined else 'M'}{x:.1f} {y:.1f}")
        alone = not joined and not (index + 1 < len(points) and there[index + 1])
        if alone or sum(there) <= 12:
            dots.append((f"{x:.1f}", f"{y:.1f}"))
    return {"path": "".join(commands), "dots": dots}


def _tint(color: str) -> str:
    """The page's own shade of a colour of visualization.py: a dark page needs lighter ones."""
    if color == FAINT:
        return "var(--soft)"
    return f"var(--c{PALETTE.index(color)})" if color in PALETTE else "var(--ink)"


def _dashes(dash: Any) -> str:
    if not isinstance(dash, tuple):
        return ""
    offset, pattern = dash
    return f";stroke-dasharray:{' '.join(str(part) for part in pattern)};stroke-dashoffset:{offset}"


# --- bars and matrices ------------------------------------------------------------------------------------------------


def bars(rows: Sequence[tuple[str, float, Sequence[float], str]], *, head: tuple[str, str]) -> Markup:
    """Fractions as bars.

    rows: (name, fraction in [0, 1], its interval (two numbers or none), what is written beside it); head: the names of
    the first and the last column.
    """
    lines = []
    for name, fraction, interval, note in rows:
        low, high = (100 * bound for bound in interval or (0.0, 0.0))
        whisker = (f"{low:.1f}", f"{high - low:.1f}") if len(interval) else ()
        lines.append({"name": name, "length": f"{100 * fraction:.1f}", "interval": whisker, "note": note})
    return _rendered("bars", rows=lines, head=head)


def matrix(counts: np.ndarray, names: Sequence[str]) -> Markup:
    """A confusion matrix as a table: counts [C, C], a row a true class, shaded by each count's fraction of its row."""
    rows = []
    for true, row in enumerate(counts.tolist()):
        total = max(1, sum(row))
        rows.append([
            {"count": count, "kind": ("hit" if column == true else "miss") if count else "none",
             "fraction": f"{count / total:.3f}",
             "description": f"{count} of {total} {names[true]} predicted as {other} ({100 * count / total:.0f}%)"}
            for column, (other, count) in enumerate(zip(names, row, strict=True))
        ])  # fmt: skip
    return _rendered("matrix", names=list(names), rows=rows, many=len(names) > NAMED_ACROSS)
