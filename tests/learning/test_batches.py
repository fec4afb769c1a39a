"""The order of images and the sources that turn it into tensors."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runs import make_data
from transfermpl import args
from transfermpl.backbones.library import build_backbone
from transfermpl.data import Dataset, find_dataset
from transfermpl.features.sources import BATCH_ROWS, EVALUATION_BATCH, FrozenSource, ImageRequest, ImageSource
from transfermpl.images.augment import PHOTOS
from transfermpl.learning.batches import Batch, Batches, BatchSampler

CPU = torch.device("cpu")

ORDERS = st.builds(
    lambda labeled, unlabeled, size, unlabeled_size, seed, draws: BatchSampler(
        np.arange(labeled) * 3, np.arange(unlabeled) * 2, size, unlabeled_size, seed, draws
    ),
    st.integers(1, 30), st.integers(1, 80), st.integers(1, 40), st.integers(1, 90), st.integers(0, 5),
    st.none() | st.integers(1, 4),
)  # fmt: skip


# --- the order --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(ORDERS, st.integers(0, 3))
def test_an_epoch_shows_each_unlabeled_image_at_least_once(sampler: BatchSampler, epoch: int) -> None:
    assert sampler.unlabeled is not None
    steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
    shown = [sampler.requests(step)[1].rows for step in steps]
    assert set(np.concatenate(shown)) == set(sampler.unlabeled)
    assert len({len(rows) for rows in shown}) == 1  # one shape for all
    whole = len(sampler.unlabeled) // len(shown[0]) * len(shown[0])
    assert len(set(np.concatenate(shown)[:whole])) == whole


@settings(max_examples=60, deadline=None)
@given(ORDERS)
def test_the_labeled_images_go_round_and_round(sampler: BatchSampler) -> None:
    count = len(sampler.labeled)
    shown = np.concatenate([sampler.requests(step)[0].rows for step in range(3 * count)])
    for start in range(0, 2 * count, count):
        assert sorted(shown[start : start + count]) == list(sampler.labeled)
    assert all(len(sampler.requests(step)[0].rows) == min(sampler.batch_size, count) for step in range(4))


@settings(max_examples=60, deadline=None)
@given(ORDERS, st.lists(st.integers(0, 200), min_size=1, max_size=6))
def test_a_step_is_a_function_of_its_number(sampler: BatchSampler, steps: list[int]) -> None:
    before = {step: sampler.requests(step) for step in sorted(steps)}
    again = BatchSampler(
        sampler.labeled,
        sampler.unlabeled,
        sampler.batch_size,
        sampler.unlabeled_batch_size,
        sampler.seed,
        sampler.draws,
    )
    for step in steps:
        for ours, theirs in zip(before[step], again.requests(step), strict=True):
            assert (ours.rows == theirs.rows).all()
            assert (ours.draws == theirs.draws).all()
            assert ours.view == theirs.view


@settings(max_examples=60, deadline=None)
@given(ORDERS.filter(lambda sampler: sampler.draws is not None), st.integers(1, 40))
def test_what_a_bank_must_hold_is_what_the_steps_ask_for(sampler: BatchSampler, steps: int) -> None:
    wanted = sampler.wanted(steps)
    asked: dict[tuple[str, int], set[int]] = {}
    for step in range(steps):
        for request in sampler.requests(step):
            for row, draw in zip(request.rows.tolist(), request.draws.tolist(), strict=True):
                asked.setdefault((request.view, draw), set()).add(row)
    assert set(asked) == set(wanted)
    for kind, rows in asked.items():
        assert rows <= set(wanted[kind].tolist()), kind
    assert all(len(rows) == len(set(rows.tolist())) for rows in wanted.values())


def test_the_order_changes_every_round_and_with_the_seed() -> None:
    sampler = BatchSampler(np.arange(20), np.arange(40), 20, 40, seed=0)
    rounds = [sampler.requests(step)[0].rows.tolist() for step in range(4)]
    epochs = [sampler.requests(step)[1].rows.tolist() for step in range(4)]
    other = BatchSampler(np.arange(20), np.arange(40), 20, 40, seed=1)
    assert len({*map(tuple, rounds)}) == len({*map(tuple, epochs)}) == 4
    assert other.requests(0)[0].rows.tolist() != rounds[0]
    assert other.requests(0)[1].rows.tolist() != epochs[0]


def test_weak_and_strong_views_are_of_the_same_images() -> None:
    sampler = BatchSampler(np.arange(5), np.arange(17), 3, 4, seed=0, draws=2)
    for step in range(12):
        labeled, weak, strong = sampler.requests(step)
        assert (labeled.view, weak.view, strong.view) == ("weak", "weak", "strong")
        assert (weak.rows == strong.rows).all()
        assert set(strong.draws) == {step // 5 % 2}
        assert set(weak.draws) == {0}


def test_targets_take_a_quarter_of_the_draws_and_what_is_learned_all_of_them() -> None:
    sampler = BatchSampler(np.arange(4), np.arange(8), 4, 4, seed=0, draws=8)
    requests = [sampler.requests(step) for step in range(40)]
    seen = {
        name: {int(request[i].draws[0]) for request in requests} for i, name in enumerate(("labeled", "weak", "strong"))
    }
    assert seen == {"labeled": set(range(8)), "weak": {0, 1}, "strong": set(range(8))}
    # What is kept: all of them for 4 labeled and 8 unlabeled images, no row more.
    assert sum(map(len, sampler.wanted(40).values())) == 8 * 4 + (2 + 8) * 8 - 2 * 4
    fresh = BatchSampler(np.arange(4), np.arange(8), 4, 4, seed=0)
    assert fresh.weak_draws is None
    assert [fresh.requests(step)[1].draws[0] for step in (0, 9)] == [0, 4]


def test_draws_come_round_again_only_where_there_is_a_number_of_them() -> None:
    labeled = np.arange(4)
    endless, few = (
        BatchSampler(labeled, np.arange(4), 4, 4, seed=0),
        BatchSampler(labeled, np.arange(4), 4, 4, seed=0, draws=3),
    )
    assert [endless.requests(step)[0].draws[0] for step in range(7)] == list(range(7))
    assert [few.requests(step)[2].draws[0] for step in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_supervised_learning_asks_for_labeled_images_alone() -> None:
    sampler = BatchSampler(np.arange(10), None, 4, 64, seed=0)
    assert sampler.steps_per_epoch == 3
    assert [len(sampler.requests(step)) for step in range(3)] == [1, 1, 1]


# --- micro-batches ----------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12), st.booleans())
def test_parts_are_the_whole(count: int, labeled: int, unlabeled: int, supervised: bool) -> None:
    x = torch.arange(labeled, dtype=torch.float).view(-1, 1)
    u = torch.arange(unlabeled, dtype=torch.float).view(-1, 1)
    whole = Batch(x, x[:, 0].long()) if supervised else Batch(x, x[:, 0].long(), u, u + 0.5, u[:, 0].long())
    parts = whole.parts(count)
    assert len(parts) <= count
    assert sum(share for _, share, _ in parts) == pytest.approx(1)
    assert torch.cat([part.labeled for part, _, _ in parts]).equal(x)
    assert torch.cat([part.labels for part, _, _ in parts]).equal(whole.labels)
    assert all(len(part.labeled) for part, _, _ in parts)
    if not supervised:
        assert sum(share for _, _, share in parts) == pytest.approx(1)
        for part, mine, theirs in parts:
            assert part.strong is not None
            assert part.weak is not None
            assert part.hidden is not None
            assert (part.strong - part.weak).eq(0.5).all()
            assert part.hidden.equal(part.weak[:, 0].long())
            assert mine == pytest.approx(len(part.labeled) / labeled)
            assert theirs == pytest.approx(len(part.strong) / unlabeled)


# --- sources ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return find_dataset(args.Data(data_dir=str(make_data(tmp_path_factory.mktemp("data") / "d", 8))))


@pytest.fixture(scope="module")
def images(dataset: Dataset) -> ImageSource:
    return ImageSource(dataset, net().transform, PHOTOS, CPU, workers=0)


def net():  # type: ignore[no-untyped-def]
    options = args.Model(model_name="cnn", image_size=16)
    made = build_backbone(options, native_size=0, points=False, seed=0, default_name="")
    return made.requires_grad_(False).to(memory_format=torch.channels_last)


def order_of(dataset: Dataset) -> BatchSampler:
    return BatchSampler(np.arange(4), np.arange(len(dataset)), 3, 7, seed=0)


def test_any_step_may_be_asked_for_and_is_the_same(dataset: Dataset, images: ImageSource) -> None:
    batches = Batches(order_of(dataset), images, dataset.labels, CPU)
    forward = [batches(step) for step in range(6)]
    for step in (4, 1, 5, 0, 0):
        again = batches(step)
        for name in ("labeled", "labels", "weak", "strong", "hidden"):
            assert getattr(again, name).equal(getattr(forward[step], name))


def test_a_batch_holds_what_its_step_asks_for(dataset: Dataset, images: ImageSource) -> None:
    sampler = order_of(dataset)
    batch = Batches(sampler, images, dataset.labels, CPU)(2)
    for request, tensor in zip(sampler.requests(2), (batch.labeled, batch.weak, batch.strong), strict=True):
        assert tensor is not None
        assert tensor.shape == (len(request.rows), 3, 16, 16)
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        for row, draw, image in zip(request.rows, request.draws, tensor, strict=True):
            one = ImageRequest(np.array([row]), np.array([draw]), request.view)
            alone = images.view(next(images.decoded(iter([one.rows]))), one)
            torch.testing.assert_close(image, alone[0], rtol=0, atol=1e-6)
    assert batch.labels.tolist() == dataset.labels[sampler.requests(2)[0].rows].tolist()
    assert batch.hidden is not None
    rows = sampler.requests(2)[1].rows
    assert batch.hidden.tolist() == np.where(np.isin(rows, sampler.labeled), -1, dataset.labels[rows]).tolist()


def test_labels_that_are_learned_are_not_hidden(dataset: Dataset, images: ImageSource) -> None:
    everything = np.arange(len(dataset))
    sampler = BatchSampler(everything[:4], everything, 3, len(dataset), seed=0)
    hidden = Batches(sampler, images, dataset.labels, CPU)(0).hidden
    rows = sampler.requests(0)[1].rows
    assert hidden is not None
    assert hidden.tolist() == np.where(rows < 4, -1, dataset.labels[rows]).tolist()
    of_strangers = np.where(everything < 4, dataset.labels, -1)
    assert Batches(sampler, images, of_strangers, CPU)(0).hidden is None


def test_hidden_labels_are_left_out_where_none_is_known(dataset: Dataset, images: ImageSource) -> None:
    labels = np.where(np.arange(len(dataset)) < 4, dataset.labels, -1)
    sampler = BatchSampler(np.arange(4), np.arange(4, len(dataset)), 3, 7, seed=0)
    assert Batches(sampler, images, labels, CPU)(0).hidden is None
    supervised = Batches(BatchSampler(np.arange(4), None, 3, 7, seed=0), images, labels, CPU)(0)
    assert supervised.weak is None
    assert supervised.strong is None
    assert supervised.hidden is None


def test_an_image_is_decoded_once_a_step(
    dataset: Dataset, images: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = Dataset.read

    def count(self: Dataset, row: int, transform: object) -> torch.Tensor:
        read.append(row)
        return real(self, row, transform)  # type: ignore[arg-type]

    monkeypatch.setattr(Dataset, "read", count)
    stream = images.stream(order_of(dataset).requests, 0)
    next(stream)
    asked = {int(row) for request in order_of(dataset).requests(0) for row in request.rows}
    assert sorted(read[: len(asked)]) == sorted(asked)


def test_batches_end_their_stream_with_themselves() -> None:
    """A stream that went on would keep the processes that decode for it, and all that they hold."""
    ended = []

    class Watched:
        def stream(self, requests: Callable[[int], list[ImageRequest]], start: int) -> Iterator[list[torch.Tensor]]:
            try:
                while True:
                    yield [torch.from_numpy(request.rows)[:, None] for request in requests(start)]
                    start += 1
            finally:
                ended.append(start)

    gc.disable()
    try:
        sampler = BatchSampler(np.arange(3), np.arange(3, 12), 2, 4, seed=0, draws=8)
        batches = Batches(sampler, Watched(), np.zeros(12), CPU)  # type: ignore[arg-type]
        batches(0)
        del batches
        assert ended == [0]
    finally:
        gc.enable()


def test_evaluation_shows_the_images_as_they_are(dataset: Dataset, images: ImageSource) -> None:
    rows = np.array([5, 2, 9])
    shown = torch.cat(list(images.inputs(rows)))
    for row, image in zip(rows, shown, strict=True):
        assert image.equal(dataset.read(row, images.transform).float() / 255)
    assert list(images.inputs(rows[:0])) == []
    many = np.arange(EVALUATION_BATCH + 3) % len(dataset)
    assert [len(batch) for batch in images.inputs(many)] == [EVALUATION_BATCH, 3]


def test_frozen_features_do_not_hang_on_their_neighbours(dataset: Dataset, images: ImageSource) -> None:
    frozen = FrozenSource(images, net())
    pixels = torch.cat(list(images.inputs(np.arange(len(dataset)))))
    pixels = torch.cat([pixels, pixels.flip(3)])
    assert len(pixels) > BATCH_ROWS
    whole = frozen.features(pixels)
    for size in (1, 7, BATCH_ROWS):
        parts = [frozen.features(pixels[i : i + size]) for i in range(0, len(pixels), size)]
        assert torch.cat(parts).equal(whole)
    assert not whole.requires_grad
    assert whole.dtype == torch.float32


def test_a_step_is_one_pass_through_the_frozen_backbone(dataset: Dataset, images: ImageSource) -> None:
    frozen = FrozenSource(images, net())
    sampler = order_of(dataset)
    for views, inputs in itertools.islice(
        zip(frozen.stream(sampler.requests, 0), images.stream(sampler.requests, 0), strict=False), 3
    ):
        assert [len(view) for view in views] == [3, 7, 7]
        assert all(view.equal(frozen.features(pixels)) for view, pixels in zip(views, inputs, strict=True))


def test_a_file_that_breaks_meanwhile_is_named(tmp_path: Path) -> None:
    from transfermpl.utils import UserError

    folder = make_data(tmp_path / "d", 3)
    dataset = find_dataset(args.Data(data_dir=str(folder)))
    source = ImageSource(dataset, net().transform, PHOTOS, CPU, workers=0)
    (folder / "b c" / "bild 01.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"bild 01\.png"):
        list(source.inputs(np.arange(len(dataset))))
