"""The nearest neighbours of feature vectors, and what lies far from all others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

BLOCK, CHUNK = 1024, 8192  # rows that are compared with so many others at a time: 32 MB of similarities


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows float [N, D] of length 1, as float32; a row of zeros stays zero."""
    rows = rows.astype(np.float32, copy=False)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


@dataclass(frozen=True)
class Neighbours:
    """The nearest other rows of each row, the nearest first: row numbers int64 [N, k], similarities float32 [N, k]."""

    rows: np.ndarray
    similarity: np.ndarray


@torch.inference_mode()
def nearest(rows: np.ndarray, count: int, device: torch.device) -> Neighbours:
    """The `count` most similar other rows by the product of rows [N, D] that have length 1 (at most N - 1)."""
    total = len(rows)
    count = max(0, min(count, total - 1))
    found, similarity = np.zeros((total, count), dtype=np.int64), np.zeros((total, count), dtype=np.float32)
    for start in range(0, total if count else 0, BLOCK):
        block = torch.from_numpy(rows[start : start + BLOCK]).to(device)
        values = torch.empty((len(block), 0), device=device)
        places = torch.empty((len(block), 0), dtype=torch.int64, device=device)
        for other in range(0, total, CHUNK):
            products = block @ torch.from_numpy(rows[other : other + CHUNK]).to(device).T
            own = torch.arange(start, start + len(block), device=device) - other
            inside = (own >= 0) & (own < products.shape[1])
            products[torch.nonzero(inside)[:, 0], own[inside]] = -torch.inf
            best, where = products.topk(min(count, products.shape[1]), dim=1)
            values, chosen = torch.cat([values, best], dim=1).topk(min(count, values.shape[1] + best.shape[1]), dim=1)
            places = torch.cat([places, where + other], dim=1).gather(1, chosen)
        found[start : start + BLOCK], similarity[start : start + BLOCK] = places.cpu().numpy(), values.cpu().numpy()
    return Neighbours(found, similarity)


def outliers(neighbours: Neighbours) -> np.ndarray:
    """How far each row is from its nearest others, float [N]: 0 for the typical row, in robust standard deviations.

    The distance is 1 minus the mean similarity; the scale is the median absolute deviation times 1.4826.
    """
    if not neighbours.rows.size:
        return np.zeros(len(neighbours.rows))
    distance = 1.0 - neighbours.similarity.mean(axis=1, dtype=np.float64)
    middle = np.median(distance)
    return (distance - middle) / max(1.4826 * float(np.median(np.abs(distance - middle))), 1e-6)
