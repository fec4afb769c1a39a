"""Everything up to the first step: the views of a run, its training, and the features that it will ask for."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..algorithms.algorithm import algorithm_of, supervised
from ..args import Cotraining, Learning, Mode, Model, Options, Run
from ..backbones.backbone import Backbone
from ..backbones.library import resolve_name
from ..backbones.registry import check_views, parse_view
from ..backbones.weights import weight_file
from ..base.metrics import ENOUGH_TO_FIT
from ..base.progress import ProgressBar
from ..base.tables import number_of
from ..data import Dataset, ImagesChanged, Split, without
from ..images.places import listed
from ..models import resolve_unfreeze, set_trainable
from ..utils import UserError, choose_device, warn
from .context import RunContext, make_context, only
from .decision import check_recall
from .finetuning import finetune, has_parameters, view_files
from .folds import calibration_folds
from .metrics_log import require_tensorboard
from .networks import check_not_learned, make_backbones, make_view, restored_backbones, spec_of
from .run_folder import RESULTS
from .trainer import Trainer, check_batch_norms
from .views import FeatureCache, Views, make_views

LAYER_DECAY = 0.75  # from stage to stage of a view that is fine-tuned (Bao et al. 2021, BEiT: 0.65 to 0.75)
# A view is fine-tuned as a run of its own would be that learns from the labels alone.
FINETUNING: dict[str, Any] = {
    "cotrain_mode": False, "finetune_mode": True, "finetune_views": False, "unfreeze": "all",
    "compile": False, "tensorboard": False,
}  # fmt: skip


def make_trainer(
    options: Options,
    dataset: Dataset,
    split: Split,
    loaded: Mapping[str, Any] | None = None,
    cache: FeatureCache | None = None,
) -> Trainer:
    """The training that the options ask for, with all that can be wrong with it found. Raises UserError."""
    cache = FeatureCache() if cache is None else cache
    context = make_context(options.run, dataset, split)
    views = prepare_views(options, context, loaded, cache)
    algorithm = algorithm_of(options.mode, options.cotraining, list(views.backbones))
    trainer = Trainer(options, context, views, algorithm, loaded=loaded, cache=cache)
    check_batch_norms(trainer)
    if options.use.recall:
        validated = len(split.val) >= ENOUGH_TO_FIT
        reason = "" if validated else calibration_folds(trainer)[1]
        check_recall(options.use, dataset, split.val if validated else split.labeled, reason)
    if options.run.tensorboard:
        require_tensorboard()
    return trainer


def prepare_views(
    options: Options,
    context: RunContext,
    loaded: Mapping[str, Any] | None = None,
    cache: FeatureCache | None = None,
) -> Views:
    """The views of a run: of the cache, of a loaded run, or built, and fine-tuned where that is asked for.

    Raises UserError when a backbone has learned labels of images that would be measured on.
    """
    cache = FeatureCache() if cache is None else cache
    key = views_key(options, context.split)
    held_out = np.concatenate([context.split.val, context.split.test])
    if key in cache.views:
        views = cache.views[key]
        check_not_learned(views.backbones.values(), context.data, held_out)
        return views
    if loaded is not None:
        backbones = restored_backbones(loaded, context.seed)
    else:
        spec = spec_of(options.model, context.data, context.seed)
        backbones = make_backbones(spec, options.cotraining.views)
    check_not_learned(backbones.values(), context.data, held_out)
    if options.cotraining.finetune_views and loaded is None:
        backbones = finetuned(backbones, options, context)
    several = len(backbones) > 1  # the views of co-training are frozen whatever they are
    for backbone in backbones.values():
        set_trainable(backbone, "head" if several else resolve_unfreeze(options.model, backbone))
    frozen = not any(p.requires_grad for backbone in backbones.values() for p in backbone.parameters())
    views = make_views(backbones, options.run, options.data.flip, context, frozen=frozen)
    if views.frozen and loaded is not None and not loaded["model"]["frozen"]:
        raise UserError("--unfreeze head: the loaded models have a backbone each; leave out --unfreeze")
    views = replace(views, key=key)
    if views.frozen:
        cache.views[key] = views
    return views


def views_key(options: Options, split: Split) -> Hashable:
    """What frozen views depend on, beside the data set: all but the learning."""
    learned: Hashable = None  # from labeled images, before a view is frozen
    if options.cotraining.finetune_views:
        learning = options.learning
        learned = (options.cotraining.finetune_steps, learning.layer_decay, learning.grad_accumulation)
        learned += (split.labeled.tobytes(),)
    model, views = replace(options.model, head_prior=""), options.cotraining.views
    return replace(options.run, resume=False), options.data, model, views, learned, options.mode.load_path


def finetuned(backbones: Mapping[str, Backbone], options: Options, context: RunContext) -> dict[str, Backbone]:
    """The backbones of `--views`, fine-tuned on the labeled images, or as a stopped run had fine-tuned them."""
    result, files = dict(backbones), view_files(backbones)
    for (label, backbone), spec in zip(backbones.items(), options.cotraining.views, strict=True):
        if not has_parameters(backbone):  # raw pixels have nothing to tune
            continue
        saved = RESULTS / (options.run.name or "") / files[label]
        if options.run.resume and saved.is_file():
            networks = spec_of(options.model, context.data, context.seed)
            result[label] = make_view(f"{parse_view(spec).name}={saved}", networks)
        else:
            result[label] = finetune(finetuning_trainer(backbone, options, context))
    return result


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


def fill_banks(trainer: Trainer) -> None:
    """Compute the features that training, test and calibration will ask for, all at once."""
    split = trainer.context.split
    wanted = trainer.sampler.wanted(trainer.planned_steps) if trainer.views.frozen else {}
    by_folds = len(split.val) < ENOUGH_TO_FIT and calibration_folds(trainer)[0]
    held_out = [split.labeled] if by_folds else []
    wanted["eval", 0] = np.concatenate([split.val, split.test, *held_out])
    for bank in trainer.views.banks:
        missing = bank.missing(wanted)
        if missing:
            with ProgressBar(missing, what=f"features of {bank.frozen.backbone.name}", unit="image") as bar:
                bank.fill(wanted, show=bar.show)


def without_changed(trainer: Trainer) -> Trainer:
    """The training without the images that are not what was scanned any more, which are named, not yet begun."""
    data, split = trainer.context.data, trainer.context.split
    while True:
        data, split = drop_changed(data, split)
        with contextlib.suppress(ImagesChanged):
            return make_trainer(trainer.options, data, split, trainer.loaded)


def drop_changed(dataset: Dataset, split: Split) -> tuple[Dataset, Split]:
    """Without the images that are not what was scanned any more, which are named."""
    rows = dataset.changed(np.unique(np.concatenate([split.labeled, split.unlabeled, split.val, split.test])))
    if not len(rows):  # changed and put back meanwhile
        return dataset, split
    names = listed(dataset.paths[row] for row in rows)
    one = "file has changed since it was scanned, or is gone, and is"
    many = "files have changed since they were scanned, or are gone, and are"
    warn(f"{number_of(len(rows), one, many)} left out: {names}")
    return without(dataset, split, rows)


def filled(trainer: Trainer) -> Trainer:
    """The training with its features computed, without the images that have changed meanwhile."""
    while True:
        try:
            fill_banks(trainer)
            return trainer
        except ImagesChanged:
            trainer = without_changed(trainer)


def check_available(run: Run, model: Model, mode: Mode, cotraining: Cotraining) -> None:
    """The device, the names and the weights' file, before minutes go into reading a large folder. Raises UserError.

    A run that is loaded or goes on brings its own, and is soon looked at.
    """
    if run.resume or mode.load_path or mode.list_views:
        return
    choose_device(run.device)
    if model.model_name is not None:
        resolve_name(model.model_name)
    weight_file(model.weights)
    check_views(cotraining.views)
