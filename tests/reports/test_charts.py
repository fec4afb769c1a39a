"""Charts as markup: what lies where, what is told to those who don't see it, and that names are never markup."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from pages import Page
from transfermpl.reports.charts import MOST_POINTS, WIDTH, Scale, bars, curves, matrix, precision_by_recall
from transfermpl.reports.page import style
from transfermpl.reports.templates import text
from transfermpl.visualization import BLUE, INK, PALETTE, VERMILION, Panel

EVIL = "<script>alert(1)</script>\"'&"
PANEL = Panel("Losses", "loss", [("a_loss", "a", BLUE, "-"), ("b_loss", EVIL, VERMILION, (4, (4, 4)))])


def rows(count: int) -> list[dict[str, object]]:
    return [{"epoch": i + 1, "a_loss": 1.0 / (i + 1), "b_loss": float(i)} for i in range(count)]


def lines_of(page: Page) -> list[dict[str, str]]:
    return [path for path in page.all("path") if path.get("class") == "line" and path["d"] != "M1 4H21"]


@given(st.text())
def test_any_text_is_text(value: str) -> None:
    page = Page(f"<p>{text(value)}</p>")
    assert [tag for tag, _ in page.tags] == ["p"]
    shown = [sign if sign.isprintable() or sign in "\n\t" else "\ufffd" for sign in value]
    assert "".join(page.parts) == "".join(shown).encode("utf-8", "replace").decode()


def test_half_of_a_surrogate_pair_can_be_written() -> None:
    assert text("a\udcff\0<").encode() == "a?\ufffd&lt;".encode()


def test_curves_lie_where_their_values_are() -> None:
    page = Page(curves(PANEL, rows(5)))
    falling, rising = (re.findall(r"[ML]([\d.]+) ([\d.]+)", line["d"]) for line in lines_of(page))
    assert len(falling) == len(rising) == 5
    assert [x for x, _ in falling] == [x for x, _ in rising]
    heights = [float(y) for _, y in rising]
    assert heights == sorted(heights, reverse=True)  # SVG counts downwards
    assert np.allclose(np.diff(heights), heights[1] - heights[0], atol=0.11)
    assert float(falling[0][1]) < float(falling[-1][1])


def test_a_curve_is_told_in_words_and_named_in_a_legend() -> None:
    page = Page(curves(PANEL, rows(5)))
    drawing = page.all("svg")[0]
    assert drawing["role"] == "img"
    assert drawing["aria-label"] == f"a from 1 to 0.2; {EVIL} from 0 to 4"
    assert not page.all("script")
    assert "Losses loss, by epoch" in page.words
    assert EVIL in page.words
    assert Page(curves(Panel("One", "", PANEL.lines[:1]), rows(3))).all("li") == []


def test_gaps_stay_gaps_and_lone_points_are_dots() -> None:
    some: list[dict[str, object]] = [*rows(40)]
    for index in (10, 11, 13, 20):
        some[index]["a_loss"] = None if index % 2 else math.nan
    page = Page(curves(Panel("", "", PANEL.lines[:1]), some))
    assert lines_of(page)[0]["d"].count("M") == 4
    assert len(page.all("circle")) == 1
    assert len(Page(curves(Panel("", "", PANEL.lines[:1]), rows(3))).all("circle")) == 3


def test_a_covered_curve_can_be_seen_through_the_other() -> None:
    same = [row | {"b_loss": row["a_loss"]} for row in rows(20)]
    plain = Panel("", "", [("a_loss", "a", BLUE, "-"), ("b_loss", "b", INK, "-")])
    first, second = (line["style"] for line in lines_of(Page(curves(plain, same))))
    assert "dasharray" not in first
    assert "dasharray" in second
    assert all("dasharray" not in line["style"] for line in lines_of(Page(curves(plain, rows(20)))))


def test_the_last_number_of_an_axis_is_not_cut_off() -> None:
    texts = [t for t in Page(curves(PANEL, rows(200))).all("text") if t["text-anchor"] != "end" or t["x"] == str(WIDTH)]
    assert (texts[-1]["x"], texts[-1]["text-anchor"]) == (str(WIDTH), "end")
    assert all(float(place["x"]) < WIDTH - 10 for place in texts[:-1])


def test_a_long_run_does_not_make_a_large_chart() -> None:
    drawn = curves(PANEL, rows(50_000))
    assert len(drawn) < 2 * 14 * MOST_POINTS + 6000
    assert "a from 1 to 2e−05" in drawn


@pytest.mark.parametrize("some", [[], [{"epoch": 1, "a_loss": math.nan}], [{"epoch": 1, "a_loss": 0.5}]])
@pytest.mark.parametrize("kind", ["plain", "percent", "signed", "log"])
def test_little_or_nothing_to_draw(some: list[dict[str, object]], kind: str) -> None:
    drawn = curves(Panel("t", "y", PANEL.lines, kind), some)
    assert "nan" not in drawn
    assert Page(drawn).all("svg")


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5), st.sampled_from(["plain", "percent", "signed", "log"]))
def test_every_value_has_a_place_on_its_axis(values: list[float], kind: str) -> None:
    values = [abs(value) + 1e-6 for value in values] if kind == "log" else values
    values = [abs(value) % 1 for value in values] if kind == "percent" else values
    scale = Scale(values, kind)
    assert all(-1e-6 <= scale.place(value) <= 1 + 1e-6 for value in values)
    ticks = scale.ticks(6)
    assert len(ticks) <= 7
    assert all(-1e-6 <= scale.place(tick) <= 1 + 1e-6 for tick in ticks)


def test_ticks_are_round() -> None:
    assert Scale([0.0, 1.0], "percent").ticks(6) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert Scale([1, 32], "whole").ticks(7) == [5, 10, 15, 20, 25, 30]
    assert Scale([1, 3], "whole").ticks(7) == [1, 2, 3]
    assert Scale([0.001, 10], "log").ticks(6) == pytest.approx([0.001, 0.01, 0.1, 1, 10])
    assert Scale([-2, 3], "signed").label(-0.5) == "−0.5"
    assert Scale([0, 1], "percent").label(0.25) == "25%"


def test_each_colour_has_a_shade_of_the_page() -> None:
    for index in range(len(PALETTE)):
        assert style().count(f"--c{index}: ") == 3  # light, dark, print


def test_bars_have_the_length_of_their_share() -> None:
    page = Page(bars([("a", 0.5, (0.4, 0.62), "50% of 10"), (EVIL, 1.0, (), "all")], head=("class", "right")))
    assert [bar["style"] for bar in page.all("b")] == ["width:50.0%", "width:100.0%"]
    assert [line["style"] for line in page.all("i")] == ["left:40.0%;width:22.0%"]
    assert "50% of 10" in page.words
    assert EVIL in page.words


def test_a_matrix_counts_and_shades() -> None:
    page = Page(matrix(np.array([[3, 1], [0, 0]]), ["a", EVIL]))
    cells = [cell for cell in page.all("td") if "style" in cell]
    assert [cell["class"] for cell in cells] == ["hit", "miss", "none", "none"]
    assert [cell["style"] for cell in cells] == [f"--share:{share:.3f}" for share in (0.75, 0.25, 0, 0)]
    assert cells[1]["title"] == f"1 of 4 a predicted as {EVIL} (25%)"
    assert page.words.count(EVIL) == 2
    assert isinstance(matrix(np.zeros((1, 1), dtype=int), ["a"]), Markup)


def test_precision_falls_where_others_are_as_probable() -> None:
    true = np.array([True, True, False, True, False])
    page = Page(precision_by_recall(EVIL, true, np.array([0.9, 0.8, 0.7, 0.3, 0.1])))
    drawing = page.all("svg")[0]
    assert drawing["aria-label"] == "precision from 100% to 60%"
    assert "precision, by recall" in page.words
    assert not page.all("script")
