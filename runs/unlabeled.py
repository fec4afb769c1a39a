"""What a run's unlabeled images say before a head learns: class prior, priors of the heads, neighbours."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..args import Learning, Model
from ..base.progress import ProgressBar
from ..features.bank import Kind
from ..features.class_prior import MOST, estimate_class_prior, features_of, label_frequencies, stratified_sample
from ..features.head_prior import augmented_features, center_of, fit_axes
from ..features.neighbours import nearest_images
from ..learning.batches import BatchSampler
from ..learning.learner import HeadPrior
from ..utils import generator
from .context import RunContext
from .views import FeatureCache, View, Views


@dataclass(frozen=True)
class UnlabeledStatistics:
    """What the unlabeled images say, an entry a view in the tuples.

    class_prior: float64 [C], how frequent the classes are among them; None where no prediction is aligned to it.
    head_priors: center [D] and axes [D, D] of the priors of each view's heads; None without one: where heads are not
    linear, nothing is frozen, nothing is unlabeled, or the images say nothing. neighbours: rows int64 [N, count] of the
    unlabeled images that are nearest to each, 0 for images outside the unlabeled set; None where they are not wanted,
    nothing is frozen, or there are no two unlabeled images.
    """

    class_prior: np.ndarray | None
    head_priors: tuple[HeadPrior | None, ...]
    neighbours: tuple[np.ndarray | None, ...]

    @property
    def neighbour_count(self) -> int:
        """How many neighbours a target is averaged with: fewer than asked for in a small unlabeled set, 0 for none."""
        return 0 if self.neighbours[0] is None else self.neighbours[0].shape[1]


@dataclass(frozen=True)
class UnlabeledImages:
    """The unlabeled images of a run, as its frozen views see them, and what of it is computed once.

    sampler and steps say which augmented features the training asks for, which a bank holds. The cache keeps what is
    computed, under the key of the views and all else that it depends on.
    """

    context: RunContext
    views: Views
    sampler: BatchSampler
    steps: int
    cache: FeatureCache

    def statistics(self, learning: Learning, model: Model, *, with_class_prior: bool) -> UnlabeledStatistics:
        """All that these options make use of; the class prior only where `with_class_prior`."""
        return UnlabeledStatistics(
            class_prior=self.class_prior(learning.class_prior) if with_class_prior else None,
            head_priors=self.head_priors(model),
            neighbours=self.neighbours(learning.neighbours),
        )

    # --- the class prior ----------------------------------------------------------------------------------------------

    def class_prior(self, how: str) -> np.ndarray:
        """float64 [C]: how frequent the classes are among the unlabeled images, as far as the labeled ones say it."""
        split = self.context.split
        key = ("class prior", how, self.views.key, split.labeled.tobytes(), split.unlabeled.tobytes())
        return self.cache.remember(key, lambda: self._class_prior(how))

    def _class_prior(self, how: str) -> np.ndarray:
        data, split, seed = self.context.data, self.context.split, self.context.seed
        labels, classes = data.labels, len(data.classes)
        own = label_frequencies(labels[split.labeled], classes)
        learned = [view.backbone.learned for view in self.views]
        # Features that know their labels would find any estimate to be a good one.
        spoiled = np.isin(data.hashes[split.labeled], np.concatenate(learned)).any()
        if not self.views.frozen or spoiled or how == "labels":
            return own
        random, labeled = generator(seed, "shares"), self.some_labeled
        again, new = np.intersect1d(split.unlabeled, split.labeled), np.setdiff1d(split.unlabeled, split.labeled)
        sources = [view.source for view in self.views]
        known, unknown = (features_of(sources, rows) for rows in (labeled, random.permutation(new)[:MOST]))
        if not (np.isfinite(known).all() and np.isfinite(unknown).all()):
            return own  # the training will say so
        found = estimate_class_prior(known, labels[labeled], unknown, classes)
        # Labeled images may be in the unlabeled set too, and of those the classes are known.
        counted = np.bincount(labels[again], minlength=classes)
        return (counted + len(new) * found) / (len(again) + len(new))

    @property
    def some_labeled(self) -> np.ndarray:
        """The labeled rows, or where they are very many about MOST of them, of each class its part."""
        split = self.context.split
        labeled = generator(self.context.seed, "some labeled").permutation(split.labeled)
        return labeled[stratified_sample(self.context.data.labels[labeled], MOST)]

    # --- the priors of the heads --------------------------------------------------------------------------------------

    def head_priors(self, model: Model) -> tuple[HeadPrior | None, ...]:
        """See `UnlabeledStatistics`."""
        wanted = model.head == "linear" and model.head_prior == "unlabeled"
        if not wanted or not self.views.frozen or self.sampler.unlabeled is None:
            return (None,) * len(self.views)
        rows = np.setdiff1d(self.sampler.unlabeled, self.sampler.labeled)
        rows = generator(self.context.seed, "prior").permutation(rows)
        kinds = self._kinds(rows)
        key = ("axes", self.views.key, rows.tobytes(), *kinds)
        axes = self.cache.remember(
            key, lambda: [fit_axes(self._augmented("the prior", view, rows[:MOST], kinds)) for view in self.views]
        )
        device = self.context.device
        return tuple(
            None if found is None else HeadPrior(self._center(view).to(device), found.to(device))
            for view, found in zip(self.views, axes, strict=True)
        )

    def _center(self, view: View) -> Tensor:
        """The center [D] of the prior of a view's heads."""
        rows = self.some_labeled
        kinds = self._kinds(rows)
        mean = sum(augmented_features(view.source, rows, kinds), torch.zeros(())) / len(kinds)
        return center_of(mean, self.context.data.labels[rows])

    # --- neighbours ---------------------------------------------------------------------------------------------------

    def neighbours(self, wanted: int) -> tuple[np.ndarray | None, ...]:
        """See `UnlabeledStatistics`; wanted: how many of each image."""
        unlabeled = self.sampler.unlabeled
        if not wanted or not self.views.frozen or unlabeled is None or len(unlabeled) < 2:
            return (None,) * len(self.views)
        # By content, which is arbitrary as a draw is, and the order in which a bank holds them.
        rows = unlabeled[np.argsort(self.context.data.hashes[unlabeled], kind="stable")]
        kinds = [kind for kind in self._kinds(rows) if kind[0] == "weak"]
        key = ("neighbours", self.views.key, wanted, rows.tobytes(), *kinds)
        return self.cache.remember(key, lambda: tuple(self._neighbours(v, rows, kinds, wanted) for v in self.views))

    def _neighbours(self, view: View, rows: np.ndarray, kinds: list[Kind], count: int) -> np.ndarray:
        augmented = functools.partial(self._augmented, "neighbours", view, kinds=kinds)
        found = nearest_images(lambda some: sum(augmented(some), torch.zeros(())), rows, count)
        neighbours = np.zeros((len(self.context.data), found.shape[1]), dtype=np.int64)
        neighbours[rows] = found
        return neighbours

    # --- augmented features -------------------------------------------------------------------------------------------

    def _augmented(self, purpose: str, view: View, rows: np.ndarray, kinds: list[Kind]) -> Iterator[Tensor]:
        """See `head_prior.augmented_features`; shows its progress without a bank, where it takes long."""
        passes = augmented_features(view.source, rows, kinds)
        if self.views.banks:
            yield from passes
            return
        with ProgressBar(len(rows) * len(kinds), what=f"features of {view.name} for {purpose}", unit="image") as bar:
            for number, features in enumerate(passes, 1):
                bar.show(number * len(rows))
                yield features

    def _kinds(self, rows: np.ndarray) -> list[Kind]:
        """The views and draws of these rows that the training asks for, which a bank holds."""
        wanted = self.sampler.wanted(self.steps)
        return [kind for kind, held in wanted.items() if np.isin(rows, held).all()]
