"""Pictures of an inspection: the sizes of its images, and galleries of images with captions.

The style and the writing of files are visualization.py's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..visualization import BLUE, INK, clear, paint, plain

CELL = 160  # pixels of an image's side in a gallery
LINE = 26  # characters that fit below it
_GAP, _TEXT, _LINES = 8, 46, 3  # pixels between tiles and below them, and how many lines of text stand there


@dataclass(frozen=True)
class Tile:
    """One image or several that belong together, uint8 [h, w, 3] with sides up to CELL, and their caption in lines."""

    images: Sequence[np.ndarray]
    lines: Sequence[str]


def draw_gallery(path: Path, tiles: Sequence[Tile], *, title: str, columns: int | None = None) -> Path:
    """Draw tiles in rows, in their order; `columns` tiles a row, by default about eight images."""
    across = max((len(tile.images) for tile in tiles), default=1)
    columns = max(1, min(columns or 8 // across, len(tiles)))
    rows = max(1, math.ceil(len(tiles) / columns))
    width, height = across * CELL + _GAP, CELL + _TEXT
    canvas = np.full((rows * height, columns * width - _GAP, 3), 255, dtype=np.uint8)
    places = [(index // columns * height, index % columns * width) for index in range(len(tiles))]
    for (top, left), tile in zip(places, tiles, strict=True):
        for number, image in enumerate(tile.images):
            _put(canvas, image, top, left + number * CELL)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.imshow(canvas, interpolation="antialiased")
        axes.set_xticks([])
        axes.set_yticks([])
        clear(axes)
        for (top, left), tile in zip(places, tiles, strict=True):
            text = "\n".join(plain(line, LINE * across) for line in tile.lines[:_LINES])
            axes.text(left, top + CELL + 4, text, va="top", fontsize=6.5, color=INK, linespacing=1.15)

    # As many pixels as the canvas has, at the DPI that figures are written with.
    return paint(path, (canvas.shape[1] / 110 + 0.2, canvas.shape[0] / 110 + 0.5), title, draw)


def _put(canvas: np.ndarray, image: np.ndarray, top: int, left: int) -> None:
    """An image at the bottom of its cell, in the middle; a small one enlarged by whole pixels."""
    factor = max(1, (CELL - 4) // max(image.shape[:2]))
    shown = image.repeat(factor, axis=0).repeat(factor, axis=1)[: CELL - 4, : CELL - 4]
    height, width = shown.shape[:2]
    above, before = top + CELL - height, left + (CELL - 4 - width) // 2
    canvas[above : above + height, before : before + width] = shown


def draw_sizes(path: Path, widths: np.ndarray, heights: np.ndarray, *, title: str) -> Path:
    """Draw how large images are: counts over width and height, and over width divided by height (a log scale)."""

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        _draw_area(left, widths, heights)
        aspect = widths / heights
        reach = max(1.25, float(np.maximum(aspect, 1 / aspect).max(initial=1.0)) * 1.05)
        edges = np.geomspace(1 / reach, reach, 42)
        right.hist(aspect, bins=edges, color=BLUE)
        right.set_xscale("log")
        marks = (0.1, 0.2, 0.33, 0.5, 0.75, 1, 1.33, 2, 3, 5, 10)
        ticks = [mark for mark in marks if 1 / reach < mark < reach]
        right.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        right.minorticks_off()
        right.set(title="Aspect", xlabel="width / height", ylabel="images")

    return paint(path, (10.0, 4.0), title, draw)


def _draw_area(axes: Any, widths: np.ndarray, heights: np.ndarray) -> None:
    """Each size a dot whose area grows with its number of images."""
    sizes, counts = np.unique(np.stack([widths, heights], axis=1), axis=0, return_counts=True)
    area = 6 + 200 * counts / counts.max(initial=1)
    axes.scatter(sizes[:, 0], sizes[:, 1], s=area, color=BLUE, alpha=0.45, linewidth=0)
    axes.set(title="Width and height, in pixels (area: number of images)", xlabel="width", ylabel="height")
    axes.set(xlim=(0, 1.08 * widths.max(initial=1)), ylim=(0, 1.15 * heights.max(initial=1)))
