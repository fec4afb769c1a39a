"""Outliers: images whose features are far from those of all others."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..features.nearest import Neighbours
from .files import InspectedFiles
from .findings import Finding

OUTLIER = 2.5  # robust standard deviations; in flowers5 25 of 2,494 images lie beyond


def outlier_scores(neighbours: Neighbours) -> np.ndarray:
    """How far each row is from its nearest others, float [N]: 0 for the typical row, in robust standard deviations.

    The distance is 1 minus the mean cosine; the scale is the median absolute deviation times 1.4826.
    """
    if not neighbours.rows.size:
        return np.zeros(len(neighbours.rows))
    distance = 1.0 - neighbours.similarity.mean(axis=1, dtype=np.float64)
    middle = np.median(distance)
    return (distance - middle) / max(1.4826 * float(np.median(np.abs(distance - middle))), 1e-6)


def outlier_findings(files: InspectedFiles, neighbours: Neighbours) -> Iterable[Finding]:
    """A finding for each image that is far from its nearest others, beside the nearest of them."""
    paths, scores = files.dataset.paths, outlier_scores(neighbours)
    for row in np.flatnonzero(scores >= OUTLIER).tolist():
        yield files.finding(
            "outlier",
            paths[row],
            other_path=paths[neighbours.rows[row, 0]],
            score=round(float(scores[row]), 4),
            explanation=f"{scores[row]:.1f} robust deviations farther from its nearest images than is usual",
        )
