"""Tables as text: straight columns on a screen and in Markdown, and CSV that any reader takes."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfermpl.base.tables import csv_text, text_table

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
    assert list(csv.reader(io.StringIO(csv_text(rows), newline=""))) == rows


def test_csv_keeps_all_digits_and_writes_nothing_for_none() -> None:
    assert csv_text([("a", "b"), (1 / 3, None)]) == "a,b\n0.3333333333333333,\n"
    assert csv_text([]) == ""


def test_a_carriage_return_in_a_file_s_name_ends_no_row() -> None:
    assert csv_text([("a\rb.png", "ant")]) == '"a\rb.png",ant\n'
