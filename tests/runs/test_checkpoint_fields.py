"""Checkpoints with a field that is missing, of another type, or that does not fit: one line, or the same result."""

from __future__ import annotations

import copy
import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from runs import CLOCK, FROZEN, MOONS, Outcome, make_data, run, same, started
from transfermpl.base.files import read_json
from transfermpl.learning.checkpoint import load_checkpoint, whole_checkpoint
from transfermpl.utils import UserError

IMAGES = ("--data_dir", "d", "--num_labels", 9, "--max_steps", 4, "--num_workers", 0, "--cache_dir", "c")
LINES: dict[str, tuple[object, ...]] = {
    "moons": (*MOONS, "--num_labels", 20, "--val_percent", "20%"),
    "frozen": (*IMAGES, *FROZEN),
    "cotraining": (*IMAGES, "--cotrain_mode", "--views", "cnn", "gradients"),
    "finetuned": (*IMAGES, "--finetune_mode", "--load_path", "frozen", "--unfreeze", "all"),
}
REMOVED = object()
# Instead of what a field holds. A text, a number, ... in the place of another one is no other type.
INSTEAD: dict[str, Any] = {
    "removed": REMOVED, "none": None, "text": "what", "number": -7, "list": [1, "a"], "dict": {"a": 1},
    "tensor": torch.zeros(2, 3), "nan": float("nan"),
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of all the ways to learn."""
    root = tmp_path_factory.mktemp("place")
    make_data(root / "d")
    for name, line in LINES.items():
        outcome = run("--name", name, *line, cwd=root)
        assert outcome.code == 0, outcome.err
    return root


# --- the variants -----------------------------------------------------------------------------------------------------


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all fields, nested ones too; of several that are alike (weights, rows) the first and the last."""
    if path:
        yield path
    if path == ("options",):  # they have checks of their own
        return
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value))) if type(value) is list else []
    if len(keys) > 2 and (type(value) is list or all(isinstance(value[key], torch.Tensor) for key in keys)):
        keys = [keys[0], keys[-1]]
    for key in keys:
        yield from fields(value[key], (*path, key))


def changed(
    content: dict[str, Any], path: tuple[Any, ...], new: Any, *, also_texts: bool = False
) -> dict[str, Any] | None:
    """A checkpoint with another value at this place; None where that is the old one, or one text for another."""
    content = copy.deepcopy(content)
    owner = content
    for key in path[:-1]:
        owner = owner[key]
    old = owner[path[-1]]
    if new is REMOVED:
        del owner[path[-1]]
        return content
    if type(old) is type(new) and (isinstance(old, str) > also_texts or same(old, new)):
        return None
    if isinstance(new, float) and isinstance(old, torch.Tensor) and old.is_floating_point():
        new = torch.full_like(old, new)
    owner[path[-1]] = new
    return content


def variants(content: dict[str, Any], every: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Fields with what may stand in their place, by their names: every so many of all of them."""
    for path, how in itertools.islice(itertools.product(fields(content), INSTEAD), 0, None, every):
        variant = changed(content, path, INSTEAD[how])
        if variant is not None:
            yield ".".join(map(str, path)) + f": {how}", variant


# --- the commands that read them --------------------------------------------------------------------------------------


def without_clock(file: Path) -> Any:
    return {key: value for key, value in read_json(file).items() if key not in CLOCK}


def resumed(root: Path, name: str) -> Any:
    """Go on with a run that was killed when its training had ended."""
    folder = root / "results" / name
    (folder / "summary.json").unlink(missing_ok=True)
    outcome = run("--name", name, "--resume", cwd=root)
    if outcome.code:
        return outcome
    best = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    return [(folder / "metrics.csv").read_text(), without_clock(folder / "summary.json"), best]


def after_test(root: Path, name: str, which: str = "best.pt") -> Any:
    outcome = run("--test_mode", "--load_path", f"results/{name}/checkpoints/{which}", cwd=root)
    return outcome if outcome.code else without_clock(root / "results" / name / "test_summary.json")


def predicted(root: Path, name: str) -> Any:
    out = root / "p.csv"
    outcome = run("--predict_dir", "d", "--load_path", name, "--out", out, "--overwrite", cwd=root)
    return outcome if outcome.code else out.read_text()


def finetuned(root: Path, name: str) -> Any:
    line = ("--finetune_mode", "--max_steps", 2, "--load_path", name, "--load_best", "--cache_dir", "c")
    outcome = run("--name", "tuned", *line, "--overwrite", cwd=root)
    return outcome if outcome.code else [outcome.metrics("tuned"), outcome.checkpoint("best", "tuned")["models"]]


READERS: dict[str, list[Callable[[Path, str], Any]]] = {
    "last.pt": [resumed, lambda root, name: after_test(root, name, "last.pt")],
    "best.pt": [after_test, predicted, finetuned],
}


# What is left out is told or of no weight: uncalibrated probabilities are warned of, a phase lacks measurements of
# another, and nobody else knows of a teacher that was loaded beside a student.
TAKEN = re.compile(r"(temperatures|rows\.\d+\.[a-z_]+|models\.teacher): removed")


def check(root: Path, name: str, which: str, every: int) -> list[str]:
    """Try every so many of the variants; the names of those that did not end well."""
    path = root / "results" / name / "checkpoints" / which
    whole = path.read_bytes()
    content = torch.load(path, weights_only=True)
    readers = [reader for reader in READERS[which] if (name, reader) != ("moons", predicted)]
    expected = [reader(root, name) for reader in readers]
    wrong = []
    for what, variant in variants(content, every):
        if TAKEN.fullmatch(what):
            continue
        for index, reader in enumerate(readers):
            torch.save(variant, path)
            found = reader(root, name)
            if isinstance(found, Outcome):
                if len(found.complaint()) != 1 or found.code not in (1, 2) or "an unexpected error" in found.err:
                    wrong.append(f"{which} of {name}, {what}, reader {index}: {found.err[-300:]}")
            elif not same(found, expected[index]):
                wrong.append(f"{which} of {name}, {what}, reader {index}: another result")
    path.write_bytes(whole)
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("which", READERS)
def test_a_changed_checkpoint_is_refused_or_gives_the_same(root: Path, name: str, which: str) -> None:
    assert check(root, name, which, 7) == []


@pytest.fixture(scope="module")
def moons(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return started(tmp_path_factory.mktemp("moons"), *LINES["moons"])


def complaint(path: Path) -> str | None:
    try:
        whole_checkpoint(path)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("which", ["last", "best"])
def test_a_field_that_is_missing_or_mistyped_is_named(moons: Outcome, which: str, tmp_path: Path) -> None:
    """Of what is told without a network; of learners see below."""
    later = ("learners.", "models.", "best.", "options", "rows.", "classes.", "temperatures")
    told = 0
    for what, variant in variants(moons.checkpoint(which), 53 if which == "last" else 13):
        field, _, how = what.partition(": ")
        torch.save(variant, tmp_path / "v.pt")
        error = complaint(tmp_path / "v.pt")
        if error is None:
            assert field.startswith(later) or field.endswith(("record.shape", "precision.learning")), what
            continue
        assert error.startswith(f"{tmp_path / 'v.pt'} ")
        assert "\n" not in error
        assert field.startswith((*later, "format")) or field in error or "does not fit" in error
        told += 1
    assert told > 5


@pytest.mark.parametrize(
    ("path", "new", "says"),
    [
        (("learners", "teacher", "moments"), REMOVED, "learners.teacher.moments is missing"),
        (("learners", "student", "network", "head.layers.1.bias"), torch.zeros(3), "is float32 [3], not float32 [2]"),
        (("learners", "teacher", "optimizer", "head.layers.1.bias"), 5, "head.layers.1.bias is 5, not"),
        (("learners", "teacher", "average"), {}, "learners.teacher.average is a dict, not None"),
        (("learners", "teacher"), REMOVED, "learners does not fit the rest"),
        (("best", "student"), REMOVED, "best does not fit the rest"),
        (("best", "student", "state", "head.layers.1.bias"), torch.zeros(3), "best.student.state.head.layers.1.bias"),
        (("rows", 2), REMOVED, "step does not fit the rest"),
        (("options", "head_prior"), "no", "last.pt: --head_prior no is unknown"),
        (("options", "seed"), 5, "was trained with --seed 5, and commandline_args.txt says 0"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_run_does_not_go_on_from_what_is_not_its_state(
    moons: Outcome, path: tuple[Any, ...], new: Any, says: str
) -> None:
    file = moons.folder() / "checkpoints" / "last.pt"
    whole = file.read_bytes()
    torch.save(changed(moons.checkpoint("last"), path, new, also_texts=True), file)
    outcome = run("--name", "x", "--resume", cwd=moons.cwd)
    file.write_bytes(whole)
    assert outcome.code == 2
    assert len(outcome.complaint()) == 1
    assert "last.pt" in outcome.err
    assert says in outcome.err


def test_a_run_of_another_version_says_so(moons: Outcome, tmp_path: Path) -> None:
    shutil.copytree(moons.folder(), tmp_path / "results" / "x")
    for name in ("last", "best"):
        content = moons.checkpoint(name)
        content["options"]["neighbours"] = 5
        torch.save(content, tmp_path / "results" / "x" / "checkpoints" / f"{name}.pt")
    for line in (("--name", "x", "--resume"), ("--test_mode", "--load_path", "x")):
        outcome = run(*line, cwd=tmp_path)
        assert outcome.code == 2
        [told] = outcome.complaint()
        assert "is of another version of the program, with an option --neighbours; use that version" in told


def test_changed_bytes_of_weights_are_never_taken_for_weights(moons: Outcome, tmp_path: Path) -> None:
    """torch itself does not look at a file's checksums."""
    whole = (moons.folder() / "checkpoints" / "best.pt").read_bytes()
    weight = moons.checkpoint()["models"]["teacher"]["backbone.net.3.weight"]
    at = whole.index(weight.numpy().tobytes()) + 100
    (tmp_path / "a.pt").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(UserError, match="can't be read as a checkpoint"):
        load_checkpoint(tmp_path / "a.pt")


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "a.pt").mkdir()
    with pytest.raises(UserError, match="can't be read"):
        load_checkpoint(tmp_path / "a.pt")
