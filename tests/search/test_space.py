"""What is searched: the usual ranges, those of --search, and the first trial."""

from __future__ import annotations

import contextlib
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searches import parsed, tune
from transfermpl.args import Options
from transfermpl.search.space import USUAL, check_searchable, distribution_of, first_values, space_of
from transfermpl.utils import UserError

pytestmark = pytest.mark.usefixtures("forked_workers")


def test_the_usual_space() -> None:
    _, space = space_of(parsed().flat())
    assert set(space) == {
        "weight_decay", "max_lr", "temperature", "lambda_u", "uda_steps", "threshold", "mpl_weight", "label_smoothing",
    }  # fmt: skip
    assert space["max_lr"].log  # type: ignore[attr-defined]
    assert isinstance(space["uda_steps"], optuna.distributions.IntDistribution)
    defaults = Options().flat()
    assert first_values(parsed().flat(), space) == {name: defaults[name] for name in space}


def test_labels_alone_have_no_use_for_what_belongs_to_the_others() -> None:
    _, space = space_of(parsed("--finetune_mode").flat())
    assert set(space) == {"weight_decay", "max_lr", "label_smoothing"}
    views = ("--cotrain_mode", "--views", "pixels", "gradients", "--algorithm")
    assert space_of(parsed(*views, "labels_only").flat())[1] == space
    assert set(USUAL) - set(space_of(parsed(*views, "cotraining").flat())[1]) == {"mpl_weight"}
    assert set(space_of(parsed(*views, "meta").flat())[1]) == set(USUAL)


def test_any_option_can_be_searched_and_a_single_value_holds_it_fast() -> None:
    words = ("optimizer=AdamW,SGD", "max_lr=1e-4:1e-2", "batch_size=8:32", "switch_mode=true,false", "ema=0,0.9")
    base, space = space_of(parsed("--search", *words, "unfreeze=1,all", "mpl_weight=0", "head_prior=none").flat())
    assert space["optimizer"].choices == ("AdamW", "SGD")  # type: ignore[attr-defined]
    assert (space["max_lr"].low, space["max_lr"].high, space["max_lr"].log) == (1e-4, 1e-2, False)  # type: ignore[attr-defined]
    assert (space["batch_size"].low, space["batch_size"].high) == (8, 32)  # type: ignore[attr-defined]
    assert space["switch_mode"].choices == (True, False)  # type: ignore[attr-defined]
    assert space["ema"].choices == (0.0, 0.9)  # type: ignore[attr-defined]
    assert space["unfreeze"].choices == ("1", "all")  # type: ignore[attr-defined]
    assert "mpl_weight" not in space
    assert (base["mpl_weight"], base["head_prior"]) == (0.0, "none")


WRONG = [
    ("treshold=0.5:0.9", "did you mean --threshold?"),
    ("threshold", "write KEY=LOW:HIGH"),
    ("threshold=", "write KEY=LOW:HIGH"),
    ("=1:2", "there is no option --"),
    ("threshold=0.9:0.5", "from the lower to the higher"),
    ("threshold=0.5:0.5", "from the lower to the higher"),
    ("threshold=0.5:1.5", "out of range"),
    ("threshold=0.5:many", "takes a number"),
    ("threshold=nan:1", "out of range"),
    ("uda_steps=1.5:3", "whole number"),
    ("lambda_u=0:1:log", "begins above 0"),
    ("lambda_u=1:2:lin", "'lin'"),
    ("lambda_u=1:2:log:3", "'log:3'"),
    ("optimizer=SGD,cnn", "choose from AdamW, SGD"),
    ("optimizer=SGD,", "is empty"),
    ("switch_mode=yes", "true or false"),
    ("seed=1,2", "keeps --seed as it is"),
    ("num_labels=10:50", "keeps --num_labels as it is"),
    ("data_dir=a,b", "keeps --data_dir as it is"),
    ("test_percent=0.1,0.2", "keeps --test_percent as it is"),
    ("n_trials=1:5", "keeps --n_trials as it is"),
    ("optuna_mode=true", "keeps --optuna_mode as it is"),
]


@pytest.mark.parametrize(("word", "says"), WRONG)
def test_a_wrong_range_is_an_error_before_the_first_trial(word: str, says: str, tmp_path: Path) -> None:
    outcome = tune("--search", word, cwd=tmp_path, code=2)
    assert says in outcome.err
    assert len(outcome.complaint()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_space_of_nothing_is_an_error() -> None:
    held = [f"{name}={Options().flat()[name]}" for name in USUAL]
    with pytest.raises(UserError, match="nothing to search"):
        space_of(parsed("--search", *held).flat())


def test_what_the_defaults_lack_becomes_the_nearest_value(capsys: pytest.CaptureFixture[str]) -> None:
    options = parsed("--search", "max_lr=0.01:0.1", "optimizer=SGD,AdamW", "batch_size=2,4", "num_epochs=2:5")
    _, space = space_of(options.flat())
    first = first_values(options.flat(), space)
    assert (first["max_lr"], first["optimizer"], first["batch_size"], first["num_epochs"]) == (0.01, "AdamW", 2, 2)
    assert capsys.readouterr().err.count("is not among what is searched") == 3


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(Options().flat())), st.text(max_size=12) | st.from_regex(r"[0-9.e-]+:[0-9.e-]+(:log)?"))
def test_no_range_breaks_the_search(name: str, text: str) -> None:
    with contextlib.suppress(UserError):
        check_searchable(name)
        distribution_of(name, text, {"name": "t"})
