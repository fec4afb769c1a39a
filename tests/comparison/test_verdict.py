"""What is concluded from accuracies: rows, differences, and which method to use."""

from __future__ import annotations

import numpy as np
import pytest

from transfermpl.comparison import verdict
from transfermpl.comparison.baselines import BASELINES

NOISE = np.array([0.01, -0.01, 0.0, 0.005, -0.005])


def results(count: int = 5, **means: float) -> dict[str, dict[int, dict[str, float]]]:
    """Results of methods whose seeds differ by noise of their own."""
    names = {"labels": "labels only", "mpl": "MPL", "uda": "UDA", "regression": "logistic regression"}
    return {
        names[name]: {seed: {"ensemble": mean + float(np.roll(NOISE, place)[seed])} for seed in range(count)}
        for place, (name, mean) in enumerate(means.items())
    }


def test_views_are_paired_with_the_mean_of_the_views_from_labels_only() -> None:
    def of(a: float, b: float, both: float) -> dict[int, dict[str, float]]:
        return {seed: {"a": a, "b": b, "ensemble": both + seed / 100} for seed in range(3)}

    results = {"labels only": of(0.5, 0.6, 0.7), "meta": of(0.7, 0.7, 0.8)}
    differences = {row["method"]: round(row["difference"], 3) for row in verdict.rows_of(results)}
    assert differences == {
        **{"labels only: a": -0.21, "labels only: b": -0.11, "labels only: ensemble": 0.0},
        **{"meta: a": -0.01, "meta: b": -0.01, "meta: ensemble": 0.1},
    }
    head, _, *lines = verdict.table(results).splitlines()
    assert "against labels only: ensemble" in head
    assert [line.split("|")[4].strip() == "" for line in lines] == [False, False, True, False, False, False]


def test_a_clear_winner_is_said_to_be_more_than_noise() -> None:
    said = verdict.advice(results(labels=0.5, uda=0.6, mpl=0.9))
    assert said.startswith("Use MPL (90.0%): its +40.0 points (95% interval +")
    assert "are more than noise, also when it is picked as the best of 3." in said
    assert "Not distinguishable" not in said
    assert "a little flattered" in said
    assert said.endswith("To train MPL: leave out --compare.")


def test_what_may_be_as_good_is_named() -> None:
    said = verdict.advice(results(labels=0.5, uda=0.898, mpl=0.9, regression=0.4))
    assert "more than noise" in said
    assert "Not distinguishable from it: UDA." in said
    said = verdict.advice(results(labels=0.5, uda=0.898, mpl=0.9))
    assert "Not distinguishable from it: any other." in said


def test_a_lead_that_zero_is_inside_of_is_noise() -> None:
    said = verdict.advice(results(labels=0.897, uda=0.7, mpl=0.9))
    assert said.startswith("MPL (90.0%) is the best here, but not distinguishable from labels only: +0.3 points (95%")
    assert "Use " not in said


def test_many_comparisons_ask_for_more() -> None:
    gains = np.array([0.02, 0.03, 0.005, 0.04, 0.01])  # t = 3.4: beyond 2.8 for one comparison, within 4.9 for six
    base = {"labels only": {seed: {"student": 0.7} for seed in range(5)}}
    best = {"MPL": {seed: {"ensemble": 0.7 + float(gains[seed])} for seed in range(5)}}
    fillers = {name: {seed: {"m": 0.3 + NOISE[seed]} for seed in range(5)} for name in BASELINES}
    assert "are more than noise" in verdict.advice({**base, **best})
    said = verdict.advice({**base, **best, **fillers, "UDA": {seed: {"m": 0.2} for seed in range(5)}})
    assert "likely more than noise, but 5 seeds can't make that sure when it is picked as the best of 10" in said


def test_labels_only_may_be_the_best() -> None:
    said = verdict.advice(results(labels=0.9, uda=0.5, mpl=0.899))
    assert said.startswith("Use labels only (90.0%): nothing did better here. Not distinguishable from it: MPL.")


def test_a_baseline_may_be_the_best() -> None:
    said = verdict.advice(results(labels=0.5, mpl=0.6, regression=0.9))
    assert said.startswith("Use logistic regression (90.0%)")
    assert "the best that is trained here is MPL. To train MPL: leave out --compare." in said


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_seeds_tell_nothing(count: int) -> None:
    same = {name: {seed: {"m": value} for seed in range(count)} for name, value in (("labels only", 0.5), ("MPL", 0.9))}
    assert "can't tell a difference from noise: use --repeat 5" in verdict.advice(same)


def test_an_ensemble_stands_for_its_method() -> None:
    of_seed = {"teacher": 0.9, "student": 0.8, "ensemble": 0.7}
    assert verdict.finals({"MPL": {0: of_seed}, "labels only": {0: {"student": 0.6}}}) == {
        "MPL": [0.7],
        "labels only": [0.6],
    }
