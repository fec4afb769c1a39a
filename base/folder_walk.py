"""The files below a folder: which are found, in which order, and how their paths are written.

Hidden files and folders are left out, and so is the `__MACOSX` that a Mac puts into archives. Links are followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class FoundFile(NamedTuple):
    """A file below a folder: its path there, as it can be written (`printable`), and where it is.

    A folder that can't be listed stands for what is in it: then `path` ends in a slash.
    """

    path: str
    file: str

    @property
    def is_unlisted_folder(self) -> bool:
        return self.path.endswith("/")


def files_below(folder: Path) -> Iterator[FoundFile]:
    """Every visible file below the folder, in the order of its path there, found as they are asked for.

    A folder that links lead to is entered once, where it is first met: no link is followed for ever. Raises OSError
    when the folder itself can't be listed.
    """
    met = {os.path.realpath(folder)}
    paths = [""]  # still to be looked at, the next one last; a folder's path ends in a slash
    while paths:
        path = paths.pop()
        file = os.path.join(folder, path)
        if path and not path.endswith("/"):
            yield FoundFile(printable(path), file)
            continue
        try:
            below = [path + name for name in visible_names(file)]
        except OSError:
            if not path:
                raise
            yield FoundFile(printable(path), file)
        else:
            paths += [p for p in below if not p.endswith("/") or _is_first(os.path.join(folder, p), met)][::-1]


def _is_first(folder: str, met: set[str]) -> bool:
    """Whether the folder is not one of those `met`; now it is."""
    real, before = os.path.realpath(folder), len(met)
    met.add(real)
    return len(met) > before


def visible_names(folder: str | Path) -> list[str]:
    """The names of what is visible in a folder, those of folders with a slash: so the order is that of whole paths."""
    with os.scandir(folder) as entries:
        return sorted(entry.name + "/" * _is_folder(entry) for entry in entries if not is_hidden(entry.name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is left out."""
    return name.startswith(".") or name == "__MACOSX"


def printable(path: str) -> str:
    """The path as it can be written into a table: a file's name need not be text."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
