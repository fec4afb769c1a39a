"""Searches end to end: what is searched, what a trial is measured on, and what survives faults, kills and Ctrl-C."""

from __future__ import annotations

import contextlib
import csv
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from PIL import Image

from runs import FROZEN, ROOT, Outcome, end, make_data, make_images, run, start
from transfermpl import args, optuna_search
from transfermpl.args import Options
from transfermpl.features import blocks
from transfermpl.runs import run as experiment
from transfermpl.search import objective, supervisor
from transfermpl.search import space as search_space
from transfermpl.search import storage as study_storage
from transfermpl.search.objective import goal_of
from transfermpl.search.space import distribution_of, first_values, space_of
from transfermpl.search.supervisor import sampler_of
from transfermpl.train import TrainingFault
from transfermpl.utils import UserError

TUNE = ("--name", "t", "--optuna_mode", "--data_dir", "moons")
SHORT = ("--unlabeled_batch_size", "200", "--max_steps", "6", "--warmup_epoch_num", "1")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers by fork: they start at once, and know what a test has changed."""
    monkeypatch.setattr(supervisor, "START", "fork")
    monkeypatch.setattr(supervisor, "TICK_SECONDS", 0.05)


def tune(*arguments: object, cwd: Path, pictures: bool = False, code: int = 0) -> Outcome:
    with contextlib.nullcontext() if pictures else _no_pictures():
        outcome = run(*TUNE, *arguments, cwd=cwd)
    assert outcome.code == code, outcome.out + outcome.err
    return outcome


@contextlib.contextmanager
def _no_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna_search.plots, "draw", lambda *_: [])
        yield


def parsed(*arguments: object) -> Options:
    return args.parse([*TUNE, *map(str, arguments)])


def table(cwd: Path, name: str = "t") -> list[dict[str, str]]:
    with (cwd / "results" / name / "trials.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def study_in(cwd: Path, name: str = "t") -> optuna.Study:
    storage = study_storage.open_journal(cwd / "results" / name / "study.journal")
    return optuna.load_study(study_name="t", storage=storage)


def fake(value: Callable[[Options], float], folds: int = 1) -> Callable[..., float]:
    """An objective without a training: `value` of the options, reported for each fold."""

    def accuracy(options: Options, goal: Any, kept: Any, report: Callable[[float, int], None]) -> float:
        found = value(options)
        for number in range(1, folds + 1):
            report(found, number)
        return found

    return accuracy


@pytest.fixture
def easy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best learning rate is 0.002."""
    monkeypatch.setattr(supervisor, "accuracy", fake(lambda o: 1 - abs(np.log10(o.learning.max_lr / 0.002)) / 4))


# --- the space --------------------------------------------------------------------------------------------------------


def test_the_usual_space() -> None:
    _, space = space_of(parsed())
    assert set(space) == {
        "weight_decay", "max_lr", "temperature", "lambda_u", "uda_steps", "threshold", "mpl_weight", "label_smoothing",
    }  # fmt: skip
    assert space["max_lr"].log  # type: ignore[attr-defined]
    assert isinstance(space["uda_steps"], optuna.distributions.IntDistribution)
    defaults = Options().flat()
    assert first_values(parsed(), space) == {name: defaults[name] for name in space}


def test_labels_alone_have_no_use_for_what_belongs_to_the_others() -> None:
    _, space = space_of(parsed("--finetune_mode"))
    assert set(space) == {"weight_decay", "max_lr", "label_smoothing"}
    views = ("--cotrain_mode", "--views", "pixels", "gradients", "--algorithm")
    assert space_of(parsed(*views, "labels_only"))[1] == space
    assert set(search_space.USUAL) - set(space_of(parsed(*views, "cotraining"))[1]) == {"mpl_weight"}
    assert set(space_of(parsed(*views, "meta"))[1]) == set(search_space.USUAL)


def test_what_is_searchable_is_an_option() -> None:
    assert set(search_space.SEARCHABLE) <= set(Options().flat())


def test_any_option_can_be_searched_and_a_single_value_holds_it_fast() -> None:
    words = ("head=linear,mlp", "max_lr=1e-4:1e-2", "batch_size=8:32", "switch_mode=true,false", "ema=0,0.9")
    base, space = space_of(parsed("--search", *words, "unfreeze=1,all", "mpl_weight=0", "feedback=first_order"))
    assert space["head"].choices == ("linear", "mlp")  # type: ignore[attr-defined]
    assert (space["max_lr"].low, space["max_lr"].high, space["max_lr"].log) == (1e-4, 1e-2, False)  # type: ignore[attr-defined]
    assert (space["batch_size"].low, space["batch_size"].high) == (8, 32)  # type: ignore[attr-defined]
    assert space["switch_mode"].choices == (True, False)  # type: ignore[attr-defined]
    assert space["ema"].choices == (0.0, 0.9)  # type: ignore[attr-defined]
    assert space["unfreeze"].choices == ("1", "all")  # type: ignore[attr-defined]
    assert "mpl_weight" not in space
    assert (base["mpl_weight"], base["feedback"]) == (0.0, "first_order")


WRONG = [
    ("treshold=0.5:0.9", "did you mean --threshold?"),
    ("threshold", "write KEY=LOW:HIGH"),
    ("threshold=", "write KEY=LOW:HIGH"),
    ("=1:2", "there is no option --"),
    ("threshold=0.9:0.5", "from the lower to the higher"),
    ("threshold=0.5:0.5", "from the lower to the higher"),
    ("threshold=0.5:1.5", "out of range"),
    ("threshold=0.5:many", "takes a number"),
    ("threshold=nan:1", "out of range"),
    ("uda_steps=1.5:3", "whole number"),
    ("lambda_u=0:1:log", "begins above 0"),
    ("lambda_u=1:2:lin", "'lin'"),
    ("lambda_u=1:2:log:3", "'log:3'"),
    ("head=linear,cnn", "choose from linear, hidden, mlp"),
    ("head=linear,", "is empty"),
    ("switch_mode=yes", "true or false"),
    ("seed=1,2", "keeps --seed as it is"),
    ("num_labels=10:50", "keeps --num_labels as it is"),
    ("data_dir=a,b", "keeps --data_dir as it is"),
    ("test_percent=0.1,0.2", "keeps --test_percent as it is"),
    ("n_trials=1:5", "keeps --n_trials as it is"),
    ("optuna_mode=true", "keeps --optuna_mode as it is"),
]


@pytest.mark.parametrize(("word", "says"), WRONG)
def test_a_wrong_range_is_an_error_before_the_first_trial(word: str, says: str, tmp_path: Path) -> None:
    outcome = tune("--search", word, cwd=tmp_path, code=2)
    assert says in outcome.err
    assert len(outcome.complaint()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_space_of_nothing_is_an_error() -> None:
    held = [f"{name}={Options().flat()[name]}" for name in search_space.USUAL]
    with pytest.raises(UserError, match="nothing to search"):
        space_of(parsed("--search", *held))


def test_what_the_defaults_lack_becomes_the_nearest_value(capsys: pytest.CaptureFixture[str]) -> None:
    options = parsed("--search", "max_lr=0.01:0.1", "head=mlp,linear", "batch_size=2,4", "num_epochs=2:5")
    _, space = space_of(options)
    first = first_values(options, space)
    assert (first["max_lr"], first["head"], first["batch_size"], first["num_epochs"]) == (0.01, "linear", 2, 2)
    assert capsys.readouterr().err.count("is not among what is searched") == 3


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(Options().flat())), st.text(max_size=12) | st.from_regex(r"[0-9.e-]+:[0-9.e-]+(:log)?"))
def test_no_range_breaks_the_search(name: str, text: str) -> None:
    with contextlib.suppress(UserError):
        search_space.check_searchable(name)
        distribution_of(name, text, {"name": "t"})


# --- the objective ----------------------------------------------------------------------------------------------------


def test_a_trial_is_the_training_on_stratified_folds(tmp_path: Path) -> None:
    line = ("--switch_mode", *SHORT, "--n_trials", 2, "--folds", 4, "--threshold", 0.6)
    outcome = tune(*line, cwd=tmp_path)
    assert "mean accuracy over 4 folds, 24 predictions a trial" in outcome.out
    options = parsed(*line)
    goal = goal_of(options, 4)
    for row in table(tmp_path):
        values = {name: float(row[name]) for name in search_space.USUAL} | {"uda_steps": int(row["uda_steps"])}
        by_hand = [
            experiment.fold_accuracy(options.changed(**values), goal.dataset, part)["ensemble"] for part in goal.parts
        ]
        assert float(row["value"]) == pytest.approx(np.mean(by_hand), abs=1e-9)
    labels = [np.bincount(goal.dataset.labels[part.val]).tolist() for part in goal.parts]
    assert labels == [[3, 3]] * 4


@pytest.mark.parametrize(
    "mode", [("--finetune_mode",), ("--cotrain_mode", "--views", "pixels", "gradients", "--data_dir", "digits")]
)
def test_every_mode_can_be_searched(mode: tuple[str, ...], tmp_path: Path) -> None:
    line = (*mode, "--num_labels", 30, "--unlabeled_batch_size", 200, "--max_steps", 4, "--folds", 2, "--n_trials", 1)
    tune(*line, cwd=tmp_path)
    options = parsed(*line)
    with contextlib.chdir(tmp_path):
        goal = goal_of(options, 2)
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
        tune(*line, "--n_trials", 3, "--search", "head=linear,hidden", cwd=tmp_path)
    assert blocks
    assert set((tmp_path / "cache").rglob("*.block")) == set(blocks)
    with contextlib.chdir(tmp_path):
        goal = goal_of(parsed(*line), 3)
    used = {int(h) for path in blocks for h in read_hashes(path)}
    test = {int(h) for h in goal.dataset.hashes[goal.whole.test]}
    assert test
    assert not used & test
    assert not any(len(part.test) for part in goal.parts)


def read_hashes(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        _, count, _, _ = blocks.HEADER.unpack(file.read(blocks.HEADER.size))
        return np.fromfile(file, dtype="<u8", count=count)


def test_the_sampler_differs_by_worker_and_does_not_repeat_itself() -> None:
    def drawn(*seed: Any) -> list[float]:
        study = optuna.create_study(sampler=sampler_of(*seed))
        return [study.ask().suggest_float("x", 0, 1) for _ in range(3)]

    assert drawn(0, 0, 1) == drawn(0, 0, 1)
    assert len({tuple(drawn(*seed)) for seed in ((0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2), (0, ("a", 0), 1))}) == 5
    sampler: Any = sampler_of(0, 0, 1)
    assert isinstance(sampler, optuna.samplers.TPESampler)
    assert sampler._multivariate
    assert sampler._constant_liar


def test_a_search_by_one_worker_can_be_repeated(easy: None, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tune("--n_trials", 14, "--pruner", "none", cwd=tmp_path / name)
    a, b = ([{**row, "seconds": ""} for row in table(tmp_path / name)] for name in ("a", "b"))
    assert a == b
    assert max(float(row["value"]) for row in a) > float(a[0]["value"])


@pytest.mark.parametrize(
    ("name", "kind"), [("median", "MedianPruner"), ("hyperband", "HyperbandPruner"), ("none", "NopPruner")]
)
def test_the_pruner_is_the_one_that_was_named(name: str, kind: str) -> None:
    for by_validation in (False, True):
        assert type(supervisor.pruner_of(parsed("--pruner", name), by_validation)).__name__ == kind


def test_hyperband_counts_folds_or_finds_out_how_many_epochs_there_are() -> None:
    options = parsed("--pruner", "hyperband", "--folds", "4")
    resources = [supervisor.pruner_of(options, validated)._max_resource for validated in (False, True)]  # type: ignore[attr-defined]
    assert resources == [4, "auto"]


@pytest.mark.parametrize(("tuned", "folds", "held"), [(True, 3, 3), (True, 2, 2), (False, 3, 2)])
def test_a_worker_keeps_the_tuned_views_of_all_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuned: bool, folds: int, held: int
) -> None:
    """They are tuned on the labeled images of a fold: what a trial leaves serves all of the next one's folds."""
    before: list[set[Any]] = []

    def accuracy(options: Options, goal: Any, kept: Any, report: Callable[[float, int], None]) -> float:
        before.append(set(kept.views))
        for fold in ("another's", *range(folds)):
            kept.views.setdefault(fold, [])
            for told in (kept.shares, kept.axes):
                told.setdefault((fold, len(before)), np.zeros(2))
        return 0.5

    monkeypatch.setattr(supervisor, "accuracy", accuracy)
    monkeypatch.chdir(tmp_path)
    views = ("--cotrain_mode", "--views", "cnn", "resnet18", *(["--finetune_views"] if tuned else []))
    worker = supervisor.Worker(parsed("--folds", folds, *views), multiprocessing.Pipe()[0])
    study = optuna.create_study(direction="maximize")
    for _ in range(2):
        worker.run(study)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert before == [set(), set(range(folds)[-held:])]
    assert len(worker.kept.shares) == len(worker.kept.axes) == 2 * folds


def test_a_trial_that_lags_behind_is_given_up_after_a_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tmp_path / "asked"

    def value(options: Options) -> float:
        with asked.open("a") as file:
            file.write("x")
        return 0.9 - 0.1 * len(asked.read_text())

    monkeypatch.setattr(supervisor, "accuracy", fake(value, folds=3))
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

    monkeypatch.setattr(supervisor, "accuracy", fake(value, folds=9))
    line = ("--data_dir", "d", "--num_labels", 4, "--model_name", "cnn", "--image_size", "32", "--num_workers", "0")
    tune(*line, "--n_trials", 6, cwd=tmp_path)
    assert [len(trial.intermediate_values) for trial in study_in(tmp_path).trials] == [9, 9, 9, 9, 9, 3]


# --- the first trial, and going on ------------------------------------------------------------------------------------


def test_the_first_trial_is_the_present_options_once(easy: None, tmp_path: Path) -> None:
    tune("--n_trials", 3, "--threshold", 0.8, cwd=tmp_path)
    tune("--n_trials", 5, "--resume", cwd=tmp_path)
    rows = table(tmp_path)
    present = Options().flat() | {"threshold": 0.8}
    assert all(float(rows[0][name]) == present[name] for name in search_space.USUAL)
    assert [trial.number for trial in study_in(tmp_path).trials if trial.user_attrs.get("first")] == [0]
    assert len(rows) == 5
    assert len({row["max_lr"] for row in rows}) == 5


def test_a_finished_search_runs_nothing_again(easy: None, tmp_path: Path) -> None:
    tune("--n_trials", 4, cwd=tmp_path)
    before = table(tmp_path)
    tune("--resume", cwd=tmp_path)
    assert table(tmp_path) == before


def test_resuming_keeps_what_is_searched(easy: None, tmp_path: Path) -> None:
    tune("--n_trials", 2, cwd=tmp_path)
    for line, says in ((("--folds", 5), "--folds 3, not 5"), (("--search", "ema=0,0.5"), "--search")):
        assert says in tune("--resume", *line, cwd=tmp_path, code=2).err
    before = table(tmp_path)
    assert run("--name", "t", "--resume", cwd=tmp_path).code == 0  # what goes on says itself that it is a search
    assert table(tmp_path) == before
    assert not (tmp_path / "results" / "t" / "metrics.csv").exists()


def test_a_search_that_is_older_than_an_option_goes_on(easy: None, tmp_path: Path) -> None:
    tune("--n_trials", 2, "--head_prior", "none", cwd=tmp_path)
    study, record = study_in(tmp_path), tmp_path / "results" / "t" / "commandline_args.txt"
    study.set_user_attr("search", {k: v for k, v in study.user_attrs["search"].items() if k != "--head_prior"})
    stored = json.loads(record.read_text(encoding="utf-8"))
    assert stored.pop("head_prior") == "none"
    record.write_text(json.dumps(stored), encoding="utf-8")
    tune("--n_trials", 3, "--resume", cwd=tmp_path)
    assert len(table(tmp_path)) == 3


def test_a_second_search_of_a_name_gets_a_folder_of_its_own(easy: None, tmp_path: Path) -> None:
    for _ in range(2):
        tune("--n_trials", 2, cwd=tmp_path)
    assert len(table(tmp_path, "t-2")) == 2
    outcome = run("--name", "t-2", "--resume", "--optuna_mode", "--n_trials", 3, "--data_dir", "moons", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert (len(table(tmp_path)), len(table(tmp_path, "t-2"))) == (2, 3)


def test_several_workers_run_exactly_the_trials_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "accuracy", fake(lambda o: time.sleep(0.05) or o.learning.threshold))  # type: ignore[func-returns-value]
    tune("--n_trials", 13, "--search_workers", 3, "--pruner", "none", cwd=tmp_path)
    rows = table(tmp_path)
    assert [row["state"] for row in rows] == ["complete"] * 13
    assert len({row["max_lr"] for row in rows}) == 13
    owners = {trial.user_attrs["owner"]["process"] for trial in study_in(tmp_path).trials}
    assert len(owners) == 3
    assert {trial.user_attrs["owner"]["host"] for trial in study_in(tmp_path).trials} == {socket.gethostname()}


def test_no_trial_begins_after_the_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "accuracy", fake(lambda o: time.sleep(0.3) or 0.5))  # type: ignore[func-returns-value]
    began = time.monotonic()
    tune("--n_trials", 500, "--timeout", 1.5, cwd=tmp_path)
    assert time.monotonic() - began < 20
    rows = table(tmp_path)
    assert 1 <= len(rows) <= 8
    assert {row["state"] for row in rows} == {"complete"}


def test_what_the_bar_says(easy: None, tmp_path: Path) -> None:
    tune("--n_trials", 3, cwd=tmp_path)
    trials = study_in(tmp_path).trials
    text = supervisor.Screen(9, 100.0).text(trials)
    best = max(trials, key=lambda trial: trial.value or 0.0)
    assert text.startswith(f"best {best.value:.1%} (trial {best.number}), 0 pruned, 0 failed, ")
    left = float(text.split(", ")[-1].split()[0])
    assert 90 < left <= 100
    assert text.endswith("s left to --timeout")


# --- faults -----------------------------------------------------------------------------------------------------------

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

    monkeypatch.setattr(supervisor, "accuracy", fake(value))
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


def test_ten_failures_in_a_row_end_the_search_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> float:
        raise ValueError("nothing works")

    with monkeypatch.context() as patch:
        patch.setattr(supervisor, "accuracy", broken)
        outcome = tune("--n_trials", 50, cwd=tmp_path, code=1)
    assert len(outcome.complaint()) == 1
    assert "after 10 failures in a row, the last: ValueError: nothing works" in outcome.err
    assert [row["state"] for row in table(tmp_path)] == ["fail"] * 10
    monkeypatch.setattr(supervisor, "accuracy", fake(lambda o: 0.5))
    tune("--n_trials", 12, "--resume", cwd=tmp_path)
    assert [row["state"] for row in table(tmp_path)] == ["fail"] * 10 + ["complete"] * 2


def test_failures_with_a_success_between_them_do_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tmp_path / "asked"

    def value(options: Options) -> float:
        with asked.open("a") as file:
            file.write("x")
        if len(asked.read_text()) % 10:
            raise ValueError("mostly")
        return 0.5

    monkeypatch.setattr(supervisor, "accuracy", fake(value))
    tune("--n_trials", 21, cwd=tmp_path)
    assert [row["state"] for row in table(tmp_path)].count("fail") == 19


@pytest.mark.parametrize("moment", ["before", "during", "once more"])
def test_a_killed_worker_costs_only_time(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = tmp_path / "killed"
    times = 2 if moment == "once more" else 1

    def value(options: Options) -> float:
        if options.learning.max_lr != Options().learning.max_lr:
            return 0.5
        with marks.open("a") as file:
            file.write("x")
        if len(marks.read_text()) <= times:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.7

    monkeypatch.setattr(supervisor, "accuracy", fake(value))
    if moment == "before":  # as soon as it knows its values
        real = supervisor.suggest

        def suggest(trial: optuna.Trial, space: Any) -> dict[str, Any]:
            values = real(trial, space)
            value(Options().changed(max_lr=values["max_lr"]))
            return values

        monkeypatch.setattr(supervisor, "suggest", suggest)
    tune("--n_trials", 4, "--search_workers", 2, cwd=tmp_path)
    rows = table(tmp_path)
    lost = [row for row in rows if row["state"] == "fail"]
    assert [row["reason"] for row in lost] == ["its process died"] * times
    assert [row["state"] for row in rows].count("complete") == 4
    for row in lost:
        (again,) = [other for other in rows if other["retry_of"] == row["number"]]
        assert all(again[name] == row[name] for name in search_space.USUAL)
    assert max(float(row["value"] or 0) for row in rows) == 0.7


def test_values_that_always_kill_their_process_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def value(options: Options) -> float:
        if options.learning.max_lr == Options().learning.max_lr:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.5

    monkeypatch.setattr(supervisor, "accuracy", fake(value))
    tune("--n_trials", 3, cwd=tmp_path)
    rows = table(tmp_path)
    assert [row["state"] for row in rows].count("fail") == 1 + study_storage.MOST_RETRIES
    assert [row["state"] for row in rows].count("complete") == 2


def test_workers_that_can_not_start_end_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "sampler_of", lambda *_: os._exit(3))
    outcome = tune(cwd=tmp_path, code=1)
    assert "10 workers in a row died before their first trial" in outcome.err


def test_what_trials_say_goes_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "accuracy", fake(lambda o: os.write(2, b"a library speaks\n") and 0.5))
    outcome = tune("--n_trials", 2, cwd=tmp_path)
    assert "speaks" not in outcome.out + outcome.err
    assert (tmp_path / "results" / "t" / "workers.log").read_text().count("a library speaks") == 2


# --- the journal ------------------------------------------------------------------------------------------------------


def some_journal(folder: Path, trials: int = 3) -> Path:
    study = optuna.create_study(study_name="s", storage=study_storage.open_journal(folder / "study.journal"))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=trials)
    return folder / "study.journal"


def test_a_torn_last_line_is_cut_before_anyone_appends(tmp_path: Path) -> None:
    path = some_journal(tmp_path)
    storage = study_storage.open_journal(path)
    whole = path.read_bytes()
    for open_again in (False, True):
        path.write_bytes(whole + b'{"op_code":4,"worker')
        if open_again:
            storage = study_storage.open_journal(path)
            assert path.read_bytes() == whole
        optuna.load_study(study_name="s", storage=storage).set_user_attr("a", 1)
        assert path.read_bytes().startswith(whole + b'{"op_code":2')
        assert len(optuna.load_study(study_name="s", storage=study_storage.open_journal(path)).trials) == 3
        whole = path.read_bytes()


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1))
def test_a_journal_cut_anywhere_keeps_its_finished_trials(share: float) -> None:
    whole = _whole_journal()
    cut = whole[: int(share * len(whole))]
    path = Path(_journals(), "cut.journal")
    path.write_bytes(cut)
    storage = study_storage.open_journal(path)
    finished = cut[: cut.rfind(b"\n") + 1].count(b'"op_code":6,')
    if b"op_code" not in cut[: cut.rfind(b"\n") + 1]:
        return
    trials = optuna.load_study(study_name="s", storage=storage).trials
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == finished


_kept: dict[str, Any] = {}


def _journals() -> str:
    import tempfile

    return _kept.setdefault("folder", tempfile.TemporaryDirectory()).name


def _whole_journal() -> bytes:
    if "whole" not in _kept:
        _kept["whole"] = some_journal(Path(_journals())).read_bytes()
    return _kept["whole"]


def test_an_empty_and_a_long_torn_journal(tmp_path: Path) -> None:
    for content, left in ((b"", b""), (b"x" * 9000, b""), (b"a\n" + b"y" * 9000, b"a\n"), (b"a\nb\n", b"a\nb\n")):
        (tmp_path / "j").write_bytes(content)
        study_storage.cut_torn_line(tmp_path / "j")
        assert (tmp_path / "j").read_bytes() == left


def test_a_damaged_journal_is_one_line_for_the_user(easy: None, tmp_path: Path) -> None:
    tune("--n_trials", 2, cwd=tmp_path)
    path = tmp_path / "results" / "t" / "study.journal"
    path.write_bytes(b"garbage\n" + path.read_bytes())
    outcome = tune("--resume", cwd=tmp_path, code=2)
    assert "study.journal is damaged" in outcome.err
    assert len(outcome.complaint()) == 1


def test_a_lock_of_a_killed_process_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_storage, "LOCK_SECONDS", 1)
    path = some_journal(tmp_path)
    os.symlink(path, f"{path}.lock")
    began = time.monotonic()
    with contextlib.chdir(tmp_path):  # the lock links to an absolute path, or it would never be found stale
        study_storage.open_journal(Path("study.journal"))
    assert 0.9 < time.monotonic() - began < 8
    assert not os.path.lexists(f"{path}.lock")


def test_the_lock_of_a_search_names_an_absolute_path(tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        storage: Any = study_storage.open_journal(Path("study.journal"))
        lock = storage._backend._lock
        assert lock.acquire()
        assert Path(os.readlink(tmp_path / "study.journal.lock")).is_absolute()
        lock.release()


# --- trials of dead processes -----------------------------------------------------------------------------------------


def running(owner: dict[str, Any] | None, **marks: Any) -> optuna.trial.FrozenTrial:
    trial = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs={"owner": owner, **marks} if owner else {})
    return trial


def test_which_processes_are_dead() -> None:
    me = study_storage.owner()
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert not study_storage.is_dead(running(me))
    assert study_storage.is_dead(running({**me, "process": done.pid}))
    assert study_storage.is_dead(running({**me, "started": (me["started"] or 0) - 1}))  # its number was given anew
    assert not study_storage.is_dead(running({**me, "host": "elsewhere", "process": done.pid}))
    fresh = running(None)
    assert not study_storage.is_dead(fresh)
    assert fresh.datetime_start is not None
    fresh.datetime_start = fresh.datetime_start.replace(year=2020)
    assert study_storage.is_dead(fresh)


def test_a_dead_process_that_nobody_has_waited_for_is_dead() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    me = study_storage.owner()
    deadline = time.monotonic() + 20
    zombie = running({**me, "process": done.pid, "started": me["started"]})
    while not study_storage.is_dead(zombie):
        assert time.monotonic() < deadline
    done.wait()


def test_dead_trials_are_failed_and_put_in_again_once_each(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="s", storage=study_storage.open_journal(tmp_path / "j"))
    dead = {"host": socket.gethostname(), "process": 2**22 - 3, "started": 1}
    study.enqueue_trial({"x": 0.25, "y": 0.75}, user_attrs={"first": True})
    trial = study.ask()
    trial.set_user_attr("owner", dead)
    trial.suggest_float("x", 0, 1)
    for _ in range(3):
        supervisor.mend(study)
    lost, again = study.trials
    assert (lost.state, lost.user_attrs["reason"]) == (TrialState.FAIL, "its process died")
    assert again.system_attrs["fixed_params"] == {"x": 0.25, "y": 0.75}
    assert again.user_attrs == {"first": True, "retry_of": 0, "retries": 1}
    assert study_storage.finished(study.trials) == []


def test_two_supervisors_of_a_host_put_a_lost_trial_in_again_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = study_storage.open_journal(tmp_path / "j")
    study = optuna.create_study(study_name="s", storage=storage)
    trial = study.ask()
    trial.set_user_attr("owner", {"host": socket.gethostname(), "process": 2**22 - 3, "started": 1})
    trial.suggest_float("x", 0, 1)
    study_storage.fail_dead_trials(study)
    real = study_storage.try_again
    monkeypatch.setattr(study_storage, "try_again", lambda *given: (time.sleep(0.3), real(*given)))  # both are here

    def supervise() -> None:
        own = study_storage.open_journal(tmp_path / "j")
        study_storage.retry_lost_trials(optuna.load_study(study_name="s", storage=own))

    both = [threading.Thread(target=supervise) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]


# --- databases --------------------------------------------------------------------------------------------------------


def test_a_search_in_sqlite_is_joined_and_goes_on(easy: None, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    outcome = tune("--n_trials", 3, "--storage", url, "--search_workers", 2, cwd=tmp_path)
    assert f"optuna-dashboard {url}" in outcome.out
    assert not (tmp_path / "results" / "t" / "study.journal").exists()
    tune("--n_trials", 4, "--storage", url, cwd=tmp_path)  # the same line elsewhere
    tune("--n_trials", 5, "--storage", url, "--resume", cwd=tmp_path)
    assert [row["state"] for row in table(tmp_path)] == ["complete"] * 5
    with contextlib.closing(optuna.storages.RDBStorage(url).engine.connect()):
        storage: Any = study_storage.open_storage(url, tmp_path)
    assert storage.get_heartbeat_interval() == study_storage.HEARTBEAT_SECONDS
    assert storage.get_heartbeat_stale_trial_callback() is study_storage.try_again


def test_a_study_of_something_else_is_not_joined(easy: None, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    tune("--n_trials", 2, "--storage", url, cwd=tmp_path)
    for line, says in (
        (("--max_steps", 7), "--max_steps"),
        (("--search", "max_lr=1e-4:1e-2"), "max_lr"),
        (("--seed", 3), "--seed"),
        (("--num_labels", 40), "--num_labels"),
    ):
        outcome = tune("--n_trials", 2, "--storage", url, *line, cwd=tmp_path, code=2)
        assert "another value of" in outcome.err
        assert says in outcome.err
    assert not (tmp_path / "results" / "t-2").exists()
    tune("--n_trials", 2, "--storage", url, "--num_workers", 1, "--device", "cpu", cwd=tmp_path)


def test_trials_whose_heartbeat_fell_silent_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_storage, "SILENT_SECONDS", 1)
    monkeypatch.setattr(study_storage, "HEARTBEAT_SECONDS", 1)
    storage: Any = study_storage.open_storage(f"sqlite:///{tmp_path}/s.db", tmp_path)
    study = optuna.create_study(study_name="s", storage=storage)
    trial = study.ask()
    trial.set_user_attr("owner", {"host": "elsewhere", "process": 1, "started": 1})
    trial.suggest_float("x", 0, 1)
    storage.record_heartbeat(trial._trial_id)
    supervisor.mend(study)
    assert [t.state for t in study.trials] == [TrialState.RUNNING]
    time.sleep(2.1)
    for _ in range(2):
        supervisor.mend(study)
    lost, again = study.trials
    assert lost.state == TrialState.FAIL
    assert again.system_attrs["fixed_params"] == lost.params
    assert again.user_attrs["retry_of"] == 0
    assert study_storage.finished(study.trials) == []


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "can't be opened"),
        ("sqlite:////nowhere/at/all/s.db", "unable to open"),
        ("strange://somewhere/db", "can't be opened"),
        ("redis://localhost", "can't be opened"),
        ("postgresql://user:geheim@127.0.0.1:1/none", "127.0.0.1"),
    ],
)
def test_a_storage_that_can_not_be_opened_is_one_line(url: str, says: str, tmp_path: Path) -> None:
    outcome = tune("--storage", url, cwd=tmp_path, code=2)
    assert says in outcome.err
    assert "geheim" not in outcome.err
    assert len(outcome.complaint()) == 1
    assert not (tmp_path / "results").exists()


def test_no_file_holds_a_password(easy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert study_storage.without_password("postgresql://me:p%40ss@h:5/d?x=1") == "postgresql://me@h:5/d?x=1"
    real = study_storage.open_storage
    for module in (optuna_search, supervisor):
        monkeypatch.setattr(module, "open_storage", lambda url, folder: real(f"sqlite:///{tmp_path}/s.db", folder))
    outcome = tune("--n_trials", 2, "--storage", "postgresql://me:geheim@h/d", cwd=tmp_path)
    assert "optuna-dashboard postgresql://me@h/d" in outcome.out
    left = [path for path in (tmp_path / "results" / "t").rglob("*") if path.is_file()]
    assert left
    assert not any(b"geheim" in path.read_bytes() for path in left)


# --- what a search leaves ---------------------------------------------------------------------------------------------


def test_what_a_search_leaves(tmp_path: Path) -> None:
    line = (
        *SHORT,
        "--n_trials",
        8,
        "--folds",
        2,
        "--search",
        "head=linear,hidden",
        "--switch_mode",
        "--pruner",
        "none",
    )
    outcome = tune(*line, cwd=tmp_path, pictures=True)
    folder = tmp_path / "results" / "t"
    pictures = {"history.png", "importances.png", "parallel.png", "slices.png"}
    rest = {"best_args.json", "trials.csv", "study.journal", "commandline_args.txt", "workers.log"}
    assert {path.name for path in folder.iterdir()} == pictures | rest
    for name in pictures:
        with Image.open(folder / name) as image:
            assert image.format == "PNG"
            assert min(image.size) > 150
    rows = table(tmp_path)
    assert list(rows[0]) == [
        "number", "state", "value", *search_space.USUAL, "head", "seconds", "reason", "retry_of",
    ]  # fmt: skip
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert f"optuna-dashboard {Path('results/t/study.journal')}" in outcome.out
    best = max(rows, key=lambda row: (float(row["value"]), -int(row["number"])))
    found = json.loads((folder / "best_args.json").read_text())
    assert {name: str(found[name]) for name in (*search_space.USUAL, "head")} == {
        name: best[name] for name in (*search_space.USUAL, "head")
    }
    trained = run("--name", "best", "--config", folder / "best_args.json", cwd=tmp_path)
    assert trained.code == 0, trained.err
    stored = json.loads((tmp_path / "results" / "best" / "commandline_args.txt").read_text())
    assert stored["max_lr"] == found["max_lr"]
    assert stored["max_steps"] == 6
    assert stored["switch_mode"] is True
    assert not stored["optuna_mode"]


def test_the_pictures_of_few_and_odd_trials(tmp_path: Path) -> None:
    storage = optuna.storages.InMemoryStorage()
    for count, made in ((0, 1), (1, 1), (6, 4)):
        study = optuna.create_study(storage=storage, direction="maximize")
        for _number in range(count):
            trial = study.ask()
            values = (trial.suggest_float("<b>&ü", 1e-3, 1, log=True), trial.suggest_categorical("c", [True, False, 7]))
            study.tell(trial, values[0])
        for state in (TrialState.FAIL, TrialState.PRUNED):
            study.tell(study.ask(), state=state)
        folder = tmp_path / str(count)
        assert len(optuna_search.plots.draw(folder, study, ["<b>&ü", "c"])) == made
    same = optuna.create_study(storage=storage, direction="maximize")
    same.optimize(lambda trial: 0.0 * trial.suggest_float("x", 0, 1), n_trials=5)
    assert len(optuna_search.plots.draw(tmp_path / "same", same, ["x"])) == 3


def test_a_search_without_a_complete_trial_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "accuracy", fake(lambda o: 1 / 0))
    outcome = tune("--n_trials", 2, cwd=tmp_path)
    assert "no trial has been completed" in outcome.out
    assert len(table(tmp_path)) == 2
    assert not (tmp_path / "results" / "t" / "best_args.json").exists()


# --- real processes ---------------------------------------------------------------------------------------------------

REAL = ("--unlabeled_batch_size", "100", "--max_steps", "16", "--folds", "2", "--pruner", "none")


def begin(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    return start(*TUNE, *REAL, "--device", "cpu", *arguments, cwd=cwd)


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def complete_in(cwd: Path) -> int:
    path = cwd / "results" / "t" / "study.journal"
    return path.read_bytes().count(b'"state":1,') if path.is_file() else 0


def children(process: subprocess.Popen[str]) -> list[int]:
    """The workers of a search, by the trials that they own."""
    found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pgrep") is None, reason="needs pgrep")
def test_a_search_killed_as_a_whole_goes_on(tmp_path: Path) -> None:
    process = begin("--n_trials", 40, "--search_workers", 2, cwd=tmp_path)
    wait_for(lambda: complete_in(tmp_path) >= 4, process)
    workers = children(process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):  # they end with their supervisor
        assert time.monotonic() < deadline
        time.sleep(0.1)
    before = {trial.number: trial for trial in study_in(tmp_path).trials if trial.state.is_finished()}
    assert len(before) >= 4
    outcome = end(start(*TUNE, "--resume", "--n_trials", 12, "--search_workers", 2, cwd=tmp_path), tmp_path)
    assert outcome.code == 0, outcome.err
    after = study_in(tmp_path).trials
    for number, trial in before.items():  # none lost, none run again
        assert after[number] == trial
    done = [trial for trial in after if trial.state == TrialState.COMPLETE]
    assert len(done) == max(12, len(before))
    lost = [trial for trial in after if trial.state == TrialState.FAIL]
    retried = {trial.user_attrs.get("retry_of") for trial in after}
    assert {trial.number for trial in lost if trial.params} <= retried
    assert len({tuple(sorted(trial.params.items())) for trial in done}) == len(done)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pgrep") is None, reason="needs pgrep")
def test_killed_workers_are_replaced(tmp_path: Path) -> None:
    process = begin("--n_trials", 14, "--search_workers", 2, cwd=tmp_path)
    for enough in (2, 6):
        wait_for(lambda enough=enough: complete_in(tmp_path) >= enough, process)  # type: ignore[misc]
        os.kill(children(process)[0], signal.SIGKILL)
    outcome = end(process, tmp_path)
    assert outcome.code == 0, outcome.err
    rows = table(tmp_path)
    assert [row["state"] for row in rows].count("complete") == 14
    for row in rows:
        assert row["state"] == "complete" or row["reason"] == "its process died"
        if row["state"] == "fail" and row["max_lr"]:
            (again,) = [other for other in rows if other["retry_of"] == row["number"]]
            assert again["max_lr"] == row["max_lr"]


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_with_a_usable_study(tmp_path: Path) -> None:
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job would pass on that it is ignored
    process = begin("--n_trials", 400, "--search_workers", 2, cwd=tmp_path)
    wait_for(lambda: complete_in(tmp_path) >= 3, process)
    process.send_signal(signal.SIGINT)
    outcome = end(process, tmp_path)
    assert outcome.code == 130
    assert outcome.complaint() == ["MPL.py: stopped; --name t --resume goes on"]
    rows = table(tmp_path)
    assert {row["state"] for row in rows} <= {"complete", "fail", "waiting"}
    assert {row["reason"] for row in rows if row["state"] == "fail"} <= {"interrupted"}
    assert (tmp_path / "results" / "t" / "history.png").is_file()
    assert (tmp_path / "results" / "t" / "best_args.json").is_file()
    counted = [row["state"] for row in rows].count("complete") + 2
    outcome = end(start(*TUNE, "--resume", "--n_trials", counted, cwd=tmp_path), tmp_path)
    assert outcome.code == 0, outcome.err
    rows = table(tmp_path)
    assert [row["state"] for row in rows].count("complete") == counted
    assert not [row for row in rows if row["state"] == "waiting"]


def shared_search(url: str, cwd: Path) -> None:
    """Two machines, so to speak, with two workers each, in one database; one of the workers is killed."""
    machines = []
    for name in ("a", "b"):
        (cwd / name).mkdir()
        machines.append(begin("--n_trials", 9, "--search_workers", 2, "--storage", url, cwd=cwd / name))
    storage = None
    deadline = time.monotonic() + 240
    while storage is None or sum(t.state == TrialState.COMPLETE for t in trials_of(storage)) < 3:
        assert time.monotonic() < deadline
        with contextlib.suppress(Exception):
            storage = storage or optuna.storages.RDBStorage(study_storage.with_driver(url))
        time.sleep(0.2)
    if shutil.which("pgrep"):
        os.kill(children(machines[0])[0], signal.SIGKILL)
    for machine, name in zip(machines, ("a", "b"), strict=True):
        outcome = end(machine, cwd / name)
        assert outcome.code == 0, outcome.err
    done = [trial for trial in trials_of(storage) if trial.state == TrialState.COMPLETE]
    assert 9 <= len(done) <= 10  # two machines may both see one trial missing
    assert len({tuple(trial.params.items()) for trial in done}) == len(done)
    assert sum(bool(trial.user_attrs.get("first")) for trial in done) == 1


def trials_of(storage: optuna.storages.RDBStorage) -> list[optuna.trial.FrozenTrial]:
    return [t for study in storage.get_all_studies() for t in storage.get_all_trials(study._study_id)]


@pytest.mark.slow
def test_two_machines_share_a_sqlite_file(tmp_path: Path) -> None:
    shared_search(f"sqlite:///{tmp_path}/s.db", tmp_path)


def postgres_programs() -> Path | None:
    """Where PostgreSQL's server programs lie, if they are installed with the driver."""
    pytest.importorskip("psycopg", reason="needs psycopg (pip install 'psycopg[binary]')")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    on_path = shutil.which("postgres")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """The URL of a PostgreSQL server of this test alone, on a free loopback port; not run as root, which it refuses."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = Path(subprocess.check_output(["mktemp", "-d", "/tmp/pg-XXXXXX"], text=True).strip())
    as_user: dict[str, Any] = {"cwd": data}
    if os.getuid() == 0:
        shutil.chown(data, "postgres")
        as_user["user"] = "postgres"

    def program(name: str, *arguments: str) -> None:
        done = subprocess.run([programs / name, *arguments], capture_output=True, text=True, **as_user)
        assert done.returncode == 0, done.stdout + done.stderr

    program("initdb", "-D", f"{data}/db", "-U", "me", "-A", "trust", "-N")
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data} -c fsync=off"
    program("pg_ctl", "-D", f"{data}/db", "-l", f"{data}/log", "-w", "-o", settings, "start")
    try:
        yield f"postgresql://me@127.0.0.1:{port}/postgres"
    finally:
        program("pg_ctl", "-D", f"{data}/db", "-m", "immediate", "stop")
        shutil.rmtree(data)


@pytest.mark.slow
def test_two_machines_share_a_postgresql_server(postgres: str, tmp_path: Path) -> None:
    shared_search(postgres, tmp_path)


# --- the page on it ---------------------------------------------------------------------------------------------------


def commands() -> list[str]:
    page = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    return [line for line in page.splitlines() if line.startswith("python MPL.py") and "--config" not in line]


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_page_is_understood(command: str) -> None:
    options = args.parse(shlex.split(command)[2:])
    assert options.mode.optuna_mode
    assert space_of(options)[1]
