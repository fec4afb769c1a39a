"""The linear probe: scikit-learn's logistic regression on features, as all who judge features by few labels use it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


@dataclass(frozen=True)
class LinearProbe:
    """A fitted classifier of features [n, D] with `classes` classes; one it had no label of has a probability of 0."""

    model: Any
    classes: int

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The likeliest class, int64 [n]."""
        return self.model.predict(features)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """float [n, classes]; float32 for float32 features."""
        return self._of_all_classes(self.model.predict_proba(features), 0.0)

    def log_probabilities(self, features: np.ndarray) -> np.ndarray:
        """The logarithms of `probabilities`."""
        return self._of_all_classes(self.model.predict_log_proba(features), -np.inf)

    def _of_all_classes(self, found: np.ndarray, unknown: float) -> np.ndarray:
        result = np.full((len(found), self.classes), unknown, dtype=found.dtype)
        result[:, self.model.classes_] = found
        return result


def fit_linear_probe(
    features: np.ndarray,
    labels: np.ndarray,
    strength: float = 1.0,
    *,
    classes: int | None = None,
    standardize: bool = False,
    max_iter: int = 500,
) -> LinearProbe:
    """Fit features [N, D] and labels int64 [N] in 0 .. classes - 1 (by default the largest label is the last class).

    strength: C, the inverse of the L2 penalty's. standardize: bring each feature to mean 0 and variance 1 first.
    """
    model = _unfitted(strength, standardize, max_iter) if len(np.unique(labels)) > 1 else DummyClassifier()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that something did not converge, on data that no one has looked at before
        model.fit(features, labels)
    return LinearProbe(model, int(labels.max()) + 1 if classes is None else classes)


def choose_strength(
    features: np.ndarray,
    labels: np.ndarray,
    strengths: Sequence[float],
    folds: Any,
    *,
    standardize: bool = False,
    max_iter: int = 500,
) -> float:
    """The C with the least log loss on the images held out; accuracies of few images are too coarse to choose by.

    folds: what `cv` of scikit-learn takes: a splitter (base/folds.py), or pairs of positions (train, held out).
    """
    grid = {"logisticregression__C": list(strengths)}
    model = _unfitted(1.0, standardize, max_iter)
    search = GridSearchCV(model, grid, cv=folds, scoring=_negative_log_loss, refit=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # see fit_linear_probe
        search.fit(features, labels)
    return float(search.best_params_["logisticregression__C"])


def _negative_log_loss(model: Any, features: np.ndarray, labels: np.ndarray) -> float:
    """scikit-learn's neg_log_loss, which has no value where a fold holds out no image of some class."""
    return -float(log_loss(labels, model.predict_proba(features), labels=model.classes_))


def _unfitted(strength: float, standardize: bool, max_iter: int) -> Any:
    regression = LogisticRegression(C=strength, max_iter=max_iter)
    return make_pipeline(StandardScaler(), regression) if standardize else make_pipeline(regression)
