"""What an ended run lacks is made again by --resume; what killed writers left goes, and what is being written stays."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runs import CLOCK, FROZEN, MOONS, Outcome, make_data, run, same, started
from transfermpl.base.files import atomic_file, remove_parts
from transfermpl.base.written_files import written_in
from transfermpl.deploy.output import output
from transfermpl.learning.checkpoint import load_checkpoint
from transfermpl.runs.run_folder import going_on
from transfermpl.search import supervisor
from transfermpl.train import TrainingFault

IMAGES = ("--data_dir", "d", "--num_labels", 9, "--max_steps", 2, "--num_workers", 0, "--cache_dir", "c")
OF_THE_CLOCK = ("run.log", "workers.log", "written.txt", "journal.json", "trials.csv", ".png")


def content(file: Path) -> Any:
    """What a file holds beside the time and the memory that something took."""
    if file.suffix == ".pt":
        return {key: value for key, value in load_checkpoint(file).items() if key != "path"}
    if file.suffix == ".json":
        value = json.loads(file.read_text())
        return {key: one for key, one in value.items() if key not in CLOCK} if file.name == "summary.json" else value
    return re.sub(rb"(since it was resumed, )?[0-9.]+ s\b(, of which[^<]*)?|[0-9.]+ GB at most", b"", file.read_bytes())


def check_made_again(outcome: Outcome, lost: tuple[str, ...] = (), names: tuple[str, ...] = ()) -> None:
    """Each file of the list (or of these) is made again, to the same content; where not, one line says so."""
    folder = outcome.folder()
    shutil.copytree(folder, outcome.cwd / "before")
    for name in names or sorted(written_in(folder)):
        if not (folder / name).is_file():  # models of a comparison
            continue
        (folder / name).unlink()
        again = run("--name", "x", "--resume", cwd=outcome.cwd)
        if name == "commandline_args.txt":
            assert again.code == 2
            assert "there is no run to resume in results/x" in again.err
        elif any(word in name for word in lost):
            assert again.code == 0, again.err
            assert len([line for line in again.err.splitlines() if name in line]) == 1
        else:
            assert again.code == 0, again.err
            assert name.endswith(OF_THE_CLOCK) or same(content(folder / name), content(outcome.cwd / "before" / name))
        shutil.copy(outcome.cwd / "before" / name, folder / name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    root = tmp_path_factory.mktemp("made")
    make_data(root / "d")
    return started(root, *IMAGES, *FROZEN, "--show_images")


@pytest.fixture
def ended(made: Outcome, tmp_path: Path) -> Outcome:
    shutil.copytree(made.cwd, tmp_path / "p")
    return replace(made, cwd=tmp_path / "p")


def test_what_is_missing_is_made_again(ended: Outcome) -> None:
    check_made_again(ended, names=("student_CM.png", "split.csv", "samples.png", "bad_files.txt", "reliability.png"))
    assert "has ended already" in run("--name", "x", "--resume", cwd=ended.cwd).out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "lost"),
    [
        (("--repeat", 2), ()),
        (("--compare", "--repeat", 1), ("metrics.csv",)),
        (("--tensorboard",), ("events.out",)),
        (("--optuna_mode", "--n_trials", 2, "--folds", 2), ("study.journal",)),
    ],
    ids=lambda words: str(words[0]) if words else "",
)
def test_what_other_commands_lack_is_made_again_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: tuple[object, ...], lost: tuple[str, ...]
) -> None:
    monkeypatch.setattr(supervisor, "START", "fork")
    check_made_again(started(tmp_path, *MOONS, "--num_labels", 20, *line), lost)


@pytest.mark.slow
def test_everything_that_is_missing_is_made_again(ended: Outcome) -> None:
    check_made_again(ended)


@pytest.mark.slow
def test_a_fine_tuned_view_is_made_again(tmp_path: Path) -> None:
    make_data(tmp_path / "d")
    views = ("--cotrain_mode", "--views", "cnn", "gradients", "--finetune_views", "--finetune_steps", 1)
    check_made_again(started(tmp_path, *IMAGES, *views))


def test_a_test_of_a_run_is_not_made_again_by_the_run(ended: Outcome) -> None:
    assert run("--test_mode", "--load_path", "x", cwd=ended.cwd).code == 0
    (ended.folder() / "test_summary.json").unlink()
    again = run("--name", "x", "--resume", cwd=ended.cwd)
    assert again.code == 0
    assert "results/x lacks test_summary.json, which --resume can't make again" in again.err
    assert "has ended already" in again.out


def test_a_list_that_is_lost_is_written_again(ended: Outcome) -> None:
    before = set(written_in(ended.folder()))
    (ended.folder() / "written.txt").unlink()
    assert run("--name", "x", "--resume", cwd=ended.cwd).code == 0
    assert set(written_in(ended.folder())) == before
    (ended.folder() / "written.txt").write_bytes(b"\xff\xfe- a\0b\n" + b"- " + b"x" * 5000)
    outcome = run("--name", "x", *IMAGES, *FROZEN, "--overwrite", cwd=ended.cwd)
    assert outcome.code == 0
    assert "files that no run wrote" in outcome.err


def test_changed_options_are_refused_where_they_were_trained_with(ended: Outcome) -> None:
    path = ended.folder() / "commandline_args.txt"
    path.write_text(path.read_text().replace('"max_steps": 2', '"max_steps": 3'))
    again = run("--name", "x", "--resume", cwd=ended.cwd)
    assert again.code == 2
    assert "last.pt was trained with --max_steps 2, and commandline_args.txt says 3" in again.err


# --- half-written files -----------------------------------------------------------------------------------------------


def left_by_a_killed_process(folder: Path) -> Path:
    """A half-written file of a process that has ended."""
    program = "import os, sys; from pathlib import Path; from transfermpl.base.files import atomic_file\n"
    program += "with atomic_file(Path(sys.argv[1])) as part: print(part, flush=True); os._exit(9)"
    done = subprocess.run([sys.executable, "-c", program, folder / "a.csv"], stdout=subprocess.PIPE, text=True)
    part = Path(done.stdout.strip())
    assert part.is_file()
    return part


def test_only_what_a_dead_process_was_writing_goes(tmp_path: Path) -> None:
    dead = left_by_a_killed_process(tmp_path / "below")
    theirs = tmp_path / f".part-01234567-{os.getpid()}-a.csv"  # of a machine that shares the disk
    theirs.touch()
    with atomic_file(tmp_path / "mine.csv") as ours:
        ours.write_text("1")
        os.utime(ours, (0, 0))
        remove_parts(tmp_path)
        assert ours.exists()
        assert theirs.exists()
        assert not dead.exists()
        os.utime(theirs, (0, 0))
        remove_parts(tmp_path)
        assert not theirs.exists()
    assert (tmp_path / "mine.csv").read_text() == "1"


def test_beside_a_given_file_only_what_was_surely_ours_goes(tmp_path: Path) -> None:
    dead, below = left_by_a_killed_process(tmp_path), left_by_a_killed_process(tmp_path / "below")
    foreign = tmp_path / ".part-of-a-song.csv"
    foreign.touch()
    os.utime(foreign, (0, 0))
    output(str(tmp_path / "a.csv"), tmp_path, "a.csv", overwrite=False, is_own=Path.is_file)
    assert not dead.exists()
    assert foreign.exists()
    assert below.exists()


@pytest.mark.parametrize(
    "line",
    [
        ("--name", "x", "--resume"),
        ("--name", "x", *IMAGES, *FROZEN, "--overwrite"),
        ("--test_mode", "--load_path", "x"),
        ("--predict_dir", "d", "--load_path", "x"),
    ],
    ids=["resume", "overwrite", "test", "predict"],
)
def test_the_next_command_that_writes_there_removes_it(ended: Outcome, line: tuple[object, ...]) -> None:
    parts = [left_by_a_killed_process(ended.folder()), left_by_a_killed_process(ended.folder() / "checkpoints")]
    bank = next((ended.cwd / "c").glob("*/eval-000"))
    parts += [left_by_a_killed_process(bank), left_by_a_killed_process(bank.parent)]
    assert run(*line, cwd=ended.cwd).code == 0
    left = [part for part in parts if part.exists()]
    assert left == ([] if "--predict_dir" not in line else parts[2:])  # it uses no bank


def test_a_checkpoint_is_said_to_be_kept_where_there_is_one(tmp_path: Path) -> None:
    fault = TrainingFault("the training broke off near step 3: loss not finite")
    with pytest.raises(TrainingFault) as caught, going_on(tmp_path):
        raise fault
    assert "checkpoint" not in str(caught.value)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").touch()
    with pytest.raises(TrainingFault, match=r"\(the last good checkpoint is kept\)"), going_on(tmp_path):
        raise fault
