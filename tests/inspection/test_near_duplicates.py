"""Nearest neighbours, near-duplicates, outliers and doubtful labels, on arrays with planted faults."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from runs import ROOT, photograph
from transfermpl.features import nearest
from transfermpl.inspection import label_errors, near_duplicates

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
def strangers() -> np.ndarray:
    return np.stack([thumbnail(photograph(seed)) for seed in range(40)])


# --- neighbours -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "count"), [(0, 3), (1, 3), (2, 3), (4, 3), (50, 3), (50, 60)])
def test_blocks_find_what_a_whole_matrix_finds(monkeypatch: pytest.MonkeyPatch, total: int, count: int) -> None:
    monkeypatch.setattr(nearest, "BLOCK", 7)
    monkeypatch.setattr(nearest, "CHUNK", 11)
    rows = nearest.unit(np.random.default_rng(0).normal(size=(total, 5)))
    found = nearest.nearest(rows, count, CPU)
    whole = rows @ rows.T
    np.fill_diagonal(whole, -2)
    width = max(0, min(count, total - 1))
    assert found.rows.shape == found.similarity.shape == (total, width)
    assert np.allclose(found.similarity, -np.sort(-whole, axis=1)[:, :width], atol=1e-6)
    assert np.allclose(np.take_along_axis(whole, found.rows, axis=1), found.similarity, atol=1e-6)
    assert all(row not in others for row, others in enumerate(found.rows.tolist()))


@pytest.mark.slow
def test_memory_grows_with_the_images_and_not_with_their_square() -> None:
    code = (
        "import resource, numpy as np, torch\nfrom transfermpl.inspection import near_duplicates as suspects\n"
        "rows = suspects.unit(np.random.default_rng(0).normal(size=(20_000, 512)).astype(np.float32))\n"
        "suspects.nearest(rows[:3000], 20, torch.device('cpu'))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "suspects.nearest(rows, 20, torch.device('cpu'))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    # The whole matrix would be 1,600 MB, a block of it is 32.
    assert float(done.stdout) < 200


def test_what_lies_far_from_all_others_is_an_outlier() -> None:
    random = np.random.default_rng(0)
    rows = np.concatenate([random.normal(0, 0.3, (200, 8)) + 1, random.normal(0, 0.3, (200, 8)) + np.arange(8)])
    rows[17] = [-3, 2, -3, 2, -3, 2, -3, 2]
    far = nearest.outliers(nearest.nearest(nearest.unit(rows), 10, CPU))
    assert far.argmax() == 17
    assert far[17] > 5
    assert abs(float(np.median(far))) < 1e-9
    assert nearest.outliers(nearest.nearest(rows[:1], 10, CPU)).tolist() == [0]


# --- near-duplicates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", IN_PLACE)
def test_copies_are_found_without_features(strangers: np.ndarray, change: str) -> None:
    copy = thumbnail(IN_PLACE[change](photograph(5)))
    alike = near_duplicates.near_duplicates(np.concatenate([strangers, copy[None]]), None, 0.65, CPU)
    assert alike.pairs.tolist() == [[5, 40]]
    assert alike.scores[0] > 0.9


@pytest.mark.parametrize("change", MOVED)
def test_moved_copies_are_found_where_features_are_alike(strangers: np.ndarray, change: str) -> None:
    images = np.concatenate([strangers, thumbnail(MOVED[change](photograph(5)))[None]])
    features = np.eye(41, dtype=np.float32)
    features[40] = features[5]
    # So are the features of two strangers: pixels tell them apart.
    features[7] = features[6]
    neighbours = nearest.nearest(features, 3, CPU)
    assert near_duplicates.near_duplicates(images, None, 0.65, CPU).pairs.tolist() == []
    alike = near_duplicates.near_duplicates(images, neighbours, 0.65, CPU)
    assert alike.pairs.tolist() == [[5, 40]]
    assert alike.candidates == 2
    assert not alike.cut_off
    assert near_duplicates.near_duplicates(images, neighbours, 1.0, CPU).pairs.tolist() == []


def test_empty_images_are_like_nothing() -> None:
    blank = np.full((3, near_duplicates.SIDE, near_duplicates.SIDE), 90, dtype=np.uint8)
    blank[1] += 1
    blank[2, 20:, :] += 2
    assert near_duplicates.near_duplicates(blank, None, 0.1, CPU).pairs.tolist() == []
    assert float(near_duplicates.alignment(torch.from_numpy(blank), torch.from_numpy(blank[::-1].copy())).max()) < 0.65


def test_too_many_candidates_are_cut_off_and_said_so(strangers: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "MOST_CANDIDATES", 2)
    alike = near_duplicates.near_duplicates(np.concatenate([strangers[:3], strangers[:3]]), None, 0.65, CPU)
    assert (alike.candidates, alike.cut_off, len(alike.pairs)) == (2, True, 2)


def test_no_images_have_no_duplicates() -> None:
    empty = np.zeros((0, near_duplicates.SIDE, near_duplicates.SIDE), dtype=np.uint8)
    assert len(near_duplicates.near_duplicates(empty, None, 0.65, CPU).pairs) == 0


def test_pairs_join_into_groups() -> None:
    found = near_duplicates.groups(np.array([[0, 3], [3, 4]]), 6)
    assert found[0] == found[3] == found[4]
    assert len(set(found.tolist())) == 4
    assert len(set(near_duplicates.groups(np.zeros((0, 2), dtype=np.int64), 3).tolist())) == 3


# --- wrong labels -----------------------------------------------------------------------------------------------------


def blobs(count: int = 120, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    labels = np.arange(count) % classes
    return (random.normal(0, 0.3, (count, 12)) + 3 * np.eye(12)[labels]).astype(np.float32), labels


def test_swapped_labels_are_ranked_on_top_with_the_right_class() -> None:
    features, right = blobs()
    given = right.copy()
    swapped = np.array([3, 10, 29, 50, 71, 104])
    given[swapped] = (right[swapped] + 1) % 3
    doubts = label_errors.doubtful_labels(features, given, np.arange(120), 3, 0)
    doubted = np.flatnonzero(doubts.suggested >= 0)
    # One of the six is less sure than an image of its class usually is.
    assert set(doubted.tolist()) <= set(swapped.tolist())
    assert len(doubted) == 5
    assert doubts.suggested[doubted].tolist() == right[doubted].tolist()
    assert np.flatnonzero(doubts.margin > 0).tolist() == doubted.tolist()
    assert set(np.argsort(doubts.probabilities[np.arange(120), given])[:6].tolist()) == set(swapped.tolist())
    assert doubts.accuracy == pytest.approx(114 / 120, abs=0.02)
    assert np.allclose(doubts.probabilities.sum(axis=1), 1)


def test_near_copies_with_the_same_wrong_label_do_not_vouch_for_each_other() -> None:
    features, labels = blobs(60)
    copies = np.repeat(features[:1], 12, axis=0) + np.random.default_rng(0).normal(0, 0.01, (12, 12))
    features = np.concatenate([features, copies.astype(np.float32)])
    labels = np.concatenate([labels, np.full(12, 2)])  # in truth of class 0
    alone = label_errors.doubtful_labels(features, labels, np.arange(72), 3, 0).suggested[60:]
    together = label_errors.doubtful_labels(features, labels, np.array([*range(60), *[60] * 12]), 3, 0).suggested[60:]
    assert (together == 0).all()
    assert (alone == 0).sum() < 12


def test_an_unknown_label_is_predicted_and_not_doubted() -> None:
    features, labels = blobs()
    given = labels.copy()
    given[:9] = -1
    doubts = label_errors.doubtful_labels(features, given, np.arange(120), 3, 0)
    assert (doubts.suggested[:9] == -1).all()
    assert doubts.probabilities[:9].argmax(axis=1).tolist() == labels[:9].tolist()


@pytest.mark.parametrize("missing", [1, 3])
def test_a_class_without_a_known_label_is_not_judged(missing: int) -> None:
    features, labels = blobs(classes=4)
    labels = np.where(labels == missing, -1, labels)
    doubts = label_errors.doubtful_labels(features, labels, np.arange(120), 4, 0)
    assert doubts.probabilities.shape == (120, 4)
    assert doubts.judged.tolist() == [label != missing for label in range(4)]
    assert (doubts.probabilities[:, missing] == 0).all()
    assert (doubts.suggested == -1).all()


def test_one_classifier_learns_from_so_many_images_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs()
    monkeypatch.setattr(label_errors, "LEARN_ROWS", 30)
    assert label_errors.doubtful_labels(features, labels, np.arange(120), 3, 0).accuracy > 0.9
