"""What the unlabeled images bring: the methods of `--compare`, as many of them and with which seeds as asked for.

    python benchmarks/gain.py                                    # digits at 3% labels, the network from scratch
    python benchmarks/gain.py -- --data_dir ../shared/data/flowers5 --model_name squeezenet1_1 \
        --weights ../shared/weights/squeezenet1_1.safetensors    # photographs at 3% labels, frozen features

Every method sees the same split of each seed and has the same options. The test images are used once a run. Prints the
table for docs/results.md and draws it with --plot. About 1 minute a run on digits, 5 s on photographs from a warm bank.
`--compare` is the same with references and a verdict, and can be resumed; this leaves nothing behind.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from transfermpl.utils import keep_pages

keep_pages()

from transfermpl import args
from transfermpl.comparison.baselines import BASELINES
from transfermpl.comparison.compare import measure
from transfermpl.comparison.methods import METHODS
from transfermpl.comparison.task import Task, prepared
from transfermpl.comparison.verdict import picture, table
from transfermpl.data import find_dataset, split_dataset


def main() -> None:
    known = [*(method.name for method in METHODS), *BASELINES]
    default = [method.name for method in METHODS if method.start is None]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", default=default, choices=known)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("arguments", nargs="*", help="after --: those of MPL.py")
    given = parser.parse_args()
    options = args.parse(["--name", "gain", *given.arguments])
    dataset = find_dataset(options.data)
    task = Task(options, dataset, split_dataset(dataset, options.data, given.seeds[0]))
    steps = prepared(task).total_steps
    with tempfile.TemporaryDirectory() as folder:
        results = measure(task, given.seeds, Path(folder), steps=steps, names=given.methods)
    print("\n" + table(results))
    if given.plot is not None:
        picture(given.plot, results, title=Path(dataset.name).name)


if __name__ == "__main__":
    main()
