"""The files of a data set as they lie in its folder, and what can be said of them without looking at any image."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import args
from ..base.tables import number_of
from ..data import Dataset, clean
from ..images.builtin import Found, Item
from ..images.layouts import find_files
from ..images.scan import Scanned, scan
from .findings import Finding

RARE = 3.0  # times smaller than the largest class


@dataclass(frozen=True, eq=False)
class InspectedFiles:
    """Every file of a data set, and the images that can be decoded.

    found: the files as their folders or table name them; scanned: the content's hash of each, or the reason why it
    can't be decoded; dataset: a row a content, none left out for its label or split; items: the files by path; row_of:
    the row of each file that can be decoded, by path.
    """

    found: Found
    scanned: list[Scanned]
    dataset: Dataset
    items: dict[str, Item]
    row_of: dict[str, int]

    def finding(self, kind: str, path: str, **more: Any) -> Finding:
        """A finding about a file, with the label and the split that the data set itself gives it."""
        item = self.items[path]
        return Finding(kind, path, item.label, item.place, **more)

    def item(self, row: int) -> Item:
        """The file that stands for a row of the data set."""
        return self.items[self.dataset.paths[row]]


def read_files(data: args.Data) -> InspectedFiles:
    """Find and scan the data set of the options. Raises UserError where there is none."""
    found = find_files(data, for_test=True)
    scanned = scan(found)
    # Without a split of its own no row is left out: a test image with two labels is to be reported as well.
    anywhere = [dataclasses.replace(item, place="") for item in found.items]
    dataset = clean(data.data_dir, dataclasses.replace(found, items=anywhere), scanned)
    rows = {code: row for row, code in enumerate(dataset.hashes.tolist())}
    pairs = zip(found.items, scanned, strict=True)
    row_of = {item.path: rows[one.code] for item, one in pairs if one.code in rows}
    return InspectedFiles(found, scanned, dataset, {item.path: item for item in found.items}, row_of)


def differ_in_class(one: Item, other: Item) -> bool:
    """Whether two files are in two classes; an unknown label differs from none."""
    return bool(one.label and other.label and one.label != other.label)


def unreadable_files(files: InspectedFiles) -> Iterable[Finding]:
    """A finding for each file that can't be decoded."""
    for path, reason in files.dataset.bad_files:
        yield files.finding("unreadable", path, explanation=reason)


def class_findings(files: InspectedFiles) -> Iterable[Finding]:
    """Classes with few images, and those that have none to learn from."""
    dataset, items = files.dataset, files.found.items
    counts = Counter(dataset.classes[label] for label in dataset.labels if label >= 0)
    name, most = max(counts.items(), key=lambda pair: pair[1], default=("", 0))
    for label, count in counts.items():
        if most >= RARE * count:
            text = f"{number_of(count, 'image')}; the largest class, {name}, has {most}"
            yield Finding("class", "", label, "", score=round(most / count, 2), explanation=text)
    trained = {item.label for item in items if item.place not in ("val", "test")}
    for label in sorted({item.label for item in items} - trained):
        yield Finding("class", "", label, "", explanation="has no image to learn from, only some for val or test")
    for label in sorted({item.label for item in items} - set(counts) - {""}):
        yield Finding("class", "", label, "", explanation="no image of it can be used")


def imbalance(dataset: Dataset) -> float:
    """How many times the images of the smallest class the largest has; 1 without any class."""
    counts = np.bincount(dataset.labels[dataset.labels >= 0])
    counts = counts[counts > 0]
    return float(counts.max() / counts.min()) if len(counts) else 1.0


def counts_by_class(files: InspectedFiles) -> list[dict[str, Any]]:
    """A row a class: class (its name, "" for unknown labels, which come last), files that can be decoded, the same in
    each of the data set's own splits, and unreadable ones.
    """
    readable: dict[str, Counter[str]] = defaultdict(Counter)
    unreadable: Counter[str] = Counter()
    for item in files.found.items:
        if item.path in files.row_of:
            readable[item.label][item.place] += 1
        else:
            unreadable[item.label] += 1
    places = sorted({item.place for item in files.found.items} - {""})
    return [
        {"class": label, "files": sum(readable[label].values())}
        | {place: readable[label][place] for place in places}
        | {"unreadable": unreadable[label]}
        for label in sorted(set(readable) | set(unreadable), key=lambda label: (label == "", label))
    ]
