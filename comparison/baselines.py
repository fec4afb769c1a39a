"""Baselines: classifiers of scikit-learn on what our models see, which learning from unlabeled images has to beat."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..base.folds import stratified_folds
from ..features.head_prior import in_axes
from ..features.sources import Source, normalized_features
from ..utils import generator
from .task import Task

if TYPE_CHECKING:
    from ..features.linear_probe import LinearProbe
    from ..learning.learner import HeadPrior

PIXELS = 32  # side to which images are averaged where there are no features
SPREAD_OVER = 10_000  # unlabeled images that labels are spread over: a graph of very many takes hours
STRENGTH = 0.01  # C where a class has one label and nothing can be held out; from 0.0001 to 10 it hardly matters
ALPHA, ALPHA_OF_POINTS = 0.9, 0.99  # how much of an image's class comes from its neighbours; Zhou et al. took 0.99
NEIGHBOURS = 10
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)  # of the unlabeled images that self-training learns from, round by round


def baseline_accuracy(name: str, task: Task) -> tuple[float, str]:
    """The test accuracy of one of BASELINES, and what it learned from: features, pixels or points."""
    baseline, (sources, what) = BASELINES[name], sources_of(task)
    split, labels = task.split, task.dataset.labels
    unlabeled = np.setdiff1d(split.unlabeled, split.labeled)
    if len(unlabeled) > SPREAD_OVER:
        unlabeled = generator(task.options.run.seed, "spread").permutation(unlabeled)[:SPREAD_OVER]
    parts = (split.labeled, unlabeled if baseline.spreads else unlabeled[:0], split.test)
    told = on_features(task).statistics() if baseline.informed else None
    labeled, others, test = (inputs(sources, rows, () if told is None else told.head_priors) for rows in parts)
    given = Given(
        labeled,
        labels[split.labeled],
        others,
        angles=what == "features",
        in_prior_space=told is not None,
        class_prior=None if told is None else told.class_prior,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that something did not converge, on data that no one has looked at before
        predicted = baseline.fit(given)(test)
    return float((predicted == labels[split.test]).mean()), what


def sources_of(task: Task) -> tuple[list[Source], str]:
    """Where the inputs of baselines come from, a source a view, and what they are: features, pixels or points.

    Features are those of a frozen or pretrained backbone; of a network from scratch there are only pixels.
    """
    views = on_features(task).views()
    if views.frozen:
        return [view.source for view in views], "features"
    return [view.images for view in views], "points" if task.dataset.kind == "points" else "pixels"


def on_features(task: Task) -> Task:
    """The same task on frozen backbones where they are pretrained, whatever of them is to learn."""
    views = task.views()
    pretrained = not views.frozen and all(view.backbone.pretrained for view in views)
    return task.changed(unfreeze="head") if pretrained else task


def baselines_of(task: Task) -> list[str]:
    """The names of the baselines that have something to learn from here."""
    frozen = on_features(task).views().frozen
    return [name for name, baseline in BASELINES.items() if frozen or not baseline.informed]


def inputs(sources: Sequence[Source], rows: np.ndarray, priors: Sequence[HeadPrior | None] = ()) -> np.ndarray:
    """What a baseline sees of the rows, unaugmented: float [n, D], the views of a co-training side by side.

    priors: those of our heads, a source each, in whose space features are to be seen.
    """
    if not len(rows):
        return np.zeros((0, 1), dtype=np.float32)
    if not priors:
        return np.concatenate([np.concatenate([flat(batch) for batch in s.inputs(rows)]) for s in sources], axis=1)
    parts = []
    for source, prior in zip(sources, priors, strict=True):
        features = normalized_features(source, rows, "eval")
        parts.append(features if prior is None else in_axes(features, prior.center.cpu(), prior.axes.cpu()))
    return torch.cat(parts, dim=1).numpy()


def flat(batch: Tensor) -> np.ndarray:
    """Rows of numbers: features and points as they are, images averaged to at most PIXELS a side."""
    if batch.ndim == 4 and max(batch.shape[2:]) > PIXELS:
        batch = functional.adaptive_avg_pool2d(batch, PIXELS)
    return batch.float().flatten(1).cpu().numpy()


@dataclass(frozen=True)
class Given:
    """What a baseline learns from: float [n, D] `labeled` with int `labels` [n], and float [m, D] `unlabeled`.

    angles: whether rows are compared by their direction, as is usual for features. in_prior_space: whether the head
    prior has already brought them to where they are compared. class_prior [C]: that of the unlabeled images, where it
    is estimated.
    """

    labeled: np.ndarray
    labels: np.ndarray
    unlabeled: np.ndarray
    angles: bool
    in_prior_space: bool = False
    class_prior: np.ndarray | None = None

    @property
    def folds(self) -> int:
        """Of a cross-validation on the labeled images: as many as the rarest class has images, at most 5."""
        return min(5, int(np.unique(self.labels, return_counts=True)[1].min()))

    def scaled(self, rows: np.ndarray) -> np.ndarray:
        """Rows as they are compared: features at a root mean square of 1, so that their direction counts alone."""
        if not self.angles or self.in_prior_space:
            return rows
        return rows / np.maximum(np.sqrt((rows**2).mean(axis=1, keepdims=True)), 1e-12)


Classifier = Callable[[np.ndarray], np.ndarray]


def logistic_regression(given: Given) -> Classifier:
    """See `logistic_model`."""
    model, _ = logistic_model(given)
    return lambda rows: model.predict(given.scaled(rows))


def logistic_model(given: Given) -> tuple[LinearProbe, float]:
    """A linear probe of the scaled rows, and its C: by cross-validation on the labeled images where they are enough.

    Pixels and points are standardised; features are not, since few images say little of each one's spread.
    """
    from ..features.linear_probe import choose_strength, fit_linear_probe

    strength, labeled, labels, standardize = STRENGTH, given.scaled(given.labeled), given.labels, not given.angles
    if given.folds >= 2:
        strengths = np.logspace(-4, 2, 7).tolist()
        folds = stratified_folds(labels, given.folds, seed=0)
        strength = choose_strength(labeled, labels, strengths, folds, standardize=standardize)
    return fit_linear_probe(labeled, labels, strength, standardize=standardize), strength


def nearest_class_mean(given: Given) -> Classifier:
    """The class whose mean lies nearest."""
    from sklearn.metrics import pairwise_distances_argmin

    rows, known = given.scaled(given.labeled), np.unique(given.labels)
    means = np.stack([rows[given.labels == label].mean(axis=0) for label in known])
    return lambda tested: known[pairwise_distances_argmin(given.scaled(tested), means)]


def self_training(given: Given) -> Classifier:
    """A linear probe that learns from its own predictions of the unlabeled images, more of them in each round.

    Of each class those that it is surest of, in proportion to the class prior, or where none is estimated to the label
    frequencies: the surest of all would soon be of one class.
    """
    from ..features.linear_probe import fit_linear_probe

    model, strength = logistic_model(given)
    labeled, unlabeled = given.scaled(given.labeled), given.scaled(given.unlabeled)
    frequencies = np.bincount(given.labels) / len(given.labels) if given.class_prior is None else given.class_prior
    for share in SHARES if len(unlabeled) else ():
        rows, guessed = surest_of_each_class(model.probabilities(unlabeled), frequencies, share)
        both, labels = np.concatenate([labeled, unlabeled[rows]]), np.concatenate([given.labels, guessed])
        model = fit_linear_probe(both, labels, strength, standardize=not given.angles, max_iter=200)
    return lambda rows: model.predict(given.scaled(rows))


def surest_of_each_class(
    probabilities: np.ndarray, frequencies: np.ndarray, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Positions [n] among rows [N, C], and the classes they are given: of each class its share of N.

    Where several classes want an image, it goes to the likeliest of them.
    """
    wanted = np.full_like(probabilities, -1.0)
    for label, frequency in enumerate(frequencies):
        first = np.argsort(-probabilities[:, label], kind="stable")[: round(share * frequency * len(probabilities))]
        wanted[first, label] = probabilities[first, label]
    rows = np.flatnonzero(wanted.max(axis=1) >= 0)
    return rows, wanted[rows].argmax(axis=1)


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

    F = (I - alpha S)^-1 Y (Zhou et al. 2004, eq. 4), with S the graph W in both directions, normalised; in Y each class
    has the same sum. Then each class gets the part of the unlabeled images that it has of the labels (class mass
    normalisation, Zhu et al. 2003): otherwise one in a dense region takes more.
    """
    from scipy.sparse import diags_array, eye_array
    from scipy.sparse.linalg import cg

    rows = np.concatenate([given.scaled(part) for part in (given.labeled, given.unlabeled) if len(part)])
    graph = _Neighbours(rows, near=given.angles)
    weights = graph.weights()
    weights = weights + weights.T
    scale = diags_array(1 / np.sqrt(np.maximum(np.asarray(weights.sum(axis=1)).ravel(), 1e-12)))
    system = eye_array(len(rows)) - (ALPHA if given.angles else ALPHA_OF_POINTS) * (scale @ weights @ scale)
    known = np.eye(given.labels.max() + 1)[given.labels]
    start = np.zeros((len(rows), known.shape[1]))
    start[: len(known)] = known / np.maximum(known.sum(axis=0), 1)
    spread = np.stack([cg(system, column, rtol=1e-6, maxiter=1000)[0] for column in start.T], axis=1).clip(min=1e-12)
    spread /= spread.sum(axis=1, keepdims=True)
    spread[: len(known)] = known
    others = spread[len(known) :]
    for _ in range(50 if len(others) else 0):
        others *= known.mean(axis=0) / np.maximum(others.mean(axis=0), 1e-12)
        others /= others.sum(axis=1, keepdims=True)
    return lambda tested: (graph.weights(given.scaled(tested)) @ spread).argmax(axis=1)


class _Neighbours:
    """The nearest of some rows [N, D]. near: nearer ones count more, by their cosine, else all NEIGHBOURS the same."""

    def __init__(self, rows: np.ndarray, *, near: bool) -> None:
        from sklearn.neighbors import NearestNeighbors

        self.near, self.width = near, rows.shape[1]
        self.found = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(rows) - 1)).fit(rows)

    def weights(self, rows: np.ndarray | None = None) -> Any:
        """The sparse matrix [n, N] of how much each row's neighbours count; without rows, of each other."""
        graph = self.found.kneighbors_graph(rows, mode="distance" if self.near else "connectivity")
        if self.near:  # of rows of root mean square 1 the squared distance is 2 D (1 - cosine)
            graph.data = np.maximum(1 - graph.data**2 / (2 * self.width), 1e-6) ** 3
        return graph


@dataclass(frozen=True)
class Baseline:
    """A classifier that is cheap to train.

    spreads: whether it also learns from the unlabeled images. informed: whether it is given what these tell our own
    trainings before they begin: head prior and class prior. So it shows what is left for the training itself.
    """

    fit: Callable[[Given], Classifier]
    spreads: bool = False
    informed: bool = False


BASELINES = {
    "logistic regression": Baseline(logistic_regression),
    "nearest class mean": Baseline(nearest_class_mean),
    "nearest neighbours": Baseline(nearest_neighbours),
    "label spreading": Baseline(label_spreading, spreads=True),
    "self-training": Baseline(self_training, spreads=True),
    "logistic regression with priors": Baseline(logistic_regression, informed=True),
    "self-training with priors": Baseline(self_training, spreads=True, informed=True),
}
