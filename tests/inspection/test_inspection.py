"""`--inspect` end to end, on folders with planted faults: every kind is found, named and drawn; nothing is changed."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from runs import COLOURS, ROOT, Outcome, make_data, make_images, photograph, run, snapshot
from transfermpl import args
from transfermpl.backbones import library
from transfermpl.inspection import findings, pictures
from transfermpl.reports import galleries

SHARED = ROOT.parent / "shared"
EVIL = "<img onerror=alert(1)>"
PICTURES = ("sizes.png", "duplicates.png", "labels.png", "outliers.png", "odd.png")
WIDE = ("--image_size", "32", "--num_workers", "0")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network's weights in a file, so that it counts as pretrained: it sees colour, which is enough here."""
    file = tmp_path_factory.mktemp("weights") / "cnn.pt"
    model = args.make({"name": "x", "model_name": "cnn"}).model
    backbone = library.build_backbone(model, native_size=0, points=False, seed=0, default_name="cnn")
    torch.save(backbone.net.state_dict(), file)
    return file


def inspected(cwd: Path, data: Path | str, *arguments: object, draw: bool = False) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        if not draw:
            for name in ("draw_gallery", "draw_sizes"):
                patch.setattr(pictures, name, lambda path, *args, **named: (path.touch(), path)[1])
        return run("--name", "x", "--inspect", "--data_dir", data, *arguments, cwd=cwd)


def rows_of(outcome: Outcome, kind: str | None = None) -> list[dict[str, str]]:
    with (outcome.folder() / "inspect.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if kind in (None, row["kind"])]


def summary_of(outcome: Outcome) -> dict[str, Any]:
    return json.loads((outcome.folder() / "inspect.json").read_text(encoding="utf-8"))


# --- a folder with every fault ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that differ in colour, and one of each fault."""
    folder = make_data(
        tmp_path_factory.mktemp("faulty") / "data", 30, classes={EVIL: (200, 60, 50), "b c": (60, 190, 70)}
    )
    make_images(folder / "日本", 30, (60, 70, 210), suffix="jpg")
    red, green, blue = folder / EVIL, folder / "b c", folder / "日本"
    make_images(folder / "rare", 3, (200, 200, 60))
    # Wrongly filed: a green one among the red, a red one among the green.
    (green / "bild 03.png").rename(red / "truly green.png")
    (red / "bild 04.png").rename(green / "truly red.png")
    # Byte-identical, in the same class and in two.
    (red / "copy.png").write_bytes((red / "bild 01.png").read_bytes())
    (green / "conflict.png").write_bytes((blue / "bild 02.jpg").read_bytes())
    # The same photograph, smaller and compressed, under another class.
    photograph(1).save(green / "photo.png")
    photograph(1).resize((90, 66)).save(blue / "=photo\nsmall.jpg", quality=60)
    noise = np.random.default_rng(0).integers(0, 2, (64, 64, 1), np.uint8) * np.full(3, 255, np.uint8)
    Image.fromarray(noise).save(blue / "noise.png")
    # Unreadable in three ways, and odd in six.
    whole = (blue / "bild 05.jpg").read_bytes()
    (blue / "cut off.jpg").write_bytes(whole[: len(whole) // 2])
    (blue / "empty.jpg").touch()
    (green / "text.png").write_text("no image")
    photograph(2).save(green / "truly png.jpg", format="PNG")
    photograph(3).convert("CMYK").save(green / "print.jpg")
    photograph(4).resize((400, 100)).save(red / "strip.png")
    photograph(5).save(red / "film.gif", save_all=True, append_images=[photograph(6)])
    Image.new("RGB", (80, 80), (200, 60, 50)).save(red / "blank.png")
    return folder


@pytest.fixture(scope="session")
def outcome(faulty: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    before = snapshot(faulty)
    line = ("--model_name", "cnn", "--weights", weights, *WIDE)
    outcome = inspected(tmp_path_factory.mktemp("inspected"), faulty, *line, draw=True)
    assert outcome.code == 0, outcome.err
    assert snapshot(faulty) == before, "an inspection changes nothing"
    return outcome


def test_what_can_not_be_decoded_is_listed_with_its_reason(outcome: Outcome) -> None:
    found = {row["path"]: row["explanation"] for row in rows_of(outcome, "unreadable")}
    assert set(found) == {"日本/cut off.jpg", "日本/empty.jpg", "b c/text.png"}
    assert found["日本/empty.jpg"] == "empty file"
    assert found["b c/text.png"] == "not an image"


def test_identical_files_are_told_apart_by_their_classes(outcome: Outcome) -> None:
    [copy] = rows_of(outcome, "copy")
    assert {copy["path"], copy["other_path"]} == {f"{EVIL}/copy.png", f"{EVIL}/bild 01.png"}
    [conflict] = rows_of(outcome, "two classes")
    assert {conflict["path"], conflict["other_path"]} == {"b c/conflict.png", "日本/bild 02.jpg"}
    assert conflict["suggested_class"] == "日本"
    assert "b c and 日本" in conflict["explanation"]


def test_a_smaller_and_compressed_copy_is_a_near_duplicate(outcome: Outcome) -> None:
    pairs = {(row["other_path"], row["path"]): row for row in rows_of(outcome, "near-duplicate")}
    row = pairs["b c/photo.png", "日本/=photo\nsmall.jpg"]
    assert float(row["score"]) > 0.9
    assert "filed under b c and 日本" in row["explanation"]


def test_swapped_labels_are_on_top(outcome: Outcome) -> None:
    first = {row["path"]: row["suggested_class"] for row in rows_of(outcome, "wrong label")[:2]}
    assert first == {f"{EVIL}/truly green.png": "b c", "b c/truly red.png": EVIL}


def test_noise_among_photographs_is_the_outlier(outcome: Outcome) -> None:
    assert "日本/noise.png" in [row["path"] for row in rows_of(outcome, "outlier")]


def test_odd_files_are_listed(outcome: Outcome) -> None:
    found = {row["path"]: row["explanation"] for row in rows_of(outcome, "odd file")}
    assert found["b c/truly png.jpg"] == "named .jpg, but is PNG"
    assert found["b c/print.jpg"] == "colour mode CMYK"
    assert found[f"{EVIL}/strip.png"] == "400 x 100 pixels: most of it is cut off"
    assert "2 frames" in found[f"{EVIL}/film.gif"]
    assert "one colour all over" in found[f"{EVIL}/blank.png"]
    assert "24 x 20 pixels: very small" in found[f"{EVIL}/bild 00.png"]
    assert "b c/photo.png" not in found


def test_counts_and_imbalance(outcome: Outcome) -> None:
    counts = {row["class"]: row for row in summary_of(outcome)["counts"]}
    assert counts["rare"] == {"class": "rare", "files": 3, "unreadable": 0}
    assert counts["日本"] == {"class": "日本", "files": 32, "unreadable": 2}
    assert counts["b c"]["unreadable"] == 1
    [rare] = rows_of(outcome, "class")
    assert (rare["class"], rare["path"]) == ("rare", "")
    assert "--label_split stratified" in outcome.out
    assert "wrong labels of rare: 3 images, near-duplicates counted once, are too few" in outcome.out


def test_sizes_formats_and_modes(outcome: Outcome) -> None:
    summary = summary_of(outcome)
    assert set(summary["formats"]) == {"PNG", "JPEG", "GIF"}
    assert summary["modes"]["CMYK"] == 1
    assert sum(summary["formats"].values()) == sum(summary["modes"].values()) == summary["images"]
    assert summary["sizes"]["width"][0] == 24
    assert summary["sizes"]["width"][2] == 400
    assert summary["sizes"]["most_common"][0][:2] == [24, 20]


def test_the_screen_names_what_is_grave_and_keeps_to_its_lines(outcome: Outcome) -> None:
    assert re.search(r"^identical files in two classes +1  \S", outcome.out, re.MULTILINE)
    assert "cut off.jpg" in outcome.out
    assert "empty.jpg: empty file" in outcome.out
    assert r"=photo\nsmall.jpg" in outcome.out
    *lines, following = outcome.out.splitlines()
    assert all(len(line) < 180 for line in lines)
    assert following.startswith("to train on it: python MPL.py --name x-train ")
    assert "results: results/x (inspect.csv, inspect.json, report.html, sizes.png" in outcome.out


def test_files_agree_with_each_other(outcome: Outcome) -> None:
    summary, rows = summary_of(outcome), rows_of(outcome)
    assert list(rows[0]) == list(findings.COLUMNS)
    assert len(summary["findings"]) == len(rows)
    assert summary["totals"] == {kind: Counter(row["kind"] for row in rows)[kind] for kind in findings.KINDS}
    assert [row["kind"] for row in rows] == sorted((row["kind"] for row in rows), key=list(findings.KINDS).index)


def test_each_picture_is_whole(outcome: Outcome) -> None:
    assert summary_of(outcome)["pictures"] == list(PICTURES)
    for name in PICTURES:
        with Image.open(outcome.folder() / name) as picture:
            picture.load()
            assert picture.width > 250


def test_the_page_gets_plain_sections(outcome: Outcome, faulty: Path) -> None:
    summary = summary_of(outcome)
    page = findings.sections(summary)
    assert [s["heading"].split(":")[0].lower() for s in page[1:]] == [
        findings.KINDS[kind] for kind, count in summary["totals"].items() if count
    ]
    for section in page:
        assert all(len(row) == len(section["table"]["columns"]) for row in section["table"]["rows"])
        assert all(Path(entry["image"]).is_file() for entry in section.get("gallery", []))
    near = next(s for s in page if s["heading"].startswith("Near-duplicates"))
    assert any(entry["image"] == str(faulty / "b c/photo.png") for entry in near["gallery"])
    assert page[0]["warnings"]
    image = np.zeros((3, 3, 3), np.uint8)
    near = next(
        s for s in findings.sections(summary, {"b c/photo.png": image}, most=1) if s["heading"].startswith("Near")
    )
    assert [entry["image"] is image for entry in near["gallery"]] == [True]


@pytest.mark.parametrize("rare", ["z rare", "b rare"])
def test_a_class_too_small_to_judge_is_no_evidence_against_a_shared_file(
    tmp_path: Path, weights: Path, rare: str
) -> None:
    data = make_data(tmp_path / "data", 8, classes={"a": (200, 60, 50), "c": (60, 190, 70)})
    make_images(data / rare, 2, (60, 70, 210))
    for path in data / "a" / "bild 01.png", data / "c" / "bild 02.png":
        (data / rare / f"from {path.parent.name}.png").write_bytes(path.read_bytes())
    # All three claim it: of the two that can be judged one is likelier.
    for name in ("c", rare):
        (data / name / "everywhere.png").write_bytes((data / "a" / "bild 03.png").read_bytes())
    outcome = inspected(tmp_path, data, "--model_name", "cnn", "--weights", weights, *WIDE)
    assert outcome.code == 0, outcome.err
    assert f"wrong labels of {rare}: 2 images, near-duplicates counted once, are too few" in outcome.out
    found = {frozenset((row["path"], row["other_path"])): row for row in rows_of(outcome, "two classes")}
    for name, number in ("a", 1), ("c", 2):
        row = found[frozenset((f"{name}/bild 0{number}.png", f"{rare}/from {name}.png"))]
        assert (row["suggested_class"], row["score"]) == ("", "")
    of_three = [row for pair, row in found.items() if f"{rare}/everywhere.png" in pair]
    assert {row["suggested_class"] for row in of_three} == {"a"}
    assert all(float(row["score"]) < 1 for row in of_three)


# --- options and layouts ----------------------------------------------------------------------------------------------


def test_how_alike_is_for_the_user_to_say(tmp_path: Path) -> None:
    for side, image in enumerate((photograph(1), photograph(1).resize((90, 66)), photograph(2))):
        for name in "ab":
            (tmp_path / "d" / name).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "d" / "ab"[side % 2] / f"{side}.png")
    line = ("--weights", "none", *WIDE, "--overwrite")
    assert len(rows_of(inspected(tmp_path, "d", *line), "near-duplicate")) == 1
    assert len(rows_of(inspected(tmp_path, "d", *line, "--near_duplicate", 1), "near-duplicate")) == 0


def test_splits_of_its_own_are_kept_apart(tmp_path: Path) -> None:
    for place, count in (("train", 6), ("test", 4)):
        make_data(tmp_path / "d" / place, count, classes={"r": (200, 60, 50), "g": (60, 190, 70)})
    make_images(tmp_path / "d" / "test" / "new", 2, (60, 70, 210))
    # In training under one class, in the test under both: find_dataset gives such a one up, here it is seen.
    odd = (tmp_path / "d" / "train" / "r" / "bild 05.png").read_bytes()
    (tmp_path / "d" / "test" / "g" / "odd.png").write_bytes(odd)
    outcome = inspected(tmp_path, "d", "--weights", "none", *WIDE)
    assert outcome.code == 0, outcome.err
    # The generator draws the first images of each folder alike.
    assert len(rows_of(outcome, "two splits")) == 8
    assert all(
        {row["split"], row["other_path"].split("/")[0]} == {"test", "train"} for row in rows_of(outcome, "two splits")
    )
    [conflict] = rows_of(outcome, "two classes")
    assert (conflict["path"], conflict["other_path"]) == ("train/r/bild 05.png", "test/g/odd.png")
    counts = {row["class"]: (row["train"], row["test"]) for row in summary_of(outcome)["counts"]}
    assert counts == {"r": (6, 4), "g": (6, 5), "new": (0, 2)}
    assert [row["explanation"] for row in rows_of(outcome, "class")][-1].startswith("has no image to learn from")


def test_unlabeled_images_and_tables_are_inspected(tmp_path: Path) -> None:
    make_data(tmp_path / "d" / "labeled", 3)
    make_images(tmp_path / "d" / "unlabeled", 4, (9, 9, 9))
    outcome = inspected(tmp_path, "d", "--weights", "none", *WIDE)
    assert {row["class"]: row["files"] for row in summary_of(outcome)["counts"]} == dict.fromkeys(
        sorted(COLOURS), 3
    ) | {"": 4}
    assert "(unknown)" in outcome.out
    (tmp_path / "d" / "t.csv").write_text("path,label\nunlabeled/bild 00.png,a\nunlabeled/bild 01.png,b\n")
    outcome = inspected(tmp_path, "d", "--weights", "none", "--labels_csv", "t.csv", "--overwrite", *WIDE)
    assert summary_of(outcome)["files"] == 13
    assert {row["class"]: row["files"] for row in summary_of(outcome)["counts"]} == dict.fromkeys(
        sorted(COLOURS), 3
    ) | {"a": 1, "b": 1, "": 2}


def test_without_weights_the_rest_is_done_and_one_line_says_what_is_missing(
    faulty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*args: object) -> Any:
        raise library.WeightsMissing("the weights of resnet18 can't be had")

    monkeypatch.setattr(library, "_torchvision", missing)
    outcome = inspected(tmp_path, faulty, "--model_name", "resnet")
    assert outcome.code == 0, outcome.err
    lines = [line for line in outcome.out.splitlines() if line.startswith("not done")]
    assert len(lines) == 1
    assert "wrong labels" in lines[0]
    assert "can't be had" in lines[0]
    assert len(rows_of(outcome, "two classes")) == len(rows_of(outcome, "copy")) == 1
    assert any("small.jpg" in row["path"] for row in rows_of(outcome, "near-duplicate"))
    assert not rows_of(outcome, "wrong label")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("--weights", "absent.pt"), "there is no such file"),
        (("--model_name", "resnettt"), "resnettt"),
        (("--device", "cuda:99"), "--device"),
        (("--resume",), "exclude each other"),
        (("--finetune_mode",), "exclude each other"),
    ],
)
def test_wrong_input_ends_with_code_2_and_leaves_nothing(tmp_path: Path, line: tuple[str, ...], says: str) -> None:
    make_data(tmp_path / "d", 2)
    outcome = inspected(tmp_path, "d", *line)
    assert outcome.code == 2
    assert len(outcome.complaint()) == 1
    assert says in outcome.err
    assert not (tmp_path / "results").exists()


def test_an_option_that_an_inspection_does_not_use_is_said(tmp_path: Path) -> None:
    make_data(tmp_path / "d", 2)
    outcome = inspected(tmp_path, "d", "--weights", "none", "--max_lr", "0.1", *WIDE)
    assert "warning: --max_lr: not used by --inspect" in outcome.err
    again = run("--config", "results/x/commandline_args.txt", "--name", "x", cwd=tmp_path, pictures=True)
    assert again.code == 0, again.err
    assert list(csv.DictReader(io.StringIO((again.folder("x-2") / "inspect.csv").read_text()))) == rows_of(outcome)


@pytest.mark.skipif(os.name != "posix", reason="needs file names that are not text")
def test_names_that_are_not_text_can_be_written_down(tmp_path: Path) -> None:
    make_data(tmp_path / "d", 2)
    (tmp_path / "d" / "b c" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    (tmp_path / "d" / "b c").rename(tmp_path / "d" / os.fsdecode(b"b\xfe"))
    outcome = inspected(tmp_path, "d", "--weights", "none", *WIDE)
    assert outcome.code == 0, outcome.err
    [bad] = rows_of(outcome, "unreadable")
    assert (bad["path"], bad["class"]) == ("b\\xfe/\\xff.png", "b\\xfe")
    assert "gallery" in str(findings.sections(summary_of(outcome)))


def test_a_folder_without_one_good_image_is_still_inspected(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/2.png"):
        (tmp_path / "d" / name).parent.mkdir(parents=True)
        (tmp_path / "d" / name).write_text("broken")
    outcome = inspected(tmp_path, "d")
    assert outcome.code == 0, outcome.err
    assert len(rows_of(outcome, "unreadable")) == 2
    assert findings.sections(summary_of(outcome))


@pytest.mark.parametrize(("name", "judged"), [pytest.param("digits", True, marks=pytest.mark.slow), ("moons", False)])
def test_built_in_data_need_no_backbone(tmp_path: Path, name: str, judged: bool) -> None:
    outcome = inspected(tmp_path, name)
    assert outcome.code == 0, outcome.err
    summary = summary_of(outcome)
    assert (summary["classifier_accuracy"] is not None) == judged
    if judged:
        assert summary["classifier_accuracy"] > 0.95
        assert 0 < summary["totals"]["wrong label"] < 60
    assert "near-duplicates: " in " ".join(summary["missing"])


# --- pictures and real photographs ------------------------------------------------------------------------------------


def test_a_gallery_takes_any_image_and_any_name(tmp_path: Path) -> None:
    shapes = [(1, 1), (156, 3), (3, 156), (156, 156), (8, 8)]
    tiles = [galleries.Tile([np.zeros((*s, 3), np.uint8)] * 2, ("$x_1^ <b>\n\ud800", "")) for s in shapes]
    for some in (tiles, tiles[:1], []):
        with Image.open(galleries.draw_gallery(tmp_path / "g.png", some, title="t")) as picture:
            picture.load()
    with Image.open(galleries.draw_sizes(tmp_path / "s.png", np.array([1]), np.array([9000]), title="t")) as picture:
        picture.load()


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data" / "flowers5").is_dir(), reason="needs the photographs")
def test_the_identical_files_of_flowers5(tmp_path: Path) -> None:
    outcome = inspected(tmp_path, SHARED / "data" / "flowers5", "--weights", "none")
    conflicts = rows_of(outcome, "two classes")
    assert len(conflicts) == 4
    assert {frozenset((row["class"], row["other_path"].split("/")[0])) for row in conflicts} == {
        frozenset(("rose", "tulip"))
    }
    assert len(rows_of(outcome, "copy")) == 2
    assert all(row["path"] in outcome.out for row in conflicts)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data" / "hymenoptera").is_dir(), reason="needs the photographs")
def test_planted_faults_among_real_photographs(tmp_path: Path) -> None:
    folder = SHARED / "data" / "hymenoptera"
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.jpg"))
    planted = paths[5::40]
    other = {"ants": "bees", "bees": "ants"}
    labels = {path: other[path[:4]] if path in planted else path[:4] for path in paths}
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    with Image.open(folder / paths[0]) as image:
        image.resize((image.width // 2, image.height // 2)).save(tmp_path / "half.jpg", quality=70)
        image.crop((20, 10, image.width - 20, image.height - 15)).save(tmp_path / "crop.jpg", quality=90)
    labels |= {str(tmp_path / name): "ants" for name in ("noise.png", "half.jpg", "crop.jpg")}
    with (tmp_path / "t.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *labels.items()])
    weights = SHARED / "weights" / "squeezenet1_1.safetensors"
    line = ("--labels_csv", tmp_path / "t.csv", "--model_name", "squeezenet1_1", "--weights", weights)
    outcome = inspected(tmp_path, folder, *line, "--num_workers", 0)
    assert outcome.code == 0, outcome.err
    wrong = [row["path"] for row in rows_of(outcome, "wrong label")]
    assert len(set(wrong[: len(planted)]) & set(planted)) >= 0.6 * len(planted)
    assert len(set(wrong) & set(planted)) >= 0.6 * len(planted)
    assert rows_of(outcome, "outlier")[0]["path"].endswith("noise.png")
    pairs = [{row["path"], row["other_path"]} for row in rows_of(outcome, "near-duplicate")]
    for name in ("half.jpg", "crop.jpg"):
        assert any(paths[0] in pair and any(path.endswith(name) for path in pair) for pair in pairs), name
