"""What is known of a run when it has ended, beside its summary: what its page and its warnings are made of."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import args
from ..backbones.registry import view_labels
from ..data import Dataset, Split
from ..features.sources import Source
from ..utils import program


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended.

    method: how it learned, a key of `page.METHODS`; views: the backbones by name, one or those of co-training; model:
    the options of its networks; load_path: the run that it began from; command: the line that makes it again.
    rows: of metrics.csv; tested: each model's probabilities {name: float32 [N, C]} for the rows of `split.test`;
    source: where the first view's features come from.
    """

    method: str
    views: Sequence[str]
    model: args.Model
    load_path: str | None
    seed: int
    command: str
    dataset: Dataset
    split: Split
    rows: Sequence[Mapping[str, Any]]
    tested: Mapping[str, np.ndarray]
    source: Source | None = None

    @classmethod
    def of(
        cls,
        options: args.Options,
        dataset: Dataset,
        split: Split,
        rows: Sequence[Mapping[str, Any]],
        tested: Mapping[str, np.ndarray],
        backbone: str,
        source: Source | None = None,
    ) -> FinishedRun:
        """What these options have made; backbone: the first view's name."""
        cotrained = options.mode.cotrain_mode
        return cls(
            method=options.cotraining.algorithm if cotrained else options.mode_name,
            views=view_labels(options.cotraining.views) if cotrained else [backbone],
            model=options.model,
            load_path=options.mode.load_path,
            seed=options.run.seed,
            command=shlex.join([*program().split(), *options.command_line()]),
            dataset=dataset,
            split=split,
            rows=rows,
            tested=tested,
            source=source,
        )

    @property
    def judge(self) -> str:
        """The model whose mistakes are shown: the ensemble where there is one."""
        return "ensemble" if "ensemble" in self.tested else next(iter(self.tested))

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]: the true classes of the test images."""
        return self.dataset.labels[self.split.test]

    def class_counts(self, rows: np.ndarray) -> np.ndarray:
        """int64 [C]: how many images of each class these rows hold."""
        return np.bincount(self.dataset.labels[rows], minlength=len(self.dataset.classes))

    def image(self, row: int) -> Any:
        """An image as `reports.page.thumbnail` takes it: its file, or uint8 [H, W, 3] where it came in an array."""
        source = self.dataset.sources[row]
        if self.dataset.array is None:
            return source
        pixels = self.dataset.array[source]
        return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
