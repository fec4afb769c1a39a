"""The findings of an inspection, and how they are shown: a table on the screen, a CSV file, sections of a page."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..base.files import write_text
from ..base.tables import csv_text, number_of, text_table
from ..reports.page import Section
from ..runs.run_folder import RESULTS
from ..visualization import plain

# What can be found, the most serious first, and what a list of it is called.
KINDS = {
    "unreadable": "files that can't be decoded",
    "two classes": "identical files in two classes",
    "two splits": "identical files in two splits",
    "copy": "identical files in one class",
    "near-duplicate": "near-duplicates",
    "wrong label": "likely wrong labels",
    "outlier": "images far from all others",
    "odd file": "odd files",
    "class": "rare or missing classes",
}
ADVICE = {
    "unreadable": "They are left out of every run; repair or remove them.",
    "two classes": "Training uses none of their labels; remove the wrong file of each pair.",
    "two splits": "A run keeps one of them only: the one in the test split, else the one in the validation split.",
    "copy": "A run uses each once.",
    "near-duplicate": "The same picture cropped, mirrored, recoloured or in another size, or the next of a series. "
    "In two splits it makes the test easier than real use; in two classes one label is wrong.",
    "wrong label": "A classifier trained without the image predicts another class. Look before you change any label: "
    "of photographs of flowers two in three were labelled correctly, and only hard.",
    "outlier": "No other image is similar to these. Some belong to no class; of others the class has too few.",
    "odd file": "They are used nevertheless.",
    "class": "A rare class is learned and tested badly; a class that only the test split has can't be learned.",
}
PAIRS = ("two classes", "two splits", "copy", "near-duplicate")
SHOWN = 24  # of a kind in a gallery
SERIOUS = ("unreadable", "two classes", "two splits")  # the first LISTED of these are named on the screen
LISTED = 8


@dataclass(frozen=True)
class Finding:
    """One row of inspect.csv. What a kind does not have is empty; within a kind a higher score is more certain."""

    kind: str
    path: str
    label: str
    split: str
    other_path: str = ""
    suggested_class: str = ""
    score: float | None = None
    explanation: str = ""


UNKNOWN = "(unknown)"  # in the place of a class
COLUMNS = ("kind", "path", "class", "split", "other_path", "suggested_class", "score", "explanation")


def count_table(data: str, files: int, images: int, counts: Sequence[Mapping[str, Any]]) -> str:
    """What is known as soon as the files are read, from what inspect.json will hold."""
    head = f"data set {plain(data, 80)}: {number_of(files, 'file')}, {number_of(images, 'different image')}"
    return f"{head}\n{_count_table(counts)}"


def table(summary: Mapping[str, Any]) -> str:
    """What else is shown on the screen, from what inspect.json holds."""
    lines = ["", *facts(summary), "", _kind_table(summary["findings"])]
    lines += [f"warning: {line}" for line in summary["warnings"]]
    lines += [f"not done: {line}" for line in summary["missing"]]
    return "\n".join(lines)


def _kind_table(findings: Sequence[Mapping[str, Any]]) -> str:
    """How many findings there are of each kind, with the first of them."""
    rows: list[tuple[object, ...]] = [("found", "count", "first")]
    for kind, title in KINDS.items():
        of_kind = [finding for finding in findings if finding["kind"] == kind]
        first, *more = [_in_short(finding) for finding in of_kind[: LISTED if kind in SERIOUS else 1]] or [""]
        rows += [(title, len(of_kind), first), *(("", "", text) for text in more)]
    return text_table(rows, left=(0, 2))


def facts(summary: Mapping[str, Any]) -> list[str]:
    """Sizes, formats, colour modes and features, as lines of text."""
    sizes, accuracy = summary["sizes"], summary["classifier_accuracy"]
    spans = [(name, *sizes[name]) for name in ("width", "height", "aspect") if sizes]
    lines = ["; ".join(f"{name} {low:g} to {high:g}, median {middle:g}" for name, low, middle, high in spans)]
    for name in ("formats", "modes"):
        lines.append(f"{name}: " + ", ".join(f"{kind} {count}" for kind, count in summary[name].items()))
    agrees = "" if accuracy is None else f"; a classifier on them agrees with {100 * accuracy:.1f}% of the labels"
    lines.append(f"features: {summary['features'] or 'none'}{agrees}")
    return lines if sizes else lines[-1:]


def _count_table(counts: Sequence[Mapping[str, Any]]) -> str:
    """The classes with their counts; of many classes the largest and the smallest."""
    columns = list(counts[0])[1:]
    shown: list[Sequence[str]] = [
        [plain(row["class"], 40) or UNKNOWN, *map(str, list(row.values())[1:])] for row in counts
    ]
    if len(shown) > 20:
        by_size = sorted(range(len(counts)), key=lambda i: -counts[i]["files"])
        gap = [["..."] + [""] * len(columns)]
        shown = [shown[i] for i in by_size[:10]] + gap + [shown[i] for i in by_size[-5:]]
    totals = [str(sum(row[column] for row in counts)) for column in columns]
    shown = [["class", *columns], *shown, [f"{sum(row['class'] != '' for row in counts)} classes", *totals]]
    return text_table(shown)


def _in_short(finding: Mapping[str, Any]) -> str:
    """A finding in a few words."""
    text = plain(finding["path"] or finding["class"], 50)
    if finding["kind"] in PAIRS:
        return f"{text} = {plain(finding['other_path'], 50)}"
    if finding["kind"] == "wrong label":
        return f"{text}: rather {plain(finding['suggested_class'])}"
    return text if finding["kind"] == "outlier" else f"{text}: {plain(finding['explanation'], 60)}"


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The most serious kinds first, the highest scores of each kind first."""
    order = list(KINDS)
    return sorted(findings, key=lambda f: (order.index(f.kind), -(f.score or 0.0), f.path))


def write_csv(path: Path, findings: Sequence[Finding]) -> None:
    """Write inspect.csv: COLUMNS, a row a finding."""
    write_text(path, csv_text([COLUMNS, *map(dataclasses.astuple, findings)]))


def shown(findings: Sequence[Finding], kinds: Sequence[str]) -> list[Finding]:
    """The first SHOWN findings of these kinds, some of each kind."""
    each = {kind: [finding for finding in findings if finding.kind == kind] for kind in kinds}
    left, take = SHOWN, dict.fromkeys(kinds, 0)
    for number, kind in enumerate(sorted(kinds, key=lambda kind: len(each[kind]))):
        take[kind] = min(len(each[kind]), left // (len(kinds) - number))
        left -= take[kind]
    return [finding for kind in kinds for finding in each[kind][: take[kind]]]


def sections(
    summary: Mapping[str, Any], images: Mapping[str, np.ndarray] | None = None, *, most: int = 100
) -> list[Section]:
    """The sections of a page (`write_report`) from what inspect.json holds.

    images: thumbnails uint8 [h, w, 3] by path for the galleries; without them files below the data set's folder.
    most: rows of a table.
    """
    counts = summary["counts"]
    text = [number_of(summary["files"], "file"), number_of(summary["images"], "different image"), *facts(summary)]
    first: Section = {
        "heading": f"The data set {summary['data']}",
        "text": ". ".join(text) + ".",
        "table": {
            "columns": list(counts[0]),
            "rows": [[row["class"] or UNKNOWN, *list(row.values())[1:]] for row in counts],
        },
        "pictures": [str(RESULTS / summary["name"] / name) for name in summary["pictures"] if name == "sizes.png"],
        "warnings": [*summary["warnings"], *(f"not done: {line}" for line in summary["missing"])],
    }
    by_kind = {kind: [row for row in summary["findings"] if row["kind"] == kind] for kind in KINDS}
    return [first, *(_section(kind, rows, summary["data"], images, most) for kind, rows in by_kind.items() if rows)]


def _section(
    kind: str, rows: Sequence[Mapping[str, Any]], data: str, images: Mapping[str, np.ndarray] | None, most: int
) -> Section:
    columns = [name for name in COLUMNS[1:] if any(row[name] not in ("", None) for row in rows)]
    cells = [["" if row[name] is None else row[name] for name in columns] for row in rows[:most]]
    gallery = []
    for row in rows[:SHOWN]:
        for path in images_of(kind, row["path"], row["other_path"]):
            image = _file(data, path) if images is None else images.get(path)
            if image is not None:
                gallery.append({"image": image, "caption": f"{path}: {row['explanation']}"})
    cut = f" The first {most} of {len(rows)}; all are in inspect.csv." if len(rows) > most else ""
    return {
        "heading": f"{KINDS[kind][0].upper()}{KINDS[kind][1:]}: {len(rows)}",
        "text": ADVICE[kind] + cut,
        "table": {"columns": columns, "rows": cells},
        "gallery": gallery,
    }


def images_of(kind: str, path: str, other_path: str) -> tuple[str, ...]:
    """The paths of the images that show a finding: none of what can't be read or is no image."""
    if kind in ("unreadable", "class"):
        return ()
    return (path, other_path) if kind in PAIRS else (path,)


def _file(folder: str, path: str) -> str | None:
    """The file of an image, where the data set is a folder and the name is one that can be written down."""
    file = Path(folder).expanduser() / path
    return str(file) if file.is_file() else None
