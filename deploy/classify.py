"""Classify images with an exported model: python classify.py classifier.onnx IMAGE ... > found.csv

It needs numpy, pillow and onnxruntime (torch for a .pt2, pi-heif for HEIC images) and nothing else; `--export` writes
it beside the model, with all that decodes images in it. From Python: `Model("classifier.onnx")(["new.jpg"])`.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..base.decisions import decide
from ..images.decode import Transform, ValueRanges, fit, open_rgb, quiet_pil, read_content, reason_of

BATCH = 16


class Model:
    """An exported file; `classes` names the columns of what a call returns."""

    def __init__(self, file: str) -> None:
        about, self.run = _opened(file)
        self.classes: list[str] = json.loads(about["classes"])
        self.ranges: ValueRanges = json.loads(about["ranges"])
        self.decision: dict[str, Any] = json.loads(about["decision"])
        nothing = (0.0, 0.0, 0.0)  # mean and standard deviation are inside the model
        self.transform = Transform(int(about["size"]), int(about["resize"]), about["interpolation"], nothing, nothing)

    def __call__(self, files: Sequence[str | os.PathLike[str]]) -> np.ndarray:
        """Probabilities float32 [N, C] of image files. Raises what the decoder raises."""
        parts = [self.run(np.stack(list(map(self.pixels, files[i : i + BATCH])))) for i in range(0, len(files), BATCH)]
        return np.concatenate([np.zeros((0, len(self.classes)), np.float32), *parts])

    def name_of(self, probabilities: np.ndarray) -> list[str]:
        """The class of each image with these probabilities [N, C], as the run has tested it."""
        return [self.classes[place] for place in decide(probabilities, self.classes, **self.decision)]

    def pixels(self, file: str | os.PathLike[str]) -> np.ndarray:
        """uint8 [3, S, S]: a file's image as the model takes it, decoded as in its training."""
        with quiet_pil():
            image = open_rgb(read_content(os.fspath(file)), 2 * self.transform.resize, self.ranges)
            return np.asarray(fit(image, self.transform)).transpose(2, 0, 1)


def _opened(file: str) -> tuple[dict[str, str], Callable[[np.ndarray], Any]]:
    """A model's metadata, and what gives the probabilities [N, C] of uint8 [N, 3, S, S]."""
    if file.endswith(".pt2"):
        import torch

        extra = {"metadata.json": ""}
        program = torch.export.load(file, extra_files=extra).module()
        return json.loads(extra["metadata.json"]), lambda images: program(torch.from_numpy(images)).numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    return about, lambda images: session.run(None, {"images": images})[0]


def main(words: Sequence[str]) -> int:
    """Write a table of the files, their classes and probabilities to stdout; 1 where one can't be classified."""
    if len(words) < 2 or words[0].startswith("-"):
        sys.stderr.write("usage: python classify.py MODEL IMAGE ...\n")
        return 2
    model, table, bad = Model(words[0]), csv.writer(sys.stdout), 0
    table.writerow(["path", "class", "probability", "error"])
    for file in words[1:]:
        try:
            probabilities = model([file])[0]
        except Exception as error:  # decoders meet damaged data with whatever exception comes up
            table.writerow([_plain(file), "", "", reason_of(error)])
            bad += 1
            continue
        (name,) = model.name_of(probabilities[None])
        table.writerow([_plain(file), _plain(name), f"{probabilities[model.classes.index(name)]:.6f}", ""])
    return int(bad > 0)


def _plain(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
