"""Decoded images in batches of rows, by worker processes where images are files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import Dataset
from ..images.decode import Transform
from ..utils import UserError

if TYPE_CHECKING:
    import torch

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
    loader = torch.utils.data.DataLoader(
        reader, None, sampler=row_batches, num_workers=workers, pin_memory=pin, generator=torch.Generator()
    )
    try:
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        hint = "the memory may be too small: use --num_workers 0"
        raise UserError(f"a process that loads images was ended by the system; {hint}") from error


class _Reader:
    """A batch by its rows, for torch's DataLoader. An error is returned: raised there, it would become a traceback."""

    def __init__(self, dataset: Dataset, transform: Transform) -> None:
        self.dataset, self.transform = dataset, transform

    def __getitem__(self, rows: np.ndarray) -> torch.Tensor | UserError:
        import torch

        try:
            return torch.stack([self.dataset.read(row, self.transform) for row in rows])
        except UserError as error:
            return type(error)(str(error))


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
