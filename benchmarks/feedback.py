"""What the student's feedback knows and what it is worth, beside controls that know nothing.

    python benchmarks/feedback.py --seeds 100 101 102 -- --data_dir digits
    python benchmarks/feedback.py -- --data_dir ../shared/data/flowers5 --model_name squeezenet1_1 \
        --weights ../shared/weights/squeezenet1_1.safetensors --num_labels 25

Each seed draws a split of its own; by default seeds that no other table uses. The first table shows, for each third of
the main steps of `as shipped`, what h knows: how it correlates with the h of an update without any pseudo-label; the
share of steps in which the true classes as pseudo-labels gain more than wrong ones; and how well the gain of single
images, h_b, tells right from wrong pseudo-labels (area under the ROC curve), among all and within quarters of equal
confidence, beside confidence itself; with labeled losses of temperature 1 and 5. The second shows accuracies on the test
images, paired over the seeds with UDA:

    as shipped     h as the options say
    constant       1 in place of scale(h)
    other step     the scale(h) of a step before, drawn at random
    label-free     h minus the h of an update without pseudo-labels; labeled losses of temperature 5
    per image      each image by its own h_b, temperature 5, centred and scaled over the confident ones
    other image    the same, dealt out at random among the images
    gate           only pseudo-labels with h_b > 0 are learned, by the teacher too; no other feedback

h_b is the first-order gain <grad L_l, grad CE(y_hat_b, S(x_b))>, minus its mean over all classes in place of y_hat_b. It
is taken as a difference: what a small step along -grad L_l adds to the student's log-probability of y_hat_b. A run
takes about 8 s on frozen features.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

os.environ.setdefault("OMP_NUM_THREADS", "1")

from transfermpl.utils import keep_pages

keep_pages()

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from transfermpl import args
from transfermpl.base.tables import text_table
from transfermpl.comparison.task import Task, task_of
from transfermpl.comparison.verdict import table
from transfermpl.learning.batches import Batch
from transfermpl.learning.learner import Learner
from transfermpl.models import batch_norms_without_updates
from transfermpl.runs.evaluation import measure
from transfermpl.runs.prepare import fill_banks
from transfermpl.train import (
    Progress,
    StepConfig,
    TeacherOutput,
    confident_target,
    consistency_loss,
    consistency_weight,
    labeled_loss_conditions,
    mpl_step,
    scale_feedback,
    student_forward,
    student_gain,
    take_gradients,
    teacher_forward,
)
from transfermpl.utils import generator

TEMPERATURES = (1.0, 5.0)  # of the labeled losses that are compared
SOFT = 5.0
PROBE_EVERY = 20
SMALL_STEP = 1e-3  # of the weights' length, along a gradient
Learners = Sequence[Learner]


def soft_loss(student: Learner, batch: Batch, step: int, config: StepConfig, temperature: float) -> Tensor:
    """The labeled loss [] of logits that are divided by a temperature, under the conditions of `labeled_loss`."""
    with labeled_loss_conditions(student, step, config):
        return F.cross_entropy(student.network(batch.labeled) / temperature, batch.labels)


def updated(student: Learner, loss: Callable[[Learner], Tensor] | None) -> Learner:
    """A copy of the student after one update by a loss, or by its optimizer's momentum alone."""
    changed = copy.deepcopy(student)
    gradients = [torch.zeros_like(p) for p in changed.parameters]
    if loss is not None:
        gradients = take_gradients(loss(changed), changed.parameters)
    for parameter, gradient in zip(changed.parameters, gradients, strict=True):
        parameter.grad = gradient
    changed.update()
    return changed


def gains_of_classes(
    student: Learner, batch: Batch, step: int, config: StepConfig, temperature: float = SOFT
) -> Tensor:
    """h_b [B, C] of each image and class, up to a factor; the mean over the classes is 0."""
    moved = copy.deepcopy(student)
    gradients = take_gradients(soft_loss(moved, batch, step, config, temperature), moved.parameters)
    length = torch.stack([p.norm() for p in moved.parameters]).norm()
    size = SMALL_STEP * length / torch.stack([g.norm() for g in gradients]).norm().clamp(min=1e-12)
    with torch.no_grad(), labeled_loss_conditions(student, step, config):
        for parameter, gradient in zip(moved.parameters, gradients, strict=True):
            parameter.sub_(size * gradient)
        change = (moved.network(batch.strong) - student.network(batch.strong)).float()
    return change - change.mean(dim=1, keepdim=True)


# --- what h knows -----------------------------------------------------------------------------------------------------


@dataclass
class Knowledge:
    """What was measured in one third of the main steps: h by temperature and pseudo-labels, and images one by one."""

    gains: dict[tuple[float, str], list[float]] = field(default_factory=dict)
    images: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def look(self, learners: Learners, batch: Batch, step: int, config: StepConfig) -> None:
        """Measure at a step, on copies of the learners."""
        teacher, student = (copy.deepcopy(learner) for learner in learners)
        assert batch.hidden is not None
        config.randomness(step, "teacher 0")
        output = teacher_forward(teacher, batch, step, config)
        known = (batch.hidden >= 0) & (output.mask > 0)
        if not known.any():
            return
        classes = teacher.class_prior.shape[0]
        shift = generator(config.seed, "wrong", step).integers(1, classes, len(known))
        wrong = (batch.hidden + torch.from_numpy(shift).to(known.device)) % classes
        kinds = {
            "as taught": output.labels,
            "right": torch.where(known, batch.hidden, output.labels),
            "wrong": torch.where(known, wrong, output.labels),
        }
        after = {"none": updated(student, None)}
        after |= {
            name: updated(student, self._loss(labels, batch, output, step, config)) for name, labels in kinds.items()
        }
        with torch.no_grad():
            for tau in TEMPERATURES:
                before = soft_loss(student, batch, step, config, tau)
                for name, changed in after.items():
                    gain = before - soft_loss(changed, batch, step, config, tau)
                    self.gains.setdefault((tau, name), []).append(float(gain))
        scores = {str(tau): gains_of_classes(student, batch, step, config, tau) for tau in TEMPERATURES}
        for name, score in scores.items():
            scaled = score / score.square().mean().sqrt().clamp(min=1e-12)
            self._note(name, scaled.gather(1, output.labels[:, None])[:, 0][known])
        self._note("confidence", output.logits.softmax(dim=1).amax(dim=1)[known])
        self._note("right", output.labels.eq(batch.hidden)[known])

    @staticmethod
    def _loss(
        labels: Tensor, batch: Batch, output: TeacherOutput, step: int, config: StepConfig
    ) -> Callable[[Learner], Tensor]:
        def loss(student: Learner) -> Tensor:
            config.randomness(step, "student 0")
            return student_forward(student, batch, output._replace(labels=labels), config)["student_loss"]

        return loss

    def _note(self, name: str, values: Tensor) -> None:
        self.images.setdefault(name, []).append(values.cpu().numpy())

    def row(self) -> list[float]:
        """By temperature: correlation with the label-free h, right above wrong, AUC, AUC in quarters; and confidence's."""
        found = []
        right = np.concatenate(self.images["right"])
        confidence = np.concatenate(self.images["confidence"])
        quarters = np.array_split(np.argsort(confidence, kind="stable"), 4)
        for tau in TEMPERATURES:
            taught, free, good, bad = (
                np.array(self.gains[tau, name]) for name in ("as taught", "none", "right", "wrong")
            )
            score = np.concatenate(self.images[str(tau)])
            within = [auc(score[rows], right[rows]) for rows in quarters]
            found += [np.corrcoef(taught, free)[0, 1], (good > bad).mean(), auc(score, right)]
            found.append(np.nanmean(within) if np.isfinite(within).any() else np.nan)
        return [float(value) for value in (*found, auc(confidence, right))]


def auc(score: np.ndarray, right: np.ndarray) -> float:
    """The chance that a right one scores above a wrong one; NaN where there are no two kinds."""
    return float(roc_auc_score(right, score)) if 0 < right.sum() < len(right) else float("nan")


# --- ways to use it ---------------------------------------------------------------------------------------------------


class Probed:
    """The shipped step, which is looked at now and then."""

    def __init__(self, first: int, total: int) -> None:
        self.first, self.total = first, total
        self.thirds = [Knowledge() for _ in range(3)]

    def __call__(self, learners: Learners, batch: Batch, step: int, config: StepConfig) -> dict[str, Tensor]:
        if step % PROBE_EVERY == 0 and batch.hidden is not None:
            third = 3 * (step - self.first) // max(1, self.total - self.first)
            self.thirds[min(third, 2)].look(learners, batch, step, config)
        return mpl_step(learners, batch, step, config)


def constant(*asked: object) -> tuple[Tensor, Tensor]:
    gain, _ = student_gain(*asked)  # type: ignore[arg-type]
    return gain, torch.ones_like(gain)


class OtherStep:
    """scale(h) of one of the steps before, by chance: a feedback of the same size that knows nothing of this batch."""

    def __init__(self) -> None:
        self.before: list[Tensor] = []

    def __call__(
        self, student: Learner, batch: Batch, step: int, config: StepConfig, teacher: Learner
    ) -> tuple[Tensor, Tensor]:
        gain, factor = student_gain(student, batch, step, config, teacher)
        self.before.append(factor)
        return gain, self.before[generator(config.seed, "other step", step).integers(len(self.before))]


def label_free(
    student: Learner, batch: Batch, step: int, config: StepConfig, teacher: Learner
) -> tuple[Tensor, Tensor]:
    """h against the baseline that an update without pseudo-labels gives."""
    free = updated(student, None)
    student.update()
    with torch.no_grad():
        gain = soft_loss(free, batch, step, config, SOFT) - soft_loss(student, batch, step, config, SOFT)
    return gain, scale_feedback(gain, teacher.moments)


def by_image(learners: Learners, batch: Batch, step: int, config: StepConfig, *, how: str) -> dict[str, Tensor]:
    """`mpl_step` with a gain for each image: as a factor of its feedback, dealt out at random, or as a gate."""
    teacher, student = learners
    assert batch.strong is not None
    before = teacher.marginal.clone()
    config.randomness(step, "teacher 0")
    output = teacher_forward(teacher, batch, step, config)
    gains = gains_of_classes(student, batch, step, config).gather(1, output.labels[:, None])[:, 0]
    if how == "other image":
        order = generator(config.seed, "other image", step).permutation(len(gains))
        gains = gains[torch.from_numpy(order).to(gains.device)]
    mask = output.mask * (gains > 0) if how == "gate" else output.mask
    config.randomness(step, "student 0")
    learned = student_forward(student, batch, output._replace(mask=mask), config)
    learned["student_loss"].backward()
    student.update()
    weight = consistency_weight(config.learning, step - teacher.start)
    if how == "gate":
        teacher.marginal.copy_(before)  # the target is made once more, and moves it to the same place
        with torch.no_grad(), batch_norms_without_updates(teacher.network):
            target, _ = confident_target(config.logits(teacher.network, batch.weak), teacher, config.learning)
        config.randomness(step, "teacher 0")
        strong = config.logits(teacher.network, batch.strong)
        consistency = consistency_loss(target, strong, mask)
        (output.supervised + weight * consistency).backward()
    else:
        config.randomness(step, "teacher 0")
        losses = F.cross_entropy(config.logits(teacher.network, batch.strong), output.labels, reduction="none")
        feedback = (output.mask * standard(gains, output.mask) * losses).mean()
        (output.supervised + weight * output.consistency + config.learning.mpl_weight * feedback).backward()
    teacher.update()
    return {name: value.detach() for name, value in learned.items()}


def standard(gains: Tensor, mask: Tensor) -> Tensor:
    """Gains [B] with the mean 0 and the mean square 1 over the masked-in images."""
    count = mask.sum().clamp(min=1)
    centred = gains - (gains * mask).sum() / count
    return centred / ((centred.square() * mask).sum() / count).sqrt().clamp(min=1e-12)


# --- runs -------------------------------------------------------------------------------------------------------------


def steps_of(way: str) -> Callable[..., dict[str, Tensor]]:
    """The main step of a way to use the feedback."""
    if way in ("per image", "other image", "gate"):
        return lambda *asked: by_image(*asked, how=way)
    gain_of = {"constant": constant, "other step": OtherStep(), "label-free": label_free}.get(way, student_gain)
    return lambda *asked: mpl_step(*asked, gain_of=gain_of)


WAYS = ("UDA", "as shipped", "constant", "other step", "label-free", "per image", "other image", "gate")


def train(task: Task, way: str) -> tuple[dict[str, float], list[Knowledge]]:
    """The test accuracies of one training, and what was seen of its h in each third."""
    trainer = (task.changed(mpl_weight=0.0) if way == "UDA" else task).trainer()
    fill_banks(trainer)
    schedule = trainer.schedule
    probed = Probed(schedule.warmup_steps, schedule.total_steps) if way == "as shipped" else None
    trainer.algorithm = replace(trainer.algorithm, main_step=probed or steps_of(way))
    trainer.learn(Progress(), validated=False)
    rows = task.split.test
    results = measure(trainer.predictions(rows), task.dataset.labels[rows], task.dataset.classes)
    return {name: result["accuracy"] for name, result in results.items()}, probed.thirds if probed else []


def knowledge_table(seeds: Sequence[Sequence[Knowledge]]) -> str:
    """The means over the seeds, a row a third."""
    head = ["third"]
    for tau in TEMPERATURES:
        head += [f"corr. (T {tau:g})", "right > wrong", "AUC h_b", "in quarters"]
    rows = [[*head, "AUC confidence"]]
    for third in range(3):
        values = np.nanmean([of[third].row() for of in seeds if of[third].images], axis=0)
        rows.append([str(third + 1), *(f"{value:.2f}" for value in values)])
    return text_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(100, 110)))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("arguments", nargs="*", help="after --: those of MPL.py")
    given = parser.parse_args()
    task = task_of(args.parse(["--name", "feedback", *given.arguments]))
    results: dict[str, dict[int, dict[str, float]]] = {way: {} for way in given.ways}
    known = []
    for seed, way in itertools.product(given.seeds, given.ways):
        results[way][seed], thirds = train(task.of_seed(seed), way)
        known += [thirds] if thirds else []
        print(f"seed {seed}, {way}: {100 * list(results[way][seed].values())[-1]:.1f}%", flush=True)
    if known:
        print("\n" + knowledge_table(known))
    print("\n" + table(results))


if __name__ == "__main__":
    main()
