"""Earlier runs: going on with one, taking over its network and split, and never testing on what it has learned."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..args import TABLE, Mode, Options, Run, changeable_on_resume, inherited
from ..args import make as make_options
from ..base.files import read_json
from ..base.tables import number_of
from ..base.written_files import OPTIONS
from ..data import Dataset, Split, read_split
from ..learning.checkpoint import whole_checkpoint
from ..utils import UserError
from .run_folder import RESULTS, find_checkpoint, resumed_folder


def resumed_options(options: Options) -> Options:
    """The options of the run that is to go on; the command line may repeat them, but not change them."""
    folder = resumed_folder(options.run.name or "")
    record = folder / OPTIONS
    advice = "take a good copy of it, or train again under another --name"
    values = read_json(record, {str: object}, advice=advice)
    with recorded_in(record, values):
        stored = make_options(values)
    free = changeable_on_resume()
    now, then = options.flat(), stored.flat()
    for name in sorted(options.given - free):
        if now[name] != then[name]:
            raise UserError(f"--resume: the run was started with --{name} {then[name]}, not {now[name]}; leave it out")
    return stored.changed(**options.given_values(free) | {"name": folder.name, "resume": True})


@contextlib.contextmanager
def recorded_in(path: Path, options: Mapping[str, Any]) -> Iterator[None]:
    """Inside, an error of the user's names the file that holds these options of a run; unknown ones are an error."""
    unknown = [name for name in options if name not in TABLE.options]
    if unknown:
        raise UserError(
            f"{path} is of another version of the program, with an option --{unknown[0]}; use that version, or train "
            "again under another --name"
        )
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def load_run(mode: Mode) -> dict[str, Any]:
    """The checkpoint of `--load_path`, with the options of its run."""
    content = whole_checkpoint(find_checkpoint(mode.load_path or "", best=mode.load_best))
    with recorded_in(content["path"], content["options"]):
        return {**content, "stored": make_options(content["options"])}


def inherit(options: Options, loaded: Mapping[str, Any]) -> Options:
    """A loaded run brings its network, and its split unless the user gives another (whose leaks are then an error)."""
    stored = loaded["stored"].flat() | {"model_name": loaded["model"]["name"]}
    fixed = inherited("fixed")
    values = {name: stored[name] for name in fixed | inherited("default")}
    for name, value in options.given_values(fixed).items():
        if value != values[name]:
            raise UserError(
                f"the loaded run has --{name} {values[name]}; leave out --{name}, which can't be changed any more"
            )
    given = set(options.given)
    if given & {"num_labels", "num_labels_percent"}:
        given |= {"num_labels", "num_labels_percent"}
    return options.changed(**{name: value for name, value in values.items() if name not in given})


def check_not_itself(loaded: Mapping[str, Any], run: Run) -> None:
    """A run that is loaded is not replaced by what is made of it."""
    if run.overwrite and run_of(loaded["path"]).resolve() == (RESULTS / (run.name or "")).resolve():
        raise UserError(f"--overwrite would delete {run_of(loaded['path'])}, which is loaded; give another --name")


def check_classes(loaded: Mapping[str, Any], dataset: Dataset) -> None:
    """A loaded run goes on with the classes that it knows."""
    if tuple(loaded["classes"]) != dataset.classes:
        theirs, ours = set(loaded["classes"]), set(dataset.classes)
        differ = ", ".join(sorted(theirs ^ ours)[:3])
        raise UserError(
            f"the checkpoint {loaded['path']} knows {len(theirs)} classes and {dataset.name} has {len(ours)}: "
            f"they differ in {differ}; give the data that it was trained on"
        )


def check_leaks(loaded: Mapping[str, Any], dataset: Dataset, split: Split) -> None:
    """No image in the test that the loaded run has seen, and none in the validation whose label it has learned."""
    held_out = {"test": (split.test, "seen"), "validation": (split.val, "labels")}
    for part, (rows, used) in held_out.items():
        leaks = int(np.isin(dataset.hashes[rows], hashes_in(loaded, used)).sum())
        if leaks:
            words = f"image of this {part} was a training image", f"images of this {part} were training images"
            raise UserError(
                f"{number_of(leaks, *words)} of the loaded run; "
                "leave out --seed and the options of the split to take over its own"
            )


def check_same_options(content: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """A run goes on with the options, here by name, that its checkpoint was written with. Raises UserError."""
    with recorded_in(content["path"], content["options"]):
        then = make_options(content["options"]).flat()
    for name in sorted(content["options"].keys() - changeable_on_resume()):
        if now[name] != then[name]:
            raise UserError(
                f"{content['path']} was trained with --{name} {then[name]}, and commandline_args.txt says {now[name]}; "
                "put that back, or train again under another --name"
            )


def hashes_in(loaded: Mapping[str, Any] | None, used: str) -> np.ndarray:
    """Contents uint64 of the loaded run and the runs that it came from: `seen` in training or validation, `labels`
    whose label was learned, `validation`. Empty without a loaded run.
    """
    return np.zeros(0, dtype=np.uint64) if loaded is None else loaded[used].numpy().view(np.uint64)


def check_same_images(folder: Path, dataset: Dataset, split: Split) -> None:
    """A run goes on with the very images that it began with."""
    if not (folder / "split.csv").is_file():
        return
    before = read_split(folder / "split.csv")
    unlabeled = np.setdiff1d(split.unlabeled, split.labeled)
    now = {"labeled": split.labeled, "unlabeled": unlabeled, "test": split.test, "val": split.val}
    if any(before.get(name, set()) != set(dataset.hashes[rows].tolist()) for name, rows in now.items()):
        raise UserError(f"the images under {dataset.name} have changed since the run began; start a new run")


def with_ranges(dataset: Dataset, loaded: Mapping[str, Any]) -> Dataset:
    """The data set with black and white as they were when the loaded run learned, where it has seen such images."""
    return replace(dataset, ranges={**dataset.ranges, **loaded["model"]["ranges"]})


def run_of(checkpoint: Path) -> Path:
    """The run's folder that a checkpoint lies in; a checkpoint that lies alone is its own folder's."""
    folder = checkpoint.resolve().parent
    return checkpoint.parent.parent if folder.name == "checkpoints" else checkpoint.parent


def with_classes(dataset: Dataset, loaded: Mapping[str, Any]) -> Dataset:
    """The data set with its labels as the loaded run counts them; it may have fewer classes, but no others."""
    known = {name: index for index, name in enumerate(loaded["classes"])}
    others = [name for name in dataset.classes if name not in known]
    if others:
        raise UserError(
            f"{dataset.name} has classes that {loaded['path']} does not know: {', '.join(others[:3])}; "
            f"it was trained on {', '.join(list(known)[:5])}{', ...' if len(known) > 5 else ''}"
        )
    index = np.array([known[name] for name in dataset.classes] + [-1])
    return replace(dataset, classes=tuple(known), labels=index[dataset.labels])
