"""The folder of a run: its name is counted up, only a run is removed, and a checkpoint is found by name or path."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from transfermpl.base.files import read_json, write_json
from transfermpl.base.written_files import note
from transfermpl.runs.run_folder import find_checkpoint, remove_run, run_folder
from transfermpl.utils import UserError


def made(name: str, *, resume: bool = False, overwrite: bool = False, shared: bool = False) -> Path:
    """The folder of a command whose only option is its name."""
    return run_folder(name, lambda name: {"name": name}, resume=resume, overwrite=overwrite, shared=shared)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_names_are_counted_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert [made("x").name for _ in range(3)] == ["x", "x-2", "x-3"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "results/x is there already, so this is results/x-2; --overwrite replaces the earlier one"
    assert len(lines) == 2
    shutil.rmtree(Path("results") / "x-2")
    assert made("x").name == "x-2"


@pytest.mark.parametrize("left", [(), ("written.txt",), ("written.txt", ".part-here-1-x.txt")])
@pytest.mark.parametrize("shared", [True, False])
def test_a_folder_that_a_killed_command_had_only_made_is_taken(left: tuple[str, ...], shared: bool) -> None:
    folder = Path("results") / "x"
    folder.mkdir(parents=True)
    for name in left:
        (folder / name).touch()
        os.utime(folder / name, (0, 0))
    assert made("x", shared=shared) == folder
    assert read_json(folder / "commandline_args.txt", {"name": str}) == {"name": "x"}
    assert {path.name for path in folder.iterdir()} == {"written.txt", "commandline_args.txt"}
    assert made("x", shared=shared).name == "x-2"


@pytest.mark.parametrize("mine", ["photo.jpg", "commandline_args.txt", "run.log"])
def test_a_folder_with_anything_else_in_it_is_not(mine: str) -> None:
    folder = Path("results") / "x"
    folder.mkdir(parents=True)
    (folder / mine).write_text("mine")
    assert made("x").name == "x-2"
    assert [path.name for path in folder.iterdir()] == [mine]


def test_a_folder_that_another_command_is_making_is_not_taken(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "x"
    folder.mkdir(parents=True)
    lock = folder.with_name(".x.lock")
    line = f"from filelock import FileLock\nlock = FileLock({str(lock)!r})\nlock.acquire()\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", line], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert made("x").name == "x-2"
        other.communicate(b"\n")
    assert made("x") == Path("results") / "x"


def test_only_a_run_is_resumed_or_overwritten() -> None:
    with pytest.raises(UserError, match="no run to resume"):
        made("x", resume=True)
    folder = made("x")
    assert made("x", resume=True) == folder
    (folder / "summary.json").touch()
    note(folder / "summary.json")
    assert made("x", overwrite=True) == folder
    assert {path.name for path in folder.iterdir()} == {"written.txt", "commandline_args.txt"}
    assert made("new", overwrite=True).name == "new"
    (folder / "thesis.tex").write_text("mine")
    assert made("x", overwrite=True) == folder
    (folder / "written.txt").unlink()
    with pytest.raises(UserError, match="does not look like a run"):
        made("x", overwrite=True)
    assert (folder / "thesis.tex").exists()


def test_what_is_no_folder_of_a_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "file").write_text("mine")
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "commandline_args.txt").write_text("{}")
    (tmp_path / "results" / "link").symlink_to(target)
    for name in ("file", "link"):
        with pytest.raises(UserError, match="does not look like a run"):
            remove_run(tmp_path / "results" / name)
    assert (target / "commandline_args.txt").exists()
    assert made("file").name == "file-2"


def test_results_that_are_a_file_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("not a folder")
    with pytest.raises(UserError, match="results is a file"):
        made("x")


def make_checkpoint(folder: Path, *names: str) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "commandline_args.txt").write_text("{}")
    for name in names:
        (folder / "checkpoints" / name).touch()


def test_a_checkpoint_is_found_by_name_folder_or_file(tmp_path: Path) -> None:
    folder = Path("results") / "exp"
    make_checkpoint(folder, "last.pt", "best.pt")
    last, best = folder / "checkpoints" / "last.pt", folder / "checkpoints" / "best.pt"
    for place in ("exp", "results/exp", "/checkpoints/flowers/exp", str(tmp_path / "results" / "exp"), "exp/"):
        assert find_checkpoint(place, best=False).resolve() == last.resolve()
        assert find_checkpoint(place, best=True).resolve() == best.resolve()
    assert find_checkpoint(str(last), best=True) == last
    assert find_checkpoint("results/exp/checkpoints", best=True).resolve() == best.resolve()


def test_a_checkpoint_that_is_not_there_is_explained() -> None:
    make_checkpoint(Path("results") / "young")
    make_checkpoint(Path("results") / "going", "last.pt")
    with pytest.raises(UserError, match=r"no last\.pt yet.*--resume"):
        find_checkpoint("young", best=False)
    with pytest.raises(UserError, match=r"no best\.pt yet; go on with --resume, or .* by --load_path .*last\.pt"):
        find_checkpoint("going", best=True)
    with pytest.raises(UserError, match="no such run, folder or checkpoint"):
        find_checkpoint("absent", best=False)
    for command, says in (("optuna_mode", "best_args.json"), ("inspect", "a report"), ("view_report", "a report")):
        folder = Path("results") / command
        folder.mkdir()
        write_json(folder / "commandline_args.txt", {"name": command, command: True})
        with pytest.raises(UserError, match=says):
            find_checkpoint(command, best=False)
