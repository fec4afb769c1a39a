"""The prior of linear heads: what it is by its formula, whom it is for, and that no checkpoint needs it."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from runs import FROZEN, goes_on_to_the_same, make_data, run, training
from transfermpl import args
from transfermpl.data import folds_of
from transfermpl.features import head_prior
from transfermpl.features.head_prior import LEAST, RIDGE, SCALE, center_of, fit_axes
from transfermpl.learning.learner import HeadPrior, Learner
from transfermpl.models import build_head
from transfermpl.runs import run as experiment
from transfermpl.runs.prepare import fill_banks, make_trainer
from transfermpl.runs.training import about
from transfermpl.runs.views import FeatureCache
from transfermpl.utils import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("priors"))


def seen(images: int = 400, width: int = 6, *, views: int = 4) -> Tensor:
    """Images that differ in the first axes, with views that vary in the last ones."""
    random = torch.Generator().manual_seed(0)
    differ, vary = torch.linspace(2, 0.2, width), torch.linspace(0.1, 1, width)
    means = torch.randn(images, width, generator=random) * differ
    return means + torch.randn(views, images, width, generator=random) * vary


def test_the_axes_are_those_of_the_formula() -> None:
    views = seen(images=20_000, views=2)
    axes = fit_axes(iter(views))
    assert axes is not None
    # B^(1/2) W^-1 of the two covariances that were put in; the means of two views keep half of what these vary by.
    within = torch.linspace(0.1, 1, 6) ** 2
    between = torch.linspace(2, 0.2, 6) ** 2 + within / 2
    expected = torch.diag(between.sqrt() / (within + RIDGE * within.mean()))
    torch.testing.assert_close(axes / axes[0, 0], expected / expected[0, 0], atol=0.03, rtol=0.05)
    # Logits of features along them are of one size, whatever the features were.
    means = views.mean(dim=0) - views.mean(dim=(0, 1))
    for factor in (1, 7):
        scaled = fit_axes(iter(factor * views))
        assert scaled is not None
        assert float((factor * means @ scaled.T).square().mean().sqrt()) == pytest.approx(SCALE, rel=1e-3)


def test_axes_hold_up_where_there_are_fewer_images_than_features() -> None:
    axes = fit_axes(iter(seen(images=LEAST, width=50, views=2)))
    assert axes is not None
    assert axes.isfinite().all()
    assert torch.linalg.matrix_rank(axes) == 50  # no direction is ruled out


def test_what_tells_nothing_gives_no_prior() -> None:
    views = seen()
    assert fit_axes(iter(views[:1])) is None  # one view can't vary
    assert fit_axes(iter(views[:, : LEAST - 1])) is None
    assert fit_axes(iter(views[:1].expand(3, -1, -1))) is None  # nor do equal ones
    assert fit_axes(iter(views.index_fill(1, torch.tensor([3]), torch.nan))) is None


def test_the_center_is_that_of_the_classes_not_of_the_images() -> None:
    labels = np.array([0] * 8 + [2] * 2)
    features = torch.tensor(labels, dtype=torch.float32)[:, None].expand(-1, 5)
    torch.testing.assert_close(center_of(features, labels), torch.ones(5))


def made_learner(**learning: object) -> Learner:
    head = build_head(6, 3, seed_key=(0,)).double()
    return Learner("x", head, args.Learning(**learning), classes=3, start=0, total=20)  # type: ignore[arg-type]


def a_prior() -> HeadPrior:
    random = torch.Generator().manual_seed(0)
    axes = torch.randn(6, 6, generator=random, dtype=torch.float64)
    return HeadPrior(torch.randn(6, generator=random, dtype=torch.float64), axes)


def steps(learner: Learner, count: int, first: int = 0) -> None:
    for step in range(first, first + count):
        features = torch.randn(5, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        learner.network(features).square().sum().backward()
        learner.update()


@pytest.mark.parametrize("learning", [{}, {"optimizer": "SGD", "max_lr": 0.003}, {"grad_clip": 0.1}])
def test_what_learns_are_the_weights_along_the_axes(learning: dict[str, object]) -> None:
    """The same learner's v and b, written out as a layer on A (x - center), come to the same logits."""
    learner, twin, (center, axes) = made_learner(**learning), made_learner(**learning), a_prior()
    twin.network.layers.insert(1, Shifted(center, axes))  # type: ignore[union-attr, operator, arg-type]
    learner.take_head_prior(a_prior())
    features = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(learner.network(features), twin.network(features))
    steps(learner, 20)
    steps(twin, 20)
    torch.testing.assert_close(learner.network(features), twin.network(features))
    [along] = learner.along
    own = twin.network.layers[-1]  # type: ignore[index, union-attr]
    torch.testing.assert_close((along.v, along.b), (own.weight.detach(), own.bias.detach()))


class Shifted(torch.nn.Module):
    def __init__(self, center: Tensor, axes: Tensor) -> None:
        super().__init__()
        self.center, self.axes = center, axes

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.center) @ self.axes.T


@pytest.mark.parametrize("after", [0, 3])
def test_a_learner_goes_on_along_it_to_the_same_bits(after: int) -> None:
    whole, first, second = (made_learner(ema=0.9) for _ in range(3))
    for learner in (whole, first):
        learner.take_head_prior(a_prior())
        steps(learner, after)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.take_head_prior(a_prior())
    for learner in (whole, second):
        steps(learner, 4, first=after)
    for key, value in whole.evaluation_state().items():
        assert value.equal(second.evaluation_state()[key])
    for one, other in zip(whole.along, second.along, strict=True):
        assert one.v.equal(other.v)


def test_the_average_begins_where_the_head_with_its_prior_does() -> None:
    learner = made_learner(ema=0.9)
    learner.take_head_prior(a_prior())
    for key, value in learner.network.state_dict().items():
        assert value.equal(learner.evaluation_state()[key])


def test_weights_that_were_learned_otherwise_are_not_taken_for_such() -> None:
    old, new = made_learner(), made_learner()
    steps(old, 2)
    state = old.state_dict()
    del state["along"]
    new.load_state_dict(state)
    with pytest.raises(UserError, match="older version"):
        new.take_head_prior(a_prior())


def test_a_training_with_a_pile_gives_it_to_all_its_heads(folder: Path) -> None:
    made = training(folder)
    fill_banks(made)
    made.learn(experiment.Progress())
    assert [len(learner.along) for learner in made.learners] == [1, 1]
    assert about(made)["views_with_prior"] == ["cnn"]


@pytest.mark.parametrize(
    "words",
    [
        ("--head_prior", "none"),
        ("--finetune_mode",),
        ("--unfreeze", "all"),
        ("--num_labels", 30),
        ("--num_labels", 27),
    ],
)
def test_others_have_none(folder: Path, words: tuple[object, ...]) -> None:
    made = training(folder, *words)
    fill_banks(made)
    made.take_statistics()
    assert made.statistics.head_priors == (None,)
    assert not any(learner.along for learner in made.learners)
    assert about(made)["views_with_prior"] == []


def test_the_bank_and_the_loader_tell_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = training(folder, "--cache_dtype", "float32")
    fill_banks(kept)
    [banked] = kept.statistics.head_priors
    assert "for the prior" not in capsys.readouterr().out
    [direct] = training(folder, "--no_cache").statistics.head_priors
    assert re.search(r"^features of \S+ for the prior: image (\d+)/\1 ", capsys.readouterr().out, re.MULTILINE)
    assert banked is not None
    assert direct is not None
    assert banked.axes.equal(direct.axes)


def test_trials_and_folds_of_a_calibration_share_the_axes_and_have_centers_of_their_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[Tensor] = []
    monkeypatch.setattr(
        "transfermpl.runs.unlabeled.fit_axes", lambda views: fits.append(views) or head_prior.fit_axes(views)
    )
    cache = FeatureCache()
    first = training(folder, cache=cache)
    fold = folds_of(first.context.data, first.context.split, 3, 0)[0]
    fold = dataclasses.replace(fold, unlabeled=np.setdiff1d(fold.unlabeled, fold.val))
    centers = []
    for split in (first.context.split, fold):
        made = make_trainer(first.options.changed(max_lr=0.01), first.context.data, split, cache=cache)
        fill_banks(made)
        made.take_statistics()
        centers.append(made.learners[0].along[0].prior.center)
    assert len(fits) == 1
    assert not torch.equal(*centers)


@pytest.mark.parametrize("words", [(), ("--switch_mode", "--ema", 0.9)])
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


@pytest.mark.slow
def test_a_run_that_goes_on_fits_the_axes_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ("--name", "x", "--data_dir", folder, *FROZEN, "--num_labels", 9, "--max_steps", 4)
    outcome = run(*line, cwd=tmp_path)
    for name in ("summary.json", "checkpoints/best.pt"):
        (outcome.folder() / name).unlink()
    fits: list[object] = []
    monkeypatch.setattr(
        "transfermpl.runs.unlabeled.fit_axes", lambda views: fits.append(views) or head_prior.fit_axes(views)
    )
    again = run("--name", "x", "--resume", cwd=tmp_path)
    assert again.code == 0, again.err
    assert again.summary()["calibration"]["folds"] == 3
    assert len(fits) == 1


@pytest.mark.slow
def test_a_run_that_ended_by_patience_is_tested_with_what_it_learned(tmp_path: Path) -> None:
    """Also where it was stopped before the test: its weights are weights along the axes."""
    line = ("--name", "x", "--data_dir", make_data(tmp_path / "d", 40), *FROZEN, "--num_labels", 9, "--patience", 1)
    line += ("--val_percent", "40%", "--max_steps", 400, "--warmup_epoch_num", 1, "--calibration_folds", 0)
    outcome = run(*line, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert len(outcome.metrics().splitlines()) < 100  # not 400 steps
    goes_on_to_the_same(outcome)
