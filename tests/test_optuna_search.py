"""Searches end to end: the study, resuming, and what a search leaves."""

from __future__ import annotations

import contextlib
import json
import shlex
from pathlib import Path
from typing import Any

import optuna
import pytest
from PIL import Image

from runs import ROOT, run
from searches import SHORT, fake, study_in, table, tune
from transfermpl import args
from transfermpl.args import Options
from transfermpl.base.written_files import written_in
from transfermpl.search import storage as study_storage
from transfermpl.search import worker
from transfermpl.search.space import USUAL, space_of

pytestmark = pytest.mark.usefixtures("forked_workers")


def test_a_search_by_one_worker_can_be_repeated(easy_objective: None, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tune("--n_trials", 14, "--pruner", "none", cwd=tmp_path / name)
    a, b = ([{**row, "seconds": ""} for row in table(tmp_path / name)] for name in ("a", "b"))
    assert a == b
    assert max(float(row["value"]) for row in a) > float(a[0]["value"])


def test_the_first_trial_is_the_present_options_once(easy_objective: None, tmp_path: Path) -> None:
    tune("--n_trials", 3, "--threshold", 0.8, cwd=tmp_path)
    tune("--n_trials", 5, "--resume", cwd=tmp_path)
    rows = table(tmp_path)
    present = Options().flat() | {"threshold": 0.8}
    assert all(float(rows[0][name]) == present[name] for name in USUAL)
    assert [trial.number for trial in study_in(tmp_path).trials if trial.user_attrs.get("first")] == [0]
    assert len(rows) == 5
    assert len({row["max_lr"] for row in rows}) == 5


def test_a_finished_search_runs_nothing_again(easy_objective: None, tmp_path: Path) -> None:
    tune("--n_trials", 4, cwd=tmp_path)
    before = table(tmp_path)
    tune("--resume", cwd=tmp_path)
    assert table(tmp_path) == before


def test_resuming_keeps_what_is_searched(easy_objective: None, tmp_path: Path) -> None:
    tune("--n_trials", 2, cwd=tmp_path)
    for line, says in ((("--folds", 5), "--folds 3, not 5"), (("--search", "ema=0,0.5"), "--search")):
        assert says in tune("--resume", *line, cwd=tmp_path, code=2).err
    before = table(tmp_path)
    assert run("--name", "t", "--resume", cwd=tmp_path).code == 0  # what goes on says itself that it is a search
    assert table(tmp_path) == before
    assert not (tmp_path / "results" / "t" / "metrics.csv").exists()


def test_a_search_that_is_older_than_an_option_goes_on(easy_objective: None, tmp_path: Path) -> None:
    tune("--n_trials", 2, "--head_prior", "none", cwd=tmp_path)
    study, record = study_in(tmp_path), tmp_path / "results" / "t" / "commandline_args.txt"
    study.set_user_attr("search", {k: v for k, v in study.user_attrs["search"].items() if k != "--head_prior"})
    stored = json.loads(record.read_text(encoding="utf-8"))
    assert stored.pop("head_prior") == "none"
    record.write_text(json.dumps(stored), encoding="utf-8")
    tune("--n_trials", 3, "--resume", cwd=tmp_path)
    assert len(table(tmp_path)) == 3


@pytest.mark.slow
def test_a_second_search_of_a_name_gets_a_folder_of_its_own(easy_objective: None, tmp_path: Path) -> None:
    for _ in range(2):
        tune("--n_trials", 2, cwd=tmp_path)
    assert len(table(tmp_path, "t-2")) == 2
    outcome = run("--name", "t-2", "--resume", "--optuna_mode", "--n_trials", 3, "--data_dir", "moons", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert (len(table(tmp_path)), len(table(tmp_path, "t-2"))) == (2, 3)


@pytest.mark.slow
def test_a_search_in_sqlite_is_joined_and_goes_on(easy_objective: None, tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_a_study_of_something_else_is_not_joined(easy_objective: None, tmp_path: Path) -> None:
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


def test_what_a_search_leaves(tmp_path: Path) -> None:
    line = (
        *SHORT,
        "--n_trials",
        8,
        "--folds",
        2,
        "--search",
        "head_prior=none,unlabeled",
        "--switch_mode",
        "--pruner",
        "none",
    )
    outcome = tune(*line, cwd=tmp_path, pictures=True)
    folder = tmp_path / "results" / "t"
    pictures = {"history.png", "importances.png", "parallel.png", "slices.png"}
    rest = {"run.log", "best_args.json", "trials.csv", "study.journal", "commandline_args.txt", "workers.log"}
    rest |= {"written.txt", "report.html"}
    assert {*written_in(folder), "written.txt"} == pictures | rest
    assert {path.name for path in folder.iterdir()} == pictures | rest
    for name in pictures:
        with Image.open(folder / name) as image:
            assert image.format == "PNG"
            assert min(image.size) > 150
    rows = table(tmp_path)
    assert list(rows[0]) == [
        "number", "state", "value", *USUAL, "head_prior", "seconds", "reason", "retry_of",
    ]  # fmt: skip
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert f"optuna-dashboard {Path('results/t/study.journal')}" in outcome.out
    best = max(rows, key=lambda row: (float(row["value"]), -int(row["number"])))
    found = json.loads((folder / "best_args.json").read_text())
    assert {name: str(found[name]) for name in (*USUAL, "head_prior")} == {
        name: best[name] for name in (*USUAL, "head_prior")
    }
    trained = run("--name", "best", "--config", folder / "best_args.json", cwd=tmp_path)
    assert trained.code == 0, trained.err
    stored = json.loads((tmp_path / "results" / "best" / "commandline_args.txt").read_text())
    assert stored["max_lr"] == found["max_lr"]
    assert stored["max_steps"] == 6
    assert stored["switch_mode"] is True
    assert not stored["optuna_mode"]


def test_a_search_without_a_complete_trial_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "accuracy", fake(lambda o: 1 / 0))
    outcome = tune("--n_trials", 2, cwd=tmp_path)
    assert "no trial has been completed" in outcome.out
    assert len(table(tmp_path)) == 2
    assert not (tmp_path / "results" / "t" / "best_args.json").exists()


def commands() -> list[str]:
    page = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    return [line for line in page.splitlines() if line.startswith("python MPL.py") and "--config" not in line]


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_page_is_understood(command: str) -> None:
    options = args.parse(shlex.split(command)[2:])
    assert options.mode.optuna_mode
    assert space_of(options.flat())[1]
