"""What a run tells on the screen, in metrics.csv, to TensorBoard, and in its tables."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from transfermpl.runs import progress
from transfermpl.runs.progress import Board, MetricsLog, ProgressBar, require_tensorboard, results_table
from transfermpl.utils import UserError

RESULT = {"accuracy": 0.8125, "ci95": [0.7, 0.9], "macro_f1": 0.5, "per_class": {"a": 0.5, "b": None}}
SUMMARY = {
    "test": {"teacher": RESULT, "student": RESULT | {"accuracy": 1.0}},
    "val": {},
    "labels_used": 12,
    "dataset": {"images": {"test": 16}},
}


# --- the screen -------------------------------------------------------------------------------------------------------


def test_without_a_terminal_lines_come_now_and_then_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with ProgressBar(100) as screen:
        for step in range(1, 101):
            clock[0] += 0.4
            screen.show(step, {"supervised_loss": 1.5, "uda_loss": 0.25, "feedback_h": 3.0, "mask_rate": 0.5})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("training: step 100/100  2/s  0 s left  loss 1.5 uda 0.25 mask 0.5")
    assert "30 s left" in lines[0]


def test_time_left_counts_from_where_the_run_went_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with ProgressBar(100, 80, what="features", unit="image") as screen:
        clock[0] = 11.0
        screen.show(91)
    assert capsys.readouterr().out == "features: image 91/100  1/s  9 s left\n"


def test_a_finished_run_shows_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(10, 10) as screen:
        screen.show(10)
    assert capsys.readouterr().out == ""


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressBar(10, 2) as screen:
        screen.show(7, {"student_loss": 0.5, "pseudo_label_accuracy": 0.75})
        screen.show(10, {"student_loss": 0.25})
    shown = terminal.getvalue()
    assert "training" in shown
    assert "10/10" in shown
    assert "student 0.25" in shown


# --- metrics.csv ------------------------------------------------------------------------------------------------------


def test_a_row_an_epoch_is_there_at_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.csv", ["epoch", "teacher", "loss"], [])
    log.add({"epoch": 1, "teacher": 'größe, "a"', "loss": 1 / 3, "unknown": 5})
    with (tmp_path / "m.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == [{"epoch": "1", "teacher": 'größe, "a"', "loss": "0.333333"}]
    log.add({"epoch": 2, "teacher": "x"})
    assert (tmp_path / "m.csv").read_bytes().splitlines()[-1] == b"2,x,"
    assert b"\r" not in (tmp_path / "m.csv").read_bytes()


def test_a_run_that_goes_on_writes_its_rows_anew(tmp_path: Path) -> None:
    rows = [{"epoch": n, "loss": 0.1 * n} for n in (1, 2, 3)]
    log = MetricsLog(tmp_path / "a.csv", ["epoch", "loss"], [])
    for row in rows:
        log.add(row)
    whole = (tmp_path / "a.csv").read_bytes()
    with (tmp_path / "a.csv").open("a") as file:
        file.write("4,0.")  # a line that a kill cut off
    again = MetricsLog(tmp_path / "a.csv", ["epoch", "loss"], rows[:2])
    again.add(rows[2])
    assert (tmp_path / "a.csv").read_bytes() == whole


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def test_without_the_option_nothing_of_tensorboard_is_loaded(tmp_path: Path) -> None:
    board = Board(tmp_path, wanted=False)
    board.add({"epoch": 1, "step": 5, "loss": 0.5})
    board.picture("samples", tmp_path / "absent.png", 5)
    board.close()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        require_tensorboard()


def test_curves_and_pictures_for_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Image.new("RGB", (7, 5), "red").save(tmp_path / "a.png")
    with Board(tmp_path, wanted=True) as board:
        board.add({"epoch": 1, "step": 5, "loss": 0.5, "teacher": "model_1"})
        board.picture("samples", tmp_path / "a.png", 3)
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [(5, 0.5)]
    assert [(image.step, image.width, image.height) for image in read.Images("samples")] == [(3, 7, 5)]
    assert "teacher" not in read.Tags()["scalars"]


# --- tables -----------------------------------------------------------------------------------------------------------


def test_the_table_of_results() -> None:
    lines = results_table(SUMMARY).splitlines()
    assert "81.25%" in lines[2]
    assert "70.0% to  90.0%" in lines[2]
    assert "100.00%" in lines[3]
    assert lines[-1] == "learned from 12 labels; tested on 16 images"
    assert "val accuracy" not in lines[1]
    validated = results_table(SUMMARY | {"val": SUMMARY["test"]})
    assert "val accuracy" in validated
    assert validated.splitlines()[2].rstrip().endswith("81.25%")


def test_where_nothing_was_kept_for_a_test_the_table_says_so() -> None:
    untested = SUMMARY | {"test": {}, "dataset": {"images": {"test": 0}}}
    assert "no image was kept for a test" in results_table(untested).splitlines()[-1]
