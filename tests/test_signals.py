"""Signals that end a run, faults that nobody expected, and terminals that can't show everything."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from runs import MOONS, make_images, run, same_run, start
from transfermpl import utils
from transfermpl.runs import training

LONG = ("--name", "x", "--data_dir", "moons", "--unlabeled_batch_size", 30, "--max_steps", 60)


SIGNALS = [(signal.SIGTERM, 143, 5), (signal.SIGINT, 130, 13)]
MORE_SIGNALS = [(signal.SIGTERM, 143, 13), (signal.SIGTERM, 143, 27), (signal.SIGINT, 130, 5), (signal.SIGINT, 130, 27)]


@pytest.mark.parametrize(
    ("number", "code", "at"), [*SIGNALS, *(pytest.param(*more, marks=pytest.mark.slow) for more in MORE_SIGNALS)]
)
def test_a_signal_ends_after_the_step_and_the_run_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, at: int
) -> None:
    """At an epoch's end or within one, between two readings of what is measured."""
    from transfermpl.algorithms import algorithm

    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    whole = run(*LONG, cwd=tmp_path / "whole")
    steps, step_of = [], algorithm.mpl_step

    def send(*arguments: Any) -> Any:
        steps.append(arguments[2])
        if len(steps) == at:
            os.kill(os.getpid(), number)
        return step_of(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(algorithm, "mpl_step", send)
        stopped = run(*LONG, cwd=tmp_path / "stopped")
    assert stopped.code == code
    assert stopped.err.splitlines()[-1] == "MPL.py: stopped; --name x --resume goes on"
    assert len(steps) == at
    assert stopped.checkpoint("last")["step"] == steps[-1] + 1
    assert same_run(whole, run("--name", "x", "--resume", cwd=tmp_path / "stopped"))


def test_a_second_signal_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transfermpl.algorithms import algorithm

    def send(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        pytest.fail("the step went on")

    monkeypatch.setattr(algorithm, "mpl_step", send)
    assert run(*LONG, cwd=tmp_path).code == 130


def test_sigterm_outside_a_training_ends_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("transfermpl.runs.run.prepare", lambda options: os.kill(os.getpid(), signal.SIGTERM))
    outcome = run(*LONG, cwd=tmp_path)
    assert outcome.code == 143
    assert outcome.err.splitlines()[-1] == "MPL.py: stopped"
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_sigterm_of_a_process_group_with_workers(tmp_path: Path) -> None:
    for name, colour in {"a": (200, 30, 30), "b": (30, 30, 200)}.items():
        make_images(tmp_path / "d" / name, 12, colour)
    line = ("--name", "x", "--data_dir", "d", "--num_labels", 4, "--model_name", "cnn", "--image_size", 16)
    process = start(*line, "--unfreeze", "all", "--num_workers", 2, "--max_steps", 100000, cwd=tmp_path)
    log = tmp_path / "results" / "x" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.read_text().count("\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)  # as `timeout` and schedulers do: the workers get it too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert errors.splitlines()[-1] == "MPL.py: stopped; --name x --resume goes on"
    assert "Traceback" not in errors
    assert (tmp_path / "results" / "x" / "checkpoints" / "last.pt").is_file()


# --- faults that nobody expected --------------------------------------------------------------------------------------


def broken(*_: object, **__: object) -> None:
    raise ZeroDivisionError("a fault\nof the program")


def test_an_unexpected_error_is_one_line_and_its_traceback_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "fill_banks", broken)
    outcome = run("--name", "x", *MOONS, cwd=tmp_path)
    assert outcome.code == 1
    (line,) = outcome.complaint()
    assert line.endswith("ZeroDivisionError: a fault of the program; results/x/run.log says where")
    assert "in broken" in (outcome.folder() / "run.log").read_text()
    with pytest.raises(ZeroDivisionError):
        run("--name", "x", *MOONS, "--debug", cwd=tmp_path)


def test_before_there_is_a_log_an_option_shows_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transfermpl.runs.run.prepare", broken)
    outcome = run("--name", "x", *MOONS, cwd=tmp_path)
    assert outcome.complaint()[0].endswith("; --debug shows where")


# --- terminals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_what_a_terminal_can_not_show_is_written_otherwise(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with utils.on_screen():
        utils.say("class 日本")
        utils.warn("class 日本")
    for stream, start_of in ((out, b"class "), (err, b"warning: class ")):
        stream.flush()
        assert stream.buffer.getvalue() == start_of + b"\\u65e5\\u672c\n"  # type: ignore[attr-defined]


def test_a_notebooks_backend_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "module://of_a_notebook")
    assert run("--list_views", cwd=tmp_path).code == 0
    assert os.environ["MPLBACKEND"] == "agg"
