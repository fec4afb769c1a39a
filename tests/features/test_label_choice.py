"""The images to label next: unsure, unlike each other and the labeled ones, and of all predicted classes."""

from __future__ import annotations

import numpy as np

from transfermpl.features.label_choice import LEAD, margin_uncertainty, most_useful


def clusters(sizes: list[int], *, spread: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Features around as many directions as there are sizes, and which of them each is of."""
    random, groups = np.random.default_rng(0), np.repeat(np.arange(len(sizes)), sizes)
    return np.eye(len(sizes))[groups] + random.normal(0, spread, (len(groups), len(sizes))), groups


def test_margins() -> None:
    assert np.allclose(margin_uncertainty(np.array([[1.0, 0, 0], [0.4, 0.4, 0.2], [0.7, 0.2, 0.1]])), [0, 1, 0.5])


def test_each_group_that_no_label_is_in_the_largest_first() -> None:
    features, groups = clusters([20, 10, 30, 5])
    even = np.full((len(groups), 2), 0.5)
    chosen = most_useful(even, features, features[groups == 0][:2], 3)
    assert groups[chosen].tolist() == [2, 1, 3]


def test_none_of_no_images() -> None:
    assert not len(most_useful(np.zeros((0, 2)), np.zeros((0, 3)), np.ones((4, 3)), 5))


def test_what_is_sure_is_no_use() -> None:
    features, groups = clusters([20, 20])
    probabilities = np.where(groups[:, None] == 0, [[1.0, 0.0]], [[0.5, 0.5]])
    assert groups[most_useful(probabilities, features, features[:0], 1)].tolist() == [1]


def test_predicted_classes_stay_in_balance_as_far_as_there_are_images() -> None:
    features, groups = clusters([40, 6, 3])
    probabilities = np.eye(3)[groups] * 0.1 + 0.3
    chosen = most_useful(probabilities, features, features[:1], 49)
    assert sorted(chosen.tolist()) == list(range(49))
    counts = np.cumsum(np.eye(3)[groups[chosen]], axis=0)
    both = counts[: np.argmax(counts[:, 2] == 3)]
    assert (both.max(axis=1) - both.min(axis=1)).max() <= LEAD
    assert len(most_useful(probabilities, features, features[:1], 60)) == 49
