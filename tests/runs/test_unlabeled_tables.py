"""`unlabeled.csv` and `label_next.csv`: what they hold, and that a label of the user's is never lost."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from image_folders import find, folder
from runs import FROZEN, make_data, run, started
from transfermpl.images.labels_csv import ASKED
from transfermpl.runs.unlabeled_tables import UnlabeledPredictions, write_unlabeled

LINE = (*FROZEN, "--max_steps", 4, "--calibration_folds", 0)


def read(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_holds_the_class_that_the_run_decides_for(tmp_path: Path) -> None:
    dataset = find(folder(tmp_path / "d", {"a": 2, "b": 2}))
    p, one = np.array([[0.8, 0.2]], dtype=np.float32), np.array([0])
    write_unlabeled(tmp_path, dataset, UnlabeledPredictions(one, p, np.array([1]), np.zeros(1), np.zeros(1), one))
    (row,), (asked,) = read(tmp_path / "unlabeled.csv"), read(tmp_path / "label_next.csv")
    assert (row["prediction"], row["probability"], row["top1"]) == ("b", "0.200000", "a")
    assert (asked["likely"], asked["probability"], asked["label"]) == ("b", "0.200000", "")
    assert asked.keys() >= ASKED  # by which a table is known as one of ours
    assert not row.keys() >= ASKED


def test_nothing_is_asked_for_where_no_label_would_help(tmp_path: Path) -> None:
    """An image that is filed under two classes would have none still."""
    dataset = find(folder(tmp_path / "d", {"a": 2, "b": 2}))
    p, one = np.array([[0.8, 0.2]], dtype=np.float32), np.array([0])
    write_unlabeled(tmp_path, dataset, UnlabeledPredictions(one, p, one, np.zeros(1), np.zeros(1), one[:0]))
    assert len(read(tmp_path / "unlabeled.csv")) == 1
    assert not (tmp_path / "label_next.csv").exists()  # so that it is not named as the next step either


@pytest.mark.slow
def test_rounds_of_labels(tmp_path: Path) -> None:
    make_data(tmp_path / "d" / "labeled", 5)
    make_data(tmp_path / "d" / "u", 20)
    (tmp_path / "d" / "u").rename(tmp_path / "d" / "unlabeled")
    for number, path in enumerate(sorted((tmp_path / "d" / "labeled").rglob("*.png"))):
        path.write_bytes(path.read_bytes() + bytes([number]))  # no copy of an unlabeled one
    first, other = (sorted((tmp_path / "d" / "labeled" / name).iterdir())[0] for name in ("b c", "日本"))
    (first.parent / "twin.png").write_bytes(first.read_bytes()[:-1] + b"!")
    (other.parent / "twin.png").write_bytes(first.read_bytes()[:-1] + b"!")
    outcome = started(tmp_path, "--data_dir", "d", *LINE)
    unlabeled, table = read(outcome.folder() / "unlabeled.csv"), outcome.folder() / "label_next.csv"
    assert {row["path"] for row in unlabeled} == set(outcome.split()["unlabeled"])
    for row in unlabeled:
        assert row["prediction"] == row["top1"]
        assert float(row["probability"]) == float(row["p1"]) >= float(row["p2"]) >= float(row["p3"])
        assert 0 <= float(row["disagreement"]) <= 1
        assert 0 <= float(row["distance_to_labels"]) <= 2
    chosen = read(table)
    assert len(chosen) == len({row["path"] for row in chosen}) == 50
    assert all(row["label"] == "" for row in chosen)
    assert any("twin" in row["path"] for row in unlabeled)
    assert not any("twin" in row["path"] for row in chosen)  # filed under two classes, it would have no label still
    assert "Label these next" in (outcome.folder() / "report.html").read_text(encoding="utf-8")
    # A person fills in some; the next round learns from them and from the folders.
    filled = table.read_text(encoding="utf-8").replace(",,", ",b c,", 5)
    table.write_text(filled, encoding="utf-8")
    again = run("--name", "y", "--data_dir", "d", "--labels_csv", table, *LINE, cwd=tmp_path)
    assert again.code == 0, again.err
    before, after = ([split[part] for part in ("labeled", "test")] for split in (outcome.split(), again.split("y")))
    assert sum(map(len, after)) == sum(map(len, before)) + 5
    # What was asked for is no measure: the test stays, and folds count the others alone.
    assert before[1] == after[1]
    measured = run(
        "--name", "z", "--data_dir", "d", "--labels_csv", table, *LINE[:-2], "--test_percent", 0, cwd=tmp_path
    )
    assert measured.code == 0, measured.err
    folds = measured.summary("z")["cross_validation"]
    assert (folds["asked"], folds["images"]) == (5, len(measured.split("z")["labeled"]) - 5)
    assert "without the 5 that were asked for" in measured.out
    # What was filled in stays, whatever is done with the run.
    refused = run("--name", "x", "--data_dir", "d", *LINE, "--overwrite", cwd=tmp_path)
    assert refused.code == 2
    assert "label_next.csv was edited" in refused.err
    (outcome.folder() / "unlabeled.csv").unlink()
    resumed = run("--name", "x", "--resume", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    assert "label_next.csv was edited since it was written, so it stays" in resumed.err
    assert table.read_text(encoding="utf-8") == filled
    assert read(outcome.folder() / "unlabeled.csv") == unlabeled
