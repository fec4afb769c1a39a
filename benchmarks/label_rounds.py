"""Whether the images of `label_next.csv` teach more than random ones: rounds of 10 labels, paired over seeds.

    python benchmarks/label_rounds.py --shared ../shared        # flowers5 and hymenoptera, 10 seeds

Both begin with the same 10 labels. In each of 5 rounds a linear head (a logistic regression, so that 200 trainings take
two minutes) learns from the labels on the features of a frozen squeezenet1_1, and 10 more images get theirs: those that
`features.label_choice.most_useful` chooses by what it predicts, or random ones. Prints the accuracy on the test images
after each round and the gain, paired over the seeds, for docs/results.md. The bank is filled first, in some minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from transfermpl.utils import generator, keep_pages

keep_pages()

from transfermpl import args
from transfermpl.base.metrics import paired_difference
from transfermpl.data import find_dataset, split_dataset
from transfermpl.features.class_prior import STRENGTH
from transfermpl.features.label_choice import most_useful
from transfermpl.features.linear_probe import fit_linear_probe
from transfermpl.features.sources import normalized_features
from transfermpl.runs.prepare import make_trainer

FIRST, EACH = 10, 10


def rounds(
    seen: np.ndarray,
    test: np.ndarray,
    labels: np.ndarray,
    labeled: np.ndarray,
    pool: np.ndarray,
    how: str,
    **given: int,
) -> list[float]:
    """The accuracy on the test images [T, D] after each round; seen: features [N, D]; labels: of all, then the test's."""
    accuracies = []
    for number in range(given["count"] + 1):
        probe = fit_linear_probe(seen[labeled], labels[labeled], STRENGTH, classes=int(labels.max()) + 1)
        accuracies.append(float((probe.log_probabilities(test).argmax(axis=1) == labels[len(seen) :]).mean()))
        rest = np.setdiff1d(pool, labeled)
        chosen = generator(given["seed"], "label rounds", number).permutation(len(rest))[:EACH]
        if how == "chosen":
            predicted = np.exp(probe.log_probabilities(seen[rest]))
            chosen = most_useful(predicted, seen[rest], seen[labeled], EACH)
        labeled = np.concatenate([labeled, rest[chosen]])
    return accuracies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--data", nargs="+", default=["flowers5", "hymenoptera"])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("arguments", nargs="*", help="after --: those of MPL.py")
    given = parser.parse_args()
    weights = given.shared / "weights" / "squeezenet1_1.safetensors"
    line = ["--name", "rounds", "--model_name", "squeezenet1_1", "--weights", str(weights), *given.arguments]
    line += ["--num_labels", str(FIRST)]
    print("| data | labels | random | chosen | gain, paired, 95% interval |\n| --- | --- | --- | --- | --- |")
    for name in given.data:
        options = args.parse([*line, "--data_dir", str(given.shared / "data" / name)])
        dataset = find_dataset(options.data)
        source = make_trainer(options, dataset, split_dataset(dataset, options.data, 0)).views.first.source
        seen, test = (normalized_features(source, np.arange(len(dataset)), view).numpy() for view in ("weak", "eval"))
        found: dict[str, list[list[float]]] = {"random": [], "chosen": []}
        for seed in given.seeds:
            split = split_dataset(dataset, options.data, seed)
            pool = split.unlabeled[dataset.labels[split.unlabeled] >= 0]  # nobody can label what lies in two classes
            labels = np.concatenate([dataset.labels, dataset.labels[split.test]])
            for how, each in found.items():
                each.append(
                    rounds(seen, test[split.test], labels, split.labeled, pool, how, count=given.rounds, seed=seed)
                )
        random, chosen = (np.array(each) for each in found.values())
        columns = [(str(FIRST + EACH * n), random[:, n], chosen[:, n]) for n in range(1, given.rounds + 1)]
        columns.append(("mean of the rounds", random[:, 1:].mean(axis=1), chosen[:, 1:].mean(axis=1)))
        for count, old, new in columns:
            gain, (low, high) = paired_difference(new, old)
            interval = f"{100 * gain:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            print(f"| {name} | {count} | {old.mean():.1%} | {new.mean():.1%} | {interval} |", flush=True)


if __name__ == "__main__":
    main()
