"""Classes from probabilities: the most probable one, with weights and thresholds."""

from __future__ import annotations

import numpy as np

from transfermpl.base.decisions import decide

CLASSES = ("ok", "dent", "hole")
P = np.array([[0.8, 0.15, 0.05], [0.5, 0.3, 0.2], [0.2, 0.1, 0.7], [0.1, 0.6, 0.3]])


def test_without_weights_and_thresholds_it_is_the_most_probable_class() -> None:
    assert decide(P, CLASSES, (), {}).tolist() == [0, 0, 2, 1]
    assert decide(P[:0], CLASSES, (), {"dent": 0.5}).tolist() == []


def test_weights_prefer_rare_classes() -> None:
    assert decide(P, CLASSES, (1, 3, 3), {}).tolist() == [0, 1, 2, 1]


def test_a_class_that_reaches_its_threshold_is_chosen_and_never_less_often_than_before() -> None:
    assert decide(P, CLASSES, (), {"dent": 0.15}).tolist() == [1, 1, 2, 1]
    assert decide(P, CLASSES, (), {"dent": 0.9}).tolist() == [0, 0, 2, 1]


def test_of_several_thresholds_the_one_that_is_exceeded_most_counts() -> None:
    assert decide(P, CLASSES, (), {"dent": 0.15, "hole": 0.1}).tolist() == [1, 1, 2, 1]
    assert decide(P, CLASSES, (), {"dent": 0.0, "hole": 0.0})[2] == 2
