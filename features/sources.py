"""Where the inputs of a learner come from: images, or a frozen backbone's features of them.

`ImageSource` decodes and augments, `FrozenSource` passes what comes out through the backbone; the feature bank
(features/bank.py) is the third.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..backbones.backbone import Backbone
from ..data import Dataset
from ..images.augment import Recipe, augment, recipe_for
from ..images.decode import Transform
from ..models import feature_norm
from ..utils import to_device
from .loader import image_batches

EVALUATION_BATCH = 64
# A backbone's last bits depend on the shape of the batch: frozen features are computed in batches of this one shape.
BATCH_ROWS = 32


class ImageRequest(NamedTuple):
    """Images wanted in one view: row numbers [n], the draw of the augmentation of each [n], and the view's name."""

    rows: np.ndarray
    draws: np.ndarray
    view: str


class Source(Protocol):
    """Where a learner's inputs come from."""

    def stream(self, requests: Callable[[int], Sequence[ImageRequest]], start: int) -> Iterator[list[Tensor]]:
        """For each step from `start` on, a tensor for each request, in its order, on the device.

        float32: images [n, 3, S, S] in [0, 1], points [n, 2], or features [n, D].
        """
        ...

    def inputs(self, rows: np.ndarray, view: str = "eval", draw: int = 0) -> Iterator[Tensor]:
        """The rows' unaugmented inputs, or a draw of another view, in batches, on the device; shapes as in `stream`."""
        ...


def normalized_features(source: Source, rows: np.ndarray, view: str, draw: int = 0) -> Tensor:
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

    def view(self, images: Tensor, request: ImageRequest) -> Tensor:
        """One view of decoded images: float32 in [0, 1], channels last."""
        return _channels_last(
            augment(images, self.dataset.hashes[request.rows], request.draws, request.view, self.recipe)
        )

    def stream(self, requests: Callable[[int], Sequence[ImageRequest]], start: int) -> Iterator[list[Tensor]]:
        """See `Source`; an image that several requests of a step name is decoded once."""
        wanted = (_unique_rows(requests(step)) for step in itertools.count(start))
        for step, images in zip(itertools.count(start), self.decoded(wanted), strict=False):
            now = requests(step)
            rows = _unique_rows(now)
            places = [to_device(np.searchsorted(rows, request.rows), self.device) for request in now]
            yield [self.view(images[place], request) for place, request in zip(places, now, strict=True)]

    def inputs(self, rows: np.ndarray, view: str = "eval", draw: int = 0) -> Iterator[Tensor]:
        """See `Source`."""
        batches = [rows[i : i + EVALUATION_BATCH] for i in range(0, len(rows), EVALUATION_BATCH)]
        for batch, images in zip(batches, self.decoded(iter(batches)), strict=True):
            yield self.view(images, ImageRequest(batch, np.full(len(batch), draw), view))


def _unique_rows(requests: Sequence[ImageRequest]) -> np.ndarray:
    return np.unique(np.concatenate([request.rows for request in requests]))


@torch.no_grad()
def frozen_features(backbone: Backbone, pixels: Tensor, precision: torch.dtype) -> Tensor:
    """float32 [N, D] of images [N, 3, S, S] in [0, 1]; the backbone in eval mode, without a graph.

    A row does not depend on the images beside it, nor on how many there are.
    """
    backbone.eval()
    with torch.autocast(pixels.device.type, precision, enabled=precision != torch.float32):
        parts = [backbone(_filled_up(part)).float()[: len(part)] for part in pixels.split(BATCH_ROWS)]
    return torch.cat(parts)


class FrozenSource:
    """A frozen backbone's features, computed afresh: all views of a step in ONE pass, shared by all learners."""

    def __init__(self, images: ImageSource, backbone: Backbone, precision: torch.dtype = torch.float32) -> None:
        self.images, self.backbone, self.precision = images, backbone, precision

    def features(self, pixels: Tensor) -> Tensor:
        """float32 [N, D] of images [N, 3, S, S]; see `frozen_features`."""
        return frozen_features(self.backbone, pixels, self.precision)

    def stream(self, requests: Callable[[int], Sequence[ImageRequest]], start: int) -> Iterator[list[Tensor]]:
        """See `Source`."""
        for views in self.images.stream(requests, start):
            yield list(self.features(torch.cat(views)).split([len(view) for view in views]))

    def inputs(self, rows: np.ndarray, view: str = "eval", draw: int = 0) -> Iterator[Tensor]:
        """See `Source`."""
        for pixels in self.images.inputs(rows, view, draw):
            yield self.features(pixels)


def evaluation_pixels(images: Tensor) -> Tensor:
    """float32 [N, 3, S, S] in [0, 1] of decoded images uint8 [N, 3, S, S], as a network sees them in an evaluation."""
    nobody = np.zeros(0)  # only what is drawn depends on which images these are
    return _channels_last(augment(images, nobody, nobody, "eval", recipe_for("photos", None)))


def _channels_last(pixels: Tensor) -> Tensor:
    """Images in the memory format that convolutions are fast in; points [N, 2] as they are."""
    return pixels if pixels.ndim == 2 else pixels.contiguous(memory_format=torch.channels_last)


def _filled_up(pixels: Tensor) -> Tensor:
    """A short last batch, filled with repetitions of its first image."""
    if len(pixels) == BATCH_ROWS:
        return pixels
    full = torch.cat([pixels, pixels[:1].expand(BATCH_ROWS - len(pixels), *pixels.shape[1:])])
    return _channels_last(full)
