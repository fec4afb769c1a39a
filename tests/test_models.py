"""Heads, networks, and what of them learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from networks import build, equal
from transfermpl import args, models
from transfermpl.backbones import weights
from transfermpl.models import Head, Network, build_head
from transfermpl.utils import UserError

# --- heads ------------------------------------------------------------------------------------------------------------


def test_a_head_is_a_function_of_its_key() -> None:
    state = torch.get_rng_state()
    head = build_head(12, 3, seed_key=(0, "student"))
    assert isinstance(head.layers[-1], nn.Linear)
    assert head.eval()(torch.randn(5, 12)).shape == (5, 3)
    assert equal(head, build_head(12, 3, seed_key=(0, "student")))
    assert not equal(head, build_head(12, 3, seed_key=(0, "teacher")))
    torch.set_rng_state(state)
    build_head(12, 3, seed_key=(1,))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_head_does_not_mind_the_scale_of_the_features() -> None:
    head, features = build_head(12, 3, seed_key=(0,)).eval(), torch.randn(5, 12)
    torch.testing.assert_close(head(features), head(50 * features), rtol=1e-4, atol=1e-5)


def test_the_first_logits_are_small() -> None:
    with torch.no_grad():
        logits = build_head(512, 10, seed_key=(0,)).train()(30 * torch.randn(256, 512))
    assert 0.1 < float(logits.std()) < 0.8


def test_a_calibrated_head_divides_its_logits_where_it_is_evaluated() -> None:
    head, features = build_head(12, 3, seed_key=(0,)), torch.randn(5, 12)
    plain = head.train()(features)
    head.temperature.fill_(2.0)
    assert torch.equal(head(features), plain)
    torch.testing.assert_close(head.eval()(features), plain / 2)


def test_network_is_head_after_backbone() -> None:
    backbone, head = build("cnn").eval(), Head(128, 4)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(Network(backbone, head)(images), head(backbone(images)))


# --- what learns ------------------------------------------------------------------------------------------------------


def test_set_trainable() -> None:
    backbone = build("resnet", image_size=32)
    models.set_trainable(backbone, "head")
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    models.set_trainable(backbone, "2")
    learning = {name.split(".")[1] for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert learning == {"layer3", "layer4"}
    with pytest.raises(UserError, match="has 6 stages"):
        models.set_trainable(backbone, "7")
    models.set_trainable(backbone, "all")
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_resolve_unfreeze(resnet_file: tuple[Any, Path]) -> None:
    scratch, pretrained = build("cnn"), build("resnet", resnet_file[1], image_size=32)
    assert models.resolve_unfreeze(args.Model(), scratch) == "all"
    assert models.resolve_unfreeze(args.Model(), pretrained) == "head"
    assert models.resolve_unfreeze(args.Model(unfreeze="3"), pretrained) == "3"


def test_parameter_groups(resnet_file: tuple[Any, Path]) -> None:
    backbone = build("resnet", resnet_file[1], image_size=32)
    network = Network(backbone, Head(512, 3))
    models.set_trainable(backbone, "1")
    groups = models.parameter_groups(network, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    placed = {names[id(p)]: (group["weight_decay"], group["lr_scale"]) for group in groups for p in group["params"]}
    assert set(placed) == {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert placed["backbone.net.layer4.0.conv1.weight"] == (pytest.approx(0.01), 0.1)
    assert placed["backbone.net.layer4.0.bn1.weight"] == (0.0, 0.1)
    assert placed["head.layers.1.weight"] == (0.1, 1.0)
    assert placed["head.layers.1.bias"] == (0.0, 1.0)
    torch.optim.AdamW(groups, lr=1e-3)
    scratch = models.parameter_groups(build("cnn"), weight_decay=0.1)
    assert {group["lr_scale"] for group in scratch} == {1.0}
    assert len(models.parameter_groups(network.head, weight_decay=0.1)) == 2


def test_batch_norms_without_updates() -> None:
    backbone = build("cnn").train()
    models.set_trainable(backbone, "all")
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    images = torch.rand(4, 3, 16, 16)
    frozen = norms[0].eval()
    before = weights.state_digest(backbone)
    with models.batch_norms_without_updates(backbone):
        inside = backbone(images)
    assert weights.state_digest(backbone) == before
    assert [norm.track_running_stats for norm in norms] == [True] * 3
    assert not frozen.training
    torch.testing.assert_close(inside, backbone(images))
    assert weights.state_digest(backbone) != before
    with pytest.raises(RuntimeError, match="boom"), models.batch_norms_without_updates(backbone):
        raise RuntimeError("boom")
    assert all(norm.track_running_stats for norm in norms)


def test_describe() -> None:
    network = Network(build("cnn"), Head(128, 3))
    models.set_trainable(network.backbone, "head")
    lines = models.describe(network).splitlines()
    assert lines[1].split() == ["backbone", "Backbone", "0", "93,472"]
    assert lines[-1].split() == ["total", "387", "93,472"]
    assert any(line.split() == ["0", "Conv2d", "0", "864"] for line in lines)
    assert models.describe({"head": network.head}).splitlines()[-1].split() == ["total", "387", "0"]
