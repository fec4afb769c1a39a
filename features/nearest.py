"""The one search for nearest neighbours, by the cosine of features: exact, block by block.

Memory grows with the number of rows N times their width, never with N squared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

BLOCK, CHUNK = 1024, 8192  # rows that are compared with so many others at a time: 32 MB of similarities


@dataclass(frozen=True)
class Neighbours:
    """The nearest rows of each row, the nearest first: row numbers int64 [N, k], cosines float32 [N, k]."""

    rows: np.ndarray
    similarity: np.ndarray


@torch.inference_mode()
def nearest(
    features: Tensor,
    count: int,
    *,
    among: Tensor | None = None,
    device: torch.device | None = None,
    block: int = BLOCK,
) -> Neighbours:
    """The `count` nearest of `among` [M, D] to each of the features [N, D]; without `among`, the other features.

    Rows may have any length; a row of zeros has a cosine of 0 with all. k is `count`, or less where there are fewer.
    device: where it is computed, by default where the features are. block: features that are compared at a time.
    """
    queries = functional.normalize(features.float(), dim=1)
    keys = queries if among is None else functional.normalize(among.float(), dim=1)
    device, total = device or features.device, len(features)
    count = max(0, min(count, len(keys) - (among is None)))
    rows, similarity = np.zeros((total, count), dtype=np.int64), np.zeros((total, count), dtype=np.float32)
    for start in range(0, total if count else 0, block):
        part = queries[start : start + block].to(device)
        values, places = _best(part, keys, count, None if among is not None else start)
        rows[start : start + block], similarity[start : start + block] = places.cpu().numpy(), values.cpu().numpy()
    return Neighbours(rows, similarity)


def _best(queries: Tensor, keys: Tensor, count: int, own: int | None) -> tuple[Tensor, Tensor]:
    """The largest products [n, count] of queries [n, D] with keys [M, D], and which keys they are with.

    own: the key from which on the queries are keys themselves; none is its own neighbour.
    """
    values = places = None
    for start in range(0, len(keys), CHUNK):
        products = queries @ keys[start : start + CHUNK].to(queries.device).T
        if own is not None:
            position = torch.arange(own, own + len(queries), device=queries.device) - start
            inside = torch.nonzero((position >= 0) & (position < products.shape[1]))[:, 0]
            products[inside, position[inside]] = -torch.inf
        best, where = products.topk(min(count, products.shape[1]), dim=1)
        where += start
        if values is not None and places is not None:
            best, where = torch.cat([values, best], dim=1), torch.cat([places, where], dim=1)
            best, chosen = best.topk(min(count, best.shape[1]), dim=1)
            where = where.gather(1, chosen)
        values, places = best, where
    assert values is not None
    assert places is not None
    return values, places
