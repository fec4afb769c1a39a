"""The pictures of a search: its history, which options mattered, and where the good values lie.

Optuna draws all but the history, where its own lacks the pruned and the failed trials and the present options. Its
plots come without a size that fits many options and with labels over each other, so both are set here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from ..visualization import BLUE, FAINT, INK, ORANGE, VERMILION, paint, plain, save_figure, style
from .storage import best_of

MANY = 50  # complete trials from which importances are more than a hint
ENOUGH = 4  # complete trials; fewer show nothing about what mattered


def draw(folder: Path, study: optuna.Study, searched: Sequence[str]) -> list[Path]:
    """Draw history.png, importances.png, parallel.png and slices.png, where there are enough trials; returns paths."""
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    made = [draw_history(folder / "history.png", trials, title=folder.name)]
    names = [name for name in searched if len({repr(trial.params.get(name)) for trial in complete}) > 1]
    if len(complete) >= ENOUGH and names:
        if len({trial.value for trial in complete}) > 1:
            made.append(draw_importances(folder / "importances.png", study, names, title=folder.name))
        made.append(draw_parallel(folder / "parallel.png", study, names, title=folder.name))
        made.append(draw_slices(folder / "slices.png", study, names, title=folder.name))
    return made


def draw_history(path: Path, trials: Sequence[FrozenTrial], *, title: str) -> Path:
    """Every trial's accuracy by its number, and the best so far."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED and trial.value is not None]
    failed = [trial.number for trial in trials if trial.state == TrialState.FAIL]

    def fill(figure: Any) -> None:
        axes = figure.subplots()
        if pruned:
            axes.scatter([t.number for t in pruned], [t.value for t in pruned], s=14, color=FAINT, marker="x",
                         linewidth=0.9, label=f"{len(pruned)} pruned (value when pruned)")  # fmt: skip
        axes.scatter([t.number for t in complete], [t.value for t in complete], s=16, color=BLUE, alpha=0.75,
                     linewidth=0, label=f"{len(complete)} complete")  # fmt: skip
        if complete:
            best = np.maximum.accumulate([trial.value or 0.0 for trial in complete])
            ends = [*(trial.number for trial in complete), max(trial.number for trial in trials)]
            axes.step(ends, [*best, best[-1]], where="post", color=VERMILION, label=f"best so far: {best[-1]:.1%}")
        first = next((t for t in complete if t.user_attrs.get("first")), None)
        if first is not None:
            axes.axhline(first.value, color=INK, linewidth=0.9, linestyle=(0, (4, 3)),
                         label=f"the present options: {first.value:.1%}")  # fmt: skip
        if failed:
            axes.plot(failed, np.zeros(len(failed)), "|", color=ORANGE, markersize=9, clip_on=False,
                      transform=axes.get_xaxis_transform(), label=f"{len(failed)} failed")  # fmt: skip
        _percent_axis(axes.yaxis)
        axes.set(xlabel="trial", ylabel="accuracy", title="Every trial's accuracy")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))

    return paint(path, (9.6, 3.8), title, fill)


def draw_importances(path: Path, study: optuna.Study, names: Sequence[str], *, title: str) -> Path:
    """Each option's share of the variance of the accuracies (fANOVA, Hutter et al. 2014).

    Optuna's default, PED-ANOVA, says what the best tenth of the trials needs: of the usual 100 trials, half of them
    pruned, these are five.
    """

    count = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    caution = f"\n{few_trials(count)}" if few_trials(count) else ""

    def plot() -> None:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        axes: Any = optuna.visualization.matplotlib.plot_param_importances(study, evaluator, list(names))
        axes.set_title("Share of the variance of the accuracies that each option explains" + caution, fontsize=10)
        axes.set(xlabel="", ylabel="")
        axes.get_legend().remove()

    return _paint_by_optuna(path, (7.4, 0.9 + 0.3 * len(names)), title, plot)


def few_trials(complete: int) -> str:
    """A caution where importances come from few complete trials; "" where they don't."""
    return f"From {complete} complete trials, of which another search may say otherwise" if complete < MANY else ""


def draw_parallel(path: Path, study: optuna.Study, names: Sequence[str], *, title: str) -> Path:
    """A line a complete trial through its values; each axis spans the values that were tried."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    accuracies = [trial.value or 0.0 for trial in complete]
    middle, high = np.median(accuracies), max(accuracies)

    def plot() -> None:
        from matplotlib.colors import ListedColormap

        axes: Any = optuna.visualization.matplotlib.plot_parallel_coordinate(study, list(names), target_name="accuracy")
        (lines,) = axes.collections
        for line in lines.get_segments():  # not in the order of the trials
            if line[0, 1] == high:
                axes.plot(*line.T, color=VERMILION, linewidth=2.0, zorder=3)
        # One bad trial must not make all others look equal, nor be white itself.
        lines.set(linewidth=0.8, clim=(2 * middle - high - 1e-9, high))
        lines.set_cmap(ListedColormap(lines.cmap(np.linspace(0.2, 1.0, 256))))
        axes.set_title("Complete trials: the more accurate the darker, the best in orange; axes span what was tried")
        axes.set_xticks(range(len(names) + 1), ["accuracy", *map(_two_lines, sorted(names))], rotation=0)
        axes.grid(visible=False)
        _percent_axis(axes.yaxis)
        _percent_axis(lines.colorbar.ax.yaxis)
        own = [other for other in axes.figure.axes if other not in (axes, lines.colorbar.ax)]
        for name, other in zip(sorted(names), own, strict=True):
            distribution: Any = complete[0].distributions[name]
            if isinstance(distribution, CategoricalDistribution):
                _label_choices(other.yaxis)
            else:
                bottom, top = other.get_ylim()
                _label_range(other.yaxis, bottom, top, distribution.log)
            other.grid(visible=False)
            other.spines["right"].set_visible(True)
            for label in other.get_yticklabels():
                label.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8})

    return _paint_by_optuna(path, (2.6 + 1.15 * (len(names) + 1), 4.2), title, plot)


def draw_slices(path: Path, study: optuna.Study, names: Sequence[str], *, title: str) -> Path:
    """For each option a panel: the accuracy by its value, over the whole range that is searched; the best in orange."""
    best = best_of(study.get_trials(deepcopy=False))
    assert best is not None
    lines = math.ceil(len(names) / 5)
    columns = math.ceil(len(names) / lines)
    size = (2.7 * columns + 0.8, 2.3 * lines + 0.4)

    def plot() -> None:
        panels: Any = optuna.visualization.matplotlib.plot_slice(study, list(names), target_name="accuracy")
        panels = np.atleast_1d(panels)
        panels[0].figure.set_size_inches(size)
        grid = panels[0].figure.add_gridspec(lines, columns)  # Optuna puts all panels into one line
        for index, (axes, name) in enumerate(zip(panels, sorted(names), strict=True)):
            leftmost = index % columns == 0
            axes.set_subplotspec(grid[index])
            axes.set(title="", ylabel="accuracy" if leftmost else "")
            axes.tick_params("y", labelleft=leftmost)
            _percent_axis(axes.yaxis)
            _finish_panel(axes, best.distributions[name], best.params[name], best.value or 0.0)

    return _paint_by_optuna(path, size, f"{title}: accuracy by value, complete trials (orange: the best)", plot)


def _finish_panel(axes: Any, distribution: Any, value: Any, accuracy: float) -> None:
    """Mark the best trial, and let the panel span all that is searched."""
    choices = isinstance(distribution, CategoricalDistribution)
    axes.plot(repr(value) if choices else value, accuracy, "o", color=VERMILION, markersize=6)
    if choices:
        _label_choices(axes.xaxis, rotation=20)
    else:
        low, high, log = distribution.low, distribution.high, distribution.log
        _label_range(axes.xaxis, low, high, log)
        margin = (high / low) ** 0.05 if log else 0.05 * (high - low)
        axes.set_xlim(*((low / margin, high * margin) if log else (low - margin, high + margin)))


def _paint_by_optuna(path: Path, size: tuple[float, float], title: str, plot: Callable[[], None]) -> Path:
    """Write the figure that `plot` makes by pyplot, in our style; no window opens, and no figure is left."""
    from matplotlib import pyplot

    pyplot.switch_backend("agg")  # a terminal may lack the display that it names
    with style(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these plots are marked experimental
        pyplot.rcParams.update({"figure.figsize": size, "figure.constrained_layout.use": True})
        before = pyplot.get_fignums()
        try:
            plot()
            save_figure(path, pyplot.gcf(), title)
        finally:
            for number in set(pyplot.get_fignums()) - set(before):
                pyplot.close(number)
    return path


def _label_choices(axis: Any, rotation: float = 0) -> None:
    labels = [plain(label.get_text().strip("'"), 12) for label in axis.get_ticklabels()]
    axis.set_ticks(axis.get_ticklocs(), labels, rotation=rotation)


def _label_range(axis: Any, low: float, high: float, log: bool) -> None:
    """Label the ends of a range and its middle."""
    values = [low, math.sqrt(low * high) if log else (low + high) / 2, high]
    axis.set_ticks(values, map(_short, values))
    axis.set_ticks([], minor=True)


def _short(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"


def _two_lines(name: str) -> str:
    return name.replace("_", "_\n", 1) if len(name) > 10 else name


def _percent_axis(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
