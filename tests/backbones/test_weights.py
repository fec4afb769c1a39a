"""Files of weights: what is read, what is refused, what does not fit, and the digest of a state."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from networks import build
from transfermpl.backbones import weights
from transfermpl.utils import UserError


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


def test_heads_of_several_layers_are_left_out() -> None:
    own = build("resnet", image_size=32).net.state_dict()
    assert weights._widened("head.fc.fc2", own) == "head"
    assert weights._widened("head.fc.fc2", {**own, "head.norm.weight": torch.zeros(1)}) == "head.fc"


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
