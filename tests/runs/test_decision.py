"""How a run chooses what makes classes of its probabilities, and what it says of that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runs import make_data, training
from transfermpl import args
from transfermpl.runs.decision import Decision, asked_recalls, choose_decision, order_of, threshold_of, told
from transfermpl.utils import UserError

CLASSES = ("ok", "defect")


def held_out(defect: list[float], ok: list[float]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Images of which a model says how probably each is a defect."""
    p = np.array([*defect, *ok])
    return {"student": np.stack([1 - p, p], axis=1)}, np.array([1] * len(defect) + [0] * len(ok))


def chosen(held: tuple[dict[str, np.ndarray], np.ndarray], **values: Any) -> tuple[Decision, dict[str, Any]]:
    counts = np.bincount(held[1], minlength=2)
    return choose_decision(args.make({"name": "x", **values}).use, CLASSES, counts, held)


RARE = held_out([0.3, 0.4, 0.9], [0.02] * 16 + [0.1] * 2)


def test_rare_classes_weigh_more_by_themselves_where_that_helps_held_out_images() -> None:
    decision, about = chosen(RARE)
    assert about["balance"] == {"on": True, "without": pytest.approx(2 / 3), "with": 1.0}
    assert decision.weights[1] / decision.weights[0] == pytest.approx(6)
    assert decision.of_model("student", RARE[0]["student"], CLASSES).tolist() == RARE[1].tolist()
    assert "balanced accuracy of 100.0% with it, 66.7% without" in told(about)[0]


@pytest.mark.parametrize(
    ("held", "asked", "weighs"),
    [
        (RARE, "off", False),
        (held_out([0.3] * 3, [0.02] * 9), "auto", False),  # not more than three times as many
        (held_out([0.3] * 3, [0.02] * 9), "on", True),
        (held_out([0.6] * 3, [0.02] * 8 + [0.3] * 8), "auto", False),  # half of the others would be lost
        (held_out([0.6] * 3, [0.02] * 8 + [0.3] * 8), "on", True),
        (held_out([], [0.1] * 9), "on", False),  # a class without a label
    ],
)
def test_whether_rare_classes_weigh_more(held: Any, asked: str, weighs: bool) -> None:
    assert bool(chosen(held, balance=asked)[0].weights) == weighs


def test_without_held_out_images_rare_classes_weigh_more_unchecked() -> None:
    nothing: dict[str, np.ndarray] = {}
    use = args.make({"name": "x"}).use
    decision, about = choose_decision(use, CLASSES, np.array([40, 10]), (nothing, np.zeros(0, dtype=np.int64)))
    assert decision.weights == (0.625, 2.5)
    assert "no image was held out" in told(about)[0]


def test_a_recall_without_held_out_images_sets_no_threshold() -> None:
    """The folds of a whole training may break off at its end, when the recall was promised long ago."""
    use = args.make({"name": "x", "recall": ["defect=0.9"]}).use
    decision, about = choose_decision(use, CLASSES, np.array([4, 4]), ({}, np.zeros(0, dtype=np.int64)))
    assert decision == Decision()
    assert about["recall"] == {}


def test_a_threshold_promises_the_recall_of_new_images() -> None:
    """Drawn as the held-out ones were, whatever their distribution: not fewer than asked for on average."""
    random = np.random.default_rng(0)
    for count, recall in ((19, 0.95), (30, 0.9), (100, 0.95)):
        reached = [
            (random.beta(1, 3, 200) >= threshold_of(random.beta(1, 3, count), recall)).mean() for _ in range(2000)
        ]
        assert recall - 0.005 <= np.mean(reached) <= 1 - order_of(count, recall) / (count + 1) + 0.01


def test_a_recall_is_told_with_its_precision_and_with_what_so_few_images_can_promise() -> None:
    decision, about = chosen(RARE, recall=["defect=0.95"], balance="off")
    assert decision.thresholds == {"student": {"defect": 0.3}}
    found = about["recall"]["defect"]
    assert (found["images"], found["found"], found["precision"]) == (3, 3, 1.0)
    assert found["promised"] == pytest.approx(0.75)
    (line,) = told(about)
    assert line.startswith("recall of defect: 75.0% or more are to be found, by the threshold 0.3 of 3 held-out images")
    assert "95.0% takes 19 of them" in line
    assert "14.3% of all images are" in line


def test_what_is_asked_for_is_read_by_the_last_sign() -> None:
    assert asked_recalls(args.make({"name": "x", "recall": ["a=b=0.9", "c=1"]}).use) == {"a=b": 0.9, "c": 1.0}


@pytest.mark.parametrize("text", ["defect", "defect=0", "defect=1.5", "=0.9", "defect=nan", "defect=much"])
def test_a_recall_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="above 0 and at most 1"):
        args.make({"name": "x", "recall": [text]})


def test_a_recall_that_can_not_be_had_is_refused_before_the_training(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "d")
    with pytest.raises(UserError, match="there is no such class; the classes are b c, ähre, 日本"):
        training(folder, "--recall", "defect=0.9")
    with pytest.raises(UserError, match="held out, and --calibration_folds 0"):
        training(folder, "--recall", "ähre=0.9", "--calibration_folds", 0)
    training(folder, "--recall", "ähre=0.9")
