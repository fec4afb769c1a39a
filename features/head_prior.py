"""What unlabeled images say of a linear head's weights before a label is seen.

Were the images of a class normal around their mean with the covariance W, and the means themselves normal with the
covariance B, the best weights of class c would be W^-1 mean_c (Fisher 1936), and so, before a label is seen, normal
with the covariance W^-1 B W^-1. That is the prior of a head that learns v in logits = v A x with A = B^(1/2) W^-1 and
whose v decay. Probabilistic discriminant analysis (Ioffe 2006) takes W and B from classes, relevant component analysis
(Bar-Hillel et al. 2003) takes W from small groups of one class each. Here no class is known: the views of an image are
such a group, W is how they vary among themselves, B how images do. Along the axes of A a head moves easily where
images differ and their own augmentations do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from .sources import Source, normalized_features

LEAST = 10  # images: of fewer, too little would be known of either covariance
# Of W's mean eigenvalue, added to all: directions in which no view was seen to vary are not for that reason good ones.
RIDGE = 1.0
# The root mean square of A x, by which the usual rates and decay suit it (docs/results.md).
SCALE = 0.4


def augmented_features(source: Source, rows: np.ndarray, kinds: Iterable[tuple[str, int]]) -> Iterator[Tensor]:
    """float32 [n, D], one after the other: the rows in each of these views and draws, as heads see them."""
    return (normalized_features(source, rows, *kind) for kind in kinds)


def fit_axes(views: Iterator[Tensor]) -> Tensor | None:
    """A [D, D] as features [n, D] of the same n images in V >= 2 views tell it; None where they tell nothing.

    They tell nothing where there are fewer than LEAST images, where they are not finite, and where views do not vary.
    B is shrunk as Ledoit and Wolf (2004) say; W, whose views are not independent, by a RIDGE.
    """
    first = next(views)
    images, width = first.shape
    if images < LEAST:
        return None
    # Seen from the first view, so that what all views of an image share is not first added and then taken away.
    count, total, squares = 1, torch.zeros_like(first), torch.zeros(width, width)
    for view in views:
        apart = view - first
        count, total, squares = count + 1, total + apart, squares.addmm_(apart.T, apart)
    if count < 2 or not (first.isfinite().all() and total.isfinite().all()):
        return None
    within = (squares - total.T @ total / count) / (images * (count - 1))
    mean_variance = within.diagonal().mean()
    if mean_variance < 1e-12:
        return None
    mean = first + total / count
    mean = mean - mean.mean(dim=0)
    between = torch.from_numpy(ledoit_wolf(mean.numpy(), assume_centered=True)[0]).float()
    values, vectors = torch.linalg.eigh(between)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    axes = torch.linalg.solve(within + RIDGE * mean_variance * torch.eye(width), root).T
    size = (mean @ axes.T).square().mean().sqrt()
    return axes * (SCALE / size) if size > 0 else None


def in_axes(features: Tensor, center: Tensor, axes: Tensor) -> Tensor:
    """Features [n, D] as a head with this prior sees them, A (x - center), at a root mean square of about 1 again."""
    return (features - center) @ axes.T / SCALE


def center_of(features: Tensor, labels: np.ndarray) -> Tensor:
    """[D]: the middle between the classes' means of labeled features [n, D].

    Not the mean of the unlabeled images, which lies at its most frequent class.
    """
    return torch.stack([features[torch.from_numpy(labels == c)].mean(dim=0) for c in np.unique(labels)]).mean(dim=0)
