"""The folds of a cross-validation, always as scikit-learn's PredefinedSplit.

`split()` yields the positions (train, held out) of each fold, `test_fold` holds the number of each position's fold, and
`cv=` of scikit-learn's searches takes the object as it is. Use `stratified_folds` unless a training depends on the
folds: its results would change with scikit-learn's assignment, so that has `dealt_folds`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..utils import generator

if TYPE_CHECKING:
    from sklearn.model_selection import PredefinedSplit


def stratified_folds(labels: np.ndarray, count: int, seed: int, *, groups: np.ndarray | None = None) -> PredefinedSplit:
    """`count` folds of labels [N] that have the classes in equal parts; images of one of the groups [N] stay together.

    Raises ValueError where `count` is larger than the number of images of every class.
    """
    from sklearn.model_selection import PredefinedSplit, StratifiedGroupKFold, StratifiedKFold

    fold = np.empty(len(labels), dtype=np.int64)
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splits = kind(count, shuffle=True, random_state=seed % 2**32).split(labels, labels, groups)
    for number, (_, held_out) in enumerate(splits):
        fold[held_out] = number
    return PredefinedSplit(fold)


def dealt_folds(labels: np.ndarray, count: int, *, seed: int | None = None) -> PredefinedSplit:
    """`count` folds of labels [N], dealt out like cards: the images of a class, one after another, a fold each.

    With a seed each class is shuffled and class c begins at fold c; without one the order is that of the labels, and a
    class begins where the one before it ended. So fold sizes differ by one at most only without a seed.
    """
    from sklearn.model_selection import PredefinedSplit

    fold, first = np.empty(len(labels), dtype=np.int64), 0
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        if seed is not None:
            members, first = generator(seed, "folds", label).permutation(members), label
        fold[members] = (first + np.arange(len(members))) % count
        first += len(members)
    return PredefinedSplit(fold)
