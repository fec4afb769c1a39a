"""Small images and folders of them, made here, and what the data set in a folder is read as."""

from __future__ import annotations

import base64
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfermpl import args, data
from transfermpl.base.tables import csv_rows
from transfermpl.images.decode import Transform
from transfermpl.utils import UserError

_serial = itertools.count()


def transform(size: int = 8, resize: int | None = None, how: str = "bilinear") -> Transform:
    return Transform(size, resize or size, how, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(next(_serial)).integers(0, 256, shape, np.uint8)


def palette(transparent: int | bytes | None) -> Image.Image:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 10, 30])
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


def grey16(value: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8), value, np.uint16))


# What a phone writes: 64 x 64 pixels, the left half red, the right half blue.
PHONE_HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAVZtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAA"
    "AAAERAAAEAAQAAAAABegABAAAAAAAAACwAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA1mlwcnAA"
    "AAC3aXBjbwAAAHhodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQArQgEBA3AAAAMAkA"
    "AAAwAAAwAeoCCBBZbqSSmubgIaDAgAAAMAyAAAAwAIQGIAAQAHRAHBcrAiQAAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAA"
    "QAAAABBwaXhpAAAAAAMICAgAAAAXaXBtYQAAAAAAAAABAAEEgQIDBAAAADRtZGF0AAAAKCgBrxOA5qhw0//9oFH/8AmeH5PdES//wo4I/qF4f/"
    "k1XRUiv/7Oj4A="
)

# Images in every mode that files have, and the colour that they show.
MODES = {
    "RGB.png": (Image.new("RGB", (8, 8), (10, 20, 30)), (10, 20, 30)),
    "L.png": (Image.new("L", (8, 8), 77), (77, 77, 77)),
    "L.jpg": (Image.new("L", (8, 8), 77), (77, 77, 77)),
    "1.png": (Image.new("1", (8, 8), 1), (255, 255, 255)),
    "1.tif": (Image.new("1", (8, 8), 0), (0, 0, 0)),
    "P.png": (palette(None), (200, 10, 30)),
    "P.gif": (palette(None), (200, 10, 30)),
    "P clear.png": (palette(1), (255, 255, 255)),
    "P half.png": (palette(bytes([255, 0])), (255, 255, 255)),
    "LA.png": (Image.new("LA", (8, 8), (100, 255)), (100, 100, 100)),
    "LA clear.png": (Image.new("LA", (8, 8), (100, 0)), (255, 255, 255)),
    "RGBA.png": (Image.new("RGBA", (8, 8), (200, 100, 0, 255)), (200, 100, 0)),
    "RGBA half.png": (Image.new("RGBA", (8, 8), (0, 0, 255, 128)), (127, 127, 255)),
    "RGBA.tif": (Image.new("RGBA", (8, 8), (0, 0, 0, 0)), (255, 255, 255)),
    "CMYK.jpg": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), (254, 0, 0)),
    "CMYK.tif": (Image.new("CMYK", (8, 8), (255, 0, 0, 0)), (0, 255, 255)),
    "I16.png": (grey16(257 * 60), (60, 60, 60)),
    "I16.tif": (grey16(65535), (255, 255, 255)),
    "I16 dark.png": (grey16(200), (1, 1, 1)),
    "I.tif": (Image.new("I", (8, 8), 257 * 60), (60, 60, 60)),
    "I small.tif": (Image.new("I", (8, 8), 60), (0, 0, 0)),  # of a data set that says nothing of its range: 16 bits
    "F one.tif": (Image.new("F", (8, 8), 0.5), (128, 128, 128)),
    "F huge.tif": (Image.new("F", (8, 8), 1e9), (255, 255, 255)),
    "F nan.tif": (Image.new("F", (8, 8), float("nan")), (0, 0, 0)),
    "F below.tif": (Image.new("F", (8, 8), -3.0), (0, 0, 0)),
    "grey.pgm": (Image.new("L", (8, 8), 9), (9, 9, 9)),
    "RGB.bmp": (Image.new("RGB", (8, 8), (1, 2, 3)), (1, 2, 3)),
    "YCbCr.tif": (Image.new("RGB", (8, 8), (200, 100, 50)).convert("YCbCr"), (200, 100, 50)),
}


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
    """The rows of a CSV file of ours, with the texts that were written."""
    with file.open(encoding="utf-8", newline="") as text:
        header, *rows = csv_rows(text)
    return [dict(zip(header, row, strict=True)) for row in rows]
