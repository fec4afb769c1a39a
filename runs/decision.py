"""How a run's probabilities become classes: rare classes weigh more, and one is found as often as the user asks for.

Both are chosen on held-out images (`calibration.HeldOut`), beside the temperatures, and change no probability.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..args import Use
from ..base.decisions import decide
from ..base.metrics import calibrated, confusion_matrix, metrics, wilson_interval
from ..base.tables import percent
from ..data import Dataset
from ..utils import UserError, shown

UNEVEN = 3.0  # times as many labels of one class as of another, from which on rare ones may weigh more


@dataclass(frozen=True)
class Decision:
    """weights: of the classes, none where all weigh the same; thresholds: of classes by name, for each model."""

    weights: tuple[float, ...] = ()
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def stored(cls, content: Mapping[str, Any]) -> Decision:
        """That of a checkpoint."""
        found = content.get("decision", {"weights": (), "thresholds": {}})
        return cls(tuple(found["weights"]), found["thresholds"])

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"weights": list(self.weights), "thresholds": {name: dict(of) for name, of in self.thresholds.items()}}

    def of_model(self, name: str, probabilities: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """The classes int64 [N] by a model's calibrated probabilities [N, C]."""
        return decide(probabilities, classes, self.weights, self.thresholds.get(name, {}))

    def of_models(
        self, predictions: Mapping[str, np.ndarray], temperatures: Mapping[str, float], classes: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The same of every model, by its probabilities before calibration."""
        if self == Decision():  # the order of probabilities is that before calibration, to the last bit
            return {name: p.argmax(axis=1) for name, p in predictions.items()}
        of_all = calibrated(predictions, temperatures)
        return {name: self.of_model(name, p, classes) for name, p in of_all.items()}


def asked_recalls(use: Use) -> dict[str, float]:
    """`--recall` by class."""
    return {name: float(value) for name, _, value in (text.rpartition("=") for text in use.recall)}


def check_recall(use: Use, dataset: Dataset, held_out: np.ndarray, reason: str) -> None:
    """Whether `--recall` can be had. Raises UserError.

    held_out: the rows that will be held out; reason: why there are none.
    """
    for name in asked_recalls(use):
        if name not in dataset.classes:
            raise UserError(f"--recall {name}: there is no such class; the classes are {', '.join(dataset.classes)}")
        if reason:
            raise UserError(f"--recall {name}: its threshold is chosen on images that are held out, and {reason}")
        if not (dataset.labels[held_out] == dataset.classes.index(name)).any():
            raise UserError(f"--recall {name}: none of the {len(held_out)} validation images is of that class")


def choose_decision(
    use: Use,
    classes: Sequence[str],
    counts: np.ndarray,
    held_out: tuple[Mapping[str, np.ndarray], np.ndarray],
) -> tuple[Decision, dict[str, Any]]:
    """How probabilities become classes, and what the summary says of it.

    counts: labels of each class [C]; held_out: calibrated probabilities of every model, and the true classes.
    """
    predictions, labels = held_out
    weights, balance = _weights(use.balance, classes, counts, predictions, labels)
    asked = asked_recalls(use) if predictions else {}
    thresholds: dict[str, dict[str, float]] = {name: {} for name in predictions}
    for label, recall in asked.items():
        for name, p in predictions.items():
            thresholds[name][label] = threshold_of(p[labels == classes.index(label), classes.index(label)], recall)
    decision = Decision(weights, thresholds if asked else {})
    about: dict[str, Any] = {"balance": balance, "recall": {}}
    for label, recall in asked.items():
        about["recall"][label] = _expected(decision, label, recall, classes, predictions, labels)
    return decision, about


# --- rare classes weigh more ------------------------------------------------------------------------------------------


def _weights(
    asked: str, classes: Sequence[str], counts: np.ndarray, predictions: Mapping[str, np.ndarray], labels: np.ndarray
) -> tuple[tuple[float, ...], dict[str, Any]]:
    """Logit adjustment (Menon et al. 2021, eq. 9): each probability is divided by its class's label frequency.

    Without effect on what is learned: there the classes are as frequent as they are (`--class_prior`).
    """
    uneven = counts.max() > UNEVEN * counts.min() > 0
    if asked == "off" or not counts.min() or (asked == "auto" and not uneven):
        return (), {"on": False}
    weights = tuple((counts.mean() / counts).tolist())
    found: dict[str, Any] = {"on": True}
    if predictions:
        name, p = list(predictions.items())[-1]
        for how, decision in (("without", Decision()), ("with", Decision(weights))):
            decided = decision.of_model(name, p, classes)
            confusion = confusion_matrix(labels, decided, len(classes))
            found[how] = metrics(confusion, classes)["balanced_accuracy"]
        found["on"] = asked == "on" or found["with"] >= found["without"]
    return (weights if found["on"] else ()), found


# --- a class is found as often as asked for ---------------------------------------------------------------------------


def order_of(count: int, recall: float) -> int:
    """Which of the smallest of `count` held-out probabilities is a threshold that a new one reaches so often.

    The k-th smallest is reached by a new image of the class with a probability of 1 - k / (count + 1) at least, if it
    is drawn as those were (conformal prediction; Vovk et al. 2005). Where even the smallest does not promise the
    recall, it is the smallest.
    """
    return max(1, math.floor((1 - recall) * (count + 1) + 1e-9))


def threshold_of(probabilities: np.ndarray, recall: float) -> float:
    """The threshold for a class, by its probabilities [n] of n > 0 held-out images of it."""
    return max(float(np.sort(probabilities)[order_of(len(probabilities), recall) - 1]), 1e-9)


def _expected(
    decision: Decision,
    label: str,
    recall: float,
    classes: Sequence[str],
    predictions: Mapping[str, np.ndarray],
    labels: np.ndarray,
) -> dict[str, Any]:
    """What is to be expected of a class with a threshold, by the held-out images and the model that is used.

    `found` of the held-out images of the class are those by which the threshold was chosen; of new ones, and so in the
    precision, only as many as are `promised` are expected to be found.
    """
    name, p = list(predictions.items())[-1]
    true, decided = labels == classes.index(label), decision.of_model(name, p, classes) == classes.index(label)
    count, right, false = int(true.sum()), int((true & decided).sum()), int((~true & decided).sum())
    promised = 1 - order_of(count, recall) / (count + 1)
    expected = promised * count
    return {
        "asked": recall,
        "threshold": decision.thresholds[name][label],
        "images": count,
        "promised": promised,
        "found": right,
        "precision": expected / (expected + false),
        "precision_ci95": wilson_interval(expected, expected + false),
        "share": count / len(labels),
    }


# --- what is said -----------------------------------------------------------------------------------------------------


def told(about: Mapping[str, Any]) -> list[str]:
    """What the screen and the page say of a decision, a line each."""
    lines, balance = [], about["balance"]
    if about["recall"] and "with" in balance:
        lines.append(f"balance: {'rare classes weigh more' if balance['on'] else 'off'}, where no recall decides")
    elif "with" in balance:
        was, would = percent(balance["without"]), percent(balance["with"])
        what = f"held-out images have a balanced accuracy of {would} with it, {was} without"
        lines.append(f"balance: {'rare classes weigh more' if balance['on'] else 'off'}; {what}")
    elif balance["on"]:
        lines.append("balance: rare classes weigh more; no image was held out to check it")
    for label, found in about["recall"].items():
        asked, promised = found["asked"], found["promised"]
        few = math.ceil(asked / (1 - asked) - 1e-9) if asked < 1 else 0
        line = f"recall of {label}: {percent(min(promised, 1.0))} or more are to be found, by the threshold "
        line += (
            f"{found['threshold']:.3g} of {found['images']} held-out images of it: from this probability on, an image "
        )
        line += f"is called {label}"
        if promised < asked - 1e-9:
            line += f"; {percent(asked)} " + (f"takes {few} of them" if few else "no number of them can promise")
        low, high = (percent(bound) for bound in found["precision_ci95"])
        line += f". Of what is called {label}, {percent(found['precision'])} is (held out, {low} to {high}), where "
        line += f"{percent(found['share'])} of all images are, as among the labels"
        lines.append(line)
    return [shown(line) for line in lines]
