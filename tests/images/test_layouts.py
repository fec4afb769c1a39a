"""Folder and CSV layouts: which images are found, with which label and place, and what is wrong with others."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from image_folders import error_of, find, folder, picture, table, transform
from transfermpl import args, data

# --- folders ----------------------------------------------------------------------------------------------------------


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


def test_empty_class_and_loose_images_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "loose.png")
    assert find(tmp_path).classes == ("a", "b")
    err = capsys.readouterr().err
    assert "no images in empty" in err
    assert "1 images lie directly" in err


@pytest.mark.parametrize("sub", ["", "train", "unlabeled"])
def test_folders_that_can_not_be_read_are_named(
    sub: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / sub if sub else tmp_path
    folder(root, {"a": 2, "a/closed": 1, "b": 2, "lost": 1})
    if sub == "unlabeled":
        folder(tmp_path, {"labeled/a": 2, "labeled/b": 2})
    scandir = os.scandir

    def scan(path: str | Path) -> object:
        if Path(path).name in ("closed", "lost"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    dataset = find(tmp_path)
    assert dataset.classes == ("a", "b")
    assert not any("closed" in path or "lost" in path for path in dataset.paths)
    warning = f"warning: 2 folders can't be read and are left out, the first: {root}/a/closed/\n"
    assert capsys.readouterr().err.count(warning) == 1


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
