"""What the tests of searches share: searches in this process and in one of their own, and what they leave."""

from __future__ import annotations

import contextlib
import csv
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from runs import Outcome, run, start
from transfermpl import args, optuna_search
from transfermpl.args import Options
from transfermpl.search import objective
from transfermpl.search import storage as study_storage
from transfermpl.search.space import space_of
from transfermpl.search.worker import Job

TUNE = ("--name", "t", "--optuna_mode", "--data_dir", "moons")
SHORT = ("--unlabeled_batch_size", "200", "--max_steps", "6", "--warmup_epoch_num", "1")


def tune(*arguments: object, cwd: Path, pictures: bool = False, code: int = 0) -> Outcome:
    with contextlib.nullcontext() if pictures else no_pictures():
        outcome = run(*TUNE, *arguments, cwd=cwd)
    assert outcome.code == code, outcome.out + outcome.err
    return outcome


@contextlib.contextmanager
def no_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna_search.plots, "draw", lambda *_: [])
        yield


def parsed(*arguments: object) -> Options:
    return args.parse([*TUNE, *map(str, arguments)])


def job_of(options: Options, folder: Path, *, by_validation: bool = False) -> Job:
    """What the search of these options gives its workers."""
    base, space = space_of(options.flat())
    tuned = options.cotraining.finetune_views
    return Job("t", folder, base, space, options.run, options.search, tuned, by_validation)


def goal_of(options: Options) -> objective.Goal:
    """What the trials of a search with these options are measured on."""
    return objective.goal_of(options.data, options.run.seed, options.search.folds)


def table(cwd: Path, name: str = "t") -> list[dict[str, str]]:
    with (cwd / "results" / name / "trials.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def study_in(cwd: Path, name: str = "t") -> optuna.Study:
    storage = study_storage.open_journal(cwd / "results" / name / "study.journal")
    return optuna.load_study(study_name="t", storage=storage)


def fake(value: Callable[[Options], float], folds: int = 1) -> Callable[..., float]:
    """An objective without a training: `value` of the options, reported for each fold."""

    def accuracy(values: Mapping[str, Any], goal: Any, kept: Any, report: Callable[[float, int], None]) -> float:
        found = value(args.make(values))
        for number in range(1, folds + 1):
            report(found, number)
        return found

    return accuracy


# For searches in a process of their own.
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
    """The process ids of the workers of a search."""
    found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]
