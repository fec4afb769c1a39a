"""A training: an algorithm's learners on the views of a run, the order of their batches, and their schedule."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..algorithms.algorithm import Algorithm
from ..algorithms.cotraining_steps import ViewBatches
from ..args import Learning, Options
from ..features.sources import evaluation_pixels
from ..learning.batches import Batches, BatchSampler
from ..learning.checkpoint import layers_checked
from ..learning.learner import Learner
from ..models import batch_norms_without_updates
from ..train import Hooks, Progress, Row, Schedule, StepConfig, fit, keep_best
from ..utils import UserError, one_thread
from .context import RunContext
from .evaluation import predict_rows
from .networks import load_state, make_network, on_device, own_backbone, spec_of
from .resume import run_of
from .trained_models import TrainedModels
from .unlabeled import UnlabeledImages, UnlabeledStatistics
from .views import FeatureCache, Views

DEFAULT_STEPS, DEFAULT_EPOCHS = 1000, 10
# With fewer validation images a class, choosing the best of many epochs was measured to cost up to 9 points.
ENOUGH_VALIDATION = 10
SMALL = 1_000_000  # weights that learn, of all learners, that one thread takes fewer seconds for than two


class Trainer:
    """Learners, the order of their batches and their schedule; `learn` trains them, `evaluated` gives their models.

    loaded: the checkpoint that the learners start from; cache: what trainings on the same views compute once;
    share_backbone: the network that learns has the view's own backbone, not a copy of it.
    """

    def __init__(
        self,
        options: Options,
        context: RunContext,
        views: Views,
        algorithm: Algorithm,
        *,
        loaded: Mapping[str, Any] | None = None,
        cache: FeatureCache | None = None,
        share_backbone: bool = False,
    ) -> None:
        self.options, self.context, self.views, self.algorithm = options, context, views, algorithm
        self.loaded, self.cache = loaded, FeatureCache() if cache is None else cache
        self.share_backbone = share_backbone
        self.learning = resolved_learning(options.learning, algorithm, frozen=views.frozen)
        self.sampler = make_sampler(
            options.learning, context, algorithm, draws=options.data.augmentation_draws if views.frozen else None
        )
        self.schedule = make_schedule(options.learning, self.sampler.steps_per_epoch, algorithm)
        self.planned_steps = self.schedule.total_steps  # also of a fold that will end with the warm-up
        self.learners = self._learners()
        self.companions = self._companions()
        self.enough_validation = enough_validation(context, options.learning)

    # --- what learns --------------------------------------------------------------------------------------------------

    def _learners(self) -> list[Learner]:
        """Models with optimizers, in the order of the algorithm."""
        algorithm, schedule, classes = self.algorithm, self.schedule, len(self.context.data.classes)
        state = self._loaded_state("student", "model_2")
        if self.loaded is not None and state is None:
            raise UserError(
                f"{run_of(self.loaded['path'])} holds {', '.join(self.loaded['models'])}, no student that "
                "--finetune_mode could go on from; --predict_dir and --export use it as it is"
            )
        total = schedule.total_steps + (algorithm.updates - 1) * (schedule.total_steps - schedule.warmup_steps)
        learners = []
        for index, name in enumerate(algorithm.learners):
            network = self.network(name, state)
            if self.options.run.compile:
                network.compile()
            start = 0 if index == 0 or algorithm.by_view else schedule.warmup_steps
            learners.append(Learner(name, network, self.learning, classes=classes, start=start, total=total))
        return learners

    def network(self, name: str, state: Mapping[str, Any] | None = None) -> nn.Module:
        """A model by its name, with stored weights or those that its seed gives; on the device."""
        backbone, frozen, loaded = self.views.of(name).backbone, self.views.frozen, self.loaded is not None
        spec = spec_of(self.options.model, self.context.data, self.context.seed)
        if not frozen and not self.share_backbone:
            backbone = own_backbone(spec, name, backbone, loaded=loaded)
        network = make_network(spec, name, backbone, frozen=frozen)
        if state is not None and self.loaded is not None:
            with layers_checked(self.loaded["path"]):
                # A head that was learned on a frozen backbone may now stand on the same backbone, learning too.
                load_state(network, state, "models", head_only=self.loaded["model"]["frozen"])
        return on_device(network, self.context.device)

    def _loaded_state(self, *names: str) -> Mapping[str, Any] | None:
        models = self.loaded["models"] if self.loaded is not None else {}
        return next((models[name] for name in names if name in models), None)

    def _companions(self) -> dict[str, nn.Module]:
        """The teacher that was loaded beside a student to be fine-tuned, as it was."""
        state = self._loaded_state("teacher", "model_1")
        return {} if state is None else {"teacher": self.network("teacher", state)}

    @functools.cached_property
    def statistics(self) -> UnlabeledStatistics:
        """What the unlabeled images say; computed when it is first asked for."""
        images = UnlabeledImages(self.context, self.views, self.sampler, self.planned_steps, self.cache)
        # Nothing is aligned to the class prior in a fold that ends with the warm-up.
        aligned = bool(self.learning.distribution_alignment) and self.schedule.total_steps > self.schedule.warmup_steps
        return images.statistics(self.learning, self.options.model, with_class_prior=aligned)

    # --- learning -----------------------------------------------------------------------------------------------------

    def learn(self, progress: Progress, hooks: Hooks | None = None, *, validated: bool = True) -> None:
        """Train from `progress` to the end; what is to be written or shown is the hooks'.

        validated: whether the validation images may take part; not those of a fold, which are what is measured.
        """
        given = Hooks() if hooks is None else hooks

        def after_epoch(row: Row) -> bool:
            stop = validated and self.validate(row, progress)
            return given.after_epoch(row) or stop

        self.take_statistics()
        algorithm, schedule, context = self.algorithm, self.schedule, self.context
        rules = StepConfig(self.learning, context.seed, context.precision.learning, schedule.warmup_steps)

        def warmup_step(learners: Sequence[Learner], batch: Any, step: int) -> dict[str, Tensor]:
            return algorithm.warmup_step(learners, batch, step, rules)

        def main_step(learners: Sequence[Learner], batch: Any, step: int) -> dict[str, Tensor]:
            return algorithm.main_step(learners, batch, step, rules)

        steps, hooks = (warmup_step, main_step), replace(given, after_epoch=after_epoch)
        with one_thread() if self.is_small() else contextlib.nullcontext():
            fit(self.learners, self.batches(), steps, schedule, progress, hooks)

    def is_small(self) -> bool:
        """Whether heads of few weights learn alone: threads would wait for each other longer than they work."""
        weights = (p.numel() for learner in self.learners for p in learner.network.parameters() if p.requires_grad)
        return self.views.frozen and self.context.device.type == "cpu" and sum(weights) < SMALL

    def take_statistics(self) -> None:
        """Give the learners what the unlabeled images say; each time the same."""
        statistics = self.statistics
        for view, prior in zip(self.views, statistics.head_priors, strict=True):
            for learner in self.learners:
                if prior is not None and self.views.of(learner.name) is view:
                    learner.take_head_prior(prior)
        if statistics.class_prior is not None:
            for learner in self.learners:
                learner.class_prior.copy_(torch.from_numpy(statistics.class_prior))

    def batches(self) -> Any:
        """`batches(step)`: what a step sees, of the only view or of each."""
        data, device = self.context.data, self.context.device
        of_views = [Batches(self.sampler, view.source, data.labels, device) for view in self.views]
        return ViewBatches(of_views) if self.algorithm.by_view else of_views[0]

    # --- validation ---------------------------------------------------------------------------------------------------

    def validate(self, row: Row, progress: Progress) -> bool:
        """Measure each model on the validation images, if there are some; says whether to stop early."""
        rows = self.context.split.val
        if not len(rows):
            return False
        for name, predicted in self.predictions(rows).items():
            row[f"val_accuracy_{name}"] = float((predicted.argmax(axis=1) == self.context.data.labels[rows]).mean())
        if not self.enough_validation:
            return False
        for learner in self.learners:
            if learner.step:
                keep_best(progress, learner, row["epoch"], row[f"val_accuracy_{learner.name}"])
        return self.out_of_patience(progress)

    def is_over(self, progress: Progress) -> bool:
        """Whether no step is left to train."""
        return progress.step >= self.schedule.total_steps or self.out_of_patience(progress)

    def out_of_patience(self, progress: Progress) -> bool:
        """Whether no model has become better for so long that the run ends; also asked of a run that goes on."""
        patience = self.options.learning.patience
        if patience is None or not progress.best or not all(learner.step for learner in self.learners):
            return False
        return len(progress.rows) - max(best["epoch"] for best in progress.best.values()) >= patience

    def take_best(self, progress: Progress) -> dict[str, int]:
        """Give each model the weights of its best epoch where validation says it, else leave the last; the epochs."""
        best_epoch = {learner.name: len(progress.rows) for learner in self.learners}
        for learner in self.learners if self.enough_validation else []:
            if learner.name in progress.best:
                best_epoch[learner.name] = progress.best[learner.name]["epoch"]
                learner.take_over(progress.best[learner.name]["state"])
        return best_epoch

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[TrainedModels]:
        """The models as they are evaluated and kept, and what was loaded beside them."""
        with contextlib.ExitStack() as stack:
            heads = {learner.name: stack.enter_context(learner.evaluated()) for learner in self.learners}
            yield TrainedModels(
                self.views.backbones, heads | self.companions, self.views.frozen, self.context.precision.features
            )

    def predictions(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Class probabilities float32 [N, C] of each model and the ensemble on the rows, unaugmented."""
        with self.evaluated() as models:
            return predict_rows(models, self.views, rows)

    def columns(self) -> list[str]:
        """The columns of metrics.csv."""
        names = [learner.name for learner in self.learners]
        measured = list(self.algorithm.measured)
        if len(self.context.split.val):
            models = [*names, *self.companions]
            measured += [f"val_accuracy_{name}" for name in (*models, *(["ensemble"] if len(models) > 1 else []))]
        return ["epoch", "step", "teacher", *measured, *(f"learning_rate_{name}" for name in names)]


# --- the plan of a training -------------------------------------------------------------------------------------------


def resolved_learning(given: Learning, algorithm: Algorithm, *, frozen: bool) -> Learning:
    """The options of learning; what was left open is set as suits what learns."""
    alignment = given.distribution_alignment
    if alignment is None:
        alignment = 1.0 if frozen else 0.0
    return replace(given, distribution_alignment=0.0 if algorithm.supervised else alignment)


def make_sampler(learning: Learning, context: RunContext, algorithm: Algorithm, *, draws: int | None) -> BatchSampler:
    """Which rows each step sees; draws: how many augmentations of an image come round, see `BatchSampler`."""
    return BatchSampler(
        labeled=context.split.labeled,
        unlabeled=None if algorithm.supervised else context.split.unlabeled,
        batch_size=learning.batch_size,
        unlabeled_batch_size=learning.unlabeled_batch_size,
        seed=context.seed,
        draws=draws,
    )


def make_schedule(learning: Learning, epoch: int, algorithm: Algorithm) -> Schedule:
    """How long the training is; epoch: steps of one. Raises UserError when the warm-up leaves nothing of it."""
    total = learning.max_steps or epoch * (learning.num_epochs or 0)
    total = total or max(DEFAULT_STEPS, DEFAULT_EPOCHS * epoch)
    if not algorithm.warms_up:
        return Schedule(epoch, total)
    given = learning.warmup_epoch_num
    warmup = epoch * given if given is not None else min(epoch * math.ceil(total / 10 / epoch), total // 2)
    if warmup >= total:
        raise UserError(
            f"the warm-up of {given} epochs ({warmup} steps) leaves none of the {total} steps for the student; "
            "lower --warmup_epoch_num or train longer"
        )
    return Schedule(epoch, total, warmup_steps=warmup, switch=algorithm.switches)


def enough_validation(context: RunContext, learning: Learning) -> bool:
    """Whether each model's best epoch can be chosen. Raises UserError when --patience asks for it and it can't."""
    counts = np.bincount(context.data.labels[context.split.val], minlength=len(context.data.classes))
    enough = int(counts.min()) >= ENOUGH_VALIDATION
    if learning.patience and not enough:
        raise UserError(
            f"--patience needs at least {ENOUGH_VALIDATION} validation images a class, the rarest has "
            f"{int(counts.min())}; raise --val_percent or leave it out"
        )
    return enough


def check_batch_norms(trainer: Trainer) -> None:
    """A batch norm can't learn from one value: say so, by a UserError, before the run begins."""
    network, learning, split = trainer.learners[0].network.train(), trainer.options.learning, trainer.context.split
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in network.modules()):
        return
    smallest = max(1, min(len(split.labeled), learning.batch_size) // learning.grad_accumulation)
    if not trainer.algorithm.supervised:
        unlabeled = min(len(split.unlabeled), learning.unlabeled_batch_size)
        smallest = min(smallest, max(1, unlabeled // learning.grad_accumulation))
    view, rows = trainer.views.of(trainer.learners[0].name), split.labeled[:smallest]
    if trainer.views.frozen:
        inputs = torch.zeros(smallest, view.backbone.num_features, device=trainer.context.device)
    else:
        inputs = evaluation_pixels(next(view.images.decoded(iter([rows]))))
    try:
        with torch.no_grad(), batch_norms_without_updates(network):
            network(inputs)
    except ValueError as error:
        raise UserError(
            f"batches of {smallest} images are too small for the batch norms of this network; "
            "raise --batch_size or --unlabeled_batch_size, lower --grad_accumulation or give more labels"
        ) from error
