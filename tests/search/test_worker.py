"""What a worker does: its sampler and pruner, what it keeps, and how a trial fails."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from runs import make_images
from searches import SHORT, fake, job_of, parsed, study_in, table, tune
from transfermpl.args import Options
from transfermpl.search import worker
from transfermpl.search.worker import sampler_of
from transfermpl.train import TrainingFault
from transfermpl.utils import UserError

pytestmark = pytest.mark.usefixtures("forked_workers")


def test_the_sampler_differs_by_worker_and_does_not_repeat_itself() -> None:
    def drawn(*seed: Any) -> list[float]:
        study = optuna.create_study(sampler=sampler_of(*seed))
        return [study.ask().suggest_float("x", 0, 1) for _ in range(3)]

    assert drawn(0, 0, 1) == drawn(0, 0, 1)
    assert len({tuple(drawn(*seed)) for seed in ((0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2), (0, ("a", 0), 1))}) == 5
    assert isinstance(sampler_of(0, 0, 1), optuna.samplers.TPESampler)


def test_the_sampler_knows_that_options_depend_on_each_other_and_what_others_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(optuna.samplers, "TPESampler", lambda **named: given.append(named))
    sampler_of(0, 0, 1)
    (named,) = given
    assert named["multivariate"]
    assert named["constant_liar"]


@pytest.mark.parametrize(
    ("name", "kind"), [("median", "MedianPruner"), ("hyperband", "HyperbandPruner"), ("none", "NopPruner")]
)
def test_the_pruner_is_the_one_that_was_named(name: str, kind: str) -> None:
    for by_validation in (False, True):
        assert type(worker.pruner_of(parsed("--pruner", name).search, by_validation)).__name__ == kind


def test_hyperband_counts_folds_or_finds_out_how_many_epochs_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    options = parsed("--pruner", "hyperband", "--folds", "4")
    monkeypatch.setattr(optuna.pruners, "HyperbandPruner", lambda **named: named)
    resources = [worker.pruner_of(options.search, validated)["max_resource"] for validated in (False, True)]  # type: ignore[index]
    assert resources == [4, "auto"]


@pytest.mark.parametrize(("tuned", "folds", "held"), [(True, 3, 3), (True, 2, 2), (False, 3, 2)])
def test_a_worker_keeps_the_tuned_views_of_all_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuned: bool, folds: int, held: int
) -> None:
    """They are tuned on the labeled images of a fold: what a trial leaves serves all of the next one's folds."""
    before: list[set[Any]] = []

    def accuracy(values: Any, goal: Any, cache: Any, report: Callable[[float, int], None]) -> float:
        before.append(set(cache.views))
        for fold in ("another's", *range(folds)):
            cache.views.setdefault(fold, [])
            for kind in range(3):
                cache.computed.setdefault((kind, fold, len(before)), np.zeros(2))
        return 0.5

    monkeypatch.setattr(worker, "accuracy", accuracy)
    monkeypatch.chdir(tmp_path)
    views = ("--cotrain_mode", "--views", "cnn", "resnet18", *(["--finetune_views"] if tuned else []))
    runner = worker.Worker(job_of(parsed("--folds", folds, *views), tmp_path), multiprocessing.Pipe()[0])
    study = optuna.create_study(direction="maximize")
    for _ in range(2):
        runner.run(study)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert before == [set(), set(range(folds)[-held:])]
    assert len(runner.cache.computed) == 6 * folds


@pytest.mark.slow
def test_a_trial_that_lags_behind_is_given_up_after_a_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tmp_path / "asked"

    def value(options: Options) -> float:
        with asked.open("a") as file:
            file.write("x")
        return 0.9 - 0.1 * len(asked.read_text())

    monkeypatch.setattr(worker, "accuracy", fake(value, folds=3))
    outcome = tune("--n_trials", 8, cwd=tmp_path)
    rows = table(tmp_path)
    assert [row["state"] for row in rows] == ["complete"] * 5 + ["pruned"] * 3
    assert len(study_in(tmp_path).trials[7].intermediate_values) == 1
    assert "3 pruned" in outcome.out
    asked.unlink()
    tune("--n_trials", 8, "--pruner", "none", "--overwrite", cwd=tmp_path)
    assert {row["state"] for row in table(tmp_path)} == {"complete"}


def test_a_val_folder_makes_the_pruner_wait_for_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, place in enumerate(("train", "val", "test")):
        for name, colour in ("a", (200, 60, 50)), ("b", (60, 190, 70)):
            make_images(tmp_path / "d" / place / name, 6, colour, seed=seed)
    asked = tmp_path / "asked"

    def value(options: Options) -> float:
        with asked.open("a") as file:
            file.write("x")
        return 0.9 - 0.1 * len(asked.read_text())

    monkeypatch.setattr(worker, "accuracy", fake(value, folds=9))
    line = ("--data_dir", "d", "--num_labels", 4, "--model_name", "cnn", "--image_size", "32", "--num_workers", "0")
    tune(*line, "--n_trials", 6, cwd=tmp_path)
    assert [len(trial.intermediate_values) for trial in study_in(tmp_path).trials] == [9, 9, 9, 9, 9, 3]


FAULTS: list[tuple[BaseException, str]] = [
    (RuntimeError("CUDA out of memory. Tried to\nallocate"), "RuntimeError: CUDA out of memory. Tried to allocate"),
    (MemoryError(), "MemoryError: "),
    (TrainingFault("the training broke off near step 3: uda_loss not finite"), "the training broke off near step 3"),
    (ValueError("a fault"), "ValueError: a fault"),
    (UserError("too many"), "too many"),
]


@pytest.mark.parametrize(("fault", "reason"), FAULTS)
def test_a_fault_is_recorded_and_the_search_goes_on(
    fault: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def value(options: Options) -> float:
        if options.learning.max_lr == Options().learning.max_lr:
            raise fault
        return 0.5

    monkeypatch.setattr(worker, "accuracy", fake(value))
    outcome = tune("--n_trials", 3, cwd=tmp_path)
    rows = table(tmp_path)
    assert [row["state"] for row in rows] == ["fail", "complete", "complete"]
    assert rows[0]["reason"].startswith(reason)
    assert rows[0]["value"] == ""
    assert "1 failed" in outcome.out
    assert "Traceback" not in outcome.out + outcome.err


def test_a_loss_that_is_not_finite_fails_its_trial_alone(tmp_path: Path) -> None:
    line = ("--optimizer", "SGD", "--search", "max_lr=1e-4,1e30", *SHORT, "--n_trials", 6, "--folds", 2)
    tune(*line, cwd=tmp_path)
    by_rate = {row["max_lr"]: row for row in table(tmp_path)}
    assert by_rate["1e+30"]["state"] == "fail"
    assert "not finite" in by_rate["1e+30"]["reason"]
    assert by_rate["0.0001"]["state"] == "complete"


def test_what_trials_say_goes_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "accuracy", fake(lambda o: os.write(2, b"a library speaks\n") and 0.5))
    outcome = tune("--n_trials", 2, cwd=tmp_path)
    assert "speaks" not in outcome.out + outcome.err
    assert (tmp_path / "results" / "t" / "workers.log").read_text().count("a library speaks") == 2


@pytest.mark.slow
def test_a_worker_imports_no_more_than_a_trial_needs() -> None:
    """Each worker is a new process: what it imports costs its start as often as it is replaced."""
    code = """
import sys
sys.path[:0] = sys.argv[1:]
import transfermpl.search.worker
unused = {"matplotlib", "transfermpl.optuna_search"}
unused |= {f"transfermpl.search.{name}" for name in ("supervisor", "plots")}
print(sorted(unused & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code, *sys.path], text=True, capture_output=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
