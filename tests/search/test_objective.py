"""What a trial is measured on and how; the test images are never used."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from runs import FROZEN, make_data, run
from searches import SHORT, goal_of, parsed, study_in, table, tune
from transfermpl import optuna_search
from transfermpl.features import blocks
from transfermpl.runs import run as experiment
from transfermpl.search import objective
from transfermpl.search.space import USUAL

pytestmark = pytest.mark.usefixtures("forked_workers")


@pytest.mark.slow
def test_a_trial_is_the_training_on_stratified_folds(tmp_path: Path) -> None:
    line = ("--switch_mode", *SHORT, "--n_trials", 2, "--folds", 4, "--threshold", 0.6)
    outcome = tune(*line, cwd=tmp_path)
    assert "mean accuracy over 4 folds, 24 predictions a trial" in outcome.out
    options = parsed(*line)
    goal = goal_of(options)
    for row in table(tmp_path):
        values = {name: float(row[name]) for name in USUAL} | {"uda_steps": int(row["uda_steps"])}
        by_hand = [
            experiment.fold_accuracy(options.changed(**values), goal.dataset, part)["ensemble"] for part in goal.parts
        ]
        assert float(row["value"]) == pytest.approx(np.mean(by_hand), abs=1e-9)
    labels = [np.bincount(goal.dataset.labels[part.val]).tolist() for part in goal.parts]
    assert labels == [[3, 3]] * 4


@pytest.mark.parametrize(
    "mode",
    [
        ("--finetune_mode",),
        pytest.param(
            ("--cotrain_mode", "--views", "pixels", "gradients", "--data_dir", "digits"), marks=pytest.mark.slow
        ),
    ],
)
def test_every_mode_can_be_searched(mode: tuple[str, ...], tmp_path: Path) -> None:
    line = (*mode, "--num_labels", 30, "--unlabeled_batch_size", 200, "--max_steps", 4, "--folds", 2, "--n_trials", 1)
    tune(*line, cwd=tmp_path)
    options = parsed(*line)
    with contextlib.chdir(tmp_path):
        goal = goal_of(options)
        by_hand = [objective.last_of(experiment.fold_accuracy(options, goal.dataset, part)) for part in goal.parts]
    (row,) = table(tmp_path)
    assert float(row["value"]) == pytest.approx(np.mean(by_hand), abs=1e-9)
    best = json.loads((tmp_path / "results" / "t" / "best_args.json").read_text())
    assert best[mode[0].removeprefix("--")] is True


def test_with_validation_images_their_accuracy_in_a_run_is_the_value(tmp_path: Path) -> None:
    line = ("--val_percent", "20%", *SHORT, "--max_lr", "0.01")
    assert "validation accuracy, 160 predictions a trial" in tune(*line, "--n_trials", 1, cwd=tmp_path).out
    trained = run("--name", "x", "--data_dir", "moons", *line, cwd=tmp_path)
    assert float(table(tmp_path)[0]["value"]) == trained.summary()["val"]["ensemble"]["accuracy"]
    (trial,) = study_in(tmp_path).trials
    assert len(trial.intermediate_values) == len(trained.rows())


def test_folds_need_labels_of_each_class(tmp_path: Path) -> None:
    outcome = tune("--num_labels", 6, "--folds", 4, cwd=tmp_path, code=2)
    assert "--folds 4 needs 4 labeled images of each class, the rarest has 3" in outcome.err
    assert not (tmp_path / "results").exists()


def test_the_test_images_are_never_touched_and_one_bank_serves_all(tmp_path: Path) -> None:
    make_data(tmp_path / "d")
    line = ("--data_dir", "d", *FROZEN, "--num_labels", 9, "--unlabeled_batch_size", 15, "--max_steps", 4)
    with pytest.MonkeyPatch.context() as patch:  # workers must find all features there
        before = optuna_search.open_study

        def note(*arguments: Any) -> optuna.Study:
            blocks.extend((tmp_path / "cache").rglob("*.block"))
            return before(*arguments)

        blocks: list[Path] = []
        patch.setattr(optuna_search, "open_study", note)
        tune(*line, "--n_trials", 3, "--search", "head_prior=none,unlabeled", cwd=tmp_path)
    assert blocks
    assert set((tmp_path / "cache").rglob("*.block")) == set(blocks)
    with contextlib.chdir(tmp_path):
        goal = goal_of(parsed(*line))
    used = {int(h) for path in blocks for h in read_hashes(path)}
    test = {int(h) for h in goal.dataset.hashes[goal.whole.test]}
    assert test
    assert not used & test
    assert not any(len(part.test) for part in goal.parts)


def read_hashes(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        _, count, _, _ = blocks.HEADER.unpack(file.read(blocks.HEADER.size))
        return np.fromfile(file, dtype="<u8", count=count)
