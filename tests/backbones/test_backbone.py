"""A backbone: it normalises by itself, its first weights follow a key, and what of it is in which mode and stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from networks import build, equal
from transfermpl import models
from transfermpl.backbones import weights
from transfermpl.backbones.backbone import Backbone
from transfermpl.models import Head, Network


def test_forward_normalises() -> None:
    backbone = build("resnet", image_size=32).eval()
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (backbone.transform.mean, backbone.transform.std))
    torch.testing.assert_close(backbone(images), backbone.net((images - mean) / std))
    assert not {"mean", "std"} & set(backbone.state_dict())


def test_features_are_float32_under_autocast_and_float64_stays() -> None:
    backbone = build("cnn")
    with torch.autocast("cpu", torch.bfloat16):
        assert backbone(torch.rand(2, 3, 16, 16)).dtype == torch.float32
    assert backbone.double()(torch.rand(2, 3, 16, 16).double()).dtype == torch.float64


def test_random_weights_follow_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first, same, other = build("cnn", seed=1), build("cnn", seed=1), build("cnn", seed=2)
    assert equal(first, same)
    assert not equal(first, other)
    torch.manual_seed(5)
    assert equal(first, build("cnn", seed=1))
    torch.set_rng_state(state)
    build("timm:test_vit", seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def test_pretrained_batch_norms_stay_in_eval_mode(resnet_file: tuple[Any, Path]) -> None:
    network = Network(build("resnet", resnet_file[1], image_size=32), Head(512, 3)).train()
    assert network.head.training
    assert network.backbone.net.layer1.training
    assert not any(norm.training for norm in norms(network))
    before = weights.state_digest(network)
    network(torch.rand(4, 3, 32, 32))
    assert weights.state_digest(network) == before
    assert all(norm.training for norm in norms(build("resnet", image_size=32).train()))


def test_a_frozen_backbone_stays_in_eval_mode() -> None:
    network = Network(build("cnn"), Head(128, 3))
    models.set_trainable(network.backbone, "head")
    network.train()
    assert not any(module.training for module in network.backbone.modules())
    assert network.head.training
    models.set_trainable(network.backbone, "all")
    assert all(norm.training for norm in norms(network.train()))


STAGES = {"resnet": 6, "squeezenet1_1": 9, "densenet": 10, "mobilenet_v2": 19, "vit_b_32": 14, "timm:test_vit": 8}


@pytest.mark.parametrize("name", STAGES)
def test_stages(name: str) -> None:
    backbone = build(name, image_size=64)
    stages = backbone.stages()
    assert len(stages) == STAGES[name]
    inside = [id(parameter) for stage in stages for parameter in stage.parameters()]
    assert len(inside) == len(set(inside))
    order = [id(parameter) for parameter in backbone.parameters() if id(parameter) in set(inside)]
    assert inside == order


def test_stages_look_into_wrappers() -> None:
    plain = build("cnn")
    wrapped = Backbone(nn.Sequential(nn.Sequential(plain.net)), name="w", transform=plain.transform, pretrained=False,
                       num_features=128)  # fmt: skip
    assert wrapped.stages() == plain.stages()
