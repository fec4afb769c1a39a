"""How long a user waits: for `--help`, and from the command to the first training step on digits.

    python benchmarks/startup.py

Whole processes, the median of n = 7. Target: `--help` under 0.5 s.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
RUNS = 7


def seconds(*arguments: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, str(HERE / "MPL.py"), *arguments]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return time.perf_counter() - began


def main() -> None:
    cases = {
        "--help": ["--help"],
        "digits, to the end of a run of 1 step": ["--name", "x", "--finetune_mode", "--max_steps", "1"],
    }
    for name, arguments in cases.items():
        times = [seconds(*arguments) for _ in range(RUNS)]
        print(f"{name:<40} {statistics.median(times):.2f} s  ({min(times):.2f} to {max(times):.2f}, n = {RUNS})")


if __name__ == "__main__":
    main()
