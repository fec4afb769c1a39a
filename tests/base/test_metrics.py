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

from transfermpl.base.metrics import (
    TEMPERATURES,
    brier_score,
    confusion_matrix,
    cross_validated_interval,
    expected_calibration_error,
    fit_temperature,
    logits,
    metrics,
    paired_difference,
    probabilities,
    reliability,
    tempered,
    wilson_interval,
    with_ensemble,
)

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
    assert found["balanced_accuracy"] == pytest.approx(np.mean([(predicted[labels == i] == i).mean() for i in present]))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predicted, labels=present, average="macro"))
    for index, name in enumerate(CLASSES):
        mine = labels == index
        expected = (predicted[mine] == index).mean() if mine.any() else None
        assert found["per_class"][name] == (None if expected is None else pytest.approx(expected))
    low, high = found["ci95"]
    assert 0 <= low <= found["accuracy"] <= high <= 1


def test_an_interval_of_folds_allows_for_what_their_trainings_share() -> None:
    # Nadeau and Bengio (2003): (1 / J + n2 / n1) p (1 - p) / n2, here of J = 6 trainings on 40 images, 20 of them each.
    variance = (1 / 6 + 1 / 2) * 0.8 * 0.2 / (60 / 3)
    low, high = cross_validated_interval(0.8, 60, 3, 2)
    assert [low, high] == pytest.approx(wilson_interval(0.8 * (0.16 / variance), 0.16 / variance))
    assert low < 0.8 < high
    assert cross_validated_interval(1.0, 40, 3, 2)[1] == 1.0
    assert 0.8 < cross_validated_interval(1.0, 40, 3, 2)[0] < cross_validated_interval(1.0, 40, 3, 9)[0] < 0.9
    assert cross_validated_interval(0.0, 40, 3, 1)[0] == 0.0


def test_the_interval_is_that_of_wilson() -> None:
    assert wilson_interval(50, 100) == pytest.approx([0.40383, 0.59617], abs=1e-5)
    assert wilson_interval(0, 20) == pytest.approx([0.0, 0.16113], abs=1e-5)
    assert wilson_interval(20, 20) == pytest.approx([0.83887, 1.0], abs=1e-5)
    assert wilson_interval(1, 1)[0] > 0.2


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    for truth, total in ((0.5, 40), (0.93, 60), (0.99, 300)):
        counts, times = np.unique(random.binomial(total, truth, 4000), return_counts=True)
        ends = [wilson_interval(int(k), total) for k in counts]
        covered = np.average([low <= truth <= high for low, high in ends], weights=times)
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
    for ours, theirs in (([0.8], [0.7]), ([0.8, 0.9], [0.7, 0.8])):  # two that are equal say no more than one
        mean, (low, high) = paired_difference(ours, theirs)
        assert mean == pytest.approx(0.1)
        assert np.isnan([low, high]).all()
    assert paired_difference([0.8, 0.7, 0.6], [0.8, 0.7, 0.6]) == (0.0, [0.0, 0.0])


def test_several_intervals_that_hold_at_once_are_wider() -> None:
    ours, theirs = [0.8, 0.9, 0.7], [0.7, 0.81, 0.59]
    mean, (low, high) = paired_difference(ours, theirs, comparisons=5)
    assert mean == pytest.approx(0.1)
    assert high - mean == pytest.approx(0.024841 * 9.92484 / 4.30265, abs=1e-5)  # t of 0.5% and of 2.5% at 2 degrees
    assert mean - low == pytest.approx(high - mean)


# --- calibration ------------------------------------------------------------------------------------------------------


def drawn(count: int, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are as sure as they should be: labels are drawn from their softmax."""
    random = np.random.default_rng(count)
    z = 2.5 * random.normal(size=(count, classes))
    p = softmax(z)
    return z, (p.cumsum(axis=1) < random.random((count, 1))).sum(axis=1)


def softmax(z: np.ndarray) -> np.ndarray:
    scaled = np.exp(z - z.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_the_temperature_undoes_what_made_the_logits_too_sure_or_too_unsure(scale: float) -> None:
    z, labels = drawn(4000)
    fitted = fit_temperature(scale * z, labels)
    assert fitted == pytest.approx(scale, rel=0.06)
    losses = [
        -np.log(softmax(scale * z / t)[np.arange(4000), labels]).mean() for t in (0.9 * fitted, fitted, 1.1 * fitted)
    ]
    assert losses[1] < min(losses[0], losses[2])
    before, after = softmax(scale * z), tempered(softmax(scale * z), fitted)
    assert expected_calibration_error(after, labels) < 0.03
    if scale != 1.0:
        assert expected_calibration_error(before, labels) > 4 * expected_calibration_error(after, labels)
        assert brier_score(before, labels) > brier_score(after, labels)


def test_few_or_separable_images_ask_neither_for_certainty_nor_for_none() -> None:
    z = 8 * np.eye(3)[[0, 1, 2] * 5]
    right, wrong = np.array([0, 1, 2] * 5), np.array([1, 2, 0] * 5)
    assert 0.5 < fit_temperature(z, right) < 1
    assert 5 < fit_temperature(z, wrong) <= TEMPERATURES[1]
    assert 0.7 < fit_temperature(z[:1], right[:1]) < 1.4
    assert fit_temperature(z[:0], right[:0]) == 1.0
    assert fit_temperature(1000 * z, right) >= TEMPERATURES[0]
    assert fit_temperature(np.zeros((60, 3)), np.arange(60) % 3) == pytest.approx(1.0, abs=1e-3)


def test_tempered_probabilities_are_those_of_scaled_logits_and_predict_the_same() -> None:
    z, _ = drawn(200)
    found = tempered(softmax(z).astype(np.float32), 2.5)
    assert found == pytest.approx(softmax(z / 2.5), abs=1e-5)
    assert found.dtype == np.float32
    assert (found.argsort(axis=1) == z.argsort(axis=1)).all()
    assert tempered(np.array([[1.0, 0.0]]), 0.05) == pytest.approx(np.array([[1.0, 0.0]]))
    assert tempered(softmax(z), 1.0) == pytest.approx(softmax(z), abs=1e-6)


def test_reliability_brier_and_the_calibration_error_by_hand() -> None:
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.35, 0.65], [0.45, 0.55]])
    labels = np.array([0, 1, 1, 1])
    found = reliability(p, labels, bins=10)
    assert found["count"].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 0]  # 0.8 and 0.9 belong to the bin that they end
    assert found["confidence"][5:9] == pytest.approx([0.55, 0.65, 0.8, 0.9])
    assert found["accuracy"][5:9] == pytest.approx([1, 1, 0, 1])
    assert np.isnan(found["accuracy"][[0, 9]]).all()
    assert expected_calibration_error(p, labels, bins=10) == pytest.approx((0.45 + 0.35 + 0.8 + 0.1) / 4)
    assert expected_calibration_error(p, labels, bins=1) == pytest.approx(abs(0.725 - 0.75))
    assert brier_score(p, labels) == pytest.approx(2 * (0.1**2 + 0.8**2 + 0.35**2 + 0.45**2) / 4)
    assert reliability(np.array([[1.0, 0.0]]), np.array([0]))["count"][-1] == 1


def test_probabilities_are_the_softmax_of_the_logits() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Linear(5, 3), torch.randn(7, 5)
    found = logits({"student": model}, [inputs[:4], inputs[4:]])["student"]
    assert found == pytest.approx(model(inputs).detach().numpy(), abs=1e-6)
    assert softmax(found) == pytest.approx(probabilities({"student": model}, [inputs])["student"], abs=1e-6)
