"""Where a run takes place: its images and how they are split, its seed, its device and its precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ..args import Run
from ..data import Dataset, Split
from ..utils import choose_device, choose_precision


class Precision(NamedTuple):
    """The dtypes of autocast: of passes that learn, and of frozen backbones."""

    learning: torch.dtype
    features: torch.dtype

    def described(self, *, frozen: bool) -> dict[str, str]:
        """The names of the dtypes that are in use; `features` only where the backbone is frozen."""
        used = {"learning": self.learning} | ({"features": self.features} if frozen else {})
        return {name: str(dtype).removeprefix("torch.") for name, dtype in used.items()}


@dataclass(frozen=True)
class RunContext:
    """What all parts of a run share and none of them changes."""

    data: Dataset
    split: Split
    seed: int
    device: torch.device
    precision: Precision


def make_context(run: Run, data: Dataset, split: Split) -> RunContext:
    """The context of a run on these images. Raises UserError when the device is not there."""
    device = choose_device(run.device)
    return RunContext(data, split, run.seed, device, choose_precisions(run.precision, device))


def choose_precisions(name: str, device: torch.device) -> Precision:
    """What `--precision` means on a device, for what learns and for what is frozen."""
    return Precision(choose_precision(name, device), choose_precision(name, device, frozen=True))


def only(**rows: np.ndarray) -> Split:
    """A split of the named parts alone, e.g. `only(test=rows)`; the others are empty."""
    nothing = np.zeros(0, dtype=np.int64)
    return Split(**{name: rows.get(name, nothing) for name in ("labeled", "unlabeled", "val", "test")})
