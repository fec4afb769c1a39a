"""The pictures of a search."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from pages import Page
from transfermpl.search import plots
from transfermpl.search.page import write_page
from transfermpl.visualization import VERMILION


@pytest.mark.slow
def test_the_pictures_of_few_and_odd_trials(tmp_path: Path) -> None:
    storage = optuna.storages.InMemoryStorage()
    for count, made in ((0, 1), (1, 1), (6, 4)):
        study = optuna.create_study(storage=storage, direction="maximize")
        for _number in range(count):
            trial = study.ask()
            values = (trial.suggest_float("<b>&ü", 1e-3, 1, log=True), trial.suggest_categorical("c", [True, False, 7]))
            study.tell(trial, values[0])
        for state in (TrialState.FAIL, TrialState.PRUNED):
            study.tell(study.ask(), state=state)
        folder = tmp_path / str(count)
        assert len(plots.draw(folder, study, ["<b>&ü", "c"])) == made
    same = optuna.create_study(storage=storage, direction="maximize")
    same.optimize(lambda trial: 0.0 * trial.suggest_float("x", 0, 1), n_trials=5)
    assert len(plots.draw(tmp_path / "same", same, ["x"])) == 3


NAMES = ("ema", "head", "lr", "steps", "flip")


def some_study(trials: int = 60) -> optuna.Study:
    """A study of numbers and names as choices, ranges and a switch, with pruned and failed trials among others."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=3))
    for number in range(trials):
        trial = study.ask()
        decay = trial.suggest_categorical("ema", [0.9, 0.0, 0.5])
        trial.suggest_categorical("head", ["linear", "hidden", "/a/name/that/is/long.safetensors"])
        rate = trial.suggest_float("lr", 1e-4, 1e-2, log=True)
        trial.suggest_int("steps", 0, 300)
        trial.suggest_categorical("flip", [True, False])
        if number % 5 == 4:
            trial.report(0.3, 1)
            study.tell(trial, state=[TrialState.PRUNED, TrialState.FAIL][number % 2])
        else:
            study.tell(trial, 0.8 - decay / 10 - abs(np.log10(rate / 2e-3)) / 20)
    return study


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The figures of `some_study`, by the names of their files."""
    made: dict[str, Any] = {}
    real = plots.save_figure

    def save(path: Path, figure: Any, title: str) -> Path:
        made[path.name] = figure
        return real(path, figure, title)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save_figure", save)
        assert len(plots.draw(tmp_path_factory.mktemp("plots"), some_study(), NAMES)) == 4
    return made


@pytest.mark.slow
def test_the_orange_line_is_the_best_trial(figures: dict[str, Any]) -> None:
    """Optuna draws the lines in another order than that of the trials where numbers are choices."""
    study = some_study()
    axes = figures["parallel.png"].axes[0]
    (red,) = [line for line in axes.lines if line.get_color() == VERMILION]
    accuracies = [trial.value for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert red.get_ydata()[0] == study.best_value == max(accuracies)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["accuracy", *sorted(NAMES)]
    assert len(axes.collections[0].get_segments()) == len(accuracies)  # none of a pruned or a failed trial
    low, high = axes.get_ylim()
    share_of = dict(zip(sorted(NAMES), (red.get_ydata()[1:] - low) / (high - low), strict=True))
    steps = [trial.params["steps"] for trial in study.trials if trial.state == TrialState.COMPLETE]
    share = (study.best_params["steps"] - min(steps)) / (max(steps) - min(steps))
    assert share_of["steps"] == pytest.approx(share)
    assert share_of["ema"] == pytest.approx([0.0, 0.5, 0.9].index(study.best_params["ema"]) / 2)


@pytest.mark.slow
def test_an_axis_names_its_ends_and_its_choices(figures: dict[str, Any]) -> None:
    labels = {}
    panels = [axes for axes in figures["slices.png"].axes if axes.get_xlabel()]
    for axes in panels:
        labels[axes.get_xlabel()] = {label.get_text() for label in axes.get_xticklabels()}
    assert labels == {
        "ema": {"0.0", "0.5", "0.9"},
        "head": {"linear", "hidden", "/a/na…ensors"},
        "lr": {"0.0001", "0.001", "0.01"},
        "steps": {"0", "150", "300"},
        "flip": {"True", "False"},
    }
    by_name = {axes.get_xlabel(): axes for axes in panels}
    assert by_name["steps"].get_xlim() == (-15, 315)  # all that is searched, not only what was tried
    best = some_study().best_trial
    for name, value in (("steps", best.params["steps"]), ("ema", str(best.params["ema"]))):
        (red,) = [line for line in by_name[name].lines if line.get_color() == VERMILION]
        assert (red.get_xdata()[0], red.get_ydata()[0]) == (value, best.value)


@pytest.mark.slow
def test_importances_are_shares_of_the_variance(figures: dict[str, Any]) -> None:
    axes = figures["importances.png"].axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    widths = [bar.get_width() for bar in axes.patches]
    assert set(names) == set(NAMES)
    assert sum(widths) == pytest.approx(1)
    assert set(names[-2:]) == {"ema", "lr"}  # what the accuracies were made from
    assert "variance" in axes.get_title(loc="left")
    assert "another search" in axes.get_title(loc="left")  # from 48 trials


def test_few_trials_are_doubted() -> None:
    assert plots.few_trials(7).startswith("From 7 complete trials")
    assert plots.few_trials(plots.MANY) == ""


@pytest.mark.slow
def test_drawing_needs_no_display_and_leaves_no_figure(tmp_path: Path) -> None:
    code = """
import sys
sys.path[:0] = sys.argv[2:]
import matplotlib
from pathlib import Path
from test_plots import NAMES, some_study
from pages import Page
from transfermpl.search import plots
from transfermpl.search.page import write_page
before = dict(matplotlib.rcParams)
assert len(plots.draw(Path(sys.argv[1]), some_study(), NAMES)) == 4
from matplotlib import pyplot
assert pyplot.get_fignums() == []
assert {name for name, value in before.items() if matplotlib.rcParams[name] != value} <= {"backend"}
"""
    env = {**os.environ, "MPLBACKEND": "tkagg", "DISPLAY": "nowhere:7"}
    folders = [str(Path(__file__).parent), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *folders], env=env, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.png"))) == 4


def test_the_page_of_a_search_says_the_best_and_doubts_few_trials(tmp_path: Path) -> None:
    study = some_study(10)
    options = {"ema": 0.9, "head": "<b>", "lr": 0.001}
    written = write_page(tmp_path, study.trials, [], "best: trial 3", ["ema", "head", "lr"], options)
    page = Page(written)
    assert "Best: trial 3." in page.words
    assert f"{study.best_trial.number} {study.best_value:.1%}" in page.words
    assert "From 8 complete trials" in page.words
    assert "best_args.json" in page.words
