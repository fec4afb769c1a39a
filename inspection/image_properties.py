"""What can be measured of the images of a data set without a network: formats, colour modes, sizes, thumbnails."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Dataset
from ..images.decode import quiet_pil
from .files import InspectedFiles
from .findings import Finding
from .near_duplicates import SIDE

SMALL, NARROW, BLANK = 64, 3.0, 2.0  # pixels of the short side; long by short side; deviation in grey levels


@dataclass(frozen=True, eq=False)
class ImageProperties:
    """Of each row: file format, PIL's colour mode, frames, upright size int64 [N], grey thumbnail uint8 [N, S, S].

    Points have none of these, so all are empty.
    """

    formats: tuple[str, ...]
    modes: tuple[str, ...]
    frames: tuple[int, ...]
    widths: np.ndarray
    heights: np.ndarray
    thumbnails: np.ndarray

    def oddities(self, row: int, dataset: Dataset) -> Iterable[str]:
        """What is odd about the file of a row, a few words each."""
        if not self.formats or self.formats[row] == "array":
            return
        width, height = int(self.widths[row]), int(self.heights[row])
        suffix = Path(str(dataset.sources[row])).suffix
        if _format_of(suffix) not in (None, self.formats[row]):
            yield f"named {suffix}, but is {self.formats[row]}"
        if self.modes[row] not in ("RGB", "L", "P"):
            yield f"colour mode {self.modes[row]}"
        if self.frames[row] > 1:
            yield f"{self.frames[row]} frames, of which the first is used"
        if max(width, height) > NARROW * min(width, height):
            yield f"{width} x {height} pixels: most of it is cut off"
        if min(width, height) < SMALL:
            yield f"{width} x {height} pixels: very small"
        if self.thumbnails[row].std() < BLANK:
            yield "one colour all over"

    def summary(self) -> dict[str, Any]:
        """formats and modes: how many images have each; sizes: the least, median and largest width, height and aspect
        (width / height), the most_common as [width, height, count], and how many are different.
        """
        if not self.formats:
            return {"formats": {}, "modes": {}, "sizes": {}}
        aspect = self.widths / self.heights
        sizes = Counter(zip(self.widths.tolist(), self.heights.tolist(), strict=True))
        measured = {"width": self.widths, "height": self.heights, "aspect": aspect}
        return {
            "formats": dict(Counter(self.formats).most_common()),
            "modes": dict(Counter(self.modes).most_common()),
            "sizes": {
                name: [round(float(value), 3) for value in (values.min(), np.median(values), values.max())]
                for name, values in measured.items()
            }
            | {"most_common": [[*size, count] for size, count in sizes.most_common(10)], "different": len(sizes)},
        }


def image_properties(dataset: Dataset) -> ImageProperties:
    """Open every image once more, for its header and a thumbnail."""
    rows = range(0 if dataset.kind == "points" else len(dataset))
    with quiet_pil(), ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda row: _properties_of(dataset, row), rows))
    formats, modes, frames, widths, heights, thumbnails = zip(*read, strict=True) if read else ((),) * 6
    grey = np.stack(thumbnails) if read else np.zeros((0, SIDE, SIDE), dtype=np.uint8)
    return ImageProperties(formats, modes, frames, np.array(widths, np.int64), np.array(heights, np.int64), grey)


def _properties_of(dataset: Dataset, row: int) -> tuple[str, str, int, int, int, np.ndarray]:
    from PIL import Image

    picture = dataset.picture(row, 2 * SIDE)
    grey = picture.convert("L").resize((SIDE,) * 2, Image.Resampling.BOX)
    if dataset.array is not None:
        return "array", "RGB", 1, *picture.size, np.asarray(grey)
    with Image.open(str(dataset.sources[row])) as image:  # only its header
        size, turned, frames = image.size, False, 1
        with contextlib.suppress(Exception):  # a broken EXIF block does not spoil the picture
            turned = image.getexif().get(0x0112, 1) >= 5
        width, height = size[::-1] if turned else size
        with contextlib.suppress(Exception):  # nor does a broken frame behind it
            frames = int(getattr(image, "n_frames", 1))
        return image.format or "unknown", image.mode, frames, width, height, np.asarray(grey)


def _format_of(suffix: str) -> str | None:
    from PIL import Image

    return Image.registered_extensions().get(suffix.lower())


def odd_files(files: InspectedFiles, properties: ImageProperties) -> Iterable[Finding]:
    """A finding for each file with oddities."""
    for row, path in enumerate(files.dataset.paths):
        text = "; ".join(properties.oddities(row, files.dataset))
        if text:
            yield files.finding("odd file", path, explanation=text)
