"""How frequent the classes are among the unlabeled images, estimated from the few that are labeled.

Pseudo-labels are drawn towards these shares (`train.align`). To take the classes for equally frequent, or for as
frequent as among the labels, gains where it is true and costs more where it is not (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression

from ..base.metrics import fit_temperature, tempered
from .sources import Source, as_heads_see

FOLDS = 5
MOST = 2_000  # labeled images to learn from, and unlabeled ones to look at: more take longer and hardly tell more
WEIGHT = 0.03  # of the labels' own shares: where predictions tell little, nearly all shares are equally likely
STRENGTH = 0.1  # inverse regularization of the logistic regression on features of root mean square 1


def features_of(sources: Sequence[Source], rows: np.ndarray) -> np.ndarray:
    """float32 [n, D]: the rows as heads see them in training, of all sources side by side.

    That is their first weak draw, which a bank holds already, at a root mean square of 1.
    """
    return np.concatenate([as_heads_see(source, rows, "weak").numpy() for source in sources], axis=1)


def some_of_each(labels: np.ndarray, most: int) -> np.ndarray:
    """The places [n] of about `most` of the labels, as many of each class as its part, the first; at least two."""
    enough = np.ceil(np.bincount(labels) * min(1.0, most / len(labels))).clip(min=2)
    order = np.argsort(labels, kind="stable")
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    return np.flatnonzero(rank < enough[labels])


def labels_shares(labels: np.ndarray, classes: int) -> np.ndarray:
    """float64 [classes]: the part of the labels that each class has."""
    return np.bincount(labels, minlength=classes) / len(labels)


def estimate_shares(labeled: np.ndarray, labels: np.ndarray, pile: np.ndarray, classes: int) -> np.ndarray:
    """The shares [classes] of the classes in a pile of features [M, D]; labeled [N, D] and labels [N] tell the classes.

    A logistic regression is fitted without each fold of the labeled images in turn, its probabilities are tempered by
    what it says of the folds left out, and the shares are those that make the pile likeliest (`likeliest_shares`).

    How far the folds' estimates lie apart tells how much the mean of them is worth: it is drawn back to the labels' own
    shares by 1 - variance / distance^2, and not trusted at all where that is negative (James and Stein 1961, positive
    part; the variance is the jackknife's), nor where a class has one label only.
    """
    own = labels_shares(labels, classes)
    if np.bincount(labels, minlength=classes).min() < 2 or not len(pile):
        return own
    fold = _folds(labels)
    folds = int(fold.max()) + 1
    held_out, of_pile = np.zeros((len(labels), classes)), []
    for index in range(folds):
        rest = fold == index
        held_out[rest], z = _log_probabilities(labeled[~rest], labels[~rest], [labeled[rest], pile])
        of_pile.append(z)
    temperature = fit_temperature(held_out, labels)
    learned = [labels_shares(labels[fold != index], classes) for index in range(folds)]
    predicted = [tempered(np.exp(z), temperature) for z in of_pile]
    found = np.stack([likeliest_shares(p, own, shares) for p, shares in zip(predicted, learned, strict=True)])
    mean = found.mean(axis=0)
    variance = (folds - 1) / folds * ((found - mean) ** 2).sum()
    distance = ((mean - own) ** 2).sum()
    return own + max(0.0, 1 - variance / distance) * (mean - own) if distance else own


def likeliest_shares(
    predicted: np.ndarray, expected: np.ndarray, learned: np.ndarray, *, weight: float = WEIGHT, rounds: int = 200
) -> np.ndarray:
    """The shares [C] under which images are likeliest of which a classifier says `predicted` [M, C].

    learned: the shares among the images that the classifier has learned from; expected: those that are likely before a
    look at the pile, which count as much as `weight` times its images. By expectation maximization (Saerens, Latinne
    and Decaestecker 2002, eq. 2.8): predictions are weighed by the shares, the shares are their mean.
    """
    shares = expected
    for _ in range(rounds):
        weighed = predicted * (shares / learned)
        mean = (weighed / weighed.sum(axis=1, keepdims=True)).mean(axis=0)
        new = (mean + weight * expected) / (1 + weight)
        change, shares = np.abs(new - shares).max(), new
        if change < 1e-5:
            break
    return shares


def _folds(labels: np.ndarray) -> np.ndarray:
    """The fold of each image: at most FOLDS of one size, none of which holds all images of a class."""
    fold = np.empty(len(labels), dtype=np.int64)
    fold[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % FOLDS
    return fold


def _log_probabilities(labeled: np.ndarray, labels: np.ndarray, rows: list[np.ndarray]) -> list[np.ndarray]:
    """What a logistic regression on the labeled images says of other rows: logits [n, C] for each of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that something did not converge
        model = LogisticRegression(C=STRENGTH, max_iter=300).fit(labeled, labels)
    return [model.predict_log_proba(part) for part in rows]
