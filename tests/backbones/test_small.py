"""The small backbones that learn from scratch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from networks import build, equal
from transfermpl.models import Network, build_head
from transfermpl.utils import UserError


@pytest.mark.parametrize("name", ["cnn", "wrn28_2", "mlp"])
@pytest.mark.parametrize("size", [8, 33])
def test_small_backbones(name: str, size: int) -> None:
    backbone = build(name, image_size=size)
    assert backbone(torch.rand(2, 3, size, size)).shape == (2, backbone.num_features)
    assert not backbone.pretrained


def test_wrn28_2_has_the_published_number_of_parameters() -> None:
    network = Network(build("wrn28_2"), build_head(128, 10, seed_key=(0,)))
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_467_610


def test_points_take_an_mlp() -> None:
    backbone = build(points=True, default_name="mlp")
    points = torch.randn(5, 2)
    assert torch.equal(backbone(points), backbone.net(points))
    assert backbone.num_features == 64
    with pytest.raises(UserError, match="use --model_name mlp"):
        build("cnn", points=True)


@pytest.mark.parametrize(("native", "size"), [(0, 32), (8, 16), (32, 32)])
def test_small_backbones_follow_the_data(native: int, size: int) -> None:
    transform = build("cnn", native_size=native).transform
    assert (transform.size, transform.resize) == (size, size)


def test_small_backbones_take_files(tmp_path: Path) -> None:
    torch.save(build("cnn", seed=4).net.state_dict(), tmp_path / "c.pt")
    backbone = build("cnn", tmp_path / "c.pt")
    assert equal(backbone, build("cnn", seed=4))
    assert backbone.pretrained
    assert not build("cnn", "default").pretrained
