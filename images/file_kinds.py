"""What a file is: an image by its suffix or else by its first bytes, or something else that is counted by kind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from .decode import can_read_heif, is_heif_content, read_content

SUFFIXES = tuple(
    f".{kind}"
    for kind in "jpg jpeg jpe jfif png apng bmp dib gif webp tif tiff ppm pgm pbm pnm tga jp2 avif".split()  # noqa: SIM905
)
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
# Cameras' raw photographs are TIFFs whose first picture is only a small preview.
RAW_SUFFIXES = (
    ".3fr", ".arw", ".cr2", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".nef", ".nrw", ".pef",
    ".sr2", ".srf", ".srw",
)  # fmt: skip
# How the files begin that an image may be in without a suffix that says so.
BEGINNINGS = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+",
    b"\x00\x00\x00\x0cjP  ",
)  # fmt: skip
# Two letters are too few to know a BMP by; these are the lengths of what follows its first 14 bytes.
BMP_HEADERS = tuple(length.to_bytes(4, "little") for length in (12, 40, 52, 56, 64, 108, 124))


def is_image(file: str) -> bool:
    """Whether a file is to be read as an image: it says so, or nothing says otherwise and its first bytes do."""
    name = file.lower()
    if name.endswith(SUFFIXES):
        return True
    return not name.endswith(RAW_SUFFIXES) and (kind_by_content(file) == "image" or (is_heif(file) and can_read_heif()))


def is_heif(file: str) -> bool:
    """Whether a file is, or says it is, an image of the kind that phones write (HEIC)."""
    return file.lower().endswith(HEIF_SUFFIXES) or kind_by_content(file) == "heif"


def kind_by_content(file: str) -> str:
    """`image`, `heif`, or "" by how a file begins; only regular files are opened."""
    try:
        start = read_content(file, 18)
    except (OSError, ValueError):
        return ""
    if is_heif_content(start):
        return "heif"
    avif = start[4:12] in (b"ftypavif", b"ftypavis")
    riff = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    bmp = start[:2] == b"BM" and start[14:18] in BMP_HEADERS
    return "image" if avif or riff or bmp or start.startswith(BEGINNINGS) else ""


def kind_of(file: str) -> str:
    """What a file is counted as: its suffix, or `no suffix`."""
    return Path(file).suffix.lower() or "no suffix"


def counted(kinds: Counter[str]) -> str:
    """`40 .txt, 3 .xml`: the most frequent kinds, and how many files are of others."""
    shown = kinds.most_common(5)
    rest = kinds.total() - sum(count for _, count in shown)
    return ", ".join([*(f"{count} {kind}" for kind, count in shown), *([f"{rest} others"] if rest else [])])
