"""The views without weights: pixels and gradients."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from networks import built_view
from runs import make_data
from transfermpl import args, models
from transfermpl.backbones import raw_views
from transfermpl.backbones.backbone import Backbone
from transfermpl.backbones.weights import state_digest
from transfermpl.data import Dataset, find_dataset
from transfermpl.features.bank import FeatureBank, bank_identity
from transfermpl.features.sources import FrozenSource, ImageSource
from transfermpl.images.augment import recipe_for
from transfermpl.utils import UserError

pytestmark = pytest.mark.usefixtures("no_network")  # and random images of one seed
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "native", "size", "features"),
    [("pixels", 8, 16, 768), ("pixels", 28, 28, 2352), ("pixels", 0, 32, 3072), ("pixels", 96, 32, 3072),
     ("gradients", 8, 16, 288), ("gradients", 0, 64, 1568), ("gradients", 32, 32, 1568)],
)  # fmt: skip
def test_views_without_weights_follow_the_data(name: str, native: int, size: int, features: int) -> None:
    backbone = built_view(name, native_size=native)
    assert (backbone.transform.size, backbone.transform.resize) == (size, size)
    assert backbone.num_features == features
    assert built_view(name, native_size=native, image_size=24).transform.size == 24


@pytest.mark.parametrize("name", ["pixels", "gradients"])
def test_views_without_weights_are_frozen_functions(name: str) -> None:
    backbone = built_view(name)
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
    torch.testing.assert_close(built_view("pixels")(images), (images.flatten(1) - 0.5) / 0.25)


def orientations(images: torch.Tensor) -> torch.Tensor:
    """How much of each of the 8 orientations is in an image."""
    count = raw_views.CELLS - 1
    features = built_view("gradients", image_size=32)(images).view(-1, 8, 4, count * count)
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


def test_gradients_depend_on_neither_brightness_nor_contrast() -> None:
    images = torch.rand(2, 3, 32, 32)
    backbone = built_view("gradients", image_size=32)
    torch.testing.assert_close(backbone(0.5 * images + 0.3), backbone(images), atol=0.02, rtol=0)
    assert not backbone(torch.full((1, 3, 32, 32), 0.7)).any()
    norms = backbone(images).view(2, 32, -1).square().sum(dim=1).sqrt()  # a block's
    torch.testing.assert_close(norms, torch.ones_like(norms), atol=0.01, rtol=0)


def test_of_three_colours_the_steepest_counts() -> None:
    images = torch.full((1, 3, 32, 32), 0.5)
    images[:, 1] = ramp(90)[:, 1]
    assert orientations(images)[0].argmax() == 2


# --- in a bank --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return find_dataset(args.Data(data_dir=str(make_data(tmp_path_factory.mktemp("photos"), 4))))


def frozen_source(dataset: Dataset, backbone: Backbone) -> FrozenSource:
    models.set_trainable(backbone, "head")
    recipe = recipe_for(dataset.kind, None)
    return FrozenSource(ImageSource(dataset, backbone.transform, recipe, CPU, workers=0), backbone)


def test_banks_of_views_differ(photos: Dataset) -> None:
    """Neither of them has weights, so names and transforms must do it."""
    sources = [frozen_source(photos, built_view(name, image_size=32)) for name in ("pixels", "gradients")]
    assert len({state_digest(source.backbone) for source in sources}) == 1
    identities = [json.dumps(bank_identity(source, "float16")) for source in sources]
    assert len(set(identities)) == 2


def test_views_of_different_sizes_work_side_by_side(photos: Dataset, tmp_path: Path) -> None:
    rows = np.arange(5)
    for spec in ("pixels", "gradients", "cnn", "timm:test_vit=none"):
        backbone = built_view(spec)
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
        source = frozen_source(digits, built_view(name, native_size=digits.native_size))
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
