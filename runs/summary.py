"""What the summaries of all commands have in common: name and command, the data used, and the program that made it."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Dataset, Split, unused_labels
from ..utils import typed


def summary_header(name: str, *, words: Sequence[str] | None = None, **of_the_run: Any) -> dict[str, Any]:
    """How a summary begins: `name`, what is said of the run (its `mode`, `seed` or `seeds`), and `command`.

    words: of the command line, where they are not those that this process was started with.
    """
    return {"name": name, **of_the_run, "command": typed(words)}


def data_used(dataset: Dataset, split: Split, used: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """`dataset` (its `path`, `classes`, `images` in each part of the split), `labels_used` and `labels_unused`.

    Where images are not 8-bit, `ranges` of the dataset says which values are black and white.

    used: content hashes of the images whose labels were used, as `labels` for learning and as `validation`.
    """
    counts = {name: len(rows) for name, rows in vars(split).items()}
    about = {"path": dataset.name, "classes": list(dataset.classes), "images": counts}
    return {
        "dataset": about | ({"ranges": dict(dataset.ranges)} if dataset.ranges else {}),
        "labels_used": len(np.union1d(used["labels"], used["validation"])),
        "labels_unused": unused_labels(dataset, split),
    }


def made_with() -> dict[str, Any]:
    """How a summary ends: `versions` of the libraries and `commit` of this program."""
    return {"versions": versions(), "commit": commit()}


def versions() -> dict[str, str]:
    """Of Python and of the libraries that a result depends on."""
    from importlib import metadata

    names = ("torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


def commit() -> str | None:
    """The commit of this program, with a `+` when its files were changed since; None outside a checkout."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():  # installed, it may lie within a repository of the user's
        return None

    def git(*words: str) -> str:
        command = ["git", "-C", str(here), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
