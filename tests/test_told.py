"""What is told: on the screen as plain lines, to other programs through the logging module, and into run.log."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runs import FROZEN, MOONS, ROOT, killed, make_data, run
from runs import Moment as At
from transfermpl import utils
from transfermpl.utils import RUN_LOG, UserError, as_command, complain, log_to, on_screen, say, typed, warn

TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ")


def log_of(folder: Path) -> str:
    return (folder / RUN_LOG).read_text(encoding="utf-8")


def untimed(folder: Path) -> list[str]:
    """The lines of a log without their times, which each message begins with."""
    lines = log_of(folder).splitlines()
    assert all(TIME.match(line) or line.startswith(" " * 21) or not line for line in lines)
    return [line[21:] for line in lines]


# --- where it goes ----------------------------------------------------------------------------------------------------


def test_the_screen_has_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    say("a line, 100% plain %s")
    warn("odd")
    complain("wrong")
    shown = capsys.readouterr()
    assert shown.out == "a line, 100% plain %s\n"
    assert shown.err == "warning: odd\nMPL.py: wrong\n"
    with on_screen():  # a command that calls another one
        say("once")
    assert capsys.readouterr().out == "once\n"


@pytest.mark.parametrize("where", ["a full disk", "a reader that went away"])
def test_nobody_needs_to_take_what_is_told(where: str) -> None:
    """`| head` and a full disk below `> out.txt`: the program goes on, and to its own code."""
    if where == "a full disk":
        nowhere = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, nowhere = os.pipe()
        os.close(reader)
    code = "import sys\nfrom transfermpl.utils import on_screen, say\n"
    code += "with on_screen():\n    say('one')\n    say('two')\nsys.exit(5)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, stdout=nowhere, stderr=subprocess.PIPE, text=True, timeout=60
        )
    finally:
        os.close(nowhere)
    assert (done.returncode, done.stderr) == (5, "")


LIBRARY = """
import logging, sys
from transfermpl.utils import bars_wanted, say, warn
sys.stderr.isatty = lambda: True
assert not bars_wanted()
say("a line")
warn("odd")
print("nothing yet", flush=True)
logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stdout)
say("a line")
warn("odd")
logging.getLogger("transfermpl").setLevel(logging.INFO)
say("a line")
"""


def test_a_program_that_uses_the_package_sees_what_it_wants() -> None:
    done = subprocess.run([sys.executable, "-c", LIBRARY], capture_output=True, text=True, check=True, timeout=100)
    assert done.stderr == ""
    assert done.stdout == "nothing yet\nWARNING transfermpl: odd\nINFO transfermpl: a line\n"


def test_other_programs_settings_are_as_before() -> None:
    logger = logging.getLogger("transfermpl")
    before = logger.level, logger.propagate, list(logger.handlers)
    with on_screen(), pytest.raises(UserError), on_screen():
        raise UserError
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_a_log_has_times_and_what_was_told_before_its_folder_was_known(tmp_path: Path) -> None:
    with as_command(["--name", "x"]):
        say("early")
        with log_to(tmp_path):
            say("\nmodel  accuracy\na          50%\n")
            warn("odd")
        say("late")
    assert untimed(tmp_path) == ["early", "model  accuracy", "a          50%", "warning: odd"]
    with as_command([]), log_to(tmp_path):
        say("again")
    assert untimed(tmp_path)[-2:] == ["warning: odd", "again"]


def test_logs_lie_within_each_other(tmp_path: Path) -> None:
    (tmp_path / "seed-0").mkdir()
    with log_to(tmp_path):
        say("all")
        with log_to(tmp_path / "seed-0"):
            say("one")
    assert untimed(tmp_path) == ["all", "one"]
    assert untimed(tmp_path / "seed-0") == ["one"]


def fail_in(folder: Path, error: BaseException) -> str:
    with pytest.raises(type(error)), log_to(folder):
        raise error
    return log_of(folder)


def test_the_error_that_ended_it_stands_in_the_log(tmp_path: Path) -> None:
    assert fail_in(tmp_path, UserError("no\nroom")).endswith("  MPL.py: no room\n")
    assert fail_in(tmp_path, KeyboardInterrupt("stopped; --resume goes on")).endswith("stopped; --resume goes on\n")
    assert fail_in(tmp_path, KeyboardInterrupt()).endswith("  MPL.py: stopped\n")
    unforeseen = fail_in(tmp_path, ZeroDivisionError("a division"))
    assert "Traceback" in unforeseen
    assert unforeseen.endswith("ZeroDivisionError: a division\n")


def test_a_log_that_can_not_be_written_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with log_to(tmp_path / "gone"):
        say("a line")
    assert capsys.readouterr().out == "a line\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_forked_process_leaves_the_log_alone(tmp_path: Path) -> None:
    with log_to(tmp_path):
        child = os.fork()
        if child == 0:
            say("from a worker")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        say("from the run")
    assert untimed(tmp_path) == ["from the run"]


def test_what_a_user_typed_or_would_have_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["MPL.py", "--name", "größe 1"])
    assert typed() == "MPL.py --name 'größe 1'"
    with as_command(["--name", "y"]):
        assert typed() == "MPL.py --name y"
        assert typed(["--resume"]) == "MPL.py --resume"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/transfermpl"])
    assert typed() == "transfermpl"
    assert utils.program() == "transfermpl"


# --- what each command leaves -----------------------------------------------------------------------------------------


def shown_in(out: str, folder: Path) -> bool:
    """Whether all that was on the screen stands in the log, in this order."""
    lines = [line for line in out.splitlines() if line]
    return [line for line in untimed(folder) if line] == lines


def test_a_run_and_its_resumption_are_in_one_log(tmp_path: Path) -> None:
    line = ("--name", "x", *MOONS)
    killed(At("runs.run:finish"), *line, cwd=tmp_path)
    before = log_of(tmp_path / "results" / "x")
    assert "training: step 12/12" in before
    resumed = run("--name", "x", "--resume", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    after = log_of(resumed.folder())
    assert after.startswith(before)
    assert "going on after epoch" in after[len(before) :]
    assert after.endswith("  results: results/x\n")
    assert json.loads((resumed.folder() / "summary.json").read_text())["command"].startswith("MPL.py --name x")


@pytest.mark.slow
def test_the_log_has_what_the_screen_had(tmp_path: Path) -> None:
    make_data(tmp_path / "p")
    (tmp_path / "p" / "b c" / "broken.png").write_bytes(b"no image")
    small = ("--data_dir", "p", *FROZEN, "--num_labels", "9", "--max_steps", "4", "--no_cache")
    for name, words in (
        ("run", small),
        ("compare", (*MOONS, "--compare", "--repeat", "1")),
        ("repeat", (*MOONS, "--repeat", "2")),
        ("inspect", ("--data_dir", "p", "--inspect", "--model_name", "cnn")),
        ("views", ("--data_dir", "p", "--view_report", "--views", "pixels", "gradients", "--num_labels", "9")),
    ):
        done = run("--name", name, *words, cwd=tmp_path)
        assert done.code == 0, done.err
        out = "\n".join(line for line in done.out.splitlines() if not line.startswith("to "))  # what to type next
        assert set(out.splitlines()) <= {*untimed(done.folder(name)), ""}, name
        assert set(done.err.splitlines()) <= {*untimed(done.folder(name)), ""}, name
        if not done.err:
            assert shown_in(out, done.folder(name)), name
    assert "warning: 1 of 37 files can't be decoded" in log_of(tmp_path / "results" / "run")
    assert log_of(tmp_path / "results" / "repeat" / "seed-1").endswith("  results: results/repeat/seed-1\n")


@pytest.mark.parametrize("start", [pytest.param("spawn", marks=pytest.mark.slow), "fork"])
def test_the_workers_of_a_search_do_not_write_into_its_log(
    tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transfermpl.search.supervisor.START", start)
    done = run("--name", "s", "--optuna_mode", *MOONS, "--n_trials", "2", "--search_workers", "2", cwd=tmp_path)
    assert done.code == 0, done.err
    assert shown_in(done.out, done.folder("s"))
