"""Heads, ensembles of heads, the network of a backbone and a head, and which of their parameters learn.

A backbone (backbones/backbone.py) maps images in [0, 1] to feature vectors: what its last linear layer would take in.
A head maps features to logits. Nothing is trained here.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from . import args
from .backbones.backbone import Backbone, keyed_weights, module_size
from .utils import UserError

# A head that forgets its start needs larger steps than layers that were trained before.
PRETRAINED_LR_SCALE = 0.1
# The decay that heads on frozen features gain by would pull pretrained weights to nothing.
BACKBONE_DECAY_SCALE = 0.1
# At least as accurate as the larger mlp head with the usual options, in a tenth of its time (docs/results.md).
HIDDEN_WIDTH = 256
# The head of Meta Co-Training's authors: three layers of it.
MLP_WIDTH = 1024
# With few labels and wide features the hidden layers are what overfits.
HEAD_DROPOUT = 0.2
# What the variance over the members of an ensemble takes off their mean logit.
VARIANCE_WEIGHT = 0.3


# --- the parts of a network -------------------------------------------------------------------------------------------


def feature_norm(width: int) -> nn.RMSNorm:
    """What heads bring features [N, width] to before anything else: a root mean square of 1 a row."""
    return nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)


class Head(nn.Module):
    """Features [N, in_features] to logits [N, num_classes], without an activation on the logits.

    kind: `linear`; `hidden` with one hidden layer of 256; or `mlp` with three of 1,024, the second and third beside a
    skip (Rothenberger & Diochnos 2023); each layer with batch norm. Whatever the kind, the first logits are small, so
    the first pseudo-labels are unsure, and heads of two keys differ.

    Features come first to a root mean square of 1. Backbones differ in scale by a factor of ten and more, and large
    features make large logits: a teacher that is sure from the start teaches its errors.

    `temperature` divides the logits when the head is evaluated: a calibration that was fitted while it learned.
    """

    temperature: Tensor

    def __init__(self, kind: str, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()))
        self.layers = nn.Sequential(feature_norm(in_features))
        if kind == "hidden":
            self.layers.append(Block(in_features, HIDDEN_WIDTH))
            in_features = HIDDEN_WIDTH
        elif kind == "mlp":
            self.layers.append(Block(in_features, MLP_WIDTH))
            self.layers.extend([Block(MLP_WIDTH, MLP_WIDTH, skip=True), Block(MLP_WIDTH, MLP_WIDTH, skip=True)])
            in_features = MLP_WIDTH
        self.layers.append(nn.Linear(in_features, num_classes))
        if kind != "linear":
            # What comes out of a norm is large: smaller weights give logits like those of the linear head.
            nn.init.normal_(self.layers[-1].weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(self.layers[-1].bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        logits = self.layers(features)
        return logits if self.training else logits / self.temperature


class Block(nn.Module):
    """A hidden layer of a head, [N, inputs] to [N, width]: Linear, batch norm, ReLU, dropout; beside a skip or not."""

    def __init__(self, inputs: int, width: int, *, skip: bool = False) -> None:
        super().__init__()
        self.skip = skip
        self.linear = nn.Linear(inputs, width, bias=False)  # the norm brings the bias
        self.norm, self.dropout = WideNorm(width), Dropout(HEAD_DROPOUT)
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        inside = self.dropout(self.norm(self.linear(x)).relu())
        return x + inside if self.skip else inside


class Dropout(nn.Dropout):
    """Dropout by uniform numbers: a CPU makes them much faster than torch's Bernoulli numbers."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        kept = torch.rand_like(x, dtype=torch.float32) >= self.p
        return x * (kept.to(x.dtype) / (1 - self.p))


class WideNorm(nn.BatchNorm1d):
    """A batch norm that also under autocast takes its statistics, and goes on, in the precision of its weights.

    vmap has no batch norm of bfloat16 with the float32 weights that autocast leaves it.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class HeadEnsemble(nn.Module):
    """N heads that learn as one: features [B, in_features] to combined logits [B, num_classes].

    The members' logits are combined to mean / sqrt(1 + 0.3 var), class by class: where members disagree, the ensemble
    is less sure. Losses take the combined logits, in training too.

    `member` is the layout of one head; its parameters and buffers are those of all members in a stack, one dimension
    larger, and are what is learned, averaged and saved. Its modules are real: `train()` and
    `batch_norms_without_updates` act on all members alike. In training each member has dropout and running statistics
    of its own.
    """

    temperature: Tensor

    def __init__(self, members: list[Head]) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()))  # of the combined logits, as a head's own
        self.size = len(members)
        parameters, buffers = stack_module_state(members)
        self.member = copy.deepcopy(members[0])
        for name, stack in {**parameters, **buffers}.items():
            owner, _, leaf = name.rpartition(".")
            stack = nn.Parameter(stack.detach()) if name in parameters else stack
            setattr(self.member.get_submodule(owner), leaf, stack)

    def forward(self, features: Tensor) -> Tensor:
        logits = self.each(features)
        combined = logits.mean(dim=0) / (1 + VARIANCE_WEIGHT * logits.var(dim=0, correction=0)).sqrt()
        return combined if self.training else combined / self.temperature

    def each(self, features: Tensor) -> Tensor:
        """The members' own logits [N, B, num_classes]."""
        stacks = {**dict(self.member.named_parameters()), **dict(self.member.named_buffers())}

        def one(state: dict[str, Tensor]) -> Tensor:
            return functional_call(self.member, state, (features,))

        if self.training:
            return vmap(one, randomness="different")(stacks)
        # One after the other: torch.export can't follow vmap for batches of any size.
        states = [{name: stack[m] for name, stack in stacks.items()} for m in range(self.size)]
        return torch.stack([one(state) for state in states])


class Network(nn.Module):
    """A backbone and a head: images [N, 3, S, S] in [0, 1] to logits [N, num_classes]."""

    def __init__(self, backbone: Backbone, head: Head | HeadEnsemble) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def build_head(
    kind: str, in_features: int, num_classes: int, *, seed_key: tuple[object, ...], members: int = 1
) -> Head | HeadEnsemble:
    """A head whose first weights are a function of `seed_key` alone; with several members each has a key of its own."""
    if members > 1:
        keys = [(*seed_key, number) for number in range(members)]
        return HeadEnsemble([cast(Head, build_head(kind, in_features, num_classes, seed_key=own)) for own in keys])
    with keyed_weights("head", *seed_key):
        return Head(kind, in_features, num_classes)


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
    ensembles = [module for module in network.modules() if isinstance(module, HeadEnsemble)]
    stacked = {id(parameter) for ensemble in ensembles for parameter in ensemble.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            scale = slow.get(id(parameter), 1.0)
            dimensions = parameter.ndim - (id(parameter) in stacked)
            decay = weight_decay * (BACKBONE_DECAY_SCALE if id(parameter) in below else 1.0)
            decay = decay if dimensions > 1 else 0.0
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
