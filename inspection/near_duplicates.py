"""Near-duplicates: images that show the same picture, found by features and edges and confirmed by their pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..features.nearest import Neighbours, nearest
from .files import InspectedFiles, differ_in_class
from .findings import Finding

SIDE = 48  # of the grey thumbnails that are compared, in pixels
NEIGHBOURS = 20
# Measured on 2,494 photographs of flowers and on changed copies of 120 of them (benchmarks/inspect_recall.py): nearly
# all copies are above the first or the second, but so are other images of the same kind: pixels decide (`alignment`).
SIMILAR_FEATURES = 0.85  # cosine of two images' features
SIMILAR_EDGES = 0.85  # correlation of two images' edges, each at its place
MOST_CANDIDATES = 20_000  # pairs whose pixels are compared: 3 to 8 ms each on one core
PART = 0.7  # the middle of one image is looked for in the other ...
SCALES = (0.75, 0.82, 0.9, 0.95, 1.0, 1.05, 1.11, 1.22, 1.33)  # ... in these sizes
PAIRS_AT_ONCE = 64
COARSE_MARGIN = 0.1  # at half the size no pair of flowers5 was lost by it


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of rows int64 [n, 2], the lower first, with scores float [n], best first.

    candidates: how many pairs were compared; cut_off: whether there were more than that.
    """

    pairs: np.ndarray
    scores: np.ndarray
    candidates: int
    cut_off: bool


def find_near_duplicates(
    thumbnails: np.ndarray, by_features: Neighbours | None, threshold: float, device: torch.device
) -> NearDuplicates:
    """Pairs of images that show the same picture: cropped, mirrored, turned a little, recoloured, in another size.

    thumbnails: grey uint8 [N, SIDE, SIDE]. by_features: the nearest images of each, where there is a backbone.
    Pairs with similar edges or features are candidates; a pair counts when the middle of one is found in the other with
    a correlation of at least `threshold`.
    """
    by_edges = nearest(torch.from_numpy(coarse_edges(thumbnails)), NEIGHBOURS, device=device)
    found = [_pairs(by_edges, SIMILAR_EDGES)]
    if by_features is not None:
        found.append(_pairs(by_features, SIMILAR_FEATURES))
    pairs = np.concatenate([some for some, _ in found])
    # The most similar first: if there are too many to compare, the rest is left out.
    pairs = pairs[np.argsort(-np.concatenate([similarity for _, similarity in found]), kind="stable")]
    _, first = np.unique(pairs, axis=0, return_index=True)
    pairs = pairs[np.sort(first)]
    kept = pairs[:MOST_CANDIDATES]
    # At half the size, where different images are more similar, most are ruled out in a tenth of the time.
    coarse = thumbnails.reshape(-1, SIDE // 2, 2, SIDE // 2, 2).mean(axis=(2, 4), dtype=np.float32)
    scores = _alignments(coarse, kept, device)
    likely = np.flatnonzero(scores >= threshold - COARSE_MARGIN)
    scores[likely] = _alignments(thumbnails, kept[likely], device)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= threshold]
    return NearDuplicates(kept[order], scores[order], len(kept), len(kept) < len(pairs))


def _alignments(thumbnails: np.ndarray, pairs: np.ndarray, device: torch.device) -> np.ndarray:
    scores = np.zeros(len(pairs), dtype=np.float32)
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        one, other = (torch.from_numpy(thumbnails[side]).to(device) for side in pairs[start : start + PAIRS_AT_ONCE].T)
        scores[start : start + PAIRS_AT_ONCE] = alignment(one, other).cpu().numpy()
    return scores


def _pairs(neighbours: Neighbours, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Each pair of neighbours once, int64 [n, 2], with its similarity, where that is at least `least`."""
    row, place = np.nonzero(neighbours.similarity >= least)
    pairs = np.sort(np.stack([row, neighbours.rows[row, place]], axis=1), axis=1)
    pairs, first = np.unique(pairs, axis=0, return_index=True)
    return pairs, neighbours.similarity[row, place][first]


def coarse_edges(thumbnails: np.ndarray) -> np.ndarray:
    """The edges of 16 x 16 cells, float32 [N, 480]: nearly the same at any size, brightness and compression."""
    cells = thumbnails.reshape(-1, 16, SIDE // 16, 16, SIDE // 16).mean(axis=(2, 4), dtype=np.float32)
    across, down = np.diff(cells, axis=2), np.diff(cells, axis=1)
    edges = np.concatenate([part.reshape(len(cells), 240) for part in (across, down)], axis=1)
    # What has hardly an edge, such as an empty page, is similar to nothing.
    edges[np.abs(edges).max(axis=1, initial=0) < 4] = 0
    return edges


@torch.inference_mode()
def alignment(one: Tensor, other: Tensor) -> Tensor:
    """How well the middle of `other` is found in `one`, float [n] up to 1: the best correlation of edges over places,
    sizes and mirroring. Both are grey thumbnails [n, S, S].
    """
    count, size = len(one), one.shape[-1]
    margin = round((1 - PART) / 2 * size)
    edges = _edges(one.float())
    energy = edges.square().sum(dim=1, keepdim=True)
    best = torch.full((count,), -1.0, device=one.device)
    for image in (other.float(), other.float().flip(-1)):
        middle = image[:, margin : size - margin, margin : size - margin].unsqueeze(1)
        for scale in SCALES:
            side = min(round(scale * middle.shape[-1]), size)
            sought = _edges(functional.interpolate(middle, (side, side), mode="bilinear", antialias=True).squeeze(1))
            products = functional.conv2d(edges.reshape(1, -1, size, size), sought, groups=count)[0]
            window = functional.conv2d(energy, torch.ones(1, 1, side, side, device=one.device))[:, 0]
            # The 1 keeps images without edges from being similar.
            lengths = (window.clamp_min(0) * sought.square().sum(dim=(1, 2, 3))[:, None, None]).sqrt() + 1.0
            best = torch.maximum(best, (products / lengths).flatten(1).amax(dim=1))
    return best


def _edges(images: Tensor) -> Tensor:
    """Differences across and down: [n, 2, S, S] of [n, S, S]."""
    padded = functional.pad(images.unsqueeze(1), (1, 1, 1, 1), mode="replicate").squeeze(1)
    across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    return torch.stack([across, padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]], dim=1)


def duplicate_groups(pairs: np.ndarray, count: int) -> np.ndarray:
    """A group number int64 [count] for each row; rows that pairs [n, 2] join, directly or over others, share one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    joined = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(joined, directed=False)[1].astype(np.int64)


def near_duplicate_findings(files: InspectedFiles, found: NearDuplicates) -> Iterable[Finding]:
    """A finding for each pair."""
    for (first, second), score in zip(found.pairs.tolist(), found.scores.tolist(), strict=True):
        one, other = files.item(first), files.item(second)
        text = "looks like the same picture"
        if differ_in_class(one, other):
            text += f", filed under {one.label} and {other.label}"
        if one.place != other.place:
            text += f", in {one.place} and {other.place}"
        yield files.finding("near-duplicate", other.path, other_path=one.path, score=round(score, 4), explanation=text)
