"""The nearest-neighbour search: blocks find what a whole matrix finds, in little memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

from runs import ROOT
from transfermpl.features import nearest


@pytest.mark.parametrize(("total", "count"), [(0, 3), (1, 3), (2, 3), (4, 3), (50, 3), (50, 60)])
def test_blocks_find_what_a_whole_matrix_finds(monkeypatch: pytest.MonkeyPatch, total: int, count: int) -> None:
    monkeypatch.setattr(nearest, "BLOCK", 7)
    monkeypatch.setattr(nearest, "CHUNK", 11)
    rows = functional.normalize(torch.from_numpy(np.random.default_rng(0).normal(size=(total, 5))).float())
    found = nearest.nearest(3 * rows, count)
    whole = (rows @ rows.T).numpy()
    np.fill_diagonal(whole, -2)
    width = max(0, min(count, total - 1))
    assert found.rows.shape == found.similarity.shape == (total, width)
    assert np.allclose(found.similarity, -np.sort(-whole, axis=1)[:, :width], atol=1e-6)
    assert np.allclose(np.take_along_axis(whole, found.rows, axis=1), found.similarity, atol=1e-6)
    assert all(row not in others for row, others in enumerate(found.rows.tolist()))


@pytest.mark.slow
def test_memory_grows_with_the_images_and_not_with_their_square() -> None:
    code = (
        "import resource, torch\nfrom transfermpl.features.nearest import nearest\n"
        "rows = torch.randn(20_000, 512)\n"
        "nearest(rows[:3000], 20)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "nearest(rows, 20)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    # The whole matrix would be 1,600 MB, a block of it is 32.
    assert float(done.stdout) < 200


def test_among_others_a_row_may_find_its_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "BLOCK", 3)
    monkeypatch.setattr(nearest, "CHUNK", 4)
    random = torch.Generator().manual_seed(0)
    others, rows = torch.randn(10, 6, generator=random), torch.randn(7, 6, generator=random)
    rows[2] = 5 * others[9]
    found = nearest.nearest(rows, 3, among=others)
    whole = functional.normalize(rows) @ functional.normalize(others).T
    values, places = whole.topk(3, dim=1)
    assert found.rows.tolist() == places.tolist()
    assert found.similarity == pytest.approx(values.numpy(), abs=1e-6)
    assert found.rows[2, 0] == 9
    assert nearest.nearest(rows, 20, among=others).rows.shape == (7, 10)
    assert nearest.nearest(rows[:0], 3, among=others).rows.shape == (0, 3)
    assert nearest.nearest(rows, 3, among=others[:0]).rows.shape == (7, 0)


def test_a_row_of_zeros_is_similar_to_nothing() -> None:
    rows = torch.eye(4)
    rows[1] = 0
    found = nearest.nearest(rows, 3)
    assert found.similarity[1].tolist() == [0, 0, 0]
    assert np.isfinite(found.similarity).all()
