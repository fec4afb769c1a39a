"""The two views without weights on digits: how good each is with few labels, and how far their errors overlap.

    OMP_NUM_THREADS=1 python benchmarks/raw_views.py [--seeds 5]

A logistic regression on the labeled images' features, each brought to a root mean square of 1 as heads do it; splits as
the program makes them (3% labels, 20% test). Nothing is learned from unlabeled images. About 10 s.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from transfermpl import args
from transfermpl.backbones.registry import build_view
from transfermpl.data import Dataset, find_dataset, split_dataset
from transfermpl.features.sources import FrozenSource, ImageSource
from transfermpl.images.augment import recipe_for


def features(name: str, dataset: Dataset) -> np.ndarray:
    """Of all images, not augmented: float32 [N, D]."""
    backbone = build_view(name, native_size=dataset.native_size, points=False, seed=0)
    cpu = torch.device("cpu")
    images = ImageSource(dataset, backbone.transform, recipe_for(dataset.kind, None), cpu, workers=0)
    rows = torch.cat(list(FrozenSource(images, backbone).inputs(np.arange(len(dataset.labels))))).numpy()
    return rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + 1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    data = args.Data(data_dir="digits", num_labels=43)
    dataset = find_dataset(data)
    views = {name: features(name, dataset) for name in ("pixels", "gradients")}
    found: dict[str, list[float]] = {name: [] for name in (*views, "mean of both", "both wrong", "one of them wrong")}
    for seed in range(seeds):
        split = split_dataset(dataset, data, seed)
        labels, predicted = dataset.labels[split.test], {}
        for name, rows in views.items():
            model = LogisticRegression(max_iter=2000).fit(rows[split.labeled], dataset.labels[split.labeled])
            predicted[name] = model.predict_proba(rows[split.test])
            found[name].append((predicted[name].argmax(axis=1) == labels).mean())
        first, second = (predicted[name].argmax(axis=1) != labels for name in views)
        found["mean of both"].append((sum(predicted.values()).argmax(axis=1) == labels).mean())
        found["both wrong"].append((first & second).mean())
        found["one of them wrong"].append((first ^ second).mean())
    print(f"{len(split.labeled)} labels, {len(split.test)} test images, mean of {seeds} seeds and their range")
    for name, values in found.items():
        print(f"{name:18} {100 * np.mean(values):5.1f}%  ({100 * min(values):.1f} to {100 * max(values):.1f})")


if __name__ == "__main__":
    main()
