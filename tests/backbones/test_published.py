"""The published files of SwAV and EsViT and their keys. No network: the files are made here."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from networks import built_view, complaint, esvit_checkpoint, same_features
from transfermpl.backbones import published, registry
from transfermpl.backbones.weights import KeyMap, state_digest

pytestmark = pytest.mark.usefixtures("no_network")


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


@pytest.mark.slow
def test_swavs_published_file(swav_file: tuple[Any, Path], no_network: Path, tmp_path: Path) -> None:
    net, path = swav_file
    backbone = built_view(f"swav={path}")
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
    assert state_digest(built_view("swav")) == state_digest(backbone)


def test_other_keys_in_swavs_file_are_errors(swav_file: tuple[Any, Path], tmp_path: Path) -> None:
    state = torch.load(swav_file[1], weights_only=True)
    state["module.extra.weight"] = state.pop("module.layer4.2.conv3.weight")
    torch.save(state, tmp_path / "x.pth")
    line = complaint(f"swav={tmp_path / 'x.pth'}")
    assert "1 missing (layer4.2.conv3.weight)" in line
    assert "1 unexpected (extra.weight)" in line


@pytest.mark.parametrize(
    ("depths", "window", "old"), [((2, 2, 2, 2), 7, False), ((1, 2, 3, 1), 7, True), ((1, 1), 14, False)]
)
def test_esvits_published_files(depths: tuple[int, ...], window: int, old: bool, tmp_path: Path) -> None:
    from timm.models import swin_transformer as swin

    heads = (1, 2, 4, 8)[: len(depths)]
    path = tmp_path / "checkpoint_best.pth"
    teacher = esvit_checkpoint(path, 8, depths, window, heads, old=old)
    backbone = built_view(f"esvit={path}").eval()
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
    backbone = built_view(f"esvit={path}", image_size=112)
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
