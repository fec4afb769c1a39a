"""Random search of settings by folds of the labeled images; the test images are never looked at.

    python benchmarks/fold_search.py --trials 200 --processes 2 --out /tmp/search.jsonl -- \
        --name search --data_dir ../shared/data/flowers5 --model_name squeezenet1_1 \
        --weights ../shared/weights/squeezenet1_1.safetensors --switch_mode

Each trial draws a setting from SPACE and is trained on FOLDS folds of the labeled images of each of SEEDS seeds (which
no reported figure uses). A line of JSON a trial: the setting, the mean accuracy of the ensemble, each run's accuracy.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from transfermpl import args
from transfermpl.data import find_dataset, folds_of, split_dataset
from transfermpl.runs import run
from transfermpl.utils import generator, keep_pages

FOLDS = 3
SPACE: dict[str, tuple] = {
    "max_lr": ("log", 3e-4, 1e-2),
    "weight_decay": ("log", 1e-2, 3),
    "temperature": (0.5, 0.7, 0.85, 1.0, 1.05),
    "threshold": (0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95),
    "lambda_u": ("log", 0.1, 4.0),
    "uda_steps": (0, 80, 300, 600),
    "mpl_weight": (0.0, 0.03, 0.1, 0.3, 1.0),
    "distribution_alignment": (0.0, 0.5, 1.0),
    "label_smoothing": (0.0, 0.05, 0.1),
    "unlabeled_batch_size": (64, 128, 256),
    "augmentation_draws": (4, 8),
}


def draw(number: int, seed: int) -> dict[str, object]:
    """Trial `number`'s setting; trial 0 is the present defaults."""
    random = generator("fold search", seed, number)
    setting: dict[str, object] = {}
    for name, choices in SPACE.items() if number else ():
        if choices[0] == "log":
            low, high = np.log(choices[1:])
            setting[name] = float(f"{np.exp(random.uniform(low, high)):.3g}")
        else:
            setting[name] = choices[random.integers(len(choices))]
    return setting


@functools.lru_cache(maxsize=1)
def dataset_of(data: args.Data):  # type: ignore[no-untyped-def]
    return find_dataset(data)


def run_trial(job: tuple[int, dict[str, object], list[str], tuple[int, ...]]) -> dict[str, object]:
    """One setting on all folds of all seeds."""
    number, setting, arguments, seeds = job
    keep_pages()
    base = args.parse(arguments)
    dataset = dataset_of(base.data)
    accuracies: dict[str, list[float]] = {}
    for seed in seeds:
        given = {name: value for name, value in base.flat().items() if name in base.given}
        options = args.make({**given, "num_workers": 0, **setting, "seed": seed})
        split = split_dataset(dataset, options.data, seed)
        for fold in folds_of(dataset, split, FOLDS, seed):
            for name, accuracy in run.fold_accuracy(options, dataset, fold).items():
                accuracies.setdefault(name, []).append(round(accuracy, 4))
    last = "ensemble" if "ensemble" in accuracies else "student"
    return {"trial": number, "accuracy": float(np.mean(accuracies[last])), "setting": setting, "runs": accuracies}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--search_seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102, 103])
    parser.add_argument("--settings", type=Path, help="a JSON list of settings to try instead of drawn ones")
    parser.add_argument("--out", type=Path, default=Path("fold_search.jsonl"))
    parser.add_argument("arguments", nargs="*", help="after --: those of MPL.py")
    given = parser.parse_args()
    settings = [draw(number, given.search_seed) for number in range(given.trials)]
    if given.settings:
        settings = json.loads(given.settings.read_text())
    jobs = [(number, setting, given.arguments, tuple(given.seeds)) for number, setting in enumerate(settings)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(given.processes) as pool, given.out.open("a") as out:
        for done, result in enumerate(pool.imap_unordered(run_trial, jobs), start=1):
            print(json.dumps(result), file=out, flush=True)
            print(f"{done}/{len(jobs)}  {100 * result['accuracy']:.2f}%  {result['setting']}", flush=True)  # type: ignore[operator]
        pool.close()  # else the workers are killed, and complain
        pool.join()


if __name__ == "__main__":
    main()
