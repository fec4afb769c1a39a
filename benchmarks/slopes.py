"""Whether long runs stay as they are: memory, open files, threads and processes over 20,000 steps and 300 trials.

    python benchmarks/slopes.py [--steps 20000] [--trials 300] [--only NAME ...]

Each run is a process of its own, looked at in /proc every half second, with the processes that it started. A line is
fitted to what came after the first third of the steps or trials. It fails (exit code 1) where the line explains more than
half of the variance and climbs by more than 1 MiB of memory per 1,000 steps or 100 trials, or by more than half a file,
thread or process. Some growth is meant: a run keeps a row of metrics for every epoch. Each process of a search keeps every
trial, since Optuna does: what Optuna alone takes for as many trials of the same space, with an objective that only returns
a number, is measured in the same run and taken off for each of the three. About five minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import optuna

from transfermpl import args
from transfermpl.search.space import space_of, suggest
from transfermpl.search.storage import open_storage
from transfermpl.search.worker import sampler_of

ROOT = Path(__file__).resolve().parents[1]
TICK_SECONDS = 0.5
WARM_UP = 1 / 3
KINDS = ("memory", "files", "threads", "processes")
LIMITS = (1024.0, 0.5, 0.5, 0.5)  # KiB and numbers, per 1,000 steps or 100 trials
EXPLAINED = 0.5
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024

RUNS = {
    "moons": "--data_dir moons --max_steps {steps}",
    "bank": "--data_dir digits --model_name cnn --unfreeze head --calibration_folds 0 --max_steps {steps}",
    "search": "--data_dir moons --optuna_mode --n_trials {trials} --folds 2 --search_workers 2 --pruner none --max_steps 12",
}
IN_SEARCH = 3  # processes that keep the trials


def tree(process: int) -> Iterator[int]:
    """A process and all that come from it."""
    yield process
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from tree(int(child))


def measured(process: int) -> tuple[float, ...]:
    """KINDS of a process with its children, memory in KiB; one that has just ended counts as nothing."""
    totals = np.zeros(len(KINDS))
    for number in tree(process):
        with contextlib.suppress(OSError, ValueError, IndexError):
            place = Path(f"/proc/{number}")
            memory = int((place / "statm").read_text().split()[1]) * PAGE_KIB
            totals += memory, len(os.listdir(place / "fd")), len(os.listdir(place / "task")), 1
    return tuple(totals)


def steps_done(run: Path) -> int:
    """The step of the last whole row of metrics.csv."""
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        with (run / "metrics.csv").open("rb") as file:
            columns = file.readline().decode()
            file.seek(max(file.tell(), file.seek(0, os.SEEK_END) - 4096))
            last = file.read().decode().splitlines()[-2]
        return int(next(csv.DictReader([columns, last]))["step"])
    return 0


def trials_done(run: Path) -> int:
    with contextlib.suppress(OSError):
        return (run / "study.journal").read_bytes().count(b'"state":1,')
    return 0


def watched(command: list[str], done: Callable[[Path], int]) -> np.ndarray:
    """[n, 1 + KINDS]: steps or trials that were done, and what was measured then."""
    with tempfile.TemporaryDirectory() as place:
        with (Path(place) / "screen.txt").open("wb") as screen:
            process = subprocess.Popen([sys.executable, *command], cwd=place, stdout=screen, stderr=screen)
        samples = []
        while process.poll() is None:
            time.sleep(TICK_SECONDS)
            count, found = done(Path(place) / "results" / "x"), measured(process.pid)
            if count and found[-1]:
                samples.append((count, *found))
        if process.returncode:
            sys.exit((Path(place) / "screen.txt").read_text(encoding="utf-8"))
        return np.array(samples, dtype=float)


def line_through(done: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """The slope, and the share of the variance that it explains."""
    slope, start = np.polyfit(done, values, 1)
    variance = values.var()
    return float(slope), float(1 - (values - slope * done - start).var() / variance) if variance else 0.0


def optuna_alone(trials: int) -> None:
    """A study as a search keeps it, in this process, without any training."""
    place = Path("results", "x")
    place.mkdir(parents=True)
    _, space = space_of(args.make({"name": "x", "data_dir": "moons"}).flat())
    study = optuna.create_study(storage=open_storage(None, place), sampler=sampler_of(0, 0, 0))

    def objective(trial: optuna.Trial) -> float:
        suggest(trial, space)
        for fold in range(2):
            trial.report(0.5, fold)
        return trial.number % 7

    study.optimize(objective, trials)


def climbing(name: str, samples: np.ndarray, total: int, unit: int, meant: float = 0) -> tuple[float, bool]:
    """Print a row for each kind; returns how memory climbs, in KiB a unit, and whether anything climbs.

    meant: KiB a unit that don't count. Samples of the very last epoch or trial are left out: what comes after it has a
    size of its own.
    """
    middle = samples[(samples[:, 0] > WARM_UP * total) & (samples[:, 0] < 0.99 * total)]
    found, slopes = False, []
    for index, (kind, limit) in enumerate(zip(KINDS, LIMITS, strict=True), start=1):
        slope, explained = line_through(middle[:, 0], middle[:, index])
        slopes.append(slope * unit)
        climbs = slopes[-1] > limit + meant * (kind == "memory") and explained > EXPLAINED
        found |= climbs
        first, last = middle[0, index], middle[-1, index]
        print(
            f"{name:<10}{kind:<12}{slopes[-1]:>14.2f}{explained:>8.2f}{first:>12,.0f}{last:>12,.0f}{len(middle):>6}"
            f"{'  climbs' if climbs else ''}",
            flush=True,
        )
    return slopes[0], found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME")
    parser.add_argument("--optuna_alone", action="store_true", help=argparse.SUPPRESS)  # a process of this program
    given = parser.parse_args()
    if given.optuna_alone:
        optuna_alone(given.trials)
        return 0
    print(f"{'run':<10}{'KiB, number':<12}{'per 1,000 *':>14}{'R^2':>8}{'a third':>12}{'the end':>12}{'n':>6}")
    found, meant = False, 0.0
    if "search" in given.only:
        alone = watched([__file__, "--optuna_alone", "--trials", str(given.trials)], trials_done)
        meant = IN_SEARCH * climbing("Optuna", alone, given.trials, 100, meant=np.inf)[0]
    for name in given.only:
        line = RUNS[name].format(steps=given.steps, trials=given.trials)
        command = [str(ROOT / "MPL.py"), "--name", "x", "--device", "cpu", *shlex.split(line)]
        if name == "search":
            climbs = climbing(name, watched(command, trials_done), given.trials, 100, meant)[1]
        else:
            climbs = climbing(name, watched(command, steps_done), given.steps, 1000)[1]
        found |= climbs
    print("* steps; of a search and of Optuna, per 100 trials")
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
