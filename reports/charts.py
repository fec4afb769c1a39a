"""Charts for a page: inline SVG and tables that follow the page's colours, so that a phone at night can read them.

Every function returns `Markup`, in which all that came from outside is escaped. The page (report.py) has the styles.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..visualization import PALETTE, Panel, to_number

WIDTH, HEIGHT = 360, 200  # of a chart in its own units: about a phone's pixels, so that letters keep their size there
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 24
MOST_POINTS = 400  # of a curve: more than the pixels that it takes
MOST_CLASSES = 14  # of a matrix as a table; with more of them a picture is easier to take in


class Markup(str):
    """HTML that is safe to put on a page."""

    __slots__ = ()


def text(value: object) -> str:
    """Anything as text of a page: markup is shown, never meant; what no font can show is replaced."""
    line = str(value).encode("utf-8", "replace").decode()
    line = "".join(sign if sign.isprintable() or sign in "\n\t" else "\ufffd" for sign in line)
    return html.escape(line)


# --- curves -----------------------------------------------------------------------------------------------------------


def curves(panel: Panel, rows: Sequence[Mapping[str, Any]]) -> Markup:
    """One panel of the learning curves (see `visualization.curve_panels`); rows: one dict an epoch."""
    rows = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_POINTS)).round().astype(int))]
    epochs = [to_number(row.get("epoch")) for row in rows]
    columns = [np.array([to_number(row.get(column)) for row in rows]) for column, *_ in panel.lines]
    scale = Scale([float(value) for column in columns for value in column[np.isfinite(column)]], panel.kind)
    across = Scale([epoch for epoch in epochs if math.isfinite(epoch)], "whole")
    drawn, told, legend = [_grid(scale, across)], [], []
    for index, ((_, label, color, dash), values) in enumerate(zip(panel.lines, columns, strict=True)):
        covers = any(_coincide(values, earlier) for earlier in columns[:index])
        style = f"stroke:{_tint(color)}{_dashes((0, (5, 5)) if covers else dash)}"
        points = [(_x(across, e), _y(scale, v)) for e, v in zip(epochs, values.tolist(), strict=True)]
        drawn.append(_path(points, style, _tint(color)))
        ends = [scale.label(value) for value in values[np.isfinite(values)].tolist()]
        told += [f"{label} from {ends[0]} to {ends[-1]}"] if ends else []
        sample = f'<svg viewBox="0 0 22 8" aria-hidden="true"><path class="line" d="M1 4H21" style="{style}"/></svg>'
        legend.append(f"<li>{sample}{text(label)}</li>")
    axis = f"{panel.ylabel}, by epoch" if panel.ylabel else "by epoch"
    return Markup(
        f'<figure class="chart"><figcaption><strong>{text(panel.title)}</strong> <small>{text(axis)}</small>'
        f'</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text("; ".join(told))}">'
        f'{"".join(drawn)}</svg><ul class="legend">{"".join(legend) if len(legend) > 1 else ""}</ul></figure>'
    )


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


def _grid(scale: Scale, across: Scale) -> str:
    parts = []
    for value in scale.ticks(6):
        y = _y(scale, value)
        zero = ' class="zero"' if value == 0 and scale.kind == "signed" else ""
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"{zero}/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{scale.label(value)}</text>')
    for value in across.ticks(7):
        x = _x(across, value)
        place = f'x="{WIDTH}" y="{HEIGHT - 7}" text-anchor="end"'  # in the corner a middle would be cut off
        place = f'x="{x:.1f}" y="{HEIGHT - 7}" text-anchor="middle"' if x < WIDTH - 2 * RIGHT else place
        parts.append(f"<text {place}>{across.label(value)}</text>")
    return f'<g class="grid">{"".join(parts)}</g>'


def _path(points: Sequence[tuple[float, float]], style: str, tint: str) -> str:
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
            dots.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" style="fill:{tint}"/>')
    return f'<path class="line" d="{"".join(commands)}" style="{style}"/>{"".join(dots)}'


def _tint(color: str) -> str:
    """The page's own shade of a colour of visualization.py: a dark page needs lighter ones."""
    return f"var(--c{PALETTE.index(color)})" if color in PALETTE else "var(--ink)"


def _dashes(dash: Any) -> str:
    if not isinstance(dash, tuple):
        return ""
    offset, pattern = dash
    return f";stroke-dasharray:{' '.join(str(part) for part in pattern)};stroke-dashoffset:{offset}"


# --- bars and matrices ------------------------------------------------------------------------------------------------


def bars(rows: Sequence[tuple[str, float, Sequence[float], str]], *, head: tuple[str, str]) -> Markup:
    """Shares as bars: (name, share in [0, 1], its interval (two numbers or none), what is written beside it)."""
    lines = []
    for name, share, interval, note in rows:
        whisker = ""
        if len(interval):
            low, high = (100 * bound for bound in interval)
            whisker = f'<i style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
        bar = f'<div class="bar" aria-hidden="true"><b style="width:{100 * share:.1f}%"></b>{whisker}</div>'
        lines.append(f'<tr><th scope="row"><bdi>{text(name)}</bdi></th><td>{bar}</td><td>{text(note)}</td></tr>')
    titles = f'<th scope="col">{text(head[0])}</th><td></td><th scope="col">{text(head[1])}</th>'
    return Markup(f'<table class="bars"><thead><tr>{titles}</tr></thead><tbody>{"".join(lines)}</tbody></table>')


def matrix(counts: np.ndarray, names: Sequence[str]) -> Markup:
    """A confusion matrix as a table: counts [C, C], a row a true class, shaded by its share of the row."""
    head = "".join(f'<th scope="col"><bdi>{text(name)}</bdi></th>' for name in names)
    lines = []
    for row, name in enumerate(names):
        total = max(1, int(counts[row].sum()))
        cells = []
        for column, count in enumerate(counts[row].tolist()):
            kind = ("hit" if row == column else "miss") if count else "none"
            told = f"{count} of {total} {name} taken for {names[column]} ({100 * count / total:.0f}%)"
            cells.append(f'<td class="{kind}" style="--share:{count / total:.3f}" title="{text(told)}">{count}</td>')
        lines.append(f'<tr><th scope="row"><bdi>{text(name)}</bdi></th>{"".join(cells)}</tr>')
    corner = '<td class="corner">true ↓ predicted →</td>'
    return Markup(
        f'<table class="matrix"><thead><tr>{corner}{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    )
