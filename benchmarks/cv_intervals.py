"""How often the intervals of a run with few labels hold the truth: of its folds, and of its small test.

    python benchmarks/cv_intervals.py --seeds 100 -- --data_dir ../shared/data/flowers5 --model_name squeezenet1_1 \
        --weights ../shared/weights/squeezenet1_1.safetensors --augmentation_draws 1 --finetune_mode --max_steps 60

Each seed draws its own labeled images and its own small test from a labeled set; the truth is the accuracy on all
others (of the ensemble, or the only model), but for `--unlabeled`, which the run learns from. Also: how good the
probabilities are there without and with the temperature. A seed takes 7 trainings and all of them one bank.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from transfermpl.utils import keep_pages

keep_pages()

import numpy as np

from transfermpl import args
from transfermpl.base.metrics import calibrated, calibration_errors, wilson_interval
from transfermpl.data import Dataset, Split, find_dataset
from transfermpl.runs.calibration import after_warmup, calibrate, cross_validation, held_out
from transfermpl.runs.prepare import fill_banks, make_trainer
from transfermpl.runs.views import FeatureCache
from transfermpl.search.objective import last_of
from transfermpl.train import Hooks, Progress
from transfermpl.utils import generator


def drawn(dataset: Dataset, seed: int, labels: int, test: int, unlabeled: int) -> tuple[Split, np.ndarray]:
    """A split with equal classes, and the rows of the truth."""
    classes = len(dataset.classes)
    known = generator(seed, "cv intervals").permutation(np.flatnonzero(dataset.labels >= 0))
    turn = np.empty(len(known), dtype=np.int64)
    for label in range(classes):
        ours = dataset.labels[known] == label
        turn[ours] = np.arange(ours.sum())
    tests, last = test // classes, (test + labels) // classes
    tested, labeled, others = known[turn < tests], known[(turn >= tests) & (turn < last)], known[turn >= last]
    learned = np.sort(np.concatenate([labeled, others[:unlabeled]]))
    return Split(np.sort(labeled), learned, known[:0], np.sort(tested)), np.sort(others[unlabeled:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--num_labels", type=int, default=40)
    parser.add_argument("--test", type=int, default=10)
    parser.add_argument("--unlabeled", type=int, default=0)
    parser.add_argument("arguments", nargs="*", help="after --: those of MPL.py")
    given = parser.parse_args()
    base = args.parse(["--name", "intervals", *given.arguments])
    dataset, cache = find_dataset(base.data), FeatureCache()
    rows, errors = [], []
    for seed in range(given.seeds):
        split, others = drawn(dataset, seed, given.num_labels, given.test, given.unlabeled)
        trainer = make_trainer(base.changed(seed=seed), dataset, split, cache=cache)
        fill_banks(trainer)
        for bank in trainer.views.banks:
            bank.fill({("eval", 0): np.flatnonzero(dataset.labels >= 0)})
        trainer.learn(Progress(), Hooks(after_warmup=after_warmup(trainer)), validated=False)
        held = held_out(trainer)
        calibration, found = calibrate(held), cross_validation(held, held.predictions, dataset.classes)
        predicted, labels = trainer.predictions(others), dataset.labels[others]
        tempered = calibrated(predicted, calibration["temperatures"])
        truth = float((last_of(predicted).argmax(axis=1) == labels).mean())
        folds = last_of(found["models"])
        right = int((last_of(trainer.predictions(split.test)).argmax(axis=1) == dataset.labels[split.test]).sum())
        rows.append((truth, folds["accuracy"], *folds["ci95"], *wilson_interval(right, given.test)))
        errors.append([list(calibration_errors(last_of(p), labels).values()) for p in (predicted, tempered)])
        cache = FeatureCache(cache.views)
        print(
            f"seed {seed}: truth {truth:.3f} folds {rows[-1][1]:.3f} ({rows[-1][2]:.3f} to {rows[-1][3]:.3f}) test {right}",
            flush=True,
        )
    report(np.array(rows), np.array(errors), given.num_labels, given.test)


def report(rows: np.ndarray, errors: np.ndarray, labels: int, test: int) -> None:
    """Print how often each interval holds the truth and how wide it is, and what the temperature changes."""
    truth, folds = rows[:, 0], rows[:, 1]
    print(f"truth {100 * truth.mean():.1f}%, folds {100 * folds.mean():.1f}%, n = {len(rows)} seeds")
    for name, (low, high) in ((f"folds of {labels}", rows[:, 2:4].T), (f"test of {test}", rows[:, 4:6].T)):
        held = int(((low <= truth) & (truth <= high)).sum())
        ends = " to ".join(f"{100 * end:.0f}%" for end in wilson_interval(held, len(rows)))
        print(f"{name:<12} holds it in {held} of {len(rows)} ({ends}); {100 * (high - low).mean():.0f} points wide")
    for number, name in enumerate(("ECE", "Brier")):
        before, after = errors[:, :, number].T
        change = after - before
        half = 1.96 * change.std(ddof=1) / len(change) ** 0.5
        print(f"{name:<6} {before.mean():.3f} -> {after.mean():.3f}, paired {change.mean():+.3f} +- {half:.3f}")


if __name__ == "__main__":
    main()
