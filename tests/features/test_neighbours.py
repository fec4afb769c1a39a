"""Neighbours: which they are, what a target is read off, and that runs agree about them."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from runs import FROZEN, make_data, make_images, prepared, run, training
from transfermpl.features import neighbours
from transfermpl.features.neighbours import blend, nearest_images
from transfermpl.features.sources import ImageRequest, normalized_features
from transfermpl.learning.batches import Batches, BatchSampler
from transfermpl.models import feature_norm
from transfermpl.runs import unlabeled
from transfermpl.runs.prepare import fill_banks, make_trainer
from transfermpl.runs.views import FeatureCache
from transfermpl.train import Progress

CPU, FIVE = torch.device("cpu"), ("--neighbours", 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("neighbours"))


def test_the_nearest_are_those_of_the_largest_cosine_and_never_oneself() -> None:
    random = np.random.default_rng(0)
    features = torch.from_numpy(random.normal(size=(40, 6))).float()
    rows = random.permutation(40)[:25]
    found = nearest_images(lambda some: features[torch.from_numpy(some)], rows, 3)
    for row, near in zip(rows, found, strict=True):
        others = [other for other in rows if other != row]
        cosines = F.cosine_similarity(features[row : row + 1], features[others])
        expected = [others[at] for at in cosines.argsort(descending=True)[:3].tolist()]
        assert near.tolist() == expected


def test_a_large_unlabeled_set_is_cut_into_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "PART", 10)
    asked = []

    def features(rows: np.ndarray) -> torch.Tensor:
        asked.append(rows)
        return torch.from_numpy(rows).float()[:, None] * torch.ones(1, 2) + torch.tensor([[0.0, 1.0]])

    rows = np.random.default_rng(0).permutation(25)
    found = nearest_images(features, rows, 2)
    assert [len(part) for part in asked] == [9, 8, 8]
    for part in asked:
        assert np.isin(found[np.isin(rows, part)], part).all()


@pytest.mark.parametrize(("rows", "count"), [(3, 2), (2, 1)])
def test_where_there_are_few_others_there_are_fewer_neighbours(rows: int, count: int) -> None:
    found = nearest_images(lambda some: torch.eye(4)[torch.from_numpy(some)], np.arange(rows), 5)
    assert found.shape == (rows, count)


def test_a_blend_weighs_every_neighbour_alike_whatever_its_size() -> None:
    random = torch.Generator().manual_seed(0)
    own, around = torch.randn(2, 8, generator=random), torch.randn(6, 8, generator=random)
    norm = feature_norm(8)
    expected = 0.5 * norm(own[1]) + 0.5 * (norm(around[3]) + norm(around[4]) + norm(around[5])) / 3
    torch.testing.assert_close(blend(own, around)[1], expected)
    torch.testing.assert_close(blend(own, 100 * around), blend(own, around), atol=1e-4, rtol=1e-4)


class Numbered:
    """A source whose features tell which row, view and draw they are of."""

    def stream(self, requests, start):  # type: ignore[no-untyped-def]
        while True:
            yield [self.features(request) for request in requests(start)]
            start += 1

    @staticmethod
    def features(request: ImageRequest) -> torch.Tensor:
        rows, draws = torch.from_numpy(request.rows), torch.from_numpy(request.draws)
        return torch.stack([1.0 + rows, 1.0 + draws, torch.full((len(rows),), float(len(request.view)))], dim=1)


def test_only_the_weak_images_that_give_targets_are_blended_and_in_their_own_draw() -> None:
    sampler = BatchSampler(np.arange(3), np.arange(3, 12), 2, 4, seed=0, draws=8)
    near = np.stack([(np.arange(12) + 1) % 12, (np.arange(12) + 5) % 12], axis=1)
    source, labels = Numbered(), np.arange(12) % 2
    plain, blended = (Batches(sampler, source, labels, CPU, which) for which in (None, near))
    for step in (0, 4):  # of the second the weak draw is another
        before, after = plain(step), blended(step)
        assert torch.equal(before.labeled, after.labeled)
        assert torch.equal(before.strong, after.strong)
        assert torch.equal(before.hidden, after.hidden)
        weak = sampler.requests(step)[1]
        around = [Numbered.features(weak._replace(rows=near[weak.rows, place])) for place in (0, 1)]
        norm = feature_norm(3)
        expected = norm(before.weak) / 2 + (norm(around[0]) + norm(around[1])) / 4
        assert torch.allclose(after.weak, expected)


@pytest.mark.parametrize(("words", "used"), [((), 5), (("--no_include_labeled",), 0)])
def test_the_summary_says_how_many_were_used_and_a_line_that_none_were(
    tmp_path: Path, words: tuple[str, ...], used: int
) -> None:
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        make_images(tmp_path / "d" / "labeled" / name, 6, colour)
    make_images(tmp_path / "d" / "unlabeled", 1, (90, 90, 90))
    line = ("--data_dir", tmp_path / "d", *FROZEN, "--max_steps", 3, "--calibration_folds", 0, *FIVE, *words)
    outcome = run("--name", "x", *line, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.summary()["neighbours"] == used
    assert ("--neighbours: not used" in outcome.err) == (used == 0)
    page = (outcome.folder() / "report.html").read_text(encoding="utf-8")
    assert ("its nearest neighbours (5)" in page) == (used == 5)


def test_the_bank_and_the_loader_find_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = training(folder, "--cache_dtype", "float32", *FIVE)
    fill_banks(kept)
    [banked], [direct] = kept.statistics.neighbours, training(folder, "--no_cache", *FIVE).statistics.neighbours
    assert np.array_equal(banked, direct)
    assert capsys.readouterr().out.count(" for neighbours: ") == 1  # there is no bank to read them from


@pytest.mark.slow
def test_each_view_has_neighbours_of_its_own_in_the_pile_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views = ("--cotrain_mode", "--views", "pixels", "gradients")
    made = prepared(
        "--name", "x", "--data_dir", "digits", *views, *FIVE, "--max_steps", 60, "--cache_dir", tmp_path / "c"
    )
    fill_banks(made)
    unlabeled_rows = made.sampler.unlabeled
    first, second = (near[unlabeled_rows] for near in made.statistics.neighbours)
    assert first.shape == (len(unlabeled_rows), 5)
    assert np.isin(first, unlabeled_rows).all()
    assert not np.array_equal(first, second)
    assert made.statistics.neighbours is made.statistics.neighbours  # found once
    given: list[np.ndarray] = []
    monkeypatch.setattr(
        "transfermpl.runs.trainer.Batches", lambda sampler, source, labels, device, near: given.append(near)
    )
    monkeypatch.setattr("transfermpl.runs.trainer.fit", lambda *arguments, **named: None)
    made.learn(Progress())
    assert [near is own for near, own in zip(given, made.statistics.neighbours, strict=True)] == [True, True]


def test_who_is_near_is_told_by_the_mean_of_the_weak_draws(folder: Path) -> None:
    made = training(folder, *FIVE, "--augmentation_draws", 12, "--unlabeled_batch_size", 8, "--max_steps", 40)
    fill_banks(made)
    [near], unlabeled_rows = made.statistics.neighbours, np.sort(made.sampler.unlabeled)
    draws = [
        normalized_features(made.views.first.source, unlabeled_rows, "weak", draw)
        for draw in range(made.sampler.weak_draws)
    ]
    assert len(draws) == 3
    direction = F.normalize(torch.stack(draws).mean(dim=0), dim=1)
    likeness = direction @ direction.T - 2 * torch.eye(len(unlabeled_rows))
    best = torch.from_numpy(np.searchsorted(unlabeled_rows, near[unlabeled_rows]))
    torch.testing.assert_close(likeness.gather(1, best), likeness.topk(5).values)


def test_what_was_found_once_is_kept_for_the_same_pile_alone(folder: Path) -> None:
    cache = FeatureCache()
    first = training(folder, *FIVE, cache=cache)
    fill_banks(first)
    smaller = dataclasses.replace(first.context.split, unlabeled=first.context.split.unlabeled[:-4])
    for options, split in (
        (first.options, smaller),
        (first.options.changed(neighbours=3), first.context.split),
        (first.options.changed(max_steps=1, warmup_epoch_num=0), first.context.split),  # without a second weak draw
    ):
        other = make_trainer(options, first.context.data, split, cache=cache)
        fill_banks(other)
        assert other.statistics.neighbours is not first.statistics.neighbours
        assert np.isin(other.statistics.neighbours[0][other.sampler.unlabeled], other.sampler.unlabeled).all()
    again = make_trainer(first.options.changed(max_lr=0.01), first.context.data, first.context.split, cache=cache)
    assert again.statistics.neighbours is first.statistics.neighbours
    cache.forget(views=1, computed=1)
    assert len(cache.computed) == 1


def test_a_part_is_not_cut_by_class(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "PART", 9)
    asked: list[np.ndarray] = []
    monkeypatch.setattr(unlabeled, "nearest_images", lambda *given: asked.append(given[1]) or nearest_images(*given))
    made = training(folder, *FIVE)
    fill_banks(made)
    _ = made.statistics.neighbours
    for part in np.array_split(asked[0], -(-len(asked[0]) // 9)):
        assert len(np.unique(made.context.data.labels[part])) > 1


def test_batches_end_their_stream_with_themselves() -> None:
    """A stream that went on would keep the processes that decode for it, and all that they hold."""
    ended = []

    class Watched(Numbered):
        def stream(self, requests, start):  # type: ignore[no-untyped-def]
            try:
                yield from super().stream(requests, start)
            finally:
                ended.append(start)

    gc.disable()
    try:
        batches = Batches(
            BatchSampler(np.arange(3), np.arange(3, 12), 2, 4, seed=0, draws=8), Watched(), np.zeros(12), CPU
        )
        batches(0)
        del batches
        assert ended == [0]
    finally:
        gc.enable()


@pytest.mark.parametrize("words", [(), (*FIVE, "--finetune_mode"), (*FIVE, "--unfreeze", "all")])
def test_others_have_none(folder: Path, words: tuple[object, ...]) -> None:
    made = training(folder, *words)
    fill_banks(made)
    assert made.statistics.neighbours == (None,)
