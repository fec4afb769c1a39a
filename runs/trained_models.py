"""Models that have learned: they predict, and need no data set to do so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import args
from ..backbones.backbone import Backbone
from ..base.metrics import calibrated, probabilities, with_ensemble
from ..features.reference import Reference
from ..features.sources import evaluation_pixels, frozen_features
from ..learning.checkpoint import layers_checked
from ..utils import UserError
from .decision import Decision
from .networks import NetworkSpec, load_state, make_network, on_device, own_backbone, restored_backbones


@dataclass(frozen=True)
class TrainedModels:
    """The models of a run, and what they look through.

    views: the backbones by the names of their views; heads: the models by name, heads on a shared frozen backbone, or
    networks whose backbone has learned too (`frozen` says which); temperatures: of the models and of the ensemble, to
    calibrate their probabilities; decision: how these become classes; reference: of the first view, where backbones are
    frozen; precision: of frozen backbones.
    """

    views: Mapping[str, Backbone]
    heads: Mapping[str, nn.Module]
    frozen: bool
    precision: torch.dtype = torch.float32
    temperatures: Mapping[str, float] = field(default_factory=dict)
    decision: Decision = field(default_factory=Decision)
    reference: Reference | None = None

    @property
    def name(self) -> str:
        """Whose predictions are used: the ensemble's, or those of the only model."""
        return "ensemble" if len(self.heads) > 1 else next(iter(self.heads))

    def view_of(self, model: str) -> str:
        """The view that a model sees: in co-training the one of its name, else the only one."""
        return model if model in self.views else next(iter(self.views))

    def inputs(self, view: str, images: Tensor) -> Tensor:
        """What the models of a view take of decoded images uint8 [N, 3, S, S]: images in [0, 1], or features [N, D]."""
        pixels = evaluation_pixels(images)
        return frozen_features(self.views[view], pixels, self.precision) if self.frozen else pixels

    def predict(self, inputs: Callable[[str], Iterable[Tensor]]) -> dict[str, np.ndarray]:
        """Class probabilities float32 [N, C] of each model and of the ensemble, not calibrated.

        inputs: of a view's name, the batches that its models take, on their device.
        """
        predicted: dict[str, np.ndarray] = {}
        for view in self.views:
            mine = {name: head for name, head in self.heads.items() if self.view_of(name) == view}
            if mine:
                predicted |= probabilities(mine, inputs(view))
        return with_ensemble({name: predicted[name] for name in self.heads})

    def examine(self, images: Callable[[str], Tensor]) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Calibrated probabilities float32 [N, C], and how far each image is (see `Reference.farther_than`) or None.

        images: of a view's name, decoded images uint8 [N, 3, S, S].
        """
        inputs = {view: self.inputs(view, images(view)) for view in dict.fromkeys(map(self.view_of, self.heads))}
        predictions = calibrated(self.predict(lambda view: [inputs[view]]), self.temperatures)
        if self.reference is None:
            return predictions, None
        return predictions, self.reference.farther_than(inputs[next(iter(self.views))])


def restored_models(
    content: Mapping[str, Any], model: args.Model, *, seed: int, device: torch.device, precision: torch.dtype
) -> TrainedModels:
    """The models of a checkpoint. Raises UserError when its layers are not those of this version."""
    described = content["model"]
    spec = NetworkSpec(
        model, len(content["classes"]), described["native_size"], described["kind"] == "points", seed, described["name"]
    )
    views, frozen = restored_backbones(content, seed), bool(described["frozen"])
    if frozen:
        views = {name: on_device(backbone, device) for name, backbone in views.items()}  # type: ignore[misc]
    heads = {}
    for name, state in content["models"].items():
        backbone = views.get(name) or next(iter(views.values()))
        if not frozen:
            backbone = own_backbone(spec, name, backbone, loaded=True)
        network = make_network(spec, name, backbone, frozen=frozen)
        with layers_checked(content["path"]):
            load_state(network, state, f"models.{name}")
        heads[name] = on_device(network, device)
    temperatures, decision = content.get("temperatures", {}), Decision.stored(content)
    reference = Reference(**content["reference"]) if content.get("reference") else None
    width = next(iter(views.values())).num_features
    if reference is not None and reference.features.shape[1] != width:
        raise UserError(f"{content['path']}: reference.features is not of {width} features; train again")
    return TrainedModels(views, heads, frozen, precision, temperatures, decision, reference)
