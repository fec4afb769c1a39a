"""Every picture is a whole PNG of a plausible size, on plain and on extreme input, and pyplot is never needed."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from transfermpl import visualization
from transfermpl.visualization import draw_comparison, draw_confusion, draw_curves, draw_reliability, draw_samples

ROOT = Path(visualization.__file__).parent


def png_size(path: Path) -> tuple[int, int]:
    """Width and height; also checks that the file is whole."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def epochs(count: int, *, switch: bool = False) -> visualization.Rows:
    rng = np.random.default_rng(count)
    models = ("model_1", "model_2") if switch else ("teacher", "student")
    rows: visualization.Rows = []
    for epoch in range(1, count + 1):
        row: dict[str, float | int | str | None] = {"epoch": epoch, "step": 10 * epoch}
        row["teacher"] = models[epoch % 2] if switch else models[0]
        row["supervised_loss"], row["total_loss"] = 1 / epoch, 2 / epoch
        row["student_loss"] = None if epoch == 1 else 1.5 / epoch
        row["pseudo_label_accuracy"], row["mask_rate"], row["agreement"] = rng.random(3).tolist()
        row["feedback_h"], row["feedback_ratio"] = float(rng.normal(0, 1e-3)), float(rng.random())
        for model in models:
            row[f"val_accuracy_{model}"], row[f"learning_rate_{model}"] = float(rng.random()), 1e-3
        rows.append(row)
    return rows


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(("count", "switch"), [(1, False), (30, True), pytest.param(300, True, marks=pytest.mark.slow)])
def test_curves_of_any_length(tmp_path: Path, count: int, switch: bool) -> None:
    path = draw_curves(tmp_path / "graphs.png", epochs(count, switch=switch), title="a run")
    width, height = png_size(path)
    assert path == tmp_path / "graphs.png"
    assert 1200 < width < 1700
    assert 800 < height < 1300


def test_the_strip_of_teachers_is_there_only_when_roles_switch(tmp_path: Path) -> None:
    kept = ("epoch", "teacher", "total_loss")
    rows: list[visualization.Rows] = [
        [{name: row[name] for name in kept} for row in epochs(4, switch=switch)] for switch in (False, True)
    ]
    alone, switched = (png_size(draw_curves(tmp_path / "a.png", some, title="")) for some in rows)
    assert switched[1] > alone[1] + 50
    assert visualization._teachers([{"teacher": ""}, {"teacher": None}, {}]) == {}


def test_panels_without_data_are_left_out_and_the_figure_closes_up(tmp_path: Path) -> None:
    rows = epochs(5)
    kept = ("epoch", "supervised_loss", "val_accuracy_teacher")
    fewer: visualization.Rows = [{name: row[name] for name in kept} for row in rows]
    assert [panel.title for panel in visualization.curve_panels(fewer)] == ["Losses", "Accuracy"]
    width, height = png_size(draw_curves(tmp_path / "g.png", fewer, title=""))
    assert height < width / 3


def test_hidden_labels_are_named_only_where_they_are_used() -> None:
    def titles(rows: visualization.Rows) -> str:
        return " ".join(panel.title for panel in visualization.curve_panels(rows))

    assert "uses hidden labels" in titles(epochs(3))
    assert "uses hidden labels" not in titles([row | {"pseudo_label_accuracy": None} for row in epochs(3)])


def test_no_rows_empty_cells_and_non_finite_values_are_gaps(tmp_path: Path) -> None:
    rows: visualization.Rows = [
        {"epoch": 1, "total_loss": math.nan, "feedback_ratio": 0.0, "mask_rate": "", "feedback_h": math.inf},
        {"epoch": 2, "total_loss": 1.0, "feedback_ratio": -1.0, "mask_rate": None, "feedback_h": 1e-3},
    ]
    assert [panel.title.split()[0] for panel in visualization.curve_panels(rows)] == ["Losses", "Feedback"]
    for some in (rows, rows[:1], []):
        png_size(draw_curves(tmp_path / "graphs.png", some, title="gaps"))


def test_lone_points_get_a_marker() -> None:
    long = np.ones(100)
    long[[49, 51]] = np.nan
    assert visualization._marked(long) == [50]
    assert visualization._marked(np.ones(3)) == [0, 1, 2]


def test_a_model_has_one_color_in_all_panels() -> None:
    rows: visualization.Rows = [{"learning_rate_student": 1.0, "val_accuracy_teacher": 0.5, "val_accuracy_student": 1}]
    found = {(line[1].split(",")[0], line[2]) for panel in visualization.curve_panels(rows) for line in panel.lines}
    assert found == {("teacher", visualization.BLUE), ("student", visualization.VERMILION)}


@pytest.mark.parametrize("count", [1, 5, *(pytest.param(many, marks=pytest.mark.slow) for many in (2, 10, 102))])
def test_confusion_of_any_size(tmp_path: Path, count: int) -> None:
    matrix = np.random.default_rng(0).integers(0, 20, (count, count))
    width, height = png_size(draw_confusion(tmp_path / "CM.png", matrix, [f"c{i}" for i in range(count)], title="t"))
    assert width > 1.5 * height
    assert 700 < width < 3500


def test_confusion_with_difficult_names_and_empty_rows(tmp_path: Path) -> None:
    names = ["$5_note$", "y_$", "\\frac{", "花の名前", "two\nlines", "n" * 300, "\udcff", ""]
    matrix = np.eye(8, dtype=np.int64) * 123456
    matrix[3] = 0
    for some in (matrix, 0 * matrix):
        png_size(draw_confusion(tmp_path / "CM.png", some, names, title="$\\broken_"))


def test_names_are_cut_in_their_middle_since_their_ends_tell_them_apart() -> None:
    assert visualization.plain("x" * 24) == "x" * 24
    assert visualization.plain("x" * 11 + "." + "y" * 13) == "x" * 11 + "…" + "y" * 12
    assert visualization.plain("a\n b  c\t\u202e") == "a\\n b c\\t\\u202e"


def test_zero_and_hundred_percent_mean_none_and_all() -> None:
    shares = (0, 0.001, 0.5, 0.999, 1, math.nan)
    assert [visualization._percent(share) for share in shares] == ["0", "<1", "50", ">99", "100", ""]


def test_a_matrix_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 classes"):
        draw_confusion(tmp_path / "CM.png", np.eye(2), ["a", "b", "c"], title="")


@pytest.mark.parametrize("side", [8, 32, 224])
def test_samples_of_any_size_and_several_draws(tmp_path: Path, side: int) -> None:
    images = np.random.default_rng(0).random((4, 3, side, side)).astype(np.float32)
    one = png_size(draw_samples(tmp_path / "s.png", images, images, images, ["a", "b", "$c_", "d" * 99], title=""))
    draws = np.stack([images] * 3, axis=1)
    three = png_size(draw_samples(tmp_path / "s.png", images, images, draws, list("abcd"), title=""))
    assert three[1] > one[1] + 150


def test_samples_of_points(tmp_path: Path) -> None:
    points = np.random.default_rng(0).random((9, 2))
    draws = np.stack([points] * 2, axis=1)
    width, height = png_size(draw_samples(tmp_path / "s.png", points, points, draws, ["a", "b", "c"] * 3, title="p"))
    assert width > height > 200


def test_comparison(tmp_path: Path) -> None:
    path = draw_comparison(tmp_path / "c.png", ["a", "b_$", "c"], [[0.7, 0.72, 0.71], [0.8], [math.nan]], title="t")
    width, height = png_size(path)
    assert 800 < width < 1300
    assert 150 < height < 400


def test_intervals_of_two_seeds_end_where_accuracies_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[float, float]] = []

    def paint(path: Path, size: tuple[float, float], title: str, draw: Callable[[Any], None]) -> Path:
        figure = Figure(size)
        draw(figure)
        limits.extend(axes.get_xlim() for axes in figure.axes)
        return path

    monkeypatch.setattr(visualization, "paint", paint)
    wide = [(0.0, [math.nan] * 2), (0.1, [-1.2, 1.4])]
    draw_comparison(tmp_path / "c.png", ["a", "b"], [[0.9, 0.5], [0.2, 0.9]], title="t", differences=wide)
    assert limits == [(0, 100), (-100, 100)]


def test_comparison_beside_its_differences(tmp_path: Path) -> None:
    accuracies, nan = [[0.7, 0.72], [0.8, 0.79], [0.6, 0.75]], [math.nan, math.nan]
    differences = [(0.0, [0.0, 0.0]), (0.085, [0.02, 0.15]), (-0.035, [-0.2, 0.13])]
    alone = png_size(draw_comparison(tmp_path / "a.png", ["a", "b", "c"], accuracies, title="t"))
    beside = draw_comparison(tmp_path / "b.png", ["a", "b", "c"], accuracies, title="t", differences=differences)
    assert png_size(beside)[0] > alone[0] + 300
    assert png_size(beside)[1] == pytest.approx(alone[1], abs=20)
    one_seed = [(0.0, nan), (0.1, nan)]
    assert draw_comparison(tmp_path / "c.png", ["a", "$b_"], [[0.7], [0.8]], title="t", differences=one_seed).is_file()


def test_a_failing_draw_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    path = draw_comparison(tmp_path / "c.png", ["a"], [[0.5, 0.6]], title="old")
    before = path.read_bytes()

    def half_written(self: Figure, target: Path, **_: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half_written)
    with pytest.raises(OSError, match="disk full"):
        draw_comparison(path, ["b"], [[0.1]], title="new")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.png"]


def test_equal_input_gives_equal_bytes_whatever_the_users_style(tmp_path: Path) -> None:
    import matplotlib

    rows: visualization.Rows = [{"epoch": 1, "total_loss": 1.0}, {"epoch": 2, "total_loss": 0.5}]
    first = draw_curves(tmp_path / "1.png", rows, title="t").read_bytes()
    with matplotlib.rc_context({"lines.linewidth": 9, "text.color": "red"}):
        second = draw_curves(tmp_path / "2.png", rows, title="t").read_bytes()
        assert matplotlib.rcParams["lines.linewidth"] == 9
    assert first == second


@pytest.mark.slow
def test_neither_pyplot_nor_an_early_import(tmp_path: Path) -> None:
    code = """
import sys
import numpy as np
from pathlib import Path
from typing import Any
from transfermpl import visualization as v
assert "matplotlib" not in sys.modules
out = Path(sys.argv[1])
image = np.zeros((1, 3, 8, 8))
v.draw_curves(out / "a.png", [{"epoch": 1, "total_loss": 1.0}], title="t")
v.draw_confusion(out / "b.png", np.eye(2), ["a", "b"], title="t")
v.draw_samples(out / "c.png", image, image, image, ["a"], title="t")
v.draw_comparison(out / "d.png", ["a"], [[0.5, 0.6]], title="t")
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True, timeout=60)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("models", [["student"], ["teacher", "student", "ensemble"]])
def test_reliability_before_and_after_with_bins_that_hold_no_image(tmp_path: Path, models: list[str]) -> None:
    nan = np.full(9, np.nan)
    found = {"confidence": np.append(nan, 0.95), "accuracy": np.append(nan, 0.5), "count": np.arange(10) // 9 * 7}
    before = dict.fromkeys(models, found | {"ece": 0.45})
    after = dict.fromkeys(models, found | {"confidence": np.append(nan, 0.91), "ece": 0.41})
    path = draw_reliability(tmp_path / "reliability.png", before, after, title="<b>$x$</b>")
    assert png_size(path)[0] > 380 * len(models)
    assert (
        path.read_bytes() != draw_reliability(tmp_path / "other.png", before, before, title="<b>$x$</b>").read_bytes()
    )
