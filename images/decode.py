"""Decoding: any image file to the square of 8-bit RGB that a backbone takes."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import stat
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


# The values that are shown black and white: of grey images with "integers" of 16 and more bits or "floats", and of
# "colours" of 16 bits a channel.
ValueRanges = Mapping[str, tuple[float, float]]

MOST_BYTES = 2**30  # of a file that is read whole: no image that may be decoded needs more
HEIF = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")  # how phones' files name themselves


@dataclass(frozen=True)
class Transform:
    """How a backbone takes its images: the short side to `resize`, the middle `size` x `size`, then mean and std."""

    size: int
    resize: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@contextlib.contextmanager
def quiet_pil() -> Iterator[None]:
    """Inside, Pillow warns of nothing. Not thread-safe, as all of `warnings`: enter it before threads start."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def open_rgb(content: bytes, shortest: int, ranges: ValueRanges) -> Image.Image:
    """A file's (first) picture, upright, in RGB; large JPEGs come smaller, with no side under `shortest`.

    Raises what the decoder raises.
    """
    return to_rgb(open_upright(content, shortest), ranges)


def open_upright(content: bytes, shortest: int) -> Image.Image:
    """The same in the mode that it is stored in."""
    from PIL import Image, ImageOps

    if is_heif_content(content) and not can_read_heif():
        raise ValueError("a HEIC image; to read these: pip install pi-heif")
    with Image.open(io.BytesIO(content)) as image:
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or sys.maxsize):
            raise ValueError(f"too large ({image.width} x {image.height} pixels)")
        if image.format == "EPS":  # Pillow would start Ghostscript, which runs what is in it
            raise ValueError("a program in PostScript, which is not run")
        image.draft(None, (shortest, shortest))
        if image.mode in ("RGB", "RGBA") and any(";16" in str(tile[-1]) for tile in image.tile):
            image.info[COLOURS] = True  # Pillow reads the upper 8 bits, and does not say so
        image.load()
        # A broken EXIF block does not spoil the picture.
        with contextlib.suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
        return image


def is_heif_content(content: bytes) -> bool:
    """Whether a file that begins so is an image of the kind that phones write (HEIC), whatever its name says."""
    return content[4:8] == b"ftyp" and content[8:12] in HEIF


@functools.cache
def can_read_heif() -> bool:
    """Whether the package for HEIC images is installed; if so, Pillow opens them from now on."""
    if importlib.util.find_spec("pi_heif") is None:
        return False
    importlib.import_module("pi_heif").register_heif_opener()
    return True


def read_content(file: str, most: int = -1) -> bytes:
    """The bytes of a file, all or at most so many. Raises OSError, and ValueError for what must not be waited for.

    That is a pipe or a device, and what seems empty, as all of /proc does.
    """
    status = os.stat(file)
    if stat.S_ISDIR(status.st_mode):
        raise ValueError("a folder that can't be read")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a file")
    if not status.st_size:
        raise ValueError("empty file")
    if most < 0 and status.st_size > MOST_BYTES:
        raise ValueError(f"too large ({status.st_size / 2**30:.1f} GiB)")
    with Path(file).open("rb") as stream:
        return stream.read(most)


def to_rgb(image: Image.Image, ranges: ValueRanges) -> Image.Image:
    """8-bit RGB of any mode; what is transparent shows white, as on a page.

    ranges: of the data set (see `value_ranges`); what it has none of is 16 bits wide, or lies in [0, 1].
    """
    from PIL import Image

    kind = wide_kind(image)
    if kind == COLOURS:
        shades = _to_8bit(257 * np.arange(256), *ranges.get(kind, UNSEEN[kind])).tolist()
        image = image.point(3 * shades + list(range(256)) * (image.mode == "RGBA"))
    elif kind is not None:
        return Image.fromarray(_to_8bit(np.asarray(image), *ranges.get(kind, UNSEEN[kind]))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


# --- values that are not 8-bit ----------------------------------------------------------------------------------------

COLOURS = "colours"
BITS = [(0, 2**bits - 1) for bits in range(8, 33)]
USUAL = {COLOURS: BITS, "integers": BITS, "floats": [(0, 1), (-1, 1), (0, 255), (0, 65535)]}
OVERSHOOT = {
    COLOURS: 0.0,
    "integers": 0.0,
    "floats": 0.1,
}  # by how much of a usual range resampling or glare may leave it
LEAST_USED = 0.25  # of a usual range: 64 of 256 grey levels
UNSEEN = {COLOURS: (0, 65535), "integers": (0, 65535), "floats": (0, 1)}


class SeenValues(NamedTuple):
    """The lowest and the highest value of an image that is not 8-bit; of floats without a thousandth at each end."""

    kind: str
    low: float
    high: float


def wide_kind(image: Image.Image) -> str | None:
    """The kind of values of an image that is not 8-bit, a key of ValueRanges."""
    if COLOURS in image.info:
        return COLOURS
    return "floats" if image.mode == "F" else "integers" if image.mode.startswith("I") else None


def seen_values(image: Image.Image) -> SeenValues | None:
    """The values of an image that is not 8-bit; None for any other, and where no value is a finite number."""
    kind = wide_kind(image)
    if kind is None:
        return None
    if kind == COLOURS:
        upper = np.asarray(image.convert("RGB")).astype(int)
        return SeenValues(kind, 256.0 * upper.min(), 256.0 * upper.max() + 255)
    values = np.asarray(image)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    ends = np.quantile(values, (0.001, 0.999)) if kind == "floats" else (values.min(), values.max())
    return SeenValues(kind, float(ends[0]), float(ends[1]))


def value_ranges(seen: Iterable[SeenValues | None]) -> dict[str, tuple[float, float]]:
    """One range for all images of a data set, by kind of values: a usual one that they fill, or what they take up.

    By its own values alone the same grey would be black in one image and white in another.
    """
    ends: dict[str, tuple[float, float]] = {}
    for kind, low, high in filter(None, seen):
        before = ends.get(kind, (low, high))
        ends[kind] = min(low, before[0]), max(high, before[1])
    ranges = {kind: _range_of(kind, *both) for kind, both in sorted(ends.items())}
    return {kind: both for kind, both in ranges.items() if kind != COLOURS or both != UNSEEN[COLOURS]}


def _range_of(kind: str, low: float, high: float) -> tuple[float, float]:
    for black, white in USUAL[kind]:
        slack = OVERSHOOT[kind] * (white - black)
        if black - slack <= low and high <= white + slack and high - low >= LEAST_USED * (white - black):
            return float(black), float(white)
    return low, high if high > low else low + 1


def _to_8bit(values: np.ndarray, black: float, white: float) -> np.ndarray:
    """uint8: 0 for `black`, and for what is no number; 255 for `white`."""
    shares = (values.astype(np.float64) - black) / (white - black)
    return np.rint(255 * np.nan_to_num(shares, posinf=1, neginf=0).clip(0, 1)).astype(np.uint8)


# --- sizes ------------------------------------------------------------------------------------------------------------


def fit(image: Image.Image, transform: Transform) -> Image.Image:
    """The short side to `resize`, then the middle, rounded as torchvision does."""
    from PIL import Image

    short = min(image.size)
    if max(image.size) > 8 * short:
        # A long strip would grow to gigabytes only to be cut.
        image = _middle(image, min(image.width, 8 * short), min(image.height, 8 * short))
    width, height = (transform.resize * side // short for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling[transform.interpolation.upper()])
    return _middle(image, transform.size, transform.size)


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def reason_of(error: Exception) -> str:
    """In a few words why a file can't be read or decoded."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image"
    return " ".join(str(error).split())[:80] or type(error).__name__
