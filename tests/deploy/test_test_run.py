"""What follows a run that was asked for a recall: its test, its predictions, and the figures of its page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pages import Page
from runs import COLOURS, FROZEN, make_data, make_images, run
from transfermpl.deploy.test_run import called


def test_what_is_called_a_class() -> None:
    found = called(np.array([[6, 2], [1, 3]]), 1)
    assert (found["images"], found["right"], found["precision"]) == (5, 3, 0.6)
    assert found["share"] == pytest.approx(4 / 12)
    assert called(np.array([[6, 0], [1, 0]]), 1)["ci95"] == [0.0, 1.0]


def test_a_recall_is_tested_and_kept_and_never_undone(tmp_path: Path) -> None:
    make_data(tmp_path / "d", 12)
    for name, colour in COLOURS.items():
        make_images(tmp_path / "new" / name, 5, colour, seed=7)
    line = ("--data_dir", "d", *FROZEN, "--num_labels_percent", "100%", "--test_percent", 0, "--max_steps", 6)
    trained = run("--name", "x", *line, "--recall", "ähre=0.8", cwd=tmp_path)
    assert trained.code == 0, trained.err
    lead = Page(trained.folder() / "report.html").words
    assert "Finds 84.6% of ähre or more; of what it calls ähre, about" in lead
    assert "from this probability on, an image is called ähre" in trained.out
    tested = run("--test_mode", "--load_path", "x", "--data_dir", "new", cwd=tmp_path)
    assert tested.code == 0, tested.err
    found = json.loads((trained.folder() / "test_summary.json").read_text())["called"]["ähre"]
    assert f"of {found['images']} images called ähre, {found['right']} are" in tested.out
    predicted = run("--predict_dir", "new", "--load_path", "x", "--reject", "0.99", cwd=tmp_path)
    assert predicted.code == 0, predicted.err
    assert "farther from the training images than --reject allows" in predicted.out  # also where none is
    assert "--min_probability" not in predicted.out  # it would empty most of what the threshold finds
