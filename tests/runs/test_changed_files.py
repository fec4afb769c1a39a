"""Files that change between the scan and their decoding: named and left out, and never learned as what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runs import FROZEN, Outcome, make_data, run, same
from transfermpl.data import Dataset, ImagesChanged
from transfermpl.features import bank
from transfermpl.runs import run as experiment

LINE = ("--name", "x", "--data_dir", "d", "--num_labels", 6, "--max_steps", 4, *FROZEN)


def swap(folder: Path) -> list[Path]:
    """Make some images those of another class, of one size all; returns their files."""
    one, other = sorted(folder.glob("b c/*.png"))[:4], sorted(folder.glob("日本/*.png"))[4:8]
    for a, b in zip(one, other, strict=True):
        content = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(content)
    return [*one, *other]


def swapped_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *more: object, gone: bool = False) -> Outcome:
    """A run whose images change after the scan, before any feature is computed."""
    make_data(tmp_path / "d")
    find = experiment.find_dataset

    def find_and_swap(*arguments: Any) -> Dataset:
        dataset = find(*arguments)
        if gone:
            sorted((tmp_path / "d").glob("b c/*.png"))[0].unlink()
        else:
            swap(tmp_path / "d")
        return dataset

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "find_dataset", find_and_swap)
        return run(*LINE, *more, cwd=tmp_path)


@pytest.mark.parametrize("more", [(), ("--no_cache",), ("--unfreeze", "all")], ids=["bank", "no bank", "unfrozen"])
def test_a_run_goes_on_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]) -> None:
    outcome = swapped_run(tmp_path, monkeypatch, *more)
    assert outcome.code == 0, outcome.err
    (line,) = [line for line in outcome.err.splitlines() if "have changed since" in line]
    assert line.startswith("warning: 8 files have changed since they were scanned, or are gone, and are left out: b c/")
    assert len(outcome.split()["changed"]) == 8
    learned = {path for part in ("labeled", "unlabeled", "test") for path in outcome.split()[part]}
    assert not learned & set(outcome.split()["changed"])


def test_one_that_vanished_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = swapped_run(tmp_path, monkeypatch, gone=True)
    assert outcome.code == 0, outcome.err
    assert "1 file has changed since it was scanned, or is gone" in outcome.err


def test_a_bank_never_holds_another_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After they are put back, a run from the same bank is what it is from a new one."""
    swapped_run(tmp_path, monkeypatch)
    swap(tmp_path / "d")
    from_old = run(*LINE, "--name", "old", cwd=tmp_path)
    from_new = run(*LINE, "--name", "new", "--cache_dir", "other", cwd=tmp_path)
    assert from_old.metrics("old") == from_new.metrics("new")
    assert same(from_old.checkpoint(name="old")["models"], from_new.checkpoint(name="new")["models"])


def test_where_all_labels_of_a_class_change_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_data(tmp_path / "d")
    monkeypatch.setattr(Dataset, "changed", lambda self, rows: np.flatnonzero(self.labels == 1))
    monkeypatch.setattr(bank.FeatureBank, "fill", _changed)
    outcome = run(*LINE, cwd=tmp_path)
    assert outcome.code == 2
    assert "all its labeled images have changed since the scan" in outcome.err


def _changed(*_: object, **named: object) -> int:
    raise ImagesChanged("a.png has changed")
