"""Checkpoints: written whole or not at all, read without running any code of theirs."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..backbones.weights import one_line
from ..base.files import atomic_file
from ..utils import UserError


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all; what it holds is tensors and plain values only."""
    with atomic_file(path) as temporary:
        try:
            torch.save(dict(content), temporary)
        except RuntimeError as error:  # torch's own writer says of a full disk that a position was unexpected
            raise OSError(errno.ENOSPC, f"the disk may be full: {one_line(error)}", str(path)) from error


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running any code of it. Raises UserError when it is not one."""
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise UserError(f"{path} can't be read as a checkpoint; give a best.pt or last.pt of a run") from error
    if not isinstance(content, dict) or content.get("format") != 1:
        raise UserError(f"{path} is not a checkpoint of this program; give a best.pt or last.pt of a run")
    return content


@contextlib.contextmanager
def layers_checked() -> Iterator[None]:
    """Inside, a stored model whose layers are not those of this version is a UserError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # of layers, of the optimizer that learned them
        raise UserError(
            f"the stored model has other layers than this version of the program builds ({one_line(error)}); "
            "use the version that made it, or train again"
        ) from error
