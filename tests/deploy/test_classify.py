"""The program beside an exported model: it decodes whatever the run itself can decode, to the same bits."""

from __future__ import annotations

import csv
import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corpus import png_of_16_bits
from image_folders import MODES, PHONE_HEIC
from runs import FROZEN, Outcome, make_data, run
from transfermpl.deploy import export
from transfermpl.deploy.classifier import load_classifier
from transfermpl.images.decode import reason_of


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run `x` with images of 12 bits among others, and its export."""
    cwd = tmp_path_factory.mktemp("classify")
    make_data(cwd / "d")
    for number, name in enumerate(sorted(os.listdir(cwd / "d"))):
        pixels = np.random.default_rng(number).integers(0, 4096, (20, 20)).astype(np.uint16)
        Image.fromarray(pixels).save(cwd / "d" / name / "twelve bits.png")
    line = ("--data_dir", "d", *FROZEN, "--num_labels", 9, "--unlabeled_batch_size", 15, "--max_steps", 4)
    assert run("--name", "x", *line, cwd=cwd).code == 0
    outcome = run("--export", "torch_export", "--load_path", "x", cwd=cwd)
    assert outcome.code == 0, outcome.err
    return outcome


def odd_images(folder: Path) -> list[Path]:
    """Images of every mode, turned ones, and files that are none."""
    folder.mkdir()
    for name, (image, _) in MODES.items():
        image.resize((24, 18), Image.Resampling.NEAREST).save(folder / name)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        shades = np.arange(40 * 30 * 3).reshape(40, 30, 3) % 251
        Image.fromarray(shades.astype(np.uint8)).save(folder / f"turned {orientation}.jpg", exif=exif)
    Image.fromarray(np.arange(0, 4096, 8, dtype=np.uint16).reshape(16, 32)).save(folder / "grey.tif")
    Image.fromarray(np.linspace(0, 1.02, 400, dtype=np.float32).reshape(20, 20)).save(folder / "floats.tif")
    Image.new("RGB", (900, 10), "red").save(folder / "a strip.png")
    Image.new("RGB", (1, 1), "blue").save(folder / "a dot.gif")
    (folder / "phone.heic").write_bytes(PHONE_HEIC)
    (folder / "colours.png").write_bytes(png_of_16_bits(np.arange(300).reshape(10, 10, 3) * 218))
    (folder / "torn.png").write_bytes((folder / "RGB.png").read_bytes()[:50])
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.jpg").touch()
    return sorted(folder.iterdir())


def test_any_image_is_seen_as_the_run_sees_it(
    exported: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = odd_images(tmp_path / "odd")
    library = load_classifier(exported.folder(), device="cpu")
    monkeypatch.syspath_prepend(exported.folder())
    model = importlib.import_module("classify").Model(str(exported.folder() / "classifier.pt2"))
    assert model.ranges == {"integers": [0, 4095]}
    model.decision = {"weights": [1, 1, 1], "thresholds": {model.classes[1]: 0.2}}
    assert model.name_of(np.array([[0.8, 0.2, 0.0], [0.8, 0.1, 0.1]])) == [model.classes[1], model.classes[0]]
    for file, (_, expected) in zip(files, library.decoded(files), strict=True):
        if isinstance(expected, str):
            with pytest.raises((OSError, ValueError)) as raised:
                model.pixels(file)
            assert reason_of(raised.value) == expected, file
        else:
            np.testing.assert_array_equal(model.pixels(file), expected[0], err_msg=str(file))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch_export", "onnx"])
def test_a_folder_with_the_two_files_is_enough(exported: Outcome, tmp_path: Path, kind: str) -> None:
    """No checkout is at hand, and nothing of ours can be imported."""
    file = tmp_path / f"c{export.SUFFIX[kind]}"
    assert run("--export", kind, "--load_path", "x", "--out", file, cwd=exported.cwd).code == 0
    files = odd_images(tmp_path / "odd")
    hostile = "import sys; sys.modules['transfermpl'] = None; sys.argv = sys.argv[1:]\nimport runpy\n"
    hostile += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-I", "-X", "utf8", "-c", hostile, "classify.py", file.name, *map(str, files)]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=120)
    assert done.returncode == 1, done.stderr
    library = load_classifier(exported.folder(), device="cpu")
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["path"] for row in rows] == list(map(str, files))
    assert {Path(row["path"]).name for row in rows if row["error"]} == {"torn.png", "text.jpg", "empty.jpg"}
    for row in rows:
        if not row["error"]:
            (expected,) = library([row["path"]])
            assert float(row["probability"]) == pytest.approx(expected.max(), abs=1e-3)
            assert expected[library.classes.index(row["class"])] == pytest.approx(expected.max(), abs=1e-3)


def test_a_program_of_the_users_own_is_not_replaced(exported: Outcome, tmp_path: Path) -> None:
    (tmp_path / "classify.py").write_text("mine")
    for names in ({"classify.py", "classify-2.py"}, {"classify.py", "classify-2.py"}):
        export.write_script(tmp_path / "c.onnx")
        assert {path.name for path in tmp_path.iterdir()} == names
    assert (tmp_path / "classify.py").read_text() == "mine"
