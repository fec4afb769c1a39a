"""Tables as text: columns that are aligned for a screen or for Markdown, and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from numbers import Number
from typing import Any

from ..utils import shown

# What a spreadsheet takes for a formula; a quotation mark before it stands for itself.
FORMULA = r"[=+\-@\t\r\n＝＋－＠]"
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(inf|nan)", re.IGNORECASE)


def text_table(rows: Sequence[Sequence[object]], *, left: Collection[int] = (0,), markdown: bool = False) -> str:
    """Rows of cells as lines with straight columns; the first row is the head.

    Args:
        rows: as many cells in each; None is an empty cell, any other is written by `str`, as one line.
        left: the columns that are aligned to the left. The others hold numbers and are aligned to the right.
        markdown: with bars between the columns and a rule below the head.
    """
    cells = [["" if cell is None else shown(str(cell)) for cell in row] for row in rows]
    if markdown:
        cells = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        fitted = (
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(fitted)} |" if markdown else "  ".join(fitted).rstrip()

    lines = [line(row) for row in cells]
    if markdown:
        rule = ["-" * width if column in left else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
        lines.insert(1, line(rule))
    return "\n".join(lines)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows of cells as CSV: a line each, ended by a line feed on every system; None is an empty cell.

    Text that a spreadsheet would calculate gets a quotation mark, which `csv_rows` takes away.
    """
    return "".join(map(_csv_line, rows))


def _csv_line(row: Iterable[object]) -> str:
    # Python quotes a lone carriage return, which file names may hold, only where it is part of the line's end.
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(
        cell if cell is None or isinstance(cell, Number) else no_formula(str(cell)) for cell in row
    )
    return text.getvalue().removesuffix("\r\n") + "\n"


def no_formula(cell: str) -> str:
    """The text of a cell as no spreadsheet calculates it; numbers stay numbers."""
    return f"'{cell}" if re.match(f"'*{FORMULA}", cell) and not NUMBER.fullmatch(cell) else cell


def csv_rows(lines: Iterable[str], **dialect: Any) -> Iterator[list[str]]:
    """The rows of a CSV file with the texts that were given to `csv_text`; dialect: as `csv.reader` takes it."""
    for row in csv.reader(lines, **dialect):
        yield [cell[1:] if re.match(f"'+{FORMULA}", cell) else cell for cell in row]


def number_of(count: int, one: str, many: str = "") -> str:
    """How many there are of what: `1 file is`, `2 files are`; many: of several, where that is not `one` and an s."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def percent(fraction: float) -> str:
    """A number in [0, 1] as percent with one digit behind the point."""
    return f"{100 * fraction:.1f}%"
