"""What a learner sees at a step: which images, in which view, as pixels or as a frozen backbone's features.

`BatchSampler` says which rows, a function of the seed and the step alone. A source (features/sources.py) turns rows
into tensors on the device. `Batches` joins both, so that `fit` asks for `batches(step)` and knows of neither.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..features.sources import ImageRequest, Source
from ..utils import generator, to_device


@dataclass
class Batch:
    """What one step sees. x are images [B, 3, S, S] in [0, 1], points [B, 2] or features [B, D], on the device.

    hidden: classes [B] of the unlabeled images where the data set knows them, else -1, as of those that are labeled
    too; measured, never learned.
    """

    labeled: Tensor
    labels: Tensor
    weak: Tensor | None = None
    strong: Tensor | None = None
    hidden: Tensor | None = None

    def parts(self, count: int) -> list[tuple[Batch, float, float]]:
        """`count` micro-batches (fewer for small batches), each with its share of labeled and of unlabeled images."""
        count = min(count, len(self.labeled), len(self.labeled if self.strong is None else self.strong))
        if count == 1:
            return [(self, 1.0, 1.0)]
        columns = [
            itertools.repeat(None, count) if x is None else torch.tensor_split(x, count)
            for x in (self.labeled, self.labels, self.weak, self.strong, self.hidden)
        ]
        rows = [Batch(*row) for row in zip(*columns, strict=True)]
        return [(row, _share(row.labeled, self.labeled), _share(row.strong, self.strong)) for row in rows]


def _share(part: Tensor | None, whole: Tensor | None) -> float:
    return 0.0 if part is None or whole is None else len(part) / len(whole)


def weak_draws(draws: int) -> int:
    """How many draws of the unlabeled images' weak view there are: it only gives targets, so fewer do."""
    return max(1, draws // 4)


@dataclass(frozen=True)
class BatchSampler:
    """Which rows a step sees: a pure function of (seed, step), so that a resumed run sees what it would have seen.

    labeled, unlabeled: row numbers (no unlabeled ones in supervised learning); draws: how many draws of what is
    learned, labeled images and strong views, there are before they come round again (None: a fresh one every time, for
    a network that learns whole). Weak views that only give targets need fewer (docs/results.md).
    """

    labeled: np.ndarray
    unlabeled: np.ndarray | None
    batch_size: int
    unlabeled_batch_size: int
    seed: int
    draws: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over the unlabeled images; over the labeled ones where there are none."""
        rows, size = self.labeled, self.batch_size
        if self.unlabeled is not None:
            rows, size = self.unlabeled, self.unlabeled_batch_size
        return -(-len(rows) // min(size, len(rows)))

    @property
    def weak_draws(self) -> int | None:
        """How many draws of the unlabeled images' weak view there are."""
        return None if self.draws is None else weak_draws(self.draws)

    def requests(self, step: int) -> list[ImageRequest]:
        """[labeled weak] or [labeled weak, unlabeled weak, unlabeled strong]; the last two name the same rows."""
        labeled = self._labeled(step)
        if self.unlabeled is None:
            return [labeled]
        epoch, index = divmod(step, self.steps_per_epoch)
        size = min(self.unlabeled_batch_size, len(self.unlabeled))
        # The last batch of an epoch is filled up from its beginning: each image at least once, one shape for all.
        places = np.arange(index * size, (index + 1) * size) % len(self.unlabeled)
        rows = self.unlabeled[_permutation(len(self.unlabeled), self.seed, "unlabeled", epoch)[places]]
        weak, strong = (epoch if draws is None else epoch % draws for draws in (self.weak_draws, self.draws))
        return [
            labeled,
            ImageRequest(rows, np.full(size, weak), "weak"),
            ImageRequest(rows, np.full(size, strong), "strong"),
        ]

    def _labeled(self, step: int) -> ImageRequest:
        """The labeled images go round and round, in a new order each time."""
        count = len(self.labeled)
        size = min(self.batch_size, count)
        places = np.arange(step * size, (step + 1) * size)
        rounds = places // count
        first, last = int(rounds[0]), int(rounds[-1])
        orders = [_permutation(count, self.seed, "labeled", r) for r in range(first, last + 1)]
        rows = self.labeled[np.concatenate(orders)[places - first * count]]
        return ImageRequest(rows, rounds if self.draws is None else rounds % self.draws, "weak")

    def wanted(self, steps: int) -> dict[tuple[str, int], np.ndarray]:
        """Which rows of which (view, draw) the first `steps` steps ask for; only where draws come round again."""
        assert self.draws is not None
        rounds = -(-steps * min(self.batch_size, len(self.labeled)) // len(self.labeled))
        wanted = {("weak", draw): self.labeled for draw in range(min(self.draws, rounds))}
        if self.unlabeled is None:
            return wanted
        assert self.weak_draws is not None
        epochs = -(-steps // self.steps_per_epoch)
        wanted |= {("strong", draw): self.unlabeled for draw in range(min(self.draws, epochs))}
        for draw in range(min(self.weak_draws, epochs)):
            weak = wanted.get(("weak", draw), self.unlabeled)
            wanted["weak", draw] = np.union1d(weak, self.unlabeled)
        return wanted


@functools.lru_cache(maxsize=8)
def _permutation(count: int, *parts: object) -> np.ndarray:
    """The order of one round; the last few are kept, since every step of a round asks for it."""
    return generator(*parts).permutation(count)


class Batches:
    """`batches(step)`: any step may be asked for; steps in sequence are read ahead."""

    def __init__(self, sampler: BatchSampler, source: Source, labels: np.ndarray, device: torch.device) -> None:
        self.sampler, self.source = sampler, source
        # The stream asks, and then we for the labels. Not a bound method: that would be a circle of references, in
        # which the stream and the processes that decode for it would outlive us.
        self.requests = functools.lru_cache(maxsize=4)(sampler.requests)
        self.labels = torch.from_numpy(labels).to(device)
        hidden = labels.copy()
        hidden[sampler.labeled] = -1  # what is learned is not hidden, though it may be among the unlabeled ones too
        self.knows_hidden = sampler.unlabeled is not None and bool((hidden[sampler.unlabeled] >= 0).any())
        self.hidden = torch.from_numpy(hidden).to(device)
        self._next = -1
        self._stream: Iterator[list[Tensor]] = iter(())

    def __call__(self, step: int) -> Batch:
        if step != self._next:
            self._stream = self.source.stream(self.requests, step)
        self._next = step + 1
        tensors, requests = next(self._stream), self.requests(step)
        labels = self.labels[to_device(requests[0].rows, self.labels.device)]
        if self.sampler.unlabeled is None:
            return Batch(tensors[0], labels)
        hidden = self.hidden[to_device(requests[1].rows, self.labels.device)] if self.knows_hidden else None
        labeled, weak, strong = tensors
        return Batch(labeled, labels, weak, strong, hidden)
