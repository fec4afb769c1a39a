"""What idle threads cost: heads on a frozen backbone, trained with threads that sleep or that wait in a loop.

    python benchmarks/waiting_threads.py --rounds 5

The same run of digits (a frozen squeezenet1_1 without weights), alone and beside as many processes that
compute as there are cores, with OMP_WAIT_POLICY=PASSIVE (what the command line sets) and ACTIVE (as OpenMP does by
itself, for a while), and with one thread, in turns. Prints seconds of training, the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[1] / "MPL.py"
WAYS = {
    "asleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "in a loop": {"OMP_WAIT_POLICY": "ACTIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def seconds(folder: Path, way: str, steps: int) -> float:
    """How long the heads learn."""
    line = ["--name", "x", "--overwrite", "--max_steps", steps, "--calibration_folds", 0, "--augmentation_draws", 1]
    line += ["--model_name", "squeezenet1_1", "--weights", "none", "--unfreeze", "head", "--image_size", 64]
    free = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, PROGRAM, *line, "--cache_dir", "cache"]
    subprocess.run(list(map(str, command)), cwd=folder, env=free | WAYS[way], check=True, capture_output=True)
    return float(json.loads((folder / "results/x/summary.json").read_text())["seconds"]["training"])


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    found = defaultdict(list)
    with tempfile.TemporaryDirectory() as place:
        seconds(Path(place), "asleep", 1)  # fills the feature bank
        for _ in range(given.rounds):
            for others in (0, os.cpu_count() or 1):
                busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
                for way in WAYS:
                    found[way, others].append(seconds(Path(place), way, given.steps))
                for process in busy:
                    process.kill()
    for (way, others), values in found.items():
        print(f"{way}, {others} processes beside: {statistics.median(values):.1f} s (n = {len(values)})")


if __name__ == "__main__":
    main()
