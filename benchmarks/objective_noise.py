"""How far what a search maximises lies from the accuracy on test: folds of the labeled images, or validation images.

    python benchmarks/objective_noise.py --seeds 20 -- --data_dir ../shared/data/flowers5 --model_name squeezenet1_1 \
        --weights ../shared/weights/squeezenet1_1.safetensors --max_steps 300

Of each seed's split the default options are measured on 3 folds of the labels, and (with as many validation images as
labels) on these; beside each stands the test accuracy of the model that all labels train. The test images are used for
this alone. About 7 trainings a seed.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from transfermpl.utils import keep_pages

keep_pages()

import numpy as np

from transfermpl import args
from transfermpl.data import Split, find_dataset, folds_of, split_dataset
from transfermpl.runs import run
from transfermpl.runs.views import FeatureCache
from transfermpl.search import objective as search_goal
from transfermpl.search.objective import last_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--num_labels", type=int, default=60)
    parser.add_argument("arguments", nargs="*", help="after --: those of MPL.py")
    given = parser.parse_args()
    base = args.parse(["--name", "noise", *given.arguments]).changed(num_labels=given.num_labels)
    dataset, cache = find_dataset(base.data), FeatureCache()
    share = given.num_labels / len(dataset.labels) / (1 - base.data.test_percent)
    rows = []
    for seed in range(given.seeds):
        options = base.changed(seed=seed)
        split = split_dataset(dataset, options.data, seed)
        folds = [
            last_of(run.fold_accuracy(options, dataset, part, cache=cache))
            for part in folds_of(dataset, split, given.folds, seed)
        ]
        # `fold_accuracy` measures on `val`: here that is, for once, the test.
        on_test = Split(split.labeled, split.unlabeled, split.test, split.val[:0])
        test = last_of(run.fold_accuracy(options, dataset, on_test, cache=cache))
        withval = options.changed(val_percent=share)
        split = split_dataset(dataset, withval.data, seed)
        validated = Split(split.labeled, split.unlabeled, split.val, split.test[:0])
        goal = search_goal.Goal(dataset, split, (validated,))
        validation = search_goal.accuracy(withval.recorded(), goal, cache, lambda value, step: None)
        on_test = Split(split.labeled, split.unlabeled, split.test, split.val[:0])
        val_test = last_of(run.fold_accuracy(withval, dataset, on_test, cache=cache))
        rows.append((np.mean(folds), test, validation, val_test))
        cache = FeatureCache()
        print(
            f"seed {seed}: folds {rows[-1][0]:.3f} test {test:.3f}; validation {validation:.3f} test {val_test:.3f}",
            flush=True,
        )
    table = 100 * np.array(rows)
    for name, objective, test in (("folds", table[:, 0], table[:, 1]), ("validation", table[:, 2], table[:, 3])):
        difference = objective - test
        print(
            f"{name:<10} mean {objective.mean():.1f}, test {test.mean():.1f}; difference to test {difference.mean():+.1f}, "
            f"standard deviation {difference.std(ddof=1):.1f} points (n = {len(table)} seeds)"
        )


if __name__ == "__main__":
    main()
