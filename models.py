"""The head, the network of a backbone and a head, and which of their parameters learn.

A backbone (backbones/backbone.py) maps images in [0, 1] to feature vectors: what its last linear layer would take in.
A head maps features to logits. Nothing is trained here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import args
from .backbones.backbone import Backbone, keyed_weights, module_size
from .utils import UserError

# A head that forgets its start needs larger steps than layers that were trained before.
PRETRAINED_LR_SCALE = 0.1
# The decay that heads on frozen features gain by would pull pretrained weights to nothing.
BACKBONE_DECAY_SCALE = 0.1


# --- the parts of a network -------------------------------------------------------------------------------------------


def feature_norm(width: int) -> nn.RMSNorm:
    """What heads bring features [N, width] to before anything else: a root mean square of 1 a row."""
    return nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)


class Head(nn.Module):
    """Features [N, in_features] to logits [N, num_classes] by one linear layer.

    Features come first to a root mean square of 1. Backbones differ in scale by a factor of ten and more, and large
    features make large logits: a teacher that is sure from the start teaches its errors. The first logits are small, so
    the first pseudo-labels are unsure, and heads of two keys differ.

    `temperature` divides the logits when the head is evaluated: a calibration that was fitted while it learned.
    """

    temperature: Tensor

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()))
        self.layers = nn.Sequential(feature_norm(in_features), nn.Linear(in_features, num_classes))

    def forward(self, features: Tensor) -> Tensor:
        logits = self.layers(features)
        return logits if self.training else logits / self.temperature


class Network(nn.Module):
    """A backbone and a head: images [N, 3, S, S] in [0, 1] to logits [N, num_classes]."""

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def build_head(in_features: int, num_classes: int, *, seed_key: tuple[object, ...]) -> Head:
    """A head whose first weights are a function of `seed_key` alone."""
    with keyed_weights("head", *seed_key):
        return Head(in_features, num_classes)


# --- what learns, and how ---------------------------------------------------------------------------------------------


def resolve_unfreeze(model: args.Model, backbone: Backbone) -> str:
    """What learns: as the user says, else `head` on pretrained features and `all` from scratch."""
    return model.unfreeze or ("head" if backbone.pretrained else "all")


def set_trainable(backbone: Backbone, unfreeze: str) -> None:
    """Let `all`, nothing (`head`) or a number of last stages of the backbone learn.

    Raises UserError when it has fewer stages than that.
    """
    stages = backbone.stages()
    count = 0 if unfreeze in ("head", "all") else int(unfreeze)
    if count > len(stages):
        raise UserError(f"--unfreeze {unfreeze}: {backbone.name} has {len(stages)} stages; give fewer, or all")
    backbone.requires_grad_(unfreeze == "all")
    for stage in stages[len(stages) - count :]:
        stage.requires_grad_(True)
    backbone.train(backbone.training)


def parameter_groups(network: nn.Module, *, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """What learns, as the optimizer's groups with "params", "weight_decay" and "lr_scale", a factor of the rate.

    A pretrained backbone learns slower than the rest, each of its stages `layer_decay` times as fast as the one after
    it. Biases and the parameters of norms do not decay: pulling them to zero does not make a network simpler, only
    worse. Backbones decay less than heads, which have many features and few labeled images.
    """
    slow: dict[int, float] = {}
    below: set[int] = set()
    for module in network.modules():
        if isinstance(module, Backbone):
            below |= set(map(id, module.parameters()))
            slow |= _rates(module, layer_decay) if module.pretrained else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            scale = slow.get(id(parameter), 1.0)
            decay = weight_decay * (BACKBONE_DECAY_SCALE if id(parameter) in below else 1.0)
            decay = decay if parameter.ndim > 1 else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    return [{"params": p, "weight_decay": decay, "lr_scale": scale} for (scale, decay), p in groups.items()]


def _rates(backbone: Backbone, layer_decay: float) -> dict[int, float]:
    """The factor of each parameter's rate, by its id; what is in no stage (a position table) learns like the first."""
    stages = backbone.stages()
    first = PRETRAINED_LR_SCALE * layer_decay ** max(0, len(stages) - 1)
    rates = {id(parameter): first for parameter in backbone.parameters()}
    for later, stage in enumerate(reversed(stages)):
        rates |= {id(parameter): PRETRAINED_LR_SCALE * layer_decay**later for parameter in stage.parameters()}
    return rates


@contextlib.contextmanager
def batch_norms_without_updates(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms in train mode normalise by the batch but do not update their running statistics."""
    updating = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for norm in updating:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in updating:
            norm.track_running_stats = True


def describe(network: nn.Module | Mapping[str, nn.Module]) -> str:
    """The layers down to two levels below each part, with their parameters, trainable and frozen, and the totals."""
    parts = dict(network.named_children()) if isinstance(network, nn.Module) else network
    rows = [row for name, part in parts.items() for row in _rows(name, part, 0)]
    tops = [_counts(part) for part in parts.values()]
    rows.append(("total", "", sum(learn for learn, _ in tops), sum(frozen for _, frozen in tops)))
    wide, kinds = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    lines = [f"{'layer':{wide}}  {'kind':{kinds}}  {'trainable':>13}  {'frozen':>13}"]
    lines += [f"{name:{wide}}  {kind:{kinds}}  {learn:>13,}  {frozen:>13,}" for name, kind, learn, frozen in rows]
    return "\n".join(lines)


def _rows(name: str, module: nn.Module, depth: int) -> list[tuple[str, str, int, int]]:
    rows = [("  " * depth + name, type(module).__name__, *_counts(module))]
    inner = module.net if isinstance(module, Backbone) else module
    if depth < 2:
        rows += [row for child_name, child in inner.named_children() for row in _rows(child_name, child, depth + 1)]
    return rows


def _counts(module: nn.Module) -> tuple[int, int]:
    learn = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return learn, module_size(module) - learn
