"""How far work is: a bar on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from transfermpl.base import progress
from transfermpl.base.progress import ProgressBar, with_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_lines_come_now_and_then_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with ProgressBar(100) as bar:
        for step in range(1, 101):
            clock[0] += 0.4
            bar.show(step, "loss 1.5 uda 0.25 mask 0.5")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("training: step 100/100  2/s  0 s left  loss 1.5 uda 0.25 mask 0.5")
    assert "30 s left" in lines[0]


def test_time_left_counts_from_where_the_run_went_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with ProgressBar(100, 80, what="features", unit="image") as bar:
        clock[0] = 11.0
        bar.show(91)
    assert capsys.readouterr().out == "features: image 91/100  1/s  9 s left\n"


def test_of_work_without_an_end_nobody_says_when_it_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with ProgressBar(None, what="predicting", unit="image") as bar:
        bar.show(1)
        clock[0] = 11.0
        bar.show(22)
    assert capsys.readouterr().out == "predicting: image 22  2/s\n"


def test_a_finished_run_shows_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(10, 10) as bar:
        bar.show(10)
    assert capsys.readouterr().out == ""


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressBar(10, 2) as bar:
        bar.show(7, "student 0.5")
        bar.show(10, "student 0.25")
    shown = terminal.getvalue()
    assert "training" in shown
    assert "10/10" in shown
    assert "student 0.25" in shown


def test_in_80_columns_the_bar_is_a_bar_beside_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda file: (80, 24))
    with ProgressBar(1000) as bar:
        bar.show(990, "loss 0.0023 student 0.0046 mask 0.93")
    last = terminal.getvalue().rsplit("\r", 1)[-1].rstrip("\n")
    assert len(last) <= 80
    assert len(last.split("|")[1]) >= 10
    assert "990/1000" in last
    assert last.endswith(" left, loss 0.0023 student 0.0046 mask 0.93")


def test_slow_work_is_told_at_once_and_again_where_something_changed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [5.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with ProgressBar(2, what="search", unit="trial", slow=True) as bar:
        for now, done in ((5.0, 0), (6.0, 1), (20.0, 1), (40.0, 1), (41.0, 2), (42.0, 2)):
            clock[0] = now
            bar.show_text(done, "", f"{done} of 2")
    assert capsys.readouterr().out.splitlines() == ["0 of 2", "1 of 2", "2 of 2"]


def test_slow_work_redraws_its_bar_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with ProgressBar(9, what="search", unit="trial", slow=True) as bar:
        for text in ("first", "second", "third"):
            bar.show_text(0, text, "")
            assert text in terminal.getvalue()


def test_items_are_counted_by_a_bar_that_disappears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert list(with_bar(iter("abc"), 3, what="scanning", unit="file")) == ["a", "b", "c"]
    assert "scanning" in terminal.getvalue()
    assert terminal.getvalue().rsplit("\r", 2)[-2].strip() == ""


def test_without_a_terminal_items_pass_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(with_bar(iter("abc"), 3, what="scanning", unit="file")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
