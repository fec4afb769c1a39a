"""The one augmentation: weak and strong, on batches, on any device.

Every parameter is drawn per image from (content hash, draw, position) by a counter hash, so an image's k-th strong view
is the same in every run, batch and process. All of it happens on [0, 1] images; normalisation is the backbone's.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..utils import counter_uniform, key, to_device

NUMBERS = 24  # random numbers an image and draw; a fixed count, so that adding a step shifts no other


@dataclass(frozen=True)
class Strength:
    """How far one kind of augmentation may go; each number is the largest change in either direction.

    zoom: the side of the part that is cut out, at least this share of the image's (1: all of it).
    """

    zoom: float = 1.0
    shift: float = 0.0  # share of the side
    rotation: float = 0.0  # degrees
    shear: float = 0.0  # degrees
    stretch: float = 0.0  # log of the aspect ratio
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # degrees around the grey axis
    grey: float = 0.0  # probability
    blur: float = 0.0  # probability
    noise: float = 0.0  # standard deviation
    erase: float = 0.0  # largest side of the erased rectangle, share of the image's


@dataclass(frozen=True)
class Recipe:
    """The weak and the strong augmentation of a data set; `padding` is what lies beyond an image's edge."""

    weak: Strength
    strong: Strength
    flip: bool = True
    padding: str = "reflection"


PHOTOS = Recipe(
    weak=Strength(zoom=0.85, shift=0.05),
    strong=Strength(
        zoom=0.6, shift=0.1, rotation=25, shear=10, stretch=0.2, brightness=0.3, contrast=0.4, saturation=0.5, hue=15,
        grey=0.1, blur=0.3, noise=0.04, erase=0.4,
    ),
)  # fmt: skip
# Digits turn into each other when mirrored or turned far, and lose strokes when cut.
DIGITS = Recipe(
    weak=Strength(zoom=0.95, shift=0.06),
    strong=Strength(
        zoom=0.85, shift=0.15, rotation=20, shear=15, stretch=0.2, brightness=0.2, contrast=0.4, noise=0.1, erase=0.35
    ),
    flip=False,
    padding="zeros",
)
POINT_NOISE = 0.15  # standard deviation of the strong view of a 2-D point; the two moons lie about 0.5 apart


def recipe_for(kind: str, flip: bool | None) -> Recipe:
    """The recipe of a data set's kind (`photos`, `digits`, `points`); `flip` overrules its own choice."""
    recipe = DIGITS if kind == "digits" else PHOTOS
    return recipe if flip is None else Recipe(recipe.weak, recipe.strong, flip, recipe.padding)


def augment(images: torch.Tensor, keys: np.ndarray, draws: np.ndarray, view: str, recipe: Recipe) -> torch.Tensor:
    """One view of each image.

    images: uint8 [N, 3, S, S] (or float points [N, 2]); keys: uint64 [N] content hashes; draws: int64 [N];
    view: `eval`, `weak` or `strong`. Returns float32 [N, 3, S, S] in [0, 1] (points: [N, 2]) on the images' device.
    """
    if images.ndim == 2:
        return _augment_points(images, keys, draws, view)
    pixels = images.float().div_(255)
    if view == "eval":
        return pixels
    strength = recipe.weak if view == "weak" else recipe.strong
    uniform = counter_uniform(keys, draws, NUMBERS, view)
    signed = 2 * uniform - 1
    pixels = _move(pixels, _affine(uniform, signed, strength, recipe.flip), recipe.padding)
    blurred = np.flatnonzero(uniform[:, 9] < strength.blur)
    if len(blurred):
        places = to_device(blurred, pixels.device)
        pixels[places] = _blur(pixels[places], _column(pixels, uniform[blurred, 10]))
    if any((strength.brightness, strength.contrast, strength.saturation, strength.hue, strength.grey)):
        pixels = _recolour(pixels, *_colour_matrix(uniform, signed, strength))
    if strength.noise:
        pixels = _add_noise(pixels, uniform[:, 17:20], strength.noise)
    if strength.erase:
        pixels = _erase(pixels, uniform[:, 20:24], strength.erase)
    return pixels.clamp_(0, 1)


def _augment_points(points: torch.Tensor, keys: np.ndarray, draws: np.ndarray, view: str) -> torch.Tensor:
    if view != "strong":
        return points.float()
    uniform = counter_uniform(keys, draws, 2, view)
    radius = np.sqrt(-2 * np.log1p(-uniform[:, :1]))  # Box and Muller 1958
    angle = 2 * np.pi * uniform[:, 1:]
    noise = radius * np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    return points.float() + POINT_NOISE * _to(points, noise)


def _column(like: torch.Tensor, values: np.ndarray) -> torch.Tensor:
    """Per-image numbers [N] as [N, 1, 1, 1] on the images' device."""
    return _to(like, values).view(-1, 1, 1, 1)


def _to(like: torch.Tensor, values: np.ndarray) -> torch.Tensor:
    return to_device(values.astype(np.float32), like.device)


def _affine(uniform: np.ndarray, signed: np.ndarray, strength: Strength, flip: bool) -> np.ndarray:
    """[N, 2, 3] maps from the output's coordinates to the input's, both in [-1, 1]."""
    side = 1 - (1 - strength.zoom) * uniform[:, 0]
    stretch = np.exp(0.5 * strength.stretch * signed[:, 1])
    mirror = np.where(flip & (uniform[:, 2] < 0.5), -1.0, 1.0)
    angle = np.deg2rad(strength.rotation) * signed[:, 3]
    shear = np.tan(np.deg2rad(strength.shear) * signed[:, 4])
    cos, sin = np.cos(angle), np.sin(angle)
    width, height = mirror * side * stretch, side / stretch
    # The part that is cut out may lie anywhere inside the image, and `shift` beyond.
    room = 1 - side + 2 * strength.shift
    rows = [
        [cos * width, (cos * shear - sin) * height, room * signed[:, 5]],
        [sin * width, (sin * shear + cos) * height, room * signed[:, 6]],
    ]
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


def _move(pixels: torch.Tensor, theta: np.ndarray, padding: str) -> torch.Tensor:
    """Sample each image where its map says. (`affine_grid` takes half as long as the sampling; two sums do not.)"""
    side = pixels.shape[-1]
    maps = _to(pixels, theta)
    position = torch.linspace(1 / side - 1, 1 - 1 / side, side, device=pixels.device)
    grid = pixels.new_empty((len(pixels), side, side, 2))
    for axis in (0, 1):
        along_x = maps[:, axis, 0, None] * position + maps[:, axis, 2, None]
        along_y = maps[:, axis, 1, None] * position
        torch.add(along_x[:, None, :], along_y[:, :, None], out=grid[..., axis])
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _blur(pixels: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Blend with a coarser copy: what a Gaussian does, without a kernel for each image."""
    side = pixels.shape[-1]
    factor = max(2, side // 56)
    coarse = F.avg_pool2d(pixels, factor, ceil_mode=True, count_include_pad=False)
    smooth = F.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False)
    return torch.lerp(pixels, smooth, amount)


def _colour_matrix(uniform: np.ndarray, signed: np.ndarray, strength: Strength) -> tuple[np.ndarray, np.ndarray]:
    """Per image a matrix [N, 3, 3] and an offset [N, 3]: hue, saturation, contrast about mid-grey, brightness."""
    count = len(uniform)
    axis = np.full((3, 3), 1 / 3)  # projects a colour onto the grey axis
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    angle = np.deg2rad(strength.hue) * signed[:, 11].reshape(-1, 1, 1)
    turn = axis + np.cos(angle) * (np.eye(3) - axis) + np.sin(angle) * cross  # Rodrigues' rotation
    luma = np.broadcast_to(np.array([0.299, 0.587, 0.114]), (3, 3))
    saturation = 1 + strength.saturation * signed[:, 12]
    saturation = np.where(uniform[:, 13] < strength.grey, 0, saturation).reshape(-1, 1, 1)
    contrast = (1 + strength.contrast * signed[:, 14]).reshape(-1, 1, 1)
    matrix = contrast * ((luma + saturation * (np.eye(3) - luma)) @ turn)
    offset = 0.5 * (1 - contrast) + 0.5 * strength.brightness * signed[:, 15].reshape(-1, 1, 1)
    return matrix, np.broadcast_to(offset.reshape(count, 1), (count, 3))


def _recolour(pixels: torch.Tensor, matrix: np.ndarray, offset: np.ndarray) -> torch.Tensor:
    flat = torch.baddbmm(_to(pixels, offset).unsqueeze(2), _to(pixels, matrix), pixels.flatten(2))
    return flat.view_as(pixels)


@functools.lru_cache(maxsize=4)
def _noise_field(side: int, device: torch.device) -> torch.Tensor:
    field = torch.randn(3, 2 * side, 2 * side, generator=torch.Generator().manual_seed(key("noise field")))
    return field.to(device)


def _add_noise(pixels: torch.Tensor, uniform: np.ndarray, deviation: float) -> torch.Tensor:
    """Each image gets its own window of one fixed field of noise: a lookup instead of S x S hashes."""
    side = pixels.shape[-1]
    field = _noise_field(side, pixels.device)
    corner = (uniform[:, :2] * side).astype(np.int64)
    windows = torch.stack([field[:, y : y + side, x : x + side] for y, x in corner.tolist()])
    return torch.addcmul(pixels, windows, _column(pixels, deviation * uniform[:, 2]))


def _erase(pixels: torch.Tensor, uniform: np.ndarray, largest: float) -> torch.Tensor:
    """A grey rectangle at a random place (Zhong et al. 2020), for a quarter of the images."""
    side = pixels.shape[-1]
    size = largest * (2 * uniform[:, :2] - 1).clip(min=0)
    position = torch.linspace(0.5 / side, 1 - 0.5 / side, side, device=pixels.device)
    centre, half = _to(pixels, uniform[:, 2:]), _to(pixels, size / 2)
    inside = (position - centre[:, :, None]).abs() < half[:, :, None]  # [N, 2, S]
    box = inside[:, 0, :, None] & inside[:, 1, None, :]
    return pixels.masked_fill(box.unsqueeze(1), 0.5)
