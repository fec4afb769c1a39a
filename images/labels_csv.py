"""A table of labels: `path,label` and, if the user likes, `split`, as people and their programs write it.

What labeling programs export is made such a table by exports.py.
"""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from ..base.folder_walk import files_below, printable
from ..base.tables import csv_rows
from ..utils import UserError
from .builtin import Item
from .exports import check_cell, export_rows, local_path, one_hot_rows
from .places import listed, place_of

DELIMITERS = ",;\t|"
# The usual names of the columns, in lower case, the best first.
COLUMNS = {
    "path": "path file filename file_name filepath file_path image image_path image_name image_id img id name "
    "dateiname datei bild",
    "label": "label class class_name classname category target species labels choice klasse",
    "split": "split subset partition",
}
# Columns that a run's label_next.csv has (runs/unlabeled_tables.py): its images were not drawn at random.
ASKED = frozenset(("likely", "disagreement"))
EXPORTS = (".json", ".xml", ".txt")  # of labeling programs, which have paths of their own
UNLABELED = frozenset(("", "nan", "none", "null", "<na>", "na", "n/a", "#n/a", "unlabeled", "unlabelled"))


def table_file(folder: Path, given: str) -> Path:
    """The table that --labels_csv means: of the data set's folder, or of the working directory. Raises UserError."""
    table = next((f for f in (folder / given, Path(os.path.expanduser(given))) if os.path.isfile(f)), None)
    if table is None:
        raise UserError(f"there is no table {given}, neither under {folder} nor here; give --labels_csv a file")
    return table


def items_of_csv(folder: Path, table: Path) -> list[Item]:
    """The images of a table. Raises UserError, which names the table and what to do."""
    lines = _read(table)
    find = _finder(folder, table)
    columns = _columns(table, lines[0] if lines else [])
    asked = bool(lines) and {name.strip().lower() for name in lines[0]} >= ASKED
    items: dict[str, Item] = {}
    missing: list[str] = []
    for number, cells in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in cells):
            continue
        where = f"{table}, row {number}"
        if any(cell.strip() for cell in cells[len(lines[0]) :]):
            raise UserError(f"{where} has {len(cells)} cells under {len(lines[0])} names; put quotes around a comma")
        row = {name: cells[place] if place < len(cells) else "" for name, place in columns.items()}
        file = find(row["path"])
        row = {name: cell.strip() for name, cell in row.items()}
        if file is None:
            missing.append(row["path"])
            continue
        check_cell(row["label"], where)
        item = _item(folder, file, row, where, asked=asked)
        if items.setdefault(item.path, item) != item:
            raise UserError(f"{where}: {item.path} stands there twice, and not alike; remove one")
    if missing:
        names = listed((repr(name) for name in missing), 10)
        raise UserError(
            f"{table}: there is no file {names}; paths are absolute or relative to {folder}; mend or remove these rows"
        )
    if not items:
        raise UserError(f"{table} has no row under its first line, so there are no images; write one for each image")
    return list(items.values())


def _read(table: Path) -> list[list[str]]:
    """The cells of each line, whatever the encoding and the delimiter."""
    try:
        text = _decoded(table.read_bytes())
        exported = export_rows(table, text)
        if exported is not None:
            return exported
        delimiter = max(DELIMITERS, key=re.split(r"[\r\n]", text.lstrip(), maxsplit=1)[0].count)
        rows = list(csv_rows(io.StringIO(text, newline=""), strict=True, delimiter=delimiter))
        named = {name.strip().lower() for name in rows[0]} & set(COLUMNS["label"].split()) if rows else set()
        return rows if named else one_hot_rows(table, rows) or rows
    except UnicodeDecodeError as error:
        byte = f"byte {error.start + 1} is {error.object[error.start]:#x}"
        raise UserError(
            f"{table} can't be read as a CSV table in UTF-8 ({byte}); save it as UTF-8, which spreadsheets call "
            '"CSV UTF-8" or offer beside the file type'
        ) from error
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{table} can't be read as a CSV table in UTF-8 ({error}); write it again") from error


def _decoded(content: bytes) -> str:
    """UTF-8, or what a spreadsheet calls Unicode: UTF-16, which says so in its first two bytes."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    return content.decode("utf-8-sig")


def _columns(table: Path, header: list[str]) -> dict[str, int]:
    """The place of `path`, `label` and, where there is one, of `split`. Raises UserError."""
    names = [name.strip().lower() for name in header]
    found = {
        column: names.index(known[0])
        for column, usual in COLUMNS.items()
        if (known := [name for name in usual.split() if name in names])
    }
    if not {"path", "label"} <= found.keys():
        given = repr(",".join(header))[:100]
        raise UserError(
            f"{table} must start with the line path,label (or path,label,split), not {given}; "
            f"path may also be called {_some('path')}, label {_some('label')}"
        )
    twice = sorted({name for name in names if names.count(name) > 1 and names.index(name) in found.values()})
    if twice:
        raise UserError(f"{table} has two columns {twice[0]!r}; leave one")
    return found


def _some(column: str) -> str:
    """The usual names of a column, as a sentence lists them."""
    return ", ".join(COLUMNS[column].split()[1:7])


def _find(folder: Path, path: str) -> Path | None:
    """The file of a row: as it is written, or with the slashes of Windows, or in the other Unicode form.

    A quotation mark that a person wrote may be part of the name that one of ours (`csv_text`) is not.
    """
    plain = path.strip()
    spellings = [path, plain, plain.replace("\\", "/"), *(unicodedata.normalize(f, plain) for f in ("NFC", "NFD"))]
    spellings.append(f"'{plain}")
    found = (folder / spelling for spelling in spellings if spelling)
    return next((file for file in found if os.path.exists(file) and not os.path.isdir(file)), None)


def _finder(folder: Path, table: Path) -> Callable[[str], Path | None]:
    """Finds the file of a row; one that a labeling program names in its own way also by the end of its path.

    Beside the table too, where Roboflow has its images. A name that several files have names none of them.
    """
    by_name: dict[str, set[str]] = defaultdict(set)

    def find(path: str) -> Path | None:
        found = _find(folder, path) or _find(table.absolute().parent, path)
        if found is not None or not (table.suffix.lower() in EXPORTS or local_path(path) != path):
            return found
        parts = PurePosixPath(local_path(path)).parts
        for start in range(len(parts)):
            if (found := _find(folder, "/".join(parts[start:]))) is not None:
                return found
        if not by_name:
            for image in files_below(folder):
                by_name[_plain_name(image.file)].add(image.file)
        alike = by_name.get(_plain_name(path if not parts else parts[-1]), set())
        return Path(next(iter(alike))) if len(alike) == 1 else None

    return find


def _plain_name(path: str) -> str:
    """A file's name as it is after an upload, which puts _ in the place of what it doesn't like."""
    return re.sub(r"[^\w.-]+", "_", PurePosixPath(path).name)


def _item(folder: Path, file: Path, row: Mapping[str, str], where: str, *, asked: bool) -> Item:
    split = row.get("split", "")
    place = place_of(split) if split else ""
    if place is None:
        raise UserError(f"{where}: the split {split!r} is unknown; use train, val or test")
    label = _label(row["label"])
    if place in ("test", "val") and not label:
        raise UserError(f"{where}: an image of the {place} split needs a label")
    path = os.path.abspath(file)
    if not os.path.isabs(row["path"]) or Path(path).is_relative_to(os.path.abspath(folder)):
        path = os.path.relpath(file, folder)
    known = "" if place == "unlabeled" else label
    return Item(printable(Path(path).as_posix()), str(file), known, place, asked=asked and bool(known))


def _label(cell: str) -> str:
    """The class that a cell names, "" for none; a number that a spreadsheet wrote as 0.0 is 0."""
    if cell.lower() in UNLABELED:
        return ""
    return cell[:-2] if cell.endswith(".0") and cell[:-2].removeprefix("-").isdigit() else cell
