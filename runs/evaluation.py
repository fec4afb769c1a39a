"""Trained models measured on images of the run: predictions, metrics, confusion matrices, reliability."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import visualization
from ..base.files import file_names
from ..base.metrics import calibrated, calibration_errors, confusion_matrix, metrics, reliability
from .trained_models import TrainedModels
from .views import Views

# Of each model and the ensemble: probabilities float32 [N, C], or classes int64 [N].
Predictions = Mapping[str, np.ndarray]


def predict_rows(models: TrainedModels, views: Views, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Class probabilities float32 [N, C] of each model and the ensemble on the rows, unaugmented, not calibrated.

    {} of no rows.
    """
    return {} if not len(rows) else models.predict(lambda name: views.of(name).source.inputs(rows))


def measure(predictions: Predictions, labels: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Of each model its `metrics` on images of these labels [N]: accuracy, ci95 and so on."""
    return {name: metrics(confusion_of(p, labels, len(classes)), classes) for name, p in predictions.items()}


def confusion_of(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The confusion matrix [C, C] of probabilities [N, C] or classes [N]: a row a true class, a column a predicted one.

    Of probabilities the largest counts.
    """
    return confusion_matrix(labels, predicted if predicted.ndim == 1 else predicted.argmax(axis=1), classes)


def confusion_files(models: Iterable[str]) -> dict[str, str]:
    """The name of the picture of each model's confusion matrix."""
    return {model: f"{name}_CM.png" for model, name in file_names(models).items()}


def draw_confusions(
    folder: Path, predictions: Predictions, labels: np.ndarray, classes: Sequence[str], prefix: str = ""
) -> None:
    """Draw each model's confusion matrix into `<prefix><model>_CM.png`."""
    files = confusion_files(predictions)
    for name, predicted in predictions.items():
        confusion = confusion_of(predicted, labels, len(classes))
        accuracy = metrics(confusion, classes)["accuracy"]
        title = f"{name}: {100 * accuracy:.1f}% of {len(labels)} test images"
        visualization.draw_confusion(folder / f"{prefix}{files[name]}", confusion, classes, title=title)


def report_reliability(
    path: Path, predictions: Predictions, labels: np.ndarray, temperatures: Mapping[str, float]
) -> dict[str, Any]:
    """How well probabilities say how often they are right, before and after calibration; drawn into `path`.

    Only reported: nothing is chosen by it. Returns {before: {model: {ece, brier}}, after: ...}; {} of no predictions.
    """
    if not predictions:
        return {}
    states = {"before": predictions}
    if temperatures:
        states["after"] = calibrated(predictions, temperatures)
    errors: dict[str, Any] = {}
    bins: dict[str, Any] = {"before": {}, "after": {}}
    for state, of_models in states.items():
        errors[state] = {name: calibration_errors(p, labels) for name, p in of_models.items()}
        bins[state] = {name: {**reliability(p, labels), **errors[state][name]} for name, p in of_models.items()}
    title = f"How often a prediction is right that is so sure: {len(labels)} test images"
    visualization.draw_reliability(path, bins["before"], bins["after"], title=title)
    return errors
