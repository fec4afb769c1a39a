"""What predict and export share: the classifier of --load_path, and the file to write."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from ..args import Mode
from ..base.files import atomic_file, remove_parts
from ..runs.resume import run_of
from ..utils import OneLineError, UserError
from .classifier import Classifier, loaded_checkpoint

STDOUT = "-"  # as --out


def classifier_of(mode: Mode, settings: Mapping[str, Any]) -> Classifier:
    """The classifier of `--load_path`, on these settings of the group Run instead of those that it was trained with."""
    return Classifier(*loaded_checkpoint(mode.load_path or ""), settings)


def output(
    wanted: str | None,
    checkpoint: Path,
    name: str,
    beside: str = "",
    *,
    overwrite: bool,
    is_own: Callable[[Path], bool] = lambda path: False,
) -> tuple[Path, Path]:
    """The file to write, and another one beside it whose name ends so; nothing that is there is replaced.

    `wanted`, which is --out, or `name` in the run's folder, or its next free number. Raises UserError when `--out` is
    there already, unless `overwrite`, and when `overwrite` would replace what is no output of this kind (`is_own`).
    """
    if wanted == STDOUT:
        raise UserError("--out - is for the predictions of --predict_dir alone; give a file")
    given = Path(wanted).expanduser() if wanted else None
    first = given or run_of(checkpoint) / name
    remove_parts(first.parent, foreign=given is not None)
    for number in count(1):
        out = first if number == 1 else first.with_stem(f"{first.stem}-{number}")
        other = out.with_name(out.stem + beside) if beside else out
        if out.is_dir():
            raise UserError(f"{out} is a folder; give --out a file")
        there = [path for path in dict.fromkeys((out, other)) if os.path.lexists(path)]
        foreign = [path for path in there if not (path.is_file() and is_own(path))]
        if overwrite and foreign:
            raise UserError(f"{foreign[0]} is no earlier output of this command, so it stays; give another --out")
        if overwrite or not there:
            return out, other
        if given is not None:
            raise UserError(f"{there[0]} is there already; give another --out, or --overwrite to replace it")
    raise AssertionError


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """As `atomic_file`; what an interrupted run has written is kept beside, and a folder closed to us is an error."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        with atomic_file(path, noted=False) as temporary:
            try:
                yield temporary
            except KeyboardInterrupt as stop:
                temporary.replace(partial)
                raise type(stop)(f"stopped; what was done is in {partial}") from stop
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{error.filename or path} can't be written ({error.strerror}); give another --out") from error


@contextmanager
def standard_output() -> Iterator[BinaryIO]:
    """Standard output for a table alone: inside, what is told goes to standard error."""
    stream = sys.stdout
    with redirect_stdout(sys.stderr):
        try:
            yield stream.buffer
        except BrokenPipeError as error:  # `| head`; Python itself would complain of what is left in the buffer
            with suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
            raise OneLineError("nobody reads standard output any more, so the rest is left out") from error
