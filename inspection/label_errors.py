"""Likely wrong labels: images that a linear probe, trained without them, predicts as another class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..base.folds import stratified_folds
from ..features.linear_probe import choose_strength, fit_linear_probe
from ..models import feature_norm
from ..utils import generator
from .files import InspectedFiles
from .findings import Finding

FOLDS = 5
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # of the linear probe to choose from
LEARN_ROWS = 20_000  # images that one probe learns from
LEAST_AGREEMENT = 0.7  # accuracy below which the probe's own errors are too many for its findings to mean much


@dataclass(frozen=True)
class LabelErrors:
    """What linear probes that were trained without an image predict for it.

    probabilities: float [N, C]; suggested: int64 [N], the class that confident learning finds instead of the given one,
    or -1; margin: float [N], by how much the suggested class is likelier; accuracy: share of the given labels that are
    the likeliest class; judged: bool [C], the classes with a label: of the others a probability of 0 says nothing.
    """

    probabilities: np.ndarray
    suggested: np.ndarray
    margin: np.ndarray
    accuracy: float
    judged: np.ndarray


def labels_to_judge(labels: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, dict[int, int]]:
    """The labels int64 [N] without those of classes that are too small (-1 instead), and how large these are.

    A class needs FOLDS groups int64 [N]: near-duplicates share one and are counted once, as they are held out together.
    """
    counts = {label: len(np.unique(groups[labels == label])) for label in np.unique(labels[labels >= 0]).tolist()}
    too_few = {label: count for label, count in counts.items() if count < FOLDS}
    return np.where(np.isin(labels, list(too_few)), -1, labels), too_few


def find_label_errors(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: int, seed: int
) -> LabelErrors:
    """Likely wrong ones of the labels int64 [N] (-1: none), by cross-validated linear probes on features [N, D].

    A label is likely wrong as in confident learning (Northcutt, Jiang, Chuang 2021): among the classes whose
    probability is at least the mean that images of the class have for it, the likeliest is another one than the given.

    Images of one of the groups int64 [N] are held out together: a near-duplicate with the same wrong label does not
    support it. classes: C; needs two of them with labels, and FOLDS groups of each of these.
    """
    predicted = _cross_validated(_scaled(features), labels, groups, classes, seed)
    judged = np.isin(np.arange(classes), labels)
    means = np.array([predicted[labels == label, label].mean() if judged[label] else np.inf
                      for label in range(classes)])  # fmt: skip
    confident = np.where(predicted >= means, predicted, -1.0)
    wrong = (labels >= 0) & (confident.max(axis=1) >= 0) & (confident.argmax(axis=1) != labels)
    suggested = np.where(wrong, confident.argmax(axis=1), -1)
    row = np.arange(len(labels))
    margin = np.where(wrong, predicted[row, suggested] - predicted[row, labels], 0.0)
    known = labels >= 0
    accuracy = float((predicted[known].argmax(axis=1) == labels[known]).mean())
    return LabelErrors(predicted, suggested, margin, accuracy, judged)


def _scaled(features: np.ndarray) -> np.ndarray:
    """Rows with a root mean square of 1, as a head brings them, then centred."""
    rows = feature_norm(features.shape[1])(torch.from_numpy(features).float()).numpy()
    return rows - rows.mean(axis=0)


def _cross_validated(inputs: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Probabilities float [N, C] by probes that did not learn the row, nor any of its group."""
    known, unknown = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    folds = stratified_folds(labels[known], FOLDS, seed, groups=groups[known])
    parts = [(_some(known[learned], seed), known[held_out]) for learned, held_out in folds.split()]
    # By all folds: of 397 photographs each fold alone chose another one, from 0.01 to 1, and with 1 three times as many
    # labels are found as with 0.01.
    strength = choose_strength(inputs, labels, STRENGTHS, parts, max_iter=200)
    predicted = np.zeros((len(labels), classes))
    for learned, rows in [*parts, (_some(known, seed), unknown)]:
        if len(rows):
            probe = fit_linear_probe(inputs[learned], labels[learned], strength, classes=classes, max_iter=200)
            predicted[rows] = probe.probabilities(inputs[rows])
    return predicted


def _some(rows: np.ndarray, seed: int) -> np.ndarray:
    """At most LEARN_ROWS of the rows."""
    if len(rows) <= LEARN_ROWS:
        return rows
    return generator(seed, "inspect", "learn").choice(rows, LEARN_ROWS, replace=False)


def label_error_findings(files: InspectedFiles, errors: LabelErrors) -> Iterable[Finding]:
    """A finding for each label that is likely wrong."""
    classes, labels = files.dataset.classes, files.dataset.labels
    for row in np.flatnonzero(errors.suggested >= 0).tolist():
        given, other = int(labels[row]), int(errors.suggested[row])
        own, theirs = errors.probabilities[row, [given, other]]
        yield files.finding(
            "wrong label",
            files.dataset.paths[row],
            suggested_class=classes[other],
            score=round(float(theirs - own), 4),
            explanation=f"rather {classes[other]} ({theirs:.2f}) than {classes[given]} ({own:.2f})",
        )


def likeliest_class(
    errors: LabelErrors, row: int, names: Sequence[str], classes: Sequence[str]
) -> tuple[str, float | None]:
    """Which of the named classes is the likeliest of an image, and its share of their probability; else "" and None.

    Nothing where fewer than two of them were judged: the only judged one would always win.
    """
    label_of = {name: label for label, name in enumerate(classes) if errors.judged[label]}
    judged = [name for name in names if name in label_of]
    if len(judged) < 2:
        return "", None
    own = np.array([errors.probabilities[row, label_of[name]] for name in judged])
    return judged[int(own.argmax())], round(float(own.max() / max(own.sum(), 1e-9)), 4)
