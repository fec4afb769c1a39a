"""Every image is read once before anything else: its content's hash, whether it can be decoded, and its values."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from ..base.progress import with_bar
from .builtin import Found
from .decode import SeenValues, open_upright, quiet_pil, read_content, reason_of, seen_values, to_rgb


class Scanned(NamedTuple):
    """The hash of an item's content (None: it can't be read), what is wrong with it, and values that are not 8-bit."""

    code: int | None
    reason: str = ""
    values: SeenValues | None = None


def scan(found: Found) -> list[Scanned]:
    """What is known of each item when it has been read."""
    if found.array is not None:
        array = found.array
        return [Scanned(_hash_array(array[item.source])) for item in found.items]
    files = [str(item.source) for item in found.items]
    with quiet_pil(), ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        scanned = pool.map(_scan_file, files)
        return list(with_bar(scanned, len(files), what="scanning", unit="file") if len(files) > 1000 else scanned)


def _scan_file(file: str) -> Scanned:
    content = None
    try:
        content = read_content(file)
        # As small as JPEG can be decoded; the whole stream is read all the same, so a cut-off file is noticed.
        image = open_upright(content, 1)
        to_rgb(image, {})
        return Scanned(content_hash(content), values=seen_values(image))
    # Decoders raise any exception at damaged data.
    except Exception as error:
        return Scanned(None if content is None else content_hash(content), reason_of(error))


def content_hash(content: bytes) -> int:
    """64 bits of a file's bytes: what an image is known by in splits, banks and random keys."""
    return int.from_bytes(hashlib.blake2b(content).digest()[:8], "big")


def _hash_array(array: np.ndarray) -> int:
    return content_hash(array.tobytes() + str(array.shape).encode())
