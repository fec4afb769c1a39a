"""An engineer's 380 good and 20 defect parts: how many defects of new parts are found, and at what precision.

    python benchmarks/rare_class.py --photographs ../shared/data/flowers5 --good rose --defect dandelion -- \
        --model_name squeezenet1_1 --weights ../shared/weights/squeezenet1_1.safetensors

Each seed draws 380 photographs of the good classes and 20 of another, trains on their folder with the defaults and
`--recall defect=0.95`, and classifies all photographs of both classes that were not drawn. Three ways to make classes of
the SAME probabilities are compared, paired over the seeds: the most probable class (`--balance off`), with the balance of
the run, and with its threshold. Precision is that of new parts of which 5% are defects, as many as among the labels; a run
states it too, with an interval, and the last line counts the intervals that hold the measured one. A line of JSON a seed.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from transfermpl import args, load_classifier
from transfermpl.base.decisions import decide
from transfermpl.base.metrics import paired_difference
from transfermpl.runs.run import run
from transfermpl.utils import keep_pages

DRAWN = {"good": 380, "defect": 20}
SHARE = 0.05  # of new parts that are defects


def draw(photographs: Path, classes: dict[str, list[str]], seed: int, folder: Path) -> dict[str, list[Path]]:
    """Lay links to the drawn photographs into `folder/<good or defect>`; returns those that were not drawn."""
    left = {}
    for name, sources in classes.items():
        files = np.array([file for source in sources for file in sorted((photographs / source).iterdir())])
        files = np.random.default_rng([seed, DRAWN[name]]).permutation(files)
        (folder / name).mkdir(parents=True)
        for file in files[: DRAWN[name]]:
            (folder / name / f"{file.parent.name}-{file.name}").symlink_to(file.resolve())
        left[name] = files[DRAWN[name] :].tolist()
    return left


def measured(decided: dict[str, np.ndarray]) -> dict[str, float]:
    """Recall, balanced accuracy and precision of what is called a defect among new parts of both classes."""
    found, false = decided["defect"].mean(), decided["good"].mean()
    named = SHARE * found + (1 - SHARE) * false
    precision = SHARE * found / named if named else float("nan")
    return {"recall": found, "balanced": (found + 1 - false) / 2, "precision": precision}


def of_seed(mine: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train, and measure the three ways."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "parts"
        left = draw(mine.photographs, {"good": mine.good, "defect": [mine.defect]}, seed, folder)
        line = ["--name", f"rare-{seed}", "--data_dir", str(folder), "--seed", str(seed), "--recall", "defect=0.95"]
        summary = run(args.parse([*line, *mine.options]))
        classifier = load_classifier(Path("results") / summary["name"])
        predicted = {name: classifier(files) for name, files in left.items()}
    chosen, classes = classifier.decision, classifier.classes
    ways = {"most probable": ((), {}), "balanced": (chosen["weights"], {}), "recall": tuple(chosen.values())}
    found: dict[str, Any] = {"seed": seed, "expected": summary["decision"]["recall"]["defect"]}
    for way, (weights, thresholds) in ways.items():
        decided = {name: decide(p, classes, weights, thresholds) == 0 for name, p in predicted.items()}
        found[way] = measured(decided)
    return found


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--good", nargs="+", required=True)
    parser.add_argument("--defect", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("options", nargs="*", help="options of MPL.py, after --")
    mine = parser.parse_args()
    keep_pages()
    rows = []
    for seed in range(mine.seeds):
        rows.append(of_seed(mine, seed))
        print(json.dumps(rows[-1]), flush=True)
    for way in ("most probable", "balanced", "recall"):
        means = {name: np.mean([row[way][name] for row in rows]) for name in rows[0][way]}
        print(f"| {way} | " + " | ".join(f"{100 * value:.1f}%" for value in means.values()) + " |")
    gains = ([row[way]["balanced"] for row in rows] for way in ("balanced", "most probable"))
    mean, (low, high) = paired_difference(*gains)
    held = [
        low <= row["recall"]["precision"] <= high for row in rows for low, high in [row["expected"]["precision_ci95"]]
    ]
    stated = np.mean([row["expected"]["precision"] for row in rows])
    print(
        f"precision stated: {100 * stated:.1f}% on the mean; {sum(held)} of {len(held)} intervals hold the measured one"
    )
    print(f"balance gains {100 * mean:+.1f} points of balanced accuracy ({100 * low:+.1f} to {100 * high:+.1f})")


if __name__ == "__main__":
    main()
