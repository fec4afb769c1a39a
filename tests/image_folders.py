"""Small images and folders of them, made here, and what the data set in a folder is read as."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfermpl import args, data
from transfermpl.images.decode import Transform
from transfermpl.utils import UserError

_serial = itertools.count()


def transform(size: int = 8, resize: int | None = None, how: str = "bilinear") -> Transform:
    return Transform(size, resize or size, how, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(next(_serial)).integers(0, 256, shape, np.uint8)


def picture(file: Path, colour: tuple[int, int, int] | None = None, side: int = 12) -> Path:
    """Without a colour every picture is another one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(noise(side, side, 3)) if colour is None else Image.new("RGB", (side, side), colour)
    image.save(file)
    return file


def folder(root: Path, counts: dict[str, int], suffix: str = ".png") -> Path:
    for name, count in counts.items():
        for i in range(count):
            picture(root / name / f"{i:03d}{suffix}")
    return root


def find(root: Path | str, **options: object) -> data.Dataset:
    return data.find_dataset(args.Data(data_dir=str(root), **options))  # type: ignore[arg-type]


def error_of(root: Path | str, **options: object) -> str:
    with pytest.raises(UserError) as error:
        find(root, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))
