"""Whether what a search found is better: its best setting against the options that it began with, paired over seeds.

    python benchmarks/tuned.py results/tune --steps 300 1000

Both are trained on the same split of each seed, for as many steps as asked for (default: the search's), and measured on
the test images, which no search sees. Prints each seed's ensemble and the table for docs/results.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from transfermpl.utils import keep_pages

keep_pages()

from transfermpl import args
from transfermpl.base.metrics import paired_difference
from transfermpl.data import Dataset, find_dataset, split_dataset
from transfermpl.runs.calibration import after_warmup
from transfermpl.runs.evaluation import measure
from transfermpl.runs.prepare import fill_banks, make_trainer
from transfermpl.runs.views import FeatureCache
from transfermpl.search.objective import last_of
from transfermpl.train import Hooks, Progress


def test_accuracy(values: dict[str, object], dataset: Dataset, seed: int, cache: FeatureCache) -> float:
    """Train as a run does, and measure the ensemble on the test images."""
    options = args.make({"name": "tuned", **values, "seed": seed})
    split = split_dataset(dataset, options.data, seed)
    trainer = make_trainer(options, dataset, split, cache=cache)
    fill_banks(trainer)
    progress = Progress()
    trainer.learn(progress, Hooks(after_warmup=after_warmup(trainer)))
    trainer.take_best(progress)
    results = measure(trainer.predictions(split.test), dataset.labels[split.test], dataset.classes)
    return last_of({name: result["accuracy"] for name, result in results.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("search", type=Path, help="the folder of a search")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, nargs="*", default=[])
    given = parser.parse_args()
    best = json.loads((given.search / "best_args.json").read_text(encoding="utf-8"))
    with (given.search / "trials.csv").open(encoding="utf-8", newline="") as file:
        columns = next(csv.reader(file))
    searched = columns[columns.index("value") + 1 : columns.index("seconds")]
    before = {name: value for name, value in best.items() if name not in searched}
    dataset = find_dataset(args.make({"name": "tuned", **best}).data)
    cache = FeatureCache()
    print("| steps | before | best setting | gain, paired, 95% interval |\n| --- | --- | --- | --- |")
    for steps in given.steps or [before.get("max_steps")]:
        pairs = []
        for seed in given.seeds:
            pairs.append([test_accuracy({**v, "max_steps": steps}, dataset, seed, cache) for v in (before, best)])
            print(f"  {steps} steps, seed {seed}: {pairs[-1][0]:.3f} {pairs[-1][1]:.3f}", file=sys.stderr, flush=True)
        old, new = zip(*pairs, strict=True)
        gain, (low, high) = paired_difference(new, old)
        means = [100 * sum(column) / len(column) for column in (old, new)]
        interval = f"{100 * gain:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        print(f"| {steps} | {means[0]:.1f}% | {means[1]:.1f}% | {interval} |", flush=True)


if __name__ == "__main__":
    main()
