"""How many trials a search finishes a minute from a warm feature bank, with one worker and with two.

    python benchmarks/tuning_speed.py                              # flowers5, squeezenet1_1, linear head, 300 steps

Each search is MPL.py in a process of its own, one thread a worker. The rate counts from the first trial that began after
every worker had finished one (starting up, reading the images and opening the bank are told apart) to the last one's
end. `--pruner none`: every trial trains on all its folds. Targets on 2 cores: at least 60 trials a minute with 2 workers, and
at least 1.7 times the rate of one.
"""

from __future__ import annotations

import argparse
import datetime
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

import optuna
from optuna.trial import FrozenTrial, TrialState

from transfermpl.search.storage import open_journal

SHARED = ROOT.parent / "shared"
FLOWERS = [
    "--data_dir", str(SHARED / "data/flowers5"), "--model_name", "squeezenet1_1",
    "--weights", str(SHARED / "weights/squeezenet1_1.safetensors"), "--switch_mode",
    "--max_steps", "300",
]  # fmt: skip


def search(workers: int, trials: int, arguments: list[str]) -> tuple[list[FrozenTrial], float]:
    """A search from the beginning; returns its trials and the CPU seconds that it took, all its processes together."""
    with tempfile.TemporaryDirectory() as folder:
        line = ["--name", "speed", "--optuna_mode", "--n_trials", str(trials), "--search_workers", str(workers)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, str(ROOT / "MPL.py"), *line, *arguments],
            cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(done.stderr)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        storage = open_journal(Path(folder) / "results" / "speed" / "study.journal")
        study = optuna.load_study(study_name="speed", storage=storage)
        return study.trials, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def rate_of(trials: list[FrozenTrial]) -> tuple[float, int]:
    """Finished trials a minute once every worker is warm, and how many trials that is."""
    first: dict[int, datetime.datetime] = {}
    ended = [t for t in trials if t.state.is_finished() and t.datetime_complete and t.datetime_start]
    for trial in sorted(ended, key=lambda t: t.datetime_complete):  # type: ignore[arg-type,return-value]
        first.setdefault(trial.user_attrs["owner"]["process"], trial.datetime_complete)  # type: ignore[arg-type]
    warm = max(first.values())
    later = [t.datetime_complete for t in ended if t.datetime_complete and t.datetime_complete > warm]
    return 60 * len(later) / (max(later) - warm).total_seconds(), len(later)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--pruner", default="none")
    parser.add_argument("--cache_dir", type=Path, default=Path("cache"))
    parser.add_argument("arguments", nargs="*", help="after --: those of MPL.py, instead of flowers5's")
    given = parser.parse_args()
    arguments = [*(given.arguments or FLOWERS), "--pruner", given.pruner, "--cache_dir", str(given.cache_dir.resolve())]
    search(1, 1, arguments)  # fills the bank
    for _ in range(given.rounds):
        rates = {}
        for workers in (1, 2):
            began = time.monotonic()
            trials, cpu = search(workers, given.trials, arguments)
            wall = time.monotonic() - began
            rates[workers], count = rate_of(trials)
            pruned = sum(trial.state == TrialState.PRUNED for trial in trials)
            print(
                f"{workers} worker{'s' if workers > 1 else ''}: {rates[workers]:.1f} finished trials a minute (n = {count}, "
                f"{pruned} pruned of {len(trials)}); whole search {wall:.0f} s, {cpu:.0f} CPU seconds, "
                f"of which {cpu / wall:.2f} cores were had",
                flush=True,
            )
        print(f"2 workers / 1 worker = {rates[2] / rates[1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
