"""From probabilities to classes. It needs numpy alone: a program beside an exported model holds this code too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

LEAST = 1e-9  # that a threshold can be


def decide(
    probabilities: np.ndarray, classes: Sequence[str], weights: Sequence[float], thresholds: Mapping[str, float]
) -> np.ndarray:
    """The class int64 [N] of each image with these probabilities [N, C].

    That is the one of the highest weighted probability (all weigh the same without `weights`, [C]), unless a class with
    a threshold reaches it: then it is that one, of several the one that exceeds its threshold most.
    """
    chosen = (probabilities * np.asarray(weights) if len(weights) else probabilities).argmax(axis=1)
    if thresholds and len(probabilities):
        wanted = np.array([classes.index(name) for name in thresholds])
        reached = probabilities[:, wanted] / np.maximum(list(thresholds.values()), LEAST)
        found = reached.max(axis=1) >= 1
        chosen[found] = wanted[reached.argmax(axis=1)[found]]
    return chosen
