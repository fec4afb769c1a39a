"""Which unlabeled images are similar, so that a teacher's target for an image may rest on its neighbourhood as well.

A teacher of few labels errs mostly alone: averaged over an image's nearest neighbours in a frozen backbone's features,
its predictions are right more often than the one for the image itself (Li, Xiong and Hoi 2021, CoMatch, average
probabilities so). Here features are averaged, before a head gets them: a weak view gives its target from the middle
between its own features and the mean of its neighbours', which a head brings to its usual size again: neighbours that
differ in direction hardly make it less sure. What is learned, tested and used stays a plain head, which knows of no
neighbour; but with `--pseudo_label_view weak` it is the blend that is judged and gets a label.

It gains where neighbours mostly share a class, and loses where they don't: where a class has not many more images than
neighbours are asked for, and with some backbones (docs/results.md). Hence it is off unless asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .nearest import nearest

PART = 4096  # images among which the nearest are searched: all pairs of a large unlabeled set are too many
OWN = 0.5  # what an image's own features weigh in the blend


def nearest_images(features: Callable[[np.ndarray], Tensor], rows: np.ndarray, count: int) -> np.ndarray:
    """The rows [n, count] whose features have the largest cosine with those of each of the rows [n], nearest first.

    features: [m, D] of m rows. More than PART rows are cut into equal parts, as they come, and the nearest are those of
    the own part. `count` becomes less where there are not so many others; there must be two rows.
    """
    parts = np.array_split(np.arange(len(rows)), max(1, -(-len(rows) // PART)))
    count = min(count, min(map(len, parts)) - 1)
    found = np.empty((len(rows), count), dtype=rows.dtype)
    for part in parts:
        # One block a part: what a training depends on must not change in the last bit with the size of a block.
        found[part] = rows[part][nearest(features(rows[part]), count, block=PART).rows]
    return found


def blend(own: Tensor, around: Tensor) -> Tensor:
    """[B, D]: features [B, D] on their way to the mean of their neighbours' [B * count, D], image by image.

    Each is first brought to the root mean square of 1 at which heads see it, so that none weighs more than another.
    """
    images, width = own.shape
    # Weighed in one product, several times as fast as norm and mean: this is done at every step.
    weights = _to_size_one(around).view(images, 1, -1)
    mean = torch.bmm(weights / weights.shape[2], around.view(images, -1, width)).squeeze(1)
    return OWN * _to_size_one(own) * own + (1 - OWN) * mean


def _to_size_one(features: Tensor) -> Tensor:
    """[N, 1]: what brings each row [N, D] to a root mean square of 1, as `models.feature_norm` does."""
    mean_square = torch.linalg.vector_norm(features, dim=1, keepdim=True).square() / features.shape[1]
    return (mean_square + 1e-6).rsqrt()
