"""The class prior: how frequent the classes are among the unlabeled images, estimated from the few that are labeled.

Pseudo-labels are drawn towards this prior (`train.align`). To take the classes for equally frequent, or for as
frequent as among the labels, gains where it is true and costs more where it is not (docs/results.md).
"""

from __future__ import annotations

import numpy as np

from ..base.folds import dealt_folds
from ..base.metrics import fit_temperature, tempered
from .linear_probe import fit_linear_probe

FOLDS = 5
MOST = 2_000  # labeled images to learn from, and unlabeled ones to predict: more take longer and hardly add anything
WEIGHT = 0.03  # of the label frequencies: where predictions are unsure, nearly all class priors are equally likely
STRENGTH = 0.1  # inverse regularization of the logistic regression on features of root mean square 1


def stratified_sample(labels: np.ndarray, most: int) -> np.ndarray:
    """The positions [n] of about `most` of the labels: the first of each class, in proportion to it, at least two."""
    enough = np.ceil(np.bincount(labels) * min(1.0, most / len(labels))).clip(min=2)
    order = np.argsort(labels, kind="stable")
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    return np.flatnonzero(rank < enough[labels])


def label_frequencies(labels: np.ndarray, classes: int) -> np.ndarray:
    """float64 [classes]: the part of the labels that each class has."""
    return np.bincount(labels, minlength=classes) / len(labels)


def estimate_class_prior(labeled: np.ndarray, labels: np.ndarray, unlabeled: np.ndarray, classes: int) -> np.ndarray:
    """The class prior [classes] of unlabeled features [M, D], from labeled ones [N, D] and their labels [N].

    A linear probe is fitted without each fold of the labeled images in turn, its probabilities are tempered by what it
    predicts for the folds left out, and the prior is the one that makes the unlabeled images likeliest
    (`likeliest_prior`).

    How far the folds' estimates lie apart says how far their mean can be trusted: it is drawn back to the label
    frequencies by 1 - variance / distance^2, and not trusted at all where that is negative (James and Stein 1961,
    positive part; the variance is the jackknife's), nor where a class has one label only.
    """
    own = label_frequencies(labels, classes)
    if np.bincount(labels, minlength=classes).min() < 2 or not len(unlabeled):
        return own
    held_out, of_unlabeled, learned = np.zeros((len(labels), classes)), [], []
    for known, rest in dealt_folds(labels, FOLDS).split():
        probe = fit_linear_probe(labeled[known], labels[known], STRENGTH, classes=classes, max_iter=300)
        held_out[rest] = probe.log_probabilities(labeled[rest])
        of_unlabeled.append(probe.log_probabilities(unlabeled))
        learned.append(label_frequencies(labels[known], classes))
    temperature = fit_temperature(held_out, labels)
    predicted = [tempered(np.exp(z), temperature) for z in of_unlabeled]
    found = np.stack([likeliest_prior(p, own, frequent) for p, frequent in zip(predicted, learned, strict=True)])
    mean = found.mean(axis=0)
    variance = (len(found) - 1) / len(found) * ((found - mean) ** 2).sum()
    distance = ((mean - own) ** 2).sum()
    return own + max(0.0, 1 - variance / distance) * (mean - own) if distance else own


def likeliest_prior(
    predicted: np.ndarray, expected: np.ndarray, learned: np.ndarray, *, weight: float = WEIGHT, rounds: int = 200
) -> np.ndarray:
    """The class prior [C] under which images with a classifier's probabilities `predicted` [M, C] are likeliest.

    learned [C]: the label frequencies among the images that the classifier has learned from; expected [C]: the prior
    that is likely before the unlabeled images are known, which counts as much as `weight` times their number. By
    expectation maximization (Saerens, Latinne and Decaestecker 2002, eq. 2.8): predictions are weighted by the prior,
    the prior is their mean. They are to be calibrated (Alexandari, Kundaje and Shrikumar 2020).
    """
    prior = expected
    for _ in range(rounds):
        weighted = predicted * (prior / learned)
        mean = (weighted / weighted.sum(axis=1, keepdims=True)).mean(axis=0)
        new = (mean + weight * expected) / (1 + weight)
        change, prior = np.abs(new - prior).max(), new
        if change < 1e-5:
            break
    return prior
