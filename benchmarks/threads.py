"""How many threads a training should have on a CPU, and what they should do while they wait.

    python benchmarks/threads.py --rounds 3

Two trainings of digits, alone and beside as many processes that compute as there are cores: a head on a frozen
squeezenet1_1 without weights, on one thread (as the program does) and on all; and the default, a whole small network, on
all threads. Threads without work wait in a loop for a while, as OpenMP lets them, or sleep (OMP_WAIT_POLICY=PASSIVE). All
in turns; prints seconds of training, the median of the rounds.
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

HEAD = "--model_name squeezenet1_1 --weights none --unfreeze head --image_size 64 --max_steps 300"
NETWORK = "--max_steps 30"
CASES = {  # options, the number of weights below which heads learn on one thread, and whether idle threads sleep
    "head, one thread": (HEAD, 1_000_000, False),
    "head, all threads": (HEAD, 0, False),
    "head, all threads, asleep": (HEAD, 0, True),
    "whole network, all threads": (NETWORK, 0, False),
    "whole network, all threads, asleep": (NETWORK, 0, True),
}
PROGRAM = """
import sys
from transfermpl import MPL
from transfermpl.runs import trainer
trainer.SMALL = int(sys.argv[1])
sys.exit(MPL.main(sys.argv[2:]))
"""


def seconds(folder: Path, case: str) -> float:
    """How long the training takes, without what comes before and after it."""
    options, small, asleep = CASES[case]
    line = f"--name x --overwrite --calibration_folds 0 --augmentation_draws 1 --cache_dir cache {options}".split()
    free = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    policy = {"OMP_WAIT_POLICY": "PASSIVE"} if asleep else {}
    command = [sys.executable, "-c", PROGRAM, str(small), *line]
    subprocess.run(command, cwd=folder, env=free | policy, check=True, capture_output=True)
    return float(json.loads((folder / "results/x/summary.json").read_text())["seconds"]["training"])


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found = defaultdict(list)
    with tempfile.TemporaryDirectory() as place:
        seconds(Path(place), next(iter(CASES)))  # fills the feature bank
        for _ in range(given.rounds):
            for others in (0, os.cpu_count() or 1):
                busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
                for case in CASES:
                    found[case, others].append(seconds(Path(place), case))
                for process in busy:
                    process.kill()
    for (case, others), values in found.items():
        print(f"{case}, {others} processes beside: {statistics.median(values):.1f} s (n = {len(values)})")


if __name__ == "__main__":
    main()
