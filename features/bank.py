"""The feature bank: a frozen backbone's outputs, computed once, kept on disk, used by every later run.

A bank belongs to a backbone's weights, its transform, the augmentation recipe and the number format; a row belongs to
an image's content and a draw. Seeds, splits and files' names don't matter. Rows lie in blocks, a file each:
`BANK/<view>-<draw>/<digest of its rows>.block`, written beside and renamed, so a reader sees whole blocks or none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backbones.weights import state_digest
from ..base.files import claimed, remove_parts, share, write_json
from ..utils import UserError, to_device, warn
from .blocks import (
    BLOCK_ROWS,
    BLOCKS,
    HEADER,
    IN_USE,
    disk_errors,
    free_memory,
    read_block,
    write_block,
)
from .sources import BATCH_ROWS, EVALUATION_BATCH, FrozenSource, ImageRequest

IN_MEMORY_SHARE = 0.4  # of the free memory of the device that a table may take
BLOCK_SECONDS = 120.0  # that another process gets for a block before it is asked for again

Kind = tuple[str, int]  # view and draw
Job = dict[Kind, np.ndarray]  # the rows of one block of each kind


class FeatureBank:
    """Features of a data set's images in views and draws. A `Source` (sources.py) for heads on a frozen backbone.

    folder: the bank's place on disk; frozen: what computes a missing row; dtype: of the numbers on disk.
    """

    def __init__(self, cache_dir: Path, frozen: FrozenSource, dtype: str = "float16") -> None:
        self.frozen = frozen
        self.dtype = np.dtype(dtype)
        self.hashes = frozen.images.dataset.hashes
        self.device = frozen.images.device
        self.width = frozen.backbone.num_features
        identity = bank_identity(frozen, dtype)
        self.folder = cache_dir / hashlib.blake2b(json.dumps(identity).encode(), digest_size=10).hexdigest()
        self.tables: dict[Kind, Table] = {}
        self.computed = 0
        self.seconds = 0.0
        with disk_errors(self.folder):
            held = share(self.folder / IN_USE)
            if held is not None:
                weakref.finalize(self, held.close)
            remove_parts(self.folder)
            if not (self.folder / "bank.json").exists():
                write_json(self.folder / "bank.json", identity)
            os.utime(self.folder / "bank.json")  # the time of its last use, by which old banks are evicted

    # --- reading -----------------------------------------------------------------------------------------------------

    def rows(self, request: ImageRequest) -> Tensor:
        """float32 [n, D] on the device, in the order asked. All of them must have been filled."""
        if (request.draws == request.draws[0]).all():
            return self.table((request.view, int(request.draws[0]))).rows(request.rows)
        result: Tensor | None = None
        for draw in np.unique(request.draws).tolist():
            chosen = np.flatnonzero(request.draws == draw)
            part = self.table((request.view, draw)).rows(request.rows[chosen])
            if result is None:
                result = part.new_empty((len(request.rows), self.width))
            result[to_device(chosen, part.device)] = part
        assert result is not None
        return result

    def table(self, kind: Kind) -> Table:
        """One view and draw of all images; read from disk when it is first asked for."""
        if kind not in self.tables:
            self.tables[kind] = Table(self, kind)
        return self.tables[kind]

    def stream(self, requests: Callable[[int], Sequence[ImageRequest]], start: int) -> Iterator[list[Tensor]]:
        """See `sources.Source`."""
        step = start
        while True:
            yield [self.rows(request) for request in requests(step)]
            step += 1

    def inputs(self, rows: np.ndarray, view: str = "eval", draw: int = 0) -> Iterator[Tensor]:
        """See `sources.Source`."""
        self.fill({(view, draw): rows})
        for part in _cut(rows, EVALUATION_BATCH):
            yield self.rows(ImageRequest(part, np.full(len(part), draw), view))

    # --- filling -----------------------------------------------------------------------------------------------------

    def fill(self, wanted: dict[Kind, np.ndarray], *, show: Callable[[int], None] | None = None) -> int:
        """Compute what is missing of the wanted rows of each kind; returns how many rows were computed here.

        Several processes may fill one bank: each takes the blocks that no other is at work on, then waits for theirs.
        show: called with the number of rows computed as it goes. Raises UserError when the disk is full.
        """
        began, done, computed = time.monotonic(), 0, 0
        if not self.missing(wanted):  # else the decoding processes would be started for nothing
            return 0

        def count_computed(count: int) -> None:
            nonlocal computed
            computed += count
            if show is not None:
                show(computed)

        for attempt in range(20):  # each wait may end with somebody else at work on rows of ours
            # First what nobody is at work on; then wait for the others, and take over what they gave up.
            wait = BLOCK_SECONDS if attempt else False
            done += sum(self._work_off(self._jobs(wanted), wait=wait, show=count_computed))
            for kind in wanted:
                self.table(kind).reload()
            if not self.missing(wanted):
                break
        else:
            raise UserError(f"the feature bank in {self.folder} can't be filled; use --no_cache")
        self.computed += done
        self.seconds += time.monotonic() - began
        return done

    def missing(self, wanted: dict[Kind, np.ndarray]) -> int:
        """How many rows of these are still to be computed."""
        return sum(int((~self.table(kind).has(rows)).sum()) for kind, rows in wanted.items())

    def _jobs(self, wanted: dict[Kind, np.ndarray]) -> list[dict[Kind, np.ndarray]]:
        """The missing rows, grouped so that an image is decoded once for all its missing views."""
        missing = {kind: rows[~self.table(kind).has(rows)] for kind, rows in wanted.items()}
        missing = {kind: rows for kind, rows in missing.items() if len(rows)}
        if not missing:
            return []
        jobs = []
        for group in _cut(self._by_hash(*missing.values()), BLOCK_ROWS):
            job = {kind: group[np.isin(group, rows)] for kind, rows in missing.items()}
            jobs.append({kind: rows for kind, rows in job.items() if len(rows)})
        return jobs

    def _work_off(self, jobs: list[Job], *, wait: float, show: Callable[[int], None]) -> Iterator[int]:
        """Compute and write the jobs that can be claimed; yields the number of rows of each.

        show: called with the number of rows of each part that was computed. A job of a slow network takes minutes.

        One stream decodes for all jobs, and a job is copied back and written while the next one is computed.
        """
        claims: deque[tuple[Job, contextlib.ExitStack]] = deque()

        def batches() -> Iterator[np.ndarray]:
            for job in jobs:
                claim = contextlib.ExitStack()
                if not claim.enter_context(claimed(self._lock_path(job), wait=wait)) or self._written(job):
                    claim.close()
                    continue
                claims.append((job, claim))
                yield from _cut(self._by_hash(*job.values()), BATCH_ROWS)

        with disk_errors(self.folder, self._bytes(jobs)):
            decoded, pending = self.frozen.images.decoded(batches()), None
            try:
                for first in decoded:
                    job = claims[0][0]
                    rows = self._by_hash(*job.values())
                    images = torch.cat([first, *itertools.islice(decoded, -(-len(rows) // BATCH_ROWS) - 1)])
                    computed = {kind: self._compute(kind, some, rows, images, show) for kind, some in job.items()}
                    if pending is not None:
                        yield self._write(*pending)
                    pending = (*claims.popleft(), computed)
                if pending is not None:
                    yield self._write(*pending)
            finally:
                for _, claim in claims if pending is None else [*claims, pending[:2]]:
                    claim.close()

    def _compute(
        self, kind: Kind, wanted: np.ndarray, rows: np.ndarray, images: Tensor, show: Callable[[int], None]
    ) -> Tensor:
        """Features [n, D] on the device of the wanted rows, whose decoded images lie at the places of `rows`."""
        view, draw = kind
        parts = []
        for part in _cut(wanted, BATCH_ROWS):
            places = np.searchsorted(self.hashes[rows], self.hashes[part])
            pixels = images[torch.from_numpy(places).to(images.device)]
            request = ImageRequest(part, np.full(len(part), draw), view)
            parts.append(self.frozen.features(self.frozen.images.view(pixels, request)))
            show(len(part))
        return torch.cat(parts)

    def _write(self, job: Job, claim: contextlib.ExitStack, computed: dict[Kind, Tensor]) -> int:
        limits = np.finfo(self.dtype)
        with claim:
            for kind, rows in job.items():
                features = computed[kind].cpu().numpy().clip(limits.min, limits.max).astype(self.dtype)
                write_block(self._block_path(kind, rows), self.hashes[rows], features)
        return sum(len(rows) for rows in job.values())

    def _by_hash(self, *rows: np.ndarray) -> np.ndarray:
        """All these rows, each once, by their content: blocks must not depend on an image's place in a data set."""
        union = np.unique(np.concatenate(rows))
        return union[np.argsort(self.hashes[union], kind="stable")]

    def _written(self, job: Job) -> bool:
        return all(self._block_path(kind, rows).exists() for kind, rows in job.items())

    def _block_path(self, kind: Kind, rows: np.ndarray) -> Path:
        return self.folder / f"{kind[0]}-{kind[1]:03d}" / f"{_name(self.hashes[rows])}.block"

    def _lock_path(self, job: Job) -> Path:
        return self.folder / f"{_name(self.hashes[self._by_hash(*job.values())])}.lock"

    def _bytes(self, jobs: list[Job]) -> int:
        rows = sum(len(rows) for job in jobs for rows in job.values())
        return rows * (self.width * self.dtype.itemsize + 8)


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _name(hashes: np.ndarray) -> str:
    return hashlib.blake2b(hashes.tobytes(), digest_size=10).hexdigest()


class Table:
    """One view and draw: where each image's row lies, and the rows themselves, in memory when they fit."""

    def __init__(self, bank: FeatureBank, kind: Kind) -> None:
        self.bank = bank
        self.folder = bank.folder / f"{kind[0]}-{kind[1]:03d}"
        self.order = np.argsort(bank.hashes, kind="stable")
        self.known: dict[str, int] = {}
        self.blocks: list[Path] = []
        self.block = np.full(len(bank.hashes), -1, dtype=np.int32)
        self.place = np.zeros(len(bank.hashes), dtype=np.int32)
        self.resident: Tensor | None = None
        remove_parts(self.folder)
        self.reload()

    def has(self, rows: np.ndarray) -> np.ndarray:
        """Which of the rows are there: bool [n]."""
        return self.block[rows] >= 0

    def reload(self) -> None:
        """Take in the blocks that have come since; a damaged one is removed, to be computed again."""
        for path in sorted(self.folder.glob(BLOCKS)):
            if path.name in self.known:
                continue
            opened = read_block(path, self.bank.width, self.bank.dtype)
            if opened is None:
                warn(f"a block of the feature bank is damaged and is computed again: {path}")
                path.unlink(missing_ok=True)
                continue
            self._take_in(opened[0], len(self.blocks))
            self.known[path.name] = len(self.blocks)
            self.blocks.append(path)
            self.resident = None

    def _take_in(self, hashes: np.ndarray, number: int) -> None:
        """Note where the block's images lie among the data set's; images of other data sets are passed over."""
        mine = self.bank.hashes[self.order]
        at = np.searchsorted(mine, hashes).clip(max=len(mine) - 1)
        found = np.flatnonzero(mine[at] == hashes)
        rows = self.order[at[found]]
        self.block[rows], self.place[rows] = number, found

    def rows(self, rows: np.ndarray) -> Tensor:
        """float32 [n, D] on the device. Raises KeyError for a row that was never filled."""
        if not self.has(rows).all():
            raise KeyError(f"{int((~self.has(rows)).sum())} rows are not in {self.folder}; fill them first")
        if self.resident is None and self._fits():
            self.resident = self._gather(np.arange(len(self.bank.hashes))).to(self.bank.device)
        if self.resident is not None:
            return self.resident.index_select(0, to_device(rows, self.bank.device)).float()
        return self._gather(rows).to(self.bank.device).float()

    def _fits(self) -> bool:
        size = len(self.bank.hashes) * self.bank.width * self.bank.dtype.itemsize
        return size < IN_MEMORY_SHARE * free_memory(self.bank.device)

    def _gather(self, rows: np.ndarray) -> Tensor:
        """Rows from the blocks, block by block; a row that is not there is zero.

        Read, not mapped: a random batch of a large set has a row or two of each of thousands of blocks, and to map a
        file costs more than to read them; and what is mapped counts as this process's memory.
        """
        result = np.zeros((len(rows), self.bank.width), dtype=self.bank.dtype)
        blocks = self.block[rows]
        order = np.argsort(blocks, kind="stable")
        numbers, starts = np.unique(blocks[order], return_index=True)
        for number, group in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            if number >= 0:
                self._read(self.blocks[number], self.place[rows[group]], group, result)
        return torch.from_numpy(result)

    def _read(self, block: Path, places: np.ndarray, into: np.ndarray, result: np.ndarray) -> None:
        """The block's rows at `places` into the rows `into` of the result."""
        with block.open("rb", buffering=0) as file:
            count = HEADER.unpack(file.read(HEADER.size))[1]
            first, size = HEADER.size + 8 * count, result.itemsize * result.shape[1]
            for place, row in zip(places.tolist(), into.tolist(), strict=True):
                file.seek(first + place * size)
                file.readinto(result[row].data)


def bank_identity(frozen: FrozenSource, dtype: str) -> dict[str, Any]:
    """All that a row depends on beside the image's content, the view and the draw."""
    backbone = frozen.backbone
    return {
        "backbone": backbone.name,
        "weights": state_digest(backbone),
        "transform": dataclasses.asdict(backbone.transform),
        "recipe": dataclasses.asdict(frozen.images.recipe),
        "precision": str(frozen.precision),
        "device": frozen.images.device.type,
        "dtype": dtype,
        "version": 1,
    } | ({"ranges": ranges} if (ranges := frozen.images.dataset.ranges) else {})
