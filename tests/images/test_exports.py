"""Exports of labeling programs, as they come: the same six pictures, labeled in each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from transfermpl import args, data
from transfermpl.images.exports import local_path
from transfermpl.utils import UserError

from ..image_folders import find, folder, picture

LABELS = {"in/000.png": "cat", "in/001.png": "dog", "in/002.png": ""}
UPLOADED = [(f"/data/upload/3/0a1b2c3d-{path[3:]}", label) for path, label in LABELS.items()]
LINKED = [(f"/data/local-files/?d=somewhere/{path}", label) for path, label in LABELS.items()]


def label_studio(rows: list[tuple[str, str]], **more: object) -> list[dict[str, object]]:
    choice = {"type": "choices", "from_name": "choice", "to_name": "image"}
    return [
        {
            "id": number,
            "data": {"text": "a note", "image": path},
            "annotations": [
                {"was_cancelled": False, "result": [choice | {"value": {"choices": [label]}}] if label else []}
            ],
        }
        | more
        for number, (path, label) in enumerate(rows)
    ]


def datumaro(kind: str = "label") -> dict[str, object]:
    names = ["cat", "dog"]
    items = [
        {"id": path[3:-4], "annotations": [{"type": kind, "label_id": names.index(label)}] if label else [],
         "image": {"path": path[3:]}}
        for path, label in LABELS.items()
    ]  # fmt: skip
    return {"info": {}, "categories": {"label": {"labels": [{"name": name} for name in names]}}, "items": items}


def coco(**more: object) -> dict[str, object]:
    images = [{"id": number, "file_name": path} for number, path in enumerate(LABELS)]
    annotations = [{"id": n, "image_id": n, "category_id": n, **more} for n in (0, 1)]
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def cvat(inside: str) -> str:
    images = "".join(
        f'<image id="{n}" name="{path}" width="9" height="9" subset="default">'
        + (f'<tag label="{label}" source="manual"></tag>' if label else "")
        + (inside if n == 0 else "")
        + "</image>"
        for n, (path, label) in enumerate(LABELS.items())
    )
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{images}</annotations>'


MINIMAL = [{"image": path, "id": 1, "annotator": 1} | ({"choice": label} if label else {}) for path, label in UPLOADED]
EXPORTS = {
    "full.json": json.dumps(label_studio(UPLOADED)),
    "linked.json": json.dumps(label_studio(LINKED)),
    "min.json": json.dumps(MINIMAL),
    "studio.csv": "annotation_id,annotator,choice,id,image,lead_time\n"
    + "".join(f"1,1,{label},7,{path},2.5\n" for path, label in UPLOADED),
    "cvat.xml": cvat(""),
    "datumaro.json": json.dumps(datumaro()),
    "coco.json": json.dumps(coco()),
    "list.txt": "in/000.png 0\n" + '"in/001.png" 1\nin/002.png\n',
    "in/_classes.csv": "filename, cat, dog\n000.png, 1, 0\n001.png, 0, 1\n002.png, 0, 0\n",
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = folder(tmp_path_factory.mktemp("exports"), {"in": 6})
    (root / "synsets.txt").write_text("cat\ndog\n")
    return root


def labels_of(images: Path, *tables: str) -> dict[str, str]:
    dataset = find(images, labels_csv=tables)
    return {p: dataset.classes[c] for p, c in zip(dataset.paths, dataset.labels, strict=True) if c >= 0}


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_are_read_as_they_come(images: Path, name: str) -> None:
    (images / name).write_text(EXPORTS[name])
    assert labels_of(images, name) == {path: label for path, label in LABELS.items() if label}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("boxes.json", EXPORTS["full.json"].replace('"choices": ', '"x": '), "holds choices and no class"),
        ("two.json", EXPORTS["full.json"].replace('["cat"]', '["cat", "dog"]'), "more than one class for"),
        ("min.json", json.dumps([{"image": "003.png", "choice": {"choices": ["a", "b"]}}]), "more than one class"),
        ("min.json", json.dumps([{"image": "003.png", "label": [{"x": 1, "width": 3}]}]), "holds boxes or regions"),
        ("boxes.xml", cvat('<box label="cat" xtl="0" ytl="0" xbr="3" ybr="3"></box>'), "holds box and no class"),
        ("tags.xml", cvat('<tag label="dog"></tag>'), "more than one class for in/000.png"),
        ("entity.xml", cvat("").replace("<annotations>", '<!DOCTYPE a [<!ENTITY b "c">]><annotations>'), "entities"),
        ("torn.xml", cvat("")[:200], "is no classification export"),
        ("other.xml", "<a></a>", "is no classification export"),
        ("boxes.json", json.dumps(datumaro("bbox")), "holds bbox and no class"),
        ("boxes.json", json.dumps(coco(bbox=[0, 0, 3, 3])), "holds boxes and no class"),
        ("other.json", '{"a": 1}', "is no classification export"),
        ("other.json", "[1, 2]", "is no classification export"),
        ("torn.json", '[{"image": ', "can't be read"),
        ("list.txt", "in/000.png 0 1\n", "more than one class"),
        ("list.txt", "in/000.png 7\n", "is no classification export"),
        ("in/_classes.csv", "filename,cat,dog\n000.png,1,1\n", "more than one class for 000.png"),
    ],
)  # fmt: skip
def test_what_is_no_class_of_an_image_is_one_line(images: Path, name: str, text: str, message: str) -> None:
    (images / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        find(images, labels_csv=(name,))
    assert "\n" not in str(error.value)


def test_a_table_with_a_label_and_a_column_of_zeros_and_ones_is_no_export(images: Path) -> None:
    (images / "t.csv").write_text("filename,label,flash\nin/000.png,0,1\nin/001.png,1,1\nin/002.png,0,0\n")
    assert labels_of(images, "t.csv") == {"in/000.png": "0", "in/001.png": "1", "in/002.png": "0"}


def test_one_name_in_two_folders_names_neither(tmp_path: Path) -> None:
    for path in ("a/x.png", "b/x.png", "b/y z.png"):
        picture(tmp_path / path)
    (tmp_path / "t.json").write_text(json.dumps(label_studio([("/data/upload/1/01234567-y_z.png", "cat")])))
    with pytest.raises(UserError, match="two classes, but has cat"):
        labels_of(tmp_path, "t.json")
    (tmp_path / "t.json").write_text(json.dumps(label_studio([("/data/upload/1/01234567-x.png", "cat")])))
    with pytest.raises(UserError, match="there is no file"):
        labels_of(tmp_path, "t.json")


def test_paths_of_label_studio() -> None:
    assert local_path("/data/upload/1/abcdef12-name.jpg") == "name.jpg"
    assert local_path("/data/local-files/?d=sub/my%20name.jpg") == "sub/my name.jpg"
    assert local_path("s3://bucket/sub/name.jpg") == "sub/name.jpg"
    assert local_path("sub/na?me.jpg") == "sub/na?me.jpg"
    assert local_path("C:\\sub\\name.jpg") == "C:\\sub\\name.jpg"


def test_roboflow_says_the_split_by_the_folder(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        names = [f"{part}{n}.png" for n in range(2)]
        for name in names:
            picture(tmp_path / part / name)
        rows = "".join(f"{name},{1 - n},{n}\n" for n, name in enumerate(names))
        (tmp_path / part / "_classes.csv").write_text(f"filename,cat,dog\n{rows}")
    dataset = find(tmp_path, labels_csv=tuple(f"{part}/_classes.csv" for part in ("train", "valid", "test")))
    assert dataset.places == ("test", "test", "train", "train", "val", "val")
    assert dataset.labels.tolist() == [0, 1] * 3


def test_tables_add_to_folders_and_the_later_one_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("labeled/a/1.png", "labeled/b/2.png", "unlabeled/3.png", "unlabeled/4.png", "unlabeled/5.png"):
        picture(tmp_path / path)
    (tmp_path / "r1.csv").write_text("path,label\nunlabeled/3.png,a\nunlabeled/4.png,\nlabeled/b/2.png,\n")
    (tmp_path / "r2.csv").write_text("path,label\nunlabeled/3.png,b\nunlabeled/4.png,b\nlabeled/a/1.png,b\n")
    expected = {"labeled/a/1.png": "a", "labeled/b/2.png": "b", "unlabeled/3.png": "a"}
    assert labels_of(tmp_path, "r1.csv") == expected
    assert "differ" not in capsys.readouterr().err
    expected = {"labeled/b/2.png": "b", "unlabeled/3.png": "a", "unlabeled/4.png": "b", "labeled/a/1.png": "b"}
    assert labels_of(tmp_path, "r2.csv", "r1.csv") == expected
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "differ" in line]
    assert "2 labels differ" in warning
    assert "labeled/a/1.png, which was a and is b by" in warning
    split = data.split_dataset(
        find(tmp_path, labels_csv=("r1.csv",)), args.Data(labels_csv=("r1.csv",), test_percent=0), 0
    )
    assert len(split.labeled) == 3
