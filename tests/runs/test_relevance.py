"""What a decision rests on: the map lies where the class is, whatever the network, and every kind of run has one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from networks import build
from transfermpl.backbones.backbone import Backbone, as_backbone
from transfermpl.images.decode import Transform
from transfermpl.models import Network, build_head
from transfermpl.runs.relevance import Part, overlay, overlays, parts_of, relevance
from transfermpl.runs.trained_models import TrainedModels

SIDE = 64


def images_of_a_corner(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise [N, 3, 64, 64] with a striped square in its upper left quarter alone: red, green or blue is its class."""
    random = torch.Generator().manual_seed(seed)
    images = 0.3 + 0.4 * torch.rand(count, 3, SIDE, SIDE, generator=random)
    labels = torch.arange(count) % 3
    stripes = (torch.arange(16) // 2 % 2).float().expand(16, 16)
    images[:, :, 8:24, 8:24] = 0.0
    images[torch.arange(count), labels, 8:24, 8:24] = stripes
    return images, labels


def conv_net() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, width in ((3, 8), (8, 16), (16, 16)):
        layers += [nn.Conv2d(inputs, width, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def trained(steps: int) -> tuple[Network, float]:
    """A network that has learned the corner, and its accuracy on other images."""
    torch.manual_seed(0)
    transform = Transform(SIDE, SIDE, "bilinear", (0.5,) * 3, (0.25,) * 3)
    backbone = as_backbone(conv_net(), name="net", transform=transform, pretrained=False)
    network = Network(backbone, build_head(16, 3, seed_key=(0,)))
    images, labels = images_of_a_corner(64, 0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(network.train()(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, labels = images_of_a_corner(32, 1)
    with torch.no_grad():
        return network.eval(), float((network(images).argmax(dim=1) == labels).float().mean())


@pytest.mark.slow
def test_the_map_lies_where_the_class_is() -> None:
    network, accuracy = trained(60)
    assert accuracy > 0.95
    images, labels = images_of_a_corner(32, 2)
    shares = relevance(Part("net", "net", network.backbone, [network.head]), images, labels)
    assert shares.shape == (32, SIDE, SIDE)
    mass = shares[:, :32, :32].sum(dim=(1, 2)) / shares.sum(dim=(1, 2))
    assert float(mass.mean()) > 0.9  # by chance: 0.25


@pytest.mark.parametrize("name", ["cnn", "timm:test_vit", "squeezenet1_1", "pixels"])
def test_every_kind_of_backbone_has_a_map(name: str) -> None:
    if name == "pixels":
        transform = Transform(64, 64, "bilinear", (0.5,) * 3, (0.25,) * 3)
        backbone = as_backbone(nn.Flatten(), name=name, transform=transform, pretrained=True)
    else:
        backbone = build(name, image_size=None if name == "timm:test_vit" else 64)
    backbone.requires_grad_(False)  # frozen, as under a head that learns on its features
    head = build_head(backbone.num_features, 3, seed_key=(0,))
    side = backbone.transform.size
    images = torch.rand(2, 3, side, side)
    shares = relevance(Part(name, name, backbone, [head]), images, torch.tensor([0, 2]))
    assert shares.shape == (2, side, side)
    assert float(shares.amax()) == 1
    assert float(shares.min()) >= 0
    assert len({round(float(value), 4) for value in shares[0].flatten()}) > 2
    assert not backbone.net._forward_hooks
    assert all(parameter.grad is None for parameter in backbone.parameters())


def small(name: str) -> Backbone:
    transform = Transform(SIDE, SIDE, "bilinear", (0.5,) * 3, (0.25,) * 3)
    return as_backbone(conv_net(), name=name, transform=transform, pretrained=True)


def test_there_is_a_map_for_each_view_or_for_each_network_that_has_learned() -> None:
    views = {"a": small("a"), "b": small("b")}
    heads: dict[str, nn.Module] = {name: build_head(16, 2, seed_key=(name,)) for name in views}
    assert [part.name for part in parts_of(TrainedModels(views, heads, frozen=True))] == ["a", "b"]
    shared = {name: build_head(16, 2, seed_key=(name,)) for name in ("teacher", "student")}
    (part,) = parts_of(TrainedModels({"a": views["a"]}, shared, frozen=True))
    assert (part.name, len(part.heads)) == ("a", 2)
    networks = {name: Network(small(name), shared[name]) for name in shared}
    models = TrainedModels({"a": views["a"]}, networks, frozen=False)
    assert [(part.name, part.view) for part in parts_of(models)] == [("teacher", "a"), ("student", "a")]
    decoded = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    drawn = overlays(models, lambda view: decoded, np.array([0, 1, 1]))
    assert {name: (some.shape, some.dtype) for name, some in drawn.items()} == dict.fromkeys(
        shared, ((3, SIDE, SIDE, 3), np.dtype(np.uint8))
    )


def test_what_is_of_no_relevance_stays_grey() -> None:
    image, shares = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8), torch.zeros(1, 8, 8)
    shares[0, 0, 0] = 1
    drawn = overlay(image, shares)[0]
    assert (drawn[1:] == 100).all()
    assert int(drawn[0, 0].max()) > 200
