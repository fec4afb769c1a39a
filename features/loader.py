"""Decoded images in batches of rows, by worker processes where images are files."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import Dataset
from ..images.decode import Transform
from ..utils import UserError

if TYPE_CHECKING:
    import torch

WORKER_SECONDS = 300.0  # without a batch, after which the processes that decode are given up
_CACHE_BYTES = 1 << 30  # arrays that are larger than this after resizing are resized batch by batch instead of once


def image_batches(
    dataset: Dataset, transform: Transform, row_batches: Iterable[np.ndarray], *, workers: int, pin: bool
) -> Iterator[torch.Tensor]:
    """Yield uint8 [n, 3, size, size] (points: float32 [n, 2]) for each batch of row numbers, in their order.

    `row_batches` may be endless. Workers change the speed, never the result. Raises ImagesChanged, naming the
    file, when one is not what was scanned.
    """
    import torch

    if dataset.array is not None:
        yield from _array_batches(dataset, transform, row_batches, pin)
        return
    reader: Any = _Reader(dataset, transform)
    # With a generator of its own the loader leaves the global random state alone.
    # Arrays are sent through pipes. Tensors would go through shared memory, of which a container has 64 MB by default.
    loader: Any = torch.utils.data.DataLoader(
        reader,
        None,
        sampler=row_batches,
        num_workers=workers,
        collate_fn=_as_it_is,
        timeout=WORKER_SECONDS if workers else 0,
        generator=torch.Generator(),
        worker_init_fn=_end_quietly,
    )
    try:
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            images = torch.from_numpy(batch)
            yield images.pin_memory() if pin and torch.accelerator.is_available() else images
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        hint = "use fewer: --num_workers 0; the memory may be too small, or the disk does not answer"
        raise UserError(f"the processes that load images were ended or gave no answer; {hint}") from error


class _Reader:
    """A batch by its rows, for torch's DataLoader. An error is returned: raised there, it would become a traceback."""

    def __init__(self, dataset: Dataset, transform: Transform) -> None:
        self.dataset, self.transform = dataset, transform

    def __getitem__(self, rows: np.ndarray) -> np.ndarray | UserError:
        try:
            return np.stack([self.dataset.read(row, self.transform).numpy() for row in rows])
        except UserError as error:
            return type(error)(str(error))


def _end_quietly(_: int) -> None:
    """A worker that is ended with its parent, as `timeout` and schedulers end a whole group, is no fault of its own."""
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))


def _as_it_is(batch: Any) -> Any:
    return batch


def _array_batches(
    dataset: Dataset, transform: Transform, row_batches: Iterable[np.ndarray], pin: bool
) -> Iterator[torch.Tensor]:
    import torch

    if transform not in dataset.resized and len(dataset) * 3 * transform.size**2 <= _CACHE_BYTES:
        dataset.resized[transform] = torch.stack([dataset.read(row, transform) for row in range(len(dataset))])
    whole = dataset.resized.get(transform)
    for rows in row_batches:
        if whole is None:
            batch = torch.stack([dataset.read(row, transform) for row in rows])
        else:
            batch = whole[torch.from_numpy(np.asarray(rows, dtype=np.int64))]
        yield batch.pin_memory() if pin and torch.accelerator.is_available() else batch
