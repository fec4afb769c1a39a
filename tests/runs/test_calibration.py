"""What is measured on images that a training did not see, and which of them count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from transfermpl.runs.calibration import ENOUGH_TO_SHARPEN, HeldOut, calibrate, cross_validation, drawn_at_random


def trainer(labels: list[int], asked: tuple[int, ...]) -> Any:
    data = SimpleNamespace(labels=np.array(labels), asked=asked, classes=("a", "b"))
    return cast(Any, SimpleNamespace(context=SimpleNamespace(data=data)))


def test_labels_that_a_run_asked_for_do_not_say_how_good_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.tile(np.arange(16), 2)  # in two deals
    drawn = drawn_at_random(trainer([0, 1] * 8, (3, 4, 5)), rows)
    assert set(rows[~drawn].tolist()) == {3, 4, 5}
    assert drawn_at_random(trainer([0, 1] * 8, ()), rows).all()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("asked", [tuple(range(7)), tuple(range(1, 16, 2))])  # 9 are left; none of class b is
def test_where_too_few_others_are_left_all_labels_count_and_a_warning_says_so(
    asked: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert drawn_at_random(trainer([0, 1] * 8, asked), np.arange(16)).all()
    assert "are harder than others" in capsys.readouterr().err


@pytest.mark.parametrize("images", [ENOUGH_TO_SHARPEN - 1, ENOUGH_TO_SHARPEN])
def test_a_few_right_images_do_not_make_probabilities_surer(images: int) -> None:
    right = np.tile(np.array([[0.9, 0.1]], dtype=np.float32), (images, 1))
    wrong = np.tile(np.array([[0.99, 0.01]], dtype=np.float32), (images, 1))
    labels = np.zeros(images, dtype=np.int64)
    sure = calibrate(HeldOut("cross-fitted", {"student": right}, labels, folds=3))["temperatures"]["student"]
    assert sure == 1.0 if images < ENOUGH_TO_SHARPEN else sure < 1.0
    assert calibrate(HeldOut("cross-fitted", {"student": wrong}, 1 - labels, folds=3))["temperatures"]["student"] > 1


def test_the_figures_say_how_many_labels_they_leave_out() -> None:
    labels = np.array([0, 1] * 6)
    found = cross_validation(HeldOut("cross-fitted", {}, labels, folds=3, asked=4), {"student": labels}, ("a", "b"))
    assert (found["asked"], found["images"], found["models"]["student"]["accuracy"]) == (4, 12, 1.0)
