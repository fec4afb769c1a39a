"""A data set found, cleaned and split. Knows nothing of networks.

A data set is found (`find_dataset`) and cut into four lists of row numbers (`split_dataset`). Every choice is a
function of the seed and the files' paths, so any machine makes the same one.
"""

from __future__ import annotations

import bisect
import csv
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import args
from .base.files import write_text
from .base.folds import dealt_folds
from .base.tables import csv_rows, csv_text, number_of, text_table
from .images.builtin import NAMES as BUILT_IN
from .images.builtin import Found, Item
from .images.decode import (
    COLOURS,
    Transform,
    ValueRanges,
    fit,
    open_rgb,
    quiet_pil,
    read_content,
    reason_of,
    value_ranges,
)
from .images.layouts import HELD_OUT_PLACES, LAYOUTS, find_files
from .images.places import listed
from .images.scan import Scanned, content_hash, scan
from .utils import UserError, generator, say, shown, warn

if TYPE_CHECKING:
    import torch
    from PIL import Image


FEW = 0.03  # of the labels, where they are used to show what few of them would give
ENOUGH_A_CLASS = 10  # labels, without which the user's own are not left unused


class ImagesChanged(UserError):
    """Files are not what they were when the data set was scanned, or not there any more."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images or points, one row per content, rows sorted by path.

    labels: int64 [N], the position in `classes`, -1 unknown; asked: the rows that a run chose to be labeled; hashes:
    uint64 [N], of the content; places: what the data set itself says of a row: "", train, labeled, unlabeled, val or
    test; kind: photos, digits or points; native_size: the side of images that come as an array, else 0; ranges: black
    and white of images that are not 8-bit. `left_out`: path, hash (hex), class name, reason.
    """

    name: str
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: np.ndarray
    hashes: np.ndarray
    places: tuple[str, ...]
    kind: str
    native_size: int
    ranges: ValueRanges = field(default_factory=dict)
    bad_files: tuple[tuple[str, str], ...] = ()
    duplicates: tuple[tuple[str, str], ...] = ()
    conflicts: tuple[tuple[str, ...], ...] = ()
    left_out: tuple[tuple[str, str, str, str], ...] = ()
    asked: tuple[int, ...] = ()
    sources: tuple[str | int, ...] = ()
    array: np.ndarray | None = None
    resized: dict[Transform, torch.Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, row: int, transform: Transform) -> torch.Tensor:
        """One image as uint8 [3, size, size] (RGB), or one point as float32 [2].

        Raises ImagesChanged, naming the file, if it is not what was scanned, and UserError if it can't be decoded.
        """
        import torch

        source = self.sources[row]
        if self.kind == "points":
            assert self.array is not None
            return torch.from_numpy(self.array[source].copy())
        with quiet_pil():
            image = fit(self.picture(row, 2 * transform.resize), transform)
        return torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())

    def picture(self, row: int, shortest: int) -> Image.Image:
        """The whole image, upright, in RGB; large JPEGs come smaller, with no side under `shortest`.

        The bytes that are decoded are those that were hashed: a row never stands for another content. Raises
        ImagesChanged, naming the file, if it is not what was scanned.
        """
        source = self.sources[row]
        if self.array is not None:
            from PIL import Image

            return Image.fromarray(np.ascontiguousarray(self.array[source]))
        content = self._as_scanned(row)
        if content is None:
            hint = "put it back, or start again with what is there now"
            raise ImagesChanged(f"{source} has changed since it was scanned, or is gone; {hint}")
        try:
            return open_rgb(content, shortest, self.ranges)
        except Exception as error:
            raise UserError(f"{source} can't be decoded ({reason_of(error)}); remove it and start again") from error

    def _as_scanned(self, row: int) -> bytes | None:
        """The content of a row's file; None where it is not what was scanned any more."""
        try:
            content = read_content(str(self.sources[row]))
        except (OSError, ValueError):
            return None
        return content if content_hash(content) == int(self.hashes[row]) else None

    def changed(self, rows: np.ndarray) -> np.ndarray:
        """Those of the rows whose file is not what was scanned any more."""
        if self.array is not None:
            return rows[:0]
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            gone = list(pool.map(lambda row: self._as_scanned(row) is None, rows.tolist()))
        return rows[np.array(gone, dtype=bool)]


@dataclass(frozen=True, eq=False)
class Split:
    """Sorted int64 row numbers. Labeled rows are also unlabeled ones when the options say so; else nothing overlaps."""

    labeled: np.ndarray
    unlabeled: np.ndarray
    val: np.ndarray
    test: np.ndarray


def without(dataset: Dataset, split: Split, rows: np.ndarray) -> tuple[Dataset, Split]:
    """The same, with these rows in no part of the split; split.csv names them as changed."""
    names = [*dataset.classes, ""]  # the last is that of -1
    gone = [
        (dataset.paths[row], f"{dataset.hashes[row]:016x}", names[dataset.labels[row]], "changed")
        for row in rows.tolist()
    ]
    less = Split(*(np.setdiff1d(part, rows) for part in (split.labeled, split.unlabeled, split.val, split.test)))
    lost = sorted(set(dataset.labels[split.labeled].tolist()) - set(dataset.labels[less.labeled].tolist()))
    if lost:
        raise UserError(f"{dataset.classes[lost[0]]}: all its labeled images have changed since the scan")
    return replace(dataset, left_out=tuple(sorted([*dataset.left_out, *gone]))), less


# --- finding ----------------------------------------------------------------------------------------------------------


def find_dataset(data: args.Data, *, for_test: bool = False) -> Dataset:
    """Find, scan and clean the data set of the options; what is odd is named in one warning line a kind.

    A built-in name wins over a folder of that name in the working directory: `./digits` is the folder, `digits` is not.
    for_test: it need not be enough to learn from, so it may have a test alone, or one class. Raises UserError when
    there is nothing usable.
    """
    found = find_files(data, for_test=for_test)
    dataset = clean(data.data_dir, found, scan(found))
    _report(dataset, found)
    _check_classes(dataset, for_test=for_test)
    return dataset


def clean(name: str, found: Found, scanned: list[Scanned]) -> Dataset:
    """One row per content, sorted by path; what is left out is kept in lists."""
    bad, left_out, same = [], [], defaultdict(list)
    for item, (code, reason, _) in sorted(zip(found.items, scanned, strict=True), key=lambda pair: pair[0].path):
        if reason or code is None:
            bad.append((item.path, reason))
            left_out.append((item.path, "" if code is None else f"{code:016x}", item.label, "bad"))
        else:
            same[code].append(item)
    rows, duplicates, conflicts = [], [], []
    for code, items in same.items():
        kept, dropped, reason = _merge(items)
        if kept is not None:
            rows.append((kept, code))
        if reason == "conflict":
            conflicts.append(tuple(item.path for item in items))
        elif kept is not None:
            duplicates += [(item.path, kept.path) for item in dropped]
        left_out += [(item.path, f"{code:016x}", item.label, reason) for item in dropped]
    rows.sort(key=lambda row: row[0].path)
    kept_items = [item for item, _ in rows]
    classes = tuple(sorted({item.label for item in kept_items} - {""}))
    index = {label: i for i, label in enumerate(classes)} | {"": -1}
    return Dataset(
        name=name,
        classes=classes,
        paths=tuple(item.path for item in kept_items),
        labels=np.array([index[item.label] for item in kept_items], dtype=np.int64),
        hashes=np.array([code for _, code in rows], dtype=np.uint64),
        places=tuple(item.place for item in kept_items),
        kind=found.kind,
        native_size=0 if found.array is None or found.kind == "points" else found.array.shape[1],
        ranges=value_ranges(values for _, _, values in scanned),
        bad_files=tuple(bad),
        duplicates=tuple(duplicates),
        conflicts=tuple(conflicts),
        left_out=tuple(sorted(left_out)),
        asked=tuple(row for row, item in enumerate(kept_items) if item.asked),
        sources=tuple(item.source for item in kept_items),
        array=found.array,
    )


def _merge(items: list[Item]) -> tuple[Item | None, list[Item], str]:
    """The one of several items with the same content that stays (or None), the others, and why they go.

    Test overrides val, val overrides training, a known label overrides none; then the first path stays. A table's label
    overrides those of folders and of earlier tables: who labels an image that lies in two classes, decides.
    """
    kept = min(items, key=lambda item: (_rank(item.place), not item.label, item.path))
    rest = [item for item in items if item is not kept]
    last = max((item.table for item in items if item.label), default=0)
    labels = {item.label for item in items if item.label and item.table == last}
    if len(labels) < 2:
        asked = any(item.asked for item in items)
        return replace(kept, label=next(iter(labels), ""), asked=asked), rest, "duplicate"
    if kept.place in HELD_OUT_PLACES:
        return None, items, "conflict"
    return replace(kept, label=""), rest, "conflict"


def _rank(place: str) -> int:
    return HELD_OUT_PLACES.index(place) if place in HELD_OUT_PLACES else len(HELD_OUT_PLACES)


def _report(dataset: Dataset, found: Found) -> None:
    total = len(found.items)
    if dataset.bad_files:
        (path, reason), count = dataset.bad_files[0], len(dataset.bad_files)
        undecoded = f"of {total} files can't be decoded and"
        warn(f"{number_of(count, f'{undecoded} is', f'{undecoded} are')} left out, the first: {path} ({reason})")
    if dataset.duplicates:
        words = f"of {total} images is a copy of another one and is", f"of {total} images are copies of others and are"
        warn(f"{number_of(len(dataset.duplicates), *words)} left out; see split.csv")
    if dataset.conflicts:
        filed = number_of(len(dataset.conflicts), "image is", "images are")
        warn(f"{filed} filed under more than one class, and no such label is used; see split.csv")
    counts = np.bincount(dataset.labels[dataset.labels >= 0], minlength=len(dataset.classes))
    lone = [name for name, count in zip(dataset.classes, counts, strict=True) if count == 1]
    if lone and 2 * len(lone) < len(dataset.classes):
        warn(f"only one image of {listed(lone)}: is the name mistyped?")
    for kind, (black, white) in dataset.ranges.items():
        read = "16-bit colours (their upper 8 bits are read)" if kind == COLOURS else f"{kind} instead of 8-bit values"
        say(f"images with {read}: {black:g} is shown as black and {white:g} as white in all")
    gone = {item.label for item in found.items} - {""} - set(dataset.classes)
    if gone:
        warn(f"{listed(sorted(gone))}: no usable image is left, so there is no class of that name")


def _check_classes(dataset: Dataset, *, for_test: bool) -> None:
    if not len(dataset):
        raise UserError(f"none of the image files in {dataset.name} can be used; see the warnings")
    if for_test:
        return
    apart = np.isin(dataset.places, HELD_OUT_PLACES)
    trained = set(dataset.labels[~apart])
    unseen = sorted({int(c) for c in dataset.labels[apart]} - trained)
    if unseen:
        names = listed(dataset.classes[c] for c in unseen)
        raise UserError(f"{dataset.name}: test or val has classes that are not in train: {names}; add or remove them")
    if len(dataset.classes) < 2:
        only = listed(dataset.classes) or "none"
        raise UserError(f"{dataset.name} needs at least two classes, but has {only}; the layouts are {LAYOUTS}")


# --- splitting --------------------------------------------------------------------------------------------------------


def split_dataset(dataset: Dataset, data: args.Data, seed: int) -> Split:
    """Cut the rows by the options; a larger number of labels contains a smaller one, and test does not depend on it.

    Each class is shuffled once: its first images are the test, the next validation, the next labels. Images that a run
    asked for come last: they are harder than others, would make a test too hard, and leave it as it was. Raises
    UserError when the numbers don't fit.
    """
    places = np.array(dataset.places)
    test, val = list(np.flatnonzero(places == "test")), list(np.flatnonzero(places == "val"))
    own_test, own_val = bool(test), bool(val)
    free: dict[int, np.ndarray] = {}
    for label, name in enumerate(dataset.classes):
        rows = np.flatnonzero((dataset.labels == label) & ~np.isin(places, HELD_OUT_PLACES))
        asked = np.intersect1d(rows, dataset.asked)
        rows = generator(seed, "split", name).permutation(np.setdiff1d(rows, asked))
        if not own_test:
            count = _part(data.test_percent, len(rows))
            test, rows = [*test, *rows[:count]], rows[count:]
        if not own_val:
            count = _part(data.val_percent, len(rows))
            val, rows = [*val, *rows[:count]], rows[count:]
        free[label] = np.concatenate([rows, asked])
    labeled = _draw_labels(
        free, _count_labels(dataset, data, [len(rows) for rows in free.values()]), data.label_split, seed
    )
    training = np.setdiff1d(np.arange(len(dataset)), [*test, *val])
    unlabeled = training if data.include_labeled else np.setdiff1d(training, labeled)
    if not len(unlabeled):
        raise UserError("every training image is a labeled one; leave out --no_include_labeled or take fewer labels")
    return Split(*(np.sort(np.asarray(rows, dtype=np.int64)) for rows in (labeled, unlabeled, val, test)))


def _part(part: float, count: int) -> int:
    """That part of a class of `count` images: at least one image unless it is 0, and at least one is left."""
    return min(max(int(part * count + 0.5), 1), count - 1) if part > 0 and count else 0


def _count_labels(dataset: Dataset, data: args.Data, sizes: Sequence[int]) -> int:
    """How many labels of classes of these sizes are used: of a share, balanced, equally many a class."""
    classes, available = len(dataset.classes), sum(sizes)
    needed = f"there are {classes} classes: give --num_labels {classes} or more, or --num_labels_percent 100% for all"
    if data.num_labels is not None:
        if data.num_labels > available:
            raise UserError(f"--num_labels {data.num_labels} is too many: {available} are there for training")
        if data.num_labels < classes:
            raise UserError(f"--num_labels {data.num_labels} is too few, {needed}")
        return data.num_labels
    share = data.num_labels_percent
    if share is None:
        share = _share_of_labels(dataset, data, available)
    count = int(share * available + 0.5)
    if data.label_split == "balanced" and share > 0:
        count = _equal_labels(sizes, count)
    if count < classes:
        raise UserError(f"{100 * share:g}% of {available} images are {count} labels, but {needed}")
    return count


def _equal_labels(sizes: Sequence[int], count: int) -> int:
    """About `count` labels, but equally many of each class that has so many, and two at least.

    With one label a class takes no part in calibration, and has only half of its weight in the class prior.
    """

    def total(each: int) -> int:
        return sum(min(size, each) for size in sizes)

    enough = bisect.bisect_left(range(max([2, *sizes])), count, key=total)  # labels of each class
    return min(total(max(2, enough - 1)), total(max(2, enough)), key=lambda found: abs(found - count))


def _share_of_labels(dataset: Dataset, data: args.Data, available: int) -> float:
    """All labels, unless every image has one and a few of them are enough to show what few labels would give."""
    in_conflict = {path for group in dataset.conflicts for path in group}
    unknown = (dataset.paths[row] for row in np.flatnonzero(dataset.labels < 0))
    if data.labels_csv or any(path not in in_conflict for path in unknown):
        return 1.0
    enough = FEW * available >= ENOUGH_A_CLASS * len(dataset.classes)
    return FEW if enough or data.data_dir in BUILT_IN else 1.0


def _draw_labels(free: dict[int, np.ndarray], count: int, how: str, seed: int) -> np.ndarray:
    """Rows, one after another: the next is of the class whose turn it is, so that fewer labels are a part of more.

    balanced: the class with the fewest; stratified: after one of each, by Webster's (Sainte-Lague's) quotients, which
    never take an image back when the number grows, as largest remainders can.
    """
    order = generator(seed, "split", "order of classes").permutation(len(free))
    turns = []
    for label, rows in free.items():
        for k, row in enumerate(rows):
            turn = k if how == "balanced" or k == 0 else (k + 0.5) / len(rows)
            turns.append((k > 0, turn, order[label], row))
    return np.array([turn[-1] for turn in sorted(turns)[:count]], dtype=np.int64)


def folds_of(dataset: Dataset, split: Split, count: int, seed: int) -> list[Split]:
    """The labeled images cut into `count` stratified folds: each split learns without one and has it as `val`.

    What is held out stays among the unlabeled images, as it is there in the real run; the test stays empty.
    """
    nothing = np.zeros(0, dtype=np.int64)
    return [
        Split(split.labeled[learned], split.unlabeled, split.labeled[held_out], nothing)
        for learned, held_out in dealt_folds(dataset.labels[split.labeled], count, seed=seed).split()
    ]


def unused_labels(dataset: Dataset, split: Split) -> int:
    """How many training images have a known label that nothing learns from."""
    return int((dataset.labels[np.setdiff1d(split.unlabeled, split.labeled)] >= 0).sum())


def write_split(path: Path, dataset: Dataset, split: Split) -> None:
    """Write split.csv: path, hash (16 hex digits), label (class name or empty), split.

    The split is labeled, unlabeled, val, test, duplicate, conflict, bad or changed. A labeled image that is also in the
    unlabeled set is written as labeled only; the label of an unlabeled one is what the data set knows of it.
    """
    names = np.full(len(dataset), "", dtype=object)
    for name in ("unlabeled", "labeled", "val", "test"):
        names[getattr(split, name)] = name
    labels = [dataset.classes[c] if c >= 0 else "" for c in dataset.labels]
    each = zip(dataset.paths, dataset.hashes, labels, names, strict=True)
    rows = [(p, f"{h:016x}", c, n) for p, h, c, n in each if n]
    write_text(path, csv_text([("path", "hash", "label", "split"), *sorted([*rows, *dataset.left_out])]))


def read_split(path: Path) -> dict[str, set[int]]:
    """The content hashes in a split.csv by split: which images a run has learned from. Raises UserError."""
    hashes: dict[str, set[int]] = defaultdict(set)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            columns, *rows = csv_rows(file)
            for row in (dict(zip(columns, cells, strict=True)) for cells in rows if cells):
                if row["hash"]:
                    hashes[row["split"]].add(int(row["hash"], 16))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path} can't be read as a split.csv ({error}); take the one of the run again") from error
    return dict(hashes)


# --- the table on the screen ------------------------------------------------------------------------------------------


def summary_table(dataset: Dataset, split: Split) -> str:
    """What was found, as lines of text: a row a class, or with many classes the least and the most of any."""
    columns = {"images": np.arange(len(dataset)), **vars(split)}
    columns["unlabeled"] = np.setdiff1d(split.unlabeled, split.labeled)  # a labeled image counts once
    counts = {name: Counter(dataset.labels[rows].tolist()) for name, rows in columns.items()}
    lines = [("class", *columns)]
    if len(dataset.classes) <= 20:
        for label, name in enumerate(dataset.classes):
            lines.append((name[:40], *(str(count[label]) for count in counts.values())))
    else:
        each = [[count[label] for label in range(len(dataset.classes))] for count in counts.values()]
        lines.append(("each", *(f"{min(n)}..{max(n)}" for n in each)))
    if counts["images"][-1]:
        lines.append(("(unknown)", *(str(count[-1]) for count in counts.values())))
    lines.append((f"{len(dataset.classes)} classes", *(str(len(rows)) for rows in columns.values())))
    unused = unused_labels(dataset, split)
    if unused:
        hint = "these images are taken as unlabeled; --num_labels_percent 100% uses all labels"
        hint = f"\n{unused} known labels are not used: {hint}"
    return f"data set {shown(dataset.name)}\n{text_table(lines)}{hint if unused else ''}"
