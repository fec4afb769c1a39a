"""The linear probe: what scikit-learn's logistic regression gives, for all classes, and how its C is chosen."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from transfermpl.base.folds import stratified_folds
from transfermpl.features.linear_probe import choose_strength, fit_linear_probe


def clouds(each: int, *, noise: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), each)
    return (np.eye(3, 8)[labels] + random.normal(0, noise, (3 * each, 8))).astype(np.float32), labels


def test_it_is_the_logistic_regression_of_scikit_learn_bit_for_bit() -> None:
    features, labels = clouds(10)
    probe = fit_linear_probe(features, labels, 0.1, max_iter=300)
    expected = LogisticRegression(C=0.1, max_iter=300).fit(features, labels)
    assert np.array_equal(probe.log_probabilities(features), expected.predict_log_proba(features))
    assert np.array_equal(probe.probabilities(features), expected.predict_proba(features))
    assert np.array_equal(probe.predict(features), expected.predict(features))
    assert probe.log_probabilities(features).dtype == expected.predict_log_proba(features).dtype


def test_classes_without_a_label_have_no_probability() -> None:
    features, labels = clouds(10)
    probe = fit_linear_probe(features[labels != 1], labels[labels != 1], classes=4)
    found = probe.probabilities(features)
    assert found.shape == (30, 4)
    assert (found[:, [1, 3]] == 0).all()
    assert found.sum(axis=1) == pytest.approx(np.ones(30))
    assert np.isneginf(probe.log_probabilities(features)[:, [1, 3]]).all()
    alone = fit_linear_probe(features[:5], np.full(5, 2), classes=3)
    assert alone.probabilities(features[:2]).tolist() == [[0, 0, 1]] * 2
    assert alone.predict(features[:2]).tolist() == [2, 2]


def test_features_of_any_size_are_standardized() -> None:
    features, labels = clouds(10)
    probe, larger = (fit_linear_probe(scale * features, labels, standardize=True) for scale in (1, 1000))
    assert larger.probabilities(1000 * features) == pytest.approx(probe.probabilities(features), abs=1e-3)


@pytest.mark.slow
def test_the_strength_is_that_of_the_least_log_loss() -> None:
    strengths = np.logspace(-4, 2, 7).tolist()
    for noise in (0.1, 0.8, 3.0):
        features, labels = clouds(12, noise=noise)
        folds = stratified_folds(labels, 4, seed=0)
        search = GridSearchCV(LogisticRegression(max_iter=500), {"C": strengths}, cv=folds, scoring="neg_log_loss")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = search.fit(features, labels).best_params_["C"]
        assert choose_strength(features, labels, strengths, folds) == expected


def test_a_fold_may_lack_a_class() -> None:
    features, labels = clouds(12, noise=0.8)
    held_out = np.flatnonzero(labels < 2)[::4]
    folds = [(np.setdiff1d(np.arange(36), held_out), held_out)]
    assert choose_strength(features, labels, [1e-6, 1.0], folds) == 1.0


def test_what_does_not_converge_is_not_warned_of() -> None:
    features, labels = clouds(12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_linear_probe(1e4 * features, labels, 1e6, max_iter=2)
        choose_strength(1e4 * features, labels, [1e5, 1e6], stratified_folds(labels, 2, seed=0), max_iter=2)
