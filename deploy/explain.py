"""What a finished run's decisions rest on, image by image: `explain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..args import Mode
from ..base.files import file_names
from ..base.tables import number_of, percent
from ..reports.page import MOST_IMAGES, Section, write_report
from ..runs.relevance import overlays
from ..utils import say, shown, warn
from .classifier import in_batches
from .output import classifier_of, output
from .sources import Given, GivenFile

PAGE, FOLDER = "explained.html", "_images"  # the folder beside the page
TITLE = "What the decisions rest on"
HOW_TO_READ = (
    "Beside each image the same in grey, glowing where it speaks for the predicted class (Grad-CAM; of a transformer "
    "the same for its patches). A glow on the background of many images says that the model has learned the "
    "surroundings of a class; on a single one, of an unsure image above all, it says little. It is as coarse as the "
    "network's last map, and shows where the model looks, not why."
)

AT_ONCE = 4  # images whose gradients are kept, about 100 MB each


def explain(mode: Mode, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Draw what the classes of the images of `--explain` rest on, as images and as a page; returns their places.

    An earlier page stays: the next one is `explained-2`. settings: options of the group Run that replace those of the
    run, by name.
    """
    given = Given((mode.explain or "",), "--explain")
    given.check()
    classifier = classifier_of(mode, settings)
    page, folder = output(None, classifier.path, PAGE, FOLDER, overwrite=False)
    folder.mkdir()
    cards: list[dict[str, Any]] = []
    images = bad = 0
    for batch in in_batches(classifier.decoded(chain.from_iterable(given.groups())), AT_ONCE):
        fine = [(file, fitted) for file, fitted in batch if not isinstance(fitted, str)]
        bad += len(batch) - len(fine)
        if not fine:
            continue
        fitted = [pixels for _, pixels in fine]
        probabilities = classifier.probabilities(fitted)[classifier.name]
        decoded = dict(zip(classifier.transforms, map(np.stack, zip(*fitted, strict=True)), strict=True))

        def of_view(view: str, decoded: Mapping[Any, np.ndarray] = decoded) -> torch.Tensor:
            return torch.from_numpy(decoded[classifier.trained.views[view].transform]).to(classifier.device)

        chosen = classifier.trained.decision.of_model(classifier.name, probabilities, classifier.classes)
        drawn = overlays(classifier.trained, of_view, chosen)
        for index, (file, pixels) in enumerate(fine):
            images += 1
            each = {name: some[index] for name, some in drawn.items()}
            whole = pixels[0].transpose(1, 2, 0)
            _save(folder, images, file, [whole, *each.values()])
            if len(cards) < MOST_IMAGES:
                best = int(chosen[index])
                told = f"{classifier.classes[best]}, {percent(float(probabilities[index, best]))}"
                cards.append({"image": whole, "caption": [told, file.path]})
                cards += [{"image": one, "caption": [f"{told}: {name}"]} for name, one in each.items()]
    if bad:
        warn(f"can't be decoded, and so not explained: {number_of(bad, 'file')}")
    text = [HOW_TO_READ, f"{number_of(images, 'image')} in {folder.name}, each with what its class rests on."]
    section: Section = {"heading": "Images", "text": text, "gallery": cards[:MOST_IMAGES]}
    write_report(page, TITLE, [section], lead=f"By {classifier.path}.")
    say(shown(f"explained: {page}, {number_of(images, 'image')} in {folder}"))
    return {"page": str(page), "folder": str(folder), "images": images, "bad": bad}


def _save(folder: Path, number: int, file: GivenFile, pictures: Sequence[np.ndarray]) -> None:
    """The image as the first view sees it, and beside it what each part looks at; of views of other sizes, in its."""
    height, width = pictures[0].shape[:2]
    fitted = [np.asarray(Image.fromarray(picture).resize((width, height))) for picture in pictures]
    (name,) = file_names([Path(file.path).stem]).values()
    Image.fromarray(np.concatenate(fitted, axis=1)).save(folder / f"{number:05d} {name}.jpg", quality=85)
