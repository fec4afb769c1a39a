"""Starting workers, giving them trials, replacing them; and what survives kills and Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from runs import ROOT, end, start
from searches import REAL, TUNE, begin, children, complete_in, fake, study_in, table, tune, wait_for
from transfermpl.args import Options
from transfermpl.search import storage as study_storage
from transfermpl.search import supervisor, worker
from transfermpl.search.space import USUAL

pytestmark = pytest.mark.usefixtures("forked_workers")


def test_several_workers_run_exactly_the_trials_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "accuracy", fake(lambda o: time.sleep(0.05) or o.learning.threshold))  # type: ignore[func-returns-value]
    tune("--n_trials", 13, "--search_workers", 3, "--pruner", "none", cwd=tmp_path)
    rows = table(tmp_path)
    assert [row["state"] for row in rows] == ["complete"] * 13
    assert len({row["max_lr"] for row in rows}) == 13
    owners = {trial.user_attrs["owner"]["process"] for trial in study_in(tmp_path).trials}
    assert len(owners) == 3
    assert {trial.user_attrs["owner"]["host"] for trial in study_in(tmp_path).trials} == {socket.gethostname()}


def test_no_trial_begins_after_the_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "accuracy", fake(lambda o: time.sleep(0.3) or 0.5))  # type: ignore[func-returns-value]
    began = time.monotonic()
    tune("--n_trials", 500, "--timeout", 1.5, cwd=tmp_path)
    assert time.monotonic() - began < 20
    rows = table(tmp_path)
    assert 1 <= len(rows) <= 8
    assert {row["state"] for row in rows} == {"complete"}


def test_what_the_bar_says(easy_objective: None, tmp_path: Path) -> None:
    tune("--n_trials", 3, cwd=tmp_path)
    trials = study_in(tmp_path).trials
    text = supervisor.SearchProgress(9, 100.0).text(trials)
    best = max(trials, key=lambda trial: trial.value or 0.0)
    assert text.startswith(f"best {best.value:.1%} (trial {best.number}), 0 pruned, 0 failed, ")
    left = float(text.split(", ")[-1].split()[0])
    assert 90 < left <= 100
    assert text.endswith("s left to --timeout")


def test_ten_failures_in_a_row_end_the_search_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> float:
        raise ValueError("nothing works")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "accuracy", broken)
        outcome = tune("--n_trials", 50, cwd=tmp_path, code=1)
    assert len(outcome.complaint()) == 1
    assert "after 10 failures in a row, the last: ValueError: nothing works" in outcome.err
    assert [row["state"] for row in table(tmp_path)] == ["fail"] * 10
    monkeypatch.setattr(worker, "accuracy", fake(lambda o: 0.5))
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

    monkeypatch.setattr(worker, "accuracy", fake(value))
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

    monkeypatch.setattr(worker, "accuracy", fake(value))
    if moment == "before":  # as soon as it knows its values
        real = worker.suggest

        def suggest(trial: optuna.Trial, space: Any) -> dict[str, Any]:
            values = real(trial, space)
            value(Options().changed(max_lr=values["max_lr"]))
            return values

        monkeypatch.setattr(worker, "suggest", suggest)
    tune("--n_trials", 4, "--search_workers", 2, cwd=tmp_path)
    rows = table(tmp_path)
    lost = [row for row in rows if row["state"] == "fail"]
    assert [row["reason"] for row in lost] == ["its process died"] * times
    assert [row["state"] for row in rows].count("complete") == 4
    for row in lost:
        (again,) = [other for other in rows if other["retry_of"] == row["number"]]
        assert all(again[name] == row[name] for name in USUAL)
    assert max(float(row["value"] or 0) for row in rows) == 0.7


def test_values_that_always_kill_their_process_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def value(options: Options) -> float:
        if options.learning.max_lr == Options().learning.max_lr:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.5

    monkeypatch.setattr(worker, "accuracy", fake(value))
    tune("--n_trials", 3, cwd=tmp_path)
    rows = table(tmp_path)
    assert [row["state"] for row in rows].count("fail") == 1 + study_storage.MOST_RETRIES
    assert [row["state"] for row in rows].count("complete") == 2


@pytest.mark.slow
def test_workers_that_can_not_start_end_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "sampler_of", lambda *_: os._exit(3))
    outcome = tune(cwd=tmp_path, code=1)
    assert "10 workers in a row died before their first trial" in outcome.err


# --- real processes, started by spawn ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("from_package", [False, True])
def test_spawned_workers_find_the_program(from_package: bool, tmp_path: Path) -> None:
    """As a file of a folder that nothing knows, and as an installed package; whatever lies in the present folder."""
    for name in ("utils", "args", "data", "search"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not ours')")
    program, env = [str(ROOT / "MPL.py")], {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if from_package:
        program, env = (
            ["-c", "import sys; from transfermpl.MPL import main; sys.exit(main(sys.argv[1:]))"],
            {**os.environ},
        )
    command = [sys.executable, *program, *TUNE, *REAL, "--n_trials", "3", "--search_workers", "2", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["state"] for row in table(tmp_path)] == ["complete"] * 3
    assert "Traceback" not in (tmp_path / "results" / "t" / "workers.log").read_text(encoding="utf-8")


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
