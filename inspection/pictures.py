"""The pictures of an inspection: sizes, and a gallery of the first findings of each kind that can be shown."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..base.tables import number_of
from ..images.decode import quiet_pil
from ..reports.galleries import CELL, LINE, Tile, draw_gallery, draw_sizes
from ..visualization import plain
from .files import InspectedFiles
from .findings import KINDS, PAIRS, SHOWN, Finding, images_of, shown
from .image_properties import ImageProperties

GALLERIES = {"duplicates": PAIRS, "labels": ("wrong label",), "outliers": ("outlier",), "odd": ("odd file",)}


def thumbnails(files: InspectedFiles, findings: Sequence[Finding]) -> dict[str, np.ndarray]:
    """The images that galleries show, uint8 [h, w, 3] with sides below CELL, by path."""
    if files.dataset.kind == "points":
        return {}
    first = [finding for kind in KINDS for finding in [f for f in findings if f.kind == kind][:SHOWN]]
    paths = {path for f in first for path in images_of(f.kind, f.path, f.other_path)}
    with quiet_pil():
        return {path: _thumbnail(files, path) for path in sorted(paths)}


def _thumbnail(files: InspectedFiles, path: str) -> np.ndarray:
    image = files.dataset.picture(files.row_of[path], CELL).copy()
    image.thumbnail((CELL - 4, CELL - 4))
    return np.asarray(image)


def draw_pictures(
    folder: Path,
    files: InspectedFiles,
    properties: ImageProperties,
    findings: Sequence[Finding],
    images: Mapping[str, np.ndarray],
) -> list[str]:
    """Draw the pictures into the folder and return their names. images: see `thumbnails`."""
    if files.dataset.kind == "points" or not len(files.dataset):
        return []
    name = plain(files.dataset.name, 60)
    title = f"{name}: {number_of(len(files.dataset), 'image')}"
    drawn = [draw_sizes(folder / "sizes.png", properties.widths, properties.heights, title=title)]
    for file, kinds in GALLERIES.items():
        some = shown(findings, kinds)
        if some:
            count = sum(finding.kind in kinds for finding in findings)
            what = KINDS[kinds[0]] if len(kinds) == 1 else "identical files and near-duplicates"
            tiles = [_tile(finding, images) for finding in some]
            title = f"{name}: {what}, {len(some)} of {count}"
            drawn.append(draw_gallery(folder / f"{file}.png", tiles, title=title))
    return [path.name for path in drawn]


def _tile(finding: Finding, images: Mapping[str, np.ndarray]) -> Tile:
    """A finding in a gallery: its images, the files' names, and what was found."""
    paths = images_of(finding.kind, finding.path, finding.other_path)
    names = " | ".join(plain(path, LINE - 2) for path in paths)
    score = "" if finding.score is None else f" {finding.score:.2f}"
    lines = {
        "near-duplicate": [f"near-duplicate{score}"],
        "wrong label": [f"labelled {finding.label}", f"rather {finding.suggested_class}{score}"],
        "outlier": [f"labelled {finding.label or 'not'}", f"far from all others{score}"],
        "odd file": textwrap.wrap(plain(finding.explanation, 70), LINE),
    }
    return Tile([images[path] for path in paths], (names, *lines.get(finding.kind, [finding.kind])))
