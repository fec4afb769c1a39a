"""Near-duplicates, on made photographs and changed copies of them."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from runs import photograph
from transfermpl.features.nearest import nearest
from transfermpl.inspection import near_duplicates

CPU = torch.device("cpu")


def thumbnail(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((near_duplicates.SIDE,) * 2, Image.Resampling.BOX))


def encoded(image: Image.Image) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=40)
    return Image.open(content).convert("RGB")


# What leaves the edges where they are, and what moves them.
IN_PLACE: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded": encoded,
    "a third": lambda image: image.resize((image.width // 3, image.height // 3)),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
}
MOVED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": ImageOps.mirror,
    "cropped": lambda image: image.crop((10, 12, 138, 108)),
    "shifted": lambda image: image.crop((12, 0, 160, 120)),
    "turned": lambda image: image.rotate(2, Image.Resampling.BICUBIC).crop((6, 6, 154, 114)),
}


@pytest.fixture(scope="module")
def others() -> np.ndarray:
    return np.stack([thumbnail(photograph(seed)) for seed in range(40)])


@pytest.mark.parametrize("change", IN_PLACE)
def test_copies_are_found_without_features(others: np.ndarray, change: str) -> None:
    copy = thumbnail(IN_PLACE[change](photograph(5)))
    found = near_duplicates.find_near_duplicates(np.concatenate([others, copy[None]]), None, 0.65, CPU)
    assert found.pairs.tolist() == [[5, 40]]
    assert found.scores[0] > 0.9


@pytest.mark.parametrize("change", MOVED)
def test_moved_copies_are_found_where_features_are_alike(others: np.ndarray, change: str) -> None:
    images = np.concatenate([others, thumbnail(MOVED[change](photograph(5)))[None]])
    features = np.eye(41, dtype=np.float32)
    features[40] = features[5]
    # So are the features of two other images: their pixels differ.
    features[7] = features[6]
    neighbours = nearest(torch.from_numpy(features), 3)
    assert near_duplicates.find_near_duplicates(images, None, 0.65, CPU).pairs.tolist() == []
    found = near_duplicates.find_near_duplicates(images, neighbours, 0.65, CPU)
    assert found.pairs.tolist() == [[5, 40]]
    assert found.candidates == 2
    assert not found.cut_off
    assert near_duplicates.find_near_duplicates(images, neighbours, 1.0, CPU).pairs.tolist() == []


def test_empty_images_are_like_nothing() -> None:
    blank = np.full((3, near_duplicates.SIDE, near_duplicates.SIDE), 90, dtype=np.uint8)
    blank[1] += 1
    blank[2, 20:, :] += 2
    assert near_duplicates.find_near_duplicates(blank, None, 0.1, CPU).pairs.tolist() == []
    assert float(near_duplicates.alignment(torch.from_numpy(blank), torch.from_numpy(blank[::-1].copy())).max()) < 0.65


def test_too_many_candidates_are_cut_off_and_said_so(others: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "MOST_CANDIDATES", 2)
    found = near_duplicates.find_near_duplicates(np.concatenate([others[:3], others[:3]]), None, 0.65, CPU)
    assert (found.candidates, found.cut_off, len(found.pairs)) == (2, True, 2)


def test_no_images_have_no_duplicates() -> None:
    empty = np.zeros((0, near_duplicates.SIDE, near_duplicates.SIDE), dtype=np.uint8)
    assert len(near_duplicates.find_near_duplicates(empty, None, 0.65, CPU).pairs) == 0


def test_pairs_join_into_groups() -> None:
    found = near_duplicates.duplicate_groups(np.array([[0, 3], [3, 4]]), 6)
    assert found[0] == found[3] == found[4]
    assert len(set(found.tolist())) == 4
    assert len(set(near_duplicates.duplicate_groups(np.zeros((0, 2), dtype=np.int64), 3).tolist())) == 3
