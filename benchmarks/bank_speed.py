"""The feature bank: filling against a plain loop, reading, and a 1,000-step MPL run cold, warm and without a bank.

    python benchmarks/bank_speed.py [--data_dir ../shared/data/flowers5 --weights ../shared/weights/squeezenet1_1.safetensors]

Without the photographs, images are made. The plain loop is ImageFolder + DataLoader + the same backbone with torch's
defaults, at equal workers and threads; both fill the same images in turn, each in a process of its own, n rounds, the
ratio of medians. Targets on 2 CPU cores: filling >= 2 times the plain loop; 1,000 steps warm <= 5 s of training, cold
<= 150 s, no bank / warm >= 300 (no bank is extrapolated from 20 steps).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]

PHOTOS = HERE.parent / "shared" / "data" / "flowers5"
WEIGHTS = HERE.parent / "shared" / "weights" / "squeezenet1_1.safetensors"
WORKERS, BATCH = 2, 32


def plain_loop(folder: str, weights: str) -> float:
    """Images a second of the loop that anyone would write."""
    import torch
    from torchvision import datasets
    from torchvision.models import SqueezeNet1_1_Weights

    from transfermpl import args
    from transfermpl.backbones.library import build_backbone

    model = args.Model(model_name="squeezenet1_1", weights=weights)
    backbone = build_backbone(model, native_size=0, points=False, seed=0, default_name="resnet").eval()
    mean, std = torch.tensor(backbone.transform.mean), torch.tensor(backbone.transform.std)
    preset = SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()
    images = datasets.ImageFolder(folder, preset)
    loader = torch.utils.data.DataLoader(images, batch_size=BATCH, num_workers=WORKERS)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone.to(device)
    began, features = time.perf_counter(), []
    with torch.no_grad():
        for pixels, _ in loader:
            # The backbone normalises by itself and takes [0, 1].
            raw = pixels * std.view(3, 1, 1) + mean.view(3, 1, 1)
            features.append(backbone(raw.to(device)).cpu())
    return sum(map(len, features)) / (time.perf_counter() - began)


def bank_fill(folder: str, weights: str) -> float:
    """Images a second of filling the eval rows of an empty bank."""
    from transfermpl.utils import keep_pages

    keep_pages()
    import numpy as np

    training = make_training(folder, weights, "--max_steps", "1", "--warmup_epoch_num", "0")
    rows = np.arange(len(training.dataset))
    began = time.perf_counter()
    training.banks[0].fill({("eval", 0): rows})
    return len(rows) / (time.perf_counter() - began)


def read_rows(folder: str, weights: str) -> float:
    """Rows a second read from a warm bank in random batches of 64."""
    import numpy as np

    from transfermpl.features.sources import ImageRequest

    training = make_training(folder, weights, "--max_steps", "1", "--warmup_epoch_num", "0", cache="shared")
    rows = np.arange(len(training.dataset))
    training.banks[0].fill({("eval", 0): rows})
    random, count = np.random.default_rng(0), 2000
    training.banks[0].rows(ImageRequest(rows[:1], np.zeros(1, dtype=np.int64), "eval"))
    began = time.perf_counter()
    for _ in range(count):
        training.banks[0].rows(ImageRequest(random.integers(0, len(rows), 64), np.zeros(64, dtype=np.int64), "eval"))
    return count * 64 / (time.perf_counter() - began)


def make_training(folder: str, weights: str, *more: str, cache: str = "") -> object:
    from transfermpl import args
    from transfermpl.data import find_dataset, split_dataset
    from transfermpl.runs.training import Training

    cache = f"{tempfile.gettempdir()}/bank-speed-{cache}" if cache else tempfile.mkdtemp()
    words = ["--name", "x", "--data_dir", folder, "--model_name", "squeezenet1_1", "--weights", weights]
    options = args.parse([*words, "--cache_dir", cache, "--num_workers", str(WORKERS), *more])
    dataset = find_dataset(options.data)
    return Training(options, dataset, split_dataset(dataset, options.data, 0))


def mpl_run(folder: str, weights: str, cache: str, *more: str) -> dict[str, float]:
    """`seconds` of summary.json of a run of MPL.py, as a process."""
    with tempfile.TemporaryDirectory() as place:
        words = ["--name", "x", "--data_dir", folder, "--model_name", "squeezenet1_1", "--weights", weights]
        command = [sys.executable, str(HERE / "MPL.py"), *words, "--cache_dir", cache, *more]
        subprocess.run(command, cwd=place, check=True, capture_output=True)
        return json.loads((Path(place) / "results" / "x" / "summary.json").read_text())["seconds"]


def in_process(name: str, folder: str, weights: str) -> float:
    command = [sys.executable, __file__, "--only", name, "--data_dir", folder, "--weights", weights]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def made_images(place: str, count: int = 1000) -> str:
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(count):
        coarse = random.integers(0, 255, (16, 20, 3), dtype=np.uint8)
        path = Path(place) / f"class{number % 4}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(coarse).resize((280, 224)).save(path)
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default=str(PHOTOS) if PHOTOS.is_dir() else "")
    parser.add_argument("--weights", default=str(WEIGHTS) if WEIGHTS.is_file() else "none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["plain_loop", "bank_fill", "read_rows"])
    given = parser.parse_args()
    if given.only:
        print(globals()[given.only](given.data_dir, given.weights))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = str(Path(given.data_dir).resolve()) if given.data_dir else made_images(place)
        weights = str(Path(given.weights).resolve()) if given.weights != "none" else "none"
        # Untrained weights are learned whole unless told otherwise.
        speed = {"plain_loop": [], "bank_fill": []}
        for _ in range(given.rounds):
            for name, values in speed.items():
                values.append(in_process(name, folder, weights))
        plain, ours = (statistics.median(values) for values in speed.values())
        print(
            f"filling: plain loop {plain:.0f} images/s, bank {ours:.0f} images/s, ratio {ours / plain:.2f}, n = {given.rounds}"
        )
        print(f"reading: {in_process('read_rows', folder, weights):,.0f} rows/s")
        more = ["--max_steps", "1000", "--unfreeze", "head"]
        cache = str(Path(place) / "cache")
        cold = mpl_run(folder, weights, cache, *more)
        warm = [mpl_run(folder, weights, cache, *more) for _ in range(given.rounds)]
        few = ["--max_steps", "20", "--unfreeze", "head", "--warmup_epoch_num", "0", "--no_cache"]
        # Of the steps alone: what is done once, before or after them, must not be multiplied.
        few += ["--head_prior", "none", "--class_prior", "labels", "--calibration_folds", "0"]
        without = mpl_run(folder, weights, cache, *few)["training"] * 50
        training = statistics.median(seconds["training"] for seconds in warm)
        total = statistics.median(seconds["total"] for seconds in warm)
        calibration = statistics.median(seconds["calibration"] for seconds in warm)
        print(
            f"1,000 steps, cold bank: features {cold['features']:.1f} s, training {cold['training']:.1f} s, total {cold['total']:.1f} s"
        )
        print(
            f"1,000 steps, warm bank: training {training:.2f} s, calibration {calibration:.1f} s, total {total:.1f} s, "
            f"n = {given.rounds}"
        )
        print(f"1,000 steps, no bank (50 times 20 steps): {without:.0f} s; no bank / warm = {without / training:.0f}")


if __name__ == "__main__":
    main()
