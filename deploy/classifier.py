"""A finished run as a library: `load_classifier("results/exp")(images)`.

The weights are those that were tested (`best.pt`), and the probabilities are calibrated by the temperatures that the
run has found.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn

from ..args import make as make_options
from ..base.folder_walk import FoundFile
from ..features.sources import EVALUATION_BATCH
from ..images.decode import Transform, ValueRanges, fit, open_rgb, quiet_pil, read_content, reason_of, to_rgb
from ..learning.checkpoint import whole_checkpoint
from ..runs.context import choose_precisions
from ..runs.resume import recorded_in, run_of
from ..runs.run_folder import find_checkpoint
from ..runs.trained_models import restored_models
from ..utils import UserError, choose_device, warn

AHEAD = EVALUATION_BATCH  # images that are decoded, or about to be, before they are needed


def load_classifier(run: str | Path, *, device: str = "auto", num_workers: int = 2) -> Classifier:
    """The classifier of a finished run: its name, its folder or a checkpoint file. Raises UserError.

    A run's tested weights are `best.pt`; where there is none yet, `last.pt` is taken, with a warning.
    """
    return Classifier(*loaded_checkpoint(str(run)), {"device": device, "num_workers": num_workers})


class Classifier:
    """A run's models, applied to images.

    `classes` names the columns of what a call returns; `transforms` say how each view wants its images, and `models`
    are the networks by name; `temperatures` make their probabilities, and those of the ensemble, as sure as they are
    right.
    """

    def __init__(self, path: Path, content: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        self.path, self.classes = path, tuple(content["classes"])
        with recorded_in(path, content["options"]):
            self.stored = make_options(content["options"])
        if content["model"]["kind"] == "points":
            raise UserError(f"{path} has learned from points, and there are no pictures of points; give another run")
        run = self.stored.changed(**given).run
        self.device, self.workers = choose_device(run.device), max(1, run.num_workers)
        precision = choose_precisions(run.precision, self.device).features
        self.trained = restored_models(
            content, self.stored.model, seed=run.seed, device=self.device, precision=precision
        )
        self.ranges: ValueRanges = content["model"]["ranges"]
        self.transforms = tuple(dict.fromkeys(backbone.transform for backbone in self.trained.views.values()))

    @property
    def models(self) -> Mapping[str, nn.Module]:
        """The networks by name."""
        return self.trained.heads

    @property
    def temperatures(self) -> Mapping[str, float]:
        """The temperatures by model, the ensemble among them."""
        return self.trained.temperatures

    @property
    def decision(self) -> dict[str, Any]:
        """What makes classes of the probabilities: `weights` of the classes, and `thresholds` by class."""
        chosen = self.trained.decision
        return {"weights": list(chosen.weights), "thresholds": dict(chosen.thresholds.get(self.name, {}))}

    @property
    def name(self) -> str:
        """Whose probabilities a call returns: the ensemble's, or those of the only model."""
        return self.trained.name

    def name_of(self, probabilities: np.ndarray) -> list[str]:
        """The class of each image with these probabilities [N, C], as the run has tested it.

        That is the most probable one, unless rare classes weigh more or `--recall` has set a threshold.
        """
        found = self.trained.decision.of_model(self.name, probabilities, self.classes)
        return [self.classes[place] for place in found.tolist()]

    def __call__(self, images: Any) -> np.ndarray:
        """Calibrated probabilities float32 [N, C] of each class of `classes`; of the ensemble where there is one.

        images: files, PIL images or arrays uint8 [H, W, 3] (RGB), any number of them and of any size. Raises UserError
        when one can't be decoded.
        """
        return self.by_model(images)[self.name]

    def by_model(self, images: Any) -> dict[str, np.ndarray]:
        """The same of every model, and of the ensemble."""
        parts = [self.probabilities(fitted) for fitted in self._fitted(images)]
        if not parts:
            return {name: np.zeros((0, len(self.classes)), dtype=np.float32) for name in (*self.models, self.name)}
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def distance(self, images: Any) -> np.ndarray:
        """float32 [N]: the share of the training images that lie less far from the others than each of these images.

        Near 1 it is of a kind that the run has not seen. By the first view's features. Raises UserError where the run
        has no frozen backbone.
        """
        self.check_distance()
        parts = [self.examine(fitted)[1] for fitted in self._fitted(images)]
        return np.concatenate([np.zeros(0, dtype=np.float32), *(part for part in parts if part is not None)])

    def check_distance(self) -> None:
        """Raises UserError where the run can't say how far an image is."""
        if self.trained.reference is None:
            raise UserError(
                f"{self.path} knows no distances: they take a frozen backbone, and a finished run (best.pt)"
            )

    def _fitted(self, images: Any) -> Iterator[list[tuple[np.ndarray, ...]]]:
        """The `decoded` pixels of these images, in batches. Raises UserError where one can't be decoded."""
        single = isinstance(images, (str, Path, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim == 3)
        for batch in in_batches(self.decoded([images] if single else images), EVALUATION_BATCH):
            wrong = next(((item, fitted) for item, fitted in batch if isinstance(fitted, str)), None)
            if wrong is not None:
                raise UserError(f"{wrong[0]!s:.200} can't be classified ({wrong[1]}); leave it out")
            yield [fitted for _, fitted in batch if not isinstance(fitted, str)]

    def decoded(self, images: Iterable[Any]) -> Iterator[tuple[Any, tuple[np.ndarray, ...] | str]]:
        """Each image with its pixels uint8 [3, S, S] for each of `transforms`, or with what is wrong with it.

        In the order given; no more than AHEAD of them are held, however many there are.
        """
        with quiet_pil(), ThreadPoolExecutor(self.workers) as pool:
            waiting: deque[Any] = deque()
            for image in images:
                waiting.append((image, pool.submit(_pixels, image, self.transforms, self.ranges)))
                if len(waiting) >= AHEAD:
                    first, result = waiting.popleft()
                    yield first, result.result()
            for first, result in waiting:
                yield first, result.result()

    def probabilities(self, fitted: Sequence[tuple[np.ndarray, ...]]) -> dict[str, np.ndarray]:
        """Calibrated probabilities [N, C] of each model and the ensemble, from `decoded` pixels of N images."""
        return self.examine(fitted)[0]

    def examine(self, fitted: Sequence[tuple[np.ndarray, ...]]) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """The same, and the `distance` of each image, None where the run knows none."""
        batches = {
            transform: torch.from_numpy(np.stack(images)).to(self.device)
            for transform, images in zip(self.transforms, zip(*fitted, strict=True), strict=True)
        }
        return self.trained.examine(lambda view: batches[self.trained.views[view].transform])


def loaded_checkpoint(run: str) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of the tested weights: best.pt where the run has got that far."""
    try:
        path = find_checkpoint(run, best=True)
    except UserError:
        path = find_checkpoint(run, best=False)
        warn(f"{run_of(path)} was not finished, so its models are untested: take it for a try only")
    content = whole_checkpoint(path)
    if not content.get("temperatures"):
        warn("the run's probabilities are not calibrated: 90% may not mean right in nine of ten; see its report.html")
    return path, content


def _pixels(image: Any, transforms: Sequence[Transform], ranges: ValueRanges) -> tuple[np.ndarray, ...] | str:
    """uint8 [3, S, S] for each transform, or what is wrong: decoders meet damaged data with whatever comes up."""
    try:
        return tuple(np.array(fit(_opened(image, t, ranges), t)).transpose(2, 0, 1) for t in transforms)
    except Exception as error:
        return reason_of(error)


def _opened(image: Any, transform: Transform, ranges: ValueRanges) -> Image.Image:
    if isinstance(image, Image.Image):
        return to_rgb(ImageOps.exif_transpose(image), ranges)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"an array must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
        return Image.fromarray(image)
    file = image.file if isinstance(image, FoundFile) else os.fspath(image)
    return open_rgb(read_content(file), 2 * transform.resize, ranges)


def in_batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
