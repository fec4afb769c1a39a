"""Which unlabeled images a person should label next: those that say most about the others whose class is unsure."""

from __future__ import annotations

import numpy as np

MOST = 4000  # images that are compared with each other: 64 MB of similarities
LEAD = 2  # labels that a predicted class may be ahead of the one that has the fewest


def margin_uncertainty(probabilities: np.ndarray) -> np.ndarray:
    """float64 [N]: 1 less the distance of the two largest probabilities of each row [N, C]; 1 cannot be less sure."""
    best = np.sort(probabilities.astype(np.float64), axis=1)
    return 1 - (best[:, -1] - best[:, -2])


def most_useful(
    probabilities: np.ndarray,
    features: np.ndarray,
    known: np.ndarray,
    count: int,
    predicted: np.ndarray | None = None,
) -> np.ndarray:
    """The positions [count] of the unlabeled images to label, the most useful first.

    Greedily, each is the one that lies nearest to the most images that are unsure and not yet near a labeled or chosen
    one (facility location: sum over images of uncertainty times how much nearer the nearest of those comes). So an
    outlier, an image beside a labeled one and ten alike are no good choices, while no image is left far from all.
    The classes predicted for the chosen images stay in balance. The farther it goes the more it covers, and with few
    labels coverage is what counts (Hacohen et al. 2022).

    Args:
        probabilities: [N, C] of the unlabeled images, calibrated.
        features: [N, D] of them; known: [L, D] of the labeled images. Rows of any length.
        count: how many; fewer where there are fewer images.
        predicted: int [N], their classes, where they are not the most probable ones.
    """
    if not len(features):
        return np.zeros(0, dtype=np.int64)
    middle = features.mean(axis=0)
    own, labeled = _directions(features - middle), _directions(known - middle)
    weight = margin_uncertainty(probabilities)
    if predicted is None:
        predicted = probabilities.argmax(axis=1)
    similar = own @ own.T
    covered = (own @ labeled.T).max(axis=1, initial=-1.0)
    taken, free = np.zeros(probabilities.shape[1], dtype=np.int64), np.ones(len(own), dtype=bool)
    chosen: list[int] = []
    for _ in range(min(count, len(own))):
        fewest = taken[np.unique(predicted[free])].min()
        gain = np.maximum(similar - covered, 0) @ weight
        gain[~free | (taken[predicted] >= fewest + LEAD)] = -1
        best = int(gain.argmax())
        chosen.append(best)
        free[best] = False
        taken[predicted[best]] += 1
        covered = np.maximum(covered, similar[best])
    return np.array(chosen, dtype=np.int64)


def _directions(features: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, np.finfo(np.float32).tiny)
