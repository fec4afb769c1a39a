"""What arrays of pixels and features give away: near-duplicates, outliers, likely wrong labels. Knows no files.

All neighbours are searched block by block: memory grows with the number of images N times the width of a row, never
with N squared.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..utils import generator

SIDE = 48  # of the grey thumbnails that are compared, in pixels
BLOCK, CHUNK = 1024, 8192  # rows that are compared with so many others at a time: 32 MB of similarities
NEIGHBOURS = 20
# Measured on 2,494 photographs of flowers and on changed copies of 120 of them (benchmarks/inspect_recall.py): nearly
# all copies are above the first or the second, but so are strangers of the same kind: pixels decide (`alignment`).
FEATURES_ALIKE = 0.85  # cosine of two images' features
STRUCTURE_ALIKE = 0.85  # correlation of two images' edges, without looking for the place
MOST_CANDIDATES = 20_000  # pairs whose pixels are compared: 3 to 8 ms each on one core
PART = 0.7  # the middle of one image is looked for in the other ...
SCALES = (0.75, 0.82, 0.9, 0.95, 1.0, 1.05, 1.11, 1.22, 1.33)  # ... in these sizes
PAIRS_AT_ONCE = 64
COARSE_MARGIN = 0.1  # at half the size no pair of flowers5 was lost by it
FOLDS = 5
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # inverse strengths of the logistic regression's L2 penalty to choose from
LEARN_ROWS = 20_000  # images that one classifier learns from


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows float [N, D] of length 1, as float32; a row of zeros stays zero."""
    rows = rows.astype(np.float32, copy=False)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


# --- neighbours -------------------------------------------------------------------------------------------------------


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


# --- near-duplicates --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alike:
    """Pairs of rows int64 [n, 2], the lower first, with scores float [n], best first; `candidates` were compared."""

    pairs: np.ndarray
    scores: np.ndarray
    candidates: int
    cut_off: bool


def near_duplicates(
    thumbnails: np.ndarray, of_features: Neighbours | None, threshold: float, device: torch.device
) -> Alike:
    """Pairs of images that show the same picture: cropped, mirrored, turned a little, recoloured, in another size.

    thumbnails: grey uint8 [N, SIDE, SIDE]. Whose edges or (where a backbone is at hand) features are alike is a
    candidate; a pair counts when the middle of one is found in the other with a correlation of at least `threshold`.
    """
    of_edges = nearest(structure(thumbnails), NEIGHBOURS, device)
    found = [_pairs(of_edges, STRUCTURE_ALIKE)]
    if of_features is not None:
        found.append(_pairs(of_features, FEATURES_ALIKE))
    pairs = np.concatenate([some for some, _ in found])
    # The likeliest first: if there are too many to look at, the rest is left out.
    pairs = pairs[np.argsort(-np.concatenate([likeness for _, likeness in found]), kind="stable")]
    _, first = np.unique(pairs, axis=0, return_index=True)
    pairs = pairs[np.sort(first)]
    kept = pairs[:MOST_CANDIDATES]
    # At half the size, where strangers look more alike, most are ruled out in a tenth of the time.
    coarse = thumbnails.reshape(-1, SIDE // 2, 2, SIDE // 2, 2).mean(axis=(2, 4), dtype=np.float32)
    scores = _alignments(coarse, kept, device)
    likely = np.flatnonzero(scores >= threshold - COARSE_MARGIN)
    scores[likely] = _alignments(thumbnails, kept[likely], device)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= threshold]
    return Alike(kept[order], scores[order], len(kept), len(kept) < len(pairs))


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


def structure(thumbnails: np.ndarray) -> np.ndarray:
    """The edges of 16 x 16 cells, float32 [N, 480] of length 1: the same at any size, brightness and compression."""
    cells = thumbnails.reshape(-1, 16, SIDE // 16, 16, SIDE // 16).mean(axis=(2, 4), dtype=np.float32)
    across, down = np.diff(cells, axis=2), np.diff(cells, axis=1)
    edges = np.concatenate([part.reshape(len(cells), 240) for part in (across, down)], axis=1)
    # What has hardly an edge, such as an empty page, is like nothing.
    edges[np.abs(edges).max(axis=1, initial=0) < 4] = 0
    return unit(edges)


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
            # The 1 keeps images without edges from being like each other.
            lengths = (window.clamp_min(0) * sought.square().sum(dim=(1, 2, 3))[:, None, None]).sqrt() + 1.0
            best = torch.maximum(best, (products / lengths).flatten(1).amax(dim=1))
    return best


def _edges(images: Tensor) -> Tensor:
    """Differences across and down: [n, 2, S, S] of [n, S, S]."""
    padded = functional.pad(images.unsqueeze(1), (1, 1, 1, 1), mode="replicate").squeeze(1)
    across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    return torch.stack([across, padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]], dim=1)


def groups(pairs: np.ndarray, count: int) -> np.ndarray:
    """A group number int64 [count] for each row; rows that pairs [n, 2] join, directly or over others, share one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    joined = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(joined, directed=False)[1].astype(np.int64)


# --- likely wrong labels ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Doubts:
    """What a classifier that did not see an image's own label thinks of it.

    probabilities: float [N, C]; suggested: int64 [N], the class that confident learning finds instead of the given one,
    or -1; margin: float [N], by how much the suggested class is likelier; accuracy: share of the given labels that are
    the likeliest class; judged: bool [C], the classes with a label: of the others a probability of 0 says nothing.
    """

    probabilities: np.ndarray
    suggested: np.ndarray
    margin: np.ndarray
    accuracy: float
    judged: np.ndarray


def doubtful_labels(features: np.ndarray, labels: np.ndarray, group: np.ndarray, classes: int, seed: int) -> Doubts:
    """Doubts about labels int64 [N] (-1: none) by cross-validated logistic regression on features [N, D].

    A label is doubted as in confident learning (Northcutt, Jiang, Chuang 2021): among the classes whose probability is
    at least the mean that images of the class give it, the likeliest is another one than the given.

    Images of one `group` int64 [N] are in one fold: a near-copy with the same wrong label does not speak for it.
    classes: C; needs two of them with labels, and FOLDS groups of each of these.
    """
    predicted = _cross_validated(_scaled(features), labels, group, classes, seed)
    judged = np.isin(np.arange(classes), labels)
    means = np.array([predicted[labels == label, label].mean() if judged[label] else np.inf
                      for label in range(classes)])  # fmt: skip
    confident = np.where(predicted >= means, predicted, -1.0)
    doubted = (labels >= 0) & (confident.max(axis=1) >= 0) & (confident.argmax(axis=1) != labels)
    suggested = np.where(doubted, confident.argmax(axis=1), -1)
    at = np.arange(len(labels))
    margin = np.where(doubted, predicted[at, suggested] - predicted[at, labels], 0.0)
    known = labels >= 0
    accuracy = float((predicted[known].argmax(axis=1) == labels[known]).mean())
    return Doubts(predicted, suggested, margin, accuracy, judged)


def _cross_validated(inputs: np.ndarray, labels: np.ndarray, group: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Probabilities float [N, C] of logistic regressions that did not learn the row, nor any of its group."""
    known = np.flatnonzero(labels >= 0)
    fold = _folds(labels, group, known, seed)
    penalty = _choose_penalty(inputs, labels, fold, classes, seed)
    predicted = np.zeros((len(labels), classes))
    for number in range(-1, FOLDS):  # -1: rows without a label
        rows = np.flatnonzero(fold == number)
        if len(rows):
            learned = known[fold[known] != number]
            predicted[rows] = _classify(inputs, labels, learned, rows, classes, penalty, seed)
    return predicted


def _scaled(features: np.ndarray) -> np.ndarray:
    """Rows with a root mean square of 1, as a head brings them, then centred."""
    rows = unit(features) * np.float32(np.sqrt(features.shape[1]))
    return rows - rows.mean(axis=0)


def _folds(labels: np.ndarray, group: np.ndarray, known: np.ndarray, seed: int) -> np.ndarray:
    """A fold int64 [N] of each row with a label, -1 of the others: classes are spread evenly, groups stay whole."""
    fold = np.full(len(labels), -1, dtype=np.int64)
    leaders, leader_of = np.unique(group[known], return_index=True)
    first = known[leader_of]
    of_group = np.zeros(int(group.max()) + 1, dtype=np.int64)
    for label in np.unique(labels[first]).tolist():
        members = generator(seed, "inspect", label).permutation(leaders[labels[first] == label])
        of_group[members] = (np.arange(len(members)) + label) % FOLDS
    fold[known] = of_group[group[known]]
    return fold


def _choose_penalty(inputs: np.ndarray, labels: np.ndarray, fold: np.ndarray, classes: int, seed: int) -> float:
    """The penalty with which the first fold's labels are likeliest."""
    held_out, learned = np.flatnonzero(fold == 0), np.flatnonzero(fold > 0)

    def loss(penalty: float) -> float:
        predicted = _classify(inputs, labels, learned, held_out, classes, penalty, seed)
        return float(-np.log(np.maximum(predicted[np.arange(len(held_out)), labels[held_out]], 1e-9)).mean())

    return min(PENALTIES, key=loss)


def _classify(
    inputs: np.ndarray,
    labels: np.ndarray,
    learned: np.ndarray,
    rows: np.ndarray,
    classes: int,
    penalty: float,
    seed: int,
) -> np.ndarray:
    """Probabilities float [n, C] of the rows, from a logistic regression on the learned rows."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(learned) > LEARN_ROWS:
        learned = generator(seed, "inspect", "learn").choice(learned, LEARN_ROWS, replace=False)
    result = np.zeros((len(rows), classes))
    present = np.unique(labels[learned])
    if len(present) == 1:
        result[:, present] = 1.0
        return result
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model: Any = LogisticRegression(C=penalty, max_iter=200).fit(inputs[learned], labels[learned])
    result[:, present] = model.predict_proba(inputs[rows])
    return result
