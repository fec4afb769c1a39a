"""Decoding: colour modes, orientation, resizing, and files of any size and shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corpus import png_of_16_bits
from image_folders import MODES, PHONE_HEIC, noise, transform
from transfermpl import data
from transfermpl.images.scan import content_hash


def decoded(file: Path, **options: object) -> np.ndarray:
    """uint8 [H, W, 3]."""
    hashes = np.array([content_hash(file.read_bytes())], dtype=np.uint64)
    dataset = data.Dataset("x", (), (file.name,), np.zeros(1), hashes, ("",), "photos", 0, sources=(str(file),))
    tensor = dataset.read(0, transform(**options))  # type: ignore[arg-type]
    assert tensor.dtype == torch.uint8
    assert tensor.is_contiguous()
    return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", MODES)
def test_colour_modes(tmp_path: Path, name: str) -> None:
    image, colour = MODES[name]
    image.save(tmp_path / name)
    pixels = decoded(tmp_path / name).astype(int)
    assert pixels.shape == (8, 8, 3)
    assert np.abs(pixels - colour).max() <= 2, pixels[0, 0]


def test_16_bit_rgb(tmp_path: Path) -> None:
    colours = np.broadcast_to(257 * np.array([10, 200, 90]), (8, 8, 3))
    (tmp_path / "x.png").write_bytes(png_of_16_bits(colours))
    assert decoded(tmp_path / "x.png")[3, 3].tolist() == [10, 200, 90]


def test_what_a_phone_writes(tmp_path: Path) -> None:
    pytest.importorskip("pi_heif")
    (tmp_path / "x.heic").write_bytes(PHONE_HEIC)
    pixels = decoded(tmp_path / "x.heic", size=64).astype(int)
    assert np.abs(pixels[:, :28] - (220, 30, 30)).max() < 30
    assert np.abs(pixels[:, 36:] - (30, 30, 220)).max() < 30


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_the_first_frame_counts(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue", "lime")]
    frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:], duration=50)
    assert np.abs(decoded(tmp_path / f"x.{suffix}").astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_rotation(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = Image.new("RGB", (32, 32))
    for corner, colour in zip(((0, 0), (16, 0), (0, 16)), ("red", "lime", "blue"), strict=True):
        upright.paste(colour, (*corner, corner[0] + 16, corner[1] + 16))
    # What a camera held that way has stored: the inverse of what the tag asks for.
    undo = [None, 0, 3, 1, 5, 2, 6, 4][orientation - 1]
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"x.{suffix}", exif=exif)
    pixels = decoded(tmp_path / f"x.{suffix}", size=32).astype(int)
    for (y, x), rgb in (((8, 8), (255, 0, 0)), ((8, 24), (0, 255, 0)), ((24, 8), (0, 0, 255))):
        assert np.abs(pixels[y, x] - rgb).max() < 12


def test_broken_exif_does_not_spoil_the_picture(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (9, 90, 200)).save(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.abs(decoded(tmp_path / "x.jpg").astype(int) - (9, 90, 200)).max() < 6


@pytest.mark.parametrize("shape", [(60, 40), (41, 77), (16, 16), (9, 30)])
@pytest.mark.parametrize("how", ["bilinear", "bicubic", "nearest"])
def test_as_torchvision_resizes(tmp_path: Path, shape: tuple[int, int], how: str) -> None:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    image = Image.fromarray(noise(*shape, 3))
    image.save(tmp_path / "x.png")
    expected = Compose([Resize(20, InterpolationMode(how)), CenterCrop(16)])(image)
    assert np.array_equal(decoded(tmp_path / "x.png", size=16, resize=20, how=how), np.asarray(expected))


def test_a_large_jpeg_is_drafted_but_looks_alike(tmp_path: Path) -> None:
    wave = np.sin(np.arange(800) / 40)
    grey = np.rint(127 + 120 * np.outer(wave, wave)).astype(np.uint8)
    image = Image.fromarray(np.repeat(grey[..., None], 3, 2))
    image.save(tmp_path / "x.jpg", quality=95)
    image.save(tmp_path / "x.png")
    drafted, whole = (decoded(tmp_path / f"x.{suffix}", size=32).astype(int) for suffix in ("jpg", "png"))
    assert np.abs(drafted - whole).max() <= 6


def test_a_long_strip_costs_no_memory(tmp_path: Path) -> None:
    Image.new("RGB", (60000, 1), "red").save(tmp_path / "x.png")
    assert decoded(tmp_path / "x.png", size=64)[:, :, 0].min() == 255
