"""Batches of decoded images: the same with any number of workers, and errors that name the file."""

from __future__ import annotations

import itertools
import multiprocessing as mp
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from image_folders import find, folder, transform
from transfermpl import data
from transfermpl.features import loader
from transfermpl.utils import UserError


def batches(dataset: data.Dataset, rows: list[list[int]], workers: int, **options: object) -> list[torch.Tensor]:
    orders = (np.array(batch) for batch in rows)
    how = transform(**options)  # type: ignore[arg-type]
    return list(loader.image_batches(dataset, how, orders, workers=workers, pin=False))


def test_workers_change_nothing(tmp_path: Path) -> None:
    dataset = find(folder(tmp_path, {"a": 6, "b": 6}))
    rows = [[3, 0, 11], [5], [7, 7], [1, 2, 4, 6]]
    state = torch.get_rng_state()
    alone, helped = batches(dataset, rows, 0), batches(dataset, rows, 2)
    assert torch.equal(state, torch.get_rng_state())
    assert [tuple(batch.shape) for batch in alone] == [(len(batch), 3, 8, 8) for batch in rows]
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))
    assert torch.equal(alone[0][2], dataset.read(11, transform()))


def test_endless_batches(tmp_path: Path) -> None:
    dataset = find(folder(tmp_path, {"a": 2, "b": 2}))
    endless = (np.array([i % 4]) for i in itertools.count())
    stream = loader.image_batches(dataset, transform(), endless, workers=1, pin=False)
    assert len(list(itertools.islice(stream, 6))) == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_meanwhile(tmp_path: Path, workers: int) -> None:
    dataset = find(folder(tmp_path, {"a": 2, "b": 2}))
    (tmp_path / "b/001.png").write_bytes(b"no")
    with pytest.raises(UserError) as error:
        batches(dataset, [[0], [3]], workers)
    assert str(tmp_path / "b/001.png") in str(error.value)
    assert "Traceback" not in str(error.value)


@pytest.mark.skipif(mp.get_start_method() != "fork", reason="the workers must inherit the change")
def test_a_worker_that_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = find(folder(tmp_path, {"a": 2, "b": 2}))
    monkeypatch.setattr(data.Dataset, "read", lambda *_: os._exit(1))
    with pytest.raises(UserError, match="--num_workers 0"):
        batches(dataset, [[0], [3]], 1)


def test_arrays_are_resized_once_and_points_are_points(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = find("digits")
    (cached,) = batches(dataset, [[5, 0, 9]], 2, size=16)
    assert torch.equal(cached[1], dataset.read(0, transform(16)))
    monkeypatch.setattr(loader, "_CACHE_BYTES", 0)
    (fresh,) = batches(find("digits"), [[5, 0, 9]], 2, size=16)
    assert torch.equal(cached, fresh)
    moons = find("moons")
    (points,) = batches(moons, [[5, 0, 9]], 2)
    assert points.shape == (3, 2)
    assert points.dtype == torch.float32
    assert torch.equal(points[0], moons.read(5, transform()))
