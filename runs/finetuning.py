"""`--finetune_views`: each view's whole backbone learns from the labeled images before co-training begins."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..backbones.backbone import Backbone
from ..backbones.registry import save_view
from ..base.files import file_names
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


def view_files(labels: Iterable[str]) -> dict[str, str]:
    """Of all views of a run, where they lie in its folder once they are fine-tuned."""
    return {label: f"views/{name}.safetensors" for label, name in file_names(labels).items()}


def finetuned_files(views: Views) -> dict[str, str]:
    """Of the views that `--finetune_views` tunes, where they lie in the run's folder."""
    files = view_files(view.name for view in views)
    return {view.name: files[view.name] for view in views if has_parameters(view.backbone)}


def save_finetuned(folder: Path, views: Views) -> None:
    """Write the fine-tuned views into the run's folder, unless they are there."""
    for name, file in finetuned_files(views).items():
        if not (folder / file).is_file():
            save_view(folder / file, views.of(name).backbone)
