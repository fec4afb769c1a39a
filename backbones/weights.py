"""Weights in files: reading them without running code, fitting them into a network, and telling them apart."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..base.fields import fault
from ..utils import UserError, warn

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".pth.tar")
RECORD = "view"  # where a .safetensors file that `registry.save_view` wrote says what it is
WRAPPERS = frozenset(("module", "_orig_mod"))  # what DDP or DataParallel, and torch.compile, put into keys


def read_weights(
    path: Path, below: tuple[str, ...] = (), wanted: Callable[[str], bool] = lambda key: True
) -> dict[str, Tensor]:
    """The state dict in a file with one of SUFFIXES, cleaned, on the CPU.

    It may lie below one of the names `below`, "state_dict", "model_state" or "model". Of a .safetensors file only the
    wanted keys are read. Raises UserError; a file that holds code is refused.
    """
    content: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                content = {key: file.get_tensor(key) for key in file.keys() if wanted(key)}  # noqa: SIM118
        else:
            # Many a published checkpoint also keeps its command line, which is names and values and runs no code.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own errors for a broken file
        raise UserError(
            f"--weights {path} is refused: broken, or more than tensors in it; give a state dict"
        ) from error
    if isinstance(content, dict):
        nested = (content[name] for name in (*below, "state_dict", "model_state", "model") if name in content)
        content = next(nested, content)
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise UserError(f"--weights {path} holds no state dict (names and tensors); give another file")
    return clean_state(content)


def three_numbers(value: Any) -> bool:
    """three numbers"""
    return isinstance(value, (list, tuple)) and len(value) == 3 and fault(value, [float]) is None


def content_hash(value: Any) -> bool:
    """16 hex digits"""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value) is not None


# What `registry.view_record` writes, as `fields.fault` reads it.
VIEW_RECORD: dict[Any, Any] = {
    "name": str,
    "transform": {
        "size": int, "resize": int,
        "interpolation": ("nearest", "box", "hamming", "lanczos", "bicubic", "bilinear"),
        "mean": three_numbers, "std": three_numbers,
    },
    "shape": {str: object}, "pretrained": bool, "learned": [content_hash],
}  # fmt: skip

STORED_RECORD = {key: wanted for key, wanted in VIEW_RECORD.items() if key != "learned"}
STORED_RECORD |= {"learned?": VIEW_RECORD["learned"], "digest?": str}  # in a file of a view


def record_in(weights: str) -> dict[str, Any] | None:
    """The record of a file that `registry.save_view` wrote; None for any other, and for the words of `--weights`.

    Raises UserError where the record is damaged.
    """
    path = Path(weights).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})[RECORD])
    except Exception:  # another program's, or broken: reading the weights will say so
        return None
    if not isinstance(record, dict) or "name" not in record:
        return None
    wrong = fault(record, STORED_RECORD)
    if wrong is not None:
        raise UserError(f"--weights {path} is damaged: of its view {wrong}; take a good copy, or fine-tune it again")
    if "learned" not in record:
        warn(f"{path} does not say which labels it was fine-tuned on: an earlier version wrote it; don't test on those")
    return record


def learned_in(record: Mapping[str, Any] | None) -> np.ndarray:
    """The content hashes uint64 [N], sorted, of the images whose labels the weights of a record have learned."""
    return np.array([int(code, 16) for code in (record or {}).get("learned", ())], dtype=np.uint64)


def weight_file(weights: str) -> Path | None:
    """The file that `--weights` names, or None when it is one of the words."""
    if weights in ("default", "none"):
        return None
    path = Path(weights).expanduser()
    if not path.is_file():
        raise UserError(f"--weights {weights}: there is no such file; give default, none or a file")
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"--weights {weights}: the file must be a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    return path


def clean_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the parts that wrappers (DDP, DataParallel, torch.compile) put into its keys."""
    return {_clean_key(key): value for key, value in state.items()}


def _clean_key(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def load_into(net: nn.Module, state: Mapping[str, Tensor], heads: tuple[str, ...], complaint: str) -> None:
    """Fill the network; keys below `heads` may be there or not. Raises UserError naming the first keys that don't fit.

    Tensors of another dtype become the network's own.
    """
    own = net.state_dict()
    # A few networks have a part that is truly called `module`; torchvision's densenet files say norm.1 for norm1.
    names = {_clean_key(key): key for key in own}
    modern = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): key for key in state}
    given = {names.get(key, key): state[old] for key, old in modern.items()}
    prefixes = tuple(f"{_widened(head, own)}." for head in heads)
    faults = {
        # Files from before 2018 have no num_batches_tracked; nothing here uses it.
        "missing": [key for key in own if key not in given and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in given if key not in own and not key.startswith(prefixes)],
        "of another shape": [key for key, value in given.items() if key in own and value.shape != own[key].shape],
    }
    parts = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in faults.items()
        if keys
    ]
    if parts:
        raise UserError(
            f"{complaint}: of its keys {', '.join(parts)}; give its own weights, or --model_name with their network"
        )
    own.update({key: value for key, value in given.items() if key in own})
    net.load_state_dict(own)


def _widened(head: str, own: Mapping[str, Tensor]) -> str:
    """The outermost module around `head` of which the network has no key: some heads are more than one layer."""
    parent = head.rpartition(".")[0]
    if not parent or any(key.startswith(f"{parent}.") for key in own):
        return head
    return _widened(parent, own)


@dataclass(frozen=True)
class KeyMap:
    """How a published file names what a network needs, and what else lies in it. Patterns match a key's beginning."""

    dropped: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()

    def drops(self, key: str) -> bool:
        return any(re.match(pattern, key) for pattern in self.dropped)

    def applied(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict without what is dropped, under our names; what is not named stays, to be complained of."""
        return {self._name(key): value for key, value in state.items() if not self.drops(key)}

    def _name(self, key: str) -> str:
        for pattern, ours in self.renamed:
            key = re.sub(f"^(?:{pattern})", ours, key)
        return key


def state_digest(module: nn.Module) -> str:
    """A hex digest of all keys and values of the state dict, the same on every machine and memory layout."""
    digest = hashlib.blake2b(digest_size=16)
    for key, value in sorted(module.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def one_line(error: BaseException) -> str:
    """The first sentence of an error, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0][:120] if lines else type(error).__name__
