"""The report on views: what it measures, what it leaves, and what it must not touch."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from runs import Outcome, run, same
from transfermpl import args
from transfermpl.base.metrics import wilson_interval
from transfermpl.comparison import view_report
from transfermpl.comparison.view_report import overlap, verdict
from transfermpl.data import folds_of
from transfermpl.features.sources import FrozenSource
from transfermpl.runs import run as experiment
from transfermpl.runs.context import make_context
from transfermpl.runs.prepare import prepare_views

LINE = ("--name", "x", "--view_report", "--data_dir", "digits", "--num_labels", 30, "--num_workers", 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = run(*LINE, "--views", "pixels", "gradients", "cnn", cwd=tmp_path_factory.mktemp("made"))
    assert outcome.code == 0, outcome.err
    return outcome


def left(outcome: Outcome, name: str = "x") -> dict[str, Any]:
    return json.loads((outcome.folder(name) / "view_report.json").read_text(encoding="utf-8"))


# --- measuring --------------------------------------------------------------------------------------------------------


def test_the_overlap_of_errors_is_counted_beside_chance_and_kappa() -> None:
    random = np.random.default_rng(0)
    first, second = random.random(200) < 0.3, random.random(200) < 0.5
    second |= first & (random.random(200) < 0.5)
    found = overlap(first, second)
    assert found["both_wrong"] + found["only_first_wrong"] == first.sum()
    assert found["both_wrong"] + found["only_second_wrong"] == second.sum()
    assert found["both_wrong_by_chance"] == pytest.approx(first.sum() * second.sum() / 200)
    assert found["kappa"] == pytest.approx(cohen_kappa_score(first, second))
    assert overlap(first, first)["kappa"] == pytest.approx(1)
    assert overlap(first, ~first)["both_wrong"] == 0
    for constant in (np.zeros(200, dtype=bool), np.ones(200, dtype=bool)):
        assert overlap(first, constant)["kappa"] is None


def test_no_image_is_judged_by_who_learned_it_and_the_test_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    options = args.make({"name": "x", "view_report": True, "views": ["pixels", "gradients"], "num_labels": 30,
                         "cache": False, "num_workers": 0, "device": "cpu", "unfreeze": None})  # fmt: skip
    dataset = experiment.find_dataset(options.data)
    split = experiment.split_dataset(dataset, options.data, 0)
    asked, calls = [], []

    def look(features: np.ndarray, labels: np.ndarray, held_out: np.ndarray) -> np.ndarray:
        calls.append(({row.tobytes() for row in features}, {row.tobytes() for row in held_out}))
        assert len(labels) == len(features)
        return np.zeros((len(held_out), 10))

    inputs = FrozenSource.inputs

    def watch(self: FrozenSource, rows: np.ndarray) -> Any:
        asked.append(rows)
        return inputs(self, rows)

    monkeypatch.setattr(view_report, "_probabilities", look)
    monkeypatch.setattr(FrozenSource, "inputs", watch)
    views = prepare_views(options, make_context(options.run, dataset, split)).each
    view_report.held_out_predictions(views, dataset, split, folds_of(dataset, split, 3, 0))
    assert len(calls) == 2 * 3
    assert not any(learned & judged for learned, judged in calls)
    assert [sum(len(judged) for _, judged in calls[i : i + 3]) for i in (0, 3)] == [30, 30]
    assert np.isin(np.concatenate(asked), split.labeled).all()


@pytest.mark.slow
def test_a_view_that_sees_the_class_is_told_from_one_that_does_not(tmp_path: Path) -> None:
    for name, colour in {"red": (220, 40, 40), "green": (40, 220, 40), "blue": (40, 40, 220)}.items():
        folder = tmp_path / "d" / name
        folder.mkdir(parents=True)
        random = np.random.default_rng(sum(colour) + colour[0])
        for index in range(8):  # grey ramps that a histogram of gradients can't tell apart
            pixels = np.array(colour) + random.normal(0, 3, (16, 16, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    line = ("--name", "x", "--view_report", "--views", "pixels", "gradients", "--num_labels", 12, "--num_workers", 0)
    outcome = run(*line, "--data_dir", "d", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    pixels, gradients = (view["accuracy"] for view in left(outcome)["views"])
    assert pixels == 1.0
    assert gradients < 0.8


# --- saying -----------------------------------------------------------------------------------------------------------


def pair(first: str, second: str, right: int, both: int, kappa: float | None = 0.2) -> dict[str, Any]:
    return {"views": [first, second], "accuracy": right / 1000, "ci95": wilson_interval(right, 1000),
            "both_wrong": both,
            "both_wrong_by_chance": 20.0, "only_first_wrong": 3, "only_second_wrong": 4, "kappa": kappa}  # fmt: skip


def told(*pairs: dict[str, Any], **accuracies: int) -> str:
    views = [{"view": n, "accuracy": k / 1000, "ci95": wilson_interval(k, 1000)} for n, k in accuracies.items()]
    ranked = sorted(pairs, key=view_report.worth, reverse=True)
    return verdict({"views": views, "pairs": ranked, "labeled": 1000})


def test_the_verdict_names_the_pair_whose_mean_is_best() -> None:
    text = told(pair("a", "b", 900, 50), pair("a", "c", 800, 10), a=850, b=840, c=500)
    assert text.startswith("a and b are the most sufficient and different of the pairs: alone they are right on 85.0%")
    assert "no proof" not in text
    assert "one other pair lies" in told(pair("a", "b", 900, 50), pair("a", "c", 895, 10), a=850, b=840, c=830)
    assert told(pair("a", "b", 900, 50), pair("a", "c", 900, 10), a=850, b=840, c=830).startswith("a and c")


def test_the_verdict_warns_of_a_pair_that_gains_nothing() -> None:
    assert "teach each other little" in told(pair("a", "b", 900, 50, 0.8), a=850, b=840)
    assert "teach each other little" not in told(pair("a", "b", 900, 50, None), a=850, b=840)
    assert "may teach it wrong" in told(pair("a", "b", 800, 50), a=850, b=440)
    assert "the only pair" in told(pair("a", "b", 900, 50), a=850, b=840)


# --- what is left -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_the_report_leaves(made: Outcome) -> None:
    files = {path.name for path in made.folder().iterdir()}
    assert files == {"view_report.json", "view_report.csv", "view_report.png", "report.html", "commandline_args.txt",
                     "bad_files.txt", "run.log", "written.txt"}  # fmt: skip
    summary = left(made)
    assert [view["view"] for view in summary["views"]] == ["pixels", "gradients", "cnn"]
    assert len(summary["pairs"]) == 3
    assert summary["labeled"] == 30
    for found in (*summary["views"], *summary["pairs"]):
        assert found["ci95"] == wilson_interval(round(30 * found["accuracy"]), 30)
    means = [found["accuracy"] for found in summary["pairs"]]
    assert means == sorted(means, reverse=True)
    with (made.folder() / "view_report.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["second"]) for row in rows] == [False] * 3 + [True] * 3
    assert [float(row["accuracy"]) for row in rows[3:]] == means
    with Image.open(made.folder() / "view_report.png") as picture:
        assert min(picture.size) > 200
    page = (made.folder() / "report.html").read_text(encoding="utf-8")
    assert "--view_report" in page
    assert "data:image/png" in page
    for text in (made.out, page):
        assert summary["verdict"] in text


@pytest.mark.slow
def test_the_same_report_comes_again_and_another_seed_gives_another(made: Outcome) -> None:
    views = ("--views", "pixels", "gradients", "cnn")
    assert run(*LINE, *views, "--overwrite", cwd=made.cwd).code == 0
    again = left(made)
    clock = ("seconds", "command", "peak_memory_bytes")
    assert run(*LINE, *views, "--name", "y", "--seed", 1, cwd=made.cwd).code == 0
    assert same(
        {k: v for k, v in again.items() if k not in clock}, {k: v for k, v in left(made).items() if k not in clock}
    )
    assert left(made, "y")["views"] != again["views"]


@pytest.mark.slow
def test_odd_names_one_view_and_two_of_one_name(tmp_path: Path) -> None:
    outcome = run(*LINE, "--views", "pixels", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "pixels is the only view" in outcome.out
    assert run(*LINE, "--views", "cnn", "cnn", "--name", "y", cwd=tmp_path).code == 0
    assert [view["view"] for view in left(outcome, "y")["views"]] == ["cnn", "cnn-2"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (("--num_labels", 10), "needs two labeled images of each class"),
        (("--views", "pixels", "gradient"), "did you mean gradients"),
        (("--resume",), "exclude each other"),
        (("--model_name", "cnn"), "exclude each other"),
    ],
)
def test_what_is_wrong_is_said_before_a_folder_is_made(
    tmp_path: Path, line: tuple[object, ...], complaint: str
) -> None:
    outcome = run(*LINE, "--views", "pixels", "gradients", *line, cwd=tmp_path)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert not (tmp_path / "results").exists()


def test_an_option_that_it_does_not_read_is_said(tmp_path: Path) -> None:
    outcome = run(*LINE, "--views", "pixels", "gradients", "--max_lr", 0.1, "--data_dir", "absent", cwd=tmp_path)
    assert "--max_lr: not used by --view_report" in outcome.err
