"""Checkpoints: written whole or not at all, read without running any code of theirs, each of their fields checked."""

from __future__ import annotations

import contextlib
import errno
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones.weights import VIEW_RECORD, one_line
from ..base.fields import fault
from ..base.files import atomic_file
from ..images.decode import UNSEEN
from ..utils import UserError

ADVICE = "take a good copy of it, or train again under another --name"


# --- what a checkpoint holds ------------------------------------------------------------------------------------------


def hashes(value: Any) -> bool:
    """int64 [N]"""
    return isinstance(value, Tensor) and value.dtype == torch.int64 and value.ndim == 1


def weights(value: Any) -> bool:
    """a tensor of finite numbers"""
    return isinstance(value, Tensor) and value.layout == torch.strided and bool(value.isfinite().all())


def value_ranges(value: Any) -> bool:
    """black and white of integers, of floats, or of both"""
    known = isinstance(value, dict) and value.keys() <= UNSEEN.keys()
    return known and all(fault(one, [float]) is None and len(one) == 2 and one[0] < one[1] for one in value.values())


def class_weights(value: Any) -> bool:
    """positive numbers"""
    return fault(value, [float]) is None and all(one > 0 for one in value)


def features(value: Any) -> bool:
    """finite float16 [M, D]"""
    return weights(value) and value.dtype == torch.float16 and value.ndim == 2


def distances(value: Any) -> bool:
    """finite float32 [M], ascending"""
    return weights(value) and value.dtype == torch.float32 and value.ndim == 1 and bool((value.diff() >= 0).all())


def nothing(value: Any) -> bool:
    """empty"""
    return value == {}


STATE = {str: weights}
# As `fields.fault` reads it. `runs/checkpoints.py: description` writes what all checkpoints hold.
CHECKPOINT: dict[Any, Any] = {
    "format": 1,
    "classes": [str],
    "model": {
        "name": str, "native_size": int, "kind": ("photos", "digits", "points"), "frozen": bool,
        "ranges": value_ranges, "precision": {str: str},
    },
    "options": {str: object},
    "seen": hashes, "labels": hashes, "validation": hashes,
    "views": {str: {"record": VIEW_RECORD, "backbone": (STATE, None)}},
    "models": {str: STATE},
}  # fmt: skip
# What `last.pt` holds beside it, by `train.progress_state`; of a learner see `Learner.load_state_dict`.
LAST: dict[Any, Any] = {
    "step": int,
    "rows": [{"epoch": int, "step": int, "teacher": str, str: float}],
    "best": {str: {"epoch": int, "accuracy": float, "state": STATE}},
    "partial": ({"counts": {str: int}, "read_sums": {str: float}, "sums": {str: float}}, nothing),
    "learners": {str: dict},
}
# And `best.pt`, by `save_best`.
BEST: dict[Any, Any] = {
    "best_epoch": {str: int}, "temperatures?": {str: float},
    "decision": {"weights": class_weights, "thresholds": {str: {str: float}}},
    "reference": ({"features": features, "distances": distances}, nothing),
}  # fmt: skip


def like(value: Any) -> Any:
    """What must be read where this was written: the same names, and tensors of the same dtypes and shapes."""
    if isinstance(value, Mapping):
        return {name: like(one) for name, one in value.items()}
    if not isinstance(value, Tensor):
        return value

    def is_like(one: Any) -> bool:
        right = isinstance(one, Tensor) and one.dtype == value.dtype and one.shape == value.shape
        return right and not bool(one.isnan().any())

    is_like.__doc__ = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return is_like


def contradiction(content: Mapping[str, Any]) -> str | None:
    """What does not fit together in a checkpoint whose fields are right each by itself."""
    models, temperatures = set(content["models"]), set(content.get("temperatures", ()))
    learned = models - ({"teacher"} if content["options"].get("finetune_mode") else set())
    kept = {view["backbone"] is not None for view in content["views"].values()}
    wrong = {
        "classes": not 0 < len(set(content["classes"])) == len(content["classes"]),
        "models": not models,
        "views": kept != {content["model"]["frozen"]},
        "seen": not bool(torch.isin(content["labels"], content["seen"]).all()),
        "temperatures": bool(temperatures) and temperatures != models | ({"ensemble"} if len(models) > 1 else set()),
    }
    if "decision" in content:
        weights, thresholds = content["decision"]["weights"], content["decision"]["thresholds"]
        named = {label for of_model in thresholds.values() for label in of_model}
        of_all = set(thresholds) in (set(), models | ({"ensemble"} if len(models) > 1 else set()))
        wrong["decision"] = len(weights) not in (0, len(content["classes"])) or not of_all
        wrong["decision"] |= not named <= set(content["classes"])
        wrong["decision"] |= any(not 0 < least <= 1 for of in thresholds.values() for least in of.values())
    if content.get("reference"):
        shape = content["reference"]["features"].shape
        wrong["reference"] = len(content["reference"]["distances"]) != shape[0] or not all(shape)
    if "learners" in content:
        rows = content["rows"]
        wrong["learners"] = set(content["learners"]) != models
        wrong["rows"] = [row["epoch"] for row in rows] != list(range(1, len(rows) + 1))
        wrong["step"] = not content["partial"] and content["step"] != (rows[-1]["step"] if rows else 0)
    else:
        wrong["best_epoch"] = set(content["best_epoch"]) != learned
    return next((f"{name} does not fit the rest" for name, is_wrong in wrong.items() if is_wrong), None)


# --- the file ---------------------------------------------------------------------------------------------------------


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all; what it holds is tensors and plain values only."""
    with atomic_file(path) as temporary:
        try:
            torch.save(dict(content), temporary)
        except RuntimeError as error:  # torch's own writer says of a full disk that a position was unexpected
            raise OSError(errno.ENOSPC, f"the disk may be full: {one_line(error)}", str(path)) from error


def whole_checkpoint(path: Path, *, last: bool | None = None) -> dict[str, Any]:
    """Read a checkpoint without running any code of it; `path` is added to what it holds.

    last: whether it must be a `last.pt`. Raises UserError when it is damaged, lacks a field, or is none at all.
    """
    content = load_checkpoint(path)
    if last is None:
        last = bool(LAST.keys() & content.keys())
    wrong = fault(content, CHECKPOINT | (LAST if last else BEST)) or contradiction(content)
    if wrong:
        raise UserError(f"{path} is damaged, or of another version of the program: {wrong}; {ADVICE}")
    return {**content, "path": path}


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint whose fields are still to be checked. Raises UserError when it is not one."""
    try:
        with zipfile.ZipFile(path) as parts:  # torch itself takes a tensor with changed bytes for a good one
            changed = parts.testzip()
        if changed is not None:
            raise ValueError(f"{changed} is not what was written")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); {ADVICE}") from error
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise UserError(f"{path} can't be read as a checkpoint; give a whole best.pt or last.pt of a run") from error
    if fault(content, {"format": 1}):
        raise UserError(f"{path} is not a checkpoint of this program; give a best.pt or last.pt of a run")
    return content


@contextlib.contextmanager
def layers_checked(path: object = "the checkpoint") -> Iterator[None]:
    """Inside, a stored model whose layers are not those of this version is a UserError, which names the file."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # of layers, of the optimizer that learned them
        raise UserError(
            f"the model in {path} has other layers than this version of the program builds ({one_line(error)}); "
            "use the version that made it, or train again"
        ) from error
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def check_like(stored: Any, wanted: Any, name: str = "") -> None:
    """Raises ValueError, which names the field, where something stored is not as wanted (see `fields.fault`)."""
    wrong = fault(stored, wanted, name)
    if wrong is not None:
        raise ValueError(wrong)
