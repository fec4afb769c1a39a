"""What a learner sees at a step: which images, in which view, as pixels or as a frozen backbone's features.

`Order` says which rows, and is a function of the seed and the step alone. A source turns rows into tensors on the
device: `ImageSource` by decoding and augmenting, `FrozenSource` by a pass through the backbone after that; the feature
bank (features.py) is the third. `Batches` joins both, so that `fit` asks for `batches(step)` and knows of neither.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..data import Dataset, image_batches
from ..features.neighbours import blend
from ..images.augment import Recipe, augment
from ..images.decode import Transform
from ..models import Backbone, feature_norm
from ..utils import generator, to_device

EVALUATION_BATCH = 64
# A backbone's last bits depend on the shape of the batch: frozen features are computed in batches of this one shape.
BATCH_ROWS = 32


class Ask(NamedTuple):
    """Images wanted in one view: row numbers [n], the draw of the augmentation of each [n], and the view's name."""

    rows: np.ndarray
    draws: np.ndarray
    view: str


class Source(Protocol):
    """Where a learner's inputs come from."""

    def stream(self, asks: Callable[[int], Sequence[Ask]], start: int) -> Iterator[list[Tensor]]:
        """For each step from `start` on, one tensor an ask, in its order, on the device."""
        ...

    def inputs(self, rows: np.ndarray, view: str = "eval", draw: int = 0) -> Iterator[Tensor]:
        """The rows' unaugmented inputs, or a draw of another view, in batches, on the device."""
        ...


@dataclass
class Batch:
    """What one step sees. x are images [B, 3, S, S] in [0, 1], points [B, 2] or features [B, D], on the device.

    weak may be blended with neighbours (neighbours.py). hidden: classes [B] of the unlabeled images where the data set
    knows them, else -1, as of those that are labeled too; measured, never learned.
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


@dataclass(frozen=True)
class Order:
    """Which rows a step sees: a pure function of (seed, step), so that a resumed run sees what it would have seen.

    labeled, unlabeled: row numbers (no unlabeled ones in supervised learning); draws: how many draws of what is
    learned, labeled images and strong views, there are before they come round again (None: a fresh one every time, for
    a network that learns whole). Weak views that only give targets need fewer (benchmarks/RESULTS.md).
    """

    labeled: np.ndarray
    unlabeled: np.ndarray | None
    batch_size: int
    unlabeled_batch_size: int
    seed: int
    draws: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over the unlabeled pool; over the labeled images where there is no pool."""
        rows, size = self.labeled, self.batch_size
        if self.unlabeled is not None:
            rows, size = self.unlabeled, self.unlabeled_batch_size
        return -(-len(rows) // min(size, len(rows)))

    @property
    def weak_draws(self) -> int | None:
        """How many draws of the unlabeled images' weak view there are."""
        return None if self.draws is None else max(1, self.draws // 4)

    def asks(self, step: int) -> list[Ask]:
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
        return [labeled, Ask(rows, np.full(size, weak), "weak"), Ask(rows, np.full(size, strong), "strong")]

    def _labeled(self, step: int) -> Ask:
        """The labeled images go round and round, in a new order each time."""
        count = len(self.labeled)
        size = min(self.batch_size, count)
        places = np.arange(step * size, (step + 1) * size)
        rounds = places // count
        first, last = int(rounds[0]), int(rounds[-1])
        orders = [_permutation(count, self.seed, "labeled", r) for r in range(first, last + 1)]
        rows = self.labeled[np.concatenate(orders)[places - first * count]]
        return Ask(rows, rounds if self.draws is None else rounds % self.draws, "weak")

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


def as_heads_see(source: Source, rows: np.ndarray, view: str, draw: int = 0) -> Tensor:
    """float32 [n, D] on the CPU: frozen features of the rows, at a root mean square of 1; [0, 0] of no rows."""
    parts = [feature_norm(part.shape[1])(part.float()).cpu() for part in source.inputs(rows, view, draw)]
    return torch.cat(parts) if parts else torch.zeros(0, 0)


class ImageSource:
    """Images, decoded by workers and augmented on the device."""

    def __init__(
        self, dataset: Dataset, transform: Transform, recipe: Recipe, device: torch.device, *, workers: int
    ) -> None:
        self.dataset, self.transform, self.recipe = dataset, transform, recipe
        self.device, self.workers = device, workers

    def decoded(self, row_batches: Iterator[np.ndarray]) -> Iterator[Tensor]:
        """uint8 [n, 3, S, S] (points: float [n, 2]) on the device, a batch for each batch of rows."""
        pin = self.device.type == "cuda"
        for images in image_batches(self.dataset, self.transform, row_batches, workers=self.workers, pin=pin):
            yield images.to(self.device, non_blocking=pin)

    def view(self, images: Tensor, ask: Ask) -> Tensor:
        """One view of decoded images: float32 in [0, 1], channels last."""
        pixels = augment(images, self.dataset.hashes[ask.rows], ask.draws, ask.view, self.recipe)
        return pixels if pixels.ndim == 2 else pixels.contiguous(memory_format=torch.channels_last)

    def stream(self, asks: Callable[[int], Sequence[Ask]], start: int) -> Iterator[list[Tensor]]:
        """See `Source`; an image that several asks of a step name is decoded once."""
        wanted = (_unique_rows(asks(step)) for step in itertools.count(start))
        for step, images in zip(itertools.count(start), self.decoded(wanted), strict=False):
            now = asks(step)
            rows = _unique_rows(now)
            places = [to_device(np.searchsorted(rows, ask.rows), self.device) for ask in now]
            yield [self.view(images[place], ask) for place, ask in zip(places, now, strict=True)]

    def inputs(self, rows: np.ndarray, view: str = "eval", draw: int = 0) -> Iterator[Tensor]:
        """See `Source`."""
        batches = [rows[i : i + EVALUATION_BATCH] for i in range(0, len(rows), EVALUATION_BATCH)]
        for batch, images in zip(batches, self.decoded(iter(batches)), strict=True):
            yield self.view(images, Ask(batch, np.full(len(batch), draw), view))


def _unique_rows(asks: Sequence[Ask]) -> np.ndarray:
    return np.unique(np.concatenate([ask.rows for ask in asks]))


class FrozenSource:
    """A frozen backbone's features, computed afresh: all views of a step in ONE pass, shared by all learners."""

    def __init__(self, images: ImageSource, backbone: Backbone, precision: torch.dtype = torch.float32) -> None:
        self.images, self.backbone, self.precision = images, backbone, precision

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """float32 [N, D] of images [N, 3, S, S]; the backbone in eval mode, without a graph.

        A row does not depend on the images beside it, nor on how many there are.
        """
        self.backbone.eval()
        with torch.autocast(pixels.device.type, self.precision, enabled=self.precision != torch.float32):
            parts = [self.backbone(_filled_up(part)).float()[: len(part)] for part in pixels.split(BATCH_ROWS)]
        return torch.cat(parts)

    def stream(self, asks: Callable[[int], Sequence[Ask]], start: int) -> Iterator[list[Tensor]]:
        """See `Source`."""
        for views in self.images.stream(asks, start):
            yield list(self.features(torch.cat(views)).split([len(view) for view in views]))

    def inputs(self, rows: np.ndarray, view: str = "eval", draw: int = 0) -> Iterator[Tensor]:
        """See `Source`."""
        for pixels in self.images.inputs(rows, view, draw):
            yield self.features(pixels)


def _filled_up(pixels: Tensor) -> Tensor:
    """A short last batch, filled with repetitions of its first image."""
    if len(pixels) == BATCH_ROWS:
        return pixels
    full = torch.cat([pixels, pixels[:1].expand(BATCH_ROWS - len(pixels), *pixels.shape[1:])])
    return full if full.ndim == 2 else full.contiguous(memory_format=torch.channels_last)


class Batches:
    """`batches(step)`: any step may be asked for; steps in sequence are read ahead.

    near: rows [N, count] of each row's neighbours, with whose features the weak ones are blended (neighbours.py).
    """

    def __init__(
        self,
        order: Order,
        source: Source,
        labels: np.ndarray,
        device: torch.device,
        near: np.ndarray | None = None,
    ) -> None:
        self.order, self.source = order, source
        # The stream asks, and then we for the labels. No method of ours: in a circle of references the stream, and the
        # processes that decode for it, would outlive us.
        self.asks = functools.lru_cache(maxsize=4)(functools.partial(_with_neighbours, order, near))
        self.labels = torch.from_numpy(labels).to(device)
        hidden = labels.copy()
        hidden[order.labeled] = -1  # what is learned is not hidden, though it may be among the unlabeled ones too
        self.knows_hidden = order.unlabeled is not None and bool((hidden[order.unlabeled] >= 0).any())
        self.hidden = torch.from_numpy(hidden).to(device)
        self._next, self._stream = -1, iter(())  # type: tuple[int, Iterator[list[Tensor]]]

    def __call__(self, step: int) -> Batch:
        if step != self._next:
            self._stream = self.source.stream(self.asks, step)
        self._next = step + 1
        tensors, asks = next(self._stream), self.asks(step)
        labels = self.labels[to_device(asks[0].rows, self.labels.device)]
        if self.order.unlabeled is None:
            return Batch(tensors[0], labels)
        hidden = self.hidden[to_device(asks[1].rows, self.labels.device)] if self.knows_hidden else None
        labeled, weak, strong, *around = tensors
        return Batch(labeled, labels, blend(weak, around[0]) if around else weak, strong, hidden)


def _with_neighbours(order: Order, near: np.ndarray | None, step: int) -> list[Ask]:
    """What the order asks for, and the neighbours of the weak images in the same draw."""
    asks = order.asks(step)
    if near is None:
        return asks
    weak = asks[1]
    return [*asks, Ask(near[weak.rows].ravel(), weak.draws.repeat(near.shape[1]), weak.view)]
