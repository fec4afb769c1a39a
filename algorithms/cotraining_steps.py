"""Co-training and Meta Co-Training of V views (Rothenberger & Diochnos 2023, arXiv 2311.18083), for V >= 2.

A view is a learner on its own backbone's features. A step takes one learner and one `Batch` a view, all batches of the
same images in the same order, and is run by `train.fit` like any other. With the symbols of docs/how_it_learns.md, view
i learns y_i, the label that the OTHER views give; its gain h_i weighs the likelihood of y_i under those others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..args import Learning
from ..learning.batches import Batch, Batches
from ..learning.learner import Learner
from ..models import batch_norms_without_updates
from ..train import (
    StepConfig,
    Sum,
    add_measured,
    align,
    consistency_loss,
    consistency_weight,
    labeled_loss,
    masked_cross_entropy,
    pseudo_labels,
    scale_feedback,
    student_gain,
    supervised_step,
    take_gradients,
)

ViewBatch = Sequence[Batch]  # one a view, of the same images
MEASURED = ("mask_rate", "student_mask_rate", "agreement")
MEASURED_OF_VIEWS = ("supervised_loss", "uda_loss", "student_loss", "pseudo_label_accuracy", "feedback_h")


class ViewBatches:
    """`batches(step)`: one `Batch` a view, of the same images; see `batches.Batches`."""

    def __init__(self, of_views: Sequence[Batches]) -> None:
        self.of_views = of_views

    def __call__(self, step: int) -> list[Batch]:
        return [batches(step) for batches in self.of_views]


# --- what the views exchange ------------------------------------------------------------------------------------------


class Advice(NamedTuple):
    """What the weak images tell, a list entry a view: nothing of it carries a graph."""

    targets: list[Tensor]  # p_j [B, C], aligned
    labels: list[Tensor]  # y_i [B]: the likeliest class by the mean of the others' targets
    masks: list[Tensor]  # [B] which of them view i learns


def advice_of(learners: Sequence[Learner], views: ViewBatch, config: StepConfig) -> Advice:
    """The label that each view learns from the others, and where they are confident enough of it."""
    learning = config.learning
    with torch.no_grad():
        targets = [_target(_weak_logits(*row, config), row[0], learning) for row in zip(learners, views, strict=True)]
        others = mean_of_others(targets)
        masks = [(a.amax(dim=1) >= learning.threshold).float() for a in others]
        return Advice(targets, [pseudo_labels(a) for a in others], masks)


class Exchange(NamedTuple):
    """What V views make of one batch, a list entry a view; losses carry their graph."""

    consistency: list[Tensor]  # L_uda of view i: its weak prediction is the target of its strong one
    students: list[Tensor]  # mean_b CE(y_i, z_i): what view i learns from the others
    feedback: list[Tensor]  # mean_b -log a_i(y_i): reaches every view but i
    measured: dict[str, Tensor]


def exchange(learners: Sequence[Learner], views: ViewBatch, config: StepConfig) -> Exchange:
    """The forwards of the unlabeled batch: z_i of the strong images with a graph, the weak ones as targets only."""
    strong = [config.logits(x.network, _given(batch.strong)) for x, batch in zip(learners, views, strict=True)]
    targets, labels, student_masks = advice_of(learners, views, config)
    masks = [(target.amax(dim=1) >= config.learning.threshold).float() for target in targets]
    likelihood = mean_of_others([(z / x.temperature).softmax(dim=1) for z, x in zip(strong, learners, strict=True)])
    return Exchange(
        consistency=[consistency_loss(*row) for row in zip(targets, strong, masks, strict=True)],
        students=[masked_cross_entropy(*row) for row in zip(strong, labels, student_masks, strict=True)],
        feedback=[masked_negative_log(*row) for row in zip(likelihood, labels, student_masks, strict=True)],
        measured=_measured(learners, strong, labels, masks, student_masks, views[0].hidden),
    )


def mean_of_others(probabilities: Sequence[Tensor]) -> list[Tensor]:
    """a_i = mean over j != i of p_j, for each of V views: V tensors [B, C] of V tensors [B, C]."""
    # Not the sum of all less one's own: its gradient would pass through view i only to cancel out.
    others = [[p for j, p in enumerate(probabilities) if j != i] for i in range(len(probabilities))]
    return [torch.stack(row).mean(dim=0) for row in others]


def masked_negative_log(likelihood: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean [] over all images of mask [B] * -log a(y), of likelihood a [B, C] and labels y [B]."""
    chosen = likelihood.gather(1, labels[:, None]).squeeze(1)
    return -(mask * chosen.clamp(min=torch.finfo(chosen.dtype).tiny).log()).mean()


def _given(images: Tensor | None) -> Tensor:
    assert images is not None
    return images


def _weak_logits(learner: Learner, batch: Batch, config: StepConfig) -> Tensor:
    with batch_norms_without_updates(learner.network):
        return config.logits(learner.network, _given(batch.weak))


def _target(weak_logits: Tensor, learner: Learner, learning: Learning) -> Tensor:
    """softmax(z / (tau * temperature)) [B, C], aligned if wanted; tau: the learner's calibration."""
    target = (weak_logits / (learning.temperature * learner.temperature)).softmax(dim=1)
    return align(target, learner, learning.distribution_alignment) if learning.distribution_alignment else target


def _measured(
    learners: Sequence[Learner],
    strong: Sequence[Tensor],
    labels: Sequence[Tensor],
    masks: Sequence[Tensor],
    student_masks: Sequence[Tensor],
    hidden: Tensor | None,
) -> dict[str, Tensor]:
    predicted = torch.stack([z.detach().argmax(dim=1) for z in strong])
    measured = {
        "mask_rate": torch.stack(list(masks)).mean(),
        "student_mask_rate": torch.stack(list(student_masks)).mean(),
        "agreement": (predicted == predicted[:1]).all(dim=0).float().mean(),
    }
    if hidden is not None:
        known = hidden >= 0
        for learner, own in zip(learners, labels, strict=True):
            right = (own.eq(hidden) & known).sum() / known.sum().clamp(min=1)
            measured[f"pseudo_label_accuracy_{learner.name}"] = right
    return measured


# --- the steps --------------------------------------------------------------------------------------------------------


def labels_only_step(learners: Sequence[Learner], views: ViewBatch, step: int, config: StepConfig) -> dict[str, Tensor]:
    """One update of each view on its labeled images alone: the warm-up, and the baseline.

    Returns {supervised_loss_VIEW of each view}: scalars on the device.
    """
    measured: dict[str, Tensor] = {}
    for learner, batch in zip(learners, views, strict=True):
        measured |= _named(supervised_step([learner], batch, step, config), learner)
    return measured


def meta_step(learners: Sequence[Learner], views: ViewBatch, step: int, config: StepConfig) -> dict[str, Tensor]:
    """One step of Meta Co-Training (docs/how_it_learns.md).

    Each view learns from the others, and the others then from what it gained.

    Every gradient at theta is taken before any weight moves, since every view is both student and teacher. The second
    update of view j sums its supervised gradient at theta_j', its consistency gradient and w * sum_i h_i * that of
    -log a_i(y_i), i != j; h_j never weighs view j's own gradient.

    Returns {supervised_loss_VIEW, student_loss_VIEW, uda_loss_VIEW, feedback_h_VIEW of each view, mask_rate,
    student_mask_rate, agreement; pseudo_label_accuracy_VIEW where the data set knows the hidden labels}: scalars on the
    device.
    """
    learning, totals = config.learning, dict[str, Tensor]()
    students, consistency = [Sum() for _ in learners], [Sum() for _ in learners]
    feedback = [Sum() for _ in learners]  # of feedback[i], over the parameters of all views but i
    weight = consistency_weight(learning, step - config.warmup_steps)
    for number, (batches, _, unlabeled) in enumerate(micro_batches(views, learning.grad_accumulation)):
        config.randomness(step, f"views {number}")
        found = exchange(learners, batches, config)
        for i, learner in enumerate(learners):
            own = learner.parameters
            students[i].add(take_gradients(unlabeled * found.students[i], own, retain_graph=True))
            if learning.mpl_weight:
                others = [p for other in learners if other is not learner for p in other.parameters]
                feedback[i].add(take_gradients(unlabeled * found.feedback[i], others, retain_graph=True))
            if weight:
                consistency[i].add(take_gradients(unlabeled * weight * found.consistency[i], own, retain_graph=True))
            losses = {"student_loss": found.students[i], "uda_loss": found.consistency[i]}
            add_measured(totals, _named(losses, learner), unlabeled)
        add_measured(totals, found.measured, unlabeled)
    factors = []
    for learner, batch, gradients in zip(learners, views, students, strict=True):
        set_gradients(learner, gradients.items)
        gain, factor, loss = update_and_gain(learner, batch, step, config)
        factors.append(learning.mpl_weight * factor)
        totals |= _named({"feedback_h": gain, "supervised_loss": loss}, learner)
    for j, learner in enumerate(learners):
        add_gradients(learner, consistency[j].items, 1.0)
        for i in range(len(learners)):
            if i != j and learning.mpl_weight:
                add_gradients(learner, part_of(feedback[i].items, learners, i, j), factors[i])
        learner.update()
    return totals


def cotraining_step(learners: Sequence[Learner], views: ViewBatch, step: int, config: StepConfig) -> dict[str, Tensor]:
    """`meta_step` without feedback: confidence-masked co-training (Blum and Mitchell 1998) on every batch.

    Returns what `meta_step` does, but feedback_h.
    """
    without = replace(config, learning=replace(config.learning, mpl_weight=0.0))
    measured = meta_step(learners, views, step, without)
    return {name: value for name, value in measured.items() if not name.startswith("feedback_h")}


STEPS: dict[str, Callable[[Sequence[Learner], ViewBatch, int, StepConfig], dict[str, Tensor]]] = {
    "labels_only": labels_only_step,
    "cotraining": cotraining_step,
    "meta": meta_step,
}


# --- gradients --------------------------------------------------------------------------------------------------------


def micro_batches(views: ViewBatch, count: int) -> list[tuple[list[Batch], float, float]]:
    """Micro-batches of all views alike, each with its share of labeled and of unlabeled images."""
    rows = zip(*(batch.parts(count) for batch in views), strict=True)
    return [([part for part, _, _ in row], row[0][1], row[0][2]) for row in rows]


def update_and_gain(learner: Learner, batch: Batch, step: int, config: StepConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Update by what lies in `.grad`, then lay the supervised gradient at theta' there; h, scale(h), and that loss.

    Where both are in float32 the second labeled loss is the pass that the gradient is taken from.
    """
    if config.learning.mpl_weight and config.precision == torch.float32:
        before = labeled_loss(learner, batch, step, config)
        learner.update()
        after, loss = supervised_backward(learner, batch, step, "exam", config)
        gain = before - after
        return gain, scale_feedback(gain, learner.moments), loss
    gain, factor = student_gain(learner, batch, step, config, learner)
    _, loss = supervised_backward(learner, batch, step, f"supervised {learner.name}", config)
    return gain, factor, loss


def supervised_backward(
    learner: Learner, batch: Batch, step: int, purpose: str, config: StepConfig
) -> tuple[Tensor, Tensor]:
    """Lay the supervised gradient into `.grad`; returns the plain cross-entropy, and the loss with label smoothing."""
    smoothing, plain, smooth = config.learning.label_smoothing, [], []
    config.randomness(step, purpose)
    for part, share, _ in batch.parts(config.learning.grad_accumulation):
        logits = config.logits(learner.network, part.labeled)
        loss = share * F.cross_entropy(logits, part.labels, label_smoothing=smoothing)
        loss.backward()
        smooth.append(loss.detach())
        plain.append(share * F.cross_entropy(logits.detach(), part.labels) if smoothing else smooth[-1])
    return torch.stack(plain).sum(), torch.stack(smooth).sum()


def set_gradients(learner: Learner, gradients: Sequence[Tensor]) -> None:
    """Make these the gradients of the learner's next update."""
    for parameter, gradient in zip(learner.parameters, gradients, strict=True):
        parameter.grad = gradient


def add_gradients(learner: Learner, gradients: Sequence[Tensor], factor: float | Tensor) -> None:
    """Add factor * gradients to those that lie in `.grad`."""
    for parameter, gradient in zip(learner.parameters, gradients, strict=True) if gradients else ():
        parameter.grad = factor * gradient if parameter.grad is None else parameter.grad.add_(factor * gradient)


def part_of(gradients: Sequence[Tensor], learners: Sequence[Learner], left_out: int, wanted: int) -> Sequence[Tensor]:
    """View `wanted`'s part of a list over the parameters of all views but `left_out`."""
    start = sum(len(x.parameters) for k, x in enumerate(learners) if k < wanted and k != left_out)
    return gradients[start : start + len(learners[wanted].parameters)]


def _named(measured: Mapping[str, Tensor], learner: Learner) -> dict[str, Tensor]:
    """The same scalars under names that end with the view's."""
    return {f"{name}_{learner.name}": value for name, value in measured.items()}


def measured(algorithm: str, names: Sequence[str]) -> list[str]:
    """The columns that an algorithm's steps fill, for views of these names."""
    if algorithm == "labels_only":
        return [f"supervised_loss_{view}" for view in names]
    of_views = [name for name in MEASURED_OF_VIEWS if algorithm == "meta" or name != "feedback_h"]
    return [*MEASURED, *(f"{name}_{view}" for name in of_views for view in names)]
