"""Data sets with a name instead of a folder: made here, from scikit-learn, or from torchvision.

Here is only where their images and labels lie; hashing, duplicates and splits are the same for all (`data.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..utils import UserError

# name: (class in torchvision.datasets, its splits and the place that each is)
TORCHVISION: dict[str, tuple[str, dict[str, str]]] = {
    "cifar10": ("CIFAR10", {"train": "train", "test": "test"}),
    "cifar100": ("CIFAR100", {"train": "train", "test": "test"}),
    "svhn": ("SVHN", {"train": "train", "test": "test"}),
    "stl10": ("STL10", {"train": "train", "unlabeled": "unlabeled", "test": "test"}),
    "flowers102": ("Flowers102", {"train": "train", "val": "val", "test": "test"}),
    "food101": ("Food101", {"train": "train", "test": "test"}),
    "fgvc_aircraft": ("FGVCAircraft", {"train": "train", "val": "val", "test": "test"}),
}
NAMES = ("digits", "moons", "fake", *TORCHVISION)
_DIGITS = tuple("0123456789")
_STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


@dataclass(frozen=True)
class Item:
    """One image before the scan. `source`: a file, or a position in the array; label: "" is unknown; place: what the
    data set itself says of it: "", train, labeled, unlabeled, val or test; table: which one said the label, counted
    from 1, and 0 where no table did; asked: a run chose the image to be labeled, since it was unsure of it.
    """

    path: str
    source: str | int
    label: str
    place: str
    table: int = 0
    asked: bool = False


@dataclass(frozen=True, eq=False)
class Found:
    """What was found. `array`: uint8 [N, H, W, 3], or float32 [N, 2] for points, or None when the sources are files."""

    items: list[Item]
    kind: str = "photos"
    array: np.ndarray | None = None


def load(name: str, root: str, *, download: bool) -> Found:
    """The built-in data set `name`, one of NAMES. Raises UserError when it is not under `root` and can't be fetched."""
    made = {"digits": _digits, "moons": _moons, "fake": _fake}
    return made[name]() if name in made else _torchvision(name, Path(root).expanduser(), download)


def _numbered(prefix: str, labels: list[str], place: str = "", start: int = 0) -> list[Item]:
    width = max(4, len(str(len(labels))))
    return [Item(f"{prefix}/{i:0{width}d}", start + i, label, place) for i, label in enumerate(labels)]


def _digits() -> Found:
    from sklearn.datasets import load_digits

    grey, labels = load_digits(return_X_y=True)
    pixels = np.rint(grey.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    return Found(_numbered("digits", [str(c) for c in labels]), "digits", np.repeat(pixels, 3, axis=3))


def _moons() -> Found:
    from sklearn.datasets import make_moons

    points, labels = make_moons(1000, noise=0.1, random_state=0)
    return Found(_numbered("moons", [str(c) for c in labels]), "points", points.astype(np.float32))


def _fake(count: int = 800, side: int = 32) -> Found:
    """Four shapes, each mostly in its own colour, anywhere, in any size, on a dim and noisy ground."""
    names = ("circle", "cross", "ring", "square")
    colours = np.array([[0.9, 0.4, 0.3], [0.4, 0.9, 0.4], [0.4, 0.5, 0.9], [0.8, 0.8, 0.3]])
    random = np.random.Generator(np.random.Philox(20240229))
    labels = np.arange(count) % len(names)
    centre = random.uniform(0.35, 0.65, (2, count, 1, 1)) * side
    radius = random.uniform(0.2, 0.32, (count, 1, 1)) * side
    grid = np.arange(side) + 0.5
    x, y = np.abs(grid[None, None, :] - centre[0]), np.abs(grid[None, :, None] - centre[1])
    distance = np.hypot(x, y)
    shapes = np.stack([
        distance < radius,
        (np.minimum(x, y) < 0.3 * radius) & (np.maximum(x, y) < radius),
        (distance < radius) & (distance > 0.6 * radius),
        np.maximum(x, y) < 0.85 * radius,
    ])  # fmt: skip
    mask = shapes[labels, np.arange(count)][..., None]
    colour = colours[labels][:, None, None] + random.normal(0, 0.25, (count, 1, 1, 3))
    ground = random.uniform(0, 0.5, (count, 1, 1, 3))
    image = np.where(mask, colour, ground) + random.normal(0, 0.08, (count, side, side, 3))
    pixels = np.rint(image.clip(0, 1) * 255).astype(np.uint8)
    return Found(_numbered("fake", [names[c] for c in labels]), "photos", pixels)


def _torchvision(name: str, root: Path, download: bool) -> Found:
    parts = {place: _open(name, split, root, download) for split, place in TORCHVISION[name][1].items()}
    if hasattr(parts["train"], "_image_files"):
        return Found([item for place, part in parts.items() for item in _file_items(part, place, root)])
    items, arrays, start = [], [], 0
    for place, part in parts.items():
        # SVHN and STL10 keep their channels first.
        pixels = part.data if part.data.shape[-1] == 3 else part.data.transpose(0, 2, 3, 1)
        items += _numbered(f"{name}/{place}", _label_names(part), place, start)
        arrays.append(pixels)
        start += len(pixels)
    return Found(items, "digits" if name == "svhn" else "photos", np.concatenate(arrays))


def _open(name: str, split: str, root: Path, download: bool) -> Any:
    import torchvision

    maker = getattr(torchvision.datasets, TORCHVISION[name][0])
    which = {"train": split == "train"} if name.startswith("cifar") else {"split": split}
    try:
        return maker(str(root), download=download, **which)
    # An archive that is broken, or a page that came in its place, fails in as many ways as there are formats.
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        if download:
            hint = f"check the network, or put the data set under {root} yourself"
            raise UserError(f"{name} could not be downloaded ({reason}); {hint}") from error
        if isinstance(error, (RuntimeError, FileNotFoundError)):
            hint = "add --download, or say with --data_root where it is"
            raise UserError(f"{name} is not under {root}, or not whole; {hint}") from error
        raise UserError(f"{name} under {root} can't be read ({reason}); remove it and add --download") from error


def _label_names(part: Any) -> list[str]:
    labels = part.targets if hasattr(part, "targets") else part.labels
    fallback = _DIGITS if type(part).__name__ == "SVHN" else _STL10
    classes = getattr(part, "classes", fallback)
    # STL10's unlabeled part says -1, as a signed or an unsigned byte.
    return [classes[c] if 0 <= c < len(classes) else "" for c in map(int, labels)]


def _file_items(part: Any, place: str, root: Path) -> list[Item]:
    files = [Path(file) for file in part._image_files]
    paths = [file.relative_to(root).as_posix() for file in files]
    return [
        Item(path, str(file), part.classes[label], place)
        for path, file, label in zip(paths, files, part._labels, strict=True)
    ]
