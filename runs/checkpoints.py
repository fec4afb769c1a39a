"""What a run keeps of its training: `last.pt` to go on from, `best.pt` to test and use."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..backbones.registry import view_record
from ..base.written_files import note
from ..features.reference import Reference
from ..learning.checkpoint import layers_checked, save_checkpoint, whole_checkpoint
from ..train import Progress, progress_state, restore_progress
from ..utils import UserError, say, warn
from .context import RunContext
from .decision import Decision
from .networks import default_model
from .resume import check_same_options, hashes_in
from .trainer import Trainer
from .views import Views


def save_last(path: Path, trainer: Trainer, progress: Progress) -> None:
    """Write `last.pt`: all that the run needs to go on."""
    models = {learner.name: learner.evaluation_state() for learner in trainer.learners}
    save_checkpoint(path, {**description(trainer), "models": models, **progress_state(progress, trainer.learners)})


def save_best(
    path: Path,
    trainer: Trainer,
    best_epoch: Mapping[str, int],
    temperatures: Mapping[str, float] | None = None,
    decision: Decision | None = None,
    reference: Reference | None = None,
) -> None:
    """Write `best.pt`: the models as they are tested and used, without what learning needs."""
    with trainer.evaluated() as models:
        states = {name: head.state_dict() for name, head in models.heads.items()}
        content = {**description(trainer), "models": states, "best_epoch": dict(best_epoch)}
        content |= {"temperatures": dict(temperatures or {}), "decision": (decision or Decision()).state()}
        save_checkpoint(path, {**content, "reference": vars(reference) if reference is not None else {}})


def restore(folder: Path, trainer: Trainer) -> Progress:
    """Go on from `last.pt`, or from the beginning where there is none yet."""
    path = folder / "checkpoints" / "last.pt"
    if not path.exists():
        return Progress()
    content = whole_checkpoint(path, last=True)
    note(path)  # in a list that was lost
    with layers_checked(path):
        progress = restore_progress(content, trainer.learners)
        validated = trainer.enough_validation and bool(progress.rows)
        chosen = {one.name for one in trainer.learners if validated and one.start < progress.rows[-1]["step"]}
        if set(progress.best) != chosen:
            raise ValueError("best does not fit the rest")
    check_same_options(content, trainer.options.flat())
    if content["model"]["ranges"] != dict(trainer.context.data.ranges):
        raise UserError(f"{folder}: the values of its images lie in another range than before; start a new run")
    before = content["model"]["precision"].get("features")
    now = trainer.context.precision.described(frozen=trainer.views.frozen).get("features")
    if before is not None and before != now:
        warn(
            f"the run began with features in {before} and goes on with features in {now}, which differ a little; "
            "where that matters, train under another --name from the beginning"
        )
    say(f"going on after epoch {len(progress.rows)}, step {progress.step} of {trainer.schedule.total_steps}")
    return progress


def description(trainer: Trainer) -> dict[str, Any]:
    """What a checkpoint says of the network, and of the images that were used.

    Returns {format, classes, model, options, seen, labels, validation, views}.
    """
    options, data, frozen = trainer.options, trainer.context.data, trainer.views.frozen
    used = used_images(trainer.context, trainer.views, trainer.loaded)
    model = {
        "name": options.model.model_name or default_model(data),
        "native_size": data.native_size,
        "kind": data.kind,
        "frozen": frozen,
        "ranges": dict(data.ranges),
        "precision": trainer.context.precision.described(frozen=frozen),
    }
    return {
        "format": 1,
        "classes": list(data.classes),
        "model": model,
        "options": options.recorded(),
        **{name: torch.from_numpy(hashes.view(np.int64)) for name, hashes in used.items()},
        "views": {
            view.name: {
                "record": view_record(view.backbone),
                "backbone": view.backbone.state_dict() if frozen else None,
            }
            for view in trainer.views
        },
    }


def used_images(context: RunContext, views: Views, loaded: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    """Contents uint64 that this run and those that it came from have used, by what for (see `hashes_in`)."""
    split, hashes = context.split, context.data.hashes
    seen = np.concatenate([split.labeled, split.unlabeled, split.val])
    rows = {"seen": seen, "labels": split.labeled, "validation": split.val}
    used = {name: np.union1d(hashes[own], hashes_in(loaded, name)) for name, own in rows.items()}
    learned = [view.backbone.learned for view in views]
    return used | {name: functools.reduce(np.union1d, learned, used[name]) for name in ("seen", "labels")}
