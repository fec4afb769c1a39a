"""`--finetune_views`: each view's whole backbone learns from the labeled images before co-training begins."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..backbones.backbone import Backbone
from ..backbones.registry import save_view
from ..base.progress import ProgressBar
from ..train import Hooks, Progress
from .metrics_log import shown_by
from .trainer import Trainer
from .views import Views


def finetune(trainer: Trainer) -> Backbone:
    """Train to the end; returns the backbone, on the CPU, with what it has learned."""
    backbone, context = trainer.views.first.backbone, trainer.context
    with ProgressBar(trainer.schedule.total_steps, what=f"fine-tuning {backbone.name}") as bar:
        trainer.learn(Progress(), Hooks(show=shown_by(bar)), validated=False)
    backbone.to("cpu")
    backbone.pretrained = True
    backbone.learned = np.union1d(backbone.learned, context.data.hashes[context.split.labeled])
    return backbone


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
