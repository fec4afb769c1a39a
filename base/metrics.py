"""Predictions, ensembles, metrics with intervals, and calibration. Draws nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

TEMPERATURES = (0.05, 20.0)  # no fitted one lies outside
ENOUGH_TO_FIT = 50  # held-out images that a temperature can be fitted on


def probabilities(models: Mapping[str, nn.Module], batches: Iterable[torch.Tensor]) -> dict[str, np.ndarray]:
    """Each model's class probabilities, in eval mode and float32: {name: float32 [N, C]}.

    batches: what the models take (images in [0, 1] or features), on their device. Every model sees each batch once.
    """
    return {name: z.softmax(dim=1).cpu().numpy() for name, z in _outputs(models, batches).items()}


def logits(models: Mapping[str, nn.Module], batches: Iterable[torch.Tensor]) -> dict[str, np.ndarray]:
    """As `probabilities`, before the softmax: {name: float32 [N, C]}."""
    return {name: z.cpu().numpy() for name, z in _outputs(models, batches).items()}


@torch.inference_mode()
def _outputs(models: Mapping[str, nn.Module], batches: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    was_training = {name: model.training for name, model in models.items()}
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in models}
    for model in models.values():
        model.eval()
    try:
        for inputs in batches:
            for name, model in models.items():
                parts[name].append(model(inputs).float())
    finally:
        for name, model in models.items():
            model.train(was_training[name])
    return {name: torch.cat(part) for name, part in parts.items()}


def with_ensemble(predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same predictions [N, C] and, of two models or more, their `ensemble`: the mean of the probabilities."""
    if len(predictions) < 2:
        return dict(predictions)
    return {**predictions, "ensemble": np.mean(np.stack(list(predictions.values())), axis=0)}


def disagreement(predictions: Mapping[str, np.ndarray], models: Iterable[str]) -> np.ndarray:
    """How far the models' probabilities [N, C] lie apart, from 0 (the same) to 1 (nothing in common): float64 [N].

    The Jensen-Shannon divergence over its largest value: the entropy of the mean, less the mean of the entropies.
    """
    each = np.stack([predictions[name].astype(np.float64) for name in models])
    most = math.log(max(2, min(len(each), each.shape[2])))
    return np.clip((_entropy(each.mean(axis=0)) - _entropy(each).mean(axis=0)) / most, 0, 1)


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.maximum(p, np.finfo(np.float64).tiny))).sum(axis=-1)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, count: int) -> np.ndarray:
    """Counts [C, C] of labels and predicted classes, int64 [N] each: a row a true class, a column a predicted one."""
    return np.bincount(labels * count + predicted, minlength=count * count).reshape(count, count)


def metrics(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Accuracy, its 95% interval, macro F1 and each class's accuracy (recall), from 0 to 1, of counts [C, C].

    Returns `accuracy`, `ci95` ([low, high]), `balanced_accuracy` (the mean recall), `macro_f1` and `per_class` ({name:
    recall}).

    A class without images has no recall (None) and is left out of both means.
    """
    correct, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    total = int(confusion.sum())
    present = true > 0
    f1 = 2 * correct[present] / (true + predicted)[present]
    return {
        "accuracy": float(correct.sum() / total),
        "ci95": wilson_interval(int(correct.sum()), total),
        "balanced_accuracy": float((correct[present] / true[present]).mean()),
        "macro_f1": float(f1.mean()),
        "per_class": {
            name: float(right / count) if count else None
            for name, right, count in zip(classes, correct, true, strict=True)
        },
    }


def most_confused(counts: np.ndarray, most: int = 20) -> list[tuple[int, int, int]]:
    """(true class, predicted class, images) of the pairs that a confusion matrix [C, C] confuses most often."""
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most].tolist()
    pairs = [divmod(place, len(counts)) for place in order if wrong.flat[place]]
    return [(true, predicted, int(wrong[true, predicted])) for true, predicted in pairs]


def wilson_interval(correct: float, total: float) -> list[float]:
    """The 95% interval of a proportion (Wilson 1927), which holds near 0 and 1 and for few images too: [low, high].

    SciPy's takes whole numbers alone; an effective number of images is none.
    """
    from scipy.special import ndtri

    z, share = float(ndtri(0.975)), correct / total
    scale = 2 * (total + z**2)
    center = (2 * total * share + z**2) / scale
    half = z / scale * math.sqrt(4 * total * share * (1 - share) + z**2)
    return [0.0 if correct == 0 else center - half, 1.0 if correct == total else center + half]


def cross_validated_interval(accuracy: float, images: int, folds: int, repeats: int) -> list[float]:
    """The 95% interval of an accuracy on folds of so many images, dealt out anew `repeats` times: [low, high].

    The trainings of the folds share images, so their mean varies more than that of as many independent tests: by the
    variance (1 / J + n2 / n1) s^2 of J trainings on n1 images, measured on n2 each (Nadeau and Bengio 2003). With
    s^2 = p (1 - p) / n2 this is the variance of a proportion of n / (1 / repeats + folds / (folds - 1)) images, and
    Wilson's interval of that holds where all folds are right, and Student's t has no width.
    """
    effective = images / (1 / repeats + folds / (folds - 1))
    return wilson_interval(accuracy * effective, effective)


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], *, comparisons: int = 1
) -> tuple[float, list[float]]:
    """Mean difference over the same seeds, and its 95% interval by Student's t (needs two seeds that differ, or three).

    comparisons: how many such intervals shall hold at once with 95% (Bonferroni's correction).
    """
    from scipy import stats

    difference = np.subtract(ours, theirs)
    mean = float(difference.mean())
    # Two that are equal say no more than one about how differences scatter.
    if len(difference) < 2 or (len(difference) == 2 and np.ptp(difference) < 1e-9):
        return mean, [float("nan"), float("nan")]
    reach = stats.t.ppf(1 - 0.025 / comparisons, len(difference) - 1)
    half = float(reach * difference.std(ddof=1) / math.sqrt(len(difference)))
    return mean, [mean - half, mean + half]


# --- calibration ------------------------------------------------------------------------------------------------------


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T): probabilities [N, C] made less (T > 1) or more (T < 1) sure; float32, the order unchanged.

    For p = softmax(z) this is softmax(z / T). An ensemble's mean has no logits; its logarithm takes their place.
    """
    scaled = _log(probabilities) / temperature
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return (scaled / scaled.sum(axis=1, keepdims=True)).astype(np.float32)


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))


def fit_temperature(logits: np.ndarray, labels: np.ndarray, *, repeats: int = 1) -> float:
    """The temperature in TEMPERATURES under which held-out logits [N, C] explain their labels [N] best (Guo 2017).

    A weak prior, log T ~ Normal(0, 1), counts beside the images: without it a few images that are all right would ask
    for certainty, and a few that are all wrong for none at all. 1.0 without an image. repeats: how often each is there.
    """
    if not len(logits):
        return 1.0
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    true = z[np.arange(len(z)), labels].sum()

    def loss(log_temperature: float) -> float:
        inverse = math.exp(-log_temperature)
        surprise = float(np.log(np.exp(z * inverse).sum(axis=1)).sum() - true * inverse)
        return surprise / repeats + log_temperature**2 / 2

    return math.exp(_lowest(loss, math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1])))


def fit_temperatures(
    predictions: Mapping[str, np.ndarray], labels: np.ndarray, *, repeats: int = 1
) -> dict[str, float]:
    """The temperature of each model and of the ensemble, from their probabilities [N, C] of held-out images."""
    return {name: fit_temperature(_log(p), labels, repeats=repeats) for name, p in predictions.items()}


def calibrated(predictions: Mapping[str, np.ndarray], temperatures: Mapping[str, float]) -> dict[str, np.ndarray]:
    """The predictions [N, C], each `tempered` by the temperature of its name where there is one."""
    return {name: tempered(p, temperatures[name]) if name in temperatures else p for name, p in predictions.items()}


def _lowest(function: Callable[[float], float], low: float, high: float, points: int = 13, rounds: int = 12) -> float:
    """Where a smooth function is lowest: on a grid, then on ever finer ones around the lowest point."""
    for _ in range(rounds):
        grid = np.linspace(low, high, points)
        best = int(np.argmin([function(float(x)) for x in grid]))
        low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, points - 1)])
    return (low + high) / 2


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = 10) -> dict[str, np.ndarray]:
    """Images by the probability of their predicted class, in equally wide bins (an edge belongs to the lower bin).

    probabilities: [N, C]; labels: int64 [N].

    Returns `confidence` and `accuracy`, means float64 [bins] with NaN for an empty bin, and `count`, int64 [bins].
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, weights=x, minlength=bins) / count for x in (confidence, right)]
    return {"confidence": means[0], "accuracy": means[1], "count": count}


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """The mean distance of confidence from accuracy over the bins of `reliability`, weighted by their images.

    probabilities: [N, C]; labels: int64 [N].
    """
    found = reliability(probabilities, labels, bins)
    gaps = np.abs(found["confidence"] - found["accuracy"])
    return float(np.nansum(gaps * found["count"]) / len(labels))


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The squared distance of probabilities [N, C] from labels [N], summed over classes (0 to 2); mean over images."""
    distance = probabilities.astype(np.float64)
    distance[np.arange(len(labels)), labels] -= 1.0
    return float((distance**2).sum(axis=1).mean())


def calibration_errors(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`ece` and `brier`: how far probabilities [N, C] can be trusted, by labels [N]."""
    return {"ece": expected_calibration_error(probabilities, labels), "brier": brier_score(probabilities, labels)}
