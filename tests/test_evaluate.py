"""Predictions, metrics and intervals, against scikit-learn and against what can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score
from sklearn.metrics import confusion_matrix as sklearn_confusion
from torch import nn

from evaluate import confusion_matrix, metrics, paired_difference, probabilities, wilson_interval, with_ensemble

CLASSES = ("a", "b", "c", "d")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_metrics_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = np.array(pairs).T
    confusion = confusion_matrix(labels, predicted, 4)
    assert (confusion == sklearn_confusion(labels, predicted, labels=range(4))).all()
    found = metrics(confusion, CLASSES)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    present = sorted(set(labels))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predicted, labels=present, average="macro"))
    for index, name in enumerate(CLASSES):
        mine = labels == index
        expected = (predicted[mine] == index).mean() if mine.any() else None
        assert found["per_class"][name] == (None if expected is None else pytest.approx(expected))
    low, high = found["ci95"]
    assert 0 <= low <= found["accuracy"] <= high <= 1


def test_the_interval_is_that_of_wilson() -> None:
    assert wilson_interval(50, 100) == pytest.approx([0.40383, 0.59617], abs=1e-5)
    assert wilson_interval(0, 20) == pytest.approx([0.0, 0.16113], abs=1e-5)
    assert wilson_interval(20, 20) == pytest.approx([0.83887, 1.0], abs=1e-5)
    assert wilson_interval(1, 1)[0] > 0.2


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    for truth, total in ((0.5, 40), (0.93, 60), (0.99, 300)):
        ends = [wilson_interval(int(k), total) for k in random.binomial(total, truth, 4000)]
        covered = np.mean([low <= truth <= high for low, high in ends])
        assert 0.92 < covered < 0.985


def test_the_ensemble_is_the_mean_of_the_probabilities() -> None:
    a, b = np.array([[0.9, 0.1]], np.float32), np.array([[0.2, 0.8]], np.float32)
    assert with_ensemble({"student": a}).keys() == {"student"}
    both = with_ensemble({"teacher": a, "student": b})
    assert list(both) == ["teacher", "student", "ensemble"]
    assert both["ensemble"] == pytest.approx(np.array([[0.55, 0.45]]))
    assert both["ensemble"].shape == a.shape


def test_probabilities_are_of_eval_mode_and_leave_the_models_as_they_were() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    still = nn.Linear(5, 3).eval()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = torch.randn(10, 5)
    seen = []

    def batches():  # type: ignore[no-untyped-def]
        for i in (0, 4, 8):
            seen.append(i)
            yield inputs[i : i + 4]

    found = probabilities({"student": model, "teacher": still}, batches())
    assert seen == [0, 4, 8]  # every model sees each batch, which is made once
    assert model.training
    assert not still.training
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    model.eval()
    expected = model(inputs).softmax(dim=1).detach().numpy()
    assert found["student"] == pytest.approx(expected, abs=1e-6)
    assert found["student"].dtype == np.float32
    assert found["student"].sum(axis=1) == pytest.approx(np.ones(10), abs=1e-6)


def test_a_model_is_in_train_mode_again_after_an_error() -> None:
    model = nn.Linear(5, 3).train()
    with pytest.raises(RuntimeError):
        probabilities({"student": model}, [torch.zeros(1, 4)])
    assert model.training


def test_a_difference_is_paired_over_the_seeds() -> None:
    mean, (low, high) = paired_difference([0.8, 0.9, 0.7], [0.7, 0.81, 0.59])
    assert mean == pytest.approx(0.1)
    assert (low, high) == pytest.approx((0.1 - 0.024841, 0.1 + 0.024841), abs=1e-5)
    mean, (low, high) = paired_difference([0.8], [0.7])
    assert mean == pytest.approx(0.1)
    assert np.isnan([low, high]).all()
