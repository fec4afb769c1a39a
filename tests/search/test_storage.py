"""The journal, its lock, trials of dead processes, and databases."""

from __future__ import annotations

import ast
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from runs import ROOT, end
from searches import begin, children, tune
from transfermpl.search import storage as study_storage
from transfermpl.utils import UserError

pytestmark = pytest.mark.usefixtures("forked_workers")


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


_kept: dict[str, Any] = {}


def _journals() -> str:
    import tempfile

    return _kept.setdefault("folder", tempfile.TemporaryDirectory()).name


def _whole_journal() -> bytes:
    if "whole" not in _kept:
        _kept["whole"] = some_journal(Path(_journals())).read_bytes()
    return _kept["whole"]


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


def test_an_empty_and_a_long_torn_journal(tmp_path: Path) -> None:
    for content, left in ((b"", b""), (b"x" * 9000, b""), (b"a\n" + b"y" * 9000, b"a\n"), (b"a\nb\n", b"a\nb\n")):
        (tmp_path / "j").write_bytes(content)
        study_storage.cut_torn_line(tmp_path / "j")
        assert (tmp_path / "j").read_bytes() == left


def test_a_damaged_journal_is_one_line_for_the_user(easy_objective: None, tmp_path: Path) -> None:
    tune("--n_trials", 2, cwd=tmp_path)
    path = tmp_path / "results" / "t" / "study.journal"
    path.write_bytes(b"garbage\n" + path.read_bytes())
    outcome = tune("--resume", cwd=tmp_path, code=2)
    assert "study.journal is damaged" in outcome.err
    assert len(outcome.complaint()) == 1


@pytest.mark.parametrize("line", [b"[1]", b"7", b'{"op_code": []}', b"[" * 100_000], ids=range(4))
def test_a_journal_of_something_else_is_one_line_for_the_user(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_bytes(line + b"\n")
    with pytest.raises(UserError, match="is damaged|can't be opened"):
        study_storage.open_journal(tmp_path / "study.journal")


def test_a_lock_of_a_killed_process_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_storage, "LOCK_SECONDS", 1)
    path = some_journal(tmp_path)
    os.symlink(path, f"{path}.lock")
    began = time.monotonic()
    with contextlib.chdir(tmp_path):  # the lock links to an absolute path, or it would never be found stale
        study_storage.open_journal(Path("study.journal"))
    assert 0.9 < time.monotonic() - began < 8
    assert not os.path.lexists(f"{path}.lock")


def test_the_lock_of_a_search_names_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links: list[Path] = []
    real = os.symlink
    monkeypatch.setattr(os, "symlink", lambda target, link: (links.append(Path(target)), real(target, link)))
    with contextlib.chdir(tmp_path):
        study_storage.open_journal(Path("study.journal"))
    assert links
    assert all(link.is_absolute() for link in links)


def running(owner: dict[str, Any] | None, **marks: Any) -> optuna.trial.FrozenTrial:
    trial = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs={"owner": owner, **marks} if owner else {})
    return trial


def test_which_processes_are_dead() -> None:
    me = study_storage.owner()
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert not study_storage.is_dead(running(me))
    assert study_storage.is_dead(running({**me, "process": done.pid}))
    assert study_storage.is_dead(
        running({**me, "started": (me["started"] or 0) - 1})
    )  # its number was given to another process
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
        study_storage.mend(study)
    lost, again = study.trials
    assert (lost.state, lost.user_attrs["reason"]) == (TrialState.FAIL, "its process died")
    assert again.system_attrs["fixed_params"] == {"x": 0.25, "y": 0.75}
    assert again.user_attrs == {"first": True, "retry_of": 0, "retries": 1}
    assert study_storage.finished(study.trials) == []


PRIVATE = """Optuna has changed a private name that search/storage.py needs to mark the trial of a dead process failed:
without it the trial stays running for ever, and its values are not tried again."""


def test_the_private_names_of_optuna_are_still_there(tmp_path: Path) -> None:
    storage = study_storage.open_journal(tmp_path / "j")
    study = optuna.create_study(study_name="s", storage=storage)
    study.ask()
    (trial,) = study.trials
    assert getattr(study, "_storage", None) is storage, f"{PRIVATE} Study._storage"
    trial_id = storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name("s"), trial.number)
    assert getattr(trial, "_trial_id", None) == trial_id, f"{PRIVATE} FrozenTrial._trial_id"
    study_storage.mark_failed(study, trial, "why")
    (failed,) = study.trials
    assert (failed.state, failed.user_attrs) == (TrialState.FAIL, {"reason": "why"}), PRIVATE


def test_a_trial_that_has_ended_is_not_marked_failed(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="s", storage=study_storage.open_journal(tmp_path / "j"))
    study.ask()
    (running_one,) = study.trials
    study.tell(0, 0.5)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        study_storage.mark_failed(study, running_one, "why")
    assert study.trials[0].state == TrialState.COMPLETE


PUBLIC_IN_SPITE_OF_IT = {"_exit", "_replace"}  # os._exit, and that of named tuples


def private_names_of_others(path: Path) -> set[str]:
    """Names with one leading underscore that a file takes from elsewhere than its own classes and modules."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
    return {name for name in found if name.startswith("_") and not name.startswith("__")} - PUBLIC_IN_SPITE_OF_IT


def test_private_names_of_optuna_stand_in_one_file() -> None:
    own = ROOT / "search" / "storage.py"
    folders = [ROOT / "search", ROOT / "tests" / "search"]
    for path in [*(path for folder in folders for path in folder.glob("*.py")), ROOT / "optuna_search.py"]:
        assert path == own or not private_names_of_others(path), path
    assert private_names_of_others(own) == {"_storage", "_trial_id"}


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


@pytest.mark.slow
def test_trials_whose_heartbeat_fell_silent_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_storage, "SILENT_SECONDS", 1)
    monkeypatch.setattr(study_storage, "HEARTBEAT_SECONDS", 1)
    storage: Any = study_storage.open_storage(f"sqlite:///{tmp_path}/s.db", tmp_path)
    study = optuna.create_study(study_name="s", storage=storage)
    trial = study.ask()
    trial.set_user_attr("owner", {"host": "elsewhere", "process": 1, "started": 1})
    trial.suggest_float("x", 0, 1)
    study_id = storage.get_study_id_from_name("s")
    storage.record_heartbeat(storage.get_trial_id_from_study_id_trial_number(study_id, trial.number))
    study_storage.mend(study)
    assert [t.state for t in study.trials] == [TrialState.RUNNING]
    time.sleep(2.1)
    for _ in range(2):
        study_storage.mend(study)
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
    names = optuna.get_all_study_names(storage)
    return [t for name in names for t in optuna.load_study(study_name=name, storage=storage).trials]


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
