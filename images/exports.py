"""Classification exports of Label Studio, CVAT and Roboflow, as tables with the columns path, label and split.

Labels are one class an image: a file of boxes, or with several classes an image, raises a UserError of one line.
Label Studio's CSV is a table already; only the paths in it are its own (`local_path`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

from ..utils import UserError
from .file_kinds import SUFFIXES
from .places import place_of

Rows = list[list[str]]
HEAD = ["path", "label", "split"]
MULTI = "has more than one class for {}; a classifier takes one, so leave one"
BOXES = "holds {} and no class of a whole image; export it for image classification"


def export_rows(table: Path, text: str) -> Rows | None:
    """The rows of an export, under `HEAD` or its own names; None for any other text. Raises UserError, ValueError."""
    start = text.lstrip()[:1]
    try:
        if start in ("{", "["):
            return _json_rows(json.loads(text))
        if start == "<":
            return _cvat_rows(text)
        if table.suffix.lower() == ".txt":
            return _imagenet_rows(table, text)
    except _NotOneClass as error:
        raise UserError(f"{table} {error}") from None
    except (KeyError, TypeError, AttributeError, IndexError, ElementTree.ParseError) as error:
        known = "Label Studio, CVAT, Datumaro and Roboflow"
        raise UserError(f"{table} is no classification export of {known} ({error!r}); export it again") from error
    return None


class _NotOneClass(Exception):
    """What a file holds in the place of one class an image."""


def _one(labels: Iterable[str], path: str) -> str:
    found = sorted(set(labels))
    if len(found) > 1:
        raise _NotOneClass(MULTI.format(path))
    return found[0] if found else ""


# --- JSON -------------------------------------------------------------------------------------------------------------


def _json_rows(content: Any) -> Rows:
    if isinstance(content, list):
        full = all("data" in task and ("annotations" in task or "completions" in task) for task in content)
        return _label_studio_rows(content) if full else _flat_rows(content)
    return _datumaro_rows(content) if "items" in content else _coco_rows(content)


def _label_studio_rows(tasks: Sequence[Mapping[str, Any]]) -> Rows:
    rows = [HEAD]
    for task in tasks:
        values = [value for value in task["data"].values() if isinstance(value, str)]
        path = next((v for v in values if PurePosixPath(local_path(v)).suffix.lower() in SUFFIXES), values[0])
        labels = []
        for annotation in task.get("annotations", task.get("completions")):
            for result in [] if annotation.get("was_cancelled") else annotation["result"]:
                if "choices" not in result["value"]:
                    raise _NotOneClass(BOXES.format(result.get("type", "other annotations")))
                labels += [str(choice) for choice in result["value"]["choices"]]
        rows.append([path, _one(labels, path), ""])
    return rows


def _flat_rows(tasks: Sequence[Mapping[str, Any]]) -> Rows:
    """Label Studio's JSON-MIN, and any list of objects with plain values: a table under its own names."""
    names = list(dict.fromkeys(name for task in tasks for name in task))
    return [names, *([_text(task.get(name)) for name in names] for task in tasks)]


def _text(value: object) -> str:
    if isinstance(value, (dict, list)):
        return json.dumps(value)
    return "" if value is None else str(value)


def _datumaro_rows(content: Mapping[str, Any]) -> Rows:
    names = [label["name"] for label in content["categories"]["label"]["labels"]]
    rows = [HEAD]
    for item in content["items"]:
        path = (item.get("image") or item.get("media") or {}).get("path") or item["id"]
        _only(("label",), (annotation["type"] for annotation in item["annotations"]))
        labels = (names[annotation["label_id"]] for annotation in item["annotations"])
        rows.append([path, _one(labels, path), ""])
    return rows


def _coco_rows(content: Mapping[str, Any]) -> Rows:
    names = {category["id"]: category["name"] for category in content["categories"]}
    labels: dict[Any, list[str]] = {}
    for annotation in content["annotations"]:
        if annotation.get("bbox") or annotation.get("segmentation"):
            raise _NotOneClass(BOXES.format("boxes"))
        labels.setdefault(annotation["image_id"], []).append(names[annotation["category_id"]])
    images = [(image["file_name"], labels.get(image["id"], [])) for image in content["images"]]
    return [HEAD, *([path, _one(found, path), ""] for path, found in images)]


def _only(allowed: Sequence[str], kinds: Iterable[str]) -> None:
    other = next((kind for kind in kinds if kind not in allowed), None)
    if other is not None:
        raise _NotOneClass(BOXES.format(other))


# --- XML, text, one column a class ------------------------------------------------------------------------------------


def _cvat_rows(text: str) -> Rows:
    """CVAT for images 1.1. No external entity is read, and a text that declares one is refused."""
    if "<!ENTITY" in text:
        raise _NotOneClass("declares entities, which no export does; export it again")
    root = ElementTree.fromstring(text)
    if root.tag != "annotations" or root.find("image") is None:
        raise KeyError("image")
    rows = [HEAD]
    for image in root.iter("image"):
        _only(("tag",), (child.tag for child in image))
        split, path = image.get("subset", ""), image.attrib["name"]
        rows.append([path, _one((tag.attrib["label"] for tag in image), path), split if place_of(split) else ""])
    return rows


def _imagenet_rows(table: Path, text: str) -> Rows | None:
    """Lines `path number`, as in ImageNet's lists; synsets.txt beside it names the numbers. None for other text."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [match for line in lines if (match := re.fullmatch(r'"?(.*\.\w+)"?((?:\s+\d+)*)', line))]
    if not lines or len(found) < len(lines):
        return None
    named = table.with_name("synsets.txt")
    names = named.read_text(encoding="utf-8").splitlines() if named.is_file() else []
    rows = [HEAD]
    for match in found:
        path, numbers = match[1], match[2].split()
        rows.append([path, _one((names[int(n)].strip() if names else n for n in numbers), path), ""])
    return rows


def one_hot_rows(table: Path, rows: Rows) -> Rows | None:
    """Roboflow's `_classes.csv`, a column a class with 0 or 1, as path and label; None for any other table."""
    names = [name.strip() for name in rows[0]] if rows else []
    body = [[cell.strip() for cell in row] for row in rows[1:] if any(cell.strip() for cell in row)]
    if len(names) < 3 or names[0].lower() != "filename" or not body:
        return None
    if not all(len(row) == len(names) and set(row[1:]) <= {"0", "1"} for row in body):
        return None
    split = table.absolute().parent.name
    split = split if place_of(split) else ""
    try:
        labels = [
            _one((name for name, cell in zip(names[1:], row[1:], strict=True) if cell == "1"), row[0]) for row in body
        ]
    except _NotOneClass as error:
        raise UserError(f"{table} {error}") from None
    return [HEAD, *([row[0], label, split if label else ""] for row, label in zip(body, labels, strict=True))]


def check_cell(cell: str, where: str) -> None:
    """Raises UserError for a label that is no class, but what Label Studio writes for boxes or for several classes."""
    if re.match(r'\s*(\{\s*"choices"|\[\s*")', cell):
        raise UserError(f"{where} {MULTI.format('an image')}")
    if re.match(r"\s*\[\s*\{", cell):
        raise UserError(f"{where} {BOXES.format('boxes or regions')}")


# --- paths ------------------------------------------------------------------------------------------------------------


def local_path(path: str) -> str:
    """The path of a file as Label Studio knew it before it was uploaded or linked; other paths as they are."""
    parts = urlsplit(path)
    if parts.path.endswith("/data/local-files/"):
        return parse_qs(parts.query).get("d", [path])[0]
    if "/data/upload/" in parts.path:
        return re.sub(r"^[0-9a-f]{8}-", "", unquote(PurePosixPath(parts.path).name))
    return unquote(parts.path).lstrip("/") if len(parts.scheme) > 1 else path
