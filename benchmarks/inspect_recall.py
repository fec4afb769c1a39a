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
from transfermpl.features import nearest
from transfermpl.images.decode import fit
from transfermpl.inspection import label_errors, near_duplicates
from transfermpl.inspection.inspection import Audit


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


def copies(audit: Audit, count: int) -> None:
    """Print the share of copies that are found without and with features."""
    assert audit.features is not None
    rows = np.random.default_rng(0).permutation(len(audit.dataset))[:count]
    backbone = build_backbone(audit.options.model, native_size=0, points=False, seed=0, default_name="resnet").eval()
    own = audit.looks.thumbnails
    for name, change in CHANGES.items():
        found = {"without": 0, "with": 0}
        changed = [change(audit.dataset.picture(row, 1 << 20)) for row in rows]
        pixels = np.stack([np.asarray(fit(image, backbone.transform)) for image in changed]).transpose(0, 3, 1, 2)
        with torch.inference_mode():
            parts = torch.from_numpy(pixels.copy()).split(32)
            features = torch.cat([backbone(part.float() / 255) for part in parts]).numpy()
        side = (near_duplicates.SIDE,) * 2
        grey = np.stack([np.asarray(i.convert("L").resize(side, Image.Resampling.BOX)) for i in changed])
        everything = nearest.unit(np.concatenate([audit.features, features]))
        neighbours = nearest.nearest(everything, near_duplicates.NEIGHBOURS, audit.device)
        wanted = {(int(row), len(own) + place) for place, row in enumerate(rows)}
        threshold = audit.options.study.near_duplicate
        for how, of_features in (("without", None), ("with", neighbours)):
            alike = near_duplicates.near_duplicates(np.concatenate([own, grey]), of_features, threshold, audit.device)
            found[how] = len(wanted & set(map(tuple, alike.pairs.tolist())))
        print(f"| {name} | {100 * found['without'] / count:.0f}% | {100 * found['with'] / count:.0f}% |", flush=True)


def labels(audit: Audit, seeds: int) -> None:
    """Print how many of the doubted labels were made wrong, and how many of these are doubted."""
    assert audit.features is not None
    known = np.flatnonzero(audit.dataset.labels >= 0)
    group, classes = np.arange(len(audit.dataset)), len(audit.dataset.classes)
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        given = audit.dataset.labels.copy()
        wrong = random.choice(known, round(0.05 * len(known)), replace=False)
        given[wrong] = (given[wrong] + random.integers(1, classes, len(wrong))) % classes
        doubts = label_errors.doubtful_labels(audit.features, given, group, classes, 0)
        order = np.argsort(-doubts.margin)[: int((doubts.suggested >= 0).sum())]
        hits = np.isin(order, wrong)
        print(
            f"seed {seed}: {len(wrong)} made wrong; of the first 25 {hits[:25].mean():.0%}, of the first 50 "
            f"{hits[:50].mean():.0%}, of all {len(order)} doubted {hits.mean():.0%} are of these; "
            f"{hits.sum() / len(wrong):.0%} of them are doubted",
            flush=True,
        )


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("options", nargs="*", help="options of MPL.py, after --")
    mine = parser.parse_args()
    audit = Audit(args.parse(["--name", "x", "--inspect", *mine.options]))
    labels(audit, mine.seeds)
    copies(audit, mine.count)


if __name__ == "__main__":
    main()
