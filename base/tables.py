"""Tables as text: columns that are aligned for a screen or for Markdown, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Sequence


def text_table(rows: Sequence[Sequence[object]], *, left: Collection[int] = (0,), markdown: bool = False) -> str:
    """Rows of cells as lines with straight columns; the first row is the head.

    Args:
        rows: as many cells in each; None is an empty cell, any other is written by `str`.
        left: the columns that are aligned to the left. The others hold numbers and are aligned to the right.
        markdown: with bars between the columns and a rule below the head.
    """
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
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
    """Rows of cells as CSV: a line each, ended by a line feed on every system; None is an empty cell."""
    return "".join(map(_csv_line, rows))


def _csv_line(row: Iterable[object]) -> str:
    # Python quotes a lone carriage return, which file names may hold, only where it is part of the line's end.
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(row)
    return text.getvalue().removesuffix("\r\n") + "\n"


def percent(fraction: float) -> str:
    """A number in [0, 1] as percent with one digit behind the point."""
    return f"{100 * fraction:.1f}%"
