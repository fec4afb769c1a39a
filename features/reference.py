"""How far an image is from those that a run has learned from: is it of a kind that the run has never seen?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .nearest import nearest

MOST = 2_000  # images, a few megabytes of a checkpoint


@dataclass(frozen=True)
class Reference:
    """features: float16 [M, D] of the images, each of length 1; distances: float32 [M], ascending, of each of them to
    the nearest other (1 - cosine)."""

    features: Tensor
    distances: Tensor

    def farther_than(self, features: Tensor) -> np.ndarray:
        """For each image with these features [N, D] the share of the reference images that it is farther from the
        others than: float32 [N], 0 in their midst, 1 farther than all.
        """
        similarity = nearest(features.cpu(), 1, among=self.features).similarity[:, 0]
        beyond = np.searchsorted(self.distances.numpy(), (1 - similarity).astype(np.float32), side="left")
        return (beyond / len(self.distances)).astype(np.float32)


def reference_of(features: Tensor) -> Reference | None:
    """The reference that images with these features [M, D] make; None of fewer than two."""
    if len(features) < 2:
        return None
    kept = functional.normalize(features.float().cpu(), dim=1).half()
    similarity = nearest(kept, 1).similarity[:, 0]  # of what is kept, as new images will be compared with it
    return Reference(kept, torch.from_numpy(np.sort(1 - similarity)))
