"""The lines that a command ends with can be typed as they stand."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from transfermpl import args
from transfermpl.runs.next_command import after_inspection, after_prediction, after_training, following


def told(lines: str) -> list[args.Options]:
    """The options of each line, which must be understood."""
    commands = [shlex.split(line.partition(": ")[2]) for line in lines.splitlines()]
    assert all(command[:2] == ["python", "MPL.py"] for command in commands)
    return [args.parse(command[2:]) for command in commands]


def record(folder: Path, *line: str) -> None:
    folder.mkdir(parents=True)
    (folder / "commandline_args.txt").write_text(json.dumps(args.parse(line).recorded()))


def test_a_training_is_followed_by_a_prediction_and_a_round_of_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    summary = {"name": "größe 1", "labels_unused": 0}
    record(Path("results/größe 1"), "--name", "größe 1", "--data_dir", "a b", "--num_labels", "9", "--max_steps", "7")
    after_training(summary)
    (predicting,) = told(capsys.readouterr().out)
    assert predicting.mode.predict_dir == ("NEW_IMAGES",)
    assert predicting.mode.load_path == "größe 1"
    Path("results/größe 1/label_next.csv").touch()
    after_training(summary)
    _, again = told(capsys.readouterr().out)
    assert (again.run.name, again.data.data_dir, again.learning.max_steps) == ("größe 1-2", "a b", 7)
    assert again.data.num_labels is None  # the new labels are to count
    assert "results/größe 1/label_next.csv" in again.data.labels_csv
    after_training({**summary, "labels_unused": 90})  # which cost nothing
    assert len(told(capsys.readouterr().out)) == 1
    after_training({**summary, "seeds": [3, 4]})
    assert told(capsys.readouterr().out)[0].mode.load_path == "größe 1/seed-3"


def test_points_are_followed_by_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    record(Path("results/x"), "--name", "x", "--data_dir", "moons")
    after_training({"name": "x"})
    assert capsys.readouterr().out == ""


def test_what_follows_an_inspection_and_a_prediction(capsys: Any) -> None:
    after_inspection("look", ["--data_dir", "a b"])
    after_prediction(["a b", "c"], "results/x")
    training, predicting = told(capsys.readouterr().out)
    assert (training.run.name, training.data.data_dir) == ("look-train", "a b")
    assert predicting.mode.predict_dir == ("a b", "c")
    assert predicting.use.min_probability == 0.9


def test_the_next_round_has_the_next_number() -> None:
    assert [following(name) for name in ("exp", "exp-2", "a-9", "2")] == ["exp-2", "exp-3", "a-10", "2-2"]
