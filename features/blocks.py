"""The files of a feature bank: blocks of rows, written whole or not at all, and the removal of old banks."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import os
import shutil
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..base.files import atomic_file, claimed
from ..utils import UserError

BLOCK_ROWS = 256
BLOCKS = "[!.]*.block"  # a hidden one is still being written, by this process or another
IN_USE = "in-use"  # in a bank's folder: locked by each process that has it, so that no other evicts it
MAGIC = b"MPLBANK2"
HEADER = struct.Struct("<8sII32s16x")  # magic, rows, numbers a row, digest of all that follows
NOT_WRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG,
)  # fmt: skip


def write_block(path: Path, hashes: np.ndarray, features: np.ndarray) -> None:
    """Write one block, whole or not at all: header, hashes uint64 [n], features [n, D]."""
    hashes, features = hashes.astype("<u8"), np.ascontiguousarray(features)
    digest = _digest(path, hashes, features)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        file.write(HEADER.pack(MAGIC, len(hashes), features.shape[1], digest))
        file.write(hashes.tobytes())
        file.write(features.data)


def read_block(path: Path, width: int, dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """(hashes [n], memory-mapped features [n, D]), or None when the block is not what was written."""
    try:
        with path.open("rb") as file:
            magic, count, columns, digest = HEADER.unpack(file.read(HEADER.size))
            size = HEADER.size + count * (8 + width * dtype.itemsize)
            if magic != MAGIC or columns != width or size != os.fstat(file.fileno()).st_size:
                return None
            hashes = np.fromfile(file, dtype="<u8", count=count)
        offset = HEADER.size + hashes.nbytes
        features = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count, width))
    except (FileNotFoundError, ValueError, struct.error):  # any other trouble with the disk is no damage of the block
        return None
    return (hashes, features) if _digest(path, hashes, features) == digest else None


def _digest(path: Path, hashes: np.ndarray, features: np.ndarray) -> bytes:
    """Of what a block holds, and of the bank and the draw that it belongs to: one copied from another is not taken."""
    place = f"{path.parent.parent.name}/{path.parent.name}".encode()
    digest = hashlib.blake2b(hashes.tobytes(), digest_size=32, key=hashlib.blake2b(place, digest_size=32).digest())
    digest.update(features.data)
    return digest.digest()


@contextlib.contextmanager
def disk_errors(folder: Path, needed: int = 0) -> Iterator[None]:
    """Say what to do when the disk is full or closed to us."""
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        size = f", which needs about {needed / 1e6:,.0f} MB" if needed else ""
        raise UserError(
            f"can't write the feature bank in {folder}{size}: {error.strerror}; "
            "make room, give another --cache_dir, or go on with --no_cache"
        ) from error


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device; for the CPU, of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 4 << 30  # where the system does not tell, a cautious guess


def evict(cache_dir: Path, limit: int, keep: Collection[Path]) -> list[Path]:
    """Remove whole banks, the longest unused first, until the rest takes at most `limit` bytes.

    Not those to `keep`, nor those that a process is using.
    """
    banks = [(path.stat().st_mtime, path.parent) for path in cache_dir.glob("*/bank.json")]
    sizes = {folder: sum(f.stat().st_size for f in folder.rglob(BLOCKS)) for _, folder in banks}
    total, removed = sum(sizes.values()), []
    if total > limit:
        gc.collect()  # a bank and its tables hold each other: one that this process has done with may still be there
    for _, folder in sorted(banks):
        if total <= limit:
            break
        if folder not in keep and _remove(folder):
            total -= sizes[folder]
            removed.append(folder)
    return removed


def _remove(folder: Path) -> bool:
    """Remove a bank that nobody is using; says whether it did."""
    free: bool | None = False
    with contextlib.suppress(OSError):  # another user's
        with claimed(folder / IN_USE, wait=False) as free:
            # What makes it a bank goes last: after a kill in between, the rest is found again.
            for path in sorted(folder.iterdir(), key=lambda path: path.name == "bank.json") if free else ():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name != IN_USE:
                    path.unlink(missing_ok=True)
        if free:
            folder.rmdir()  # unless somebody has just made it again
    return bool(free)
