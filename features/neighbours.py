"""Which unlabeled images look alike, so that a teacher may read an image's target off its neighbourhood.

A teacher of few labels errs mostly alone: averaged over an image's nearest neighbours in a frozen backbone's features,
its answers are right more often than the one about the image itself (Li, Xiong and Hoi 2021, CoMatch, average
probabilities so). Here features are averaged, before a head sees them: a weak view gives its target from the middle
between its own features and the mean of its neighbours', which a head brings to its usual size again: neighbours that
differ in direction hardly make it less sure. What is learned, tested and used stays a plain head, which knows of no
neighbour; but with `--pseudo_label_view weak` it is the blend that is judged and gets a label.

It gains where neighbours mostly share a class, and loses where they don't: where a class has not many more images than
neighbours are asked for, and with some backbones (benchmarks/RESULTS.md). Hence it is off unless asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CROWD = 4096  # images among which the nearest are looked for: all pairs of a large pile are too many
OWN = 0.5  # what an image's own features weigh in the blend


def nearest(features: Callable[[np.ndarray], Tensor], rows: np.ndarray, count: int) -> np.ndarray:
    """The rows [n, count] whose features have the largest cosine with those of each of the rows [n], nearest first.

    features: [m, D] of m rows. More than a CROWD of rows are cut into equal parts, as they come, and the nearest are
    those of the own part. `count` becomes less where there are not so many others; there must be two rows.
    """
    crowds = np.array_split(np.arange(len(rows)), max(1, -(-len(rows) // CROWD)))
    count = min(count, min(map(len, crowds)) - 1)
    found = np.empty((len(rows), count), dtype=rows.dtype)
    for crowd in crowds:
        direction = F.normalize(features(rows[crowd]), dim=1)
        likeness = direction @ direction.T
        likeness.fill_diagonal_(-torch.inf)
        found[crowd] = rows[crowd][likeness.topk(count, dim=1).indices.numpy()]
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
