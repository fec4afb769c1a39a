"""What a command wrote into its folder, file by file, so that nothing else is ever removed from there.

`written.txt` lies in each folder that a command makes: a line a file, with the digest of a table or a text, by which
one that a person has edited since is known. A file that grows, or that nobody edits, has none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

RESULTS = Path("results")  # where the folders of all commands lie
LIST = "written.txt"
OPTIONS = "commandline_args.txt"  # all options of the command
EDITABLE = (".csv", ".txt", ".json", ".html")
DEPTH = 5  # folders that a file may lie below that of its command: seed-0/<method>/checkpoints/best.pt
ANY = "-"  # in a digest's place

_noted: set[Path] = set()  # without a digest, in this process: a checkpoint is written a thousand times


def begin_list(folder: Path) -> None:
    """Make the list of a new folder."""
    forget(folder)
    (folder / LIST).touch()


def note(path: Path, content: Path | None = None, *, grows: bool = False) -> None:
    """Note a file that lies below a command's folder, which may not be there yet; elsewhere this does nothing.

    content: a file with what it will hold, which is its own where there is none; grows: it is appended to.
    """
    path = path.absolute()
    folder = next((parent for parent in list(path.parents)[:DEPTH] if (parent / LIST).is_file()), None)
    if folder is None or path in _noted:
        return
    digest = ANY
    if path.suffix in EDITABLE and not grows:
        digest = _digest(content or path)
    else:
        _noted.add(path)
    with contextlib.suppress(OSError), (folder / LIST).open("a", encoding="utf-8", newline="\n") as file:
        file.write(f"{digest} {path.relative_to(folder).as_posix()}\n")


def written_in(folder: Path) -> dict[str, set[str]]:
    """The digests with which each file was written, by its path below the folder."""
    found: dict[str, set[str]] = {}
    for line in (folder / LIST).read_text(encoding="utf-8", errors="replace").split("\n"):
        digest, _, name = line.partition(" ")
        if name and ".." not in Path(name).parts and not Path(name).is_absolute():
            found.setdefault(name, set()).add(digest)
    return found


def noted_in(folder: Path) -> dict[str, bool]:
    """The files that were noted below a folder, by their paths below it, and whether each is still there."""
    top = next((parent for parent in (folder, *folder.parents) if (parent / LIST).is_file()), None)
    paths = [] if top is None else [top / name for name in written_in(top)]
    return {path.relative_to(folder).as_posix(): os.path.isfile(path) for path in paths if path.is_relative_to(folder)}


def is_as_written(path: Path, digests: set[str]) -> bool:
    """Whether a file holds what was written into it."""
    return ANY in digests or _digest(path) in digests


def forget(folder: Path) -> None:
    """The files of this folder are gone: what is written there from now on is noted again."""
    _noted.difference_update([path for path in _noted if folder.absolute() in path.parents])


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
