"""The benchmark that kills runs finds what it is there to find (benchmarks/torture.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

import torture
from torture import MODES, Mode, Outcome


@pytest.mark.slow
def test_nothing_is_lost_by_kills_at_random_moments(tmp_path: Path) -> None:
    outcome = torture.torture("MPL", 3, 0, tmp_path)
    assert outcome.kills == 3
    assert not outcome.wrong


def left_by_a_run(folder: Path, metrics: str, *more: str) -> Path:
    """A folder with what a run may have left."""
    for name in ("results/x/metrics.csv", *more):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(metrics)
    return folder


def test_what_differs_or_is_left_over_is_counted(tmp_path: Path) -> None:
    reference = left_by_a_run(tmp_path / "untouched", "loss\n1\n", "cache/b/weak-0/a.block")
    again = left_by_a_run(tmp_path / "again", "loss\n1\n", "cache/b/weak-0/other.block")
    other = left_by_a_run(tmp_path / "other", "loss\n2\n", "results/x-2/metrics.csv", "cache/b/weak-0/.part-1.block")
    outcome = Outcome()
    for folder in (again, other):
        torture.compare(MODES["MPL"], reference, folder, outcome)
        torture.check_left(reference, folder, torture.shared_memory(), outcome)
    assert outcome.wrong == {"different": 1, "left over": 1}


def test_what_is_gone_or_changed_is_lost_and_what_has_grown_is_not() -> None:
    before = {"step": 4, "trial 0": (0.5, {}), "trial 1": (0.6, {})}
    assert torture.lost_between(before, before | {"step": 9, "trial 2": (0.7, {})}) == []
    assert torture.lost_between(before, {"step": 3, "trial 0": (0.4, {})}) == ["trial 0", "trial 1", "step"]


@pytest.mark.parametrize(("code", "kind"), [(0, None), (143, None), (-15, None), (2, "lost"), (70, "different")])
def test_an_end_that_is_none_of_the_signal_is_noted(tmp_path: Path, code: int, kind: str | None) -> None:
    (tmp_path / "screen.txt").write_text("why")
    outcome, ended = Outcome(), torture.Running(0, tmp_path / "screen.txt", code=code)
    torture.note_code(Mode("", torture.signal.SIGTERM), ended, outcome)
    assert [*outcome.wrong] == ([] if kind is None else [kind])
