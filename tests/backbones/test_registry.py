"""Views: names, the list, published files and their keys, transforms and features. No network: all files are made here.

The timm views are tried one block deep, transformers' towers tiny; the networks of full size on the meta device.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from runs import ROOT, make_data, run
from transfermpl import args, models
from transfermpl.backbones import library, published, registry
from transfermpl.backbones.backbone import Backbone
from transfermpl.backbones.published import KeyMap
from transfermpl.backbones.registry import (
    CATALOGUE,
    ViewName,
    build_view,
    check_views,
    parse_view,
    restored_view,
    save_view,
    view_labels,
)
from transfermpl.backbones.weights import state_digest
from transfermpl.data import Dataset, find_dataset
from transfermpl.features.bank import FeatureBank, bank_identity
from transfermpl.features.sources import FrozenSource, ImageSource
from transfermpl.images.augment import recipe_for
from transfermpl.utils import UserError

CPU = torch.device("cpu")
TIMM = [name for name, entry in CATALOGUE.items() if entry.source.startswith("timm:")]


def build(spec: str, **more: Any) -> Backbone:
    return build_view(spec, **{"native_size": 0, "points": False, "seed": 0, **more})


def complaint(spec: str, **more: Any) -> str:
    """The one line that a user reads."""
    with pytest.raises(UserError) as caught:
        build(spec, **more)
    assert "\n" not in str(caught.value)
    assert "--model_name" not in str(caught.value)
    return str(caught.value)


def same_features(backbone: Backbone, expected: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Both map the same images to the same numbers, sane ones."""
    images = torch.rand(2, 3, backbone.transform.size, backbone.transform.size)
    with torch.no_grad():
        features = backbone.eval()(images)
        wanted = expected((images - backbone.mean) / backbone.std)
    assert features.shape == (2, backbone.num_features)
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    torch.testing.assert_close(features, wanted)


def randomised(net: nn.Module) -> nn.Module:
    """Every weight away from its start: zeros and ones would hide that something was not loaded."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.05 * torch.randn_like(parameter) + (0.5 if parameter.ndim == 1 else 0))
    return net.eval()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """No connection, and caches that are empty; gives their folder."""
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    caches = tmp_path / "caches"
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(caches))
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(caches))
    torch.manual_seed(0)
    yield caches
    torch.hub.set_dir(before)


def cached(caches: Path, repository: str, *files: Path) -> None:
    """Put files where the hub's client keeps those of a repository."""
    folder = caches / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("0123")
    (folder / "snapshots" / "0123").mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(file, folder / "snapshots" / "0123")


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_name_may_bring_weights() -> None:
    assert parse_view("clip") == ViewName("clip", "default")
    assert parse_view("clip=/a=b/ü.pth") == ViewName("clip", "/a=b/ü.pth")
    for wrong in ("", "=x", "clip=", " =x"):
        with pytest.raises(UserError, match="takes NAME or NAME=FILE"):
            parse_view(wrong)
        with pytest.raises(UserError, match="takes NAME or NAME=FILE|list of words"):
            args.make({"name": "x", "views": ["clip", wrong]})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dinov22", "did you mean dinov2"),
        ("Clip", "did you mean clip"),
        ("pixel", "did you mean pixels"),
        ("resent18", "did you mean resnet18"),
        ("resnet10t", "did you mean timm:resnet10t"),
        ("q", "is unknown"),
    ],
)
def test_a_name_that_nobody_knows(name: str, says: str) -> None:
    line = complaint(f"{name}=/no/file")
    assert line.startswith(f"--views {name} is unknown")
    assert says in line
    with pytest.raises(UserError, match=re.escape(says)):  # and before anything is built
        check_views(["dinov2", name])


def test_labels_tell_views_apart() -> None:
    assert view_labels(["clip", "swav=a", "clip=b", "clip", "clip-2"]) == [
        "clip",
        "swav",
        "clip-2",
        "clip-3",
        "clip-2-2",
    ]


def test_whatever_model_name_takes_is_a_view(tmp_path: Path) -> None:
    torch.save(build("cnn").net.state_dict(), tmp_path / "c.pt")
    backbone = build(f"cnn={tmp_path / 'c.pt'}", native_size=8)
    assert (backbone.name, backbone.pretrained, backbone.transform.size) == ("cnn", True, 16)
    assert build("squeezenet=none", image_size=64).name == "squeezenet1_0"
    assert build("timm:test_vit=none").num_features == 64
    assert build("mlp", points=True).num_features == 64
    assert "points" in complaint("clip", points=True)
    assert complaint("cnn", points=True).startswith("--views cnn needs images")


def test_errors_speak_of_views(tmp_path: Path) -> None:
    assert complaint("resnet18=/no/such.pth").startswith("--views resnet18=/no/such.pth: there is no such file")
    assert "name the file in it" in complaint(f"clip={tmp_path}")
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pth")
    line = complaint(f"resnet18={tmp_path / 'x.pth'}")
    assert line.startswith(f"--views resnet18={tmp_path / 'x.pth'} does not fit resnet18")
    assert "pixels has no weights" in complaint("pixels=x.pth")


# --- views without weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "native", "size", "features"),
    [("pixels", 8, 16, 768), ("pixels", 28, 28, 2352), ("pixels", 0, 32, 3072), ("pixels", 96, 32, 3072),
     ("gradients", 8, 16, 288), ("gradients", 0, 64, 1568), ("gradients", 32, 32, 1568)],
)  # fmt: skip
def test_views_without_weights_follow_the_data(name: str, native: int, size: int, features: int) -> None:
    backbone = build(name, native_size=native)
    assert (backbone.transform.size, backbone.transform.resize) == (size, size)
    assert backbone.num_features == features
    assert build(name, native_size=native, image_size=24).transform.size == 24


@pytest.mark.parametrize("name", ["pixels", "gradients"])
def test_views_without_weights_are_frozen_functions(name: str) -> None:
    backbone = build(name)
    assert not list(backbone.parameters())
    assert not backbone.state_dict()
    assert models.resolve_unfreeze(args.Model(), backbone) == "head"
    for what in ("head", "all"):
        models.set_trainable(backbone, what)
        assert not backbone.train().training
    with pytest.raises(UserError, match="0 stages"):
        models.set_trainable(backbone, "1")
    assert models.parameter_groups(backbone, weight_decay=0.1) == []
    assert models.describe({"backbone": backbone})
    images = torch.rand(3, 3, backbone.transform.size, backbone.transform.size)
    features = backbone(images)
    assert features.isfinite().all()
    torch.testing.assert_close(backbone(images[1:2]), features[1:2])
    torch.testing.assert_close(backbone(images.to(memory_format=torch.channels_last)), features)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(backbone(images), features)
    assert backbone.double()(images.double()).dtype == torch.float64


def test_pixels_are_the_pixels() -> None:
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(build("pixels")(images), (images.flatten(1) - 0.5) / 0.25)


def orientations(images: torch.Tensor) -> torch.Tensor:
    """How much of each of the 8 orientations is in an image."""
    count = published.CELLS - 1
    features = build("gradients", image_size=32)(images).view(-1, 8, 4, count * count)
    return features.sum(dim=(2, 3))


def ramp(degrees: float) -> torch.Tensor:
    """An image that grows brighter in one direction, clockwise from the right."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    angle = np.deg2rad(degrees)
    return (0.5 + 0.3 * (x * np.cos(angle) + y * np.sin(angle))).expand(1, 3, 32, 32).float()


@pytest.mark.parametrize("number", range(8))
def test_gradients_point_to_the_bright_side(number: int) -> None:
    found = orientations(ramp(45 * number))[0]
    assert found.argmax() == number
    between = orientations(ramp(45 * number + 22.5))[0].topk(2)
    assert set(between.indices.tolist()) == {number, (number + 1) % 8}
    torch.testing.assert_close(between.values[0], between.values[1], rtol=0.05, atol=0.05)


def test_gradients_hang_on_neither_brightness_nor_contrast() -> None:
    images = torch.rand(2, 3, 32, 32)
    backbone = build("gradients", image_size=32)
    torch.testing.assert_close(backbone(0.5 * images + 0.3), backbone(images), atol=0.02, rtol=0)
    assert not backbone(torch.full((1, 3, 32, 32), 0.7)).any()
    norms = backbone(images).view(2, 32, -1).square().sum(dim=1).sqrt()  # a block's
    torch.testing.assert_close(norms, torch.ones_like(norms), atol=0.01, rtol=0)


def test_of_three_colours_the_steepest_counts() -> None:
    images = torch.full((1, 3, 32, 32), 0.5)
    images[:, 1] = ramp(90)[:, 1]
    assert orientations(images)[0].argmax() == 2


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return find_dataset(args.Data(data_dir=str(make_data(tmp_path_factory.mktemp("photos"), 4))))


def frozen_source(dataset: Dataset, backbone: Backbone) -> FrozenSource:
    models.set_trainable(backbone, "head")
    recipe = recipe_for(dataset.kind, None)
    return FrozenSource(ImageSource(dataset, backbone.transform, recipe, CPU, workers=0), backbone)


def test_banks_of_views_are_told_apart(photos: Dataset) -> None:
    """Neither of them has weights, so names and transforms must do it."""
    sources = [frozen_source(photos, build(name, image_size=32)) for name in ("pixels", "gradients")]
    assert len({state_digest(source.backbone) for source in sources}) == 1
    identities = [json.dumps(bank_identity(source, "float16")) for source in sources]
    assert len(set(identities)) == 2


def test_views_of_different_sizes_work_side_by_side(photos: Dataset, tmp_path: Path) -> None:
    rows = np.arange(5)
    for spec in ("pixels", "gradients", "cnn", "timm:test_vit=none"):
        backbone = build(spec)
        bank = FeatureBank(tmp_path, frozen_source(photos, backbone))
        (features,) = bank.inputs(rows)
        assert features.shape == (5, backbone.num_features)
        assert features.isfinite().all()
    assert len(list(tmp_path.glob("*/bank.json"))) == 4


def test_both_views_know_digits_and_err_differently() -> None:
    """A logistic regression on 43 labels; measured: 84% and 89%, see docs/views.md."""
    from sklearn.linear_model import LogisticRegression

    digits = find_dataset(args.Data(data_dir="digits"))
    wrong = {}
    for name in ("pixels", "gradients"):
        source = frozen_source(digits, build(name, native_size=digits.native_size))
        features = torch.cat(list(source.inputs(np.arange(len(digits.labels))))).numpy()
        features /= np.sqrt((features**2).mean(axis=1, keepdims=True) + 1e-6)
        order = np.random.default_rng(0).permutation(len(features))
        test, rest = order[:360], order[360:]
        labeled = np.concatenate([rest[digits.labels[rest] == c][: 5 if c < 3 else 4] for c in range(10)])
        assert len(labeled) == 43
        model = LogisticRegression(max_iter=1000).fit(features[labeled], digits.labels[labeled])
        wrong[name] = model.predict(features[test]) != digits.labels[test]
    assert wrong["pixels"].mean() < 0.25
    assert wrong["gradients"].mean() < 0.2
    assert (wrong["pixels"] ^ wrong["gradients"]).mean() > 0.07


# --- timm -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """timm's networks under their own names, one block deep: so `create_model` builds them for everybody."""
    import timm

    real = timm.create_model

    def create(name: str, **more: Any) -> Any:
        smaller = {"stages": (1, 1, 1, 1)} if name.startswith("hiera") else {"depth": 1}
        return real(name, **more, **smaller)

    monkeypatch.setattr(timm, "create_model", create)
    return create


@pytest.mark.parametrize("name", [name for name in TIMM if name != "eva"])
def test_timm_views_load_a_file_and_keep_timms_transform(name: str, shallow: Any, tmp_path: Path) -> None:
    import timm

    short = CATALOGUE[name].source.removeprefix("timm:")
    # As published: eva and clip with their projection.
    net = randomised(shallow(short, pretrained=False))
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    backbone = build(f"{name}={tmp_path / 'model.safetensors'}")
    assert backbone.pretrained
    assert backbone.name == CATALOGUE[name].source
    own = timm.data.resolve_model_data_config(net)
    transform, size = backbone.transform, CATALOGUE[name].size
    assert (transform.interpolation, transform.mean, transform.std) == (own["interpolation"], own["mean"], own["std"])
    assert transform.size == size == (224 if name == "dinov2" else own["input_size"][-1])
    assert transform.resize == int(size / own["crop_pct"])
    assert backbone.num_features == CATALOGUE[name].features == net.num_features
    if name == "dinov2":  # its own size, to which the net was made
        net.set_input_size(img_size=(224, 224))
    same_features(backbone, lambda images: net.forward_head(net.forward_features(images), pre_logits=True))
    folder = build(f"{name}={tmp_path}")  # a folder as the hub gives it
    assert state_digest(folder) == state_digest(backbone)


def test_timm_views_are_taken_from_the_cache(shallow: Any, tmp_path: Path, no_network: Path) -> None:
    line = complaint("mae")
    assert "download model.safetensors of https://huggingface.co/timm/vit_base_patch16_224.mae" in line
    assert "--views mae=FILE" in line
    assert "none" not in line
    net = randomised(shallow("vit_base_patch16_224.mae", pretrained=False, num_classes=0))
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    cached(no_network, "timm/vit_base_patch16_224.mae", tmp_path / "model.safetensors")
    assert registry.on_disk("mae") is not None
    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "_answers", lambda address: asked.append(address))
        same_features(build("mae"), net)
    assert not asked  # what is there needs no look at the network


def test_files_of_the_authors_are_read_by_timms_map(shallow: Any, tmp_path: Path) -> None:
    net = randomised(shallow("vit_base_patch14_dinov2.lvd142m", pretrained=False, num_classes=0))
    state = {**net.state_dict(), "mask_token": torch.zeros(1, 768)}
    torch.save(state, tmp_path / "dinov2_vitb14_pretrain.pth")
    backbone = build(f"dinov2={tmp_path / 'dinov2_vitb14_pretrain.pth'}")
    net.set_input_size(img_size=(224, 224))
    same_features(backbone, net)
    torch.save({**state, "extra.weight": torch.zeros(1)}, tmp_path / "x.pth")
    assert "1 unexpected (extra.weight)" in complaint(f"dinov2={tmp_path / 'x.pth'}")
    del state["blocks.0.norm1.weight"]
    torch.save(state, tmp_path / "y.pth")
    assert "1 missing (blocks.0.norm1.weight)" in complaint(f"dinov2={tmp_path / 'y.pth'}")


# --- SwAV and EsViT ---------------------------------------------------------------------------------------------------


def norm(key: str, running: bool = True) -> list[str]:
    more = ["running_mean", "running_var", "num_batches_tracked"] if running else []
    return [f"{key}.{part}" for part in ("weight", "bias", *more)]


def swav_keys() -> list[str]:
    """The keys of swav_800ep_pretrain.pth.tar, in its order: those of the authors' ResNet-50 under DDP's `module`."""
    keys = ["conv1.weight", *norm("bn1")]
    for layer, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            for conv in (1, 2, 3):
                keys += [f"layer{layer}.{block}.conv{conv}.weight", *norm(f"layer{layer}.{block}.bn{conv}")]
            if block == 0:
                keys += [f"layer{layer}.0.downsample.0.weight", *norm(f"layer{layer}.0.downsample.1")]
    keys += ["projection_head.0.weight", "projection_head.0.bias", *norm("projection_head.1")]
    keys += ["projection_head.3.weight", "projection_head.3.bias", "prototypes.weight"]
    return [f"module.{key}" for key in keys]


@pytest.fixture(scope="module")
def swav_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    from torchvision import models as zoo

    torch.manual_seed(1)
    net = zoo.resnet50(weights=None).eval()
    net.fc = nn.Identity()
    net.bn1.running_mean.normal_()
    shapes = {"projection_head.0.weight": (8, 2048), "projection_head.3.weight": (4, 8), "prototypes.weight": (6, 4)}
    own = net.state_dict()
    state = {}
    for key in swav_keys():
        short = key.removeprefix("module.")
        state[key] = own[short].half() if short in own else torch.zeros(shapes.get(short, (8,)))
    assert set(own) < {key.removeprefix("module.") for key in state}
    net.load_state_dict({key: state[f"module.{key}"] for key in own})
    path = tmp_path_factory.mktemp("swav") / "swav_800ep_pretrain.pth.tar"
    torch.save(state, path)
    return net, path


def test_swavs_published_file(swav_file: tuple[Any, Path], no_network: Path, tmp_path: Path) -> None:
    net, path = swav_file
    backbone = build(f"swav={path}")
    assert backbone.pretrained
    # of its own evaluation script
    assert (backbone.transform.size, backbone.transform.resize, backbone.transform.std[0]) == (224, 256, 0.228)
    same_features(backbone, net)
    line = complaint("swav")
    target = no_network / "checkpoints" / path.name
    assert f"put {published.SWAV_URL} at {target}" in line
    assert "--views swav=FILE" in line
    target.symlink_to(path)
    assert registry.on_disk("swav") == target
    assert state_digest(build("swav")) == state_digest(backbone)


def test_other_keys_in_swavs_file_are_errors(swav_file: tuple[Any, Path], tmp_path: Path) -> None:
    state = torch.load(swav_file[1], weights_only=True)
    state["module.extra.weight"] = state.pop("module.layer4.2.conv3.weight")
    torch.save(state, tmp_path / "x.pth")
    line = complaint(f"swav={tmp_path / 'x.pth'}")
    assert "1 missing (layer4.2.conv3.weight)" in line
    assert "1 unexpected (extra.weight)" in line


def esvit_shapes(
    width: int, depths: tuple[int, ...], window: int, heads: tuple[int, ...], *, old: bool = False
) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the teacher in EsViT's checkpoints: a Swin that joins patches at the end of a stage, and two
    heads of DINO. old: with the masks that its first version kept.
    """
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (width, 3, 4, 4),
        "patch_embed.proj.bias": (width,),
    }
    shapes |= {f"patch_embed.norm.{part}": (width,) for part in ("weight", "bias")}
    tokens = window * window
    for stage, depth in enumerate(depths):
        d = width * 2**stage
        for block in range(depth):
            inside = f"layers.{stage}.blocks.{block}"
            shapes |= {f"{inside}.norm{i}.{part}": (d,) for i in (1, 2) for part in ("weight", "bias")}
            table = {"relative_position_bias_table": ((2 * window - 1) ** 2, heads[stage])}
            table |= {"relative_position_index": (tokens, tokens)}
            linear = {"qkv": (3 * d, d), "proj": (d, d)}
            shapes |= {f"{inside}.attn.{name}": shape for name, shape in table.items()}
            shapes |= {f"{inside}.attn.{name}.weight": shape for name, shape in linear.items()}
            shapes |= {f"{inside}.attn.{name}.bias": shape[:1] for name, shape in linear.items()}
            shapes |= {f"{inside}.mlp.fc1.weight": (4 * d, d), f"{inside}.mlp.fc1.bias": (4 * d,)}
            shapes |= {f"{inside}.mlp.fc2.weight": (d, 4 * d), f"{inside}.mlp.fc2.bias": (d,)}
            if old and block % 2 and stage < len(depths) - 1:
                shapes[f"{inside}.attn_mask"] = (4, tokens, tokens)
        if stage < len(depths) - 1:
            shapes[f"layers.{stage}.downsample.reduction.weight"] = (2 * d, 4 * d)
            shapes |= {f"layers.{stage}.downsample.norm.{part}": (4 * d,) for part in ("weight", "bias")}
    last = width * 2 ** (len(depths) - 1)
    shapes |= {"norm.weight": (last,), "norm.bias": (last,)}
    for head in ("head", "head_dense"):
        for layer in (0, 2, 4):
            shapes |= {f"{head}.mlp.{layer}.weight": (5, 5), f"{head}.mlp.{layer}.bias": (5,)}
        shapes |= {f"{head}.last_layer.weight_g": (9, 1), f"{head}.last_layer.weight_v": (9, 5)}
    return shapes


def esvit_checkpoint(path: Path, *arguments: Any, **more: Any) -> dict[str, torch.Tensor]:
    """A whole checkpoint as main_esvit.py writes it; returns the teacher's state."""
    shapes = esvit_shapes(*arguments, **more)
    teacher = {
        key: torch.zeros(shape, dtype=torch.long) if key.endswith("index") else 0.1 * torch.randn(shape)
        for key, shape in shapes.items()
    }
    student = {f"module.{key}": torch.zeros_like(value) for key, value in teacher.items()}
    line = argparse.Namespace(arch="swin_tiny", epochs=300, local_crops_number=(8,), use_fp16=True)
    content = {"student": student, "teacher": teacher, "optimizer": {"state": {}, "param_groups": []}, "epoch": 300}
    torch.save({**content, "args": line, "dino_loss": {"center": torch.zeros(1, 9)}, "fp16_scaler": {}}, path)
    return teacher


@pytest.mark.parametrize(
    ("depths", "window", "old"), [((2, 2, 2, 2), 7, False), ((1, 2, 3, 1), 7, True), ((1, 1), 14, False)]
)
def test_esvits_published_files(depths: tuple[int, ...], window: int, old: bool, tmp_path: Path) -> None:
    from timm.models import swin_transformer as swin

    heads = (1, 2, 4, 8)[: len(depths)]
    path = tmp_path / "checkpoint_best.pth"
    teacher = esvit_checkpoint(path, 8, depths, window, heads, old=old)
    backbone = build(f"esvit={path}").eval()
    assert backbone.num_features == 8 * 2 ** (len(depths) - 1)
    assert (backbone.transform.resize, backbone.transform.interpolation) == (256, "bicubic")
    assert all(module.eps == 1e-6 for module in backbone.modules() if isinstance(module, nn.LayerNorm))
    more = {"embed_dim": 8, "depths": depths, "num_heads": heads, "window_size": window, "num_classes": 0}
    net = swin.SwinTransformer(norm_layer=partial(nn.LayerNorm, eps=1e-6), **more).eval()
    # timm's own map of such files, but for the heads, which it keeps.
    ours = swin.checkpoint_filter_fn({k: v for k, v in teacher.items() if not k.startswith("head")}, net)
    net.load_state_dict(ours)
    same_features(backbone, net)


def test_esvit_takes_other_sizes_and_names_what_does_not_fit(tmp_path: Path, no_network: Path) -> None:
    path = tmp_path / "checkpoint_best.pth"
    teacher = esvit_checkpoint(path, 8, (1, 1), 7, (1, 2))
    backbone = build(f"esvit={path}", image_size=112)
    assert backbone.transform.size == 112
    assert backbone.eval()(torch.rand(1, 3, 112, 112)).shape == (1, 16)
    torch.save({"teacher": {**teacher, "extra": torch.zeros(1)}}, tmp_path / "x.pth")
    assert "1 unexpected (extra)" in complaint(f"esvit={tmp_path / 'x.pth'}")
    torch.save({"teacher": {k: v for k, v in teacher.items() if "qkv" not in k}}, tmp_path / "y.pth")
    assert "4 missing (layers.0.blocks.0.attn.qkv.weight" in complaint(f"esvit={tmp_path / 'y.pth'}")
    torch.save({"teacher": {"cls_token": torch.zeros(1)}}, tmp_path / "z.pth")
    assert "no Swin transformer" in complaint(f"esvit={tmp_path / 'z.pth'}")
    line = complaint("esvit")
    assert f"at {no_network / 'checkpoints' / published.ESVIT_FILE}" in line
    assert registry.on_disk("esvit") is None


def test_a_checkpoint_with_code_is_refused(tmp_path: Path) -> None:
    torch.save({"teacher": {}, "args": KeyMap()}, tmp_path / "evil.pth")
    assert "is refused" in complaint(f"esvit={tmp_path / 'evil.pth'}")


# --- the vision towers of transformers --------------------------------------------------------------------------------

VIT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
QFORMER = {**TEXT, "encoder_hidden_size": 32}
FAMILIES = list(published.TOWERS)


def whole_model(family: str) -> Any:
    """A tiny random model of the class that was published."""
    transformers = pytest.importorskip("transformers")
    vit = {**VIT, "image_size": 32}
    if family == "align":
        vision = {"image_size": 40, "width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 64}
        model = transformers.AlignModel(transformers.AlignConfig(vision_config=vision, text_config=TEXT))
    elif family == "blip":
        config = transformers.BlipConfig(vision_config=vit, text_config=TEXT)
        model = transformers.BlipForConditionalGeneration(config)
    elif family == "blip2":
        config = transformers.Blip2Config(vision_config=vit, qformer_config=QFORMER)
        model = transformers.Blip2ForImageTextRetrieval(config)
    else:
        model = transformers.Owlv2ForObjectDetection(transformers.Owlv2Config(vision_config=vit, text_config=TEXT))
    return randomised(model)


def tower_of(model: Any) -> nn.Module:
    return getattr(model, "owlv2", model).vision_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """A tiny model of a family and the folder that it was saved into."""
    made: dict[str, tuple[Any, Path]] = {}

    def get(family: str) -> tuple[Any, Path]:
        if family not in made:
            torch.manual_seed(2)
            folder = tmp_path_factory.mktemp(family) / "größe 1"
            model = whole_model(family)
            model.save_pretrained(folder)
            made[family] = model, folder
        return made[family]

    return get


# What the published files hold beside the tower, by the first parts of the keys.
BESIDE = {
    "blip": ["text_decoder.bert.embeddings.LayerNorm.bias", "text_decoder.cls.predictions.bias", "vision_proj.weight",
             "text_encoder.encoder.layer.0.output.dense.bias", "itm_head.weight", "text_proj.bias"],
    "blip2": ["query_tokens", "qformer.layernorm.weight", "language_projection.bias", "itm_head.bias", "temp",
              "language_model.model.decoder.embed_tokens.weight", "text_proj.weight", "vision_proj.weight",
              "cls.predictions.decoder.bias", "vision_projection.bias", "embeddings.word_embeddings.weight"],
    "align": ["text_model.pooler.dense.bias", "text_model.embeddings.position_ids", "text_projection.weight",
              "temperature"],
    "owlv2": ["owlv2.text_model.final_layer_norm.bias", "owlv2.logit_scale", "owlv2.visual_projection.weight",
              "owlv2.vision_model.embeddings.position_ids", "box_head.dense0.bias", "class_head.logit_shift.weight",
              "objectness_head.dense2.bias", "layer_norm.weight", "owlv2.text_projection.weight"],
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_towers_are_loaded_from_whole_models(family: str, saved: Any, tmp_path: Path) -> None:
    model, folder = saved(family)
    backbone = build(f"{family}={folder}")
    assert (backbone.name, backbone.pretrained) == (family, True)
    tower = tower_of(model)
    same_features(backbone, lambda images: tower(pixel_values=images).pooler_output)
    # The same with all that published files hold besides, in the older format.
    state = load_file(folder / "model.safetensors") | {key: torch.zeros(3) for key in BESIDE[family]}
    torch.save(state, tmp_path / "pytorch_model.bin")
    shutil.copy(folder / "config.json", tmp_path)
    assert state_digest(build(f"{family}={tmp_path}")) == state_digest(backbone)
    # And what nobody named is an error.
    key = next(key for key in state if "vision_model." in key and key.endswith(".weight"))
    state["stranger.weight"] = state.pop(key)
    torch.save(state, tmp_path / "pytorch_model.bin")
    line = complaint(f"{family}={tmp_path}")
    assert re.search(r"1 missing \(.*1 unexpected \(stranger.weight\)", line)


@pytest.mark.parametrize("family", FAMILIES)
def test_towers_are_loaded_alone_and_from_shards(family: str, saved: Any, tmp_path: Path) -> None:
    model, folder = saved(family)
    digest = state_digest(build(f"{family}={folder}"))
    tower_of(model).save_pretrained(tmp_path / "alone")
    assert state_digest(build(f"{family}={tmp_path / 'alone'}")) == digest
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert state_digest(build(f"{family}={tmp_path / 'shards'}")) == digest
    places = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {place for key, place in places.items() if "vision_model" in key}
    for shard in shards:
        if shard.name not in needed:
            shard.unlink()
    assert state_digest(build(f"{family}={tmp_path / 'shards'}")) == digest
    (tmp_path / "shards" / next(iter(needed))).unlink()
    assert "download them all" in complaint(f"{family}={tmp_path / 'shards'}")


@pytest.mark.parametrize("family", FAMILIES)
def test_towers_are_taken_from_the_cache(family: str, saved: Any, no_network: Path) -> None:
    model, folder = saved(family)
    repository = published.TOWERS[family].repository
    line = complaint(family)
    assert f"model.safetensors of https://huggingface.co/{repository}" in line
    assert f"--views {family}=FOLDER" in line
    cached(no_network, repository, folder / "model.safetensors")
    assert registry.on_disk(family) is None  # the configuration is needed as well
    cached(no_network, repository, folder / "config.json")
    assert registry.on_disk(family) is not None
    digest = state_digest(build(f"{family}={folder}"))
    assert state_digest(build(family)) == digest
    cached(no_network, "somebody/else", folder / "model.safetensors", folder / "config.json")
    assert state_digest(build(f"{family}=somebody/else")) == digest


@pytest.mark.parametrize("family", ["blip", "blip2", "align", "owlv2"])
def test_towers_take_another_size(family: str, saved: Any) -> None:
    backbone = build(f"{family}={saved(family)[1]}", image_size=48)
    assert backbone.transform.size == 48
    features = backbone.eval()(torch.rand(2, 3, 48, 48))
    assert features.shape == (2, backbone.num_features)
    assert features.isfinite().all()


FIRST = (published.CLIP[0][0], published.CLIP[1][0])  # mean and std of red
# preprocessor_config.json as published: of BLIP, of ALIGN, of OWLv2, and of older versions of the library.
PROCESSORS: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 3,
      "size": {"height": 384, "width": 384}, "rescale_factor": 1 / 255}, (384, 384, "bicubic", 0.1, 0.4)),
    ({"crop_size": {"height": 289, "width": 289}, "do_center_crop": True, "do_normalize": False, "do_rescale": True,
      "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2, "rescale_factor": 2 / 255,
      "rescale_offset": True, "size": {"height": 346, "width": 346}}, (289, 346, "bilinear", 0.5, 0.5)),
    ({"do_pad": True, "resample": 2, "size": {"height": 960, "width": 960}}, (960, 960, "bilinear", *FIRST)),
    ({"size": [224, 224], "crop_size": 224, "do_center_crop": True}, (224, 224, "bicubic", *FIRST)),
    ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True}, (224, 256, "bicubic", *FIRST)),
]  # fmt: skip


@pytest.mark.parametrize(("processor", "expected"), PROCESSORS)
def test_towers_bring_their_transform(processor: dict[str, Any], expected: tuple[Any, ...]) -> None:
    t = published._transform(processor, published.TOWERS["blip"].transform)
    assert (t.size, t.resize, t.interpolation) == expected[:3]
    assert (t.mean[0], t.std[0]) == pytest.approx(expected[3:])


def test_the_processor_in_a_folder_counts(saved: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(saved("blip")[1], tmp_path / "b")
    processor = {"size": {"height": 48, "width": 48}, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    backbone = build(f"blip={folder}")
    assert (backbone.transform.size, backbone.transform.mean) == (48, (0.1, 0.2, 0.3))
    assert build(f"blip={saved('blip')[1]}").transform.size == 32  # without one, the configuration's


def test_folders_that_are_no_tower(saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "holds a model of the type owlv2, not blip" in complaint(f"blip={saved('owlv2')[1]}")
    assert "there is no config.json" in complaint(f"blip={tmp_path}")
    assert "there is no such folder" in complaint("blip=/no/such/folder")
    shutil.copy(saved("blip")[1] / "config.json", tmp_path)
    assert "neither model.safetensors nor pytorch_model.bin" in complaint(f"blip={tmp_path}")
    (tmp_path / "config.json").write_text("{")
    assert "can't be read as JSON" in complaint(f"blip={tmp_path}")
    (tmp_path / "config.json").write_text("[]")
    assert "of the type None, not blip" in complaint(f"blip={tmp_path}")
    (tmp_path / "config.json").write_text('{"model_type": "blip", "vision_config": {"hidden_size": "many"}}')
    assert "config.json of blip describes no network" in complaint(f"blip={tmp_path}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install transformers" in complaint(f"blip={saved('blip')[1]}")


def test_nothing_runs_code_from_a_folder(saved: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(saved("blip")[1], tmp_path / "b")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\n")
    build(f"blip={folder}")
    assert not (tmp_path / "harm").exists()


# --- keeping a view ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cnn", "timm:test_vit", "esvit", "blip", "align", "pixels"])
def test_a_view_is_saved_and_named_later(name: str, saved: Any, tmp_path: Path) -> None:
    """Also built again from its record alone, as a checkpoint does it: none of its own files is needed any more."""
    spec = {"pixels": "pixels", "cnn": "cnn", "timm:test_vit": "timm:test_vit=none"}.get(name)
    if name == "esvit":
        esvit_checkpoint(tmp_path / "e.pth", 8, (1, 1), 7, (1, 2))
        spec = f"esvit={tmp_path / 'e.pth'}"
    backbone = build(spec or f"{name}={saved(name)[1]}", image_size=112 if name == "esvit" else None)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.01  # as if it had been fine-tuned
    record = json.loads(json.dumps(registry.view_record(backbone)))
    again = restored_view(record, native_size=0, points=False, seed=3)
    again.load_state_dict(backbone.state_dict())
    assert again.transform == backbone.transform
    assert (again.name, again.pretrained, again.num_features) == (
        backbone.name,
        backbone.pretrained,
        backbone.num_features,
    )
    same_features(again, backbone.eval().net)
    if name == "pixels":
        return
    path = tmp_path / "fine-tuned.safetensors"
    save_view(path, backbone)
    taken = build(f"{name}={path}")
    assert taken.pretrained
    assert taken.transform == backbone.transform
    assert state_digest(taken) == state_digest(backbone)
    assert f"was saved from {backbone.name}, not from swav" in complaint(f"swav={path}")
    assert "leave out --image_size" in complaint(f"{name}={path}", image_size=48)
    assert not list(tmp_path.glob(".part-*"))


def test_a_saved_short_name_is_taken_under_both_names(shallow: Any, tmp_path: Path) -> None:
    backbone = build("dinov2=none")
    save_view(tmp_path / "v.safetensors", backbone)
    for name in ("dinov2", "timm:vit_base_patch14_dinov2.lvd142m"):
        assert state_digest(build(f"{name}={tmp_path / 'v.safetensors'}")) == state_digest(backbone)


# --- the list ---------------------------------------------------------------------------------------------------------


def test_the_list(tmp_path: Path, no_network: Path) -> None:
    cached(no_network, "timm/vit_base_patch16_clip_224.openai")
    snapshot = no_network / "models--timm--vit_base_patch16_clip_224.openai" / "snapshots" / "0123"
    (snapshot / "model.safetensors").write_bytes(b"weights")
    begin = time.monotonic()
    outcome = run("--list_views", cwd=tmp_path)
    assert time.monotonic() - begin < 2
    assert outcome.code == 0, outcome.err
    assert not list(tmp_path.glob("results*"))
    lines = outcome.out.splitlines()
    for word in ("name", "source", "parameters", "features", "licence", "ImageNet labels", "on this disk"):
        assert word in lines[0]
    rows = {line.split()[0]: line for line in lines[1 : 1 + len(CATALOGUE)]}
    assert list(rows) == list(CATALOGUE)
    assert rows["clip"].endswith("yes")
    assert rows["dinov2"].endswith("no")
    assert "85.7 M" in rows["dinov2"]
    assert "CC-BY-NC-4.0" in rows["mae"]
    assert "yes, at its start" in rows["blip"]
    assert rows["pixels"].endswith("none needed")
    assert all(len(line) <= 140 for line in lines)


def test_the_page_on_views_says_the_same() -> None:
    text = (ROOT / "docs" / "views.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")
    ]
    page = {row[0]: row for row in rows if row[0] in CATALOGUE}
    assert list(page) == list(CATALOGUE)
    for name, entry in CATALOGUE.items():
        cells = page[name]
        assert cells[-1] == entry.labels
        if name not in registry.RAW:
            assert cells[1:4] == [str(entry.size), f"{entry.parameters:.1f} M", str(entry.features)]
            assert cells[5] == entry.licence
    commands = [line for line in text.splitlines() if line.startswith("python MPL.py")]
    assert commands
    for command in commands:
        assert check_views(args.parse(shlex.split(command)[2:]).cotraining.views) is not None


def test_timms_licences_are_those_that_timm_states() -> None:
    import timm

    for name in TIMM:
        stated = timm.models.get_pretrained_cfg(CATALOGUE[name].source.removeprefix("timm:")).license
        ours = CATALOGUE[name].licence.lower().replace(" ", "-")
        assert ours == stated, name


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CATALOGUE if name not in registry.RAW])
def test_the_list_says_what_the_networks_are(name: str) -> None:
    """At full size, but without memory: shapes alone are computed."""
    if name in published.TOWERS:
        pytest.importorskip("transformers")
    entry = CATALOGUE[name]
    with torch.device("meta"):
        backbone = build(f"{name}=none").eval()
        size = backbone.transform.size
        features = backbone(torch.zeros(2, 3, size, size))
    assert not backbone.pretrained
    assert features.shape == (2, entry.features)
    assert size == entry.size
    assert round(sum(parameter.numel() for parameter in backbone.parameters()) / 1e6, 1) == entry.parameters
