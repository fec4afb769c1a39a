"""Folds: stratified, whole groups, and an assignment of trainings that never changes."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from transfermpl.base.folds import dealt_folds, stratified_folds

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [23, 11, 6]))


@pytest.mark.parametrize("seed", [None, 0, 5])
def test_each_row_is_held_out_once_and_classes_are_spread(seed: int | None) -> None:
    folds = dealt_folds(LABELS, 5, seed=seed)
    held_out = [rows for _, rows in folds.split()]
    assert np.sort(np.concatenate(held_out)).tolist() == list(range(40))
    for learned, rows in folds.split():
        assert not np.isin(learned, rows).any()
        assert len(learned) + len(rows) == 40
        counts = np.bincount(LABELS[rows], minlength=3)
        assert ((counts >= [4, 2, 1]) & (counts <= [5, 3, 2])).all()
    sizes = np.bincount(folds.test_fold)
    assert seed is not None or sizes.max() - sizes.min() <= 1


def test_the_folds_of_a_training_stay_what_they_are() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2])
    assert dealt_folds(labels[[8, 0, 4, 1, 5, 2, 7, 6, 3]], 3).test_fold.tolist() == [1, 0, 1, 1, 2, 2, 2, 0, 0]
    assert dealt_folds(LABELS, 3, seed=0).test_fold[:12].tolist() == [2, 0, 2, 0, 1, 1, 0, 0, 1, 0, 2, 0]


def test_stratified_folds_are_those_of_scikit_learn() -> None:
    ours = list(stratified_folds(LABELS, 4, seed=3).split())
    theirs = list(StratifiedKFold(4, shuffle=True, random_state=3).split(LABELS, LABELS))
    assert len(ours) == 4
    for mine, other in zip(ours, theirs, strict=True):
        assert [part.tolist() for part in mine] == [part.tolist() for part in other]


def test_a_group_is_held_out_whole() -> None:
    groups = np.arange(40) // 3
    folds = stratified_folds(LABELS, 4, 0, groups=groups)
    for group in np.unique(groups):
        assert len(np.unique(folds.test_fold[groups == group])) == 1
    assert np.bincount(folds.test_fold).min() >= 6
    assert folds.test_fold.tolist() == stratified_folds(LABELS, 4, 0, groups=groups).test_fold.tolist()
    with pytest.raises(ValueError, match="n_splits"):
        stratified_folds(LABELS, 24, 0)
