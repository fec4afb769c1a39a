"""Tables as text: straight columns on a screen and in Markdown, and CSV that any reader takes."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfermpl.base.tables import csv_rows, csv_text, text_table

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?")
ROWS = [("class", "images", "note"), ("a", 12, None), ("long name", 3, "rare")]


def test_the_first_column_stands_to_the_left_and_numbers_to_the_right() -> None:
    assert text_table(ROWS, left=(0, 2)).splitlines() == [
        "class      images  note",
        "a              12",
        "long name       3  rare",
    ]
    assert text_table([("name", "n"), ("x", 100)]).splitlines() == ["name    n", "x     100"]


def test_markdown_has_bars_and_a_rule_that_says_how_columns_are_aligned() -> None:
    assert text_table(ROWS, left=(0, 2), markdown=True).splitlines() == [
        "| class     | images | note |",
        "| --------- | -----: | ---- |",
        "| a         |     12 |      |",
        "| long name |      3 | rare |",
    ]


def test_a_bar_in_a_cell_is_no_column_of_markdown() -> None:
    line = text_table([("name",), ("a|b",)], markdown=True).splitlines()[-1]
    assert line == "| a\\|b |"
    assert text_table([("name",), ("a|b",)]).splitlines()[-1] == "a|b"


def test_rows_of_unlike_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        text_table([("a", "b"), ("c",)])


def test_a_head_alone_and_nothing_at_all() -> None:
    assert text_table([("a", "b")]) == "a  b"
    assert text_table([]) == ""


@given(st.lists(st.lists(st.text("ab ,\"'\n\r|;ü", max_size=5), min_size=2, max_size=2)))
def test_csv_is_read_back_as_it_was(rows: list[list[str]]) -> None:
    assert list(csv_rows(io.StringIO(csv_text(rows), newline=""))) == rows


FORMULAS = ("=1+1", "+cmd|' /C calc'!A0", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "'=1", "''@", "-", "+-1")


@pytest.mark.parametrize("text", FORMULAS)
def test_a_spreadsheet_calculates_no_text(text: str) -> None:
    written = csv_text([(text, f"not {text}", Path(text))])
    assert next(csv.reader(io.StringIO(written, newline=""))) == [f"'{text}", f"not {text}", f"'{Path(text)}"]
    assert next(csv_rows(io.StringIO(written, newline="")))[0] == text


@pytest.mark.parametrize("number", [-0.5, -3, np.float32(-0.5), "-0.500000", "-1e-05", "+3", "-inf", "nan", True])
def test_numbers_stay_numbers(number: object) -> None:
    assert csv_text([(number,)]) == f"{number}\n"


@given(st.lists(st.text("'=+-@\t\r\n1.e \0\u202e＝a\"", max_size=6), min_size=1))
def test_texts_from_outside_are_read_back_as_they_were(cells: list[str]) -> None:
    written = csv_text([cells])
    assert next(csv_rows(io.StringIO(written, newline=""))) == cells
    for cell in next(csv.reader(io.StringIO(written, newline=""))):
        assert cell[:1] not in ("=", "+", "-", "@", "\t", "\r", "\n", "＝") or NUMBER.fullmatch(cell)


def test_a_cell_of_a_table_is_one_line() -> None:
    rows = [("name", "n"), ("a\nb\r\t\0\x1b[2J\u202e\u2028", 1), ("日本 é\u3000x", 2)]
    head, evil, fine = text_table(rows).split("\n")
    assert evil == "a\\nb\\r\\t\\x00\\x1b[2J\\u202e\\u2028  1"
    assert fine.startswith("日本 é\u3000x ")
    assert text_table(rows, markdown=True).count("\n") == 3


def test_csv_keeps_all_digits_and_writes_nothing_for_none() -> None:
    assert csv_text([("a", "b"), (1 / 3, None)]) == "a,b\n0.3333333333333333,\n"
    assert csv_text([]) == ""


def test_a_carriage_return_in_a_file_s_name_ends_no_row() -> None:
    assert csv_text([("a\rb.png", "ant")]) == '"a\rb.png",ant\n'
