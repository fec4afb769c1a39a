"""Folder and CSV layouts: which images are found, with which label and place, and what is wrong with others."""

from __future__ import annotations

import os
import unicodedata
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
    assert capsys.readouterr().err == "warning: 1 file is of no kind that is read and is left out: 1 .txt\n"


@pytest.mark.parametrize("val", ["val", "VALID", "Validation"])
def test_train_val_test_folders(tmp_path: Path, val: str) -> None:
    folder(tmp_path, {"Train/a": 3, "Train/b": 3, f"{val}/a": 1, f"{val}/b": 2, "TEST/a": 2, "TEST/b": 1})
    dataset = find(tmp_path)
    split = data.split_dataset(dataset, args.Data(num_labels=4, val_percent=0.5), 0)
    assert [len(split.labeled), len(split.unlabeled), len(split.val), len(split.test)] == [4, 6, 3, 3]
    assert {dataset.places[row] for row in split.val} == {"val"}
    assert {dataset.places[row] for row in split.test} == {"test"}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("TrainData", "test images"),
        ("trainset", "TEST"),
    ],
)
def test_parts_by_the_names_that_people_use(tmp_path: Path, train: str, test: str) -> None:
    folder(tmp_path, {f"{train}/a": 3, f"{train}/b": 3, f"{test}/a": 2, f"{test}/b": 1})
    dataset = find(tmp_path)
    assert dataset.classes == ("a", "b")
    assert sorted(dataset.places) == ["test"] * 3 + ["train"] * 6


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("fold1", "fold2", "fold3"), "each of fold1, fold2, fold3 holds the folders a, b"),
        (("2019", "2020"), "which are the classes"),
        (("train", "samples"), "move one kind elsewhere"),
        (("train", "fold2"), "move one kind elsewhere"),
    ],
)
def test_parts_are_never_taken_for_classes(tmp_path: Path, parts: tuple[str, ...], message: str) -> None:
    folder(tmp_path, {f"{part}/{name}": 2 for part in parts for name in "ab"})
    assert message in error_of(tmp_path)


def test_one_subfolder_of_every_class_is_no_part(tmp_path: Path) -> None:
    folder(tmp_path, {"cat/images": 2, "dog/images": 2, "emu": 1})
    assert find(tmp_path).classes == ("cat", "dog", "emu")


@pytest.mark.usefixtures("without_heif")
def test_what_is_an_image_is_decided_by_content_and_the_rest_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder(tmp_path, {"a": 2, "b": 2})
    (root / "a" / "000.png").rename(root / "a" / "hash0")
    (root / "a" / "001.png").rename(root / "a" / "x.jpg_large")
    for number in range(3):
        (root / "b" / f"IMG_{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes([number]) * 50)
    (root / "b" / "IMG_3.jpg").write_bytes(b"\0\0\0\x18ftypmif1" + bytes(50))
    (root / "b" / "notes.txt").write_text("no image")
    dataset = find(root)
    assert dataset.paths == ("a/hash0", "a/x.jpg_large", "b/000.png", "b/001.png")
    said = capsys.readouterr().err
    assert "3 HEIC images (of phones) were not read; pip install pi-heif" in said
    assert "1 file is of no kind that is read and is left out: 1 .txt" in said
    assert dataset.bad_files == (("b/IMG_3.jpg", "a HEIC image; to read these: pip install pi-heif"),)


def test_no_link_brings_other_classes_into_a_class(tmp_path: Path) -> None:
    root = folder(tmp_path / "up" / "d", {"a": 2, "b": 2})
    for number, target in enumerate((root, root.parent, root / "b", tmp_path)):
        (root / "a" / f"link{number}").symlink_to(target)
    dataset = find(root)
    assert dataset.paths == ("a/000.png", "a/001.png", "b/000.png", "b/001.png")
    assert dataset.conflicts == ()


def test_what_would_be_waited_for_is_never_opened(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a": 2, "b": 2})
    os.mkfifo(root / "a" / "pipe.png")
    os.mkfifo(root / "a" / "pipe")
    (root / "b" / "kernel.png").symlink_to("/proc/kmsg")
    (root / "b" / "zero.png").symlink_to("/dev/zero")
    dataset = find(root)
    assert len(dataset) == 4
    reasons = dict(dataset.bad_files)
    assert reasons["a/pipe.png"] == reasons["b/zero.png"] == "not a file"
    assert set(reasons) == {"a/pipe.png", "b/zero.png", "b/kernel.png"}


def test_names_of_classes_that_look_alike(tmp_path: Path) -> None:
    accent = "caf\u00e9"
    root = folder(tmp_path / "nfd", {f"train/{accent}": 2, "train/b": 2, "test/b": 1})
    folder(root, {f"test/{unicodedata.normalize('NFD', accent)}": 1})
    assert find(root).classes == ("b", accent)
    folder(tmp_path / "case", {"Cat": 2, "cat ": 2, "dog": 1})
    assert "'Cat' and 'cat ' differ only in upper case or spaces" in error_of(tmp_path / "case")


def test_labeled_and_unlabeled_folders(tmp_path: Path) -> None:
    folder(tmp_path, {"labeled/a": 5, "labeled/b": 5, "unlabeled": 3, "unlabeled/deep": 2, "test/a": 1, "test/b": 1})
    dataset = find(tmp_path)
    assert (dataset.labels < 0).sum() == 5
    split = data.split_dataset(dataset, args.Data(include_labeled=False), 0)
    assert len(split.labeled) == 10  # all labels, since there are unlabeled images of its own
    assert {dataset.places[row] for row in split.unlabeled} == {"unlabeled"}
    assert len(data.split_dataset(dataset, args.Data(num_labels_percent=0.4), 0).labeled) == 4


def test_unlabeled_images_beside_the_folders_of_classes(tmp_path: Path) -> None:
    folder(tmp_path, {"a": 5, "b": 5, "unsorted/deep": 3})
    dataset = find(tmp_path)
    assert dataset.classes == ("a", "b")
    split = data.split_dataset(dataset, args.Data(include_labeled=False), 0)
    assert (len(split.labeled), len(split.unlabeled), len(split.test)) == (8, 3, 2)
    # The next round adds the labels of a table.
    (tmp_path / "t.csv").write_text("path,label\nunsorted/deep/000.png,a\n")
    more = find(tmp_path, labels_csv=("t.csv",))
    assert np.bincount(more.labels[more.labels >= 0]).tolist() == [6, 5]


def test_folders_that_only_look_like_classes_beside_a_table_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path, {"a": 5, "b": 5, "c": 2})
    (tmp_path / "t.csv").write_text("path,label\na/000.png,a\nb/000.png,b\n")
    assert (find(tmp_path, labels_csv=("t.csv",)).labels >= 0).sum() == 2
    assert "8 of these lie in folders named like classes" in capsys.readouterr().err


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
    assert "1 image lies directly" in err


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
    dataset = find(images, labels_csv=("labels.csv",))
    assert dataset.classes == ("rosé", "x, y")
    assert dict(zip(dataset.paths, dataset.labels.tolist(), strict=True)) == {
        "all/000.png": 0, "all/a, b ü.png": 1, "all/002.png": -1, away.as_posix(): 0,
        "all/003.png": -1, "all/004.png": -1, "all/005.png": -1,
    }  # fmt: skip
    split = data.split_dataset(dataset, args.Data(test_percent=0), 0)
    assert len(split.labeled) == 3


@pytest.mark.parametrize(
    "text",
    [
        "path;label\nall/000.png;0\nall/001.png;1\n",
        "Filename\tClass\nall/000.png\t0\nall/001.png\t1.0\n",
        "id,file_name,category\n7,all\\000.png,0.0\n8,all\\001.png,1\n",
        "image,species\nall/000.png,0\nall/001.png,1\nall/002.png,NaN\nall/003.png,<NA>\nall/004.png,None\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_as_people_write_them(images: Path, text: str, encoding: str) -> None:
    (images / "t.csv").write_text(text, encoding=encoding)
    dataset = find(images, labels_csv=("t.csv",))
    assert dataset.classes == ("0", "1")
    assert dataset.labels.tolist() == [0, 1, *[-1] * (len(dataset) - 2)]


def test_only_line_ends_end_a_row(images: Path) -> None:
    """Not what else Unicode knows of: a name may hold one of these signs."""
    (images / "t.csv").write_text("path,label\r\nall/000.png,a\u2028b\nall/001.png,c\x85\x0cd\n", newline="")
    assert find(images, labels_csv=("t.csv",)).classes == ("a\u2028b", "c\x85\x0cd")


def test_csv_with_a_split(images: Path) -> None:
    rows = ["0,a,train", "1,b,train", "2,a,val", "3,b,Valid", "4,a,TEST", "5,b,test"]
    text = "".join("all/00{},{},{}\n".format(row[0] + ".png", *row.split(",")[1:]) for row in rows)
    (images / "t.csv").write_text("path,label,split\n" + text)
    dataset = find(images, labels_csv=("t.csv",))
    assert dataset.places == ("train", "train", "val", "val", "test", "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must start with the line path,label"),
        ("picture,label\nall/000.png,a\n", "not 'picture,label'; path may also be called file, filename, file_name,"),
        ("Foto;Art\nall/000.png;a\n", "not 'Foto,Art'"),
        ("path,label\nall/no.png,a\nall/000.png,b\nall/none.png,a\n", "there is no file 'all/no.png', 'all/none.png'"),
        ("path,label\nall/a\0.png,a\n", ""),
        ("path,label\n,a\n", "there is no file ''"),
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
    assert message in error_of(images, labels_csv=("t.csv",))


def test_csv_that_is_not_there_or_not_text(images: Path) -> None:
    assert "there is no table" in error_of(images, labels_csv=("none.csv",))
    assert "needs a folder" in error_of("digits", labels_csv=("t.csv",))
    (images / "t.csv").write_bytes(b"path,label\nall/\xff\xfe.png,a\n")
    assert "in UTF-8" in error_of(images, labels_csv=("t.csv",))
