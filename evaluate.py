"""Predictions, ensembles and metrics with intervals. Draws nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn


@torch.inference_mode()
def probabilities(models: Mapping[str, nn.Module], batches: Iterable[torch.Tensor]) -> dict[str, np.ndarray]:
    """Each model's class probabilities, in eval mode and float32: {name: float32 [N, C]}.

    batches: what the models take (images in [0, 1] or features), on their device. Every model sees each batch once.
    """
    was_training = {name: model.training for name, model in models.items()}
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in models}
    for model in models.values():
        model.eval()
    try:
        for inputs in batches:
            for name, model in models.items():
                parts[name].append(model(inputs).float().softmax(dim=1))
    finally:
        for name, model in models.items():
            model.train(was_training[name])
    return {name: torch.cat(part).cpu().numpy() for name, part in parts.items()}


def with_ensemble(predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same predictions and, of two models or more, their `ensemble`: the mean of the probabilities."""
    if len(predictions) < 2:
        return dict(predictions)
    return {**predictions, "ensemble": np.mean(np.stack(list(predictions.values())), axis=0)}


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, count: int) -> np.ndarray:
    """Counts [C, C]: a row a true class, a column a predicted one."""
    return np.bincount(labels * count + predicted, minlength=count * count).reshape(count, count)


def metrics(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Accuracy with its 95% interval, macro F1 and each class's accuracy (recall), from 0 to 1.

    A class without images has no accuracy (None) and is left out of the macro F1.
    """
    correct, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    total = int(confusion.sum())
    present = true > 0
    f1 = 2 * correct[present] / (true + predicted)[present]
    return {
        "accuracy": float(correct.sum() / total),
        "ci95": wilson_interval(int(correct.sum()), total),
        "macro_f1": float(f1.mean()),
        "per_class": {
            name: float(right / count) if count else None
            for name, right, count in zip(classes, correct, true, strict=True)
        },
    }


def wilson_interval(correct: int, total: int) -> list[float]:
    """The 95% interval of a share (Wilson 1927), which holds near 0 and 1 and for few images too."""
    z = 1.959963984540054
    share = correct / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # It holds the share itself; at 0 and 1 rounding could put that outside.
    return [max(0.0, min(share, (centre - spread) / scale)), min(1.0, max(share, (centre + spread) / scale))]


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], *, comparisons: int = 1
) -> tuple[float, list[float]]:
    """Mean difference over the same seeds, and its 95% interval by Student's t (needs two seeds).

    comparisons: how many such intervals shall hold at once with 95% (Bonferroni's correction).
    """
    from scipy import stats

    difference = np.subtract(ours, theirs)
    mean = float(difference.mean())
    if len(difference) < 2:
        return mean, [float("nan"), float("nan")]
    reach = stats.t.ppf(1 - 0.025 / comparisons, len(difference) - 1)
    half = float(reach * difference.std(ddof=1) / math.sqrt(len(difference)))
    return mean, [mean - half, mean + half]
