"""What a search tries: the usual ranges, those of `--search`, and the values that all trials share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from .. import args
from ..args import Options
from ..utils import UserError, warn

USUAL = {
    "weight_decay": "0.001:2:log",
    "max_lr": "0.0003:0.01:log",
    "temperature": "0.4:1.2",
    "lambda_u": "0.1:10:log",
    "uda_steps": "0:300",
    "threshold": "0.5:0.95",
    "mpl_weight": "0:1",
    "label_smoothing": "0:0.2",
}
# Options that learning from labels alone does not read.
UNLABELED_ONLY = ("temperature", "lambda_u", "uda_steps", "threshold", "mpl_weight")

Space = dict[str, BaseDistribution]


def space_of(values: Mapping[str, Any]) -> tuple[dict[str, Any], Space]:
    """The values that all trials share, and what is searched; values: of all options, by name.

    Raises UserError for a wrong `--search`.
    """
    base = shared_values(values)
    unused = unused_names(values)
    wanted = {name: text for name, text in USUAL.items() if name not in unused}
    space: Space = {name: distribution_of(name, text, base) for name, text in wanted.items()}
    for word in values["search"]:
        name, separator, text = word.partition("=")
        if not separator or not text:
            raise UserError(f"--search {word}: write KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=A,B,C")
        check_searchable(name)
        try:
            found = distribution_of(name, text, base)
        except UserError as error:
            raise UserError(f"--search {word}: {error}") from error
        space.pop(name, None)
        if isinstance(found, CategoricalDistribution) and len(found.choices) == 1:
            base[name] = found.choices[0]
        else:
            base.pop(name, None)
            space[name] = found
    if not space:
        raise UserError("--search leaves nothing to search; give a range or a list of values")
    return base, space


def shared_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the user chose for every trial: the options that differ from their defaults, except those of the search."""
    own = args.NOT_RECORDED | args.read_only_by("search")
    defaults = Options().flat()
    return {name: value for name, value in values.items() if name not in own and value != defaults[name]}


def unused_names(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The usual options that the mode does not read."""
    algorithm = values["algorithm"] if values["cotrain_mode"] else "meta"
    if values["finetune_mode"] or algorithm == "labels_only":
        return UNLABELED_ONLY
    return ("mpl_weight",) if algorithm == "cotraining" else ()


def check_searchable(name: str) -> None:
    """Raises UserError for a name that is no option, or one that a search keeps as it is."""
    args.kind_of(name)
    if name in args.searchable():
        return
    raise UserError(
        f"--search {name}: the search keeps --{name} as it is, since it does not belong to the learning or the model "
        "or decides which images are learned and measured"
    )


def distribution_of(name: str, text: str, base: Mapping[str, Any]) -> BaseDistribution:
    """The distribution that `LOW:HIGH[:log]` or `A,B,C` means for an option. Raises UserError."""
    _, kind = args.kind_of(name)

    def value(word: str) -> Any:
        typed = {"true": True, "false": False}.get(word.lower(), word) if kind is bool else word
        others = {other: v for other, v in base.items() if other != name}
        return args.make({**others, name: typed}).flat()[name]

    if kind not in (int, float) or ":" not in text:
        choices = list(dict.fromkeys(value(word.strip()) for word in text.split(",")))
        return CategoricalDistribution(choices)
    low_text, _, rest = text.partition(":")
    high_text, colon, scale = rest.partition(":")
    if colon and scale != "log":
        raise UserError(f"after the second colon write log or nothing, not {scale!r}")
    low, high = value(low_text), value(high_text)
    if not low < high:
        raise UserError("a range goes from the lower to the higher value")
    if colon and low <= 0:
        raise UserError("a logarithmic range begins above 0")
    return (IntDistribution if kind is int else FloatDistribution)(low, high, log=bool(colon))


def first_values(present: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """The first trial: the present values of what is searched, each replaced by the nearest one within its range."""
    values = {}
    for name, distribution in space.items():
        values[name] = value = present[name]
        if isinstance(distribution, CategoricalDistribution):
            if value not in distribution.choices:
                values[name] = distribution.choices[0]
        elif value is None or not distribution.low <= value <= distribution.high:  # type: ignore[attr-defined]
            low, high = distribution.low, distribution.high  # type: ignore[attr-defined]
            values[name] = low if value is None else min(max(value, low), high)
        if values[name] != value:
            shown = "without a value" if value is None else value
            warn(f"--{name} {shown} is not among what is searched, so the first trial takes {values[name]}")
    return values


def suggest(trial: Trial, space: Space) -> dict[str, Any]:
    """This trial's value of everything that is searched."""
    values: dict[str, Any] = {}
    for name, d in space.items():
        if isinstance(d, CategoricalDistribution):
            values[name] = trial.suggest_categorical(name, d.choices)
        elif isinstance(d, IntDistribution):
            values[name] = trial.suggest_int(name, d.low, d.high, log=d.log)
        elif isinstance(d, FloatDistribution):
            values[name] = trial.suggest_float(name, d.low, d.high, log=d.log)
    return values


def best_options(base: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """What `--config` takes: the shared and the found values; the name is given on the command line."""
    return {name: value for name, value in {**base, **found}.items() if name != "name"}
