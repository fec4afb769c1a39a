"""Images of no known kind: how many are caught where 5% of the others are given up.

    python benchmarks/reject.py --inside ../shared/data/flowers5 --outside ../shared/data/hymenoptera -- \
        --model_name squeezenet1_1 --weights ../shared/weights/squeezenet1_1.safetensors

Frozen features of both folders. Each seed keeps 500 photographs of the first for a test and labels --labels of the
others; all photographs of the second are strangers. An image's score is its distance to the k-th nearest reference image,
or how unsure a linear probe is of it. A line a score: the false alarms and the strangers caught beyond 95% of the
reference's own (leave-one-out) scores, which is how `--reject 0.95` works, and the strangers caught at exactly 5%.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from scipy.special import logsumexp

from transfermpl import args
from transfermpl.base.metrics import paired_difference
from transfermpl.data import Dataset, find_dataset
from transfermpl.features.bank import FeatureBank
from transfermpl.features.linear_probe import fit_linear_probe
from transfermpl.runs.context import make_context, only
from transfermpl.runs.prepare import prepare_views
from transfermpl.utils import keep_pages

TEST, MOST = 500, 2000
USED = "all, cosine, k = 1"  # by the program


def features(options: args.Options) -> tuple[Dataset, np.ndarray]:
    """A folder's photographs and their features [N, D]."""
    dataset = find_dataset(options.data)
    rows = np.arange(len(dataset))
    source = prepare_views(options, make_context(options.run, dataset, only(unlabeled=rows))).first.source
    if isinstance(source, FeatureBank):
        source.fill({("eval", 0): rows})
    return dataset, torch.cat([part.float().cpu() for part in source.inputs(rows)]).numpy()


def distance(queries: np.ndarray, among: np.ndarray, k: int, cosine: bool, own: bool = False) -> np.ndarray:
    """[N]: of each query to its k-th nearest; own: the queries are `among` themselves, and none is its own neighbour."""
    if cosine:
        queries, among = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, among))
    squares = (queries**2).sum(axis=1)[:, None] + (among**2).sum(axis=1) - 2 * queries @ among.T
    if own:
        np.fill_diagonal(squares, np.inf)
    return np.sort(squares, axis=1)[:, min(k, squares.shape[1] - own) - 1]


def scores(known: np.ndarray, labels: np.ndarray, unlabeled: np.ndarray, asked: list[np.ndarray]) -> dict[str, list]:
    """By name: the scores of the reference itself, and those of each of `asked`."""
    found: dict[str, list] = {}
    everything = np.concatenate([known, unlabeled])[:MOST]
    for name, reference in (("labeled", known), ("all", everything)):
        for cosine in (True, False):
            for k in (1, 5, 10):
                key = f"{name}, {'cosine' if cosine else 'Euclid'}, k = {k}"
                found[key] = [distance(reference, reference, k, cosine, own=True)]
                found[key] += [distance(x, reference, k, cosine) for x in asked]

    def scaled(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True))

    probe = fit_linear_probe(scaled(known), labels, 0.1)
    unsure: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "1 - largest probability": lambda x: 1 - probe.probabilities(scaled(x)).max(axis=1),
        "energy": lambda x: -logsumexp(probe.model.decision_function(scaled(x)), axis=1),
    }
    for name, of in unsure.items():
        found[name] = [of(x) for x in (unlabeled[:MOST], *asked)]
    return found


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inside", required=True)
    parser.add_argument("--outside", required=True)
    parser.add_argument("--labels", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("options", nargs="*", help="options of MPL.py, after --")
    mine = parser.parse_args()
    keep_pages()
    folders = [args.parse(["--name", "x", "--data_dir", place, *mine.options]) for place in (mine.inside, mine.outside)]
    (dataset, inside), (_, outside) = map(features, folders)
    rows = np.flatnonzero(dataset.labels >= 0)
    caught: dict[str, list[tuple[float, ...]]] = {}
    for seed in range(mine.seeds):
        order = np.random.default_rng(seed).permutation(rows)
        test, labeled, unlabeled = np.split(order, [TEST, TEST + mine.labels])
        found = scores(inside[labeled], dataset.labels[labeled], inside[unlabeled], [inside[test], outside])
        for name, (own, known, strange) in found.items():
            limit, exact = np.quantile(own, 0.95), np.quantile(known, 0.95)
            caught.setdefault(name, []).append(
                ((known > limit).mean(), (strange > limit).mean(), (strange > exact).mean())
            )
    for name, values in caught.items():
        alarms, strangers, exact = 100 * np.mean(values, axis=0)
        mean, (low, high) = paired_difference([v[2] for v in values], [v[2] for v in caught[USED]])
        against = "" if name == USED else f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        print(f"| {name} | {alarms:.1f}% | {strangers:.1f}% | {exact:.1f}% | {against} |", flush=True)


if __name__ == "__main__":
    main()
