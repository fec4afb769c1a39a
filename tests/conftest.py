"""One thread: the tests' tensors are tiny, and threads that wait for each other make them several times slower."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """The package that is tested is that of this checkout, and no other one that happens to be installed."""
    found = importlib.util.find_spec("transfermpl")
    if found is None or found.origin is None or Path(found.origin).resolve().parent != ROOT:
        where = "not installed" if found is None else f"that of {found.origin}"
        pytest.exit(f"the package transfermpl is {where}; run: make setup, or pip install -e '.[dev]'", returncode=4)
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests read what is told off the screen, as who uses the command line does; test_package.py is of others.

    What one of them names as secret is none for the next.
    """
    from transfermpl.utils import _told, on_screen

    monkeypatch.setattr(_told, "secrets", {})
    with on_screen():
        yield


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the package that reads HEIC images were not installed."""
    from transfermpl.images.decode import can_read_heif

    monkeypatch.setitem(sys.modules, "pi_heif", None)
    can_read_heif.cache_clear()
    yield
    can_read_heif.cache_clear()


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search starts its workers by fork: that is fast, and they know what a test has changed."""
    from transfermpl.search import supervisor

    monkeypatch.setattr(supervisor, "START", "fork")
    monkeypatch.setattr(supervisor, "TICK_SECONDS", 0.05)


@pytest.fixture
def easy_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trials of a search train nothing; the best learning rate is 0.002."""
    from searches import fake
    from transfermpl.search import worker

    monkeypatch.setattr(worker, "accuracy", fake(lambda o: 1 - abs(np.log10(o.learning.max_lr / 0.002)) / 4))


@pytest.fixture(scope="session")
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A whole resnet18, head and all, in a file."""
    import torch

    zoo = pytest.importorskip("torchvision.models")
    net = zoo.get_model("resnet18").eval()
    path = tmp_path_factory.mktemp("weights") / "resnet.pth"
    torch.save(net.state_dict(), path)
    return net, path
