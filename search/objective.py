"""What a trial is measured on, and the function that measures it: the training of a run, never on test images."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import args
from ..args import Data
from ..base.metrics import wilson_interval
from ..data import Dataset, Split, find_dataset, folds_of, split_dataset
from ..runs import run
from ..runs.prepare import fill_banks as fill_banks_of
from ..runs.prepare import make_trainer
from ..runs.views import FeatureCache
from ..train import Row
from ..utils import UserError


@dataclass(frozen=True)
class Goal:
    """What a trial is measured on: folds of the labeled images, or the validation images; never the test images."""

    dataset: Dataset
    whole: Split
    parts: tuple[Split, ...]

    @property
    def by_validation(self) -> bool:
        """Whether there are validation images."""
        return len(self.whole.val) > 0

    def described(self) -> str:
        """A line on the objective and how noisy it is."""
        count = sum(len(part.val) for part in self.parts)
        low, high = wilson_interval(round(0.75 * count), count)
        what = "validation accuracy" if self.by_validation else f"mean accuracy over {len(self.parts)} folds"
        return f"objective: {what}, {count} predictions a trial; at 75% its 95% interval is {low:.0%} to {high:.0%}"

    def digest(self) -> str:
        """A hash of the images that are learned and measured: machines that share a study must have the same."""
        digest = hashlib.blake2b(digest_size=10)
        for part in self.parts:
            for rows in (part.labeled, part.unlabeled, part.val):
                digest.update(np.sort(self.dataset.hashes[rows]).tobytes() + b"|")
        return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def dataset_of(data: Data) -> Dataset:
    """The images; each process reads the folder once."""
    return find_dataset(data)


@functools.lru_cache(maxsize=4)
def goal_of(data: Data, seed: int, folds: int) -> Goal:
    """What trials with these options are measured on; made once a process. Raises UserError."""
    dataset = dataset_of(replace(data, augmentation_draws=1, flip=None, include_labeled=True))
    split = split_dataset(dataset, data, seed)
    untested = replace(split, test=split.test[:0])
    if len(split.val):
        return Goal(dataset, split, (untested,))
    rarest = int(np.bincount(dataset.labels[split.labeled], minlength=len(dataset.classes)).min())
    if rarest < folds:
        raise UserError(
            f"--folds {folds} needs {folds} labeled images of each class, the rarest has {rarest}; "
            "lower --folds, give more labels, or --val_percent"
        )
    return Goal(dataset, split, tuple(folds_of(dataset, untested, folds, seed)))


def accuracy(values: Mapping[str, Any], goal: Goal, cache: FeatureCache, report: Callable[[float, int], None]) -> float:
    """Train with the options of a trial and measure: the trial's value.

    Args:
        values: of the trial's options, by name; the others have their defaults.
        goal: the images to learn from and to measure on.
        cache: what this process keeps from one training to the next.
        report: called with the value so far and the number of the fold (of the epoch, with validation images); it may
            end the trial by raising.

    Raises:
        UserError, TrainingFault: as a run does.
    """
    options = args.make(values)
    if goal.by_validation:

        def write(row: Row) -> None:
            report([v for name, v in row.items() if name.startswith("val_accuracy_")][-1], row["epoch"])

        return last_of(run.fold_accuracy(options, goal.dataset, goal.parts[0], cache=cache, write=write))
    found: list[float] = []
    for number, part in enumerate(goal.parts, start=1):
        found.append(last_of(run.fold_accuracy(options, goal.dataset, part, cache=cache)))
        report(float(np.mean(found)), number)
    return float(np.mean(found))


def last_of(accuracies: Mapping[str, float]) -> float:
    """The ensemble's accuracy, which comes last; that of the only model where there is one."""
    return list(accuracies.values())[-1]


def fill_banks(values: Mapping[str, Any], goal: Goal) -> None:
    """Compute the features that a trial with these values of options needs. Raises UserError for wrong options.

    Done before the trials, so that no worker computes them again and the user sees the progress.
    """
    options, cache = args.make(values), FeatureCache()
    for part in goal.parts:
        fill_banks_of(make_trainer(options, goal.dataset, part, cache=cache))
