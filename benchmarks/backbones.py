"""What a backbone's accuracy costs: accuracy against minutes, over the number of augmentation draws.

    OMP_NUM_THREADS=1 python benchmarks/backbones.py --draws 0 1 2 4 8 --images 400 --labels 40 --seeds 0 1 2 3

Each backbone sees the same splits of the same photographs (some of flowers5 and of hymenoptera, equally many a class),
`--labels` of them labeled, 40% for the test; default options but `--steps` steps and no calibration. 0 draws is the quick
look: logistic regression on unaugmented features, 40 splits, all other images for the test. images/s is the median of n
batches of 32 through the network alone, in turns, by the processor time of this process, so that it hardly depends on
what else the machine does. `rows` are the images x draws of one run, minutes are rows / images/s on one thread. Prints
the table for docs/results.md.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from transfermpl.utils import keep_pages

keep_pages()

import numpy as np
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit

from transfermpl import args
from transfermpl.comparison.verdict import points
from transfermpl.data import Split, find_dataset, split_dataset
from transfermpl.features.bank import FeatureBank
from transfermpl.features.sources import BATCH_ROWS, normalized_features
from transfermpl.runs.auto import rows_of_bank
from transfermpl.runs.prepare import make_trainer
from transfermpl.runs.run import fold_accuracy
from transfermpl.runs.views import FeatureCache

SHARED = Path(__file__).resolve().parents[2] / "shared"
BACKBONES = {
    "squeezenet1_1": ("--model_name", "squeezenet1_1", "--weights", "{weights}/squeezenet1_1.safetensors"),
    "mobilenet_v2": ("--model_name", "mobilenet_v2", "--weights", "{weights}/mobilenet_v2.safetensors"),
    "lite0": ("--model_name", "lite0"),
    "ViT-S/14": (
        "--model_name", "timm:vit_small_patch14_dinov2.lvd142m", "--image_size", "224",
        "--weights", "{weights}/vit_small_patch14_dinov2.safetensors",
    ),
}  # fmt: skip


def some_of(source: Path, target: Path, count: int) -> Path:
    """Copies of about `count` images of a folder, equally many of each class, spread over its names."""
    classes = sorted(folder for folder in source.iterdir() if folder.is_dir())
    for folder in classes:
        files = sorted(folder.iterdir())
        (target / folder.name).mkdir(parents=True)
        for index in np.linspace(0, len(files) - 1, count // len(classes)).round().astype(int):
            shutil.copy(files[index], target / folder.name)
    return target


class Bench:
    """A data set with the options of each backbone on it, their banks, and how fast each was filled."""

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        weights = str(given.shared / "weights")
        self.given = given
        self.options = {
            name: args.parse(
                ["--name", "x", "--data_dir", str(folder), "--cache_dir", str(given.cache_dir), "--num_labels", str(given.labels),
                 "--test_percent", "0.4", "--max_steps", str(given.steps), "--calibration_folds", "0",
                 *(word.format(weights=weights) for word in words)]
            )
            for name, words in BACKBONES.items()
        }  # fmt: skip
        first = self.options["lite0"]
        self.dataset = find_dataset(first.data)
        self.splits = {seed: self.untested(split_dataset(self.dataset, first.data, seed)) for seed in given.seeds}
        self.caches = {name: FeatureCache() for name in BACKBONES}
        self.speeds: dict[str, list[float]] = {name: [] for name in BACKBONES}
        self.found: dict[tuple[str, int], list[float]] = {}  # by backbone and draws, for each seed
        self.clock()

    @staticmethod
    def untested(split: Split) -> Split:
        """Measured on what would be the test: nothing is chosen on it."""
        return replace(split, val=split.test, test=split.test[:0])

    def measure(self, draws: int) -> None:
        """The accuracies of all backbones with so many draws."""
        for name in BACKBONES:
            self.found[name, draws] = self.accuracies(name, draws) if draws else self.probed(name)

    def bank(self, name: str) -> FeatureBank:
        split = self.splits[self.given.seeds[0]]
        return make_trainer(self.options[name], self.dataset, split, cache=self.caches[name]).views.banks[0]

    def clock(self, rounds: int = 3) -> None:
        """Let the networks take turns in computing a batch."""
        frozen = {name: self.bank(name).frozen for name in BACKBONES}
        for _ in range(rounds):
            for name, source in frozen.items():
                size = source.images.transform.size
                pixels = torch.rand(BATCH_ROWS, 3, size, size).contiguous(memory_format=torch.channels_last)
                began = time.process_time()
                source.features(pixels)
                self.speeds[name].append(BATCH_ROWS / (time.process_time() - began))

    def probed(self, name: str, splits: int = 40) -> list[float]:
        """Of logistic regression on features of unaugmented images, for each of some splits."""
        rows, labels = np.arange(len(self.dataset)), self.dataset.labels
        features = normalized_features(self.bank(name), rows, "eval").numpy()
        share, found = self.given.labels / len(rows), []
        for train, test in StratifiedShuffleSplit(splits, train_size=share, random_state=0).split(features, labels):
            model = LogisticRegression(max_iter=1000).fit(features[train], labels[train])
            found.append(model.score(features[test], labels[test]))
        return found

    def rows(self, draws: int) -> int:
        """Images x draws of one run: strong and weak ones of the unlabeled, weak ones of the labeled, and the test."""
        if not draws:
            return len(self.dataset)
        return rows_of_bank(self.splits[self.given.seeds[0]], draws)

    def accuracies(self, name: str, draws: int) -> list[float]:
        """Of the ensemble, for each seed."""
        options = self.options[name].changed(augmentation_draws=draws)
        found = []
        for seed, split in self.splits.items():
            accuracy = fold_accuracy(options.changed(seed=seed), self.dataset, split, cache=FeatureCache())
            found.append(list(accuracy.values())[-1])
        return found


def table(bench: Bench) -> str:
    """The rows for docs/results.md; a gain is paired over the seeds, against lite0 with as many draws."""
    name = Path(bench.dataset.name).name
    lines = [f"\n{name}: {len(bench.dataset)} images, {bench.given.labels} labels, seeds {bench.given.seeds}\n"]
    lines += ["| backbone | images/s (n) | draws | rows | minutes | accuracy | against lite0 |", "|" + " --- |" * 7]
    for (name, draws), values in bench.found.items():
        speed, rows = statistics.median(bench.speeds[name]), bench.rows(draws)
        cells = [name, f"{speed:.1f} ({len(bench.speeds[name])})", draws, rows, f"{rows / speed / 60:.1f}"]
        cells += [f"{100 * np.mean(values):.1f}%", gain(values, bench.found["lite0", draws], independent=draws > 0)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def gain(values: list[float], others: list[float], *, independent: bool) -> str:
    """The mean difference in points; its 95% interval (Student's t) over seeds, none over splits that share images."""
    differences = np.subtract(values, others)
    if values == others:
        return ""
    if not independent or len(values) < 2:
        return points(differences.mean())
    low, high = stats.t.interval(0.95, len(values) - 1, differences.mean(), stats.sem(differences))
    return f"{points(differences.mean())} ({points(low)} to {points(high)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=SHARED, help="a folder with data/ and weights/")
    parser.add_argument("--data", nargs="+", default=["flowers5", "hymenoptera"])
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2, 4, 8])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--labels", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--cache_dir", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        given.cache_dir = given.cache_dir or Path(place) / "cache"
        folders = [some_of(given.shared / "data" / data, Path(place) / data, given.images) for data in given.data]
        benches = [Bench(folder, given) for folder in folders]
        for draws in given.draws:
            for bench in benches:
                bench.measure(draws)
            print("\n".join(table(bench) for bench in benches), flush=True)


if __name__ == "__main__":
    main()
