"""`--finetune_views`: each view's whole backbone learns from the labeled images before co-training begins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..algorithms.algorithm import supervised
from ..args import Learning, Options
from ..backbones.backbone import Backbone
from ..backbones.registry import parse_view, save_view
from ..base.progress import ProgressBar
from ..models import set_trainable
from ..train import Hooks, Progress
from .context import RunContext, only
from .networks import make_view, spec_of
from .run_folder import RESULTS
from .trainer import Trainer
from .views import Views, make_views

LAYER_DECAY = 0.75  # from stage to stage of a view that is fine-tuned (Bao et al. 2021, BEiT: 0.65 to 0.75)
# A view is fine-tuned as a run of its own would be that learns from the labels alone.
FINETUNING: dict[str, Any] = {
    "cotrain_mode": False, "finetune_mode": True, "finetune_views": False, "unfreeze": "all", "head": "linear",
    "compile": False, "tensorboard": False,
}  # fmt: skip


def finetuned(backbones: Mapping[str, Backbone], options: Options, context: RunContext) -> dict[str, Backbone]:
    """The backbones of `--views`, fine-tuned on the labeled images, or as a stopped run had fine-tuned them."""
    result = dict(backbones)
    for (label, backbone), spec in zip(backbones.items(), options.cotraining.views, strict=True):
        if not has_parameters(backbone):  # raw pixels have nothing to tune
            continue
        saved = RESULTS / (options.run.name or "") / view_file(label)
        if options.run.resume and saved.is_file():
            networks = spec_of(options.model, context.data, context.seed)
            result[label] = make_view(f"{parse_view(spec).name}={saved}", networks)
        else:
            result[label] = finetune(finetuning_trainer(backbone, options, context))
    return result


def finetune(trainer: Trainer) -> Backbone:
    """Train to the end; returns the backbone, on the CPU, with what it has learned."""
    backbone, context = trainer.views.first.backbone, trainer.context
    with ProgressBar(trainer.schedule.total_steps, what=f"fine-tuning {backbone.name}") as bar:
        trainer.learn(Progress(), Hooks(show=bar.show), validated=False)
    backbone.to("cpu")
    backbone.pretrained = True
    backbone.learned = np.union1d(backbone.learned, context.data.hashes[context.split.labeled])
    return backbone


def finetuning_trainer(backbone: Backbone, options: Options, context: RunContext) -> Trainer:
    """The supervised training of a backbone and a linear head on the labeled images, not yet begun.

    Its settings depend on nothing of the learning that follows but `--layer_decay` and `--grad_accumulation`, so that
    the trials of a search share what is fine-tuned.
    """
    own = options.learning
    learning = replace(
        Learning(),
        max_steps=options.cotraining.finetune_steps,
        grad_accumulation=own.grad_accumulation,
        layer_decay=LAYER_DECAY if own.layer_decay is None else own.layer_decay,
    )
    options = replace(options.changed(**FINETUNING), learning=learning)
    context = replace(context, split=only(labeled=context.split.labeled))
    set_trainable(backbone, "all")
    views = make_views({backbone.name: backbone}, options.run, options.data.flip, context, frozen=False)
    return Trainer(options, context, views, supervised(), share_backbone=True)


def has_parameters(backbone: Backbone) -> bool:
    """Whether anything in it can learn."""
    return any(parameter.numel() for parameter in backbone.parameters())


def view_file(label: str) -> str:
    """Where a fine-tuned view lies in its run's folder, with a name that every disk takes."""
    return f"views/{re.sub(r'[^A-Za-z0-9_.-]+', '_', label)}.safetensors"


def finetuned_files(views: Views) -> dict[str, str]:
    """Of the views that `--finetune_views` tunes, where they lie in the run's folder."""
    return {view.name: view_file(view.name) for view in views if has_parameters(view.backbone)}


def save_finetuned(folder: Path, views: Views) -> None:
    """Write the fine-tuned views into the run's folder, unless they are there."""
    for view in views:
        path = folder / view_file(view.name)
        if has_parameters(view.backbone) and not path.is_file():
            save_view(path, view.backbone)
