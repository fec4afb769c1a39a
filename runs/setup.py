"""What training and testing stand on: data, device, backbones and their sources; predictions and their metrics."""

from __future__ import annotations

import copy
import functools
import shlex
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import visualization
from ..args import Options, command_line
from ..backbones.backbone import Backbone
from ..backbones.library import build_backbone, resolve_name
from ..backbones.registry import build_view, check_views, restored_view, view_labels
from ..backbones.weights import weight_file
from ..base.metrics import (
    calibrated,
    calibration_errors,
    confusion_matrix,
    metrics,
    probabilities,
    reliability,
    with_ensemble,
)
from ..data import Dataset, Split
from ..features.bank import FeatureBank
from ..features.blocks import evict
from ..features.sources import FrozenSource, ImageSource, Source
from ..images.augment import recipe_for
from ..learning.checkpoint import layers_checked
from ..models import Network, build_head, resolve_unfreeze, set_trainable
from ..utils import UserError, choose_device, choose_precision, key, peak_memory_bytes, warn
from .progress import commit, versions
from .resume import hashes_in

DEFAULT_MODEL = {"digits": "cnn", "fake": "cnn", "moons": "mlp"} | dict.fromkeys(
    ("cifar10", "cifar100", "svhn"), "wrn28_2"
)


@dataclass(frozen=True)
class View:
    """One way to see an image: a backbone and the source of what is learned on it. All but co-training have one."""

    name: str
    backbone: Backbone
    source: Source

    @property
    def images(self) -> ImageSource:
        """The decoded and augmented images under whatever the source is."""
        source = self.source.frozen if isinstance(self.source, FeatureBank) else self.source
        return source.images if isinstance(source, FrozenSource) else source  # type: ignore[return-value]


@dataclass
class Kept:
    """Frozen views and what they tell of the pile, by what it depends on: many trainings make them once.

    That is the classes' shares, the axes of the prior of each view's head, and which images are near to which.
    """

    views: dict[Hashable, list[View]] = field(default_factory=dict)
    shares: dict[Hashable, np.ndarray] = field(default_factory=dict)
    axes: dict[Hashable, list[torch.Tensor | None]] = field(default_factory=dict)
    near: dict[Hashable, list[np.ndarray]] = field(default_factory=dict)

    def forget(self, views: int, told: int) -> None:
        """Drop the oldest beyond these numbers."""
        for held, most in ((self.views, views), (self.shares, told), (self.axes, told), (self.near, told)):
            while len(held) > most:
                held.pop(next(iter(held)))


def foundation_of(options: Options, split: Split) -> Hashable:
    """What frozen views depend on, beside the data set: all but the learning and the head."""
    learned: Hashable = None  # from labeled images, before a view is frozen
    if options.cotraining.finetune_views:
        learned = options.cotraining.finetune_steps, options.learning.layer_decay, split.labeled.tobytes()
    model, views = replace(options.model, head="", head_prior=""), options.cotraining.views
    return replace(options.run, resume=False), options.data, model, views, learned, options.mode.load_path


class Setup:
    """Data, device, backbones and the sources of their inputs: what training and testing share. Writes nothing."""

    def __init__(
        self,
        options: Options,
        dataset: Dataset,
        split: Split,
        loaded: Mapping[str, Any] | None = None,
        kept: Kept | None = None,
    ) -> None:
        self.options, self.dataset, self.split, self.loaded = options, dataset, split, loaded
        self.tested: dict[str, np.ndarray] = {}  # each model's probabilities for the images of the test
        self.device = choose_device(options.run.device)
        self.precision = choose_precision(options.run.precision, self.device)
        self.precision_of_features = choose_precision(options.run.precision, self.device, frozen=True)
        self.kept = Kept() if kept is None else kept
        foundation, known = foundation_of(options, split), self.kept.views
        self.frozen = foundation in known
        if self.frozen:
            self.views = known[foundation]
            self.check_measured(view.backbone for view in self.views)
        else:
            self.views = self._views()
        if self.frozen:
            known[foundation] = self.views

    def _views(self) -> list[View]:
        backbones = self._backbones()
        for backbone in backbones.values():
            several = len(backbones) > 1  # the views of co-training are frozen whatever they are
            set_trainable(backbone, "head" if several else resolve_unfreeze(self.options.model, backbone))
        self.frozen = not any(p.requires_grad for backbone in backbones.values() for p in backbone.parameters())
        if self.frozen and self.loaded is not None and not self.loaded["model"]["frozen"]:
            raise UserError("--unfreeze head: the loaded models have a backbone each; leave out --unfreeze")
        views = [View(name, backbone, self._source(backbone)) for name, backbone in backbones.items()]
        self._evict(views)
        return views

    def _backbones(self) -> dict[str, Backbone]:
        backbones = make_backbones(self.options, self.dataset, self.loaded)
        self.check_measured(backbones.values())
        return backbones

    def check_measured(self, backbones: Iterable[Backbone]) -> None:
        """Nothing is measured on images whose labels a fine-tuned backbone has learned. Raises UserError."""
        check_not_learned(backbones, self.dataset, np.concatenate([self.split.val, self.split.test]))

    def _source(self, backbone: Backbone) -> Source:
        run, recipe = self.options.run, recipe_for(self.dataset.kind, self.options.data.flip)
        images = ImageSource(self.dataset, backbone.transform, recipe, self.device, workers=run.num_workers)
        if not self.frozen:
            return images
        backbone.to(self.device).to(memory_format=torch.channels_last)
        frozen = FrozenSource(images, backbone, self.precision_of_features)
        return FeatureBank(Path(run.cache_dir).expanduser(), frozen, run.cache_dtype) if run.cache else frozen

    def precisions(self) -> dict[str, str]:
        """The numbers that models learn in, and frozen backbones compute in: `--precision auto` hangs on the device."""
        own = {"learning": self.precision} | ({"features": self.precision_of_features} if self.frozen else {})
        return {name: str(dtype).removeprefix("torch.") for name, dtype in own.items()}

    @property
    def banks(self) -> list[FeatureBank]:
        """The feature banks of this run; none where a backbone learns or with `--no_cache`."""
        return [view.source for view in self.views if isinstance(view.source, FeatureBank)]

    def _evict(self, views: list[View]) -> None:
        """Remove old banks beyond `--cache_limit`, but none of this run's."""
        run, own = self.options.run, [view.source.folder for view in views if isinstance(view.source, FeatureBank)]
        for folder in evict(Path(run.cache_dir).expanduser(), int(run.cache_limit * 1e9), own) if own else []:
            warn(f"--cache_limit {run.cache_limit:g}: removed the old feature bank {folder}")

    def view_of(self, model: str) -> View:
        """The view that a model sees: in co-training the one of its name, else the only one."""
        return next((view for view in self.views if view.name == model), self.views[0])

    def network(self, name: str, state: Mapping[str, Any] | None = None) -> nn.Module:
        """A model to learn or to test: the head alone on a shared frozen backbone; else a whole network of its own."""
        chosen, classes = self.options.model, len(self.dataset.classes)
        width, key_of_head = self.view_of(name).backbone.num_features, (self.options.run.seed, name, "head")
        head = build_head(chosen.head, width, classes, seed_key=key_of_head, members=chosen.head_ensemble)
        network: nn.Module = head if self.frozen else Network(self._own_backbone(name), head)
        if state is not None:
            # A head that was learned on a frozen backbone may now stand on the same backbone, learning too.
            onto_head = isinstance(network, Network) and self.loaded is not None and self.loaded["model"]["frozen"]
            with layers_checked():
                (network.head if onto_head else network).load_state_dict(state)  # type: ignore[union-attr]
        return network.to(self.device).to(memory_format=torch.channels_last)

    def _own_backbone(self, name: str) -> Backbone:
        """A copy of pretrained weights; from scratch two models begin apart."""
        backbone = self.view_of(name).backbone
        if backbone.pretrained or self.loaded is not None:
            return copy.deepcopy(backbone)
        own = make_backbone(self.options.changed(seed=key(self.options.run.seed, name)), self.dataset)
        set_trainable(own, resolve_unfreeze(self.options.model, own))
        return own

    def used_images(self) -> dict[str, np.ndarray]:
        """Contents uint64 that this run and those that it came from have used, by what for (see `hashes_in`)."""
        split = self.split
        seen = np.concatenate([split.labeled, split.unlabeled, split.val])
        rows = {"seen": seen, "labels": split.labeled, "validation": split.val}
        used = {name: np.union1d(self.dataset.hashes[own], hashes_in(self.loaded, name)) for name, own in rows.items()}
        learned = [view.backbone.learned for view in self.views]
        return used | {name: functools.reduce(np.union1d, learned, used[name]) for name in ("seen", "labels")}

    def predictions(self, models: Mapping[str, nn.Module], rows: np.ndarray) -> dict[str, np.ndarray]:
        """Class probabilities [N, C] of each model and the ensemble on the rows, unaugmented."""
        return self.predicted(models, lambda view: view.source.inputs(rows))

    def predicted(
        self, models: Mapping[str, nn.Module], inputs: Callable[[View], Iterable[torch.Tensor]]
    ) -> dict[str, np.ndarray]:
        """The same of any images: `inputs` gives the batches that the models of a view take."""
        predicted: dict[str, np.ndarray] = {}
        for view in self.views:
            mine = {name: model for name, model in models.items() if self.view_of(name) is view}
            if mine:
                predicted |= probabilities(mine, inputs(view))
        return with_ensemble({name: predicted[name] for name in models})

    def results(
        self, models: Mapping[str, nn.Module], rows: np.ndarray, folder: Path | None = None, prefix: str = ""
    ) -> dict[str, Any]:
        """Metrics of each model and the ensemble on the rows; with a folder also their confusion matrices."""
        if not len(rows):
            return {}
        results = {}
        classes, labels = self.dataset.classes, self.dataset.labels[rows]
        predictions = self.predictions(models, rows)
        if folder is not None:
            self.tested = predictions
        for name, predicted in predictions.items():
            confusion = confusion_matrix(labels, predicted.argmax(axis=1), len(classes))
            results[name] = metrics(confusion, classes)
            if folder is not None:
                title = f"{name}: {100 * results[name]['accuracy']:.1f}% of {len(rows)} test images"
                visualization.draw_confusion(folder / f"{prefix}{name}_CM.png", confusion, classes, title=title)
        return results

    def reliability(self, temperatures: Mapping[str, float], folder: Path, prefix: str = "") -> dict[str, Any]:
        """How well the test's probabilities say how often they are right, before and after calibration; and a picture.

        Only reported: nothing is chosen by it.
        """
        if not self.tested:
            return {}
        labels = self.dataset.labels[self.split.test]
        states = {"before": self.tested}
        if temperatures:
            states["after"] = calibrated(self.tested, temperatures)
        errors: dict[str, Any] = {}
        bins: dict[str, Any] = {"before": {}, "after": {}}
        for state, predictions in states.items():
            errors[state] = {name: calibration_errors(p, labels) for name, p in predictions.items()}
            bins[state] = {name: {**reliability(p, labels), **errors[state][name]} for name, p in predictions.items()}
        title = f"How often a prediction is right that is so sure: {len(labels)} test images"
        visualization.draw_reliability(folder / f"{prefix}reliability.png", bins["before"], bins["after"], title=title)
        return errors

    def summary(
        self, folder: Path, results: Mapping[str, Any], best_epoch: Mapping[str, int], seconds: Mapping[str, float]
    ) -> dict[str, Any]:
        """What `summary.json` holds."""
        split, used, options = self.split, self.used_images(), self.options
        # A run that goes on was begun by another line than this one.
        words = command_line(options) if options.run.resume else sys.argv[1:]
        counts = {"labeled": split.labeled, "unlabeled": split.unlabeled, "val": split.val, "test": split.test}
        filled = sum(bank.seconds for bank in self.banks)
        return {
            "name": folder.name,
            "mode": self.options.mode_name,
            "seed": self.options.run.seed,
            "command": shlex.join([Path(sys.argv[0]).name, *words]),
            "dataset": {
                "path": self.dataset.name,
                "classes": list(self.dataset.classes),
                "images": {name: len(rows) for name, rows in counts.items()},
            },
            "labels_used": len(np.union1d(used["labels"], used["validation"])),
            **results,
            "best_epoch": dict(best_epoch),
            "seconds": {name: round(value, 3) for name, value in {**seconds, "features": filled}.items()},
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "precision": self.precisions(),
            "versions": versions(),
            "commit": commit(),
        }


def check_available(options: Options) -> None:
    """The device, the names and the weights' file, before minutes go into reading a large folder. Raises UserError.

    A run that is loaded or goes on brings its own, and is soon looked at.
    """
    mode = options.mode
    if options.run.resume or mode.load_path or mode.list_views:
        return
    choose_device(options.run.device)
    if options.model.model_name is not None:
        resolve_name(options.model.model_name)
    weight_file(options.model.weights)
    check_views(options.cotraining.views)


# --- backbones --------------------------------------------------------------------------------------------------------


def default_model(dataset: Dataset) -> str:
    """The network that suits a data set where the user names none."""
    return DEFAULT_MODEL.get(dataset.name, "resnet")


def make_backbones(options: Options, dataset: Dataset, loaded: Mapping[str, Any] | None) -> dict[str, Backbone]:
    """The backbones that the options name, by view; with a loaded run, those that it was trained with."""
    specs = options.cotraining.views
    if specs and loaded is None:
        built = [make_view(spec, options, dataset) for spec in specs]
        return dict(zip(view_labels(specs), built, strict=True))
    if loaded is None:
        backbone = make_backbone(options, dataset)
        return {backbone.name: backbone}
    backbones = {}
    for name, view in loaded["views"].items():
        size, points = loaded["model"]["native_size"], loaded["model"]["kind"] == "points"
        backbones[name] = restored_view(view["record"], native_size=size, points=points, seed=options.run.seed)
        if view["backbone"] is not None:
            backbones[name].load_state_dict(view["backbone"])
    return backbones


def make_view(spec: str, options: Options, dataset: Dataset) -> Backbone:
    """The backbone of one of `--views`."""
    points = dataset.kind == "points"
    return build_view(spec, native_size=dataset.native_size, points=points, seed=options.run.seed)


def check_not_learned(backbones: Iterable[Backbone], dataset: Dataset, rows: np.ndarray) -> None:
    """Raises UserError where one of the rows, which are to be measured on, has a label that a backbone has learned."""
    for backbone in backbones:
        known = int(np.isin(dataset.hashes[rows], backbone.learned).sum())
        if known:
            raise UserError(
                f"the weights of {backbone.name} were fine-tuned on the labels of {known} of the images that would be "
                "measured on; give others, or the --seed and the split with which they were tuned"
            )


def make_backbone(options: Options, dataset: Dataset) -> Backbone:
    """The backbone of `--model_name`."""
    return build_backbone(
        options.model,
        native_size=dataset.native_size,
        points=dataset.kind == "points",
        seed=options.run.seed,
        default_name=default_model(dataset),
    )
