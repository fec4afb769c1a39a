"""What one types next, as the last lines of a command: ready to copy, and on the screen alone."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..args import make
from ..base.files import read_json
from ..base.written_files import OPTIONS
from ..utils import program, say
from .run_folder import RESULTS
from .unlabeled_tables import NEXT

NEW = "NEW_IMAGES"  # stands for a folder that only the user knows


def after_training(summary: Mapping[str, Any]) -> None:
    """How new images are classified, and how the images that the run asks for become labels.

    summary: of a run, or of its repetitions (`seeds`).
    """
    folder = RESULTS / str(summary.get("name"))
    if not (folder / OPTIONS).is_file():
        return
    asked = read_json(folder / OPTIONS, {str: object})
    if asked.get("data_dir") == "moons":  # there are no pictures of points
        return
    first = [f"/seed-{seed}" for seed in summary.get("seeds", ())[:1]]
    say_next("to classify new images", ["--predict_dir", NEW, "--load_path", "".join([folder.name, *first])])
    table = folder / NEXT
    if table.is_file() and not summary.get("labels_unused"):
        tables = [*asked.get("labels_csv", ()), str(table)]
        again = {**asked, "name": following(folder.name), "labels_csv": None}
        words = make({k: v for k, v in again.items() if k not in ("num_labels", "num_labels_percent")}).command_line()
        say_next(f"to go on, fill in the column label of {table}", [*words, "--labels_csv", *tables])


def after_inspection(name: str, words: Sequence[str]) -> None:
    """How the inspected data set is trained on; words: the options of the inspection that a training reads too."""
    say_next("to train on it", ["--name", f"{name}-train", *words])


def after_prediction(paths: Sequence[str], load_path: str) -> None:
    """How images that the classifier is unsure of are left to a person."""
    words = ["--predict_dir", *paths, "--load_path", load_path, "--min_probability", "0.9"]
    say_next("to leave what is unsure to a person", words)


def following(name: str) -> str:
    """The name of the next round: `exp`, `exp-2`, `exp-3`."""
    counted = re.fullmatch(r"(.+)-(\d+)", name)
    return f"{counted[1]}-{int(counted[2]) + 1}" if counted else f"{name}-2"


def say_next(what: str, words: Sequence[str]) -> None:
    """Say how one does that: the line that starts the program with these words, as the user has started it."""
    start = program().split()
    if Path(sys.argv[0]).name == start[-1]:  # MPL.py, from wherever it lies
        start[-1] = sys.argv[0]
    say(f"{what}: {shlex.join([*start, *words])}")
