"""Backbones, their weights, heads, and what of them learns. No network is needed: the weight files are made here."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from runs import ROOT
from transfermpl import args, models
from transfermpl.backbones import weights
from transfermpl.backbones.backbone import Backbone
from transfermpl.backbones.library import build_backbone
from transfermpl.models import Head, HeadEnsemble, Network, build_head
from transfermpl.utils import UserError

WEIGHTS = ROOT.parent / "shared" / "weights"
needs_weights = pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the shared weights are not here")


def build(name: str | None = None, weights: object = "none", **more: Any) -> Backbone:
    """A backbone from scratch unless told otherwise."""
    place = {"native_size": 0, "points": False, "seed": 0, "default_name": "cnn"}
    place |= {key: more.pop(key) for key in list(more) if key in place}
    return build_backbone(args.Model(model_name=name, weights=str(weights), **more), **place)


def equal(a: nn.Module, b: nn.Module) -> bool:
    return weights.state_digest(a) == weights.state_digest(b)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Beside another busy process, more threads wait for each other: measured to take four times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def zoo() -> Any:
    return pytest.importorskip("torchvision.models")


@pytest.fixture(scope="module")
def resnet_file(zoo: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A whole resnet18, head and all, in a file."""
    net = zoo.get_model("resnet18").eval()
    path = tmp_path_factory.mktemp("weights") / "resnet.pth"
    torch.save(net.state_dict(), path)
    return net, path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Every connection fails at once, and no cache holds anything."""
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    yield
    torch.hub.set_dir(before)


# --- names and features -----------------------------------------------------------------------------------------------

FEATURES = {
    "squeezenet1_1": 512,
    "alexnet": 4096,
    "mobilenet_v3_small": 1024,
    "mnasnet0_5": 1280,
    "efficientnet_b0": 1280,
    "regnet_y_400mf": 440,
    "shufflenet_v2_x0_5": 1024,
    "densenet": 1024,
    "googlenet": 1024,
    "inception_v3": 2048,
    "swin_t": 768,
    "convnext_tiny": 768,
    "timm:resnet10t": 512,
    "timm:test_vit": 64,
    "timm:mobilenetv3_small_050": 1024,
}


@pytest.mark.parametrize("name", FEATURES)
def test_library_backbones_give_features(name: str) -> None:
    size = 96 if name == "inception_v3" else 64
    backbone = build(name, image_size=size).eval()
    images = torch.rand(2, 3, size, size).to(memory_format=torch.channels_last)
    features = backbone(images)
    assert features.shape == (2, FEATURES[name])
    assert features.shape[1] == backbone.num_features
    assert backbone.transform.size == size
    assert not backbone.pretrained
    assert backbone.train()(images).shape == features.shape


def test_vision_transformers_take_another_size() -> None:
    assert build("vit_b_32", image_size=96).eval()(torch.rand(1, 3, 96, 96)).shape == (1, 768)
    assert build("timm:vit_tiny_patch16_224", image_size=96).eval()(torch.rand(1, 3, 96, 96)).shape == (1, 192)


@pytest.mark.parametrize("name", ["cnn", "wrn28_2", "mlp"])
@pytest.mark.parametrize("size", [8, 33])
def test_small_backbones(name: str, size: int) -> None:
    backbone = build(name, image_size=size)
    assert backbone(torch.rand(2, 3, size, size)).shape == (2, backbone.num_features)
    assert not backbone.pretrained


def test_wrn28_2_has_the_published_number_of_parameters() -> None:
    network = Network(build("wrn28_2"), build_head("linear", 128, 10, seed_key=(0,)))
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_467_610


def test_points_take_an_mlp() -> None:
    backbone = build(points=True, default_name="mlp")
    points = torch.randn(5, 2)
    assert torch.equal(backbone(points), backbone.net(points))
    assert backbone.num_features == 64
    with pytest.raises(UserError, match="use --model_name mlp"):
        build("cnn", points=True)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resent18", "resnet18"),
        ("timm:resnet10", "timm:resnet10t"),
        ("resnet10t", "timm:resnet10t"),
        ("fasterrcnn_resnet50_fpn", "is unknown"),
        ("q", "timm:NAME"),
        ("timm:resnet10t.nosuch", "nosuch"),
    ],
)
def test_unknown_names(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint) as caught:
        build(name)
    assert "\n" not in str(caught.value)


def test_short_names() -> None:
    assert build("resnet", image_size=32).name == "resnet18"
    assert build("squeezenet", image_size=32).name == "squeezenet1_0"


def test_sizes_that_do_not_fit() -> None:
    for name, size in (("alexnet", 16), ("vit_b_32", 40), ("timm:test_vit", 8)):
        with pytest.raises(UserError, match="choose another --image_size"):
            build(name, image_size=size)


# --- transforms and normalisation -------------------------------------------------------------------------------------


def test_transforms_come_from_the_library() -> None:
    transform = build("resnet").transform
    assert (transform.size, transform.resize, transform.interpolation) == (224, 256, "bilinear")
    assert (transform.mean, transform.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert build("timm:test_vit").transform.size == 160
    assert build("efficientnet_b0", image_size=112).transform.resize == 128
    assert build("efficientnet_b0", image_size=112).transform.interpolation == "bicubic"


@pytest.mark.parametrize(("native", "size"), [(0, 32), (8, 16), (32, 32)])
def test_small_backbones_follow_the_data(native: int, size: int) -> None:
    transform = build("cnn", native_size=native).transform
    assert (transform.size, transform.resize) == (size, size)


def test_a_published_file_brings_its_own_transform(zoo: Any, tmp_path: Path) -> None:
    entry = zoo.MobileNet_V2_Weights.IMAGENET1K_V2
    state = zoo.get_model("mobilenet_v2").state_dict()
    sizes = {}
    for name in (Path(entry.url).name, "mine.pth"):
        torch.save(state, tmp_path / name)
        sizes[name] = build("mobilenet_v2", tmp_path / name).transform.resize
    assert list(sizes.values()) == [232, 256]


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


# --- weights ----------------------------------------------------------------------------------------------------------


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


def test_a_file_of_a_whole_network_fits(resnet_file: tuple[Any, Path], tmp_path: Path) -> None:
    net, path = resnet_file
    backbone = build("resnet", path).eval()
    images = torch.rand(2, 3, 64, 64)
    mean, std = backbone.mean, backbone.std
    torch.testing.assert_close(net.fc(backbone(images)), net((images - mean) / std))
    assert backbone.pretrained
    wrapped = {f"module._orig_mod.{key}": value for key, value in net.state_dict().items()}
    headless = {key: value for key, value in net.state_dict().items() if not key.startswith("fc.")}
    old = {key: value for key, value in headless.items() if "num_batches" not in key}
    files: dict[str, dict[str, Any]] = {"a.pt": {"state_dict": wrapped, "epoch": 3}, "b.bin": {"model": headless}}
    files["c.pth"] = {"model_state": {**headless, "fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}}
    files["d.pth"] = old
    for name, content in files.items():
        torch.save(content, tmp_path / name)
        assert equal(build("resnet", tmp_path / name), backbone), name
    save_file(headless, tmp_path / "e.safetensors")
    assert equal(build("resnet", tmp_path / "e.safetensors"), backbone)


def test_half_precision_files_become_float32(resnet_file: tuple[Any, Path], tmp_path: Path) -> None:
    half = {key: value.half() for key, value in resnet_file[0].state_dict().items()}
    torch.save(half, tmp_path / "half.pth")
    backbone = build("resnet", tmp_path / "half.pth")
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}
    assert torch.equal(backbone.state_dict()["net.conv1.weight"], half["conv1.weight"].float())


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:mobilenetv3_small_050", "timm:regnetx_002"])
def test_timm_files(name: str, tmp_path: Path) -> None:
    import timm

    net = timm.create_model(name.removeprefix("timm:"), pretrained=False, num_classes=7).eval()
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, tmp_path / "t.safetensors")
    backbone = build(name, tmp_path / "t.safetensors").eval()
    images = torch.rand(2, 3, backbone.transform.size, backbone.transform.size)
    expected = net.forward_head(net.forward_features((images - backbone.mean) / backbone.std), pre_logits=True)
    torch.testing.assert_close(backbone(images), expected)


def test_side_classifiers_and_old_names_are_no_obstacle(zoo: Any, tmp_path: Path) -> None:
    torch.save(zoo.get_model("googlenet", init_weights=False).state_dict(), tmp_path / "g.pth")
    assert build("googlenet", tmp_path / "g.pth").net.transform_input
    state = zoo.get_model("densenet121").state_dict()
    old = {key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value for key, value in state.items()}
    assert set(old) != set(state)
    torch.save(old, tmp_path / "d.pth")
    backbone = build("densenet", tmp_path / "d.pth")
    last = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(backbone.net.state_dict()[last], state[last])


def test_heads_of_several_layers_are_left_out() -> None:
    own = build("resnet", image_size=32).net.state_dict()
    assert weights._widened("head.fc.fc2", own) == "head"
    assert weights._widened("head.fc.fc2", {**own, "head.norm.weight": torch.zeros(1)}) == "head.fc"


def test_mnasnet_loads_without_its_version(zoo: Any, tmp_path: Path) -> None:
    save_file(zoo.get_model("mnasnet0_5").state_dict(), tmp_path / "m.safetensors")
    assert build("mnasnet0_5", tmp_path / "m.safetensors").pretrained


def test_vit_files_are_resampled(zoo: Any, tmp_path: Path) -> None:
    torch.save(zoo.get_model("vit_b_32").state_dict(), tmp_path / "v.pth")
    backbone = build("vit_b_32", tmp_path / "v.pth", image_size=96)
    assert backbone.eval()(torch.rand(1, 3, 96, 96)).shape == (1, 768)


def test_small_backbones_take_files(tmp_path: Path) -> None:
    torch.save(build("cnn", seed=4).net.state_dict(), tmp_path / "c.pt")
    backbone = build("cnn", tmp_path / "c.pt")
    assert equal(backbone, build("cnn", seed=4))
    assert backbone.pretrained
    assert not build("cnn", "default").pretrained


def test_files_that_do_not_fit_are_named(resnet_file: tuple[Any, Path], tmp_path: Path) -> None:
    state = resnet_file[0].state_dict()
    lacking = {key: value for key, value in state.items() if not key.startswith("layer4.")}
    lacking |= {"surplus": torch.zeros(1), "conv1.weight": torch.zeros(64, 1, 7, 7)}
    torch.save(lacking, tmp_path / "x.pth")
    with pytest.raises(UserError) as caught:
        build("resnet", tmp_path / "x.pth")
    text = str(caught.value)
    assert "25 missing (layer4.0.conv1.weight, layer4.0.bn1.weight, layer4.0.bn1.bias, ...)" in text
    assert "1 unexpected (surplus)" in text
    assert "1 of another shape (conv1.weight)" in text
    assert "\n" not in text


class Evil:
    """Unpickled with code allowed, it makes a folder."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.place,)


def test_a_file_with_code_is_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Evil(str(tmp_path / "harm"))}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="refused"):
        build("resnet", tmp_path / "evil.pth")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.pth", b"nothing", "refused"),
        ("broken.safetensors", b"nothing", "refused"),
        ("notes.txt", b"", "must be a .pth"),
        ("gone.pth", None, "no such file"),
        ("list.pth", [1, 2], "no state dict"),
        ("numbers.pth", {"a": 1}, "no state dict"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, name: str, content: object, message: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    for model in ("resnet", "cnn", "timm:resnet10t"):
        with pytest.raises(UserError, match=message) as caught:
            build(model, path)
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_network")
def test_without_a_network_the_user_reads_what_to_do_at_once() -> None:
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"resnet18-f37072fd.pth.*checkpoints.*--weights none") as first:
        build("resnet", "default")
    with pytest.raises(UserError, match=r"huggingface.co/timm/resnet10t.*--weights FILE") as second:
        build("timm:resnet10t", "default")
    assert time.monotonic() - begin < 20
    assert "\n" not in str(first.value) + str(second.value)
    assert offline == constants.HF_HUB_OFFLINE
    with pytest.raises(UserError, match="no pretrained weights"):
        build("timm:vit_giant_patch14_224", "default")


@pytest.mark.usefixtures("no_network")
def test_default_weights_come_from_the_cache(zoo: Any, tmp_path: Path) -> None:
    """The libraries' files, put where they look for them."""
    net = zoo.get_model("squeezenet1_1")
    (tmp_path / "checkpoints").mkdir()
    torch.save(net.state_dict(), tmp_path / "checkpoints" / Path(zoo.SqueezeNet1_1_Weights.DEFAULT.url).name)
    backbone = build("squeezenet1_1", "default")
    assert backbone.pretrained
    assert torch.equal(backbone.net.features[0].weight, net.features[0].weight)

    import timm

    cached = timm.create_model("resnet10t", pretrained=False)
    folder = tmp_path / "models--timm--resnet10t.c3_in1k"
    for place in ("refs", "snapshots/0123"):
        (folder / place).mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123")
    save_file(cached.state_dict(), folder / "snapshots" / "0123" / "model.safetensors")
    backbone = build("timm:resnet10t", "default")
    assert backbone.pretrained
    assert torch.equal(backbone.net.conv1[0].weight, cached.conv1[0].weight)


@needs_weights
@pytest.mark.parametrize("name", ["squeezenet1_1", "squeezenet1_0", "mobilenet_v2"])
def test_shared_weights(zoo: Any, name: str) -> None:
    path = WEIGHTS / f"{name}.safetensors"
    backbone = build(name, path).eval()
    net = zoo.get_model(name)
    net.load_state_dict(load_file(path), strict=False)
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    last_map = net.eval().features((images - backbone.mean) / backbone.std)
    assert last_map.min() >= 0
    torch.testing.assert_close(backbone(images), last_map.mean((2, 3)), rtol=1e-4, atol=1e-5)
    transform = backbone.transform
    assert (transform.size, transform.resize, transform.mean) == (224, 256, (0.485, 0.456, 0.406))


def test_clean_state() -> None:
    dirty = {
        "module.a.weight": torch.zeros(1),
        "backbone._orig_mod.module.b": torch.ones(1),
        "modules.c": torch.ones(2),
    }
    assert list(weights.clean_state(dirty)) == ["a.weight", "backbone.b", "modules.c"]


def test_state_digest() -> None:
    backbone = build("cnn")
    digest = weights.state_digest(backbone)
    assert digest == weights.state_digest(backbone.to(memory_format=torch.channels_last))
    assert digest == weights.state_digest(build("cnn"))
    with torch.no_grad():
        backbone.net[0][0].weight[0, 0, 0, 0] += 1e-3
    assert digest != weights.state_digest(backbone)
    plain = nn.Linear(2, 1)
    plain.load_state_dict({"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])})
    assert weights.state_digest(plain) == "3f2006c82b95a16d6696e83872e052bf"


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


def test_an_exam_leaves_the_statistics_of_all_members() -> None:
    head, features = ensemble("mlp").train(), torch.randn(6, 12)
    before = weights.state_digest(head)
    torch.manual_seed(0)
    with models.batch_norms_in_exam(head):
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
        with torch.no_grad(), models.batch_norms_in_exam(head):
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


def norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def test_pretrained_batch_norms_stay_in_eval_mode(resnet_file: tuple[Any, Path]) -> None:
    network = Network(build("resnet", resnet_file[1], image_size=32), Head("linear", 512, 3)).train()
    assert network.head.training
    assert network.backbone.net.layer1.training
    assert not any(norm.training for norm in norms(network))
    before = weights.state_digest(network)
    network(torch.rand(4, 3, 32, 32))
    assert weights.state_digest(network) == before
    assert all(norm.training for norm in norms(build("resnet", image_size=32).train()))


def test_a_frozen_backbone_stays_in_eval_mode() -> None:
    network = Network(build("cnn"), Head("hidden", 128, 3))
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


def test_batch_norms_in_exam() -> None:
    backbone = build("cnn").train()
    models.set_trainable(backbone, "all")
    images = torch.rand(4, 3, 16, 16)
    frozen = norms(backbone)[0].eval()
    before = weights.state_digest(backbone)
    with models.batch_norms_in_exam(backbone):
        inside = backbone(images)
    assert weights.state_digest(backbone) == before
    assert [norm.track_running_stats for norm in norms(backbone)] == [True] * 3
    assert not frozen.training
    torch.testing.assert_close(inside, backbone(images))
    assert weights.state_digest(backbone) != before
    with pytest.raises(RuntimeError, match="boom"), models.batch_norms_in_exam(backbone):
        raise RuntimeError("boom")
    assert all(norm.track_running_stats for norm in norms(backbone))


def test_describe() -> None:
    network = Network(build("cnn"), Head("linear", 128, 3))
    models.set_trainable(network.backbone, "head")
    lines = models.describe(network).splitlines()
    assert lines[1].split() == ["backbone", "Backbone", "0", "93,472"]
    assert lines[-1].split() == ["total", "387", "93,472"]
    assert any(line.split() == ["0", "Conv2d", "0", "864"] for line in lines)
    assert models.describe({"head": network.head}).splitlines()[-1].split() == ["total", "387", "0"]
