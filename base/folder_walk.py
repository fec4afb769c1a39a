"""The files below a folder: which are found, in which order, and how their paths are written.

Left out are hidden files and folders, what systems put beside a user's files, and the folders that this program writes.
Links are followed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from .written_files import OPTIONS

# Thumbnails, indexes, wastebaskets and the like of Windows, macOS, Synology, QNAP and Linux; in lower case.
OF_THE_SYSTEM = frozenset(
    ("__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information")
    + ("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "lost+found", "__pycache__")
)
OWN_MARKS = (OPTIONS, "bank.json")  # in the folder of a run, and in that of a feature bank


class FoundFile(NamedTuple):
    """A file below a folder: its path there, as it can be written (`printable`), and where it is.

    A folder that can't be listed stands for what is in it: then `path` ends in a slash.
    """

    path: str
    file: str

    @property
    def is_unlisted_folder(self) -> bool:
        return self.path.endswith("/")


def files_below(folder: Path, not_into: Collection[str] = ()) -> Iterator[FoundFile]:
    """Every visible file below the folder, in the order of its path there, found as they are asked for.

    A folder that links lead to is entered once, where it is first met: no link is followed for ever, and none into the
    real paths `not_into`. Raises OSError when the folder itself can't be listed.
    """
    met = {os.path.realpath(folder), *not_into}
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
        names = [entry.name + "/" * _is_folder(entry) for entry in entries if not is_hidden(entry.name)]
    return sorted(name for name in names if not (name.endswith("/") and is_own(os.path.join(folder, name))))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is left out."""
    return name.startswith(".") or name.lower() in OF_THE_SYSTEM


def is_own(folder: str) -> bool:
    """Whether this program writes the folder: a run's, a feature bank's, or one that holds nothing but such folders."""
    if _is_marked(folder):
        return True
    marked = False
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            marked = _is_folder(entry) and _is_marked(entry.path)
            if not marked:  # a class of 100,000 images is left at its first one
                break
    return marked


def _is_marked(folder: str) -> bool:
    return any(os.path.lexists(os.path.join(folder, mark)) for mark in OWN_MARKS)


def printable(path: str) -> str:
    """The path as it can be written into a table: a file's name need not be text."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
