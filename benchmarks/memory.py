"""Peak memory: of an MPL step on a shared frozen backbone against a forward pass alone, and of filling large banks.

    python benchmarks/memory.py [--images 10000 100000]

Each figure is the peak of a process of its own above what it held after its imports. Filling must be flat in the number
of images; teacher and student must not hold two backbones.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

BACKBONE = "vgg16"  # 138 million parameters with its head: a second copy could not be overlooked
IMAGES_A_STEP = 16


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def backbone_alone() -> float:
    """One forward pass of the images of a step."""
    import torch

    from transfermpl import args
    from transfermpl.backbones.library import build_backbone

    base = peak_mb()
    options = args.Model(model_name=BACKBONE, weights="none")
    backbone = build_backbone(options, native_size=0, points=False, seed=0, default_name="").eval()
    with torch.no_grad():
        backbone(torch.rand(IMAGES_A_STEP, 3, 224, 224))
    return peak_mb() - base


def frozen_step() -> float:
    """Two MPL steps without a bank: labeled, weak and strong images in one pass, two heads that learn."""
    from transfermpl import args
    from transfermpl.data import find_dataset, split_dataset
    from transfermpl.runs.training import Training
    from transfermpl.train import Progress

    base = peak_mb()
    size = str(IMAGES_A_STEP // 3)
    words = ["--name", "x", "--data_dir", "fake", "--model_name", BACKBONE, "--weights", "none", "--unfreeze", "head"]
    words += ["--batch_size", size, "--unlabeled_batch_size", size, "--max_steps", "2", "--warmup_epoch_num", "0"]
    options = args.parse([*words, "--no_cache", "--image_size", "224"])
    dataset = find_dataset(options.data)
    Training(options, dataset, split_dataset(dataset, options.data, 0)).learn(Progress())
    return peak_mb() - base


def filling(folder: str) -> float:
    """The eval rows of all images, by a small frozen network."""
    import numpy as np

    from transfermpl import args
    from transfermpl.data import find_dataset, split_dataset
    from transfermpl.runs.training import Training

    base = peak_mb()
    words = ["--name", "x", "--data_dir", folder, "--model_name", "cnn", "--unfreeze", "head", "--image_size", "16"]
    with tempfile.TemporaryDirectory() as cache:
        options = args.parse([*words, "--cache_dir", cache])
        dataset = find_dataset(options.data)
        training = Training(options, dataset, split_dataset(dataset, options.data, 0))
        training.banks[0].fill({("eval", 0): np.arange(len(dataset))})
    return peak_mb() - base


def make_images(folder: Path, count: int) -> None:
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        pixels = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "ab"[number % 2] / f"{number}.png", compress_level=0)


def in_process(name: str, folder: str = "") -> float:
    command = [sys.executable, __file__, "--only", name, "--folder", folder]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--only", choices=["backbone_alone", "frozen_step", "filling"])
    parser.add_argument("--folder", default="")
    given = parser.parse_args()
    if given.only:
        print(filling(given.folder) if given.only == "filling" else globals()[given.only]())
        return
    alone, step = in_process("backbone_alone"), in_process("frozen_step")
    print(
        f"{BACKBONE}, {IMAGES_A_STEP} images: forward alone {alone:.0f} MB, MPL step with a shared frozen backbone {step:.0f} MB"
    )
    for count in given.images:
        with tempfile.TemporaryDirectory() as folder:
            make_images(Path(folder), count)
            print(f"filling {count} images: {in_process('filling', folder):.0f} MB above the imports", flush=True)


if __name__ == "__main__":
    main()
