"""A finished run on new images: as a library, on a folder, in one file; and how far its probabilities are trusted."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pages import Page
from runs import COLOURS, FROZEN, MOONS, ROOT, Outcome, make_data, make_images, run, same, start
from transfermpl import args
from transfermpl.base import folder_walk
from transfermpl.base.folder_walk import files_below
from transfermpl.base.metrics import ENOUGH_TO_FIT, cross_validated_interval, disagreement, fit_temperatures, tempered
from transfermpl.data import find_dataset
from transfermpl.deploy import classifier, export, only_new, output, predict, sources
from transfermpl.deploy.sources import GivenFile
from transfermpl.runs import trainer, training
from transfermpl.runs.decision import Decision
from transfermpl.runs.trainer import Trainer
from transfermpl.utils import OneLineError, UserError

Rows = list[dict[str, str]]
TINY = ("--data_dir", "d", *FROZEN, "--num_labels", 9, "--unlabeled_batch_size", 15, "--max_steps", 12)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run `x` on a frozen backbone, calibrated on folds."""
    cwd = tmp_path_factory.mktemp("predict")
    make_data(cwd / "d")
    outcome = run("--name", "x", *TINY, cwd=cwd)
    assert outcome.code == 0, outcome.err
    return outcome


@pytest.fixture(scope="module")
def library(base: Outcome) -> classifier.Classifier:
    return classifier.load_classifier(base.folder(), device="cpu")


def read(path: Path) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def predicted(base: Outcome, folder: Path, *line: object, code: int = 0) -> Outcome:
    """`--predict_dir`, run from the folder's parent."""
    outcome = run("--predict_dir", folder, "--load_path", base.folder(), *line, cwd=folder.parent)
    assert outcome.code == code, outcome.err
    assert len(outcome.complaint()) == (code > 0)
    return outcome


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """A folder of images at several depths, with all that is found in such folders."""
    folder = tmp_path / "neu & <b>"
    make_images(folder / "a" / "tief", 2, COLOURS["ähre"], seed=3)
    make_images(folder, 2, COLOURS["日本"], seed=3, suffix="jpg")
    image = Image.open(folder / "bild 00.jpg")
    image.convert("RGBA").save(folder / "a.png")
    image.convert("CMYK").save(folder / "a-b.jpeg")
    image.convert("L").save(folder / 'zeile\n,"zwei".gif')
    image.save(folder / "without suffix", format="BMP")
    whole = (folder / "a.png").read_bytes()
    (folder / "a" / "torn.png").write_bytes(whole[: len(whole) // 2])
    (folder / "a" / "empty.jpg").touch()
    (folder / "notes.txt").write_text("no image")
    (folder / "gone.png").symlink_to("nowhere")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    (folder / ".hidden.png").write_bytes(whole)
    (folder / os.fsdecode(b"\xff.png")).write_bytes(whole)
    return folder


FINE = ["a-b.jpeg", "a.png", "a/tief/bild 00.png", "a/tief/bild 01.png", "bild 00.jpg", "bild 01.jpg",
        "without suffix", 'zeile\n,"zwei".gif', "\\xff.png"]  # fmt: skip
BAD = {"a/empty.jpg": "empty file", "a/torn.png": "truncated", "gone.png": "no such file",
       "notes.txt": "not an image", "pipe.png": "not a file"}  # fmt: skip


# --- a folder ---------------------------------------------------------------------------------------------------------


def test_every_file_gets_a_row_in_path_order_and_bad_ones_the_reason(base: Outcome, new: Path) -> None:
    outcome = predicted(base, new, "--out", "p.csv")
    rows = read(new.parent / "p.csv")
    columns = "path,prediction,probability,top1,p1,top2,p2,top3,p3,disagreement,distance,error,fingerprint"
    assert ",".join(rows[0]) == columns  # three classes, so the top-5 are three
    paths = [row["path"] for row in rows]
    assert sorted(paths) == sorted([*FINE, *BAD])
    assert paths[:-1] == sorted(paths[:-1])
    for row in rows:
        if row["path"] in BAD:
            assert BAD[row["path"]] in row["error"]
            assert not any(value for name, value in row.items() if name not in ("path", "error", "fingerprint"))
        else:
            assert row["error"] == ""
            assert row["prediction"] == row["top1"]
            assert row["probability"] == row["p1"]
            ranks = [float(row[f"p{rank}"]) for rank in (1, 2, 3)]
            assert ranks == sorted(ranks, reverse=True)
            assert sum(ranks) == pytest.approx(1, abs=1e-5)
            assert {row[f"top{rank}"] for rank in (1, 2, 3)} == set(COLOURS)
            assert 0 <= float(row["disagreement"]) <= 1
            assert 0 <= float(row["distance"]) <= 1
    assert f"{len(BAD)} files can't be classified" in outcome.err


def test_images_of_another_kind_get_no_class_and_are_counted(base: Outcome, tmp_path: Path) -> None:
    make_images(tmp_path / "new", 3, COLOURS["ähre"], seed=3)
    stripes = np.zeros((24, 24, 3), np.uint8)
    stripes[::4] = 255
    Image.fromarray(stripes).save(tmp_path / "new" / "stripes.png")
    outcome = predicted(base, tmp_path / "new", "--reject", "0.95", "--out", "p.csv")
    rows = {row["path"]: row for row in read(tmp_path / "p.csv")}
    assert float(rows["stripes.png"]["distance"]) > 0.95
    assert rows["stripes.png"]["prediction"] == ""
    far = [row["path"] for row in rows.values() if not row["prediction"]]
    assert f"{len(far)}  farther from the training images than --reject allows: no class" in outcome.out
    assert len(far) < 4


def test_the_library_knows_distances_and_takes_the_decision_of_the_run(
    library: classifier.Classifier, base: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.zeros((24, 24, 3), np.uint8)
    image[::4] = 255
    assert library.distance(image) > 0.95
    assert library.distance([]).tolist() == []
    probabilities = library(image)
    assert library.name_of(probabilities) == [library.classes[probabilities[0].argmax()]]
    for name in library.classes:
        chosen = Decision(thresholds={library.name: {name: 1e-9}})
        monkeypatch.setattr(library, "trained", replace(library.trained, decision=chosen))
        assert library.name_of(probabilities) == [name]
        assert library.decision == {"weights": [], "thresholds": {name: 1e-9}}
    monkeypatch.setattr(library, "trained", replace(library.trained, reference=None))
    with pytest.raises(UserError, match="knows no distances"):
        library.distance(image)


def test_how_sure_a_row_is_goes_by_the_class_that_it_is_given(
    library: classifier.Classifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By a threshold an image may be of a class that is not the most probable one."""
    probabilities = np.array([[0.1, 0.8, 0.1]])
    monkeypatch.setattr(
        library, "examine", lambda images: (dict.fromkeys((*library.models, library.name), probabilities), None)
    )
    monkeypatch.setattr(library, "name_of", lambda rows: [library.classes[0]] * len(rows))
    for least, name in ((0.05, library.classes[0]), (0.5, None)):
        table = predict.Table(library, args.Use(min_probability=least), "")
        with (tmp_path / "t.csv").open("wb") as file:
            table.begin(file)
            assert table.add([(GivenFile("x", "x", ""), (np.zeros(1),))]) == [name]
        assert read(tmp_path / "t.csv")[0]["probability"] == "0.100000"


def test_the_images_of_the_test_get_the_results_of_the_test(base: Outcome, tmp_path: Path) -> None:
    """The same weights, transform and ensemble; calibration changes how sure a prediction is, and never the class."""
    tested = base.split()["test"]
    for path in tested:
        (tmp_path / "t" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(base.cwd / "d" / path, tmp_path / "t" / path)
    predicted(base, tmp_path / "t", "--out", tmp_path / "p.csv")
    rows = read(tmp_path / "p.csv")
    right = [row["prediction"] == row["path"].split("/")[0] for row in rows]
    assert np.mean(right) == pytest.approx(base.summary()["test"]["ensemble"]["accuracy"])
    sure = np.array([float(row["probability"]) for row in rows])
    truth = np.array([[row[f"top{k}"] == row["path"].split("/")[0] for k in (1, 2, 3)] for row in rows], float)
    ranks = np.array([[float(row[f"p{k}"]) for k in (1, 2, 3)] for row in rows])
    brier = base.summary()["calibration"]["after"]["ensemble"]["brier"]
    assert ((ranks - truth) ** 2).sum(axis=1).mean() == pytest.approx(brier, abs=2e-3)
    assert len(set(sure.tolist())) > 1


def test_nothing_that_is_there_is_replaced(base: Outcome, tmp_path: Path) -> None:
    make_images(tmp_path / "n", 1, COLOURS["b c"])
    runs = tmp_path / "results"
    shutil.copytree(base.folder(), runs / "x")
    (runs / "x" / "predictions.csv").write_text("mine")
    line = ("--predict_dir", "n", "--load_path", "x")
    assert run(*line, cwd=tmp_path).code == 0
    assert run(*line, "--min_probability", 1, cwd=tmp_path).code == 0
    assert (runs / "x" / "predictions.csv").read_text() == "mine"
    left = {path.name for path in (runs / "x").glob("predictions*")}
    assert left == {"predictions.csv", "predictions-2.csv", "predictions-3.csv", "predictions-3_unsure.csv"}
    (tmp_path / "p.csv").write_text("mine")
    (tmp_path / "q_unsure.csv").write_text("a person's work")
    refused = run(*line, "--out", "p.csv", cwd=tmp_path)
    assert (refused.code, "p.csv is there already" in refused.err) == (2, True)
    refused = run(*line, "--out", "q.csv", "--min_probability", 1, cwd=tmp_path)
    assert (refused.code, "q_unsure.csv is there already" in refused.err) == (2, True)
    assert (tmp_path / "p.csv").read_text() == "mine"
    assert run(*line, "--out", "p.csv", "--overwrite", cwd=tmp_path).code == 2  # it is no table of predictions
    (tmp_path / "p.csv").unlink()
    for overwrite in ((), ("--overwrite",)):
        assert run(*line, "--out", "p.csv", *overwrite, cwd=tmp_path).code == 0
    assert len(read(tmp_path / "p.csv")) == 1
    assert not list(tmp_path.glob(".part*"))


@pytest.mark.parametrize("how", ["link", "copy"])
def test_files_are_sorted_into_folders_of_their_class(base: Outcome, new: Path, how: str) -> None:
    before = sorted(path.relative_to(new) for path in new.rglob("*"))
    by = ["--copy_by", "copy"] if how == "copy" else []
    predicted(base, new, "--out", "p.csv", "--predict_copy", "sorted", *by)
    rows = [row for row in read(new.parent / "p.csv") if not row["error"]]
    found = {path for path in (new.parent / "sorted").rglob("*") if not path.is_dir()}
    assert found == {new.parent / "sorted" / row["prediction"] / row["path"] for row in rows}
    assert all(path.is_symlink() == (how == "link") for path in found)
    assert {path.read_bytes() for path in found} == {
        (new / os.fsdecode(name.encode())).read_bytes() for name in FINE[:-1]
    }
    assert sorted(path.relative_to(new) for path in new.rglob("*")) == before
    again = predicted(base, new, "--out", "q.csv", "--predict_copy", "sorted", code=2)
    assert "is not empty" in again.err
    assert not (new.parent / "q.csv").exists()


def test_what_is_unsure_is_left_to_a_person_the_most_useful_first(base: Outcome, tmp_path: Path) -> None:
    for seed, colour in enumerate([*COLOURS.values(), (120, 120, 120)]):
        make_images(tmp_path / "n" / str(seed), 4, colour, seed=seed)
    predicted(base, tmp_path / "n", "--out", "all.csv")
    probabilities = sorted(float(row["probability"]) for row in read(tmp_path / "all.csv"))
    middle = (probabilities[8] + probabilities[9]) / 2  # between two, since those in the table are rounded
    predicted(base, tmp_path / "n", "--out", "p.csv", "--min_probability", middle, "--predict_copy", "sorted")
    rows, whole, unsure = (read(tmp_path / name) for name in ("p.csv", "all.csv", "p_unsure.csv"))
    left = [row for row in rows if not row["prediction"]]
    assert 6 <= len(left) <= 9
    assert all((float(row["probability"]) < middle) == (row in left) for row in rows)
    for row, one in zip(rows, whole, strict=True):  # with another least probability it is another call
        assert row | {"prediction": row["top1"], "fingerprint": one["fingerprint"]} == one
    assert list(unsure[0]) == ["path", "label", "likely", "probability", "disagreement"]
    assert {row["path"] for row in unsure} == {row["path"] for row in left}
    assert all(row["label"] == "" for row in unsure)
    keys = [(-float(row["disagreement"]), float(row["probability"])) for row in unsure]
    assert keys == sorted(keys)
    assert len(set(keys)) > 1
    assert len([path for path in (tmp_path / "sorted").rglob("*") if not path.is_dir()]) == len(rows) - len(left)
    # A person fills in labels, and a training takes the table.
    text = (tmp_path / "p_unsure.csv").read_text().replace(",,", ",rot,", 2)
    (tmp_path / "n" / "labels.csv").write_text(text.replace(",,", ",blau,"))
    dataset = find_dataset(args.Data(data_dir=str(tmp_path / "n"), labels_csv=("labels.csv",)))
    assert dataset.classes == ("blau", "rot")
    labeled = {path for path, label in zip(dataset.paths, dataset.labels, strict=True) if label >= 0}
    assert labeled == {row["path"] for row in unsure}  # the sure ones are the unlabeled set


def test_files_are_found_as_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("b/1", "a/2", "a.x", "a/1", "c", "a-1"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    listed, names = [], folder_walk.visible_names
    monkeypatch.setattr(folder_walk, "visible_names", lambda path: (listed.append(Path(path).name), names(path))[1])
    files = files_below(tmp_path)
    assert [next(files).path for _ in range(3)] == ["a-1", "a.x", "a/1"]
    assert "b" not in listed
    assert [image.path for image in files] == ["a/2", "b/1", "c"]


def test_memory_is_bounded_however_many_images_come(library: classifier.Classifier) -> None:
    taken = itertools.count()
    pixels = np.zeros((20, 20, 3), np.uint8)
    stream = library.decoded(pixels for _ in taken)
    for number in range(3 * classifier.AHEAD):
        next(stream)
        assert next(taken) - 2 * number <= classifier.AHEAD + number + 3
    stream.close()


def test_rows_are_written_as_they_come_and_an_interrupted_run_keeps_them(
    base: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_images(tmp_path / "n", 5, COLOURS["b c"])
    monkeypatch.setattr(predict, "EVALUATION_BATCH", 2)
    seen = []

    def place(self: predict.Sorter, image: GivenFile, name: str | None) -> None:
        (part,) = tmp_path.glob(".part*")
        seen.append(part.read_bytes().count(b"\n"))
        if len(seen) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(predict.Sorter, "place", place)
    outcome = predicted(base, tmp_path / "n", "--out", "p.csv", code=130)
    assert seen == [3, 3, 5, 5]
    assert len(read(tmp_path / "p.partial.csv")) == 4
    assert "p.partial.csv" in outcome.err
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["--predict_dir", "n", "--load_path", "nobody"], "no such run"),
        (["--predict_dir", "nowhere", "--load_path", "RUN"], "no such folder"),
        (["--predict_dir", "empty", "--load_path", "RUN"], "there is no file in it"),
        (["--predict_dir", "n", "gone.png", "--load_path", "RUN"], "gone.png: there is no such folder or file"),
        (["--predict_dir", "n", "--load_path", "RUN", "--out", "-", "--only_new"], "give --out a file"),
        (["--predict_dir", "n", "--load_path", "n/bild 00.png"], "can't be read as a checkpoint"),
        (["--predict_dir", "n", "--load_path", "RUN", "--predict_copy", "n/sorted"], "lies below"),
        (["--predict_dir", "n", "--load_path", "RUN", "--out", "n"], "is a folder"),
        (["--predict_dir", "n"], "--predict_dir needs --load_path"),
        (["--name", "y", "--min_probability", "0.5"], "--min_probability needs --predict_dir"),
        (["--name", "y", "--out", "p.csv"], "--out needs --predict_dir or --export"),
        (["--export", "jpeg", "--load_path", "RUN"], "choose from onnx, torch_export"),
    ],
)
def test_wrong_input_is_one_line(base: Outcome, tmp_path: Path, line: list[str], says: str) -> None:
    make_images(tmp_path / "n", 1, COLOURS["b c"])
    (tmp_path / "empty").mkdir()
    outcome = run(*[str(base.folder()) if word == "RUN" else word for word in line], cwd=tmp_path)
    assert outcome.code == 2
    assert says in outcome.err
    assert len(outcome.complaint()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"n", "empty"}


# --- other things than a folder ---------------------------------------------------------------------------------------


def test_one_image_prints_its_most_probable_classes_and_leaves_nothing(base: Outcome, new: Path) -> None:
    outcome = predicted(base, new / "bild 00.jpg")
    lines = [line.split() for line in outcome.out.splitlines()]
    assert sorted(" ".join(line[:-1]) for line in lines) == sorted(COLOURS)
    shares = [float(line[-1].removesuffix("%")) for line in lines]
    assert shares == sorted(shares, reverse=True)
    assert not list(base.folder().glob("predictions*"))
    bad = run("--predict_dir", "notes.txt", "--load_path", base.folder(), "--strict", cwd=new)
    assert bad.code == 3
    assert "notes.txt can't be classified: not an image" in bad.err


def test_files_and_folders_are_written_to_standard_output_as_they_were_named(base: Outcome, new: Path) -> None:
    one, few = f"{new.name}/bild 00.jpg", f"{new.name}/a/"
    line = ("--predict_dir", one, few, "--load_path", base.folder(), "--out", "-", "--predict_copy", "s")
    outcome = run(*line, cwd=new.parent)
    assert outcome.code == 0, outcome.err
    rows = list(csv.DictReader(outcome.out.splitlines()))
    tail = ["empty.jpg", "tief/bild 00.png", "tief/bild 01.png", "torn.png"]
    assert [row["path"] for row in rows] == [one, *(few + path for path in tail)]
    assert "2 files can't be classified" in outcome.err
    assert (new.parent / "s" / rows[0]["prediction"] / one).is_symlink()


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\0"])
def test_a_list_on_standard_input_is_classified_as_it_comes(
    base: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    make_images(tmp_path / "n", 3, COLOURS["b c"])
    reader, writer = os.pipe()
    written: list[bytes] = []

    def place(self: predict.Sorter, image: GivenFile, name: str | None) -> None:
        written.append(os.fsencode(image.path))
        if image.path == "n/bild 00.png":  # the first is classified before the last is named
            os.write(writer, b"n/bild 02.png" + end + b"n/gone.png")
            os.close(writer)

    monkeypatch.setattr(predict.Sorter, "place", place)
    os.write(writer, b"n/bild 00.png" + end)
    with open(reader, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        outcome = run("--predict_dir", "-", "--load_path", base.folder(), "--out", "p.csv", "--strict", cwd=tmp_path)
    assert outcome.code == 3, outcome.err
    rows = read(tmp_path / "p.csv")
    assert [row["path"] for row in rows] == ["n/bild 00.png", "n/bild 02.png", "n/gone.png"]
    assert [row["error"] for row in rows] == ["", "", "no such file or directory"]


def test_a_reader_that_goes_away_ends_it_in_one_line(base: Outcome, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)

    def write() -> None:
        with contextlib.redirect_stdout(stream), output.standard_output() as table:
            table.write(b"row")
            table.flush()

    with open(writer, "w") as stream, pytest.raises(OneLineError, match="nobody reads"):
        write()
    with pytest.raises(UserError, match="give a file"):  # no export goes there
        output.output("-", tmp_path, "classifier.onnx", overwrite=False, is_own=bool)


def test_an_absolute_path_is_sorted_below_its_class_and_no_file_replaces_another(tmp_path: Path) -> None:
    make_images(tmp_path / "n", 1, COLOURS["b c"])
    file = tmp_path / "n" / "bild 00.png"
    (tmp_path / "other.png").write_bytes(b"another")
    sorter = predict.Sorter(args.Use(predict_copy=str(tmp_path / "s"), copy_by="copy"), sources.Given(["-"]), ["c"])
    for path, source in ((str(file), file), (f"..{file}", tmp_path / "other.png")):
        sorter.place(GivenFile(path, str(source), ""), "c")
    placed = (tmp_path / "s" / "c").joinpath(*file.parts[1:])
    assert placed.read_bytes() == file.read_bytes()
    assert placed.with_stem("bild 00-2").read_bytes() == b"another"


# --- again ------------------------------------------------------------------------------------------------------------


def test_only_what_is_new_is_read_again(base: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_images(tmp_path / "n", 3, COLOURS["b c"])
    (tmp_path / "n" / "notes.txt").write_text("no image")
    read_now: list[str] = []
    pixels = classifier._pixels
    monkeypatch.setattr(
        classifier, "_pixels", lambda image, *more: (read_now.append(Path(image).name), pixels(image, *more))[1]
    )

    def again(*more: object) -> Rows:
        read_now.clear()
        predicted(base, tmp_path / "n", "--out", "p.csv", "--only_new", *more)
        return read(tmp_path / "p.csv")

    first = again()
    assert len(first) == len(read_now) == 4
    assert again() == first
    assert read_now == ["notes.txt"]  # what could not be read may be readable now
    make_images(tmp_path / "n", 2, COLOURS["ähre"], seed=9, suffix="jpg")
    shutil.copy(tmp_path / "n" / "bild 00.jpg", tmp_path / "n" / "bild 02.png")
    second = again()
    assert sorted(read_now) == ["bild 00.jpg", "bild 01.jpg", "bild 02.png", "notes.txt"]
    assert [row["path"] for row in second[:2]] == ["bild 00.png", "bild 01.png"]
    assert second[:2] == first[:2]
    assert sorted(row["path"] for row in second) == sorted(path.name for path in (tmp_path / "n").iterdir())
    predicted(base, tmp_path / "n", "--out", "p.csv", "--only_new", "--min_probability", 1, code=2)  # another table
    again("--min_probability", 1, "--overwrite")
    unsure = read(tmp_path / "p_unsure.csv")
    read_now.clear()
    again("--min_probability", 1)
    assert read_now == ["notes.txt"]
    assert read(tmp_path / "p_unsure.csv") == unsure


def test_the_earlier_table_is_that_of_the_same_classifier(base: Outcome, tmp_path: Path) -> None:
    header, call = ["path", "error", "fingerprint"], only_new.of_call(base.folder() / "checkpoints" / "best.pt", 1)
    other = only_new.of_call(base.folder() / "checkpoints" / "last.pt", 1)
    assert call != other != only_new.of_call(base.folder() / "checkpoints" / "last.pt", 2)
    for name, mark in (("p.csv", call), ("p-2.csv", call), ("p-3.csv", other)):
        (tmp_path / name).write_text(f"path,error,fingerprint\na,,{mark}-1\n")
    assert only_new.earlier_table(tmp_path / "p.csv", header, call, numbered=True) == tmp_path / "p-2.csv"
    assert only_new.earlier_table(tmp_path / "p.csv", header, other, numbered=False) is None
    assert only_new.earlier_table(tmp_path / "p.csv", header[1:], call, numbered=True) is None
    with (tmp_path / "p.csv").open("ab") as file:  # whose rows would be lost
        file.write(b"b,\xff")
    with pytest.raises(UserError, match="leave out --only_new"):
        list(only_new.rows_of(tmp_path / "p.csv", header))


def test_a_run_of_points_has_no_images(tmp_path: Path) -> None:
    assert run("--name", "p", *MOONS, cwd=tmp_path).code == 0
    make_images(tmp_path / "n", 1, COLOURS["b c"])
    for line in (["--predict_dir", "n"], ["--export", "onnx"]):
        outcome = run(*line, "--load_path", "p", cwd=tmp_path)
        assert outcome.code == 2
        assert "learned from points" in outcome.err


def test_disagreement_is_none_for_equal_and_all_for_opposite_models() -> None:
    a, b, c = np.array([[1.0, 0, 0], [0.2, 0.3, 0.5]]), np.array([[0.0, 1, 0], [0.2, 0.3, 0.5]]), np.eye(3)[[2, 2]]
    assert disagreement({"a": a, "b": b}, ["a", "b"]) == pytest.approx([1, 0], abs=1e-9)
    assert disagreement({"a": a, "b": b, "c": c}, ["a", "b", "c"])[0] == pytest.approx(1)
    assert disagreement({"a": a, "ensemble": c}, ["a"]) == pytest.approx([0, 0])


# --- as a library -----------------------------------------------------------------------------------------------------


def test_the_library_takes_files_pictures_and_arrays(
    base: Outcome, library: classifier.Classifier, tmp_path: Path
) -> None:
    make_images(tmp_path, 3, COLOURS["ähre"], seed=5)
    files = sorted(tmp_path.glob("*.png"))
    found = library([str(path) for path in files])
    assert found.shape == (3, 3)
    assert found.dtype == np.float32
    assert found.sum(axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert library.classes == tuple(base.checkpoint()["classes"])
    pictures = [Image.open(path) for path in files]
    arrays = (np.array(picture) for picture in pictures)
    assert library(pictures) == pytest.approx(found, abs=1e-6)
    assert library(arrays) == pytest.approx(found, abs=1e-6)
    assert library(files[1]) == pytest.approx(found[1:2], abs=1e-6)  # a row does not hang on those beside it
    assert library(np.array(pictures[2])) == pytest.approx(found[2:], abs=1e-6)
    assert library([]).shape == (0, 3)
    assert set(library.by_model(files)) == {"teacher", "student", "ensemble"}
    many = library(files * 50)
    assert many.shape == (150, 3)
    assert many[-3:] == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize("wrong", ["nowhere.png", np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), 5])
def test_the_library_names_what_it_can_not_take(library: classifier.Classifier, wrong: Any) -> None:
    with pytest.raises(UserError, match="can't be classified"):
        library([wrong])


def test_a_checkpoint_without_temperatures_predicts_as_it_did(base: Outcome, tmp_path: Path, capsys: Any) -> None:
    content = base.checkpoint()
    temperatures = content.pop("temperatures")
    assert set(temperatures) == {"teacher", "student", "ensemble"}
    torch.save(content, tmp_path / "old.pt")
    old = classifier.load_classifier(tmp_path / "old.pt", device="cpu")
    assert "not calibrated" in capsys.readouterr().err
    classifier.load_classifier(base.folder(), device="cpu")
    assert capsys.readouterr().err == ""
    temperatures = dict.fromkeys(temperatures, 1.7)  # those of the run may all be 1
    torch.save({**content, "temperatures": temperatures}, tmp_path / "new.pt")
    now = classifier.load_classifier(tmp_path / "new.pt", device="cpu")
    images = sorted((base.cwd / "d").rglob("*.png"))
    before, after = old.by_model(images), now.by_model(images)
    assert before["ensemble"] == pytest.approx((before["teacher"] + before["student"]) / 2, abs=1e-6)
    for name, temperature in temperatures.items():
        assert after[name] == pytest.approx(tempered(before[name], temperature), abs=1e-6)
        assert (after[name].argmax(axis=1) == before[name].argmax(axis=1)).all()
    assert not np.allclose(before["ensemble"], after["ensemble"], atol=1e-5)


def test_a_run_that_is_not_finished_is_taken_with_a_warning(base: Outcome, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(base.folder(), tmp_path / "x")
    (tmp_path / "x" / "checkpoints" / "best.pt").unlink()
    assert classifier.load_classifier(tmp_path / "x", device="cpu").path.name == "last.pt"
    assert "was not finished" in capsys.readouterr().err


# --- one file ---------------------------------------------------------------------------------------------------------

ALONE = """
import json, sys
sys.modules["transfermpl"] = None  # wherever it is installed, nothing here can import it
import numpy
file, images = sys.argv[1], numpy.load(sys.argv[2])
if file.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(file)
    about = session.get_modelmeta().custom_metadata_map
    run = lambda part: session.run(None, {"images": part})[0]
else:
    import torch
    extra = {"metadata.json": ""}
    program = torch.export.load(file, extra_files=extra).module()
    about = json.loads(extra["metadata.json"])
    run = lambda part: program(torch.from_numpy(part)).numpy()
found = [run(images[i:j]).tolist() for i, j in ((0, 1), (1, 3), (3, len(images)))]
print(json.dumps([about, sum(found, [])]))
"""


def in_a_process_of_its_own(file: Path, images: np.ndarray) -> tuple[dict[str, str], np.ndarray]:
    """The metadata and the probabilities that a program without this project gets from the file."""
    np.save(file.with_suffix(".npy"), images)
    command = [sys.executable, "-I", "-c", ALONE, str(file), str(file.with_suffix(".npy"))]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=file.parent, env=env, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    about, found = json.loads(done.stdout.splitlines()[-1])
    return about, np.array(found)


@pytest.fixture(scope="module")
def unfrozen(base: Outcome) -> Outcome:
    """A run `u` whose two models have a backbone each."""
    outcome = run("--name", "u", *TINY, "--unfreeze", "all", "--max_steps", 3, cwd=base.cwd)
    assert outcome.code == 0, outcome.err
    return outcome


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "torch_export"])
@pytest.mark.parametrize("name", ["x", "u"])
def test_one_file_gives_the_same_without_this_project(
    base: Outcome, unfrozen: Outcome, tmp_path: Path, kind: str, name: str
) -> None:
    file = tmp_path / f"c{export.SUFFIX[kind]}"
    outcome = run("--export", kind, "--load_path", name, "--out", file, cwd=base.cwd)
    assert outcome.code == 0, outcome.err
    assert "checked on 36 images: the probabilities differ by" in outcome.out
    assert {path.name for path in tmp_path.iterdir()} == {file.name, "classify.py"}  # weights inside
    # A file is of full precision; by default a frozen backbone need not be.
    line = ("--export", kind, "--load_path", str(base.folder(name)))
    library = output.classifier_of(args.parse(line).mode, export.EXACT)
    images = sorted((base.cwd / "d").rglob("*.png"))[::5]
    fitted = [pixels for _, pixels in library.decoded(images)]
    about, found = in_a_process_of_its_own(file, np.stack([pixels[0] for pixels in fitted]))  # type: ignore[index]
    assert found == pytest.approx(library(images), abs=1e-4)
    transform = library.transforms[0]
    assert (int(about["size"]), int(about["resize"])) == (transform.size, transform.resize) == (16, transform.resize)
    assert about["interpolation"] == transform.interpolation
    assert json.loads(about["classes"]) == sorted(COLOURS)


@pytest.mark.slow
def test_a_file_that_differs_is_an_error_and_is_not_kept(
    base: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export.Packed.__init__

    def wrong(self: export.Packed, classifier: classifier.Classifier) -> None:
        real(self, classifier)
        self.temperature *= 1.5

    monkeypatch.setattr(export.Packed, "__init__", wrong)
    outcome = run("--export", "torch_export", "--load_path", "x", "--out", tmp_path / "c.pt2", cwd=base.cwd)
    assert outcome.code == 2
    assert "which is more than 0.001" in outcome.err
    assert not list(tmp_path.iterdir())


def test_packages_that_are_missing_are_named(base: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    outcome = run("--export", "onnx", "--load_path", "x", cwd=base.cwd)
    assert outcome.code == 2
    assert "pip install onnx onnxscript onnxruntime" in outcome.err


@pytest.mark.slow
def test_the_check_needs_images_and_takes_others(base: Outcome, tmp_path: Path) -> None:
    shutil.copytree(base.folder(), tmp_path / "x")
    line = ("--export", "torch_export", "--load_path", "x")
    outcome = run(*line, cwd=tmp_path)
    assert outcome.code == 2
    assert "--data_dir" in outcome.err
    make_images(tmp_path / "n", 3, COLOURS["b c"])
    for number in ("", "-2"):
        outcome = run(*line, "--data_dir", "n", cwd=tmp_path)
        assert outcome.code == 0, outcome.err
        assert "checked on 3 images" in outcome.out
        assert (tmp_path / "x" / f"classifier{number}.pt2").is_file()


def test_views_that_want_different_images_do_not_fit_into_one_file(library: classifier.Classifier) -> None:
    import dataclasses

    first = library.transforms[0]
    other = dataclasses.replace(first, mean=(0.1, 0.2, 0.3))
    fake: Any = type("Fake", (), {"transforms": (first, other)})
    assert export._only_transform(fake) == first
    fake.transforms = (first, dataclasses.replace(first, size=20))
    with pytest.raises(UserError, match="16 .* and 20"):
        export._only_transform(fake)


@pytest.mark.slow
def test_a_run_of_several_views_is_predicted_and_packed(base: Outcome, tmp_path: Path) -> None:
    line = ("--cotrain_mode", "--views", "pixels", "gradients", "--data_dir", base.cwd / "d", "--num_labels", 9)
    line += ("--head_prior", "none", "--num_workers", 0)
    outcome = run("--name", "v", *line, "--max_steps", 3, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert set(outcome.checkpoint(name="v")["temperatures"]) == {"pixels", "gradients", "ensemble"}
    assert run("--predict_dir", base.cwd / "d", "--load_path", "v", "--out", "p.csv", cwd=tmp_path).code == 0
    assert len(read(tmp_path / "p.csv")) == 36
    # At the size of the data's own 8 x 8 digits both views want the same images; else they want different ones.
    outcome = run("--export", "torch_export", "--load_path", "v", cwd=tmp_path)
    assert outcome.code == 2
    assert "one file takes only one kind" in outcome.err
    digits = (*line[:4], "--data_dir", "digits", "--max_steps", 3, "--calibration_folds", 0)
    assert run("--name", "w", *digits, "--head_prior", "none", cwd=tmp_path).code == 0
    outcome = run("--export", "torch_export", "--load_path", "w", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "checked on 64 images" in outcome.out


def test_the_commands_of_the_page_are_understood() -> None:
    page = (ROOT / "docs" / "predict.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("python MPL.py")]
    assert len(lines) >= 4
    for line in lines:
        assert args.parse(line.split()[2:])


def examples() -> list[str]:
    """The Python programs of the page."""
    page = (ROOT / "docs" / "predict.md").read_text(encoding="utf-8")
    return [block.split("```")[0] for block in page.split("```python\n")[1:]]


@pytest.mark.slow
def test_the_examples_of_the_page_run(base: Outcome, tmp_path: Path) -> None:
    library_example, onnx_example = examples()
    shutil.copytree(base.folder(), tmp_path / "results" / "exp")
    image = sorted((base.cwd / "d").rglob("*.png"))[0]
    shutil.copy(image, tmp_path / "new.jpg")
    assert run("--export", "onnx", "--load_path", "exp", "--data_dir", base.cwd / "d", cwd=tmp_path).code == 0
    expected = classifier.load_classifier(base.folder(), device="cpu")(image)[0]
    shutil.copy(image, tmp_path / "results" / "exp" / "new.jpg")
    for program, place in ((library_example, tmp_path), (onnx_example, tmp_path / "results" / "exp")):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
        command = [sys.executable, "-X", "utf8", "-c", program]
        done = subprocess.run(command, cwd=place, env=env, text=True, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
        name, probability = done.stdout.strip().rsplit(" ", 1)
        assert name == sorted(COLOURS)[expected.argmax()]
        assert float(probability) == pytest.approx(expected.max(), abs=1e-3)


# --- calibration ------------------------------------------------------------------------------------------------------


def test_a_frozen_run_is_calibrated_on_labels_that_it_has_not_learned(
    base: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = base.summary()["calibration"]
    assert (found["method"], found["folds"], found["images"]) == ("cross-fitted", 3, 9)
    assert found["temperatures"] == base.checkpoint()["temperatures"]
    for state in ("before", "after"):
        for errors in found[state].values():
            assert 0 <= errors["ece"] <= 1
            assert 0 <= errors["brier"] <= 2
    make_data(tmp_path / "d")
    splits = []
    real = Trainer.learn

    def learn(self: Any, *rest: Any, **named: Any) -> None:
        splits.append(self.context.split)
        real(self, *rest, **named)

    monkeypatch.setattr(Trainer, "learn", learn)
    again = run("--name", "x", *TINY, cwd=tmp_path)
    assert again.summary()["calibration"] == found
    whole, *folds = splits
    assert len(folds) == 6  # its test is small, so the labels are dealt out twice
    first, second = ([fold.val.tolist() for fold in folds[start : start + 3]] for start in (0, 3))
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == sorted(whole.labeled)
    assert first != second
    for fold in folds:
        assert not np.isin(fold.val, np.concatenate([fold.labeled, fold.unlabeled])).any()
        assert set(fold.labeled) | set(fold.val) == set(whole.labeled)
        assert set(fold.unlabeled) | set(fold.val) == set(whole.unlabeled)
        assert not len(fold.test)


def test_a_small_test_stands_beside_the_accuracy_on_the_folds(base: Outcome) -> None:
    folds = base.summary()["cross_validation"]
    assert (folds["folds"], folds["repeats"], folds["images"]) == (3, 2, 9)
    assert folds["models"].keys() == base.summary()["test"].keys()
    for result in folds["models"].values():
        assert 18 * result["accuracy"] == pytest.approx(round(18 * result["accuracy"]))
        assert result["ci95"] == cross_validated_interval(result["accuracy"], 9, 3, 2)
    assert "cross-validated on 9 labels, in 3 folds, 2 times; tested on" in base.out


@pytest.mark.slow
def test_a_run_without_a_test_is_as_useful_as_any_other(base: Outcome) -> None:
    outcome = run("--name", "all", *TINY, "--test_percent", 0, cwd=base.cwd, pictures=True)
    assert outcome.code == 0, outcome.err
    summary = outcome.summary("all")
    assert not summary["test"]
    assert summary["cross_validation"]["models"]["ensemble"]["accuracy"] > 0
    assert "no image was kept for a test" in outcome.out
    left = {path.name for path in outcome.folder("all").iterdir()}
    assert "reliability.png" not in left
    assert not [name for name in left if name.endswith("_CM.png")]
    page = Page(outcome.folder("all") / "report.html")
    assert "cross-validated on the labels" in page.words
    assert {"Each class", "The least sure images"} <= set(page.headings)  # of what folds held out
    assert "How far its probabilities can be trusted" not in page.headings  # the temperature was chosen on these
    again = run("--name", "all", "--resume", cwd=base.cwd)
    assert "ended already" in again.out
    tested = run("--test_mode", "--load_path", "all", cwd=base.cwd)
    assert (tested.code, len(tested.complaint())) == (2, 1)
    assert run("--predict_dir", "d", "--load_path", "all", cwd=base.cwd).code == 0
    # Where there are no folds either, a warning says that nothing is known.
    blind = run("--name", "blind", *TINY, "--test_percent", 0, "--calibration_folds", 0, cwd=base.cwd)
    assert "nobody knows" in blind.err
    assert "--calibration_folds 0" in blind.err


def test_calibration_leaves_the_training_as_it_is(base: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    without = run("--name", "n", *TINY, "--calibration_folds", 0, cwd=base.cwd)
    assert without.metrics("n") == base.metrics()
    assert same(without.checkpoint(name="n")["models"], base.checkpoint()["models"])
    assert without.summary("n")["test"] == base.summary()["test"]
    assert without.checkpoint(name="n")["temperatures"] == {}
    found = without.summary("n")["calibration"]
    assert (found["method"], found["reason"]) == ("none", "--calibration_folds 0")
    assert found["before"] == base.summary()["calibration"]["before"]
    assert "after" not in found
    # Of so few images no temperature is below 1, and then all of them are 1 here.
    monkeypatch.setattr("transfermpl.runs.calibration.ENOUGH_TO_SHARPEN", 0)
    several = [run("--name", f"t{n}", *TINY, "--calibration_folds", n, cwd=base.cwd) for n in (2, 3)]
    two, three = (outcome.summary(f"t{n}")["calibration"] for n, outcome in zip((2, 3), several, strict=True))
    assert (two["folds"], three["folds"]) == (2, 3)
    assert two["temperatures"] != three["temperatures"]


def test_validation_images_are_taken_where_there_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = fit_temperatures
    monkeypatch.setattr(
        "transfermpl.runs.calibration.fit_temperatures",
        lambda p, labels, **more: (seen.append(labels), real(p, labels, **more))[1],
    )
    outcome = run("--name", "x", *MOONS, "--val_percent", "20%", cwd=tmp_path)
    found = outcome.summary()["calibration"]
    assert (found["method"], found["images"]) == ("validation", 160)
    assert len(seen[0]) == 160 == outcome.summary()["dataset"]["images"]["val"]
    few = run("--name", "y", *MOONS, "--val_percent", "5%", cwd=tmp_path).summary("y")
    assert few["dataset"]["images"]["val"] < ENOUGH_TO_FIT
    assert few["calibration"]["method"] == "none"  # the network is not frozen
    assert "--calibration_folds" in few["calibration"]["reason"]
    asked = run("--name", "z", *MOONS, "--calibration_folds", 2, cwd=tmp_path).summary("z")
    assert asked["calibration"]["method"] == "cross-fitted"


@pytest.mark.slow
def test_a_fold_whose_views_are_its_own_is_predicted_through_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views tuned on all labeled images have learned what is held out, so a fold's heads stand on views of its own."""
    make_data(tmp_path / "d")
    seen = []
    real = trainer.predict_rows
    for module in (trainer, training):
        monkeypatch.setattr(
            module, "predict_rows", lambda models, views, rows: (seen.append(views), real(models, views, rows))[1]
        )
    line = ("--cotrain_mode", "--views", "pixels", "cnn", "--finetune_views", "--data_dir", "d", "--num_labels", 9)
    outcome = run("--name", "x", *line, "--num_workers", 0, "--max_steps", 3, "--head_prior", "none", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.summary()["calibration"]["method"] == "cross-fitted"
    assert len({id(views) for views in seen}) > 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [(["--num_labels", 3], "one label"), (["--load_path", "x", "--finetune_mode"], "has learned from the labeled")],
)
def test_what_can_not_be_calibrated_says_why(base: Outcome, line: list[object], reason: str) -> None:
    data = [] if "--load_path" in line else ["--data_dir", "d", *FROZEN]
    outcome = run("--name", "w", "--overwrite", *data, *line, "--max_steps", 3, cwd=base.cwd)
    assert outcome.code == 0, outcome.err
    assert reason in outcome.summary("w")["calibration"]["reason"]


def test_a_test_of_new_images_reports_the_same_temperatures(base: Outcome, tmp_path: Path) -> None:
    shutil.copytree(base.folder(), tmp_path / "results" / "x")
    line = ("--test_mode", "--load_best", "--load_path", "x", "--data_dir", base.cwd / "d", "--no_cache")
    assert run(*line, cwd=tmp_path).code == 0
    tested = json.loads((tmp_path / "results" / "x" / "test_summary.json").read_text())
    assert tested["calibration"]["temperatures"] == base.summary()["calibration"]["temperatures"]
    assert tested["calibration"]["after"]["ensemble"]["brier"] == pytest.approx(
        base.summary()["calibration"]["after"]["ensemble"]["brier"], abs=1e-3
    )


# --- for real ---------------------------------------------------------------------------------------------------------

SHARED = ROOT.parent / "shared"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="needs photographs and weights beside the checkout")
@pytest.mark.parametrize("model", ["squeezenet1_1", "mobilenet_v2"])
def test_photographs_end_to_end(tmp_path: Path, model: str) -> None:
    ants = SHARED / "data" / "hymenoptera"
    line = ("--data_dir", ants, "--model_name", model, "--weights", SHARED / "weights" / f"{model}.safetensors")
    process = start(
        "--name", "exp", *line, "--num_labels", 30, "--max_steps", 100, "--augmentation_draws", 1, cwd=tmp_path
    )
    assert process.wait(timeout=900) == 0
    for kind in ("onnx", "torch_export"):
        outcome = run("--export", kind, "--load_path", "exp", cwd=tmp_path)
        assert outcome.code == 0, outcome.err
    outcome = run("--predict_dir", ants, "--load_path", "exp", "--out", "p.csv", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    rows = read(tmp_path / "p.csv")
    truth = {path: path.split("/")[-2] for path in (row["path"] for row in rows)}
    assert np.mean([row["prediction"] == truth[row["path"]] for row in rows]) > 0.75


# --- what decisions rest on -------------------------------------------------------------------------------------------


def test_explained_images_and_their_page(base: Outcome, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    make_images(folder, 2, (200, 30, 30), seed=5)
    (folder / "torn.png").write_bytes(b"no image")
    line = ("--explain", folder, "--load_path", base.folder())
    outcome = run(*line, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "not explained: 1 file" in outcome.err
    page, pictures = base.folder() / "explained.html", base.folder() / "explained_images"
    assert len(Page(page).all("img")) == 4  # each image, and beside it what its class rests on
    with Image.open(sorted(pictures.iterdir())[0]) as picture:
        assert picture.width == 2 * picture.height
    assert len(list(pictures.iterdir())) == 2
    assert run(*line, cwd=tmp_path).code == 0
    assert (base.folder() / "explained-2.html").is_file()
    assert len(list((base.folder() / "explained-2_images").iterdir())) == 2
    nowhere = run("--explain", tmp_path / "nowhere", "--load_path", base.folder(), cwd=tmp_path)
    assert nowhere.code == 2
    assert "--explain" in nowhere.err
