"""The data sets that have a name: made ones, and torchvision's from files that are made here."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import urllib.error
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from image_folders import error_of, find, noise, picture, transform
from transfermpl import args, data
from transfermpl.images import builtin


def test_made_data_sets() -> None:
    digits, moons, fake = (find(name) for name in ("digits", "moons", "fake"))
    assert (len(digits), digits.kind, digits.native_size, len(digits.classes)) == (1797, "digits", 8, 10)
    assert (len(moons), moons.kind, moons.native_size, len(moons.classes)) == (1000, "points", 0, 2)
    assert (len(fake), fake.kind, fake.native_size, len(fake.classes)) == (800, "photos", 32, 4)
    assert digits.paths[12] == "digits/0012"
    raw = digits.read(0, transform(8)).numpy()
    assert (raw[0] == raw[1]).all()
    assert raw.max() in range(230, 256)
    assert np.array_equal(fake.hashes, find("fake").hashes)


@pytest.mark.slow
def test_fake_can_be_learned() -> None:
    from sklearn.linear_model import LogisticRegression

    dataset = find("fake")
    assert dataset.array is not None
    pixels = dataset.array.reshape(800, -1) / 255.0
    model = LogisticRegression(max_iter=300).fit(pixels[:600], dataset.labels[:600])
    assert model.score(pixels[600:], dataset.labels[600:]) > 0.6


def write_cifar(root: Path, name: str) -> None:
    ten = name == "cifar10"
    base = root / ("cifar-10-batches-py" if ten else "cifar-100-python")
    base.mkdir(parents=True)
    files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"] if ten else ["train", "test"]
    for file in files:
        content = {"data": noise(4, 3072), "labels" if ten else "fine_labels": [0, 1, 0, 1]}
        (base / file).write_bytes(pickle.dumps(content))
    names = {"label_names" if ten else "fine_label_names": ["zebra", "ant"]}
    (base / ("batches.meta" if ten else "meta")).write_bytes(pickle.dumps(names))


def write_svhn(root: Path) -> None:
    from scipy.io import savemat

    root.mkdir(parents=True)
    for part in ("train", "test"):
        labels = np.array([[10], [1], [2], [10], [1], [2]], np.uint8)
        savemat(root / f"{part}_32x32.mat", {"X": noise(32, 32, 3, 6), "y": labels})


def write_stl10(root: Path) -> None:
    base = root / "stl10_binary"
    base.mkdir(parents=True)
    for part, count in (("train", 4), ("unlabeled", 5), ("test", 2)):
        pixels = noise(count, 3, 96, 96)
        pixels[0, 0, 1, 0] = 7  # the second byte of a plane is one further down: planes are stored by columns
        pixels.tofile(base / f"{part}_X.bin")
        if part != "unlabeled":
            (np.arange(count, dtype=np.uint8) % 2 + 1).tofile(base / f"{part}_y.bin")


def write_flowers102(root: Path) -> None:
    from scipy.io import savemat

    base = root / "flowers-102"
    for number in range(1, 9):
        picture(base / "jpg" / f"image_{number:05d}.jpg")
    savemat(base / "imagelabels.mat", {"labels": np.array([[1, 2] * 4])})
    savemat(base / "setid.mat", {"trnid": [[1, 2, 3, 4]], "valid": [[5, 6]], "tstid": [[7, 8]]})


def write_food101(root: Path) -> None:
    base = root / "food-101"
    for part, numbers in (("train", (1, 2)), ("test", (3,))):
        names = {c: [f"{c}/{n}" for n in numbers] for c in ("waffles", "apple_pie")}
        for name in itertools.chain(*names.values()):
            picture(base / "images" / f"{name}.jpg", side=16)
        (base / "meta").mkdir(exist_ok=True)
        (base / "meta" / f"{part}.json").write_text(json.dumps(names))


def write_fgvc_aircraft(root: Path) -> None:
    base = root / "fgvc-aircraft-2013b" / "data"
    for part, numbers in (("train", (1, 2, 3, 4)), ("val", (5, 6)), ("test", (7, 8))):
        lines = [f"{n:07d} {('F/A-18', '707-320')[n % 2]}\n" for n in numbers]
        for line in lines:
            picture(base / "images" / f"{line.split()[0]}.jpg")
        (base / f"images_variant_{part}.txt").write_text("".join(lines))
    (base / "variants.txt").write_text("707-320\nF/A-18\n")


WRITERS = {
    "cifar10": lambda root: write_cifar(root, "cifar10"),
    "cifar100": lambda root: write_cifar(root, "cifar100"),
    "svhn": write_svhn,
    "stl10": write_stl10,
    "flowers102": write_flowers102,
    "food101": write_food101,
    "fgvc_aircraft": write_fgvc_aircraft,
}


# classes; rows by place; kind; side
EXPECTED = {
    "cifar10": (("ant", "zebra"), {"train": 20, "test": 4}, "photos", 32),
    "cifar100": (("ant", "zebra"), {"train": 4, "test": 4}, "photos", 32),
    "svhn": (("0", "1", "2"), {"train": 6, "test": 6}, "digits", 32),
    "stl10": (("airplane", "bird"), {"train": 4, "test": 2, "unlabeled": 5}, "photos", 96),
    "flowers102": (("hard-leaved pocket orchid", "pink primrose"), {"train": 4, "val": 2, "test": 2}, "photos", 0),
    "food101": (("apple_pie", "waffles"), {"train": 4, "test": 2}, "photos", 0),
    "fgvc_aircraft": (("707-320", "F/A-18"), {"train": 4, "val": 2, "test": 2}, "photos", 0),
}


@pytest.fixture
def no_md5(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets as sets

    for module in (sets.cifar, sets.svhn, sets.stl10, sets.flowers102):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: os.path.isfile(path))


@pytest.mark.usefixtures("no_md5")
@pytest.mark.parametrize("name", builtin.TORCHVISION)
def test_torchvision_sets(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / "root")
    dataset = find(name, data_root=str(tmp_path / "root"))
    classes, places, kind, side = EXPECTED[name]
    assert dataset.classes == classes
    assert Counter(dataset.places) == places
    assert (dataset.kind, dataset.native_size) == (kind, side)
    assert list(dataset.paths) == sorted(dataset.paths)
    assert ((dataset.labels < 0) == (np.array(dataset.places) == "unlabeled")).all()
    assert dataset.read(0, transform(32)).shape == (3, 32, 32)
    split = data.split_dataset(dataset, args.Data(num_labels=len(classes)), 0)
    assert len(split.test) == places["test"]


@pytest.mark.usefixtures("no_md5")
def test_labels_and_pixels_of_arrays(tmp_path: Path) -> None:
    write_cifar(tmp_path, "cifar10")
    dataset = find("cifar10", data_root=str(tmp_path))
    raw = pickle.loads((tmp_path / "cifar-10-batches-py" / "data_batch_1").read_bytes())
    row = dataset.paths.index("cifar10/train/0001")
    assert np.array_equal(dataset.read(row, transform(32)).numpy(), raw["data"][1].reshape(3, 32, 32))
    assert dataset.classes[dataset.labels[row]] == "ant"
    write_stl10(tmp_path)
    dataset = find("stl10", data_root=str(tmp_path))
    image = dataset.read(dataset.paths.index("stl10/train/0000"), transform(96))
    assert image[0, 0, 1] == np.fromfile(tmp_path / "stl10_binary" / "train_X.bin", np.uint8)[96]


@pytest.mark.parametrize("name", builtin.TORCHVISION)
def test_a_set_that_is_not_there(tmp_path: Path, name: str) -> None:
    message = error_of(name, data_root=str(tmp_path))
    assert message.startswith(f"{name} is not under {tmp_path}")
    assert "--download" in message


def test_damaged_sets(tmp_path: Path) -> None:
    write_cifar(tmp_path, "cifar10")  # its md5 is wrong
    assert "or not whole" in error_of("cifar10", data_root=str(tmp_path))
    write_food101(tmp_path)
    (tmp_path / "food-101" / "meta" / "test.json").write_text("{")
    assert "food101 under" in error_of("food101", data_root=str(tmp_path))


def test_a_download_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets as sets

    def fail(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(sets.cifar, "download_and_extract_archive", fail)
    message = error_of("cifar10", data_root=str(tmp_path), download=True)
    assert message.startswith("cifar10 could not be downloaded (<urlopen error no route to host>)")
