"""A backbone: images in [0, 1] to feature vectors, with the transform that it wants."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import utils
from ..images.decode import Transform
from ..utils import UserError
from .weights import one_line


class Backbone(nn.Module):
    """Images float [N, 3, S, S] in [0, 1] (or points float [N, 2]) to features float [N, num_features].

    It normalises by itself, so no caller can forget it or do it twice. `transform` says how images are brought to
    S x S; `pretrained` whether the weights were learned before.
    """

    mean: Tensor
    std: Tensor
    shape: Mapping[str, Any] = {}  # what else, beside the name, must be known to build the network again
    learned = np.zeros(
        0, dtype=np.uint64
    )  # content hashes, sorted, of the images whose labels its weights have learned

    def __init__(self, net: nn.Module, *, name: str, transform: Transform, pretrained: bool, num_features: int) -> None:
        super().__init__()
        self.net, self.name, self.transform = net, name, transform
        self.pretrained, self.num_features = pretrained, num_features
        self.register_buffer("mean", torch.tensor(transform.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(transform.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Float32 also under autocast: heads, losses and the bank count on it. Float64 stays, for exact checks."""
        if images.ndim == 4:
            images = (images - self.mean) / self.std
        features = self.net(images)
        return features.float() if features.dtype in (torch.bfloat16, torch.float16) else features

    def train(self, mode: bool = True) -> Backbone:
        """As always, but pretrained batch norms stay in eval mode, and so does all of a frozen backbone.

        The statistics of small batches destroy pretrained features; what does not learn is a fixed function.
        """
        super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))
        if self.pretrained:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def stages(self) -> list[nn.Module]:
        """The units that `--unfreeze N` counts, from input to output; parameters outside of all units are in none.

        While there are fewer than four, the largest one that can be opened is replaced by its children.
        """
        units = _children_with_parameters(self.net)
        while len(units) < 4:
            openable = [unit for unit in units if _children_with_parameters(unit)]
            if not openable:
                break
            at = units.index(max(openable, key=module_size))
            units[at : at + 1] = _children_with_parameters(units[at])
        return units


@dataclass
class Built:
    """A network with its transform; `shape` is what must be known to build it again without its files."""

    net: nn.Module
    transform: Transform
    shape: dict[str, Any] = field(default_factory=dict)


def as_backbone(net: nn.Module, *, name: str, transform: Transform, pretrained: bool, points: bool = False) -> Backbone:
    """The network with its transform; what one image gives is its number of features. Raises UserError for maps."""
    images = torch.zeros(1, 2) if points else torch.zeros(1, 3, transform.size, transform.size)
    with size_checked(name, transform.size), torch.no_grad():
        features = net.eval()(images)
    if features.ndim != 2:
        raise UserError(f"--model_name {name} gives maps instead of one feature vector an image; use another backbone")
    num_features = features.shape[1]
    backbone = Backbone(net, name=name, transform=transform, pretrained=pretrained, num_features=num_features)
    return backbone.train()


@contextlib.contextmanager
def keyed_weights(*key: object) -> Iterator[None]:
    """Inside, the CPU's random numbers follow from the key; after it they go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would also reseed the accelerators, which fork_rng leaves alone here.
        torch.default_generator.manual_seed(utils.key(*key))
        yield


@contextlib.contextmanager
def size_checked(name: str, size: int) -> Iterator[None]:
    """Inside, what a network raises at images of a wrong size (in pixels) becomes a UserError."""
    try:
        yield
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{name} can't take images of {size} px ({one_line(error)}); choose another --image_size"
        ) from error


def scaled(transform: Transform, size: int | None) -> Transform:
    """The same transform for another size: the part of the image that is used stays."""
    if size is None:
        return transform
    return replace(transform, size=size, resize=round(transform.resize * size / transform.size))


def _children_with_parameters(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.children() if module_size(child)]


def module_size(module: nn.Module) -> int:
    """The number of its parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
