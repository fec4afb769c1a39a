"""What a run's unlabeled images say before a head learns: class prior and priors of the heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..args import Learning, Model
from ..base.progress import ProgressBar
from ..features.bank import Kind
from ..features.class_prior import MOST, estimate_class_prior, label_frequencies, stratified_sample
from ..features.head_prior import augmented_features, center_of, fit_axes, in_axes
from ..features.sources import normalized_features
from ..learning.batches import BatchSampler
from ..learning.learner import HeadPrior
from ..utils import generator
from .context import RunContext
from .views import FeatureCache, View, Views

HeadPriors = tuple[HeadPrior | None, ...]  # an entry a view


@dataclass(frozen=True)
class UnlabeledStatistics:
    """What the unlabeled images say, an entry a view in the tuples.

    class_prior: float64 [C], how frequent the classes are among them; None where no prediction is aligned to it.
    head_priors: center [D] and axes [D, D] of the priors of each view's heads; None without one: where it is not
    wanted, nothing is frozen, nothing is unlabeled, or the images say nothing.
    """

    class_prior: np.ndarray | None
    head_priors: HeadPriors


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
        priors = self.head_priors(model)
        return UnlabeledStatistics(
            class_prior=self.class_prior(learning.class_prior, priors) if with_class_prior else None,
            head_priors=priors,
        )

    # --- the class prior ----------------------------------------------------------------------------------------------

    def class_prior(self, how: str, priors: HeadPriors) -> np.ndarray:
        """float64 [C]: how frequent the classes are among the unlabeled images, as far as the labeled ones say it.

        Features are compared in the space of the heads' priors where there are some.
        """
        split = self.context.split
        space = self._axes_key() if any(prior is not None for prior in priors) else None
        key = ("class prior", how, self.views.key, split.labeled.tobytes(), split.unlabeled.tobytes(), space)
        return self.cache.remember(key, lambda: self._class_prior(how, priors))

    def _class_prior(self, how: str, priors: HeadPriors) -> np.ndarray:
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
        known, unknown = (self._compared(rows, priors) for rows in (labeled, random.permutation(new)[:MOST]))
        if not (np.isfinite(known).all() and np.isfinite(unknown).all()):
            return own  # the training will say so
        found = estimate_class_prior(known, labels[labeled], unknown, classes)
        # Labeled images may be in the unlabeled set too, and of those the classes are known.
        counted = np.bincount(labels[again], minlength=classes)
        return (counted + len(new) * found) / (len(again) + len(new))

    def _compared(self, rows: np.ndarray, priors: HeadPriors) -> np.ndarray:
        """float32 [n, D]: the rows as heads see them in training, of all views side by side, in their priors' space.

        That is their first weak draw, which a bank holds already.
        """
        parts = []
        for view, prior in zip(self.views, priors, strict=True):
            features = normalized_features(view.source, rows, "weak")
            parts.append(features if prior is None else in_axes(features, prior.center.cpu(), prior.axes.cpu()))
        return torch.cat(parts, dim=1).numpy()

    @property
    def some_labeled(self) -> np.ndarray:
        """The labeled rows, or where they are very many about MOST of them, of each class its part."""
        split = self.context.split
        labeled = generator(self.context.seed, "some labeled").permutation(split.labeled)
        return labeled[stratified_sample(self.context.data.labels[labeled], MOST)]

    # --- the priors of the heads --------------------------------------------------------------------------------------

    def head_priors(self, model: Model) -> HeadPriors:
        """See `UnlabeledStatistics`."""
        if model.head_prior == "none" or not self.views.frozen or self.sampler.unlabeled is None:
            return (None,) * len(self.views)
        rows, kinds = self._rows_of_axes()
        axes = self.cache.remember(
            self._axes_key(), lambda: [fit_axes(self._augmented(view, rows[:MOST], kinds)) for view in self.views]
        )
        device = self.context.device
        return tuple(
            None if found is None else HeadPrior(self._center(view).to(device), found.to(device))
            for view, found in zip(self.views, axes, strict=True)
        )

    def _rows_of_axes(self) -> tuple[np.ndarray, list[Kind]]:
        """The unlabeled rows, shuffled, and their views and draws that tell the axes."""
        assert self.sampler.unlabeled is not None
        rows = np.setdiff1d(self.sampler.unlabeled, self.sampler.labeled)
        rows = generator(self.context.seed, "prior").permutation(rows)
        return rows, self._kinds(rows)

    def _axes_key(self) -> tuple[object, ...]:
        """What the axes depend on."""
        rows, kinds = self._rows_of_axes()
        return ("axes", self.views.key, rows.tobytes(), *kinds)

    def _center(self, view: View) -> Tensor:
        """The center [D] of the prior of a view's heads."""
        rows = self.some_labeled
        kinds = self._kinds(rows)
        mean = sum(augmented_features(view.source, rows, kinds), torch.zeros(())) / len(kinds)
        return center_of(mean, self.context.data.labels[rows])

    # --- augmented features -------------------------------------------------------------------------------------------

    def _augmented(self, view: View, rows: np.ndarray, kinds: list[Kind]) -> Iterator[Tensor]:
        """See `head_prior.augmented_features`; shows its progress without a bank, where it takes long."""
        passes = augmented_features(view.source, rows, kinds)
        if self.views.banks:
            yield from passes
            return
        with ProgressBar(len(rows) * len(kinds), what=f"features of {view.name} for the prior", unit="image") as bar:
            for number, features in enumerate(passes, 1):
                bar.show(number * len(rows))
                yield features

    def _kinds(self, rows: np.ndarray) -> list[Kind]:
        """The views and draws of these rows that the training asks for, which a bank holds."""
        wanted = self.sampler.wanted(self.steps)
        return [kind for kind, held in wanted.items() if np.isin(rows, held).all()]
