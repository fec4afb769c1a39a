"""Cheap classifiers of scikit-learn on what our models see: what learning from a pile has to beat."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

from ..args import Options
from ..data import Dataset, Split
from ..runs.setup import Setup
from ..utils import generator

PIXELS = 32  # side to which images are averaged where there are no features to stand on
SPREAD_OVER = 10_000  # unlabeled images that labels are spread over: the graph of all of a large pile takes hours


def reference_accuracy(name: str, options: Options, dataset: Dataset, split: Split) -> tuple[float, str]:
    """The test accuracy of one of REFERENCES, and what it stood on: features, pixels or points."""
    setup, what = ground(options, dataset, split)
    unlabeled = np.setdiff1d(split.unlabeled, split.labeled)
    if len(unlabeled) > SPREAD_OVER:
        unlabeled = generator(options.run.seed, "spread").permutation(unlabeled)[:SPREAD_OVER]
    reference = REFERENCES[name]
    parts = (split.labeled, unlabeled if reference.spreads else unlabeled[:0], split.test)
    labeled, pile, test = (inputs(setup, rows, what) for rows in parts)
    given = Given(labeled, dataset.labels[split.labeled], pile, angles=what == "features")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that something did not converge, on data that no one has looked at before
        predicted = reference.fit(given)(test)
    return float((predicted == dataset.labels[split.test]).mean()), what


def ground(options: Options, dataset: Dataset, split: Split) -> tuple[Setup, str]:
    """What references stand on: a frozen or pretrained backbone's features; from scratch there are only pixels."""
    setup = Setup(options, dataset, split)
    if not setup.frozen and all(view.backbone.pretrained for view in setup.views):
        setup = Setup(options.changed(unfreeze="head"), dataset, split)
    return setup, "features" if setup.frozen else "points" if dataset.kind == "points" else "pixels"


def inputs(setup: Setup, rows: np.ndarray, what: str) -> np.ndarray:
    """What a reference sees of the rows, unaugmented: float [n, D], the views of a co-training side by side."""
    if not len(rows):
        return np.zeros((0, 1), dtype=np.float32)
    sources = [view.source if what == "features" else view.images for view in setup.views]
    return np.concatenate([np.concatenate([flat(batch) for batch in s.inputs(rows)]) for s in sources], axis=1)


def flat(batch: Tensor) -> np.ndarray:
    """Rows of numbers: features and points as they are, images averaged to at most PIXELS a side."""
    if batch.ndim == 4 and max(batch.shape[2:]) > PIXELS:
        batch = functional.adaptive_avg_pool2d(batch, PIXELS)
    return batch.float().flatten(1).cpu().numpy()


@dataclass(frozen=True)
class Given:
    """What a reference learns from. angles: whether rows are compared by their direction, as is usual for features."""

    labeled: np.ndarray
    labels: np.ndarray
    pile: np.ndarray
    angles: bool

    @property
    def folds(self) -> int:
        """Of a cross-validation on the labeled images: as many as the rarest class has images, at most 5."""
        return min(5, int(np.unique(self.labels, return_counts=True)[1].min()))

    def scaled(self, rows: np.ndarray) -> np.ndarray:
        """Rows as neighbours are found by."""
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) if self.angles else rows


Classifier = Callable[[np.ndarray], np.ndarray]


def logistic_regression(given: Given) -> Classifier:
    """See `logistic_model`."""
    return logistic_model(given).predict


def logistic_model(given: Given) -> Any:
    """C by cross-validation on the labeled images; by their log loss, since accuracies of so few are coarse."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    grid = {"logisticregression__C": np.logspace(-4, 2, 7).tolist()}
    return chosen(model, grid, given, given.labeled, "neg_log_loss")


def nearest_neighbours(given: Given) -> Classifier:
    """The number of neighbours by cross-validation on the labeled images."""
    from sklearn.neighbors import KNeighborsClassifier

    most = len(given.labels) * (given.folds - 1) // max(given.folds, 1)
    grid = {"n_neighbors": [k for k in (1, 3, 5, 10, 20) if k <= max(1, most)]}
    model = chosen(KNeighborsClassifier(1), grid, given, given.scaled(given.labeled), "accuracy")
    return lambda rows: model.predict(given.scaled(rows))


def chosen(model: Any, grid: dict[str, Any], given: Given, rows: np.ndarray, scoring: str) -> Any:
    """The model fitted with the setting that cross-validation finds best; as it is, where a class has one image."""
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    if given.folds >= 2:
        folds = StratifiedKFold(given.folds, shuffle=True, random_state=0)
        model = GridSearchCV(model, grid, cv=folds, scoring=scoring)
    return model.fit(rows, given.labels)


def label_spreading(given: Given) -> Classifier:
    """Labels spread along a graph of neighbours over labeled and unlabeled images; a test image asks its neighbours.

    alpha is that of Zhou et al. 2004: with scikit-learn's own of 0.2 hardly a label gets beyond its nearest neighbours.
    """
    from sklearn.semi_supervised import LabelSpreading

    rows = np.concatenate([given.scaled(part) for part in (given.labeled, given.pile) if len(part)])
    labels = np.concatenate([given.labels, np.full(len(rows) - len(given.labels), -1)])
    neighbours = min(10, len(rows))
    model = LabelSpreading(kernel="knn", n_neighbors=neighbours, alpha=0.99, max_iter=1000, tol=1e-6).fit(rows, labels)
    return lambda tested: model.predict(given.scaled(tested))


@dataclass(frozen=True)
class Reference:
    """A cheap classifier, and whether it looks at the unlabeled images."""

    fit: Callable[[Given], Classifier]
    spreads: bool = False


REFERENCES = {
    "logistic regression": Reference(logistic_regression),
    "nearest neighbours": Reference(nearest_neighbours),
    "label spreading": Reference(label_spreading, spreads=True),
}
