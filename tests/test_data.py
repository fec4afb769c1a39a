"""Finding, scanning, splitting, decoding and loading, on tiny images that are made here."""

from __future__ import annotations

import csv
import itertools
import json
import multiprocessing as mp
import os
import pickle
import urllib.error
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from runs import ROOT
from transfermpl import args, data
from transfermpl.features import loader
from transfermpl.images import builtin
from transfermpl.utils import UserError

SHARED = ROOT.parent / "shared"
_serial = itertools.count()


def transform(size: int = 8, resize: int | None = None, how: str = "bilinear") -> data.Transform:
    return data.Transform(size, resize or size, how, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(next(_serial)).integers(0, 256, shape, np.uint8)


def picture(file: Path, colour: tuple[int, int, int] | None = None, side: int = 12) -> Path:
    """Without a colour every picture is another one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(noise(side, side, 3)) if colour is None else Image.new("RGB", (side, side), colour)
    image.save(file)
    return file


def folder(root: Path, counts: dict[str, int], suffix: str = ".png") -> Path:
    for name, count in counts.items():
        for i in range(count):
            picture(root / name / f"{i:03d}{suffix}")
    return root


def find(root: Path | str, **options: object) -> data.Dataset:
    return data.find_dataset(args.Data(data_dir=str(root), **options))  # type: ignore[arg-type]


def table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_class_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path, {"b": 2, "a": 1, "a/deep/er": 1})
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    picture(tmp_path / ".hidden" / "x.png")
    picture(tmp_path / "a" / ".thumb.png")
    (tmp_path / "a" / "folder.png").mkdir()
    dataset = find(tmp_path)
    assert dataset.classes == ("a", "b")
    assert dataset.paths == ("a/000.png", "a/deep/er/000.png", "b/000.png", "b/001.png")
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    assert dataset.labels.dtype == np.int64
    assert dataset.hashes.dtype == np.uint64
    assert (dataset.kind, dataset.native_size, len(dataset)) == ("photos", 0, 4)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("val", ["val", "VALID", "Validation"])
def test_train_val_test_folders(tmp_path: Path, val: str) -> None:
    folder(tmp_path, {"Train/a": 3, "Train/b": 3, f"{val}/a": 1, f"{val}/b": 2, "TEST/a": 2, "TEST/b": 1})
    dataset = find(tmp_path)
    split = data.split_dataset(dataset, args.Data(num_labels=4, val_percent=0.5), 0)
    assert [len(split.labeled), len(split.unlabeled), len(split.val), len(split.test)] == [4, 6, 3, 3]
    assert {dataset.places[row] for row in split.val} == {"val"}
    assert {dataset.places[row] for row in split.test} == {"test"}


def test_labeled_and_unlabeled_folders(tmp_path: Path) -> None:
    folder(tmp_path, {"labeled/a": 5, "labeled/b": 5, "unlabeled": 3, "unlabeled/deep": 2, "test/a": 1, "test/b": 1})
    dataset = find(tmp_path)
    assert (dataset.labels < 0).sum() == 5
    split = data.split_dataset(dataset, args.Data(include_labeled=False), 0)
    assert len(split.labeled) == 10  # all labels, since there are unlabeled images of its own
    assert {dataset.places[row] for row in split.unlabeled} == {"unlabeled"}
    assert len(data.split_dataset(dataset, args.Data(num_labels_percent=0.4), 0).labeled) == 4


def test_a_class_of_trains_is_a_class(tmp_path: Path) -> None:
    assert find(folder(tmp_path, {"train": 2, "bus": 2})).classes == ("bus", "train")


def test_odd_names_and_links(tmp_path: Path) -> None:
    real = folder(tmp_path / "with space ü", {"Größe 1": 1, "犬": 1}, ".JPG")
    (real / "犬" / "loop").symlink_to(real / "犬", target_is_directory=True)
    link = tmp_path / "link"
    link.symlink_to(real, target_is_directory=True)
    dataset = find(link)
    assert dataset.classes == ("Größe 1", "犬")
    assert dataset.paths == ("Größe 1/000.JPG", "犬/000.JPG")
    assert dataset.read(0, transform()).shape == (3, 8, 8)


@pytest.mark.skipif(os.name != "posix", reason="needs file names that are not text")
def test_a_file_name_that_is_not_text(tmp_path: Path) -> None:
    folder(tmp_path, {"a": 2, "b": 2})
    try:
        os.rename(tmp_path / "a" / "000.png", os.fsencode(tmp_path) + b"/a/\xff.png")
    except OSError:
        pytest.skip("this disk takes text only")
    dataset = find(tmp_path)
    split = data.split_dataset(dataset, args.Data(num_labels=2), 0)
    data.write_split(tmp_path / "split.csv", dataset, split)
    assert "a/\\xff.png" in {row["path"] for row in table(tmp_path / "split.csv")}
    assert dataset.read(dataset.paths.index("a/\\xff.png"), transform()).shape == (3, 8, 8)


def test_the_builtin_wins_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "digits", {"a": 2, "b": 2})
    monkeypatch.chdir(tmp_path)
    assert len(find("digits")) > 1000
    assert find("./digits").classes == ("a", "b")


def test_empty_class_and_loose_images_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "loose.png")
    assert find(tmp_path).classes == ("a", "b")
    err = capsys.readouterr().err
    assert "no images in empty" in err
    assert "1 images lie directly" in err


def error_of(root: Path | str, **options: object) -> str:
    with pytest.raises(UserError) as error:
        find(root, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_errors_of_a_folder(tmp_path: Path) -> None:
    folder(tmp_path / "flowers", {"a": 1})
    assert f"did you mean {tmp_path / 'flowers'}?" in error_of(tmp_path / "flower")
    assert "or digits" in error_of("Digit") or "digits" in error_of("Digit")
    assert "is a file" in error_of(picture(tmp_path / "x.png"))
    assert "there is no folder" in error_of("x" * 5000)
    assert "at least two classes, but has a" in error_of(tmp_path / "flowers")
    (tmp_path / "none").mkdir()
    assert "DIR/<class>/*" in error_of(tmp_path / "none")
    folder(tmp_path / "mixed", {"train/a": 1, "test/a": 1, "rose": 1})
    assert "beside rose" in error_of(tmp_path / "mixed")
    folder(tmp_path / "no train", {"val/a": 1, "test/a": 1})
    assert "but no train" in error_of(tmp_path / "no train")
    folder(tmp_path / "new", {"train/a": 1, "train/b": 1, "test/a": 1, "test/c": 1})
    assert "not in train: c" in error_of(tmp_path / "new")


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return folder(tmp_path, {"all": 6})


def test_csv(images: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    away = picture(tmp_path_factory.mktemp("away") / "away.png")
    (images / "all" / "001.png").rename(images / "all" / "a, b ü.png")
    text = f'\ufeffPath, Label\nall/000.png,rosé\n"all/a, b ü.png","x, y"\n\nall/002.png,\n{away},rosé\n'
    (images / "labels.csv").write_text(text, encoding="utf-8")
    dataset = find(images, labels_csv="labels.csv")
    assert dataset.classes == ("rosé", "x, y")
    assert dict(zip(dataset.paths, dataset.labels.tolist(), strict=True)) == {
        "all/000.png": 0, "all/a, b ü.png": 1, "all/002.png": -1, away.as_posix(): 0,
    }  # fmt: skip
    split = data.split_dataset(dataset, args.Data(test_percent=0), 0)
    assert len(split.labeled) == 3


def test_csv_with_a_split(images: Path) -> None:
    rows = ["0,a,train", "1,b,train", "2,a,val", "3,b,Valid", "4,a,TEST", "5,b,test"]
    text = "".join("all/00{},{},{}\n".format(row[0] + ".png", *row.split(",")[1:]) for row in rows)
    (images / "t.csv").write_text("path,label,split\n" + text)
    dataset = find(images, labels_csv="t.csv")
    assert dataset.places == ("train", "train", "val", "val", "test", "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must start with the line path,label"),
        ("file,label\nall/000.png,a\n", "not 'file,label'"),
        ("path;label\nall/000.png;a\n", "must start with"),
        ("path,label\nall/nothing.png,a\n", "row 2: there is no file 'all/nothing.png'"),
        ("path,label\nall/a\0.png,a\n", ""),
        ("path,label\n,a\n", "row 2: there is no file ''"),
        ("path,label\nall/000.png,a\nall/000.png,b\n", "row 3: all/000.png stands there twice"),
        ("path,label\nall/000.png,a,b\n", "3 cells under 2 names"),
        ("path,label,split\nall/000.png,a,later\n", "split 'later' is unknown"),
        ("path,label,split\nall/000.png,,test\n", "needs a label"),
        ('path,label\n"all/000.png,a\n', "can't be read as a CSV"),
        ("path,label\n", "no images"),
    ],
)
def test_odd_csv(images: Path, text: str, message: str) -> None:
    (images / "t.csv").write_text(text)
    assert message in error_of(images, labels_csv="t.csv")


def test_csv_that_is_not_there_or_not_text(images: Path) -> None:
    assert "there is no table" in error_of(images, labels_csv="none.csv")
    assert "needs a folder" in error_of("digits", labels_csv="t.csv")
    (images / "t.csv").write_bytes(b"path,label\nall/\xff\xfe.png,a\n")
    assert "in UTF-8" in error_of(images, labels_csv="t.csv")


# --- decoding ---------------------------------------------------------------------------------------------------------


def decoded(file: Path, **options: object) -> np.ndarray:
    """uint8 [H, W, 3]."""
    dataset = data.Dataset("x", (), (file.name,), np.zeros(1), np.zeros(1), ("",), "photos", 0, sources=(str(file),))
    tensor = dataset.read(0, transform(**options))  # type: ignore[arg-type]
    assert tensor.dtype == torch.uint8
    assert tensor.is_contiguous()
    return tensor.permute(1, 2, 0).numpy()


def palette(transparent: int | bytes | None) -> Image.Image:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 10, 30])
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


def grey16(value: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8), value, np.uint16))


MODES = {
    "RGB.png": (Image.new("RGB", (8, 8), (10, 20, 30)), (10, 20, 30)),
    "L.png": (Image.new("L", (8, 8), 77), (77, 77, 77)),
    "L.jpg": (Image.new("L", (8, 8), 77), (77, 77, 77)),
    "1.png": (Image.new("1", (8, 8), 1), (255, 255, 255)),
    "1.tif": (Image.new("1", (8, 8), 0), (0, 0, 0)),
    "P.png": (palette(None), (200, 10, 30)),
    "P.gif": (palette(None), (200, 10, 30)),
    "P clear.png": (palette(1), (255, 255, 255)),
    "P half.png": (palette(bytes([255, 0])), (255, 255, 255)),
    "LA.png": (Image.new("LA", (8, 8), (100, 255)), (100, 100, 100)),
    "LA clear.png": (Image.new("LA", (8, 8), (100, 0)), (255, 255, 255)),
    "RGBA.png": (Image.new("RGBA", (8, 8), (200, 100, 0, 255)), (200, 100, 0)),
    "RGBA half.png": (Image.new("RGBA", (8, 8), (0, 0, 255, 128)), (127, 127, 255)),
    "RGBA.tif": (Image.new("RGBA", (8, 8), (0, 0, 0, 0)), (255, 255, 255)),
    "CMYK.jpg": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), (254, 0, 0)),
    "CMYK.tif": (Image.new("CMYK", (8, 8), (255, 0, 0, 0)), (0, 255, 255)),
    "I16.png": (grey16(257 * 60), (60, 60, 60)),
    "I16.tif": (grey16(65535), (255, 255, 255)),
    "I16 dark.png": (grey16(200), (1, 1, 1)),
    "I.tif": (Image.new("I", (8, 8), 257 * 60), (60, 60, 60)),
    "I small.tif": (Image.new("I", (8, 8), 60), (60, 60, 60)),
    "F one.tif": (Image.new("F", (8, 8), 0.5), (128, 128, 128)),
    "F byte.tif": (Image.new("F", (8, 8), 99.0), (99, 99, 99)),
    "F huge.tif": (Image.new("F", (8, 8), 1e9), (255, 255, 255)),
    "F nan.tif": (Image.new("F", (8, 8), float("nan")), (0, 0, 0)),
    "F below.tif": (Image.new("F", (8, 8), -3.0), (0, 0, 0)),
    "grey.pgm": (Image.new("L", (8, 8), 9), (9, 9, 9)),
    "RGB.bmp": (Image.new("RGB", (8, 8), (1, 2, 3)), (1, 2, 3)),
    "YCbCr.tif": (Image.new("RGB", (8, 8), (200, 100, 50)).convert("YCbCr"), (200, 100, 50)),
}


@pytest.mark.parametrize("name", MODES)
def test_colour_modes(tmp_path: Path, name: str) -> None:
    image, colour = MODES[name]
    image.save(tmp_path / name)
    pixels = decoded(tmp_path / name).astype(int)
    assert pixels.shape == (8, 8, 3)
    assert np.abs(pixels - colour).max() <= 2, pixels[0, 0]


def test_16_bit_rgb(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + struct.pack(">3H", 257 * 10, 257 * 200, 257 * 90) * 8
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 8)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert decoded(tmp_path / "x.png")[3, 3].tolist() == [10, 200, 90]


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


# --- bad files --------------------------------------------------------------------------------------------------------


def test_bad_files(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path, {"a": 2, "b": 2})
    whole = Image.fromarray(noise(64, 64, 3))
    for suffix in ("jpg", "png", "gif", "webp", "bmp", "tif"):
        whole.save(tmp_path / f"a/cut.{suffix}")
        content = (tmp_path / f"a/cut.{suffix}").read_bytes()
        (tmp_path / f"a/cut.{suffix}").write_bytes(content[: len(content) // 2])
    (tmp_path / "a/empty.jpg").touch()
    (tmp_path / "a/text.jpg").write_text("hello")
    (tmp_path / "a/broken link.jpg").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "a/pipe.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    picture(tmp_path / "a/bomb.png", side=400)
    picture(tmp_path / "a/double bomb.png", side=600)
    dataset = find(tmp_path)
    reasons = dict(dataset.bad_files)
    assert len(dataset) == 4
    assert {f"a/cut.{s}" for s in ("jpg", "png", "gif", "webp", "bmp", "tif")} <= set(reasons)
    assert reasons["a/empty.jpg"] == "empty file"
    assert reasons["a/text.jpg"] == "not an image"
    assert reasons["a/pipe.jpg"] == "not a file"
    assert reasons["a/broken link.jpg"] == "no such file or directory"
    assert "too large" in reasons["a/bomb.png"]
    assert "pixels" in reasons["a/double bomb.png"]
    assert all(0 < len(reason) <= 90 for reason in reasons.values())
    out, err = capfd.readouterr()
    assert out == ""
    first, reason = dataset.bad_files[0]
    told = f"the first: {first} ({reason})"
    assert err == f"warning: 12 of 16 files can't be decoded and are left out, {told}\n"


def test_only_bad_files(tmp_path: Path) -> None:
    for name in ("a/x.jpg", "b/y.jpg"):
        picture(tmp_path / name).write_bytes(b"no")
    assert "none of the image files" in error_of(tmp_path)


def test_a_class_of_bad_files_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path, {"a": 2, "b": 2, "c": 1})
    (tmp_path / "c/000.png").write_bytes(b"no")
    assert find(tmp_path).classes == ("a", "b")
    assert "no usable image is left of c" in capsys.readouterr().err


# --- duplicates -------------------------------------------------------------------------------------------------------


def test_duplicates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path, {"labeled/a": 2, "labeled/b": 2, "unlabeled": 2, "val/a": 1, "test/b": 1})
    copies = {
        "labeled/a/z1.png": "red", "labeled/a/z2.png": "red", "unlabeled/0.png": "red",  # one row, labeled
        "unlabeled/1.png": "lime", "unlabeled/2.png": "lime",  # one row
        "labeled/a/z3.png": "blue", "labeled/b/z3.png": "blue",  # conflict: no label
        "val/a/z4.png": "cyan", "labeled/a/z4.png": "cyan",  # stays in val
        "test/b/z5.png": "pink", "labeled/b/z5.png": "pink", "val/b/z5.png": "pink",  # stays in test
        "test/b/z6.png": "gray", "labeled/a/z6.png": "gray",  # conflict over the border: gone
    }  # fmt: skip
    for name, colour in copies.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(tmp_path / name)
    dataset = find(tmp_path)
    kept = {path for path in dataset.paths if path in copies}
    expected = {"labeled/a/z1.png", "unlabeled/1.png", "labeled/a/z3.png", "val/a/z4.png", "test/b/z5.png"}
    assert kept == expected
    assert dataset.labels[dataset.paths.index("labeled/a/z3.png")] == -1
    assert set(dataset.duplicates) == {
        ("labeled/a/z2.png", "labeled/a/z1.png"), ("unlabeled/0.png", "labeled/a/z1.png"),
        ("unlabeled/2.png", "unlabeled/1.png"), ("labeled/a/z4.png", "val/a/z4.png"),
        ("labeled/b/z5.png", "test/b/z5.png"), ("val/b/z5.png", "test/b/z5.png"),
    }  # fmt: skip
    assert set(dataset.conflicts) == {
        ("labeled/a/z3.png", "labeled/b/z3.png"), ("labeled/a/z6.png", "test/b/z6.png"),
    }  # fmt: skip
    assert len(set(dataset.hashes.tolist())) == len(dataset)
    err = capsys.readouterr().err
    assert "6 of 22 images are copies" in err
    assert "2 images are filed under more than one class" in err
    split = data.split_dataset(dataset, args.Data(), 0)
    data.write_split(tmp_path / "split.csv", dataset, split)
    rows = {row["path"]: row for row in table(tmp_path / "split.csv")}
    assert rows["labeled/a/z2.png"] | {"hash": ""} == {
        "path": "labeled/a/z2.png", "hash": "", "label": "a", "split": "duplicate",
    }  # fmt: skip
    assert rows["labeled/a/z3.png"]["split"] == "unlabeled"
    assert rows["labeled/b/z3.png"]["split"] == "conflict"
    assert rows["labeled/a/z3.png"]["hash"] == rows["labeled/b/z3.png"]["hash"]
    assert rows["test/b/z6.png"]["split"] == rows["labeled/a/z6.png"]["split"] == "conflict"
    assert len(rows) == 22


def test_a_conflict_is_not_an_unlabeled_data_set(tmp_path: Path) -> None:
    folder(tmp_path, {"a": 50, "b": 50})
    for name in "ab":
        picture(tmp_path / name / "same.png", (1, 2, 3))
    split = data.split_dataset(find(tmp_path), args.Data(), 0)
    assert len(split.labeled) == 2  # 3% of 80
    assert len(split.unlabeled) == 81


def test_flowers5() -> None:
    if not (SHARED / "data" / "flowers5").is_dir():
        pytest.skip("the photographs are not here")
    dataset = find(SHARED / "data" / "flowers5")
    assert (len(dataset), len(dataset.duplicates), len(dataset.conflicts)) == (2494, 2, 4)
    assert {path.split("/")[0] for group in dataset.conflicts for path in group} == {"rose", "tulip"}
    split = data.split_dataset(dataset, args.Data(), 0)
    assert Counter(dataset.labels[split.labeled].tolist()) == dict.fromkeys(range(5), 12)


# --- splits -----------------------------------------------------------------------------------------------------------


def made(labels: list[int], places: list[str] | None = None) -> data.Dataset:
    paths = tuple(f"{i:05d}" for i in range(len(labels)))
    hashes = np.arange(len(labels), dtype=np.uint64) + np.uint64(2**63)
    classes = tuple(f"c{i}" for i in range(max(labels) + 1))
    return data.Dataset("x", classes, paths, np.array(labels), hashes, tuple(places or [""] * len(labels)), "photos", 0)


@settings(max_examples=120, deadline=None)
@given(
    counts=st.lists(st.integers(2, 40), min_size=2, max_size=6),
    unknown=st.integers(0, 10),
    seed=st.integers(0, 5),
    test_percent=st.floats(0, 1),
    val_percent=st.floats(0, 0.5),
    how=st.sampled_from(["balanced", "stratified"]),
    share=st.floats(0, 1),
    include=st.booleans(),
)
def test_what_holds_for_every_split(
    counts: list[int],
    unknown: int,
    seed: int,
    test_percent: float,
    val_percent: float,
    how: str,
    share: float,
    include: bool,
) -> None:
    labels = [c for c, n in enumerate(counts) for _ in range(n)] + [-1] * unknown
    dataset = made(np.random.default_rng(seed).permutation(labels).tolist())
    options = dict(test_percent=test_percent, val_percent=val_percent, label_split=how)
    everything = data.split_dataset(dataset, args.Data(num_labels=len(counts), **options), seed)  # type: ignore[arg-type]
    free = int((dataset.labels >= 0).sum()) - len(everything.test) - len(everything.val)
    number = len(counts) + round(share * (free - len(counts)))
    wanted = args.Data(num_labels=number, include_labeled=include, **options)  # type: ignore[arg-type]
    if number == free and not include and not unknown:
        with pytest.raises(UserError, match="every training image is a labeled one"):
            data.split_dataset(dataset, wanted, seed)
        return
    split = data.split_dataset(dataset, wanted, seed)
    parts = [split.labeled, split.val, split.test]
    assert len(set(np.concatenate(parts).tolist())) == sum(map(len, parts))
    assert all(np.array_equal(part, np.unique(part)) and part.dtype == np.int64 for part in [*parts, split.unlabeled])
    assert all((dataset.labels[part] >= 0).all() for part in parts)
    everyone = set(range(len(dataset)))
    assert set(split.unlabeled) == everyone - set(split.val) - set(split.test) - (
        set() if include else set(split.labeled)
    )
    assert len(split.labeled) == number
    assert set(everything.labeled) <= set(split.labeled)
    assert np.array_equal(everything.test, split.test)
    assert np.array_equal(everything.val, split.val)
    held = Counter(dataset.labels[split.labeled].tolist())
    assert min(held[c] for c in range(len(counts))) >= 1
    if how == "balanced":
        rest = Counter(dataset.labels[np.setdiff1d(np.arange(len(dataset)), np.concatenate(parts))].tolist())
        not_full = [held[c] for c in range(len(counts)) if rest[c]]
        assert not not_full or max(held.values()) - min(not_full) <= 1
    again = data.split_dataset(dataset, wanted, seed)
    assert all(np.array_equal(getattr(split, n), getattr(again, n)) for n in ("labeled", "unlabeled", "val", "test"))


def test_labels_as_frequent_as_the_class() -> None:
    dataset = made([0] * 800 + [1] * 150 + [2] * 50)
    split = data.split_dataset(dataset, args.Data(num_labels=80, test_percent=0.2, label_split="stratified"), 0)
    assert Counter(dataset.labels[split.labeled].tolist()) == {0: 64, 1: 12, 2: 4}
    assert Counter(dataset.labels[split.test].tolist()) == {0: 160, 1: 30, 2: 10}


def test_a_small_class_gives_all_and_others_fill_up() -> None:
    dataset = made([0] * 3 + [1] * 50 + [2] * 50)
    split = data.split_dataset(dataset, args.Data(num_labels=31, test_percent=0), 0)
    counts = Counter(dataset.labels[split.labeled].tolist())
    assert sorted(counts.values()) == [3, 14, 14]
    assert counts[0] == 3


def test_seeds_differ_and_the_remainder_is_spread() -> None:
    dataset = made([0] * 50 + [1] * 50 + [2] * 50)
    splits = [data.split_dataset(dataset, args.Data(num_labels=4), seed) for seed in range(12)]
    assert len({tuple(split.test) for split in splits}) == 12
    assert len({Counter(dataset.labels[split.labeled].tolist()).most_common(1)[0][0] for split in splits}) == 3


def test_one_image_of_a_class_stays_for_training() -> None:
    dataset = made([0] + [1] * 2 + [2] * 9)
    split = data.split_dataset(dataset, args.Data(num_labels=3, test_percent=1.0), 0)
    assert Counter(dataset.labels[split.labeled].tolist()) == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_labels=4), "too few, there are 5 classes: give --num_labels 5 or more"),
        (dict(num_labels=51), "too many: 50 are there"),
        (dict(), "3% of 50 images are 2 labels, but there are 5 classes: give --num_labels 5 or more"),
        (dict(num_labels_percent=0.001), "0.1% of 50 images are 0 labels"),
        (dict(num_labels=50, include_labeled=False), "every training image is a labeled one"),
    ],
)
def test_numbers_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        data.split_dataset(made([c for c in range(5) for _ in range(12)]), args.Data(**options), 0)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_split_csv_goes_round(tmp_path: Path) -> None:
    dataset = made([0] * 20 + [1] * 20 + [-1])
    split = data.split_dataset(dataset, args.Data(num_labels=6, val_percent=0.1), 0)
    data.write_split(tmp_path / "split.csv", dataset, split)
    rows = table(tmp_path / "split.csv")
    assert list(rows[0]) == ["path", "hash", "label", "split"]
    assert len(rows[0]["hash"]) == 16
    assert rows[-1]["label"] == ""
    hashes = data.read_split(tmp_path / "split.csv")
    for name in ("labeled", "val", "test"):
        assert hashes[name] == set(dataset.hashes[getattr(split, name)].tolist())
    assert hashes["unlabeled"] == set(dataset.hashes[split.unlabeled].tolist()) - hashes["labeled"]
    (tmp_path / "bad.csv").write_text("path,hash,label,split\nx,nothex,a,test\n")
    for name in ("bad.csv", "none.csv"):
        with pytest.raises(UserError, match=name):
            data.read_split(tmp_path / name)


def test_summary_table() -> None:
    few = made([0] * 20 + [1] * 30 + [-1])
    text = data.summary_table(few, data.split_dataset(few, args.Data(num_labels=4), 0)).splitlines()
    assert text[1].split() == ["class", "images", "labeled", "unlabeled", "val", "test"]
    assert text[2].split() == ["c0", "20", "2", "16", "0", "4"]
    assert text[4].split() == ["(unknown)", "1", "0", "1", "0", "0"]
    assert text[5].split() == ["2", "classes", "51", "4", "41", "0", "10"]
    many = made([c for c in range(30) for _ in range(5 + c % 2)])
    text = data.summary_table(many, data.split_dataset(many, args.Data(num_labels=31), 0)).splitlines()
    assert text[2].split() == ["each", "5..6", "1..2", "4..5", "0..0", "1..1"]
    assert len(text) == 4


# --- loading ----------------------------------------------------------------------------------------------------------


def batches(dataset: data.Dataset, rows: list[list[int]], workers: int, **options: object) -> list[torch.Tensor]:
    orders = (np.array(batch) for batch in rows)
    how = transform(**options)  # type: ignore[arg-type]
    return list(loader.image_batches(dataset, how, orders, workers=workers, pin=False))


def test_workers_change_nothing(tmp_path: Path) -> None:
    dataset = find(folder(tmp_path, {"a": 6, "b": 6}))
    rows = [[3, 0, 11], [5], [7, 7], [1, 2, 4, 6]]
    state = torch.get_rng_state()
    alone, helped = batches(dataset, rows, 0), batches(dataset, rows, 2)
    assert torch.equal(state, torch.get_rng_state())
    assert [tuple(batch.shape) for batch in alone] == [(len(batch), 3, 8, 8) for batch in rows]
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))
    assert torch.equal(alone[0][2], dataset.read(11, transform()))


def test_endless_batches(tmp_path: Path) -> None:
    dataset = find(folder(tmp_path, {"a": 2, "b": 2}))
    endless = (np.array([i % 4]) for i in itertools.count())
    stream = loader.image_batches(dataset, transform(), endless, workers=1, pin=False)
    assert len(list(itertools.islice(stream, 6))) == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_meanwhile(tmp_path: Path, workers: int) -> None:
    dataset = find(folder(tmp_path, {"a": 2, "b": 2}))
    (tmp_path / "b/001.png").write_bytes(b"no")
    with pytest.raises(UserError) as error:
        batches(dataset, [[0], [3]], workers)
    assert str(tmp_path / "b/001.png") in str(error.value)
    assert "Traceback" not in str(error.value)


@pytest.mark.skipif(mp.get_start_method() != "fork", reason="the workers must inherit the change")
def test_a_worker_that_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = find(folder(tmp_path, {"a": 2, "b": 2}))
    monkeypatch.setattr(data.Dataset, "read", lambda *_: os._exit(1))
    with pytest.raises(UserError, match="--num_workers 0"):
        batches(dataset, [[0], [3]], 1)


def test_arrays_are_resized_once_and_points_are_points(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = find("digits")
    (cached,) = batches(dataset, [[5, 0, 9]], 2, size=16)
    assert torch.equal(cached[1], dataset.read(0, transform(16)))
    monkeypatch.setattr(loader, "_CACHE_BYTES", 0)
    (fresh,) = batches(find("digits"), [[5, 0, 9]], 2, size=16)
    assert torch.equal(cached, fresh)
    moons = find("moons")
    (points,) = batches(moons, [[5, 0, 9]], 2)
    assert points.shape == (3, 2)
    assert points.dtype == torch.float32
    assert torch.equal(points[0], moons.read(5, transform()))


# --- built-in data sets -----------------------------------------------------------------------------------------------


def test_made_data_sets() -> None:
    digits, moons, fake = (find(name) for name in ("digits", "moons", "fake"))
    assert (len(digits), digits.kind, digits.native_size, len(digits.classes)) == (1797, "digits", 8, 10)
    assert (len(moons), moons.kind, moons.native_size, len(moons.classes)) == (1000, "points", 0, 2)
    assert (len(fake), fake.kind, fake.native_size, len(fake.classes)) == (800, "photos", 32, 4)
    assert digits.paths[12] == "digits/0012"
    raw = digits.read(0, transform(8)).numpy()
    assert (raw[0] == raw[1]).all()
    assert raw.max() in range(230, 256)
    assert np.array_equal(fake.hashes, find("fake").hashes)


def test_fake_can_be_learned() -> None:
    from sklearn.linear_model import LogisticRegression

    dataset = find("fake")
    assert dataset.array is not None
    pixels = dataset.array.reshape(800, -1) / 255.0
    model = LogisticRegression(max_iter=300).fit(pixels[:600], dataset.labels[:600])
    assert model.score(pixels[600:], dataset.labels[600:]) > 0.6


def write_cifar(root: Path, name: str) -> None:
    ten = name == "cifar10"
    base = root / ("cifar-10-batches-py" if ten else "cifar-100-python")
    base.mkdir(parents=True)
    files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"] if ten else ["train", "test"]
    for file in files:
        content = {"data": noise(4, 3072), "labels" if ten else "fine_labels": [0, 1, 0, 1]}
        (base / file).write_bytes(pickle.dumps(content))
    names = {"label_names" if ten else "fine_label_names": ["zebra", "ant"]}
    (base / ("batches.meta" if ten else "meta")).write_bytes(pickle.dumps(names))


def write_svhn(root: Path) -> None:
    from scipy.io import savemat

    root.mkdir(parents=True)
    for part in ("train", "test"):
        labels = np.array([[10], [1], [2], [10], [1], [2]], np.uint8)
        savemat(root / f"{part}_32x32.mat", {"X": noise(32, 32, 3, 6), "y": labels})


def write_stl10(root: Path) -> None:
    base = root / "stl10_binary"
    base.mkdir(parents=True)
    for part, count in (("train", 4), ("unlabeled", 5), ("test", 2)):
        pixels = noise(count, 3, 96, 96)
        pixels[0, 0, 1, 0] = 7  # the second byte of a plane is one further down: planes are stored by columns
        pixels.tofile(base / f"{part}_X.bin")
        if part != "unlabeled":
            (np.arange(count, dtype=np.uint8) % 2 + 1).tofile(base / f"{part}_y.bin")


def write_flowers102(root: Path) -> None:
    from scipy.io import savemat

    base = root / "flowers-102"
    for number in range(1, 9):
        picture(base / "jpg" / f"image_{number:05d}.jpg")
    savemat(base / "imagelabels.mat", {"labels": np.array([[1, 2] * 4])})
    savemat(base / "setid.mat", {"trnid": [[1, 2, 3, 4]], "valid": [[5, 6]], "tstid": [[7, 8]]})


def write_food101(root: Path) -> None:
    base = root / "food-101"
    for part, numbers in (("train", (1, 2)), ("test", (3,))):
        names = {c: [f"{c}/{n}" for n in numbers] for c in ("waffles", "apple_pie")}
        for name in itertools.chain(*names.values()):
            picture(base / "images" / f"{name}.jpg", side=16)
        (base / "meta").mkdir(exist_ok=True)
        (base / "meta" / f"{part}.json").write_text(json.dumps(names))


def write_fgvc_aircraft(root: Path) -> None:
    base = root / "fgvc-aircraft-2013b" / "data"
    for part, numbers in (("train", (1, 2, 3, 4)), ("val", (5, 6)), ("test", (7, 8))):
        lines = [f"{n:07d} {('F/A-18', '707-320')[n % 2]}\n" for n in numbers]
        for line in lines:
            picture(base / "images" / f"{line.split()[0]}.jpg")
        (base / f"images_variant_{part}.txt").write_text("".join(lines))
    (base / "variants.txt").write_text("707-320\nF/A-18\n")


WRITERS = {
    "cifar10": lambda root: write_cifar(root, "cifar10"),
    "cifar100": lambda root: write_cifar(root, "cifar100"),
    "svhn": write_svhn,
    "stl10": write_stl10,
    "flowers102": write_flowers102,
    "food101": write_food101,
    "fgvc_aircraft": write_fgvc_aircraft,
}
# classes; rows by place; kind; side
EXPECTED = {
    "cifar10": (("ant", "zebra"), {"train": 20, "test": 4}, "photos", 32),
    "cifar100": (("ant", "zebra"), {"train": 4, "test": 4}, "photos", 32),
    "svhn": (("0", "1", "2"), {"train": 6, "test": 6}, "digits", 32),
    "stl10": (("airplane", "bird"), {"train": 4, "test": 2, "unlabeled": 5}, "photos", 96),
    "flowers102": (("hard-leaved pocket orchid", "pink primrose"), {"train": 4, "val": 2, "test": 2}, "photos", 0),
    "food101": (("apple_pie", "waffles"), {"train": 4, "test": 2}, "photos", 0),
    "fgvc_aircraft": (("707-320", "F/A-18"), {"train": 4, "val": 2, "test": 2}, "photos", 0),
}


@pytest.fixture
def no_md5(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets as sets

    for module in (sets.cifar, sets.svhn, sets.stl10, sets.flowers102):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: os.path.isfile(path))


@pytest.mark.usefixtures("no_md5")
@pytest.mark.parametrize("name", builtin.TORCHVISION)
def test_torchvision_sets(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / "root")
    dataset = find(name, data_root=str(tmp_path / "root"))
    classes, places, kind, side = EXPECTED[name]
    assert dataset.classes == classes
    assert Counter(dataset.places) == places
    assert (dataset.kind, dataset.native_size) == (kind, side)
    assert list(dataset.paths) == sorted(dataset.paths)
    assert ((dataset.labels < 0) == (np.array(dataset.places) == "unlabeled")).all()
    assert dataset.read(0, transform(32)).shape == (3, 32, 32)
    split = data.split_dataset(dataset, args.Data(num_labels=len(classes)), 0)
    assert len(split.test) == places["test"]


@pytest.mark.usefixtures("no_md5")
def test_labels_and_pixels_of_arrays(tmp_path: Path) -> None:
    write_cifar(tmp_path, "cifar10")
    dataset = find("cifar10", data_root=str(tmp_path))
    raw = pickle.loads((tmp_path / "cifar-10-batches-py" / "data_batch_1").read_bytes())
    row = dataset.paths.index("cifar10/train/0001")
    assert np.array_equal(dataset.read(row, transform(32)).numpy(), raw["data"][1].reshape(3, 32, 32))
    assert dataset.classes[dataset.labels[row]] == "ant"
    write_stl10(tmp_path)
    dataset = find("stl10", data_root=str(tmp_path))
    image = dataset.read(dataset.paths.index("stl10/train/0000"), transform(96))
    assert image[0, 0, 1] == np.fromfile(tmp_path / "stl10_binary" / "train_X.bin", np.uint8)[96]


@pytest.mark.parametrize("name", builtin.TORCHVISION)
def test_a_set_that_is_not_there(tmp_path: Path, name: str) -> None:
    message = error_of(name, data_root=str(tmp_path))
    assert message.startswith(f"{name} is not under {tmp_path}")
    assert "--download" in message


def test_damaged_sets(tmp_path: Path) -> None:
    write_cifar(tmp_path, "cifar10")  # its md5 is wrong
    assert "or not whole" in error_of("cifar10", data_root=str(tmp_path))
    write_food101(tmp_path)
    (tmp_path / "food-101" / "meta" / "test.json").write_text("{")
    assert "food101 under" in error_of("food101", data_root=str(tmp_path))


def test_a_download_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets as sets

    def fail(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(sets.cifar, "download_and_extract_archive", fail)
    message = error_of("cifar10", data_root=str(tmp_path), download=True)
    assert message.startswith("cifar10 could not be downloaded (<urlopen error no route to host>)")
