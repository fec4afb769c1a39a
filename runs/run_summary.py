"""What `summary.json` of a run holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..args import Options, command_line
from ..utils import peak_memory_bytes
from .context import RunContext
from .summary import data_used, made_with, summary_header
from .views import Views


def run_summary(
    options: Options,
    name: str,
    context: RunContext,
    views: Views,
    used: Mapping[str, np.ndarray],
    results: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The summary of a run or of its test, by the name of its folder.

    used: see `checkpoints.used_images`; results: what was found, with `best_epoch` last; seconds: by what took them.
    """
    # A run that goes on was begun by another line than this one.
    words = command_line(options) if options.run.resume else None
    filled = sum(bank.seconds for bank in views.banks)
    return {
        **summary_header(name, words=words, mode=options.mode_name, seed=context.seed),
        **data_used(context.data, context.split, used),
        **results,
        "seconds": {name: round(value, 3) for name, value in {**seconds, "features": filled}.items()},
        "peak_memory_bytes": peak_memory_bytes(context.device),
        "precision": context.precision.described(frozen=views.frozen),
        **made_with(),
    }
