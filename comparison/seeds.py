"""What `--compare` and `--repeat` do alike: their seeds, the folder, and how their summaries begin."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..args import Run, Study
from ..backbones.backbone import Backbone
from ..data import split_dataset
from ..runs.networks import check_not_learned
from ..runs.run import write_bad_files
from ..runs.run_folder import run_folder
from ..runs.summary import data_used, made_with, summary_header
from .task import Task


def seeds_of(run: Run, study: Study, default: int) -> list[int]:
    """The seeds of --repeat, counted up from --seed."""
    return [run.seed + index for index in range(study.repeat or default)]


def check_seeds(task: Task, seeds: Sequence[int], backbones: Sequence[Backbone]) -> None:
    """Each seed tests on other images: none of them may be one whose label a view was fine-tuned on.

    Raises UserError.
    """
    for seed in seeds if any(len(backbone.learned) for backbone in backbones) else ():
        split = split_dataset(task.dataset, task.options.data, seed)
        own = [] if task.options.cotraining.finetune_views else backbones  # else each seed tunes its own
        check_not_learned(own, task.dataset, np.concatenate([split.val, split.test]))


def make_folder(task: Task) -> Path:
    """`results/NAME` with the options and the list of unreadable files. Raises UserError."""
    run = task.options.run
    folder = run_folder(run.name or "", task.options.recorded, resume=run.resume, overwrite=run.overwrite)
    write_bad_files(folder, task.dataset)
    return folder


def summary_of(task: Task, seeds: Sequence[int], used: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """`name, seed, seeds, command, dataset, labels_used, seconds, versions, commit`.

    task: of the first seed, by whose split images and labels are counted. used: content hashes, see `data_used`.
    """
    run = task.options.run
    return {
        **summary_header(run.name or "", seed=run.seed, seeds=list(seeds)),
        **data_used(task.dataset, task.split, used),
        "seconds": {"total": round(time.monotonic() - task.began, 3)},
        **made_with(),
    }
