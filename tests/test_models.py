"""Heads, ensembles of heads, networks, and what of them learns."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from networks import build, equal
from transfermpl import args, models
from transfermpl.backbones import weights
from transfermpl.models import Head, HeadEnsemble, Network, build_head
from transfermpl.utils import UserError

# --- heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "layers"), [("linear", 2), ("hidden", 3), ("mlp", 5)])
def test_heads(kind: str, layers: int) -> None:
    state = torch.get_rng_state()
    head = build_head(kind, 12, 3, seed_key=(0, "student"))
    assert len(head.layers) == layers
    assert isinstance(head.layers[-1], nn.Linear)
    assert head.eval()(torch.randn(5, 12)).shape == (5, 3)
    assert equal(head, build_head(kind, 12, 3, seed_key=(0, "student")))
    assert not equal(head, build_head(kind, 12, 3, seed_key=(0, "teacher")))
    torch.set_rng_state(state)
    build_head(kind, 12, 3, seed_key=(1,))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["linear", "hidden", "mlp"])
def test_a_head_does_not_mind_the_scale_of_the_features(kind: str) -> None:
    head, features = build_head(kind, 12, 3, seed_key=(0,)).eval(), torch.randn(5, 12)
    torch.testing.assert_close(head(features), head(50 * features), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "hidden", "mlp"])
def test_the_first_logits_are_small(kind: str) -> None:
    with torch.no_grad():
        logits = build_head(kind, 512, 10, seed_key=(0,)).train()(30 * torch.randn(256, 512))
    assert 0.1 < float(logits.std()) < 0.8


def test_the_hidden_head_has_one_layer_of_256_with_a_norm() -> None:
    head, features = build_head("hidden", 12, 3, seed_key=(3,)).eval(), torch.randn(5, 12)
    norm, hidden, last = head.layers
    assert [tuple(m.weight.shape) for m in (hidden.linear, last)] == [(256, 12), (3, 256)]
    assert isinstance(hidden.norm, nn.BatchNorm1d)
    x = hidden.norm(hidden.linear(norm(features))).relu()
    torch.testing.assert_close(head(features), last(x))


def test_dropout_keeps_its_share_and_the_mean() -> None:
    dropout, x = models.Dropout(0.2), torch.ones(400, 500, requires_grad=True)
    torch.manual_seed(0)
    dropped = dropout(x)
    assert 0.79 < float((dropped > 0).float().mean()) < 0.81
    assert set(dropped.detach().unique().tolist()) == {0.0, 1.25}
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped.detach())
    assert dropout(x.bfloat16()).dtype == torch.bfloat16
    assert dropout.eval()(x) is x


def test_the_mlp_head_has_three_layers_of_1024_with_norms_and_skips() -> None:
    head = build_head("mlp", 12, 3, seed_key=(0,)).eval()
    assert [tuple(m.weight.shape) for m in head.modules() if isinstance(m, nn.Linear)] == [
        *((1024, 12), (1024, 1024), (1024, 1024), (3, 1024))
    ]
    assert sum(isinstance(m, nn.BatchNorm1d) for m in head.modules()) == 3
    features = torch.randn(5, 12)
    norm, first, second, third, last = head.layers
    x = first(norm(features))
    with torch.no_grad():
        torch.testing.assert_close(first(norm(features)), first.norm(first.linear(norm(features))).relu())
        torch.testing.assert_close(second(x), x + second.norm(second.linear(x)).relu())
        for block in (second, third):  # without its branches the skips let all through
            block.norm.weight.zero_()
            block.norm.bias.zero_()
        torch.testing.assert_close(head(features), last(x))


# --- ensembles of heads -----------------------------------------------------------------------------------------------


KINDS = ("linear", "hidden", "mlp")


def ensemble(kind: str, members: int = 3, key: object = 0) -> HeadEnsemble:
    made = build_head(kind, 12, 4, seed_key=(key,), members=members)
    assert isinstance(made, HeadEnsemble)
    return made


def alone(kind: str, members: int = 3) -> list[nn.Module]:
    return [build_head(kind, 12, 4, seed_key=(0, number)) for number in range(members)]


def combined(logits: torch.Tensor) -> torch.Tensor:
    mean = logits.mean(dim=0)
    return mean / torch.sqrt(1 + 0.3 * ((logits - mean) ** 2).mean(dim=0))


def test_one_member_is_a_plain_head() -> None:
    one = build_head("hidden", 12, 4, seed_key=(0,), members=1)
    assert type(one) is Head
    assert equal(one, build_head("hidden", 12, 4, seed_key=(0,)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_an_ensemble_gives_the_mean_logit_less_sure_where_members_differ(kind: str, training: bool) -> None:
    together, heads = ensemble(kind).train(training), [head.train(training) for head in alone(kind)]
    for module in [m for root in (together, *heads) for m in root.modules() if isinstance(m, nn.Dropout)]:
        module.p = 0.0
    features = torch.randn(6, 12)
    expected = combined(torch.stack([head(features) for head in heads]))
    torch.testing.assert_close(together(features), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble_learns_as_its_members_would_by_the_combined_logits(kind: str) -> None:
    """Gradients, running statistics and one optimizer step, decay included, are those of separate heads."""
    together, heads = ensemble(kind).double().train(), [head.double().train() for head in alone(kind)]
    for module in [m for root in (together, *heads) for m in root.modules() if isinstance(m, nn.Dropout)]:
        module.p = 0.0
    features, labels = torch.randn(6, 12).double(), torch.arange(6) % 4
    for networks, logits in (
        ([together], together(features)),
        (heads, combined(torch.stack([head(features) for head in heads]))),
    ):
        nn.functional.cross_entropy(logits, labels).backward()
        groups = [g for network in networks for g in models.parameter_groups(network, weight_decay=0.1)]
        torch.optim.SGD(groups, lr=0.5).step()
    for number, head in enumerate(heads):
        for name, value in head.state_dict().items():
            torch.testing.assert_close(together.state_dict()[f"member.{name}"][number], value)


def test_members_have_first_weights_and_dropout_of_their_own() -> None:
    head = ensemble("hidden").train()
    weight = head.state_dict()["member.layers.1.linear.weight"]
    assert not torch.equal(weight[0], weight[1])
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    features = torch.randn(6, 12)
    torch.manual_seed(5)
    each = head.each(features)
    assert not torch.equal(each[0], each[1])
    torch.manual_seed(5)
    assert torch.equal(head.each(features), each)
    head.eval()
    assert torch.equal(head.each(features)[0], head.each(features)[1])


def test_all_of_an_ensemble_is_in_its_parameters_and_state() -> None:
    head, other = ensemble("mlp"), ensemble("mlp", key=1)
    assert sum(p.numel() for p in head.parameters()) == 3 * sum(p.numel() for p in alone("mlp")[0].parameters())
    assert all(p.requires_grad and p.is_leaf for p in head.parameters())
    twin = copy.deepcopy(head)
    assert equal(head, twin)
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert not equal(head, twin)
    features = torch.randn(6, 12)
    other.load_state_dict(head.state_dict())
    assert torch.equal(head.eval()(features), other.eval()(features))
    assert sum(map(len, (group["params"] for group in models.parameter_groups(head, weight_decay=0.1)))) == len(
        list(head.parameters())
    )


def test_biases_and_norms_of_an_ensemble_do_not_decay() -> None:
    network = Network(build("cnn"), build_head("mlp", 128, 3, seed_key=(0,), members=2))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = models.parameter_groups(network, weight_decay=0.1)
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decays["head.member.layers.1.linear.weight"] == decays["head.member.layers.4.weight"] == 0.1
    assert decays["head.member.layers.1.norm.weight"] == decays["head.member.layers.4.bias"] == 0.0
    assert decays["backbone.net.0.0.weight"] == pytest.approx(0.01)  # a tenth of a head's


def test_without_updates_the_statistics_of_all_members_stay() -> None:
    head, features = ensemble("mlp").train(), torch.randn(6, 12)
    before = weights.state_digest(head)
    torch.manual_seed(0)
    with models.batch_norms_without_updates(head):
        inside = head(features)
    assert weights.state_digest(head) == before
    torch.manual_seed(0)
    torch.testing.assert_close(inside, head(features))
    state = head.state_dict()
    assert state["member.layers.1.norm.num_batches_tracked"].tolist() == [1, 1, 1]
    means = state["member.layers.1.norm.running_mean"]
    assert not torch.equal(means[0], means[1])


@pytest.mark.parametrize("members", [1, 3])
def test_the_mlp_head_learns_in_bfloat16(members: int) -> None:
    head, features = build_head("mlp", 12, 4, seed_key=(0,), members=members).train(), torch.randn(6, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad(), models.batch_norms_without_updates(head):
            head(features)
        logits = head(features)
    logits.float().square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) and bool(p.grad.isfinite().all()) for p in head.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble_can_be_exported_for_batches_of_any_size(kind: str) -> None:
    head = ensemble(kind).eval().requires_grad_(False)
    shapes = {"features": {0: torch.export.Dim("N")}}
    program = torch.export.export(head, (torch.randn(2, 12),), dynamic_shapes=shapes).module()
    features = torch.randn(7, 12)
    torch.testing.assert_close(program(features), head(features))


def test_network_is_head_after_backbone() -> None:
    backbone, head = build("cnn").eval(), Head("linear", 128, 4)
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
    network = Network(backbone, Head("hidden", 512, 3))
    models.set_trainable(backbone, "1")
    groups = models.parameter_groups(network, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    placed = {names[id(p)]: (group["weight_decay"], group["lr_scale"]) for group in groups for p in group["params"]}
    assert set(placed) == {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert placed["backbone.net.layer4.0.conv1.weight"] == (pytest.approx(0.01), 0.1)
    assert placed["backbone.net.layer4.0.bn1.weight"] == (0.0, 0.1)
    assert placed["head.layers.1.linear.weight"] == (0.1, 1.0)
    assert placed["head.layers.1.norm.weight"] == placed["head.layers.2.bias"] == (0.0, 1.0)
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
    network = Network(build("cnn"), Head("linear", 128, 3))
    models.set_trainable(network.backbone, "head")
    lines = models.describe(network).splitlines()
    assert lines[1].split() == ["backbone", "Backbone", "0", "93,472"]
    assert lines[-1].split() == ["total", "387", "93,472"]
    assert any(line.split() == ["0", "Conv2d", "0", "864"] for line in lines)
    assert models.describe({"head": network.head}).splitlines()[-1].split() == ["total", "387", "0"]
