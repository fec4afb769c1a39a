"""The ways to learn: which learners there are, what a step does, and what is measured.

To add one: write its step (train.py or a file beside this one), describe it by an `Algorithm`, and choose it in
`algorithm_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..args import Cotraining, Mode
from ..learning.learner import Learner
from ..train import StepConfig, mpl_step, supervised_step, warmup_step
from . import cotraining_steps

MPL_MEASURED = (
    "supervised_loss", "uda_loss", "student_loss", "feedback_loss", "mask_rate", "agreement",
    "pseudo_label_accuracy", "feedback_h", "feedback_ratio",
)  # fmt: skip


# One update of the learners on a batch (of each view, in co-training); returns named scalars, left on the device.
StepFunction = Callable[[Sequence[Learner], Any, int, StepConfig], dict[str, Tensor]]


@dataclass(frozen=True)
class Algorithm:
    """A way to learn.

    learners: their names, the first of them the first teacher; in co-training those of the views. warmup_step and
    main_step: what is done before and after the end of the warm-up. measured: the names that the steps return.
    supervised: learns from the labeled images alone. warms_up: whether there is a warm-up, in which only the first
    learner learns unless `by_view`. by_view: a step sees a batch of each view, and each learner has a view of its own.
    switches: teacher and student change roles. updates: of a learner in a main step.
    """

    learners: tuple[str, ...]
    warmup_step: StepFunction
    main_step: StepFunction
    measured: tuple[str, ...]
    supervised: bool = False
    warms_up: bool = True
    by_view: bool = False
    switches: bool = False
    updates: int = 1


def supervised() -> Algorithm:
    """Learning from the labeled images alone."""
    measured = ("supervised_loss",)
    return Algorithm(("student",), supervised_step, supervised_step, measured, supervised=True, warms_up=False)


def meta_pseudo_labels(*, switched: bool) -> Algorithm:
    """Meta Pseudo Labels; switched: teacher and student change roles every epoch."""
    names = ("model_1", "model_2") if switched else ("teacher", "student")
    return Algorithm(names, warmup_step, mpl_step, MPL_MEASURED, switches=switched)


def cotraining(name: str, views: Sequence[str]) -> Algorithm:
    """Co-training of these views by `labels_only`, `cotraining` or `meta`."""
    return Algorithm(
        learners=tuple(views),
        warmup_step=cotraining_steps.labels_only_step,
        main_step=cotraining_steps.STEPS[name],
        measured=tuple(cotraining_steps.measured(name, views)),
        supervised=name == "labels_only",
        warms_up=name != "labels_only",
        by_view=True,
        updates=1 if name == "labels_only" else 2,
    )


def algorithm_of(mode: Mode, options: Cotraining, views: Sequence[str]) -> Algorithm:
    """The algorithm that the options ask for; views: the names of the run's views."""
    if mode.cotrain_mode:
        return cotraining(options.algorithm, views)
    return supervised() if mode.finetune_mode else meta_pseudo_labels(switched=mode.switch_mode)
