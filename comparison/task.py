"""What is trained with one seed. Only this file of the folder makes trainings, and views from which features come.

A command finds the data set once; each of its seeds is a `Task`, and each method of `--compare` one with other options.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..args import Options
from ..backbones.backbone import Backbone
from ..base.files import write_json
from ..base.written_files import OPTIONS
from ..data import Dataset, Split, find_dataset, split_dataset, summary_table
from ..runs.auto import auto_model
from ..runs.checkpoints import restore, save_best, used_images
from ..runs.context import make_context
from ..runs.evaluation import measure
from ..runs.prepare import fill_banks, make_trainer, prepare_views
from ..runs.resume import check_leaks, inherit, load_run, resumed_options
from ..runs.run import carry_out
from ..runs.trainer import Trainer
from ..runs.training import draw_samples, show_networks, train
from ..runs.unlabeled import UnlabeledStatistics
from ..runs.views import Views
from ..utils import say

Accuracies = dict[str, float]  # in [0, 1], of each model, the ensemble last


@dataclass(frozen=True)
class Task:
    """Options, data set and split of one training; `loaded` is the run that it starts from.

    began: when the command did, before it read the data (`time.monotonic()`).
    """

    options: Options
    dataset: Dataset
    split: Split
    loaded: Mapping[str, Any] | None = None
    began: float = field(default_factory=time.monotonic)

    def of_seed(self, seed: int) -> Task:
        """A single training with another seed, which also draws another split."""
        split = split_dataset(self.dataset, self.options.data, seed)
        return replace(self.changed(seed=seed, repeat=None, compare=False), split=split)

    def changed(self, **values: Any) -> Task:
        """The same task with these options, named flat."""
        return replace(self, options=self.options.changed(**values))

    def starting_from(self, checkpoint: Path) -> Task:
        """The same task for the models of another run. Raises UserError where those have seen what is held out."""
        options = self.options.changed(load_path=str(checkpoint))
        loaded = load_run(options.mode)
        options = inherit(options, loaded)
        check_leaks(loaded, self.dataset, self.split)
        return replace(self, options=options, loaded=loaded)

    def trainer(self) -> Trainer:
        """Its training, not begun. Raises UserError for options that do not fit."""
        return make_trainer(self.options, self.dataset, self.split, self.loaded)

    def statistics(self) -> UnlabeledStatistics:
        """What its unlabeled images tell before anything is trained."""
        trainer = self.trainer()
        fill_banks(trainer)
        return trainer.statistics

    def views(self) -> Views:
        """Its views alone, as features come from them; nothing is trained."""
        context = make_context(self.options.run, self.dataset, self.split)
        return prepare_views(self.options, context, self.loaded)


def task_of(options: Options) -> Task:
    """What a command does with its first seed, or goes on with. Raises UserError."""
    began = time.monotonic()
    if options.run.resume:
        options = resumed_options(options)
    dataset = find_dataset(options.data)
    split = split_dataset(dataset, options.data, options.run.seed)
    chosen = auto_model(options.model, options.data, options.run, options.cotraining.views, dataset, split)
    return Task(options.changed(**chosen), dataset, split, began=began)


@dataclass(frozen=True)
class Prepared:
    """What the first training of a command says before it begins.

    total_steps: of its schedule. used_images: content hashes by what they are used for. draw_samples: draws a picture
    of augmented images.
    """

    backbones: Sequence[Backbone]
    total_steps: int
    used_images: Mapping[str, np.ndarray]
    draw_samples: Callable[[Path], Path]


def prepared(task: Task) -> Prepared:
    """Make the first training, which shows whether the options are right before a folder is made or replaced."""
    say(summary_table(task.dataset, task.split))
    trainer = task.trainer()
    show_networks(trainer)
    if task.options.run.overwrite:
        fill_banks(trainer)
    used = used_images(trainer.context, trainer.views, trainer.loaded)
    backbones = list(trainer.views.backbones.values())
    return Prepared(backbones, trainer.schedule.total_steps, used, functools.partial(draw_samples, trainer))


def whole_run(task: Task, folder: Path, began: float) -> dict[str, Any]:
    """A run with all that it leaves in its folder, from where it was stopped; returns its summary."""
    trainer = task.trainer()
    write_json(folder / OPTIONS, trainer.options.recorded())
    return carry_out(trainer, folder, began)


def train_and_test(task: Task, folder: Path, *, best: Path | None = None) -> Accuracies:
    """Train in this folder, from where it was stopped, and test once; the test accuracies of what was trained.

    best: where to save the tested models, if another training starts from them.
    """
    trainer, test = task.trainer(), task.split.test
    progress = restore(folder, trainer)
    train(trainer, folder, progress)
    best_epoch = trainer.take_best(progress)
    if best is not None:
        save_best(best, trainer, best_epoch)
    results = measure(trainer.predictions(test), task.dataset.labels[test], task.dataset.classes)
    (folder / "checkpoints" / "last.pt").unlink(missing_ok=True)  # dozens of them would fill a disk
    # A teacher that was loaded beside the student has not been trained.
    return {name: result["accuracy"] for name, result in results.items() if name not in trainer.companions}
