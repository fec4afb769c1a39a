"""One augmentation for all: each image's own parameters, the same in any batch, in [0, 1], and none in evaluation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfermpl.images.augment import DIGITS, PHOTOS, Recipe, Strength, augment, recipe_for

RANDOM = np.random.default_rng(0)
RECIPES = {"photos": PHOTOS, "digits": DIGITS}


def pictures(count: int, side: int = 24) -> torch.Tensor:
    return torch.from_numpy(RANDOM.integers(0, 256, (count, 3, side, side), dtype=np.uint8))


def keys(count: int) -> np.ndarray:
    return RANDOM.integers(0, 2**64, count, dtype=np.uint64)


def draws(count: int, draw: int = 0) -> np.ndarray:
    return np.full(count, draw)


def only(**strength: float) -> Recipe:
    """A strong view that does one thing alone."""
    return Recipe(Strength(), Strength(**strength), flip=False)


@pytest.mark.parametrize("kind", RECIPES)
def test_evaluation_shows_the_image_itself(kind: str) -> None:
    images = pictures(5)
    shown = augment(images, keys(5), draws(5), "eval", RECIPES[kind])
    assert shown.dtype == torch.float32
    assert (shown * 255).round().to(torch.uint8).equal(images)


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("view", ["weak", "strong"])
def test_a_view_does_not_hang_on_the_batch(kind: str, view: str) -> None:
    images, names, which = pictures(40), keys(40), np.arange(40) % 3
    whole = augment(images, names, which, view, RECIPES[kind])
    order = RANDOM.permutation(40)
    mixed = augment(images[torch.from_numpy(order)], names[order], which[order], view, RECIPES[kind])
    assert mixed.equal(whole[torch.from_numpy(order)])
    for size in (1, 7):
        parts = [
            augment(images[i : i + size], names[i : i + size], which[i : i + size], view, RECIPES[kind])
            for i in range(0, 40, size)
        ]
        assert torch.cat(parts).equal(whole)


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("view", ["weak", "strong"])
def test_a_view_hangs_on_content_and_draw_alone(kind: str, view: str) -> None:
    image, recipe = pictures(1), RECIPES[kind]
    names = keys(2)
    first = augment(image, names[:1], draws(1, 3), view, recipe)
    torch.manual_seed(5)
    assert augment(image, names[:1], draws(1, 3), view, recipe).equal(first)
    assert not augment(image, names[:1], draws(1, 4), view, recipe).equal(first)
    assert not augment(image, names[1:], draws(1, 3), view, recipe).equal(first)
    assert not augment(image, names[:1], draws(1, 3), "weak" if view == "strong" else "strong", recipe).equal(first)


def test_neither_images_nor_the_global_random_state_are_touched() -> None:
    images = pictures(6)
    before, state = images.clone(), torch.get_rng_state()
    augment(images, keys(6), draws(6), "strong", PHOTOS)
    assert images.equal(before)
    assert torch.get_rng_state().equal(state)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**64 - 1), st.integers(0, 999), st.sampled_from(["weak", "strong"]), st.sampled_from([0, 7, 255]),
    st.sampled_from([8, 16, 33]), st.sampled_from(sorted(RECIPES)),
)  # fmt: skip
def test_values_stay_between_0_and_1(name: int, draw: int, view: str, grey: int, side: int, kind: str) -> None:
    images = torch.full((1, 3, side, side), grey, dtype=torch.uint8)
    shown = augment(images, np.array([name], dtype=np.uint64), np.array([draw]), view, RECIPES[kind])
    assert shown.shape == (1, 3, side, side)
    assert bool(torch.isfinite(shown).all())
    assert 0 <= float(shown.min()) <= float(shown.max()) <= 1


def test_each_image_is_mirrored_by_its_own_coin() -> None:
    ramp = torch.arange(24, dtype=torch.uint8).mul(10).view(1, 1, 1, 24).expand(400, 3, 24, 24).contiguous()
    recipe = dataclasses.replace(only(), flip=True)
    shown = augment(ramp, keys(400), draws(400), "strong", recipe)
    mirrored = shown[:, 0, 0, 0] > shown[:, 0, 0, -1]
    assert 150 < int(mirrored.sum()) < 250
    torch.testing.assert_close(shown[mirrored][0], ramp[0].flip(2).float() / 255, rtol=0, atol=1e-5)
    torch.testing.assert_close(shown[~mirrored][0], ramp[0].float() / 255, rtol=0, atol=1e-5)
    never = augment(ramp, keys(400), draws(400), "strong", only())
    assert not (never[:, 0, 0, 0] > never[:, 0, 0, -1]).any()


@pytest.mark.parametrize(
    "strength",
    [
        {"zoom": 0.5}, {"shift": 0.2}, {"rotation": 30}, {"shear": 20}, {"stretch": 0.5}, {"brightness": 0.5},
        {"contrast": 0.5}, {"blur": 1.0}, {"noise": 0.1}, {"contrast": 0.1, "hue": 60},
        {"contrast": 0.1, "saturation": 0.9}, {"contrast": 0.1, "grey": 1.0},
    ],
    ids=lambda s: "-".join(s),
)  # fmt: skip
def test_each_part_changes_the_image(strength: dict[str, float]) -> None:
    images, names = pictures(30), keys(30)
    base = {key: value for key, value in strength.items() if len(strength) > 1 and key == "contrast"}
    plain = augment(images, names, draws(30), "strong", only(**base))
    changed = augment(images, names, draws(30), "strong", only(**strength))
    different = (plain - changed).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert different.float().mean() > 0.8


def test_a_rectangle_is_erased_in_a_quarter_of_the_images() -> None:
    images = torch.full((800, 3, 64, 64), 255, dtype=torch.uint8)
    shown = augment(images, keys(800), draws(800), "strong", only(erase=0.9))
    erased = shown.eq(0.5)
    share = float(erased.any(dim=1).any(dim=1).any(dim=1).float().mean())
    assert 0.19 < share < 0.31
    assert bool((shown.eq(1) | erased).all())
    assert 0.4 < float(erased[:, 0].any(dim=1).float().mean(dim=1).max()) <= 0.92


def test_without_any_strength_nothing_happens() -> None:
    images = pictures(4)
    shown = augment(images, keys(4), draws(4), "strong", only())
    torch.testing.assert_close(shown, images.float() / 255, rtol=0, atol=1e-5)


@pytest.mark.parametrize("field", ["hue", "saturation", "grey"])
def test_colour_parts_do_not_wait_for_contrast(field: str) -> None:
    images, names = pictures(20), keys(20)
    amount = 1.0 if field == "grey" else 0.9 if field == "saturation" else 60.0
    changed = augment(images, names, draws(20), "strong", only(**{field: amount}))
    assert (changed - images.float() / 255).abs().amax() > 1e-2


def test_digits_are_not_mirrored_unless_the_user_says_so() -> None:
    assert not recipe_for("digits", None).flip
    assert recipe_for("digits", True).flip
    assert recipe_for("photos", None).flip
    assert not recipe_for("photos", False).flip
    assert recipe_for("digits", True).strong == DIGITS.strong


def test_points_are_noisy_in_the_strong_view_alone() -> None:
    points, names = torch.randn(3000, 2), keys(3000)
    assert augment(points, names, draws(3000), "eval", PHOTOS).equal(points)
    assert augment(points, names, draws(3000), "weak", PHOTOS).equal(points)
    noise = augment(points, names, draws(3000), "strong", PHOTOS) - points
    assert float(noise.std()) == pytest.approx(0.15, rel=0.05)
    assert noise.mean(dim=0).abs().max() < 0.01
    assert abs(float(np.corrcoef(noise.T.numpy())[0, 1])) < 0.06
    again = augment(points[:5], names[:5], draws(5), "strong", PHOTOS)
    assert again.equal((points + noise)[:5]) or torch.allclose(again, (points + noise)[:5], atol=1e-6)
