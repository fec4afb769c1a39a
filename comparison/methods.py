"""The methods that `--compare` trains: what each changes in the options, and how a user trains by it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..backbones.registry import view_labels

BASE = "labels only"


@dataclass(frozen=True)
class Method:
    """A way to train: its options beside those that all share, and the method whose models it starts from.

    how: what a user does with the command line of --compare to train so.
    """

    name: str
    how: str
    options: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None

    @property
    def folder(self) -> str:
        """Its name as a folder's."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower())

    @property
    def supervised(self) -> bool:
        """Whether it learns from the labeled images alone."""
        return bool(self.options.get("finetune_mode")) or self.options.get("algorithm") == "labels_only"


METHODS = (
    Method(BASE, "put --finetune_mode in place of --compare", {"finetune_mode": True}),
    Method("UDA", "put --mpl_weight 0 in place of --compare", {"mpl_weight": 0.0}),
    Method("MPL", "leave out --compare"),
    Method("MPL with switched roles", "put --switch_mode in place of --compare", {"switch_mode": True}),
    Method(
        "fine-tuned student",
        "leave out --compare, then go on from that run with --finetune_mode --load_best --load_path NAME",
        {"finetune_mode": True},
        start="MPL",
    ),
)


def methods_of(views: Sequence[str]) -> tuple[Method, ...]:
    """The methods to compare: with `--views` those of co-training, and each view alone trained by MPL."""
    if not views:
        return METHODS
    alone = [
        Method(f"MPL on {label}", f"train on {view} alone, without --views", {"views": (view,)})
        for label, view in zip(view_labels(views), views, strict=True)
    ]
    together = {
        BASE: "labels_only",
        "co-training": "cotraining",
        "meta co-training": "meta",
    }
    return (
        *(
            Method(
                name, f"put --cotrain_mode --algorithm {algorithm} in place of --compare",
                {"cotrain_mode": True, "algorithm": algorithm},
            )
            for name, algorithm in together.items()
        ),
        *alone,
    )  # fmt: skip
