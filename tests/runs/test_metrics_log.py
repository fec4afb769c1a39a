"""What a run writes of its measurements: metrics.csv and TensorBoard."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
from PIL import Image

from transfermpl.base.progress import ProgressBar
from transfermpl.runs.metrics_log import MetricsLog, TensorBoardLog, require_tensorboard, shown_by
from transfermpl.utils import UserError

# --- metrics.csv ------------------------------------------------------------------------------------------------------


def test_a_row_an_epoch_is_there_at_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.csv", ["epoch", "teacher", "loss"])
    log.begin([])
    log.add({"epoch": 1, "teacher": 'größe, "a"', "loss": 1 / 3, "unknown": 5})
    with (tmp_path / "m.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == [{"epoch": "1", "teacher": 'größe, "a"', "loss": "0.333333"}]
    log.add({"epoch": 2, "teacher": "x"})
    assert (tmp_path / "m.csv").read_bytes().splitlines()[-1] == b"2,x,"
    assert b"\r" not in (tmp_path / "m.csv").read_bytes()


def test_a_run_that_goes_on_writes_its_rows_again(tmp_path: Path) -> None:
    rows = [{"epoch": n, "loss": 0.1 * n} for n in (1, 2, 3)]
    log = MetricsLog(tmp_path / "a.csv", ["epoch", "loss"])
    log.begin([])
    for row in rows:
        log.add(row)
    whole = (tmp_path / "a.csv").read_bytes()
    with (tmp_path / "a.csv").open("a") as file:
        file.write("4,0.")  # a line that a kill cut off
    again = MetricsLog(tmp_path / "a.csv", ["epoch", "loss"])
    again.begin(rows[:2])
    again.add(rows[2])
    assert (tmp_path / "a.csv").read_bytes() == whole


def test_a_few_measurements_stand_beside_the_bar() -> None:
    shown: list[tuple[int, str]] = []

    class Bar(ProgressBar):
        def show(self, done: int, text: str = "") -> None:
            shown.append((done, text))

    show = shown_by(Bar(10))
    show(3, {"mask_rate": 0.5, "supervised_loss": 1.5, "uda_loss": 0.25, "feedback_h": 3.0, "student_loss": 1.234})
    show(4, {"supervised_loss_a": 1.0, "supervised_loss_b": 2.0})
    assert shown == [(3, "loss 1.5 student 1.2 mask 0.5"), (4, "loss 1.5")]


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def test_without_the_option_nothing_of_tensorboard_is_loaded(tmp_path: Path) -> None:
    board = TensorBoardLog(tmp_path, wanted=False)
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
    with TensorBoardLog(tmp_path, wanted=True) as board:
        board.add({"epoch": 1, "step": 5, "loss": 0.5, "teacher": "model_1"})
        board.picture("samples", tmp_path / "a.png", 3)
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [(5, 0.5)]
    assert [(image.step, image.width, image.height) for image in read.Images("samples")] == [(3, 7, 5)]
    assert "teacher" not in read.Tags()["scalars"]
