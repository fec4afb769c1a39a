"""Two views that need no weights: raw pixels, and histograms of gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..images.decode import Transform
from .backbone import Built

LARGEST_SIDE = {"pixels": 32, "gradients": 64}  # pixels, where the user names no size
ORIENTATIONS = 8  # of the whole circle: dark on bright is not bright on dark
CELL = 4  # pixels of the smallest cell's side
CELLS = 8  # at most, along a side
CLIPPED = 0.2  # the largest part of a block that one edge may have (Dalal & Triggs 2005)


def default_side(name: str, native_size: int) -> int:
    """The data's own side in pixels; at least 16, so that crops and shifts have room, and at most the view's largest.

    native_size: 0 where the images have many sizes.
    """
    largest = LARGEST_SIDE[name]
    return min(max(native_size, 16), largest) if native_size else largest


def pixels(size: int) -> Built:
    """Raw pixels, flattened: images [N, 3, S, S] to features [N, 3 S S]."""
    return Built(nn.Flatten(), Transform(size, size, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))


def gradients(size: int) -> Built:
    """Histograms of gradient orientation: 288 features of 16 px, 1,568 of 32 px and more."""
    return Built(Gradients(), Transform(size, size, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))


class Gradients(nn.Module):
    """Histograms of gradient orientation (Dalal & Triggs 2005): images [N, 3, S, S] to features [N, D].

    Each pixel gives its gradient's length to the two nearest of 8 orientations; cells are averaged, and blocks of 2 x 2
    cells are brought to length 1, clipped and brought to length 1 again. Of the three colours the steepest counts.
    """

    def forward(self, images: Tensor) -> Tensor:
        padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
        across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
        down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
        length = (across.square() + down.square()).sqrt()
        length, steepest = length.max(dim=1, keepdim=True)
        across, down = across.gather(1, steepest), down.gather(1, steepest)
        turn = torch.atan2(down, across) * (ORIENTATIONS / (2 * math.pi)) % ORIENTATIONS
        names = torch.arange(ORIENTATIONS, device=images.device, dtype=images.dtype).view(1, -1, 1, 1)
        apart = (turn - names).abs()
        share = (1 - torch.minimum(apart, ORIENTATIONS - apart)).clamp(min=0)
        count = max(1, min(CELLS, images.shape[-1] // CELL))
        cells = F.adaptive_avg_pool2d(length * share, count)
        blocks = F.unfold(cells, min(2, count))
        return _unit(_unit(blocks).clamp(max=CLIPPED)).flatten(1)


def _unit(blocks: Tensor) -> Tensor:
    """Each block [N, D, blocks] at length 1; one without edges stays near 0."""
    return blocks / (blocks.square().sum(dim=1, keepdim=True) + 1e-4).sqrt()
