"""What accuracies say: rows and differences paired over seeds, and which method to use, if that is more than noise.

Functions of accuracies alone: nothing here trains or reads a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import visualization
from ..base.metrics import paired_difference
from ..base.tables import csv_text, text_table
from .methods import BASE, METHODS, Method

DEFAULT_REPEAT = 5  # seeds of --compare
ENOUGH_SEEDS = 3  # of two, the same difference twice is a coincidence that would look like certainty

Results = Mapping[str, Mapping[int, Mapping[str, float]]]  # {method: {seed: {model: accuracy}}}


def series(results: Results) -> dict[str, list[float]]:
    """Each model's accuracies over the seeds; a row is named `METHOD: MODEL`, `METHOD` alone where it has one model."""
    rows = {}
    for method, of_seeds in results.items():
        models = next(iter(of_seeds.values()))
        for model in models:
            alone = len(models) == 1 and not model.startswith("on ")
            name = method if alone else f"{method} {model}" if model.startswith("on ") else f"{method}: {model}"
            rows[name] = [accuracies[model] for accuracies in of_seeds.values()]
    return rows


def finals(results: Results) -> dict[str, list[float]]:
    """What one would use of each method: the ensemble, or its only model. Fixed before anything is measured."""
    return {method: [list(accuracies.values())[-1] for accuracies in of.values()] for method, of in results.items()}


def rows_of(results: Results) -> list[dict[str, Any]]:
    """The rows of `comparison`: difference and interval (None: one seed) are paired with what one would use of the
    first method, labels only: its one model, or the mean of the views.
    """
    every = series(results)
    base = next(iter(finals(results).values()))
    rows = []
    for name, accuracies in every.items():
        difference, interval = paired_difference(accuracies, base)
        rows.append({"method": name, **spread(accuracies), "difference": difference, "ci95": finite_or_none(interval)})
    return rows


def spread(accuracies: Sequence[float]) -> dict[str, Any]:
    """The accuracies, their mean and standard deviation (None of one seed)."""
    several = len(accuracies) > 1
    std = float(np.std(accuracies, ddof=1)) if several else None
    return {"accuracies": list(accuracies), "mean": float(np.mean(accuracies)), "std": std}


def finite_or_none(interval: Sequence[float]) -> list[float] | None:
    """An interval as JSON can hold it: None in place of NaN."""
    return list(interval) if np.isfinite(interval).all() else None


def over_seeds(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each model's accuracy over the runs: the mean and its 95% interval by Student's t, and what it is made of."""
    result = {}
    for model in runs[0] if all(runs) else ():
        each = spread([run[model]["accuracy"] for run in runs])
        interval = finite_or_none(paired_difference(each["accuracies"], [0.0] * len(runs))[1])
        interval = interval and [min(1.0, max(0.0, end)) for end in interval]  # two seeds reach beyond what there is
        result[model] = {"accuracy": each["mean"], "ci95": interval, **each}
    return result


def advice(results: Results, methods: Sequence[Method] = METHODS) -> str:
    """Which method to use on this data, and whether its lead is more than noise, in plain sentences.

    Only what one would use of each method is compared (`finals`). The winner is picked from k, so its lead over labels
    only counts as more than noise when k - 1 intervals that hold all at once leave zero out (Hsu 1981, with
    Bonferroni's bound). Methods are called distinguishable from it by the plain interval: nothing is claimed of them.
    """
    every = finals(results)
    best = max(every, key=lambda name: float(np.mean(every[name])))
    named = f"{best} ({100 * np.mean(every[best]):.1f}%)"
    count, how = len(every[best]), how_to_train(best, every, methods)
    if count < ENOUGH_SEEDS:
        few = f"{count} seed{'s' * (count > 1)} can't tell a difference from noise"
        return f"{named} is the best here, but {few}: use --repeat {DEFAULT_REPEAT}. {how}"
    others = [name for name in every if name not in (best, BASE)]
    tied = [name for name in others if paired_difference(every[best], every[name])[1][0] <= 0]
    rest = f"Not distinguishable from it: {'; '.join(tied) if tied != others else 'any other'}. " if tied else ""
    rest += f"As the best of {len(every)} on these very test images it is a little flattered. {how}"
    if best == BASE:
        return f"Use {named}: nothing did better here. {rest}"
    gain, interval = paired_difference(every[best], every[BASE])
    ends = f"(95% interval {points(interval[0])} to {points(interval[1])})"
    if paired_difference(every[best], every[BASE], comparisons=len(others) + 1)[1][0] > 0:
        sure = f"also when it is picked as the best of {len(every)}"
        return f"Use {named}: its {points(gain)} points {ends} over {BASE} are more than noise, {sure}. {rest}"
    if interval[0] > 0:
        doubt = f"but {count} seeds can't make that sure when it is picked as the best of {len(every)}"
        return f"Use {named}: its {points(gain)} points {ends} over {BASE} are likely more than noise, {doubt}. {rest}"
    lead = f"{points(gain)} points {ends}; more seeds or labels may tell"
    return f"{named} is the best here, but not distinguishable from {BASE}: {lead}. {rest}"


def how_to_train(best: str, every: Mapping[str, Sequence[float]], methods: Sequence[Method]) -> str:
    """How to get a classifier by the method, or where that is a baseline, by the best method of this program."""
    ours = {method.name: method.how for method in methods if method.name in every}
    own = max(ours, key=lambda name: float(np.mean(every[name])))
    prefix = "" if best == own else f"It is scikit-learn's; the best that is trained here is {own}. "
    return f"{prefix}To train {own}: {ours[own]}."


def points(difference: float) -> str:
    """A difference of accuracies in percentage points, with its sign."""
    return f"{100 * difference:+.1f}"


def table(results: Results) -> str:
    """The comparison as a table that reads well on a screen and in Markdown."""
    rows, first = rows_of(results), next(iter(results))
    base = list(series({first: results[first]}))[-1]
    cells = [("method", "mean", "std", f"against {base}, 95% interval")]
    for row in rows:
        std = "" if row["std"] is None else f"{100 * row['std']:.1f}"
        cells.append((row["method"], f"{100 * row['mean']:.1f}%", std, "" if row["method"] == base else gain_of(row)))
    return text_table(cells, left=range(4), markdown=True)


def gain_of(row: Mapping[str, Any]) -> str:
    interval = "" if row["ci95"] is None else f" ({points(row['ci95'][0])} to {points(row['ci95'][1])})"
    return points(row["difference"]) + interval


def table_as_csv(rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """The comparison as CSV, accuracies in [0, 1], a column a seed."""
    head = ["method", "mean", "std", "difference", "ci95_low", "ci95_high", *(f"seed_{seed}" for seed in seeds)]
    cells = [
        [row["method"], row["mean"], row["std"], row["difference"], *(row["ci95"] or ["", ""]), *row["accuracies"]]
        for row in rows
    ]
    return csv_text([head, *cells])


def picture(path: Path, results: Results, *, title: str) -> Path:
    """Draw what one would use of each method, and its difference from the first one."""
    every = finals(results)
    base = next(iter(every.values()))
    differences = [paired_difference(accuracies, base) for accuracies in every.values()]
    return visualization.draw_comparison(path, list(every), list(every.values()), title=title, differences=differences)
