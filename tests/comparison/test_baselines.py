"""The baselines: that they classify, what they learn from, and how their settings are chosen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runs import FROZEN, make_data
from transfermpl import args
from transfermpl.comparison import baselines
from transfermpl.comparison.baselines import Given
from transfermpl.comparison.task import Task
from transfermpl.data import find_dataset, split_dataset
from transfermpl.features.head_prior import SCALE


def task_of(*words: object) -> Task:
    options = args.parse(["--name", "x", *map(str, words)])
    dataset = find_dataset(options.data)
    return Task(options, dataset, split_dataset(dataset, options.data, 0))


def blobs(each: int, *, width: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three clouds of points, far apart."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), each)
    return (5 * np.eye(3, width)[labels] + random.normal(0, 0.5, (3 * each, width))).astype(np.float32), labels


@pytest.mark.parametrize("name", sorted(baselines.BASELINES))
@pytest.mark.parametrize("each", [1, 2, 12])
@pytest.mark.parametrize("angles", [True, False])
def test_baselines_classify_clouds(name: str, each: int, angles: bool) -> None:
    rows, labels = blobs(each)
    tested, truth = blobs(30, seed=1)
    given = Given(rows, labels, blobs(20, seed=2)[0], angles)
    assert (baselines.BASELINES[name].fit(given)(tested) == truth).mean() > (0.95 if each > 2 else 0.75)


def test_label_spreading_uses_the_unlabeled_images() -> None:
    from sklearn.datasets import make_moons

    rows, labels = make_moons(400, noise=0.05, random_state=0)
    few = [int(np.flatnonzero(labels == label)[0]) for label in (0, 1)]
    given = Given(rows[few], labels[few], np.delete(rows, few, axis=0), False)
    tested, truth = make_moons(400, noise=0.05, random_state=1)
    spread = (baselines.label_spreading(given)(tested) == truth).mean()
    assert spread > 0.97
    assert spread > (baselines.nearest_neighbours(given)(tested) == truth).mean()


def cones(each: int, *, width: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two classes that differ in a few of many directions; how long a row is says nothing."""
    random = np.random.default_rng(seed)
    labels = np.repeat([0, 1], each)
    rows = random.normal(0, 1, (2 * each, width)) * np.r_[np.ones(20), np.full(width - 20, 0.2)]
    rows[:, :8] += np.where(labels, 0.9, -0.9)[:, None]
    return (rows * random.lognormal(0, 1, (2 * each, 1))).astype(np.float32), labels


def test_few_features_are_compared_by_their_direction() -> None:
    """Standardised by few labels, directions of noise count as much as those that tell the classes apart."""
    found = []
    for seed in range(5):
        rows, labels = cones(5, seed=seed)
        tested, truth = cones(200, seed=100 + seed)
        of_way = [baselines.logistic_regression(Given(rows, labels, rows[:0], angles)) for angles in (True, False)]
        found.append([(model(tested) == truth).mean() for model in of_way])
    ours, standardised = np.mean(found, axis=0)
    assert ours > 0.85
    assert ours > standardised + 0.05


def test_self_training_takes_the_surest_of_each_class() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    rows, classes = baselines.surest_of_each_class(probabilities, np.array([0.5, 0.5]), 1.0)
    assert rows.tolist() == [0, 1, 2, 3]
    assert classes.tolist() == [0, 0, 1, 1]  # all four are rather of the first, but half are to be of the second
    rows, classes = baselines.surest_of_each_class(probabilities, np.array([0.25, 0.75]), 1 / 3)
    assert (rows.tolist(), classes.tolist()) == ([3], [1])


def test_self_training_learns_from_the_unlabeled_images() -> None:
    gains = []
    for seed in range(5):
        rows, labels = cones(1, seed=seed)
        tested, truth = cones(200, seed=100 + seed)
        given = Given(rows, labels, cones(200, seed=200 + seed)[0], True)
        gains.append(
            [(of(given)(tested) == truth).mean() for of in (baselines.self_training, baselines.logistic_regression)]
        )
    taught, alone = np.mean(gains, axis=0)
    assert taught > alone + 0.05


def test_self_training_gives_each_class_its_part_of_the_unlabeled_images() -> None:
    """Of one label a class nothing says that nine of ten unlabeled images are of the first; the class prior does."""
    found = []
    for seed in range(5):
        (rows, labels), (others, truth) = cones(1, seed=seed), cones(200, seed=100 + seed)
        kept = np.flatnonzero((truth == 0) | (np.arange(len(truth)) % 9 == 0))
        priors = (None, np.bincount(truth[kept]) / len(kept))
        models = [baselines.self_training(Given(rows, labels, others[kept], True, class_prior=p)) for p in priors]
        found.append([(model(others[kept]) == truth[kept]).mean() for model in models])
    without, informed = np.mean(found, axis=0)
    assert informed > without + 0.1


def test_informed_baselines_are_given_what_our_trainings_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Given] = []
    for name in ("logistic regression", "logistic regression with priors"):
        real = baselines.BASELINES[name]
        watched = dataclasses.replace(real, fit=lambda of, real=real: given.append(of) or real.fit(of))
        monkeypatch.setitem(baselines.BASELINES, name, watched)
    make_data(tmp_path / "d", 12)
    line = ("--data_dir", tmp_path / "d", "--cache_dir", tmp_path / "c", "--device", "cpu", *FROZEN, "--num_labels", 9)
    task = task_of(*line)
    for name in ("logistic regression", "logistic regression with priors"):
        baselines.baseline_accuracy(name, task)
    plain, informed = given
    told = task.statistics()
    [prior] = told.head_priors
    assert prior is not None
    expected = (torch.from_numpy(plain.scaled(plain.labeled)) - prior.center) @ prior.axes.T / SCALE
    torch.testing.assert_close(torch.from_numpy(informed.scaled(informed.labeled)), expected, rtol=1e-3, atol=1e-3)
    assert np.array_equal(informed.class_prior, told.class_prior)
    assert plain.class_prior is None
    assert set(baselines.baselines_of(task)) == set(baselines.BASELINES)
    scratch = task_of("--data_dir", "moons", "--num_labels", 6)
    assert not any(baselines.BASELINES[name].informed for name in baselines.baselines_of(scratch))


def test_the_strength_of_regularisation_is_cross_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.model_selection import GridSearchCV

    searches: list[GridSearchCV] = []
    fit = GridSearchCV.fit
    monkeypatch.setattr(GridSearchCV, "fit", lambda self, *a: (searches.append(self), fit(self, *a))[1])
    rows, labels = blobs(12)
    baselines.logistic_regression(Given(rows, labels, rows[:0], True))
    baselines.logistic_regression(Given(rows, np.random.default_rng(0).permutation(labels), rows[:0], True))
    clear, shuffled = (search.best_params_["logisticregression__C"] for search in searches)
    assert shuffled < clear
    assert searches[0].cv.get_n_splits() == 5


def test_a_large_unlabeled_set_is_cut_for_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Given] = []

    def spread(given: Given) -> Any:
        seen.append(given)
        return baselines.label_spreading(given)

    spreading = baselines.Baseline(spread, spreads=True)
    monkeypatch.setitem(baselines.BASELINES, "label spreading", spreading)
    make_data(tmp_path / "d")
    line = ("--data_dir", tmp_path / "d", "--cache_dir", tmp_path / "c", "--device", "cpu", *FROZEN, "--num_labels", 9)
    task = task_of(*line)
    baselines.baseline_accuracy("label spreading", task)
    monkeypatch.setattr(baselines, "SPREAD_OVER", 5)
    baselines.baseline_accuracy("label spreading", task)
    split = task.split
    assert [len(given.unlabeled) for given in seen] == [len(np.setdiff1d(split.unlabeled, split.labeled)), 5]
    assert len(seen[0].labeled) == 9
    assert seen[0].labeled.shape[1] == seen[0].unlabeled.shape[1] > 2


def test_what_baselines_learn_from(tmp_path: Path) -> None:
    make_data(tmp_path / "d")

    def learned_from(*line: object) -> tuple[str, int]:
        task = task_of("--data_dir", tmp_path / "d", "--cache_dir", tmp_path / "c", "--device", "cpu", *line)
        sources, what = baselines.sources_of(task)
        return what, baselines.inputs(sources, task.split.labeled).shape[1]

    scratch = ("--model_name", "cnn", "--num_workers", 0, "--num_labels", 6)
    assert learned_from(*scratch, "--image_size", 16) == ("pixels", 3 * 16 * 16)
    assert learned_from(*scratch, "--image_size", 64) == ("pixels", 3 * 32 * 32)
    assert learned_from(*scratch, "--image_size", 16, "--unfreeze", "head") == ("features", 128)
    backbone = task_of("--data_dir", "fake", *scratch).views().first.backbone
    torch.save(backbone.net.state_dict(), tmp_path / "w.pth")
    weights = ("--weights", tmp_path / "w.pth", "--image_size", 16, "--unfreeze", "all")
    assert learned_from(*scratch, *weights) == ("features", 128)  # those that the network begins with
