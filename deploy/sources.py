"""What is to be classified: the images of `--predict_dir`, which names folders, files, or a list of them that is read.

They come in groups, each of which can be classified before the next one is asked for: of a list on standard input what
has been written there so far.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.folder_walk import files_below, printable
from ..utils import UserError

LIST = "-"  # stands for standard input


@dataclass(frozen=True)
class GivenFile(os.PathLike[str]):
    """A file to be classified: its path as the table has it, where it is, and its size and time before it is read."""

    path: str
    file: str
    state: str

    def __fspath__(self) -> str:
        return self.file


def _given(path: str, file: str) -> GivenFile:
    state = ""
    with contextlib.suppress(OSError):
        found = os.stat(file)
        state = f"{found.st_size} {found.st_mtime_ns}"
    return GivenFile(printable(path), file, state)


@dataclass(frozen=True)
class Given:
    """The words of `--predict_dir`, or of another `option`. Of one folder the paths begin below it, else they are as
    they were given.
    """

    words: Sequence[str]
    option: str = "--predict_dir"

    def check(self) -> None:
        """Raises UserError where a word names nothing that can be read."""
        for word in self.words:
            place = Path(word).expanduser()
            if word != LIST and not os.access(place, os.R_OK | (os.X_OK if place.is_dir() else 0)):
                raise UserError(f"{self.option} {word}: there is no such folder or file, or it can't be read")
            if self.folder is not None and next(files_below(place), None) is None:
                raise UserError(f"{self.option} {word}: there is no file in it")

    @property
    def folder(self) -> Path | None:
        """The one folder, where it is one."""
        one = Path(self.words[0]).expanduser()
        return one if len(self.words) == 1 and one.is_dir() else None

    @property
    def folders(self) -> list[Path]:
        """All folders that are given."""
        return [place for word in self.words if (place := Path(word).expanduser()).is_dir()]

    @property
    def is_list(self) -> bool:
        """Whether a list is read, of which nobody knows how long it is."""
        return LIST in self.words

    @property
    def is_one_file(self) -> bool:
        """Whether it is one file."""
        return len(self.words) == 1 and not self.is_list and self.folder is None

    @property
    def place(self) -> str:
        """The folder that relative paths of the table begin in."""
        return os.path.realpath(self.folder or Path())

    def groups(self) -> Iterator[Iterator[GivenFile]]:
        """The files, in the order of what was given, and below a folder in that of the paths."""
        if self.folder is not None:
            yield _below(self.folder, "")
            return
        for word in self.words:
            for names in _names_in(sys.stdin.buffer) if word == LIST else [[word]]:
                yield (file for name in names for file in _named(name))


def _named(name: str) -> Iterator[GivenFile]:
    place = Path(name).expanduser()
    if not place.is_dir():
        yield _given(name, str(place))
        return
    try:
        yield from _below(place, os.path.join(name, ""))
    except OSError:  # stands for what is in it, with the reason why that can't be read
        yield _given(name, str(place))


def _below(folder: Path, prefix: str) -> Iterator[GivenFile]:
    return (_given(prefix + found.path, found.file) for found in files_below(folder))


def _names_in(stream: Any) -> Iterator[list[str]]:
    """The names that a stream has so far, whenever it has more: one a line, or each ended by a NUL (`find -print0`)."""
    left, end = b"", b""
    while part := stream.read1(1 << 16):
        left += part
        end = end or next((sign for sign in (b"\0", b"\n") if sign in left), b"")
        if end:
            *names, left = left.split(end)
            yield [_decoded(name, end) for name in names if name]
    if left:
        yield [_decoded(left, end)]


def _decoded(name: bytes, end: bytes) -> str:
    return os.fsdecode(name if end == b"\0" else name.removesuffix(b"\r"))
