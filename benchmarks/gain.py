"""What the unlabeled images bring: labels-only, UDA, MPL and MPL with switched roles, paired over seeds.

    python benchmarks/gain.py                                    # digits at 3% labels, the network from scratch
    python benchmarks/gain.py -- --data_dir ../shared/data/flowers5 --model_name squeezenet1_1 \
        --weights ../shared/weights/squeezenet1_1.safetensors    # photographs at 3% labels, frozen features

Every method sees the same split of each seed and has the same options. The test images are used once a run. Prints the
table for RESULTS.md and draws it with --plot. About 1 minute a run on digits, 5 s on photographs from a warm bank.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import keep_pages

keep_pages()

import args
import visualization
from data import Dataset, find_dataset, split_dataset
from evaluate import paired_difference
from experiment import Training
from train import Progress

METHODS: dict[str, dict[str, object]] = {
    "labels only": {"finetune_mode": True},
    "UDA": {"mpl_weight": 0.0},
    "MPL": {},
    "MPL, switched roles": {"switch_mode": True},
}


def test_accuracies(dataset: Dataset, given: dict[str, object], seed: int) -> dict[str, float]:
    """Train with these options and return each model's test accuracy."""
    options = args.make({**given, "seed": seed})
    training = Training(options, dataset, split_dataset(dataset, options.data, seed))
    training.fill_bank()
    training.learn(Progress())
    with training.evaluated() as models:
        return {name: r["accuracy"] for name, r in training.results(models, training.split.test).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("arguments", nargs="*", help="after --: those of MPL.py")
    given = parser.parse_args()
    base = args.parse(["--name", "gain", *given.arguments])
    values = {name: value for name, value in base.flat().items() if name in base.given}
    dataset = find_dataset(base.data)
    runs: dict[str, list[dict[str, float]]] = {}
    for method in given.methods:
        for seed in given.seeds:
            runs.setdefault(method, []).append(test_accuracies(dataset, {**values, **METHODS[method]}, seed))
            print(f"{method:<20} seed {seed}  {runs[method][-1]}", flush=True)
    report(runs, given.plot, dataset.name)


def report(runs: dict[str, list[dict[str, float]]], plot: Path | None, title: str) -> None:
    rows = {
        f"{method}: {model}": [run[model] for run in of_seeds]
        for method, of_seeds in runs.items()
        for model in of_seeds[0]
    }
    base = next(iter(rows.values()))
    print(
        "\n| method | model | mean test accuracy | gain over the first row, paired, 95% interval |"
        "\n| --- | --- | --- | --- |"
    )
    for name, accuracies in rows.items():
        gain, (low, high) = paired_difference(accuracies, base)
        method, model = name.split(": ")
        mean = sum(accuracies) / len(accuracies)
        interval = f"{100 * gain:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})" if accuracies is not base else ""
        print(f"| {method} | {model} | {100 * mean:.1f}% | {interval} |")
    if plot is not None:
        ours = [name for name in rows if name.endswith(("ensemble", "only: student"))]
        visualization.draw_comparison(plot, [n.split(": ")[0] for n in ours], [rows[n] for n in ours], title=title)


if __name__ == "__main__":
    main()
