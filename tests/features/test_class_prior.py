"""The class prior of unlabeled images: found where features separate classes, else left at the label frequencies."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runs import FROZEN, make_data, run
from transfermpl import args
from transfermpl.data import find_dataset, folds_of, split_dataset
from transfermpl.features import class_prior
from transfermpl.features.class_prior import (
    estimate_class_prior,
    label_frequencies,
    likeliest_prior,
    stratified_sample,
)
from transfermpl.features.head_prior import SCALE
from transfermpl.runs import run as experiment
from transfermpl.runs import unlabeled
from transfermpl.runs.prepare import fill_banks, make_trainer
from transfermpl.runs.trainer import Trainer
from transfermpl.runs.views import FeatureCache

EQUAL, UNEQUAL = (0.25, 0.25, 0.25, 0.25), (0.6, 0.25, 0.1, 0.05)


def clouds(counts: tuple[int, ...], seed: int, *, apart: float = 1.5, width: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Points around a place for each class, of these counts, and their classes."""
    random = np.random.default_rng(seed)
    places = np.random.default_rng(7).normal(size=(len(counts), width)) * apart / np.sqrt(2)
    labels = np.repeat(np.arange(len(counts)), counts)
    return (places[labels] + random.normal(size=(len(labels), width))).astype(np.float32), labels


def distance(found: np.ndarray, shares: Any) -> float:
    return float(np.abs(found - shares).sum())


def estimate(labels: tuple[int, ...], unlabeled_rows: Any, seed: int, **kind: float) -> np.ndarray:
    known, classes = clouds(labels, seed, **kind)
    unknown, _ = clouds(tuple(round(1000 * share) for share in unlabeled_rows), 100 + seed, **kind)
    return estimate_class_prior(known, classes, unknown, len(labels))


def test_the_likeliest_prior_are_the_true_one_for_a_classifier_that_knows_how_unsure_it_is() -> None:
    random, means = np.random.default_rng(0), np.array([-1.0, 1.0])
    x = means[random.choice(2, 20_000, p=[0.9, 0.1])] + random.normal(size=20_000)
    density = np.exp(-((x[:, None] - means) ** 2) / 2)
    predicted = density / density.sum(axis=1, keepdims=True)  # exact where both are equally frequent
    half = np.array([0.5, 0.5])
    assert likeliest_prior(predicted, half, half, weight=0.0) == pytest.approx([0.9, 0.1], abs=0.02)
    assert likeliest_prior(predicted, half, half, weight=1e6) == pytest.approx(half, abs=1e-3)
    # A classifier that has learned from mostly the second class predicts the same, once that is known.
    shifted = predicted * [0.4, 1.6]
    shifted /= shifted.sum(axis=1, keepdims=True)
    learned = np.array([0.2, 0.8])
    assert likeliest_prior(shifted, half, learned, weight=0.0) == pytest.approx([0.9, 0.1], abs=0.02)
    assert predicted.mean(axis=0) == pytest.approx([0.75, 0.25], abs=0.03)  # which is what counting would say


@pytest.mark.parametrize("seed", range(3))
def test_an_unequal_unlabeled_set_is_noticed(seed: int) -> None:
    found = estimate((12,) * 4, UNEQUAL, seed)
    assert found.sum() == pytest.approx(1)
    assert distance(found, UNEQUAL) < 0.3 < distance(np.array(EQUAL), UNEQUAL)


@pytest.mark.parametrize("seed", range(3))
def test_an_unlabeled_set_like_the_labels_is_left_at_their_frequencies(seed: int) -> None:
    assert distance(estimate((12,) * 4, EQUAL, seed), EQUAL) < 0.1
    assert distance(estimate((24, 10, 4, 2), UNEQUAL, seed), UNEQUAL) < 0.15


@pytest.mark.parametrize("seed", range(3))
def test_features_that_separate_nothing_are_not_trusted(seed: int) -> None:
    assert distance(estimate((12,) * 4, UNEQUAL, seed, apart=0.0), EQUAL) < 0.25


def test_classes_with_one_label_and_empty_piles_keep_the_label_frequencies() -> None:
    known, labels = clouds((5, 3, 1), 0)
    assert estimate_class_prior(known, labels, known, 3) == pytest.approx([5 / 9, 3 / 9, 1 / 9])
    known, labels = clouds((4, 2), 0)
    assert estimate_class_prior(known, labels, known[:0], 2) == pytest.approx([2 / 3, 1 / 3])
    assert label_frequencies(np.array([2, 2, 0]), 4) == pytest.approx([1 / 3, 0, 2 / 3, 0])


def test_the_estimate_is_a_function_of_its_inputs() -> None:
    assert estimate((6,) * 3, (0.5, 0.3, 0.2), 4).tolist() == estimate((6,) * 3, (0.5, 0.3, 0.2), 4).tolist()


# --- in a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("shares") / "d", 12)


def training(folder: Path, *words: object) -> Trainer:
    line = ("--name", "x", "--data_dir", folder, *FROZEN, "--num_labels", 9, "--cache_dir", folder.parent / "c", *words)
    options = args.parse([str(word) for word in line])
    dataset = find_dataset(options.data)
    return make_trainer(options, dataset, split_dataset(dataset, options.data, 0))


def test_what_is_estimated_from_is_what_heads_get_in_training(folder: Path) -> None:
    """Weak features at a root mean square of 1, and where the heads have a prior, in its space."""
    made = training(folder)
    rows = made.context.split.unlabeled[:5]
    [inputs] = made.views.first.source.inputs(rows, "weak")
    normed = made.learners[0].network.layers[0](inputs)  # type: ignore[index, operator]
    [prior] = made.statistics.head_priors
    seen = [of_unlabeled(made)._compared(rows, (which,)) for which in (None, prior)]
    assert seen[0] == pytest.approx(normed.numpy(), abs=1e-6)
    assert seen[1] == pytest.approx(((normed - prior.center) @ prior.axes.T).numpy() / SCALE, abs=1e-4)
    [plain] = made.views.first.source.inputs(rows)
    assert not torch.equal(plain, inputs)


def of_unlabeled(made: Trainer) -> unlabeled.UnlabeledImages:
    return unlabeled.UnlabeledImages(made.context, made.views, made.sampler, made.planned_steps, made.cache)


def test_the_estimate_is_made_in_the_space_of_the_heads_priors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    thirds = np.full(3, 1 / 3)
    monkeypatch.setattr(unlabeled, "estimate_class_prior", lambda known, *rest: asked.append(known) or thirds)
    cache = FeatureCache()
    first, priors = training(folder), []
    for words in ({}, {"head_prior": "none"}):
        made = make_trainer(first.options.changed(**words), first.context.data, first.context.split, cache=cache)
        priors.append(made.statistics.head_priors)
    labeled = of_unlabeled(first).some_labeled
    expected = [of_unlabeled(first)._compared(labeled, found) for found in priors]
    assert len(asked) == 2  # neither takes what the other has found
    assert all(np.array_equal(*pair) for pair in zip(asked, expected, strict=True))


@pytest.mark.slow
def test_the_learners_of_a_frozen_backbone_are_told_the_estimate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def estimated(known: np.ndarray, labels: np.ndarray, unlabeled_rows: np.ndarray, classes: int) -> np.ndarray:
        asked.append((len(known), labels.tolist(), len(unlabeled_rows)))
        return np.array([0.5, 0.3, 0.2])

    monkeypatch.setattr(unlabeled, "estimate_class_prior", estimated)
    made = training(folder, "--no_include_labeled")
    labeled = made.context.split.labeled
    fill_banks(made)
    made.learn(experiment.Progress())
    [(count, labels, unlabeled_rows)] = asked
    assert (count, sorted(labels)) == (9, sorted(made.context.data.labels[labeled].tolist()))
    assert unlabeled_rows == len(np.setdiff1d(made.context.split.unlabeled, labeled))
    assert all(learner.class_prior.tolist() == pytest.approx([0.5, 0.3, 0.2]) for learner in made.learners)


def test_trainings_that_share_their_views_estimate_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    thirds = np.full(3, 1 / 3)
    monkeypatch.setattr(
        unlabeled.UnlabeledImages, "_class_prior", lambda self, how, priors: asked.append(self.context.split) or thirds
    )
    cache = FeatureCache()
    first = training(folder)
    for learning in ({}, {"max_lr": 0.01}, {"class_prior": "labels"}):
        made = make_trainer(first.options.changed(**learning), first.context.data, first.context.split, cache=cache)
        assert made.statistics.class_prior is made.statistics.class_prior
    assert len(asked) == 2
    fold = folds_of(first.context.data, first.context.split, 3, 0)[0]
    assert len(make_trainer(first.options, first.context.data, fold, cache=cache).statistics.class_prior) == 3
    assert asked[2] is fold


@pytest.mark.parametrize(
    ("words", "strength"),
    [((), 1.0), (("--distribution_alignment", 0.5), 0.5), (("--finetune_mode",), 0.0), (("--unfreeze", "all"), 0.0)],
)
def test_alignment_is_for_frozen_backbones_and_piles(folder: Path, words: tuple[object, ...], strength: float) -> None:
    assert training(folder, *words).learning.distribution_alignment == strength


def test_shares_are_those_of_the_labels_where_nothing_can_tell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(class_prior, "likeliest_prior")  # nothing is estimated
    labels = training(folder, "--class_prior", "labels")
    whole = training(folder, "--unfreeze", "all", "--distribution_alignment", 1)
    spoiled = training(folder)
    spoiled.views.first.backbone.learned = spoiled.context.data.hashes[spoiled.context.split.labeled[:1]]
    for made in (labels, whole, spoiled):
        assert made.statistics.class_prior == pytest.approx(
            label_frequencies(made.context.data.labels[made.context.split.labeled], 3)
        )


def test_features_that_are_not_finite_are_left_to_the_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = torch.full((1, 128), np.nan)
    monkeypatch.setattr(unlabeled, "normalized_features", lambda source, rows, view: nothing.expand(len(rows), 128))
    made = training(folder)
    assert made.statistics.class_prior == pytest.approx(
        label_frequencies(made.context.data.labels[made.context.split.labeled], 3)
    )


def test_labeled_images_in_the_pile_count_as_what_they_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlabeled, "estimate_class_prior", lambda *given: np.array([1.0, 0.0, 0.0]))
    made, alone = training(folder), training(folder, "--no_include_labeled")
    assert alone.statistics.class_prior.tolist() == [1, 0, 0]
    labels, split = made.context.data.labels, made.context.split
    again = np.isin(split.unlabeled, split.labeled)
    assert again.sum() == 9
    counts = np.bincount(labels[split.labeled], minlength=3) + np.array([(~again).sum(), 0, 0])
    assert made.statistics.class_prior == pytest.approx(counts / len(split.unlabeled))


def test_a_rare_class_keeps_two_of_many_labels() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [5000, 2500, 5]))
    chosen = stratified_sample(labels, 2000)
    assert np.bincount(labels[chosen]).tolist() == [1333, 667, 2]
    assert stratified_sample(labels[:50], 2000).tolist() == list(range(50))


def test_what_only_learns_from_labels_estimates_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(unlabeled.UnlabeledImages, "class_prior")
    made = training(folder)
    made.schedule = dataclasses.replace(made.schedule, warmup_steps=2, total_steps=2)
    fill_banks(made)
    made.learn(experiment.Progress())


@pytest.mark.parametrize("cache", [(), ("--no_cache",)])
def test_a_pile_of_labeled_images_alone_needs_no_estimate(folder: Path, cache: tuple[str, ...]) -> None:
    made = training(folder, "--num_labels", 30, *cache)
    assert not len(np.setdiff1d(made.context.split.unlabeled, made.context.split.labeled))
    assert made.statistics.class_prior == pytest.approx([1 / 3] * 3)


def test_the_summary_and_the_page_tell_what_was_assumed(folder: Path, tmp_path: Path) -> None:
    line = ("--name", "x", "--data_dir", folder, *FROZEN, "--num_labels", 9, "--max_steps", 4, "--calibration_folds", 0)
    outcome = run(*line, cwd=tmp_path)
    told = outcome.summary()["class_prior"]
    assert list(told) == outcome.summary()["dataset"]["classes"]
    assert sum(told.values()) == pytest.approx(1, abs=1e-3)
    assert "<bdi>class prior</bdi>" in (tmp_path / "results" / "x" / "report.html").read_text(encoding="utf-8")
    plain = run(*line, "--distribution_alignment", 0, "--overwrite", cwd=tmp_path)
    assert "class_prior" not in plain.summary()
    assert "<bdi>class prior</bdi>" not in (tmp_path / "results" / "x" / "report.html").read_text(encoding="utf-8")
