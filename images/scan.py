"""Every image is read once before anything else: its content's hash, and whether it can be decoded."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..base.progress import with_bar
from .builtin import Found
from .decode import open_rgb, quiet_pil, read_content, reason_of


def scan(found: Found) -> list[tuple[int | None, str]]:
    """For each item the hash of its content (None: it can't be read) and what is wrong with it ("": nothing)."""
    if found.array is not None:
        array = found.array
        return [(_hash_array(array[item.source]), "") for item in found.items]
    files = [str(item.source) for item in found.items]
    with quiet_pil(), ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        scanned = pool.map(_scan_file, files)
        return list(with_bar(scanned, len(files), what="scanning", unit="file") if len(files) > 1000 else scanned)


def _scan_file(file: str) -> tuple[int | None, str]:
    content = None
    try:
        content = read_content(file)
        # As small as JPEG can be decoded; the whole stream is read all the same, so a cut-off file is noticed.
        open_rgb(content, 1)
    # Decoders raise any exception at damaged data.
    except Exception as error:
        return None if content is None else content_hash(content), reason_of(error)
    return content_hash(content), ""


def content_hash(content: bytes) -> int:
    """64 bits of a file's bytes: what an image is known by in splits, banks and random keys."""
    return int.from_bytes(hashlib.blake2b(content).digest()[:8], "big")


def _hash_array(array: np.ndarray) -> int:
    return content_hash(array.tobytes() + str(array.shape).encode())
