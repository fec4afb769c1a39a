"""What is known of a run when it has ended, beside its summary: what its page and its warnings are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ..args import Cotraining, Mode, Model
from ..backbones.registry import view_labels
from ..base.metrics import confusion_matrix
from ..data import Dataset, Split
from ..features.sources import Source
from .unlabeled_tables import UnlabeledPredictions


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended.

    mode, model, cotraining: its options; backbone: the first view's name; command: the line that makes it again; rows:
    of metrics.csv; tested: each model's probabilities {name: float32 [N, C]} for the rows of `split.test`, or of
    `held_out`, the labeled images by trainings without them, where there is no test; source: where the first view's
    features come from; decided: the classes int64 [N] of the same images where these are not just the most probable
    ones; uncalibrated: `tested` before calibration, {} where there was none; overlays: what the predictions of some
    test images rest on, by position and view or model; unlabeled: what the models say of images without a label; folds:
    each model's counts int64 [C, C] on images that folds held out, where these say more than the test, which is small
    or missing; resumed: whether it was stopped before, so that its times are those of the last part alone.
    """

    mode: Mode
    model: Model
    cotraining: Cotraining
    seed: int
    command: str
    backbone: str
    dataset: Dataset
    split: Split
    rows: Sequence[Mapping[str, Any]]
    tested: Mapping[str, np.ndarray]
    source: Source | None = None
    decided: Mapping[str, np.ndarray] = field(default_factory=dict)
    uncalibrated: Mapping[str, np.ndarray] = field(default_factory=dict)
    overlays: Mapping[int, Mapping[str, np.ndarray]] = field(default_factory=dict)
    unlabeled: UnlabeledPredictions | None = None
    folds: Mapping[str, np.ndarray] = field(default_factory=dict)
    resumed: bool = False
    held_out: np.ndarray | None = None

    @property
    def judged(self) -> np.ndarray:
        """int64 [N]: the rows that `tested` is of."""
        return self.split.test if self.held_out is None else self.held_out

    @property
    def judged_images(self) -> str:
        """What these images are."""
        return "test images" if self.held_out is None else "labeled images, each predicted by trainings without it"

    @property
    def method(self) -> str:
        """How it learned, a key of `page.METHODS`."""
        return self.cotraining.algorithm if self.mode.cotrain_mode else self.mode.name

    @property
    def views(self) -> list[str]:
        """Its backbones by name, one or those of co-training."""
        return view_labels(self.cotraining.views) if self.mode.cotrain_mode else [self.backbone]

    @property
    def judge(self) -> str:
        """The model whose mistakes are shown: the ensemble where there is one."""
        models = self.tested or self.folds
        return "ensemble" if "ensemble" in models else next(iter(models))

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]: the true classes of the images that are judged."""
        return self.dataset.labels[self.judged]

    @property
    def confusion(self) -> np.ndarray:
        """int64 [C, C]: the judge's counts on the judged images, a row a true class, a column a predicted one."""
        return confusion_matrix(self.labels, self.predicted(self.judge), len(self.dataset.classes))

    @property
    def leading(self) -> np.ndarray | None:
        """int64 [C, C]: the judge's counts where its accuracy leads, on the folds or on the test; None without both."""
        return self.folds[self.judge] if self.folds else self.confusion if self.tested else None

    def predicted(self, model: str) -> np.ndarray:
        """int64 [N]: the classes that a model gives the judged images."""
        return self.decided[model] if model in self.decided else self.tested[model].argmax(axis=1)

    def confidence(self, model: str) -> np.ndarray:
        """float32 [N]: the probabilities of these classes."""
        return np.take_along_axis(self.tested[model], self.predicted(model)[:, None], axis=1)[:, 0]

    def surest_mistakes(self, most: int = 12) -> list[int]:
        """Positions of the judged images that the judge gets wrong, the surest first."""
        wrong = np.flatnonzero(self.predicted(self.judge) != self.labels)
        return wrong[np.argsort(-self.confidence(self.judge)[wrong], kind="stable")][:most].tolist()

    def class_counts(self, rows: np.ndarray) -> np.ndarray:
        """int64 [C]: how many images of each class these rows hold."""
        return np.bincount(self.dataset.labels[rows], minlength=len(self.dataset.classes))

    def image(self, row: int) -> Any:
        """An image as `reports.page.thumbnail` takes it: what opens it, or uint8 [H, W, 3] of an array."""
        source = self.dataset.sources[row]
        if self.dataset.array is None:
            return partial(self.dataset.picture, row)
        pixels = self.dataset.array[source]
        return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
