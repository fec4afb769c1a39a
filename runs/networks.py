"""A run's backbones and networks, from its options or from a checkpoint: no image is needed to build them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import args
from ..backbones.backbone import Backbone
from ..backbones.library import build_backbone
from ..backbones.registry import build_view, restored_view, view_labels
from ..data import Dataset
from ..learning.checkpoint import check_like, layers_checked, like
from ..models import Network, build_head, resolve_unfreeze, set_trainable
from ..utils import UserError, key

DEFAULT_MODEL = {"digits": "cnn", "fake": "cnn", "moons": "mlp"} | dict.fromkeys(
    ("cifar10", "cifar100", "svhn"), "wrn28_2"
)


@dataclass(frozen=True)
class NetworkSpec:
    """What networks depend on, beside published weights.

    native_size: the side of images that come as an array, else 0; default_name: the network where the user names none.
    """

    model: args.Model
    classes: int
    native_size: int
    points: bool
    seed: int
    default_name: str


def default_model(dataset: Dataset) -> str:
    """The network that suits a data set where the user names none and none was chosen (see auto.py)."""
    return DEFAULT_MODEL.get(dataset.name, "lite0")


def spec_of(model: args.Model, dataset: Dataset, seed: int) -> NetworkSpec:
    """What the networks of a run on this data set depend on."""
    points = dataset.kind == "points"
    return NetworkSpec(model, len(dataset.classes), dataset.native_size, points, seed, default_model(dataset))


# --- backbones --------------------------------------------------------------------------------------------------------


def make_backbones(spec: NetworkSpec, views: tuple[str, ...]) -> dict[str, Backbone]:
    """The backbones by the names of their views: of each of `--views`, or the one of `--model_name`."""
    if not views:
        backbone = make_backbone(spec)
        return {backbone.name: backbone}
    return dict(zip(view_labels(views), [make_view(view, spec) for view in views], strict=True))


def make_backbone(spec: NetworkSpec, *seed_key: object) -> Backbone:
    """The backbone of `--model_name`; from scratch its weights depend on the seed and the `seed_key`."""
    seed = key(spec.seed, *seed_key) if seed_key else spec.seed
    return build_backbone(
        spec.model, native_size=spec.native_size, points=spec.points, seed=seed, default_name=spec.default_name
    )


def make_view(view: str, spec: NetworkSpec) -> Backbone:
    """The backbone of one of `--views`."""
    return build_view(view, native_size=spec.native_size, points=spec.points, seed=spec.seed)


def restored_backbones(content: Mapping[str, Any], seed: int) -> dict[str, Backbone]:
    """The backbones of a checkpoint by the names of their views, with its weights where they were frozen."""
    backbones = {}
    size, points = content["model"]["native_size"], content["model"]["kind"] == "points"
    for name, view in content["views"].items():
        with layers_checked(content["path"]):
            backbones[name] = restored_view(view["record"], native_size=size, points=points, seed=seed)
            if view["backbone"] is not None:
                load_state(backbones[name], view["backbone"], f"views.{name}.backbone")
    return backbones


def check_not_learned(backbones: Iterable[Backbone], dataset: Dataset, rows: np.ndarray) -> None:
    """Raises UserError where one of the rows, which are to be measured on, has a label that a backbone has learned."""
    for backbone in backbones:
        known = int(np.isin(dataset.hashes[rows], backbone.learned).sum())
        if known:
            raise UserError(
                f"the weights of {backbone.name} were fine-tuned on the labels of {known} of the images that would be "
                "measured on; give others, or the --seed and the split with which they were tuned"
            )


# --- networks ---------------------------------------------------------------------------------------------------------


def make_network(spec: NetworkSpec, name: str, backbone: Backbone, *, frozen: bool) -> nn.Module:
    """A model by its name: the head alone on a frozen backbone, else a network of this backbone and a head."""
    head = build_head(backbone.num_features, spec.classes, seed_key=(spec.seed, name, "head"))
    return head if frozen else Network(backbone, head)


def own_backbone(spec: NetworkSpec, name: str, backbone: Backbone, *, loaded: bool) -> Backbone:
    """A backbone for one model alone: a copy of pretrained or loaded weights; from scratch, models begin apart."""
    if backbone.pretrained or loaded:
        return copy.deepcopy(backbone)
    own = make_backbone(spec, name)
    set_trainable(own, resolve_unfreeze(spec.model, own))
    return own


def load_state(network: nn.Module, state: Mapping[str, Any], field: str, *, head_only: bool = False) -> None:
    """Give the network the stored weights of this field of a checkpoint.

    head_only: they are those of a head that had learned on a frozen backbone. Raises ValueError, which names the field,
    or RuntimeError when they are of other layers (see `checkpoint.layers_checked`).
    """
    layers = network.head if head_only and isinstance(network, Network) else network
    check_like(state, like(layers.state_dict()), field)
    layers.load_state_dict(state)


def on_device(network: nn.Module, device: torch.device) -> nn.Module:
    """The network on the device, in the memory format that convolutions are fast in."""
    return network.to(device).to(memory_format=torch.channels_last)
