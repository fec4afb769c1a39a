"""Losses, the two steps and the one loop.

The recipe reads from top to bottom: the losses, `supervised_step`, `mpl_step`, `fit`. A step knows neither whether it
sees images or features nor which epoch it is; `fit` knows nothing of losses.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .args import Learning
from .learning.batches import Batch
from .learning.checkpoint import check_like, like
from .learning.learner import Learner
from .models import batch_norms_without_updates
from .utils import OneLineError, key, seed_torch

MEASURE_EVERY = 20  # steps between two readings of the measurements, the only times the device is waited for
CHECKPOINT_SECONDS = 10.0  # a kill costs at most about this much training, whatever an epoch takes


class TrainingFault(OneLineError):
    """The training can't go on (a loss is not finite); what it says goes to the user, the last checkpoint stays."""


# --- losses -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepConfig:
    """What a step needs to know beside learners and batch."""

    learning: Learning
    seed: int = 0
    precision: torch.dtype = torch.float32
    warmup_steps: int = 0  # of the run: those before co-training

    def randomness(self, step: int, purpose: str) -> None:
        """Make dropout from here on a function of (seed, step, purpose)."""
        seed_torch(key(self.seed, "step", step, purpose))

    def logits(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """Logits [B, C], float32, of inputs as in `Batch`: a pass that learns, in the run's precision."""
        if self.precision == torch.float32:
            return network(inputs)
        with torch.autocast(inputs.device.type, dtype=self.precision):
            return network(inputs).float()


def consistency_weight(learning: Learning, step: int) -> float:
    """lambda(t): rises linearly to lambda_u over `uda_steps` steps since the teacher began to learn."""
    return learning.lambda_u * min(1.0, (step + 1) / max(1, learning.uda_steps))


def consistency_loss(target: Tensor, strong_logits: Tensor, mask: Tensor) -> Tensor:
    """L_uda of docs/how_it_learns.md (Xie et al. 2020, eq. 1, masked by confidence).

    A mean over all images, of which masked ones count 0.

    target: probabilities [B, C], a constant; strong_logits [B, C] carry the gradient; mask [B].
    """
    return -(mask * (target * strong_logits.log_softmax(dim=1)).sum(dim=1)).mean()


def masked_cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean over all images of mask * CE(label, logits)."""
    return (mask * F.cross_entropy(logits, labels, reduction="none")).mean()


def align(probabilities: Tensor, learner: Learner, strength: float) -> Tensor:
    """Distribution alignment (Berthelot et al. 2020, ReMixMatch): predictions [B, C] whose mean is the class prior.

    They are weighed by the learner's `class_prior` over its running mean prediction. strength: 1 as published, less for
    half-way.
    """
    mean = probabilities.mean(dim=0).to(learner.marginal.dtype)
    first = learner.marginal.sum() == 0  # not the learner's first step: a warm-up may predict nothing; never read here
    learner.marginal.copy_(torch.where(first, mean, learner.marginal.lerp(mean, 0.05)))
    weights = learner.class_prior / learner.marginal.clamp(min=1e-3)
    aligned = probabilities * weights.pow(strength)
    return aligned / aligned.sum(dim=1, keepdim=True)


def take_gradients(loss: Tensor, parameters: Sequence[Tensor], *, retain_graph: bool = False) -> list[Tensor]:
    """The gradients of a loss [] as a list, each of its parameter's shape; `.grad` is empty before and after."""
    loss.backward(retain_graph=retain_graph)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return gradients


def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm [] over all of them."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients))))


# --- the supervised step ----------------------------------------------------------------------------------------------


def supervised_step(learners: Sequence[Learner], batch: Batch, step: int, config: StepConfig) -> dict[str, Tensor]:
    """One update of each learner on the labeled images.

    Returns {supervised_loss}: a scalar on the device, of the last learner where there are several.
    """
    measured = {}
    for learner in learners:
        config.randomness(step, learner.name)
        total = torch.zeros((), device=batch.labels.device)
        for part, share, _ in batch.parts(config.learning.grad_accumulation):
            logits = config.logits(learner.network, part.labeled)
            loss = share * F.cross_entropy(logits, part.labels, label_smoothing=config.learning.label_smoothing)
            loss.backward()
            total += loss.detach()
        learner.update()
        measured["supervised_loss"] = total
    return measured


# --- Meta Pseudo Labels -----------------------------------------------------------------------------------------------

# Updates the student; returns h [] and scale(h) [] (see `student_gain`).
Gain = Callable[[Learner, Batch, int, StepConfig, Learner], tuple[Tensor, Tensor]]


class TeacherOutput(NamedTuple):
    """What a teacher makes of one batch: its own losses with their graph, and the labels that its student learns."""

    supervised: Tensor
    consistency: Tensor
    feedback: Tensor  # CE(y_hat, q): the graph that the student's gain will weigh
    labels: Tensor  # y_hat [B]: learned by the student and judged in `feedback`, one tensor
    mask: Tensor  # [B] which of them are learned, by the teacher too
    logits: Tensor  # [B, C] of the strong view, detached
    measured: dict[str, Tensor]


def teacher_forward(teacher: Learner, batch: Batch, step: int, config: StepConfig) -> TeacherOutput:
    """The teacher's forwards and losses: [labeled; strong] in one pass with a graph (Pham et al. 2021).

    The weak view, without a graph, gives the one target of both the consistency loss and the student.
    """
    assert batch.weak is not None
    assert batch.strong is not None
    both = torch.cat([batch.labeled, batch.strong])
    labeled, strong = config.logits(teacher.network, both).split([len(batch.labeled), len(batch.strong)])
    with torch.no_grad():
        with batch_norms_without_updates(teacher.network):
            weak = config.logits(teacher.network, batch.weak)
        target, mask = confident_target(weak, teacher, config.learning)
        labels = pseudo_labels(target)
    return TeacherOutput(
        supervised=F.cross_entropy(labeled, batch.labels, label_smoothing=config.learning.label_smoothing),
        consistency=consistency_loss(target, strong, mask),
        feedback=masked_cross_entropy(strong, labels, mask),
        labels=labels,
        mask=mask,
        logits=strong.detach(),
        measured=_pseudo_label_measurements(labels, mask, batch.hidden),
    )


def confident_target(weak_logits: Tensor, teacher: Learner, learning: Learning) -> tuple[Tensor, Tensor]:
    """p = softmax(T(x_w) / temperature) [B, C], aligned if wanted, and the mask max p >= threshold [B]."""
    target = (weak_logits / learning.temperature).softmax(dim=1)
    if learning.distribution_alignment:
        target = align(target, teacher, learning.distribution_alignment)
    return target, (target.amax(dim=1) >= learning.threshold).float()


def pseudo_labels(target: Tensor) -> Tensor:
    """y_hat [B]: the likeliest class of a target [B, C]."""
    return target.argmax(dim=1)


def _pseudo_label_measurements(labels: Tensor, mask: Tensor, hidden: Tensor | None) -> dict[str, Tensor]:
    measured = {"mask_rate": mask.mean()}
    if hidden is not None:
        known = hidden >= 0
        measured["pseudo_label_accuracy"] = (labels.eq(hidden) & known).sum() / known.sum().clamp(min=1)
    return measured


def warmup_step(learners: Sequence[Learner], batch: Batch, step: int, config: StepConfig) -> dict[str, Tensor]:
    """One update of the teacher alone, by its supervised and consistency losses.

    Returns {supervised_loss, uda_loss, mask_rate; pseudo_label_accuracy where the data set knows the hidden labels}:
    scalars on the device.
    """
    teacher = learners[0]
    weight = consistency_weight(config.learning, step - teacher.start)
    totals: dict[str, Tensor] = {}
    for number, (part, labeled, unlabeled) in enumerate(batch.parts(config.learning.grad_accumulation)):
        config.randomness(step, f"teacher {number}")
        output = teacher_forward(teacher, part, step, config)
        (labeled * output.supervised + unlabeled * weight * output.consistency).backward()
        add_measured(totals, {"supervised_loss": output.supervised.detach()}, labeled)
        add_measured(totals, {"uda_loss": output.consistency.detach(), **output.measured}, unlabeled)
    teacher.update()
    return totals


def mpl_step(
    learners: Sequence[Learner], batch: Batch, step: int, config: StepConfig, gain_of: Gain | None = None
) -> dict[str, Tensor]:
    """One step of Meta Pseudo Labels (Pham et al. 2021, algorithm 1; docs/how_it_learns.md).

    Learners are (teacher, student). The student learns the teacher's labels; its gain on the labeled batch, one number
    for the whole batch, weighs the likelihood of the labels that it learned in the teacher's loss. gain_of: what
    updates the student and measures that, `student_gain` if None.

    Returns {supervised_loss, uda_loss, feedback_loss, student_loss, feedback_h, mask_rate, agreement;
    pseudo_label_accuracy where the data set knows the hidden labels; feedback_ratio where it is measured}: scalars on
    the device.
    """
    teacher, student = learners
    learning = config.learning
    parts = batch.parts(learning.grad_accumulation)
    # Two backward passes: only for micro-batches, whose h is known at the end, or to measure the ratio.
    separate = len(parts) > 1 or (step % MEASURE_EVERY == 0 and learning.mpl_weight > 0)
    weight = consistency_weight(learning, step - teacher.start)
    own, feedback, totals = Sum(), Sum(), dict[str, Tensor]()
    for number, (part, labeled, unlabeled) in enumerate(parts):
        config.randomness(step, f"teacher {number}")
        output = teacher_forward(teacher, part, step, config)
        loss = labeled * output.supervised + unlabeled * weight * output.consistency
        if separate:
            own.add(take_gradients(loss, teacher.parameters, retain_graph=True))
            feedback.add(take_gradients(unlabeled * output.feedback, teacher.parameters))
        config.randomness(step, f"student {number}")
        learned = student_forward(student, part, output, config)
        (unlabeled * learned["student_loss"]).backward()
        add_measured(totals, {"supervised_loss": output.supervised}, labeled)
        add_measured(totals, {"uda_loss": output.consistency, "feedback_loss": output.feedback}, unlabeled)
        add_measured(totals, {**output.measured, **learned}, unlabeled)
    gain, factor = (gain_of or student_gain)(student, batch, step, config, teacher)
    if separate:
        factor = factor * learning.mpl_weight
        totals["feedback_ratio"] = (factor.abs() * global_norm(feedback.items)) / global_norm(own.items).clamp(
            min=1e-12
        )
        for parameter, g_own, g_feedback in zip(teacher.parameters, own.items, feedback.items, strict=True):
            parameter.grad = g_own + factor * g_feedback
    else:  # of the only part
        (loss + learning.mpl_weight * factor * output.feedback).backward()
    teacher.update()
    return {**totals, "feedback_h": gain}


def student_forward(student: Learner, batch: Batch, output: TeacherOutput, config: StepConfig) -> dict[str, Tensor]:
    """The student on the strong images: {student_loss: [] with its graph, agreement: [] with the teacher's argmax}."""
    assert batch.strong is not None
    logits = config.logits(student.network, batch.strong)
    agreement = logits.detach().argmax(dim=1).eq(output.logits.argmax(dim=1)).float().mean()
    return {"student_loss": masked_cross_entropy(logits, output.labels, output.mask), "agreement": agreement}


def student_gain(
    student: Learner, batch: Batch, step: int, config: StepConfig, teacher: Learner
) -> tuple[Tensor, Tensor]:
    """Update the student; returns h [] and scale(h) []: what it gained on the labeled batch by that one update."""
    if config.learning.mpl_weight == 0:
        student.update()
        zero = torch.zeros((), device=batch.labels.device)
        return zero, zero
    before = labeled_loss(student, batch, step, config)
    student.update()
    gain = before - labeled_loss(student, batch, step, config)
    return gain, scale_feedback(gain, teacher.moments)


@contextlib.contextmanager
def labeled_loss_conditions(student: Learner, step: int, config: StepConfig) -> Iterator[None]:
    """float32, batch statistics without touching running ones, and the same dropout in both labeled losses."""
    config.randomness(step, "exam")
    device = student.parameters[0].device
    with torch.autocast(device.type, enabled=False), batch_norms_without_updates(student.network):
        yield


@torch.no_grad()
def labeled_loss(student: Learner, batch: Batch, step: int, config: StepConfig) -> Tensor:
    """L_l(theta): the plain cross-entropy on the labeled batch alone, as one scalar."""
    with labeled_loss_conditions(student, step, config):
        losses = [
            share * F.cross_entropy(student.network(part.labeled), part.labels)
            for part, share, _ in batch.parts(config.learning.grad_accumulation)
        ]
    return torch.stack(losses).sum()


@torch.no_grad()
def scale_feedback(gain: Tensor, moments: Tensor) -> Tensor:
    """scale(h): h divided by its running root mean square, since h is tiny.

    moments: [mean square, weight], updated in place; the weight undoes the bias of the young average.
    """
    moments.lerp_(torch.stack([gain.square(), torch.ones_like(gain)]).to(moments.dtype), 0.02)
    return gain / ((moments[0] / moments[1]).sqrt() + 1e-12)


class Sum:
    """A running sum of lists of gradients."""

    def __init__(self) -> None:
        self.items: list[Tensor] = []

    def add(self, gradients: list[Tensor]) -> None:
        self.items = [a + b for a, b in zip(self.items, gradients, strict=True)] if self.items else gradients


def add_measured(totals: dict[str, Tensor], measured: Mapping[str, Tensor], weight: float) -> None:
    """Add weighted scalars, without their graph, to the totals of a step."""
    for name, value in measured.items():
        value = value.detach() * weight if weight != 1.0 else value.detach()
        totals[name] = totals[name] + value if name in totals else value


# --- the loop ---------------------------------------------------------------------------------------------------------

Step = Callable[[Sequence[Learner], Batch, int], dict[str, Tensor]]
Row = dict[str, Any]


@dataclass(frozen=True)
class Schedule:
    """How long a run is and who teaches when; all of it a function of the step."""

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int = 0
    switch: bool = False

    def roles(self, step: int, learners: Sequence[Learner]) -> Sequence[Learner]:
        """(teacher, student) at a step: exchanged every epoch after the warm-up in switch mode."""
        if not self.switch or step < self.warmup_steps:
            return learners
        epoch = (step - self.warmup_steps) // self.steps_per_epoch
        return learners if epoch % 2 == 0 else learners[::-1]


@dataclass
class Progress:
    """What a run has reached: all that a checkpoint holds beside the learners."""

    step: int = 0
    rows: list[Row] = field(default_factory=list)
    best: dict[str, dict[str, Any]] = field(default_factory=dict)  # by model: epoch, accuracy, state
    partial: dict[str, Any] = field(default_factory=dict)  # measurements of an epoch that is not yet over


class Measurements:
    """Sums of a step's scalars on the device, read together once a logging interval."""

    def __init__(self, partial: Mapping[str, Any]) -> None:
        self.sums = {name: torch.tensor(value) for name, value in partial.get("sums", {}).items()}
        self.counts: dict[str, int] = dict(partial.get("counts", {}))
        self.read_sums: dict[str, float] = dict(partial.get("read_sums", {}))

    def state(self) -> dict[str, Any]:
        """What was measured of an epoch so far; `sums`, float32, are what has not been read yet."""
        unread = {name: float(value) for name, value in self.sums.items()}
        return {"counts": dict(self.counts), "read_sums": dict(self.read_sums), "sums": unread}

    def add(self, measured: Mapping[str, Tensor]) -> None:
        for name, value in measured.items():
            value = value.detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def read(self, step: int) -> dict[str, float]:
        """The means since the epoch began. Raises TrainingFault, naming the parts, if one is not finite."""
        if self.sums:
            values = torch.stack([v.float() for v in self.sums.values()]).tolist()  # the one wait for the device
            for name, value in zip(self.sums, values, strict=True):
                self.read_sums[name] = self.read_sums.get(name, 0.0) + value
            self.sums = {}
        wrong = [name for name, value in self.read_sums.items() if not math.isfinite(value)]
        if wrong:
            raise TrainingFault(
                f"the training broke off near step {step}: {', '.join(wrong)} not finite; "
                "try a lower --max_lr or --grad_clip 1"
            )
        return {name: value / self.counts[name] for name, value in self.read_sums.items()}


@dataclass(frozen=True)
class Hooks:
    """What is done beside the steps; each does nothing unless it is given.

    after_warmup: once, between the warm-up and the rest. after_epoch: may add columns to the epoch's row, and says
    whether to stop. show: gets the number of steps done and the epoch's means so far. save: writes a checkpoint, within
    long epochs too. stopped: the error that ends the training after a step, where the user or the system wants that.
    """

    after_warmup: Callable[[], None] = lambda: None
    after_epoch: Callable[[Row], bool] = lambda row: False
    show: Callable[[int, Mapping[str, float]], None] = lambda step, means: None
    save: Callable[[], None] = lambda: None
    stopped: Callable[[], KeyboardInterrupt | None] = lambda: None


class Saver:
    """Checkpoints every `CHECKPOINT_SECONDS`, and before the training ends."""

    def __init__(self, learners: Sequence[Learner], progress: Progress, hooks: Hooks) -> None:
        self.learners, self.progress, self.hooks = learners, progress, hooks
        self.saved = time.monotonic()

    def save_when_due(self, *, now: bool = False) -> None:
        """Save if it is time to, or `now`. Raises what ends the training, once all is saved."""
        error = self.hooks.stopped()
        if now or error or time.monotonic() - self.saved > CHECKPOINT_SECONDS:
            check_weights(self.learners, self.progress.step)
            self.hooks.save()
            self.saved = time.monotonic()
        if error is not None:
            raise error


def fit(
    learners: Sequence[Learner],
    batches: Callable[[int], Batch],
    steps: tuple[Step, Step],
    schedule: Schedule,
    progress: Progress,
    hooks: Hooks | None = None,
) -> None:
    """Train from `progress.step` to the end of the schedule; the one loop of the project.

    steps: what is done during the warm-up, and after it.
    """
    hooks = Hooks() if hooks is None else hooks
    measurements, saver = Measurements(progress.partial), Saver(learners, progress, hooks)
    for learner in learners:
        learner.network.train()
    for step in range(progress.step, schedule.total_steps):
        warming = step < schedule.warmup_steps
        roles = schedule.roles(step, learners)
        measurements.add(steps[0 if warming else 1](roles, batches(step), step))
        if step + 1 == schedule.warmup_steps < schedule.total_steps:
            hooks.after_warmup()
        ended = (step + 1) % schedule.steps_per_epoch == 0 or step + 1 == schedule.total_steps
        if ended or (step + 1) % MEASURE_EVERY == 0:
            hooks.show(step + 1, measurements.read(step + 1))
            progress.step, progress.partial = step + 1, measurements.state()
        if not ended:
            if hooks.stopped():
                progress.step, progress.partial = step + 1, measurements.state()
            if progress.step == step + 1:
                saver.save_when_due()
            continue
        rates = {f"learning_rate_{x.name}": x.learning_rate() for x in learners}
        row = {"epoch": len(progress.rows) + 1, "step": step + 1, "teacher": roles[0].name if len(roles) > 1 else ""}
        row |= measurements.read(step + 1) | rates
        progress.partial, measurements = {}, Measurements({})
        progress.rows.append(row)
        stop = hooks.after_epoch(row)
        saver.save_when_due(now=stop or step + 1 == schedule.total_steps)
        if stop:
            return


def check_weights(learners: Sequence[Learner], step: int) -> None:
    """Raises TrainingFault where a weight is not finite: such weights never become the last good checkpoint."""
    for learner in learners:
        if not bool(torch.stack([p.detach().isfinite().all() for p in learner.parameters]).all()):
            raise TrainingFault(
                f"the training broke off at step {step}: weights of {learner.name} are not finite; "
                "try a lower --max_lr or --grad_clip 1"
            )


# --- what a checkpoint holds of a training ----------------------------------------------------------------------------


def progress_state(progress: Progress, learners: Sequence[Learner]) -> dict[str, Any]:
    """What `last.pt` holds of the training."""
    return {
        "step": progress.step,
        "rows": progress.rows,
        "best": progress.best,
        "partial": progress.partial,
        "learners": {learner.name: learner.state_dict() for learner in learners},
    }


def restore_progress(content: Mapping[str, Any], learners: Sequence[Learner]) -> Progress:
    """The inverse: fills the learners, returns the progress. Raises ValueError where it is of other layers."""
    check_like(content["learners"], {learner.name: object for learner in learners}, "learners")
    for learner in learners:
        learner.load_state_dict(content["learners"][learner.name])
        kept = content["best"].get(learner.name)
        if kept is not None:
            check_like(kept["state"], like(learner.evaluation_state()), f"best.{learner.name}.state")
    return Progress(step=content["step"], rows=content["rows"], best=content["best"], partial=content["partial"])


def keep_best(progress: Progress, learner: Learner, epoch: int, accuracy: float) -> bool:
    """Remember a model's weights when ITS accuracy is higher than at any earlier epoch."""
    best = progress.best.get(learner.name)
    if best is not None and accuracy <= best["accuracy"]:
        return False
    state = {k: v.detach().cpu().clone() for k, v in learner.evaluation_state().items()}
    progress.best[learner.name] = {"epoch": epoch, "accuracy": float(accuracy), "state": state}
    return True
