"""`--only_new`: which rows of an earlier table of predictions still hold.

The last column of a table is each row's fingerprint: the first half is of the call (the checkpoint, the columns, the
least probability, the folder), the second one of the file (its size and time).
"""

from __future__ import annotations

import csv
import os
import zipfile
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from ..base.tables import csv_rows
from ..utils import UserError, key

FINGERPRINT = "fingerprint"


def of_call(checkpoint: Path, *parts: object) -> str:
    """The half of a fingerprint that all rows of a call share."""
    # Of what is in the archive: its folder is named by the file that it was written to first, by chance.
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            inside = [(one.filename.partition("/")[2], one.CRC) for one in archive.infolist()]
    except zipfile.BadZipFile as error:
        raise UserError(f"{checkpoint} can't be read as a checkpoint ({error}); give another --load_path") from error
    return _short(sorted(one for one in inside if one[0].startswith("data")), *parts)


def of_file(state: str) -> str:
    """The half that depends on the file."""
    return _short(state)


def _short(*parts: object) -> str:
    return f"{key(*parts):016x}"[:8]


def earlier_table(first: Path, header: Sequence[str], call: str, *, numbered: bool) -> Path | None:
    """The last table of such a call, of this name or (`numbered`) the next numbers; None where there is none."""
    found = None
    for number in count(1):
        path = first if number == 1 else first.with_stem(f"{first.stem}-{number}")
        if not os.path.lexists(path):
            return found
        row = next(rows_of(path, header), None)
        if row is not None and row[-1].startswith(call):
            found = path
        if not numbered:
            return found
    raise AssertionError


def rows_of(path: Path, header: Sequence[str]) -> Iterator[list[str]]:
    """The rows of a table with this header, without it; none of any other file. Raises UserError for a damaged one."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv_rows(file)
            if next(rows, None) != [*header]:
                return
            for row in rows:
                if len(row) != len(header):
                    raise ValueError(f"{len(row)} cells in a row")
                yield row
    except (OSError, ValueError, csv.Error) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> UserError:
    """What is said of an earlier table that can't be read to its end."""
    return UserError(f"{path} is no table that can be added to ({error}); give another --out, or leave out --only_new")
