"""Likely wrong labels, on features with planted ones."""

from __future__ import annotations

import numpy as np
import pytest

from transfermpl.inspection import label_errors
from transfermpl.inspection.label_errors import find_label_errors, labels_to_judge, likeliest_class


def blobs(count: int = 120, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    labels = np.arange(count) % classes
    return (random.normal(0, 0.3, (count, 12)) + 3 * np.eye(12)[labels]).astype(np.float32), labels


def test_swapped_labels_are_ranked_on_top_with_the_right_class() -> None:
    features, right = blobs()
    given = right.copy()
    swapped = np.array([3, 10, 29, 50, 71, 104])
    given[swapped] = (right[swapped] + 1) % 3
    found = find_label_errors(features, given, np.arange(120), 3, 0)
    wrong = np.flatnonzero(found.suggested >= 0)
    # One of the six is less sure than an image of its class usually is.
    assert set(wrong.tolist()) <= set(swapped.tolist())
    assert len(wrong) == 5
    assert found.suggested[wrong].tolist() == right[wrong].tolist()
    assert np.flatnonzero(found.margin > 0).tolist() == wrong.tolist()
    assert set(np.argsort(found.probabilities[np.arange(120), given])[:6].tolist()) == set(swapped.tolist())
    assert found.accuracy == pytest.approx(114 / 120, abs=0.02)
    assert np.allclose(found.probabilities.sum(axis=1), 1)


def test_near_copies_with_the_same_wrong_label_do_not_support_each_other() -> None:
    features, labels = blobs(60)
    copies = np.repeat(features[:1], 12, axis=0) + np.random.default_rng(0).normal(0, 0.01, (12, 12))
    features = np.concatenate([features, copies.astype(np.float32)])
    labels = np.concatenate([labels, np.full(12, 2)])  # in truth of class 0
    alone = find_label_errors(features, labels, np.arange(72), 3, 0).suggested[60:]
    together = find_label_errors(features, labels, np.array([*range(60), *[60] * 12]), 3, 0).suggested[60:]
    assert (together == 0).all()
    assert (alone == 0).sum() < 12


def test_an_unknown_label_is_predicted_and_never_wrong() -> None:
    features, labels = blobs()
    given = labels.copy()
    given[:9] = -1
    found = find_label_errors(features, given, np.arange(120), 3, 0)
    assert (found.suggested[:9] == -1).all()
    assert found.probabilities[:9].argmax(axis=1).tolist() == labels[:9].tolist()


@pytest.mark.parametrize("missing", [1, 3])
def test_a_class_without_a_known_label_is_not_judged(missing: int) -> None:
    features, labels = blobs(classes=4)
    labels = np.where(labels == missing, -1, labels)
    found = find_label_errors(features, labels, np.arange(120), 4, 0)
    assert found.probabilities.shape == (120, 4)
    assert found.judged.tolist() == [label != missing for label in range(4)]
    assert (found.probabilities[:, missing] == 0).all()
    assert (found.suggested == -1).all()


def test_one_classifier_learns_from_so_many_images_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs()
    monkeypatch.setattr(label_errors, "LEARN_ROWS", 30)
    assert find_label_errors(features, labels, np.arange(120), 3, 0).accuracy > 0.9


def test_classes_of_few_groups_are_not_judged() -> None:
    labels = np.array([0] * 6 + [1] * 6 + [2] * 4 + [-1])
    groups = np.arange(17)
    groups[6:9] = 6  # three near-duplicates count once
    given, too_few = labels_to_judge(labels, groups)
    assert too_few == {1: 4, 2: 4}
    assert given.tolist() == [0] * 6 + [-1] * 11
    assert labels[6] == 1  # the given labels stay


def test_a_fold_may_lack_a_class() -> None:
    features, labels = blobs(60)
    groups = np.arange(60)
    groups[labels == 2] = np.where(np.arange(20) < 2, 60, 61)  # so only two folds hold out images of the class
    found = find_label_errors(features, labels, groups, 3, 0)
    assert found.accuracy > 0.5
    assert np.isfinite(found.probabilities).all()


def test_the_likelier_of_two_classes() -> None:
    features, labels = blobs()
    labels = np.where(labels == 1, -1, labels)
    found = find_label_errors(features, labels, np.arange(120), 3, 0)
    name, share = likeliest_class(found, 2, ["a", "c"], ("a", "b", "c"))
    assert name == "c"
    assert share == pytest.approx(1, abs=0.05)
    # The class without a label can't win, so there is nothing to compare with.
    assert likeliest_class(found, 2, ["b", "c"], ("a", "b", "c")) == ("", None)
