"""The command line: every rule of args.py, without a network or an image."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfermpl import MPL, args
from transfermpl.args import (
    GROUPS,
    NOT_RECORDED,
    RULES,
    TABLE,
    Options,
    make,
    options_page,
    parse,
)
from transfermpl.base.options import read_config, share
from transfermpl.utils import UserError

ROOT = Path(args.__file__).resolve().parent
FIELDS = {f.name: f for group in GROUPS.values() for f in dataclasses.fields(group)}
SWITCHES = sorted(option.name for option in TABLE if option.is_switch)

# An allowed value of each option, other than its default, as it is typed.
VALUES: dict[str, str] = {
    "repeat": "3",
    "name": "größe 1", "config": "c.json", "seed": "7", "device": "cuda:1", "precision": "bf16", "num_workers": "0",
    "cache_dir": "my cache", "cache_limit": "1.5", "cache_dtype": "float32", "data_dir": "/a b/ü", "data_root": "there",
    "labels_csv": "t.csv", "num_labels_percent": "10%", "num_labels": "40", "val_percent": "0.1", "test_percent": "50%",
    "label_split": "stratified", "augmentation_draws": "3", "model_name": "timm:test_vit", "weights": "w.safetensors",
    "unfreeze": "2", "image_size": "64",
    "num_epochs": "5", "max_steps": "9", "warmup_epoch_num": "0",
    "batch_size": "8", "unlabeled_batch_size": "16", "max_lr": "0.01", "optimizer": "SGD", "weight_decay": "0",
    "grad_clip": "1", "grad_accumulation": "2", "label_smoothing": "0.1", "ema": "0.99", "patience": "3",
    "threshold": "0.8", "temperature": "0.5", "lambda_u": "2", "uda_steps": "0",
    "mpl_weight": "0", "distribution_alignment": "0.5", "class_prior": "labels", "head_prior": "none",
    "load_path": "exp", "views": "pixels", "predict_dir": "/new", "explain": "/new", "export": "onnx",
    "near_duplicate": "0.8", "algorithm": "cotraining", "finetune_steps": "9", "layer_decay": "0.8",
    "n_trials": "7", "timeout": "60", "search": "max_lr=1e-4:1e-2:log", "folds": "4", "search_workers": "2",
    "storage": "sqlite:///s.db", "pruner": "none",
    "calibration_folds": "4", "out": "new/ü.csv", "predict_copy": "sorted", "copy_by": "copy", "min_probability": "0.7",
    "reject": "0.99", "balance": "on", "recall": "ähre=0.9",
}  # fmt: skip
# What must stand beside an option that can't stand alone.
BESIDE: dict[str, list[str]] = {
    "test_mode": ["--load_path", "exp"],
    "load_path": ["--finetune_mode"],
    "load_best": ["--finetune_mode", "--load_path", "exp"],
    "download": ["--data_dir", "cifar10"],
    "finetune_steps": ["--cotrain_mode", "--views", "pixels", "gradients", "--finetune_views"],
    "cotrain_mode": ["--views", "pixels", "gradients"],
    "views": ["--view_report"],
    "view_report": ["--views", "pixels", "gradients"],
    **dict.fromkeys(("algorithm", "finetune_views"), ["--cotrain_mode", "--views", "pixels", "gradients"]),
    "predict_dir": ["--load_path", "exp"],
    "export": ["--load_path", "exp"],
    "explain": ["--load_path", "exp"],
    **{name: ["--optuna_mode"] for name in args.read_only_by("search") - {"optuna_mode"}},
    "out": ["--export", "onnx", "--load_path", "exp"],
    "predict_copy": ["--predict_dir", "/new", "--load_path", "exp"],
    "copy_by": ["--predict_copy", "sorted", "--predict_dir", "/new", "--load_path", "exp"],
    **dict.fromkeys(
        ("min_probability", "only_new", "strict", "reject"), ["--predict_dir", "/new", "--load_path", "exp"]
    ),
}


def named(*options: str) -> list[str]:
    """A name, unless one of these options, or what stands beside it, needs none."""
    words = {*options, *(word.removeprefix("--") for option in options for word in BESIDE.get(option, []))}
    return [] if words & set(args.NAMELESS) else ["--name", "x"]


def alone(name: str) -> list[str]:
    """The shortest command line that an option can be added to."""
    return [*named(name), *BESIDE.get(name, [])]


def error_of(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(["--name", "x", *arguments])
    return str(caught.value)


# --- one option -------------------------------------------------------------------------------------------------------


def test_every_option_that_takes_a_value_has_one_below() -> None:
    assert set(VALUES) == set(FIELDS) - set(SWITCHES)


@pytest.mark.parametrize("name", sorted(set(VALUES) - {"config"}))
def test_a_value_arrives_as_its_type(name: str) -> None:
    options = parse([*alone(name), f"--{name}", VALUES[name]])
    value = options.flat()[name]
    assert isinstance(value, tuple if TABLE[name].several else TABLE[name].kind)
    assert value != FIELDS[name].default
    assert name in options.given


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_turned_on_and_off(name: str) -> None:
    beside = BESIDE.get(name, [])
    assert parse([*named(name), *beside, f"--{name}"]).flat()[name] is True
    beside = [] if beside[:1] in (["--views"], ["--predict_dir"]) else beside
    without = ["--finetune_mode", *beside] if name == "test_mode" else beside
    assert parse([*without, "--name", "x", f"--no_{name}"]).flat()[name] is False


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_option_says_what_it_does(name: str) -> None:
    """In one whole sentence of the field's words, without the default, which is shown beside it."""
    text = TABLE[name].help
    assert len(text.split()) > 3
    assert text[0].isupper()
    assert text.endswith(".")
    assert ". " not in text
    assert not re.search(r"[Dd]efault:|%%|\b(pile|exams?|looks|tells|hangs? on|anew)\b", text)


@pytest.mark.parametrize("name", sorted(n for n in VALUES if TABLE[n].kind in (int, float)))
def test_a_number_must_be_one(name: str) -> None:
    for wrong in ("many", "", "nan", "inf", "-inf", "1e999"):
        assert f"--{name}" in error_of(f"--{name}={wrong}")
    if TABLE[name].kind is int:
        assert "whole number" in error_of(f"--{name}", "1.5")


LIMITED = [
    (option.name, bound, getattr(option, bound))
    for option in TABLE
    for bound in ("low", "high", "above")
    if getattr(option, bound) is not None
]


@pytest.mark.parametrize(("name", "bound", "value"), LIMITED)
def test_the_ends_of_a_range(name: str, bound: str, value: float) -> None:
    whole = TABLE[name].kind is int
    step = (1 if whole else 1e-9) * (1 if bound == "high" else -1)
    outside = value if bound == "above" else value + step
    message = error_of(f"--{name}={outside}")
    assert f"--{name}" in message
    assert f"{value:g}" in message
    inside = value - step if bound == "above" else value
    assert parse([*alone(name), f"--{name}={inside}"]).flat()[name] == inside


def test_every_number_has_a_range_or_is_a_share() -> None:
    open_ended = {
        name
        for name in VALUES
        if TABLE[name].kind in (int, float)
        and (TABLE[name].low, TABLE[name].high, TABLE[name].above) == (None, None, None)
        and TABLE[name].parse is not share
    }
    assert not open_ended


@pytest.mark.parametrize("name", sorted(option.name for option in TABLE if option.choices))
def test_a_choice_is_one_of_those_named(name: str) -> None:
    choices = TABLE[name].choices or ()
    for choice in choices:
        assert parse([*alone(name), f"--{name}", choice]).flat()[name] == choice
    message = error_of(f"--{name}", "other")
    assert all(choice in message for choice in choices)


@pytest.mark.parametrize("name", ["num_labels_percent", "val_percent", "test_percent"])
def test_a_share_is_a_fraction_or_a_percentage(name: str) -> None:
    def read(text: str) -> float:
        return parse(["--name", "x", f"--{name}", text]).flat()[name]

    assert read("0.03") == read("3%") == 0.03
    assert read("1.0") == read("100%") == 1.0
    assert read("0") == read("0%") == 0.0
    assert read("0.5%") == 0.005
    for bare in ("3", "1", "50"):
        assert f"{bare}%" in error_of(f"--{name}", bare)
    for wrong in ("101%", "-0.1", "-3%", "1.5", "nan", "nan%", "inf", "three", "%", ""):
        assert f"--{name}" in error_of(f"--{name}={wrong}")


def test_what_may_learn() -> None:
    for right in ("head", "all", "1", "12"):
        assert parse(["--name", "x", "--unfreeze", right]).model.unfreeze == right
    for wrong in ("0", "-1", "heads", "1.5", "", "²"):
        assert "--unfreeze" in error_of(f"--unfreeze={wrong}")


@pytest.mark.parametrize("name", sorted(VALUES))
def test_an_empty_value_is_no_value(name: str) -> None:
    assert f"--{name}" in error_of(f"--{name}", "")


def test_a_name_is_one_folder() -> None:
    for right in ("x", "größe 1", "a.b", "-", "日本"):
        assert parse([f"--name={right}"]).run.name == right
    for wrong in (".", "..", "a/b", "/abs", "a\\b", " a", "a ", "a\nb", "a:b", "a*", "../x"):
        with pytest.raises(UserError, match="plain folder name"):
            parse([f"--name={wrong}"])


def test_the_name_is_needed_where_a_folder_is_made() -> None:
    with pytest.raises(UserError, match="--name is missing"):
        parse([])
    assert parse(["--test_mode", "--load_path", "exp"]).run.name is None


def test_calibration_is_off_or_has_two_folds_at_least() -> None:
    assert parse(["--name", "x", "--calibration_folds", "0"]).use.calibration_folds == 0
    assert parse(["--name", "x"]).use.calibration_folds is None
    assert "at least 2" in error_of("--calibration_folds", "1")


# --- unknown options --------------------------------------------------------------------------------------------------


def test_an_unknown_option_is_an_error_with_what_comes_close() -> None:
    assert "did you mean --threshold?" in error_of("--treshold", "0.5")
    assert "did you mean --num_labels?" in error_of("--num_label=5")
    assert "did you mean --model_name?" in error_of("--model-name", "cnn")
    assert "see --help" in error_of("--qqqq")
    assert "unrecognized arguments: cnn" in error_of("cnn")
    assert "expected one argument" in error_of("--seed")


@pytest.mark.parametrize("short", ["--switch", "--thresh=0.5", "--num_label=9", "--no_inc", "-n"])
def test_abbreviations_are_off(short: str) -> None:
    error_of(short)


def test_a_later_value_wins() -> None:
    assert parse(["--name", "x", "--seed", "1", "--seed", "2"]).run.seed == 2
    assert parse(["--name", "x", "--no_cache", "--cache"]).run.cache is True


# --- the config file --------------------------------------------------------------------------------------------------


def test_a_config_file_lies_between_the_defaults_and_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"name": "from file", "seed": 3, "max_lr": 1e-4, "num_labels_percent": "5%"}')
    (tmp_path / "c.toml").write_text(
        'name = "from file"\nseed = 3\nmax_lr = 1e-4\nnum_labels_percent = 0.05\nswitch_mode = true\ncache = false\n'
    )
    for suffix in ("json", "toml"):
        options = parse(["--config", str(tmp_path / f"c.{suffix}"), "--seed", "4"])
        assert (options.run.name, options.run.seed, options.learning.max_lr) == ("from file", 4, 1e-4)
        assert options.data.num_labels_percent == 0.05
        assert options.learning.batch_size == Options().learning.batch_size
        assert {"seed", "max_lr", "name"} <= options.given
        assert "batch_size" not in options.given
    assert options.mode.switch_mode
    assert not options.run.cache
    assert not parse(["--config", str(tmp_path / "c.toml"), "--no_switch_mode"]).mode.switch_mode


def test_null_in_a_config_file_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"name": "x", "model_name": null, "seed": null}')
    options = parse(["--config", str(tmp_path / "c.json")])
    assert options.run.seed == 0
    assert "model_name" not in options.given


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("c.json", b'{"treshold": 0.5}', "did you mean --threshold"),
        ("c.toml", b"treshold = 0.5", "did you mean --threshold"),
        ("c.toml", b"[run]\nseed = 1", "no option --run"),
        ("c.json", b'{"seed": "many"}', "--seed takes a whole number"),
        ("c.json", b'{"seed": 1.5}', "--seed takes a whole number"),
        ("c.json", b'{"seed": true}', "--seed"),
        ("c.json", b'{"seed": [1]}', "--seed"),
        ("c.json", b'{"optimizer": {"a": 1}}', "--optimizer"),
        ("c.json", b'{"switch_mode": "yes"}', "true or false"),
        ("c.json", b'{"switch_mode": 1}', "true or false"),
        ("c.json", b'{"num_labels_percent": 3}', "3%"),
        ("c.json", b'{"max_lr": NaN}', "--max_lr"),
        ("c.json", b'{"resume": true, "overwrite": true}', "exclude each other"),
        ("c.json", b"[1, 2]", "must hold names and values"),
        ("c.json", b"3", "must hold names and values"),
        ("c.json", b"{", "can't be read"),
        ("c.json", b"", "can't be read"),
        ("c.toml", b"seed = ", "can't be read"),
        ("c.json", b"\xff\xfe\x00", "can't be read"),
        ("c.json", b"[" * 100_000, "can't be read"),
        (".", None, "can't be read"),
        ("absent.json", None, "can't be read"),
    ],
)
def test_a_wrong_config_file_is_named(tmp_path: Path, file: str, content: bytes | None, says: str) -> None:
    path = tmp_path / file
    if content is not None:
        path.write_bytes(content)
    message = error_of("--config", str(path))
    assert says in message
    assert "\n" not in message


def test_a_config_in_a_config_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"config": "b.json", "seed": 1}')
    assert parse(["--name", "x", "--config", str(tmp_path / "a.json")]).run.seed == 1
    assert read_config(tmp_path / "a.json", TABLE)["seed"] == 1


def everything() -> list[str]:
    """A command line that sets as many options as may stand together."""
    left_out = {"config", "num_labels", "num_epochs", "load_path", "load_best", "resume", "overwrite", "repeat"}
    left_out |= {"finetune_mode", "switch_mode", *args.COMMANDS} - {"optuna_mode"}
    left_out |= {"model_name", "weights", "unfreeze", "image_size", "compile"}  # views have their own
    left_out |= {"tensorboard", "show_images", "print_model", "out", "predict_copy", "copy_by", "min_probability"}
    left_out |= {"only_new", "strict", "reject"}
    line = [f"--{name}={value}" for name, value in VALUES.items() if name not in {*left_out, "views"}]
    line += ["--views", "pixels", "a=f.pth"]  # one view can't be co-trained
    return line + [f"--no_{n}" if FIELDS[n].default is True else f"--{n}" for n in SWITCHES if n not in left_out]


@pytest.mark.parametrize("line", [["--name", "x"], everything(), ["--name", "x", "--num_labels", "3", "--overwrite"]])
def test_what_is_recorded_is_taken_back(tmp_path: Path, line: list[str]) -> None:
    options = parse(line)
    record = options.recorded()
    assert set(record) == set(FIELDS) - set(NOT_RECORDED)
    (tmp_path / "commandline_args.txt").write_text(json.dumps(record))
    again = parse(["--config", str(tmp_path / "commandline_args.txt")])
    assert again.recorded() == record
    assert make(record).recorded() == record


@given(st.sets(st.sampled_from(sorted(set(VALUES) | set(SWITCHES))), max_size=8))
@settings(max_examples=200, deadline=None)
def test_the_command_of_options_makes_them_again(names: set[str]) -> None:
    line = ["--name", "x", *(f"--{name}={VALUES[name]}" for name in sorted(names & set(VALUES) - {"config"}))]
    line += [f"--no_{name}" if FIELDS[name].default is True else f"--{name}" for name in sorted(names & set(SWITCHES))]
    try:
        options = parse(line)
    except UserError:  # these exclude each other
        return
    assert parse(options.command_line()).recorded() == options.recorded()


@pytest.mark.parametrize("line", [everything(), ["--name", "x", "--finetune_mode", "--load_path", "e", "--flip"]])
def test_the_command_of_many_options_makes_them_again(line: list[str]) -> None:
    options = parse(line)
    assert parse(options.command_line()).recorded() == options.recorded()


def test_the_command_leaves_out_what_goes_without_saying() -> None:
    assert make({"name": "x"}).command_line() == ["--name", "x"]
    assert parse(["--name", "x", "--seed", "0", "--no_cache", "--flip", "--data_dir=-d"]).command_line() == [
        "--name", "x", "--no_cache", "--data_dir=-d", "--flip",
    ]  # fmt: skip
    views = ("pixels", "a=f.pth")
    assert make({"name": "x", "cotrain_mode": True, "views": list(views)}).command_line()[-2:] == list(views)


def test_beside_a_loaded_run_a_default_is_said_too() -> None:
    loaded = make({"name": "x", "finetune_mode": True, "load_path": "e", "seed": 0, "flip": False})
    assert "--seed 0" in " ".join(loaded.command_line())
    assert "--no_flip" in loaded.command_line()


# --- who excludes whom ------------------------------------------------------------------------------------------------


def given_line(name: str) -> list[str]:
    return [f"--{name}"] if name in SWITCHES else [f"--{name}", VALUES[name]]


@pytest.mark.parametrize(("name", "other"), [(name, other) for name, others, _ in RULES for other in others])
def test_what_excludes_each_other(name: str, other: str) -> None:
    line = [*given_line(name), *given_line(other), *BESIDE.get(name, []), *BESIDE.get(other, [])]
    line += named(name, other)
    for order in (line, line[::-1] if all(word.startswith("--") for word in line) else line):
        with pytest.raises(UserError, match="exclude each other") as caught:
            parse(order)
        assert f"--{name}" in str(caught.value)
        assert f"--{other}" in str(caught.value)


@pytest.mark.parametrize(("name", "needed"), [(name, needed) for name, _, needed in RULES if needed])
def test_what_needs_another(name: str, needed: tuple[str, ...]) -> None:
    line = given_line(name) + ([] if "name" in needed else named(name))
    with pytest.raises(UserError, match="needs") as caught:
        parse(line)
    assert all(f"--{other}" in str(caught.value) for other in needed)


def test_an_option_that_is_turned_off_excludes_nobody() -> None:
    options = parse(["--name", "x", "--finetune_mode", "--no_switch_mode", "--no_test_mode"])
    assert options.mode.name == "finetune"


def test_the_names_in_the_rules_are_options() -> None:
    for name, excluded, needed in RULES:
        assert {name, *excluded, *needed} <= set(FIELDS)
        assert name not in excluded


def test_the_names_of_the_modes() -> None:
    def name(*line: str) -> str:
        return parse(line).mode.name

    assert name("--name", "x") == "mpl"
    assert name("--name", "x", "--switch_mode") == "switch"
    assert name("--name", "x", "--finetune_mode") == "finetune"
    assert name("--test_mode", "--load_path", "x", "--load_best") == "test"


def test_patience_may_count_on_validation_images_that_the_data_brings() -> None:
    assert parse(["--name", "x", "--data_dir", "flowers102", "--patience", "3"]).learning.patience == 3


# --- which options ----------------------------------------------------------------------------------------------------

# Each list as it was when it was written down by hand, where it was needed.
OF_LEARNING = {f.name for group in (args.Model, args.Learning) for f in dataclasses.fields(group)}
READ_BY = {
    "test": {
        "device", "num_workers", "precision", "cache", "cache_dir", "cache_limit", "data_dir", "labels_csv",
        "data_root", "test_mode", "load_path", "load_best", "keep_pages", "debug",
    },
    "predict": {
        "device", "num_workers", "precision", "out", "predict_copy", "copy_by", "min_probability", "load_path",
        "only_new", "strict", "reject", "keep_pages", "debug", "overwrite", "predict_dir",
    },
    "explain": {"device", "num_workers", "precision", "load_path", "keep_pages", "debug", "explain"},
    "export": {"num_workers", "out", "data_dir", "load_path", "keep_pages", "debug", "overwrite", "export"},
    "inspect": {
        "inspect", "name", "overwrite", "seed", "device", "precision", "num_workers", "cache", "cache_dir",
        "cache_limit", "cache_dtype", "keep_pages", "debug", "data_dir", "data_root", "download", "labels_csv",
        "val_percent", "test_percent", "model_name", "weights", "image_size", "near_duplicate",
    },
    "view_report": {
        "view_report", "views", "name", "overwrite", "seed", "device", "precision", "num_workers", "cache",
        "cache_dir", "cache_limit", "cache_dtype", "keep_pages", "debug", "data_dir", "data_root", "download",
        "labels_csv", "num_labels", "num_labels_percent", "val_percent", "test_percent", "label_split",
    },
    "list_views": {"list_views", "keep_pages", "debug"},
    "list_runs": {"list_runs", "keep_pages", "debug"},
}  # fmt: skip


@pytest.mark.parametrize("command", READ_BY)
def test_what_a_command_reads(command: str) -> None:
    # A config file is read before the command is known.
    assert args.read_by(command) == READ_BY[command] | {"config"}


def test_what_training_reads() -> None:
    others = {*args.COMMANDS, "out", "predict_copy", "copy_by", "min_probability", "only_new", "strict"}
    others |= {"near_duplicate", "reject"}
    others |= args.read_only_by("search")
    assert args.read_by("train") == set(FIELDS) - others
    unread = {"load_path", "load_best", "tensorboard", "show_images", "print_model", "repeat", "calibration_folds"}
    unread |= {"balance", "recall"}
    assert args.read_by("search") == (set(FIELDS) - others - unread) | args.read_only_by("search")
    unread = {"load_path", "load_best", "calibration_folds", "finetune_mode", "switch_mode", "cotrain_mode"}
    unread |= {"balance", "recall"}
    unread |= {"algorithm", "finetune_views", "finetune_steps"}
    assert args.read_by("compare") == (set(FIELDS) - others - unread) | {"compare"}


def test_what_of_the_machine_a_loaded_classifier_takes() -> None:
    """Beside what says where to write, which is never a value of the run, and what is done before it begins."""
    beside = {"overwrite", "config", "keep_pages", "debug"}
    assert args.read_by("predict", group="run") - beside == {"device", "num_workers", "precision"}
    assert args.read_by("export", group="run") - beside == {"num_workers"}


def test_every_option_is_read_by_a_command() -> None:
    for option in TABLE:
        assert option.commands
        assert set(option.commands) <= set(args.ALL)
        assert option.command is None or option.commands == (option.command,)


def test_the_commands_and_which_of_them_need_no_name() -> None:
    assert args.COMMANDS == {
        "test_mode": "test", "predict_dir": "predict", "export": "export", "explain": "explain",
        "inspect": "inspect", "compare": "compare",
        "optuna_mode": "search", "list_views": "list_views", "view_report": "view_report",
        "list_runs": "list_runs",
    }  # fmt: skip
    assert {"test_mode", "predict_dir", "explain", "export", "list_views", "list_runs"} == args.NAMELESS
    assert set(MPL.COMMANDS) == set(args.COMMANDS)
    assert {"train", *args.COMMANDS.values()} == set(args.ALL)


def test_what_is_not_recorded() -> None:
    assert {"resume", "overwrite", "config", "debug"} == NOT_RECORDED


def test_what_may_change_when_a_run_is_resumed() -> None:
    assert args.changeable_on_resume() == {
        "name", "device", "num_workers", "cache_dir", "cache_limit", "tensorboard", "keep_pages", "repeat",
        "n_trials", "timeout", "search_workers", "storage",
    }  # fmt: skip


def test_what_a_loaded_run_brings() -> None:
    assert args.inherited("fixed") == {"model_name", "image_size"}
    assert args.inherited("default") == {
        "unfreeze", "num_labels", "num_labels_percent", "val_percent", "test_percent", "label_split", "data_dir",
        "labels_csv", "data_root", "flip", "seed",
    }  # fmt: skip


def test_what_belongs_to_a_search() -> None:
    assert args.read_only_by("search") == {
        "optuna_mode", "n_trials", "timeout", "search", "folds", "search_workers", "storage", "pruner",
    }  # fmt: skip
    assert args.searchable() == OF_LEARNING | {
        "precision", "augmentation_draws", "flip", "include_labeled", "switch_mode", "finetune_mode", "algorithm",
    }  # fmt: skip
    assert args.per_machine() == {
        "name", "device", "precision", "compile", "num_workers", "keep_pages", "cache", "cache_dir", "cache_limit",
        "data_dir", "data_root", "labels_csv", "weights", "n_trials", "timeout", "search_workers", "storage", "pruner",
        "download", "print_model",
    }  # fmt: skip


def test_the_rules_agree_with_what_the_commands_read() -> None:
    """What a command excludes it does not read, and what needs a command is read by nothing else."""
    asking = args.COMMANDS.items()
    for name, excludes, needs in RULES:
        for other, command in asking:
            assert name != other or not set(excludes) & args.read_by(command), (name, excludes)
        if needs and set(needs) <= set(args.COMMANDS):
            assert set(TABLE[name].commands) == {args.COMMANDS[other] for other in needs}, name


def test_what_is_not_used_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--seed", "0", "--max_lr", "0.1", "--num_workers", "1", "--load_path", "e", "--predict_dir", "/new"]
    parse(line).warn_of_unused("predict")
    assert capsys.readouterr().err == "warning: --max_lr, --seed: not used by --predict_dir\n"
    parse(line).warn_of_unused("predict", also_defaults=False, but="it takes others")
    assert capsys.readouterr().err == "warning: --max_lr: not used by --predict_dir; it takes others\n"
    parse(["--name", "x", "--inspect", "--seed", "3"]).warn_of_unused("inspect")
    assert capsys.readouterr().err == ""


def test_the_values_that_were_given() -> None:
    options = parse(["--name", "x", "--seed", "0", "--max_lr", "0.1"])
    assert options.given_values({"seed", "max_lr", "head"}) == {"seed": 0, "max_lr": 0.1}


# --- the options as a whole -------------------------------------------------------------------------------------------


def test_no_name_is_taken_twice() -> None:
    assert len(FIELDS) == sum(len(dataclasses.fields(group)) for group in GROUPS.values())
    assert not any(f"no_{name}" in FIELDS for name in FIELDS)


def test_changed_sets_by_the_flat_name_and_counts_nothing_as_given() -> None:
    options = parse(["--name", "x"]).changed(seed=5, unfreeze="all")
    assert (options.run.seed, options.model.unfreeze, options.run.name) == (5, "all", "x")
    assert options.given == {"name"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.run.seed = 1  # type: ignore[misc]


def test_the_page_of_options_lists_every_option_with_its_default() -> None:
    lines = options_page().partition("## Run")[2].splitlines()
    for option in TABLE:
        own = [line for line in lines if line.startswith((f"| `--{option.name} ", f"| `--{option.name}`"))]
        assert len(own) == 1, option.name
        usage, default, does, commands = own[0].strip("| ").split(" | ")
        assert does == option.help
        if option.default not in (None, ()) and not option.is_switch:
            assert default == f"`{option.default}`"
            assert option.placeholder in usage
        assert set(args.ALL if commands == "all" else commands.split(", ")) == set(option.commands)
    assert "%%" not in options_page()
    assert all(line.count("|") == 5 for line in lines if line.startswith("|"))


def test_help_names_every_option_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['MPL.py', '--help']\n"
        "from transfermpl import MPL\n"
        "try:\n    MPL.main()\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'torchvision', 'timm', 'matplotlib', 'sklearn', 'scipy', 'PIL', 'tqdm', 'optuna'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
    shown = done.stdout
    for name in FIELDS:
        assert f"  --{name}" in shown, name
    head, _, rest = shown.partition("Examples:\n")
    assert head.startswith("usage: MPL.py --name NAME [options]\n\n")
    assert len(head.splitlines()) <= 6
    examples = rest.partition("\n\n")[0].splitlines()
    assert len(examples) == 4
    for example in examples:
        assert parse(shlex.split(re.split(" {2,}", example.strip())[0])[2:])
    for group in GROUPS.values():
        assert f"{group.__doc__}:" in shown
    assert "%%" not in shown
    assert done.stderr == ""


def test_a_wrong_command_line_ends_before_anything_heavy_is_loaded() -> None:
    code = "import sys\nfrom transfermpl import MPL\n"
    code += "code = MPL.main(['--name', 'x', '--sed', '1'])\nprint(code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]
    assert done.stderr.strip() == "MPL.py: there is no option --sed; did you mean --seed?"


# --- whatever is typed ------------------------------------------------------------------------------------------------

WORDS = st.one_of(
    st.sampled_from([f"--{name}" for name in FIELDS] + [f"--no_{name}" for name in FIELDS] + [*VALUES.values(), "--"]),
    st.text(max_size=12),
    st.builds("--{}={}".format, st.sampled_from(sorted(FIELDS)), st.text(max_size=8)),
    st.integers().map(str),
    st.floats().map(str),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(WORDS, max_size=8))
def test_no_command_line_breaks_the_parser(line: list[str]) -> None:
    check_parse(["--name", "x", *line])
    check_parse(line)


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(st.lists(WORDS, max_size=8))
def test_no_longer_search_finds_a_line_that_does(line: list[str]) -> None:
    check_parse(["--name", "x", *line])


def check_parse(line: list[str]) -> None:
    """A line of help, a UserError that says something, or options that survive being written down."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(UserError):
        try:
            options = parse(line)
        except SystemExit as end:
            assert end.code == 0  # noqa: PT017
        else:
            kept = options.changed(resume=False, overwrite=False, config=None)
            assert make(options.recorded()).flat() == kept.flat()


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(FIELDS)) | st.text(max_size=5), JSON, max_size=4))
def test_no_config_breaks_the_options(values: dict[str, Any]) -> None:
    with contextlib.suppress(UserError):
        make({"name": "x", **values})


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda file: file.stem)
def test_the_options_that_a_benchmark_gives_exist(file: Path) -> None:
    """An option that is gone would show only when somebody runs the benchmark, hours long, again."""
    text = file.read_text(encoding="utf-8")
    own = set(re.findall(r'add_argument\(\s*"--([a-z_]+)"', text))
    given = set(re.findall(r'"--([a-z]+(?:_[a-z]+)*)"', text)) - own
    known = {*FIELDS, *(f"no_{name}" for name in SWITCHES), "help"}
    assert given <= known
