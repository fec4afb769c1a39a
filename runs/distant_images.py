"""Images that are unusually far from every labeled one, by the features of a frozen backbone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..data import Dataset, Split
from ..features.bank import FeatureBank
from ..features.sources import ImageRequest, Source
from ..utils import generator

# Distances are computed for at most so many images: enough to meet each kind of unusual image, and done in a moment.
MOST_UNLABELED, MOST_LABELED = 4000, 1000
FEWEST = 20  # images from which the usual spread of distances can be estimated


@dataclass(frozen=True)
class DistantImage:
    """An image that is unusually far from every labeled one.

    row: its row in the data set; position: its position in the test split, None outside it; distance: 1 - cosine to
    the nearest labeled image.
    """

    row: int
    position: int | None
    distance: float


def distant_images(source: Source | None, dataset: Dataset, split: Split, seed: int) -> list[DistantImage]:
    """Test and unlabeled images whose distance to the nearest labeled one is beyond Tukey's fence, the farthest first.

    The distance is 1 - cosine of a frozen backbone's features, which are not centred: the cosine then also says how
    much of what the backbone knows a picture holds. Only features that the run has computed anyway are used; without
    them no image is found.
    """
    if not isinstance(source, FeatureBank) or dataset.kind == "points":
        return []
    known = _directions(source, _sample(split.labeled, MOST_LABELED, seed), "weak")
    unlabeled = _sample(np.setdiff1d(split.unlabeled, split.labeled), MOST_UNLABELED, seed)
    found = []
    for rows, view in ((split.test, "eval"), (unlabeled, "weak")):
        images = _directions(source, rows, view)
        if known is None or images is None or len(rows) < FEWEST:
            continue
        distances = 1 - (images @ known.T).amax(dim=1).cpu().numpy()
        low, high = np.quantile(distances, [0.25, 0.75])
        for position in np.flatnonzero(distances > high + 1.5 * (high - low)).tolist():
            in_test = position if view == "eval" else None
            found.append(DistantImage(int(rows[position]), in_test, float(distances[position])))
    return sorted(found, key=lambda image: -image.distance)


def _sample(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    return generator(seed, "far images").permutation(rows)[:most] if len(rows) > most else rows


def _directions(bank: FeatureBank, rows: np.ndarray, view: str) -> torch.Tensor | None:
    """Features of length 1 [n, D] of the first draw of a view; None where some were never computed."""
    if not len(rows) or bank.missing({(view, 0): rows}):
        return None
    return torch.nn.functional.normalize(bank.rows(ImageRequest(rows, np.zeros(len(rows), dtype=np.int64), view)))
