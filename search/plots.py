"""The pictures of a search: its history, what mattered, and where the good values lie."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from ..visualization import BLUE, FAINT, GREEN, INK, ORANGE, VERMILION, clear, paint, plain

ENOUGH = 4  # complete trials; with fewer nothing can be said of what mattered


def draw(folder: Path, study: optuna.Study, searched: Sequence[str]) -> list[Path]:
    """history.png, importances.png, parallel.png and slices.png, as far as there are trials to draw; their paths."""
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    made = [draw_history(folder / "history.png", trials, title=folder.name)]
    if len(complete) >= ENOUGH:
        names = [name for name in searched if len({repr(trial.params.get(name)) for trial in complete}) > 1]
        importances = importances_of(study, names)
        names = sorted(names, key=lambda name: -importances.get(name, 0.0))
        if importances:
            made.append(draw_importances(folder / "importances.png", importances, title=folder.name))
        if names:
            made.append(draw_parallel(folder / "parallel.png", complete, names, title=folder.name))
            made.append(draw_slices(folder / "slices.png", trials, names, title=folder.name))
    return made


def importances_of(study: optuna.Study, names: Sequence[str]) -> dict[str, float]:
    """Each value's share of the spread of accuracies over the complete trials (fANOVA, Hutter et al. 2014)."""
    values = {trial.value for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}
    if len(values) < 2 or not names:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(study, evaluator=evaluator, params=list(names))


def draw_history(path: Path, trials: Sequence[FrozenTrial], *, title: str) -> Path:
    """Every trial's accuracy by its number, and the best so far."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED and trial.value is not None]
    failed = [trial.number for trial in trials if trial.state == TrialState.FAIL]

    def fill(figure: Any) -> None:
        axes = figure.subplots()
        if pruned:
            axes.scatter([t.number for t in pruned], [t.value for t in pruned], s=14, color=FAINT, marker="x",
                         linewidth=0.9, label=f"{len(pruned)} pruned (value when given up)")  # fmt: skip
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


def draw_importances(path: Path, importances: dict[str, float], *, title: str) -> Path:
    """A bar for each option that was searched."""
    names = sorted(importances, key=lambda name: importances[name])

    def fill(figure: Any) -> None:
        axes = figure.subplots()
        shares = [importances[name] for name in names]
        axes.barh(range(len(names)), shares, color=BLUE, height=0.66)
        for place, share in enumerate(shares):
            axes.text(share, place, f" {share:.0%}", va="center", fontsize=8)
        clear(axes)
        axes.set_yticks(range(len(names)), [plain(name) for name in names])
        axes.set_xticks([])
        axes.set(xlim=(0, 1.12 * max(shares)), title="Share of the spread of accuracies that each option explains")

    return paint(path, (7.4, 0.9 + 0.3 * len(names)), title, fill)


def draw_slices(path: Path, trials: Sequence[FrozenTrial], names: Sequence[str], *, title: str) -> Path:
    """For each option a panel: accuracy by its value; later trials are darker."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    lines = math.ceil(len(names) / 5)
    columns = math.ceil(len(names) / lines)
    best = max(complete, key=lambda trial: (trial.value or 0.0, -trial.number))

    def fill(figure: Any) -> None:
        panels = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
        for axes, name in zip(panels, names, strict=False):
            scale = Scale(complete, name)
            there = [trial for trial in complete if name in trial.params]
            places, values = [scale.place(t, spread=True) for t in there], [t.value for t in there]
            shade = {"c": [t.number for t in there], "cmap": "Blues", "vmin": -0.6 * len(trials), "vmax": len(trials)}
            axes.scatter(places, values, s=13, linewidth=0, **shade)
            axes.plot(scale.place(best), best.value, "o", color=VERMILION, markersize=5.5)
            axes.set_title(plain(name, 30))
            axes.set_xticks(*scale.ticks(), rotation=0 if not scale.choices else 20)
            _percent_axis(axes.yaxis)
        for axes in panels[len(names) :]:
            axes.remove()
        for line in range(lines):
            panels[line * columns].set_ylabel("accuracy")

    what = f"{title}: accuracy by value, complete trials (darker: later; red: the best)"
    return paint(path, (2.7 * columns, 2.3 * lines + 0.4), what, fill)


def draw_parallel(path: Path, complete: Sequence[FrozenTrial], names: Sequence[str], *, title: str) -> Path:
    """A line a trial through its values: the best tenth in colour, so that what they share is seen."""
    ranked = sorted(complete, key=lambda trial: (trial.value or 0.0, -trial.number))  # the best, as elsewhere, is last
    leaders = max(1, len(ranked) // 10)
    scales = [Scale(complete, name) for name in names]

    def fill(figure: Any) -> None:
        axes = figure.subplots()
        values = [trial.value or 0.0 for trial in ranked]
        low, high = min(values), max(values)
        for rank, trial in enumerate(ranked):
            top = rank >= len(ranked) - leaders
            best = rank == len(ranked) - 1
            heights = [(values[rank] - low) / max(high - low, 1e-9)]
            heights += [scale.height(trial) for scale in scales]
            axes.plot(range(len(heights)), heights, color=VERMILION if best else GREEN if top else FAINT,
                      linewidth=2.0 if best else 1.1 if top else 0.5, alpha=1.0 if top else 0.28,
                      zorder=3 if best else 2 if top else 1)  # fmt: skip
        clear(axes)
        for place in range(len(scales) + 1):
            axes.axvline(place, color=INK, linewidth=0.8, zorder=0)
        for height in (0, 0.5, 1):
            _tick(axes, 0, height, f"{low + height * (high - low):.1%}")
            for place, scale in enumerate(scales, start=1):
                if not scale.choices:
                    _tick(axes, place, height, _short(scale.value_at(height)))
        for place, scale in enumerate(scales, start=1):
            for index, choice in enumerate(scale.choices):
                _tick(axes, place, index / max(1, len(scale.choices) - 1), plain(choice, 12))
        labels = ["accuracy", *names]
        axes.set_xticks(range(len(labels)), [_two_lines(plain(name)) for name in labels])
        axes.set_yticks([])
        axes.set(xlim=(-0.25, len(labels) - 0.45), ylim=(-0.04, 1.04),
                 title=f"Complete trials: the best in red, the rest of the best {leaders} in green")  # fmt: skip

    return paint(path, (1.6 + 1.15 * (len(names) + 1), 4.2), title, fill)


class Scale:
    """An option's axis: linear, logarithmic, or one place for each of its choices."""

    def __init__(self, complete: Sequence[FrozenTrial], name: str) -> None:
        distribution = next(t.distributions[name] for t in complete if name in t.distributions)
        self.name, self.choices, self.log = name, [], False  # type: str, list[Any], bool
        if isinstance(distribution, CategoricalDistribution):
            self.choices = list(distribution.choices)
            self.low, self.high = 0.0, float(len(self.choices) - 1)
        else:
            self.log = bool(distribution.log)  # type: ignore[attr-defined]
            ends = [distribution.low, distribution.high]  # type: ignore[attr-defined]
            self.low, self.high = (math.log10(end) if self.log else float(end) for end in ends)

    def place(self, trial: FrozenTrial, *, spread: bool = False) -> float:
        """Where a trial lies on the axis; trials of one choice are spread a little, so that they don't hide."""
        value = trial.params.get(self.name)
        if self.choices:
            at = float(self.choices.index(value))
            return at + (((trial.number * 0.618) % 1) - 0.5) * 0.45 if spread else at
        if value is None:
            return math.nan
        return math.log10(value) if self.log else float(value)

    def height(self, trial: FrozenTrial) -> float:
        """The place as a share of the axis."""
        return (self.place(trial) - self.low) / max(self.high - self.low, 1e-12)

    def value_at(self, height: float) -> float:
        """The inverse of `height`, as a value."""
        at = self.low + height * (self.high - self.low)
        return 10**at if self.log else at

    def ticks(self) -> tuple[list[float], list[str]]:
        """Places and labels of a few round values."""
        from matplotlib.ticker import MaxNLocator

        if self.choices:
            return list(map(float, range(len(self.choices)))), [plain(choice, 12) for choice in self.choices]
        if self.log:
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            places = [power + step for power in powers for step in (0.0, math.log10(3))]
            if sum(self.low <= place <= self.high for place in places) > 5:
                places = list(map(float, powers))
        else:
            places = [float(place) for place in MaxNLocator(4).tick_values(self.low, self.high)]
        places = [place for place in places if self.low - 1e-9 <= place <= self.high + 1e-9]
        return places, [f"{10**place if self.log else place:.3g}" for place in places]


def _short(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"


def _two_lines(name: str) -> str:
    return name.replace("_", "_\n", 1) if len(name) > 10 else name


def _tick(axes: Any, place: float, height: float, text: str) -> None:
    axes.text(place + 0.04, height, text, fontsize=7.5, va="center", zorder=4,
              bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8})  # fmt: skip


def _percent_axis(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
