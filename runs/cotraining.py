"""The training of several views, one head each, and the fine-tuning of their backbones before."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import args
from ..algorithms import cotraining_steps
from ..args import Options
from ..backbones.backbone import Backbone
from ..backbones.registry import parse_view, save_view
from ..base.metrics import ENOUGH_TO_FIT, fit_temperatures
from ..data import Dataset, Split
from ..learning.batches import Batches, Order
from ..learning.learner import Learner
from ..train import Progress, TrainingFault
from ..utils import UserError, warn
from .progress import Screen
from .run_folder import RESULTS
from .setup import View, make_view
from .training import CALIBRATION_FOLDS, Training

# A head at the end of its warm-up is unsure of most. A tau that corrects this and stays to the end, when the head has
# long become sure by itself, lets wrong labels pass (benchmarks/RESULTS.md).
SMALLEST_TAU = 1.0
LAYER_DECAY = 0.75  # from stage to stage of a view that is fine-tuned (Bao et al. 2021, BEiT: 0.65 to 0.75)
# A view is fine-tuned as a run of its own would be that learns from the labels alone.
TUNING: dict[str, Any] = {
    "cotrain_mode": False, "finetune_mode": True, "finetune_views": False, "unfreeze": "all", "head": "linear",
    "compile": False, "tensorboard": False,
}  # fmt: skip


class ViewTuning(Training):
    """The supervised training of one view's whole backbone on the labeled images: `--finetune_views`.

    Its settings hang on nothing of the learning that follows but `--layer_decay` and `--grad_accumulation`, so that
    the trials of a search share what is tuned.
    """

    def __init__(self, options: Options, dataset: Dataset, split: Split, backbone: Backbone) -> None:
        self.given = backbone
        nothing = np.zeros(0, dtype=np.int64)
        own, usual = options.learning, args.Learning()
        learning = replace(
            usual,
            max_steps=options.cotraining.finetune_steps,
            grad_accumulation=own.grad_accumulation,
            layer_decay=LAYER_DECAY if own.layer_decay is None else own.layer_decay,
        )
        options = replace(options.changed(**TUNING), learning=learning)
        super().__init__(options, dataset, Split(split.labeled, nothing, nothing, nothing))

    def _backbones(self) -> dict[str, Backbone]:
        return {self.given.name: self.given}

    def _own_backbone(self, name: str) -> Backbone:
        return self.given

    def tune(self) -> Backbone:
        """Train to the end; returns the backbone that was given, on the CPU, with what it has learned."""
        with Screen(self.schedule.total_steps, what=f"fine-tuning {self.given.name}") as screen:
            self.learn(Progress(), validated=False, show=screen.show)
        self.given.to("cpu")
        self.given.pretrained = True
        self.given.learned = np.union1d(self.given.learned, self.dataset.hashes[self.split.labeled])
        return self.given


class CoTraining(Training):
    """A training of one head a view, on frozen backbones, by one of the algorithms of cotraining.py."""

    given_taus: dict[str, float] | None = None  # of another training of these views, see `calibrated_like`

    def _backbones(self) -> dict[str, Backbone]:
        """The views; with `--finetune_views` tuned on the labeled images, or as a stopped run had tuned them."""
        backbones = super()._backbones()
        tune = self.options.cotraining.finetune_views and self.loaded is None
        specs = dict(zip(backbones, self.options.cotraining.views, strict=True)) if tune else {}
        for label, spec in specs.items():
            if not has_parameters(backbones[label]):  # raw pixels have nothing to tune
                continue
            saved = RESULTS / (self.options.run.name or "") / view_file(label)
            if self.options.run.resume and saved.is_file():
                backbones[label] = make_view(f"{parse_view(spec).name}={saved}", self.options, self.dataset)
            else:
                backbones[label] = ViewTuning(self.options, self.dataset, self.split, backbones[label]).tune()
        return backbones

    def _tuned(self) -> list[View]:
        wanted = self.options.cotraining.finetune_views
        return [view for view in self.views if wanted and has_parameters(view.backbone)]

    def save_views(self, folder: Path) -> None:
        for view in self._tuned():
            path = folder / view_file(view.name)
            if not path.is_file():
                save_view(path, view.backbone)

    def about_views(self) -> dict[str, Any]:
        """Which views were fine-tuned, and where they lie in the run's folder."""
        return {"finetuned_views": {view.name: view_file(view.name) for view in self._tuned()}}

    def _order(self) -> Order:
        self.supervised = self.options.cotraining.algorithm == "labels_only"
        return super()._order()

    def _learners(self) -> list[Learner]:
        """One learner a view, named like it; a step of `meta` updates each twice."""
        schedule, learners = self.schedule, []
        total = schedule.total_steps
        if self.options.cotraining.algorithm == "meta":
            total += schedule.total_steps - schedule.warmup_steps
        for view in self.views:
            network = self.network(view.name)
            learner = Learner(
                view.name, network, self.learning, classes=len(self.dataset.classes), start=0, total=total
            )
            learners.append(learner)
        return learners

    def steps(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        return cotraining_steps.labels_only_step, cotraining_steps.STEPS[self.options.cotraining.algorithm]

    def batches(self, of_views: list[Batches]) -> Callable[[int], Any]:
        return cotraining_steps.ViewBatches(of_views)

    def after_warmup(self, *, validated: bool) -> None:
        """Fit each view's tau, once, so that it speaks to the others no surer than it is right."""
        taus = self.given_taus if self.given_taus is not None else self._fitted_taus(validated)
        for learner in self.learners:
            learner.calibrate(max(SMALLEST_TAU, taus.get(learner.name, 1.0)))

    def _fitted_taus(self, validated: bool) -> dict[str, float]:
        """Tau by view, from validation images where there are enough, else from folds; none where neither will do."""
        rows = self.split.val
        if not self.schedule.warmup_steps:
            return {}
        if validated and len(rows) >= ENOUGH_TO_FIT:
            with self.evaluated() as models:
                return fit_temperatures(self.predictions(models, rows), self.dataset.labels[rows])
        rarest = int(np.bincount(self.dataset.labels[self.split.labeled]).min())
        # Views that were fine-tuned would have to be so again for each fold, within the folds of the end too.
        tuned = self.options.cotraining.finetune_views or self.knows_labels()
        if rarest < 2 or tuned or self.options.use.calibration_folds == 0:
            return {}
        try:
            predicted, rows = self._cross_fitted(min(CALIBRATION_FOLDS, rarest), warmup_only=True)
        except (TrainingFault, UserError) as error:  # of a fold, which is smaller: the run itself can go on
            warn(f"the views' probabilities are not calibrated after the warm-up: {error}")
            return {}
        return fit_temperatures(predicted, self.dataset.labels[rows])

    def calibrated_like(self, other: Training) -> None:
        self.given_taus = {learner.name: float(learner.temperature) for learner in other.learners}

    def measured(self) -> list[str]:
        return cotraining_steps.measured(self.options.cotraining.algorithm, [view.name for view in self.views])


def has_parameters(backbone: Backbone) -> bool:
    """Whether anything in it can learn."""
    return any(parameter.numel() for parameter in backbone.parameters())


def view_file(label: str) -> str:
    """Where a fine-tuned view lies in its run's folder, with a name that every disk takes."""
    return f"views/{re.sub(r'[^A-Za-z0-9_.-]+', '_', label)}.safetensors"
