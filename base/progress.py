"""How far a long piece of work is: a bar on a terminal, a line now and then elsewhere. Nothing else uses tqdm."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from ..utils import bars_wanted, say

PLAIN_LINE_SECONDS = 10.0  # between two lines where the output is no terminal
WITH_TEXT = "{desc} |{bar}| {n_fmt}/{total_fmt} {remaining} left{postfix}"
T = TypeVar("T")


class ProgressBar:
    """A progress bar with measurements and the time left; plain lines where the output is no terminal.

    Args:
        total: units of work in all; None where nobody knows.
        start: units that were done before, by a run that is resumed.
        what: the name of the work.
        unit: one of the units.
        slow: a unit takes seconds or more, so the first line comes at once, and every call redraws the bar.
    """

    def __init__(
        self, total: int | None, start: int = 0, *, what: str = "training", unit: str = "step", slow: bool = False
    ) -> None:
        self.total, self.start, self.what, self.unit, self.slow = total, start, what, unit, slow
        self.began = time.monotonic()
        self.last_line, self.last_time = "", -math.inf if slow else self.began
        self.bar = _bar(total, start, what, unit)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the bar and leave it on the screen."""
        if self.bar is not None:
            self.bar.close()

    def show(self, done: int, text: str = "") -> None:
        """`done` of the total; `text`: what stands beside the bar."""
        rate = (done - self.start) / max(time.monotonic() - self.began, 1e-9)
        of, left = "", ""
        if self.total is not None:
            of, left = f"/{self.total}", f"  {(self.total - done) / max(rate, 1e-9):.0f} s left"
        line = f"{self.what}: {self.unit} {done}{of}  {rate:.0f}/s{left}  {text}"
        self.show_text(done, text, line.rstrip())

    def show_text(self, done: int, text: str, line: str) -> None:
        """`done` of the total, with this text beside the bar; without a bar, `line` now and then and at the end."""
        if self.bar is not None:
            if text:  # takes the place of the rate
                self.bar.bar_format = WITH_TEXT
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(done - self.bar.n)
            if self.slow:
                self.bar.refresh()
            return
        now = time.monotonic()
        due = now - self.last_time > PLAIN_LINE_SECONDS or (self.total is not None and done >= self.total > self.start)
        if due and line != self.last_line:
            self.last_line, self.last_time = line, now
            say(line)


def with_bar(items: Iterable[T], total: int, *, what: str, unit: str) -> Iterator[T]:
    """The same items; on a terminal a bar counts them and disappears at the end, elsewhere nothing is shown."""
    bar = _bar(total, 0, what, unit, leave=False)
    with contextlib.nullcontext() if bar is None else contextlib.closing(bar):
        for item in items:
            yield item
            if bar is not None:
                bar.update()


def _bar(total: int | None, start: int, what: str, unit: str, leave: bool = True) -> Any:
    """tqdm's bar, or None where none can be drawn or nobody asked for messages."""
    if not bars_wanted():
        return None
    from tqdm import tqdm

    return tqdm(total=total, initial=start, desc=what, unit=unit, leave=leave)
