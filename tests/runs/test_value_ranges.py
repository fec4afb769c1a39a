"""Images that are not 8-bit: black and white are decided once for a data set, and kept for all that follows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corpus import png_of_16_bits
from image_folders import find, transform
from runs import FROZEN, Outcome, run
from transfermpl.deploy.classifier import load_classifier
from transfermpl.images.decode import SeenValues, value_ranges

LINE = ("--name", "x", "--data_dir", "d", *FROZEN, "--num_labels", 8, "--test_percent", "20%", "--max_steps", 4)


def make_wide(folder: Path, scale: float, dtype: type = np.uint16, count: int = 10) -> Path:
    """Two classes of grey images, dim and bright, of which the brightest pixel has the value `scale`."""
    for number in range(count):
        shades = np.random.default_rng(number).random((2, 16, 16))
        for name, brightness in (("dim", 0.3), ("bright", 1.0)):
            image = shades[int(name == "dim")] * brightness
            (folder / name).mkdir(parents=True, exist_ok=True)
            pixels = (image / image.max() * brightness * scale).astype(dtype)
            Image.fromarray(pixels).save(folder / name / f"{number}.tif")
    return folder


@pytest.mark.parametrize(
    ("kind", "low", "high", "expected"),
    [
        ("integers", 0, 4095, (0, 4095)),  # 12 bits in 16
        ("integers", 3, 2300, (0, 4095)),
        ("integers", 0, 255, (0, 255)),
        ("integers", 0, 256, (0, 511)),
        ("integers", 0, 60_000, (0, 65535)),
        ("integers", 2780, 3100, (2780, 3100)),  # tenths of kelvins
        ("integers", -1024, 3071, (-1024, 3071)),  # tomography
        ("integers", 0, 3, (0, 3)),
        ("floats", 0, 0.98, (0, 1)),
        ("floats", 0, 1.02, (0, 1)),
        ("floats", -0.03, 1.08, (0, 1)),
        ("floats", -0.9, 0.9, (-1, 1)),
        ("floats", 0, 254.7, (0, 255)),
        ("floats", 0, 1.6, (0, 1.6)),
        ("floats", 0, 0.06, (0, 0.06)),
        ("floats", 7, 7, (7, 8)),
    ],
)
def test_a_usual_range_or_what_is_there(kind: str, low: float, high: float, expected: tuple[float, float]) -> None:
    assert value_ranges([None, SeenValues(kind, low, (low + high) / 2), SeenValues(kind, low, high)]) == {
        kind: expected
    }


def test_twelve_bits_keep_their_grey_levels(tmp_path: Path) -> None:
    dataset = find(make_wide(tmp_path / "d", 4095))
    assert dataset.ranges == {"integers": (0, 4095)}
    assert len(np.unique(dataset.read(0, transform(16)))) > 90


@pytest.mark.parametrize("top", [0.98, 1.02])
def test_a_value_above_one_darkens_nothing(tmp_path: Path, top: float) -> None:
    dataset = find(make_wide(tmp_path / "d", top, np.float32))
    bright = [dataset.read(row, transform(16)).float().mean() for row in np.flatnonzero(dataset.labels == 0)]
    assert np.mean(bright) == pytest.approx(128, abs=8)


def test_twelve_bits_of_colour_are_as_bright_as_eight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pillow reads their upper 8 bits alone, in which 12-bit values of 16 are all but black."""
    colours = np.random.default_rng(0).integers(0, 4096, (16, 16, 3))
    for name, shown in (("a", colours), ("b", colours[::-1])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(png_of_16_bits(shown))
    read = find(tmp_path).read(0, transform(16)).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(read, colours / 4095 * 255, atol=17)
    assert "16-bit colours (their upper 8 bits are read): 0 is shown as black and 4095" in capsys.readouterr().out
    (tmp_path / "b" / "x.png").write_bytes(png_of_16_bits(16 * colours))
    whole = find(tmp_path)
    assert whole.ranges == {}
    np.testing.assert_array_equal(whole.read(1, transform(16)).permute(1, 2, 0), colours * 16 // 256)


def test_the_same_value_is_the_same_grey_in_all_images(tmp_path: Path) -> None:
    folder = make_wide(tmp_path / "d", 1000.0, np.float32)
    dataset = find(folder)
    dim = float(np.asarray(Image.open(folder / "dim" / "0.tif"))[3, 4])
    assert dataset.ranges["floats"][1] == pytest.approx(1000, rel=0.01)
    row = dataset.paths.index("dim/0.tif")
    assert int(dataset.read(row, transform(16))[0, 3, 4]) == pytest.approx(255 * dim / 1000, abs=2)


def test_no_number_is_black_and_no_end_is_white(tmp_path: Path) -> None:
    pixels = np.full((8, 8), 0.5, np.float32)
    pixels[0, :3] = np.nan, np.inf, -np.inf
    for number in range(3):
        for name in ("a", "b"):
            (tmp_path / "d" / name).mkdir(parents=True, exist_ok=True)
            pixels[5, 5] = number / 9 + (name == "a") / 90
            Image.fromarray(pixels).save(tmp_path / "d" / name / f"{number}.tif")
    shown = find(tmp_path / "d").read(0, transform(8))[0]
    assert shown[0, :4].tolist() == [0, 255, 0, shown[3, 3].item()]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    cwd = tmp_path_factory.mktemp("wide")
    make_wide(cwd / "d", 4095)
    outcome = run(*LINE, cwd=cwd)
    assert outcome.code == 0, outcome.err
    return outcome


def test_a_run_says_and_writes_its_range(wide: Outcome) -> None:
    line = "images with integers instead of 8-bit values: 0 is shown as black and 4095 as white in all"
    assert line in wide.out.splitlines()
    assert wide.summary()["dataset"]["ranges"] == {"integers": [0, 4095]}
    assert wide.checkpoint()["model"]["ranges"] == {"integers": (0, 4095)}


def test_new_images_are_seen_in_the_range_of_the_run(wide: Outcome) -> None:
    """A dim image is dim also where no bright one lies beside it."""
    file = wide.cwd / "d" / "dim" / "0.tif"
    library = load_classifier(wide.folder(), device="cpu")
    rgb = (np.asarray(Image.open(file)) * (255 / 4095)).round().astype(np.uint8)
    same = np.repeat(rgb[:, :, None], 3, axis=2)
    np.testing.assert_allclose(library(file), library(same), atol=1e-6)
    np.testing.assert_allclose(library(Image.open(file)), library(same), atol=1e-6)
    alone = wide.cwd / "alone" / "dim"
    alone.mkdir(parents=True)
    (alone / "0.tif").write_bytes(file.read_bytes())
    Image.fromarray(np.asarray(Image.open(file)).T.copy()).save(alone / "0.tif")
    tested = run("--test_mode", "--load_path", "x", "--data_dir", "alone", cwd=wide.cwd)
    assert tested.code == 0, tested.err
    assert json.loads((wide.folder() / "test_summary.json").read_text())["dataset"]["ranges"] == {"integers": [0, 4095]}


def test_features_of_another_range_are_other_features(wide: Outcome) -> None:
    banks = {path.parent.name for path in wide.cwd.glob("cache/*/bank.json")}
    Image.fromarray(np.full((16, 16), 60_000, np.uint16)).save(wide.cwd / "d" / "bright" / "new.tif")
    try:
        assert run("--name", "y", *LINE[2:], cwd=wide.cwd).summary("y")["dataset"]["ranges"] == {"integers": [0, 65535]}
    finally:
        (wide.cwd / "d" / "bright" / "new.tif").unlink()
    assert len({path.parent.name for path in wide.cwd.glob("cache/*/bank.json")} - banks) == 1


def test_a_run_does_not_go_on_in_another_range(wide: Outcome) -> None:
    path = wide.folder() / "checkpoints" / "last.pt"
    content = torch.load(path, weights_only=True)
    content["model"]["ranges"] = {"integers": (0.0, 255.0)}
    before = path.read_bytes()
    torch.save(content, path)
    try:
        outcome = run("--name", "x", "--resume", cwd=wide.cwd)
    finally:
        path.write_bytes(before)
    assert outcome.code == 2
    assert "the values of its images lie in another range than before; start a new run" in outcome.complaint()[0]
