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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


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


def open_rgb(content: bytes, shortest: int) -> Image.Image:
    """A file's (first) picture, upright, in RGB; large JPEGs come smaller, with no side under `shortest`.

    Raises what the decoder raises.
    """
    from PIL import Image, ImageOps

    if is_heif_content(content) and not can_read_heif():
        raise ValueError("a HEIC image; to read these: pip install pi-heif")
    with Image.open(io.BytesIO(content)) as image:
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or sys.maxsize):
            raise ValueError(f"too large ({image.width} x {image.height} pixels)")
        if image.format == "EPS":  # Pillow would start Ghostscript, which runs what is in it
            raise ValueError("a program in PostScript, which is not run")
        image.draft(None, (shortest, shortest))
        image.load()
        # A broken EXIF block does not spoil the picture.
        with contextlib.suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)


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


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode; what is transparent shows white, as on a page."""
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_8bit(np.asarray(image), image.mode)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8bit(values: np.ndarray, mode: str) -> np.ndarray:
    """16-bit grey by its range; wider modes don't state theirs, so the smallest usual one that holds the values."""
    if mode.startswith("I;16"):
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    low, high = min(values.min(), 0.0), values.max()
    usual = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
    top = next((top for top in usual if high <= top and low == 0), max(high, low + 1.0))
    return np.rint((values - low) * (255.0 / (top - low))).astype(np.uint8)


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
