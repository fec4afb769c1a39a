"""Copies and conflicts, splits, and split.csv."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from image_folders import find, folder, picture, table
from runs import ROOT
from transfermpl import args, data
from transfermpl.utils import UserError

SHARED = ROOT.parent / "shared"


# --- copies -----------------------------------------------------------------------------------------------------------


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


def test_a_table_decides_which_class_an_image_of_two_belongs_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path, {"labeled/a": 2, "labeled/b": 2, "unlabeled": 3})
    for name in ("labeled/a/z1.png", "labeled/b/z1.png", "labeled/a/z2.png", "labeled/b/z2.png"):
        Image.new("RGB", (8, 8), "red" if "z1" in name else "blue").save(tmp_path / name)
    (tmp_path / "1.csv").write_text("path,label\nlabeled/a/z1.png,b\nlabeled/b/z2.png,b\n")
    (tmp_path / "2.csv").write_text("path,label\nlabeled/b/z2.png,\nlabeled/a/z2.png,a\n")
    dataset = data.find_dataset(args.Data(data_dir=str(tmp_path), labels_csv=("1.csv", "2.csv")))
    of = {path: dataset.classes[label] for path, label in zip(dataset.paths, dataset.labels.tolist(), strict=True)}
    assert (of["labeled/a/z1.png"], of["labeled/a/z2.png"], dataset.conflicts) == ("b", "a", ())
    assert "more than one class" not in capsys.readouterr().err


def test_images_that_a_run_asked_for_teach_and_are_never_tested(tmp_path: Path) -> None:
    folder(tmp_path, {"labeled/a": 10, "labeled/b": 10, "unlabeled": 8})
    before = data.find_dataset(args.Data(data_dir=str(tmp_path)))
    first = data.split_dataset(before, args.Data(), 0)
    rows = [f"unlabeled/{k:03d}.png,{'ab'[k % 2]},a,0.6,0.1,0.2" for k in range(6)]
    text = "\n".join(
        ["path,label,likely,probability,disagreement,distance_to_labels", *rows, "unlabeled/006.png,,a,,,"]
    )
    (tmp_path / "next.csv").write_text(text)
    options = args.Data(data_dir=str(tmp_path), labels_csv=("next.csv",), val_percent=0.2)
    after = data.find_dataset(options)
    assert [after.paths[row] for row in after.asked] == [f"unlabeled/{k:03d}.png" for k in range(6)]
    second = data.split_dataset(after, options, 0)
    assert {after.paths[row] for row in second.test} == {before.paths[row] for row in first.test}
    assert set(after.asked) <= set(second.labeled.tolist())
    assert not set(after.asked) & set(second.val.tolist())


def test_a_conflict_is_not_an_unlabeled_data_set(tmp_path: Path) -> None:
    folder(tmp_path, {"a": 50, "b": 50})
    for name in "ab":
        picture(tmp_path / name / "same.png", (1, 2, 3))
    split = data.split_dataset(find(tmp_path), args.Data(), 0)
    assert len(split.labeled) == 4  # 3% of 80 would be 2, and two a class are the least
    assert len(split.unlabeled) == 81


@pytest.mark.slow
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


def test_a_share_is_two_labels_a_class_at_least_where_there_are_two() -> None:
    dataset = made([0] + [c for c in range(1, 17) for _ in range(65)])
    split = data.split_dataset(dataset, args.Data(data_dir="d", num_labels_percent=0.03, test_percent=0), 0)
    assert Counter(dataset.labels[split.labeled].tolist()) == {0: 1} | dict.fromkeys(range(1, 17), 2)
    few = args.Data(data_dir="d", num_labels_percent=0.001, test_percent=0)
    assert len(data.split_dataset(dataset, few, 0).labeled) == 33


@pytest.mark.parametrize(
    ("sizes", "share", "labels"),
    [
        ([180] * 8, 0.03, [5] * 8),  # 43 would leave three classes with 6
        ([65] * 17, 0.05, [3] * 17),
        ([300, 300, 10], 0.5, [147, 147, 10]),  # the rarest has no more
        ([300, 300, 10], 1.0, [300, 300, 10]),
    ],
)
def test_a_share_is_equally_many_labels_a_class(sizes: list[int], share: float, labels: list[int]) -> None:
    dataset = made(np.repeat(np.arange(len(sizes)), sizes).tolist())
    options = args.Data(data_dir="d", num_labels_percent=share, test_percent=0)
    split = data.split_dataset(dataset, options, 0)
    assert np.bincount(dataset.labels[split.labeled]).tolist() == labels


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
        (dict(num_labels_percent=0.0), "0% of 50 images are 0 labels, but there are 5 classes: give --num_labels 5"),
        (
            dict(num_labels_percent=0.04, label_split="stratified"),
            "4% of 50 images are 2 labels, but there are 5 classes",
        ),
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
    assert text[2].split() == ["c0", "20", "2", "14", "0", "4"]
    assert text[4].split() == ["(unknown)", "1", "0", "1", "0", "0"]
    assert text[5].split() == ["2", "classes", "51", "4", "37", "0", "10"]
    many = made([c for c in range(30) for _ in range(5 + c % 2)])
    text = data.summary_table(many, data.split_dataset(many, args.Data(num_labels=31), 0)).splitlines()
    assert text[2].split() == ["each", "5..6", "1..2", "2..4", "0..0", "1..1"]
    assert len(text) == 5  # and how many labels are not used


def test_a_class_of_one_image_may_be_mistyped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    find(folder(tmp_path / "d", {"daisy": 3, "rose": 3, "rosse": 1}))
    assert "warning: only one image of rosse: is the name mistyped?" in capsys.readouterr().err
    find(folder(tmp_path / "e", {"daisy": 1, "rose": 3}))
    assert "mistyped" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "options", "used"),
    [
        (20, dict(data_dir="d"), 32),  # 3% would be one label
        (400, dict(data_dir="d"), 640),  # 3% would be 19, fewer than 10 a class
        (500, dict(data_dir="d"), 24),  # enough to show what few labels give
        (500, dict(data_dir="d", labels_csv=("t.csv",)), 800),  # who writes a table wants it used
        (100, dict(data_dir="digits"), 4),
        (20, dict(data_dir="d", num_labels_percent=0.1), 4),  # two a class
    ],
)
def test_labels_are_left_unused_only_where_many_are_there(count: int, options: dict[str, Any], used: int) -> None:
    dataset = made([0] * count + [1] * count)
    split = data.split_dataset(dataset, args.Data(**options), 0)
    assert len(split.labeled) == used
    unused = 2 * count - len(split.test) - used
    assert data.unused_labels(dataset, split) == unused
    line = (
        f"{unused} known labels are not used: these images are taken as unlabeled; --num_labels_percent 100% uses all"
    )
    assert (line in data.summary_table(dataset, split)) == (unused > 0)
