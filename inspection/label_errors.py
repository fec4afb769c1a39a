"""Labels that are likely wrong: images that a classifier trained without them predicts as another class."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..features.nearest import unit
from ..utils import generator

FOLDS = 5
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # inverse strengths of the logistic regression's L2 penalty to choose from
LEARN_ROWS = 20_000  # images that one classifier learns from


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
