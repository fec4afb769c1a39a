"""How much of what is planted an inspection finds: copies of photographs, and labels that were made wrong.

    python benchmarks/inspect_recall.py -- --data_dir ../shared/data/flowers5 --model_name squeezenet1_1 \
        --weights ../shared/weights/squeezenet1_1.safetensors

Copies: --count photographs, each changed in one way and inspected beside all others. Labels: 5% of the labels become
another class, over --seeds seeds. Prints the tables for docs/inspect.md. About 2 minutes on one core from a warm bank.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable

from transfermpl.utils import keep_pages

keep_pages()

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from transfermpl import args
from transfermpl.backbones.library import build_backbone
from transfermpl.data import Dataset
from transfermpl.features.nearest import nearest
from transfermpl.images.decode import fit
from transfermpl.inspection.files import read_files
from transfermpl.inspection.image_properties import image_properties
from transfermpl.inspection.inspection import compute_features
from transfermpl.inspection.label_errors import find_label_errors
from transfermpl.inspection.near_duplicates import NEIGHBOURS, SIDE, find_near_duplicates
from transfermpl.utils import choose_device


def encoded(image: Image.Image) -> Image.Image:
    """JPEG of quality 40 and back."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=40)
    return Image.open(content).convert("RGB")


def crop(image: Image.Image, share: float) -> Image.Image:
    """This share of both sides, nearer to the upper left."""
    width, height = (round(share * side) for side in image.size)
    left, top = (image.width - width) // 4, (image.height - height) // 3
    return image.crop((left, top, left + width, top + height))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 40": encoded,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "a third of the size": lambda image: image.resize((image.width // 3, image.height // 3)),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "35% brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.35),
    "mirrored": ImageOps.mirror,
    "cropped to 90%": lambda image: crop(image, 0.9),
    "cropped to 80%": lambda image: crop(image, 0.8),
    "turned by 3 degrees": lambda image: crop(image.rotate(3, Image.Resampling.BICUBIC), 0.92),
    "turned by 90 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_90),
}


def copies(options: args.Options, dataset: Dataset, features: np.ndarray, count: int) -> None:
    """Print the share of copies that are found without and with features."""
    device, threshold = choose_device(options.run.device), options.study.near_duplicate
    rows = np.random.default_rng(0).permutation(len(dataset))[:count]
    backbone = build_backbone(options.model, native_size=0, points=False, seed=0, default_name="resnet").eval()
    own = image_properties(dataset).thumbnails
    for name, change in CHANGES.items():
        found = {"without": 0, "with": 0}
        changed = [change(dataset.picture(row, 1 << 20)) for row in rows]
        pixels = np.stack([np.asarray(fit(image, backbone.transform)) for image in changed]).transpose(0, 3, 1, 2)
        with torch.inference_mode():
            parts = torch.from_numpy(pixels.copy()).split(32)
            of_copies = torch.cat([backbone(part.float() / 255) for part in parts])
        grey = np.stack([np.asarray(i.convert("L").resize((SIDE,) * 2, Image.Resampling.BOX)) for i in changed])
        neighbours = nearest(torch.cat([torch.from_numpy(features), of_copies]), NEIGHBOURS, device=device)
        wanted = {(int(row), len(own) + place) for place, row in enumerate(rows)}
        for how, by_features in (("without", None), ("with", neighbours)):
            pairs = find_near_duplicates(np.concatenate([own, grey]), by_features, threshold, device).pairs
            found[how] = len(wanted & set(map(tuple, pairs.tolist())))
        print(f"| {name} | {100 * found['without'] / count:.0f}% | {100 * found['with'] / count:.0f}% |", flush=True)


def labels(dataset: Dataset, features: np.ndarray, seeds: int) -> None:
    """Print how many of the labels that are found were made wrong, and how many of these are found."""
    known = np.flatnonzero(dataset.labels >= 0)
    groups, classes = np.arange(len(dataset)), len(dataset.classes)
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        given = dataset.labels.copy()
        wrong = random.choice(known, round(0.05 * len(known)), replace=False)
        given[wrong] = (given[wrong] + random.integers(1, classes, len(wrong))) % classes
        found = find_label_errors(features, given, groups, classes, 0)
        order = np.argsort(-found.margin)[: int((found.suggested >= 0).sum())]
        hits = np.isin(order, wrong)
        print(
            f"seed {seed}: {len(wrong)} made wrong; of the first 25 {hits[:25].mean():.0%}, of the first 50 "
            f"{hits[:50].mean():.0%}, of all {len(order)} found {hits.mean():.0%} are of these; "
            f"{hits.sum() / len(wrong):.0%} of them are found",
            flush=True,
        )


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("options", nargs="*", help="options of MPL.py, after --")
    mine = parser.parse_args()
    options = args.parse(["--name", "x", "--inspect", *mine.options])
    dataset, not_done = read_files(options.data).dataset, list[str]()
    features = compute_features(options, dataset, not_done)
    if features is None:
        parser.error(f"no features: {not_done}")
    labels(dataset, features.values, mine.seeds)
    copies(options, dataset, features.values, mine.count)


if __name__ == "__main__":
    main()
