"""Baselines: classifiers of scikit-learn on what our models see, which learning from unlabeled images has to beat."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.nn import functional

from ..base.folds import stratified_folds
from ..features.sources import Source
from ..utils import generator
from .task import Task

if TYPE_CHECKING:
    from ..features.linear_probe import LinearProbe

PIXELS = 32  # side to which images are averaged where there are no features
SPREAD_OVER = 10_000  # unlabeled images that labels are spread over: a graph of very many takes hours


def baseline_accuracy(name: str, task: Task) -> tuple[float, str]:
    """The test accuracy of one of BASELINES, and what it learned from: features, pixels or points."""
    sources, what = sources_of(task)
    split, labels = task.split, task.dataset.labels
    unlabeled = np.setdiff1d(split.unlabeled, split.labeled)
    if len(unlabeled) > SPREAD_OVER:
        unlabeled = generator(task.options.run.seed, "spread").permutation(unlabeled)[:SPREAD_OVER]
    baseline = BASELINES[name]
    parts = (split.labeled, unlabeled if baseline.spreads else unlabeled[:0], split.test)
    labeled, others, test = (inputs(sources, rows) for rows in parts)
    given = Given(labeled, labels[split.labeled], others, angles=what == "features")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that something did not converge, on data that no one has looked at before
        predicted = baseline.fit(given)(test)
    return float((predicted == labels[split.test]).mean()), what


def sources_of(task: Task) -> tuple[list[Source], str]:
    """Where the inputs of baselines come from, a source a view, and what they are: features, pixels or points.

    Features are those of a frozen or pretrained backbone; of a network from scratch there are only pixels.
    """
    views = task.views()
    if not views.frozen and all(view.backbone.pretrained for view in views):
        views = task.changed(unfreeze="head").views()
    if views.frozen:
        return [view.source for view in views], "features"
    return [view.images for view in views], "points" if task.dataset.kind == "points" else "pixels"


def inputs(sources: Sequence[Source], rows: np.ndarray) -> np.ndarray:
    """What a baseline sees of the rows, unaugmented: float [n, D], the views of a co-training side by side."""
    if not len(rows):
        return np.zeros((0, 1), dtype=np.float32)
    return np.concatenate([np.concatenate([flat(batch) for batch in s.inputs(rows)]) for s in sources], axis=1)


def flat(batch: Tensor) -> np.ndarray:
    """Rows of numbers: features and points as they are, images averaged to at most PIXELS a side."""
    if batch.ndim == 4 and max(batch.shape[2:]) > PIXELS:
        batch = functional.adaptive_avg_pool2d(batch, PIXELS)
    return batch.float().flatten(1).cpu().numpy()


@dataclass(frozen=True)
class Given:
    """What a baseline learns from: float [n, D] `labeled` with int `labels` [n], and float [m, D] `unlabeled`.

    angles: whether rows are compared by their direction, as is usual for features.
    """

    labeled: np.ndarray
    labels: np.ndarray
    unlabeled: np.ndarray
    angles: bool

    @property
    def folds(self) -> int:
        """Of a cross-validation on the labeled images: as many as the rarest class has images, at most 5."""
        return min(5, int(np.unique(self.labels, return_counts=True)[1].min()))

    def scaled(self, rows: np.ndarray) -> np.ndarray:
        """Rows as they are compared to find neighbours."""
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) if self.angles else rows


Classifier = Callable[[np.ndarray], np.ndarray]


def logistic_regression(given: Given) -> Classifier:
    """See `logistic_model`."""
    return logistic_model(given).predict


def logistic_model(given: Given) -> LinearProbe:
    """A linear probe, its C by cross-validation on the labeled images; 1, where a class has one image."""
    from ..features.linear_probe import choose_strength, fit_linear_probe

    strength, labeled, labels = 1.0, given.labeled, given.labels
    if given.folds >= 2:
        strengths = np.logspace(-4, 2, 7).tolist()
        folds = stratified_folds(labels, given.folds, seed=0)
        strength = choose_strength(labeled, labels, strengths, folds, standardize=True)
    return fit_linear_probe(labeled, labels, strength, standardize=True)


def nearest_neighbours(given: Given) -> Classifier:
    """The number of neighbours by cross-validation on the labeled images."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsClassifier

    most = len(given.labels) * (given.folds - 1) // max(given.folds, 1)
    grid = {"n_neighbors": [k for k in (1, 3, 5, 10, 20) if k <= max(1, most)]}
    model: Any = KNeighborsClassifier(1)
    if given.folds >= 2:
        folds = stratified_folds(given.labels, given.folds, seed=0)
        model = GridSearchCV(model, grid, cv=folds, scoring="accuracy")
    model.fit(given.scaled(given.labeled), given.labels)
    return lambda rows: model.predict(given.scaled(rows))


def label_spreading(given: Given) -> Classifier:
    """Labels spread along a graph of neighbours over labeled and unlabeled images; test images take their neighbours'.

    alpha is that of Zhou et al. 2004: with scikit-learn's own of 0.2 hardly a label gets beyond its nearest neighbours.
    """
    from sklearn.semi_supervised import LabelSpreading

    rows = np.concatenate([given.scaled(part) for part in (given.labeled, given.unlabeled) if len(part)])
    labels = np.concatenate([given.labels, np.full(len(rows) - len(given.labels), -1)])
    neighbours = min(10, len(rows))
    model = LabelSpreading(kernel="knn", n_neighbors=neighbours, alpha=0.99, max_iter=1000, tol=1e-6).fit(rows, labels)
    return lambda tested: model.predict(given.scaled(tested))


@dataclass(frozen=True)
class Baseline:
    """A classifier that is cheap to train. spreads: whether it also learns from the unlabeled images."""

    fit: Callable[[Given], Classifier]
    spreads: bool = False


BASELINES = {
    "logistic regression": Baseline(logistic_regression),
    "nearest neighbours": Baseline(nearest_neighbours),
    "label spreading": Baseline(label_spreading, spreads=True),
}
