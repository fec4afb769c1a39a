"""The prior of linear heads: what it is by its formula, whom it is for, and that no checkpoint needs it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import FROZEN, Outcome, make_data, run
from torch import Tensor

import args
import experiment
import models
import priors
from data import find_dataset, folds_of, split_dataset
from foundation import Kept
from models import Prior, build_head, take_prior, without_prior
from priors import LEAST, RIDGE, SCALE, center_of, fit_axes
from run_training import Training


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("priors"))


def training(folder: Path, *words: object, kept: Kept | None = None) -> Training:
    line = ("--name", "x", "--data_dir", folder, *FROZEN, "--num_labels", 9, "--max_steps", 4, *words)
    line += ("--cache_dir", folder.parent / "c")
    options = args.parse([str(word) for word in line])
    dataset = find_dataset(options.data)
    split = split_dataset(dataset, options.data, 0)
    return experiment.make_training(options, dataset, split, kept=kept)


def seen(images: int = 400, width: int = 6, *, views: int = 4) -> Tensor:
    """Images that differ in the first axes, with views that vary in the last ones."""
    random = torch.Generator().manual_seed(0)
    differ, vary = torch.linspace(2, 0.2, width), torch.linspace(0.1, 1, width)
    means = torch.randn(images, width, generator=random) * differ
    return means + torch.randn(views, images, width, generator=random) * vary


def test_the_axes_are_those_of_the_formula() -> None:
    views = seen(images=20_000, views=2)
    axes = fit_axes(views)
    assert axes is not None
    # B^(1/2) W^-1 of the two covariances that were put in; the means of two views keep half of what these vary by.
    within = torch.linspace(0.1, 1, 6) ** 2
    between = torch.linspace(2, 0.2, 6) ** 2 + within / 2
    expected = torch.diag(between.sqrt() / (within + RIDGE * within.mean()))
    torch.testing.assert_close(axes / axes[0, 0], expected / expected[0, 0], atol=0.03, rtol=0.05)
    # Logits of features along them are of one size, whatever the features were.
    means = views.mean(dim=0) - views.mean(dim=(0, 1))
    for factor in (1, 7):
        scaled = fit_axes(factor * views)
        assert scaled is not None
        assert float((factor * means @ scaled.T).square().mean().sqrt()) == pytest.approx(SCALE, rel=1e-3)


def test_axes_hold_up_where_there_are_fewer_images_than_features() -> None:
    axes = fit_axes(seen(images=LEAST, width=50, views=2))
    assert axes is not None
    assert axes.isfinite().all()
    assert torch.linalg.matrix_rank(axes) == 50  # no direction is ruled out


def test_what_tells_nothing_gives_no_prior() -> None:
    views = seen()
    assert fit_axes(views[:1]) is None  # one view can't vary
    assert fit_axes(views[:, : LEAST - 1]) is None
    assert fit_axes(views[:1].expand(3, -1, -1)) is None  # nor do equal ones
    assert fit_axes(views.index_fill(1, torch.tensor([3]), torch.nan)) is None


def test_the_center_is_that_of_the_classes_not_of_the_images() -> None:
    labels = np.array([0] * 8 + [2] * 2)
    views = torch.tensor(labels, dtype=torch.float32)[None, :, None].expand(3, -1, 5)
    torch.testing.assert_close(center_of(views, labels), torch.ones(5))


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("images", [5, 50])
def test_a_head_with_a_prior_says_the_same_without_it(members: int, images: int) -> None:
    head, features = build_head("linear", 6, 3, seed_key=(0,), members=members).eval(), torch.randn(images, 6)
    before, keys = head(features), set(head.state_dict())
    take_prior(head, Prior(torch.randn(6), torch.randn(6, 6)))
    logits = head(features)
    assert set(head.state_dict()) == keys
    assert not torch.allclose(logits, before, atol=1e-3)
    plain = build_head("linear", 6, 3, seed_key=(1,), members=members).eval()
    plain.load_state_dict(without_prior(head, head.state_dict()))
    torch.testing.assert_close(plain(features), logits)
    take_prior(head, None)
    assert head(features).equal(before)
    assert without_prior(head, head.state_dict()).keys() == keys


@pytest.mark.parametrize("images", [5, 50])
def test_what_learns_are_the_weights_along_the_axes(images: int) -> None:
    head, features = build_head("linear", 6, 3, seed_key=(0,)).double(), torch.randn(images, 6).double()
    prior = Prior(torch.randn(6).double(), torch.randn(6, 6).double())
    take_prior(head, prior)
    head(features).square().sum().backward()
    last = head.layers[-1]
    assert isinstance(last, models.Logits)
    inputs = (head.layers[0](features) - prior.center) @ prior.axes.T
    weight = last.weight.detach().requires_grad_()
    (inputs @ weight.T + last.bias.detach()).square().sum().backward()
    torch.testing.assert_close(last.weight.grad, weight.grad)


def test_a_training_with_a_pile_gives_it_to_all_its_heads(folder: Path) -> None:
    made = training(folder)
    made.fill_bank()
    made.learn(experiment.Progress())
    heads = [m for learner in made.learners for m in learner.network.modules() if isinstance(m, models.Logits)]
    assert len(heads) == 2
    assert all(head.prior is not None for head in heads)


@pytest.mark.parametrize(
    "words",
    [("--head_prior", "none"), ("--head", "hidden"), ("--finetune_mode",), ("--unfreeze", "all"), ("--num_labels", 30)],
)
def test_others_have_none(folder: Path, words: tuple[object, ...]) -> None:
    made = training(folder, *words)
    made.fill_bank()
    made.take_priors()
    assert made.axes == [None]
    assert not any(getattr(m, "prior", None) for learner in made.learners for m in learner.network.modules())


def test_the_bank_and_the_loader_tell_the_same(folder: Path) -> None:
    kept = training(folder, "--cache_dtype", "float32")
    kept.fill_bank()
    [banked], [direct] = kept.axes, training(folder, "--no_cache").axes
    assert banked is not None
    assert direct is not None
    assert banked.equal(direct)


def test_folds_and_trials_share_the_axes_and_have_centers_of_their_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[Tensor] = []
    monkeypatch.setattr("run_training.fit_axes", lambda views: fits.append(views) or priors.fit_axes(views))
    kept = Kept()
    first = training(folder, kept=kept)
    fold = folds_of(first.dataset, first.split, 3, 0)[0]
    fold = dataclasses.replace(fold, unlabeled=np.setdiff1d(fold.unlabeled, fold.val))
    centers = []
    for split in (first.split, fold):
        made = experiment.make_training(first.options.changed(max_lr=0.01), first.dataset, split, kept=kept)
        made.fill_bank()
        made.take_priors()
        [head] = [m for m in made.learners[0].network.modules() if isinstance(m, models.Logits)]
        assert head.prior is not None
        centers.append(head.prior.center)
    assert len(fits) == 1
    assert not torch.equal(*centers)


@pytest.mark.parametrize("words", [(), ("--switch_mode", "--ema", 0.9), ("--head_ensemble", 2)])
def test_checkpoints_hold_plain_heads_that_say_what_was_tested(
    folder: Path, tmp_path: Path, words: tuple[object, ...]
) -> None:
    line = ("--name", "x", "--data_dir", folder, *FROZEN, "--num_labels", 9, "--calibration_folds", 0, *words)
    outcome = run(*line, "--max_steps", 30, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    last = outcome.checkpoint("last")["models"]
    best = outcome.checkpoint("best")["models"]
    for name, state in best.items():
        for key, value in state.items():
            torch.testing.assert_close(value, last[name][key])
    tested = run("--test_mode", "--load_path", "x", "--load_best", cwd=tmp_path)
    assert tested.code == 0, tested.err
    again = json.loads((outcome.folder() / "test_summary.json").read_text(encoding="utf-8"))
    assert again["test"] == outcome.summary()["test"]


def goes_on_to_the_same(outcome: Outcome) -> None:
    """A run that goes on after its last step leaves the models that it left before."""
    before = outcome.checkpoint()["models"]
    for name in ("summary.json", "checkpoints/best.pt"):
        (outcome.folder() / name).unlink()
    again = run("--name", "x", "--resume", cwd=outcome.cwd)
    assert again.code == 0, again.err
    for name, state in again.checkpoint()["models"].items():
        for key, value in state.items():
            assert value.equal(before[name][key])


def test_a_run_from_before_there_were_priors_goes_on_without(folder: Path, tmp_path: Path) -> None:
    line = ("--name", "x", "--data_dir", folder, *FROZEN, "--num_labels", 9, "--max_steps", 4, "--calibration_folds", 0)
    outcome = run(*line, "--head_prior", "none", cwd=tmp_path)
    path = outcome.folder() / "commandline_args.txt"
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored.pop("head_prior") == "none"
    path.write_text(json.dumps(stored), encoding="utf-8")
    goes_on_to_the_same(outcome)


def test_a_run_that_ended_by_patience_is_tested_with_what_it_learned(tmp_path: Path) -> None:
    """Also where it was stopped before the test: its weights are weights along the axes."""
    line = ("--name", "x", "--data_dir", make_data(tmp_path / "d", 40), *FROZEN, "--num_labels", 9, "--patience", 1)
    line += ("--val_percent", "40%", "--max_steps", 400, "--warmup_epoch_num", 1, "--calibration_folds", 0)
    outcome = run(*line, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert len(outcome.metrics().splitlines()) < 100  # not 400 steps
    goes_on_to_the_same(outcome)
