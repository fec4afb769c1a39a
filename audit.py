"""What is wrong with a data set, said before anything learns from it: `MPL.py --inspect`.

`inspect` finds the files (data.py), asks a backbone for features where one can be had, lets suspects.py judge, and
leaves a table on the screen, inspect.csv (a row a finding), inspect.json and pictures. Nothing is changed or removed.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import shlex
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import suspects
from args import Options, recorded
from builtin_data import Item
from data import Dataset, Split, clean, find_files, scan, split_dataset
from decode import quiet_pil
from experiment import Setup
from features import FeatureBank
from galleries import CELL, Tile, draw_gallery, draw_sizes
from models import WeightsMissing
from reporting import Screen, commit, versions
from utils import RESULTS, UserError, choose_device, peak_memory_bytes, run_folder, say, warn, write_json, write_text
from visualization import _plain

# What can be found, the gravest first, and what a list of it is called.
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
    "unreadable": "They are left out of every run; mend or remove them.",
    "two classes": "Training uses none of their labels; remove the wrong one of each.",
    "two splits": "A run keeps them on one side only, the test's before the others'.",
    "copy": "A run counts each once.",
    "near-duplicate": "The same picture cropped, mirrored, recoloured or in another size, or the next of a series. "
    "In two splits it makes the test easier than life; in two classes one label is wrong.",
    "wrong label": "A classifier that did not see the label is sure of another one. Look before you change any: "
    "about half of them are right and only hard (docs/inspect.md).",
    "outlier": "Nothing else looks like these. Some belong to no class; others are what the class has too few of.",
    "odd file": "They are used all the same.",
    "class": "A rare class is learned and tested badly; a class that only the test has can't be learned.",
}
PAIRS = ("two classes", "two splits", "copy", "near-duplicate")
OUTLIER = 2.5  # robust standard deviations; in flowers5 25 of 2,494 images lie beyond
RARE = 3.0  # times smaller than the largest class
SMALL, NARROW, EDGELESS = 64, 3.0, 2.0  # pixels of the shorter side; long by short side; grey levels of deviation
SHOWN = 24  # of a kind in a gallery
USED = {
    "inspect", "name", "overwrite", "seed", "device", "precision", "num_workers", "cache", "cache_dir", "cache_limit",
    "cache_dtype", "keep_pages", "data_dir", "data_root", "download", "labels_csv", "val_percent", "test_percent",
    "model_name", "weights", "image_size", "near_duplicate",
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One row of inspect.csv. What a kind does not have is empty; a score is the higher the surer within its kind."""

    kind: str
    path: str
    label: str
    split: str
    other_path: str = ""
    suggested_class: str = ""
    score: float | None = None
    explanation: str = ""


COLUMNS = ("kind", "path", "class", "split", "other_path", "suggested_class", "score", "explanation")


def inspect(options: Options) -> dict[str, Any]:
    """Inspect the data set of the options and return what inspect.json holds. Raises UserError where none is found."""
    began = time.monotonic()
    if options.given - USED:
        warn(f"--{', --'.join(sorted(options.given - USED))}: not used by --inspect")
    audit = Audit(options)
    findings = audit.findings()
    folder = run_folder(options.run.name or "", overwrite=options.run.overwrite)
    summary = audit.summary(folder.name, findings)
    pictures = audit.draw(folder, findings)
    summary |= {"pictures": [path.name for path in pictures], "seconds": round(time.monotonic() - began, 3)}
    write_json(folder / "commandline_args.txt", recorded(options.changed(name=folder.name)))
    _write_csv(folder / "inspect.csv", findings)
    write_json(folder / "inspect.json", summary)
    say(table(summary))
    say(f"results: {folder} ({', '.join(['inspect.csv', 'inspect.json', *summary['pictures']])})")
    return summary


class Audit:
    """The data set as it lies, what its images look like, and what suspects.py thinks of them. Writes nothing."""

    def __init__(self, options: Options) -> None:
        self.options, self.device = options, choose_device(options.run.device)
        self.found = find_files(options.data, for_test=True)
        self.scanned = scan(self.found)
        # Without places no row is given up: a test image with two labels is to be seen as well.
        homeless = [dataclasses.replace(item, place="") for item in self.found.items]
        self.dataset = clean(options.data.data_dir, dataclasses.replace(self.found, items=homeless), self.scanned)
        rows = {code: row for row, code in enumerate(self.dataset.hashes.tolist())}
        self.items = {item.path: item for item in self.found.items}
        self.row_of = {
            item.path: rows[code]
            for item, (code, _) in zip(self.found.items, self.scanned, strict=True)
            if code in rows
        }
        self.missing: list[str] = []
        self.looks = look(self.dataset)
        self.features, self.features_of = self._features()
        self.neighbours = None
        if self.features is not None:
            self.neighbours = suspects.nearest(suspects.unit(self.features), suspects.NEIGHBOURS, self.device)
        self.alike = self._alike()
        self.doubts = self._doubts()

    def _features(self) -> tuple[np.ndarray | None, str]:
        """Features float32 [N, D] of all rows and what made them, or None, which `missing` then explains."""
        dataset, rows = self.dataset, np.arange(len(self.dataset))
        if not len(rows) or dataset.kind == "points":
            return None, ""
        if dataset.array is not None and dataset.kind == "digits" and self.options.model.model_name is None:
            return dataset.array[np.array(dataset.sources)][..., 0].reshape(len(rows), -1).astype(np.float32), "pixels"
        try:
            nothing = np.zeros(0, dtype=np.int64)
            setup = Setup(self.options.changed(unfreeze=None), dataset, Split(nothing, nothing, nothing, rows))
        except WeightsMissing as error:
            return self._without_features(str(error))
        if not setup.frozen:
            hint = "give a pretrained --model_name, or --weights FILE"
            return self._without_features(f"{setup.backbone.name} has random weights, which see nothing; {hint}")
        if isinstance(setup.source, FeatureBank) and setup.source.missing({("eval", 0): rows}):
            with Screen(setup.source.missing({("eval", 0): rows}), what="features", unit="image") as screen:
                setup.source.fill({("eval", 0): rows}, show=screen.show)
        parts = [part.cpu() for part in setup.source.evaluation(rows)]
        return torch.cat(parts).numpy(), setup.backbone.name

    def _without_features(self, reason: str) -> tuple[None, str]:
        self.missing.append(f"outliers, likely wrong labels and cropped or mirrored near-duplicates: {reason}")
        return None, ""

    def _alike(self) -> suspects.Alike | None:
        if self.dataset.kind == "points" or 0 < self.dataset.native_size < 24:
            self.missing.append("near-duplicates: at so few pixels all images of a class are alike")
            return None
        threshold = self.options.study.near_duplicate
        alike = suspects.near_duplicates(self.looks.thumbnails, self.neighbours, threshold, self.device)
        if alike.cut_off:
            self.missing.append(f"near-duplicates: only the {alike.candidates} likeliest pairs were compared")
        return alike

    def _doubts(self) -> suspects.Doubts | None:
        """Doubts about the labels of classes that have enough images to be judged."""
        if self.features is None:
            return None
        pairs = self.alike.pairs if self.alike is not None else np.zeros((0, 2), dtype=np.int64)
        group = suspects.groups(pairs, len(self.dataset))
        labels = self.dataset.labels.copy()
        for label, name in enumerate(self.dataset.classes):
            count = len(np.unique(group[labels == label]))
            if count < suspects.FOLDS:
                labels[labels == label] = -1
                self.missing.append(f"wrong labels of {_plain(name)}: {count} images are too few to judge by")
        if len(np.unique(labels[labels >= 0])) < 2:
            self.missing.append(f"likely wrong labels: needs two classes of {suspects.FOLDS} images or more")
            return None
        return suspects.doubtful_labels(self.features, labels, group, self.options.run.seed)

    # What was found.

    def findings(self) -> list[Finding]:
        """Every finding, the gravest kinds first, the surest of each kind first."""
        found = [*self._unreadable(), *self._copies(), *self._near(), *self._wrong(), *self._far(), *self._odd()]
        found += self._classes()
        order = list(KINDS)
        return sorted(found, key=lambda f: (order.index(f.kind), -(f.score or 0.0), f.path))

    def _finding(self, kind: str, path: str, **more: Any) -> Finding:
        item = self.items[path]
        return Finding(kind, path, item.label, item.place, **more)

    def _unreadable(self) -> Iterable[Finding]:
        for path, reason in self.dataset.bad_files:
            yield self._finding("unreadable", path, explanation=reason)

    def _copies(self) -> Iterable[Finding]:
        """For each further file with the same bytes one finding, beside the copy that it is most at odds with."""
        same: dict[int, list[Item]] = defaultdict(list)
        for path, row in self.row_of.items():
            same[row].append(self.items[path])
        for row, items in same.items():
            items.sort(key=lambda item: item.path)
            for number, item in enumerate(items[1:], 1):
                other = min(items[:number], key=lambda o: (not _at_odds(o, item), o.place == item.place, o.path))
                yield self._copy(row, item, other, sorted({o.label for o in items} - {""}))

    def _copy(self, row: int, item: Item, other: Item, labels: Sequence[str]) -> Finding:
        kind = "copy" if other.place == item.place else "two splits"
        text = f"the same bytes as {other.path}"
        suggested, score = "", None
        if _at_odds(other, item):
            kind, text = "two classes", f"the same bytes are filed under {other.label} and {item.label}"
            suggested, score = self._likelier(row, labels)
        if other.place != item.place:
            text += f", in {other.place} and {item.place}"
        return self._finding(
            kind, item.path, other_path=other.path, suggested_class=suggested, score=score, explanation=text
        )

    def _likelier(self, row: int, labels: Sequence[str]) -> tuple[str, float | None]:
        """Which of the classes that an image lies in the classifier takes it for, and how surely."""
        known = [name for name in labels if name in self.dataset.classes]
        if self.doubts is None or not known:
            return "", None
        own = np.array([self.doubts.probabilities[row, self.dataset.classes.index(name)] for name in known])
        return known[int(own.argmax())], round(float(own.max() / max(own.sum(), 1e-9)), 4)

    def _near(self) -> Iterable[Finding]:
        for (one, other), score in zip(
            *((self.alike.pairs, self.alike.scores) if self.alike else ((), ())), strict=True
        ):
            a, b = (self.items[self.dataset.paths[row]] for row in (one, other))
            text = "looks like the same picture"
            if _at_odds(a, b):
                text += f", filed under {b.label} and {a.label}"
            if a.place != b.place:
                text += f", in {b.place} and {a.place}"
            yield self._finding(
                "near-duplicate", b.path, other_path=a.path, score=round(float(score), 4), explanation=text
            )

    def _wrong(self) -> Iterable[Finding]:
        doubts, classes = self.doubts, self.dataset.classes
        for row in np.flatnonzero(doubts.suggested >= 0) if doubts is not None else ():
            given, other = self.dataset.labels[row], doubts.suggested[row]  # type: ignore[union-attr]
            own, theirs = doubts.probabilities[row, [given, other]]  # type: ignore[union-attr]
            text = f"rather {classes[other]} ({theirs:.2f}) than {classes[given]} ({own:.2f})"
            yield self._finding(
                "wrong label",
                self.dataset.paths[row],
                suggested_class=classes[other],
                score=round(float(theirs - own), 4),
                explanation=text,
            )

    def _far(self) -> Iterable[Finding]:
        if self.neighbours is None:
            return
        far = suspects.outliers(self.neighbours)
        for row in np.flatnonzero(far >= OUTLIER):
            text = f"{far[row]:.1f} robust deviations farther from its nearest images than is usual"
            nearest = self.dataset.paths[self.neighbours.rows[row, 0]]
            score = round(float(far[row]), 4)
            yield self._finding("outlier", self.dataset.paths[row], other_path=nearest, score=score, explanation=text)

    def _odd(self) -> Iterable[Finding]:
        for row, path in enumerate(self.dataset.paths):
            text = "; ".join(self.looks.oddities(row, self.dataset))
            if text:
                yield self._finding("odd file", path, explanation=text)

    def _classes(self) -> Iterable[Finding]:
        """Classes with few images, and those that a test or validation split alone has."""
        counts = Counter(self.dataset.classes[label] for label in self.dataset.labels if label >= 0)
        name, most = max(counts.items(), key=lambda pair: pair[1], default=("", 0))
        for label, count in counts.items():
            if most >= RARE * count:
                text = f"{count} images; the largest class, {name}, has {most}"
                yield Finding("class", "", label, "", score=round(most / count, 2), explanation=text)
        taught = {item.label for item in self.found.items if item.place not in ("val", "test")}
        for label in sorted({item.label for item in self.found.items} - taught):
            yield Finding("class", "", label, "", explanation="has no image to learn from, only some for val or test")
        for label in sorted({item.label for item in self.found.items} - set(counts) - {""}):
            yield Finding("class", "", label, "", explanation="no image of it can be used")

    # What is kept.

    def summary(self, name: str, findings: Sequence[Finding]) -> dict[str, Any]:
        """What inspect.json holds, and what the page is made from; plain lists and numbers."""
        counts = Counter(finding.kind for finding in findings)
        rows = [dict(zip(COLUMNS, dataclasses.astuple(finding), strict=True)) for finding in findings]
        return {
            "name": name,
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "data": self.dataset.name,
            "files": len(self.found.items),
            "images": len(self.dataset),
            "counts": self._counts(),
            **self.looks.summary(),
            "features": self.features_of or None,
            "near_duplicates": None if self.alike is None else self._alike_summary(),
            "classifier_accuracy": None if self.doubts is None else round(self.doubts.accuracy, 4),
            "totals": {kind: counts[kind] for kind in KINDS},
            "warnings": self._warnings(counts),
            "missing": self.missing,
            "findings": rows,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "versions": versions(),
            "commit": commit(),
        }

    def _counts(self) -> list[dict[str, Any]]:
        """A row a class: readable files, in all and by split, and unreadable ones."""
        readable: dict[str, Counter[str]] = defaultdict(Counter)
        unreadable: Counter[str] = Counter()
        for item in self.found.items:
            if item.path in self.row_of:
                readable[item.label][item.place] += 1
            else:
                unreadable[item.label] += 1
        places = sorted({item.place for item in self.found.items} - {""})
        return [
            {"class": label, "files": sum(readable[label].values())}
            | {place: readable[label][place] for place in places}
            | {"unreadable": unreadable[label]}
            for label in sorted(set(readable) | set(unreadable), key=lambda label: (label == "", label))
        ]

    def _alike_summary(self) -> dict[str, Any]:
        assert self.alike is not None
        return {
            "threshold": self.options.study.near_duplicate,
            "candidates": self.alike.candidates,
            "pairs": len(self.alike.pairs),
            "across_test": self._across_test(),
        }

    def _across_test(self) -> int | None:
        """How many near-duplicate pairs a run of these options would have on both sides of its test split."""
        assert self.alike is not None
        try:
            dataset = clean(self.dataset.name, self.found, self.scanned)
            split = split_dataset(dataset, self.options.data, self.options.run.seed)
        except UserError:  # the data don't suffice for a run
            return None
        tested = set(dataset.hashes[split.test].tolist())
        one, other = (np.isin(self.dataset.hashes[rows], list(tested)) for rows in self.alike.pairs.T)
        return int((one != other).sum())

    def _warnings(self, counts: Mapping[str, int]) -> list[str]:
        lines = []
        of_class = np.bincount(self.dataset.labels[self.dataset.labels >= 0])
        of_class = of_class[of_class > 0]
        if len(of_class) and of_class.max() >= RARE * of_class.min():
            ratio = of_class.max() / of_class.min()
            lines.append(
                f"the largest class has {ratio:.1f} times the images of the smallest: no --distribution_alignment"
            )
        across = self._across_test() if self.alike is not None and counts["near-duplicate"] else None
        if across:
            lines.append(
                f"{across} near-duplicate pairs lie on both sides of the test split of --seed {self.options.run.seed}"
            )
        if self.doubts is not None and self.doubts.accuracy < 0.7:
            share = 100 * self.doubts.accuracy
            lines.append(f"the classifier agrees with {share:.0f}% of the labels only, so its doubts say little")
        return lines

    # Pictures.

    def thumbnail(self, path: str) -> np.ndarray:
        """An image uint8 [h, w, 3] with sides up to CELL - 4."""
        with quiet_pil():
            image = self.dataset.picture(self.row_of[path], CELL).copy()
        image.thumbnail((CELL - 4, CELL - 4))
        return np.asarray(image)

    def draw(self, folder: Path, findings: Sequence[Finding]) -> list[Path]:
        """Sizes, and a gallery of each kind that can be shown; returns the files."""
        if self.dataset.kind == "points" or not len(self.dataset):
            return []
        name = _plain(self.dataset.name, 60)
        title = f"{name}: {len(self.dataset)} images"
        drawn = [draw_sizes(folder / "sizes.png", self.looks.widths, self.looks.heights, title=title)]
        galleries = {"duplicates": PAIRS, "labels": ("wrong label",), "outliers": ("outlier",), "odd": ("odd file",)}
        for file, kinds in galleries.items():
            shown = _shown(findings, kinds)
            if shown:
                count = sum(finding.kind in kinds for finding in findings)
                what = KINDS[kinds[0]] if len(kinds) == 1 else "identical files and near-duplicates"
                title = f"{name}: {what}, {len(shown)} of {count}"
                tiles = [self._tile(finding) for finding in shown]
                drawn.append(draw_gallery(folder / f"{file}.png", tiles, title=title))
        return drawn

    def _tile(self, finding: Finding) -> Tile:
        images = [self.thumbnail(path) for path in _images_of(finding)]
        if finding.kind in PAIRS:
            files = " | ".join(_plain(path, 25) for path in (finding.path, finding.other_path))
            score = f" {finding.score:.2f}" if finding.score is not None and finding.kind == "near-duplicate" else ""
            return Tile(images, (files, f"{finding.kind}{score}"))
        lines = {"wrong label": f"{finding.label} > {finding.suggested_class} {finding.score or 0:.2f}"}
        lines |= {"outlier": f"{finding.label} {finding.score or 0:.1f}", "odd file": finding.explanation}
        return Tile(images, (finding.path, lines[finding.kind]))


def _at_odds(one: Item, other: Item) -> bool:
    """Filed under two classes; an unknown label is at odds with none."""
    return bool(one.label and other.label and one.label != other.label)


def _images_of(finding: Finding) -> list[str]:
    return [finding.path, finding.other_path] if finding.kind in PAIRS else [finding.path]


def _shown(findings: Sequence[Finding], kinds: Sequence[str]) -> list[Finding]:
    """The first findings of these kinds, shared out so that each kind is seen."""
    each = {kind: [finding for finding in findings if finding.kind == kind] for kind in kinds}
    left, chosen = SHOWN, []
    for number, (kind, own) in enumerate(sorted(each.items(), key=lambda pair: len(pair[1]))):
        take = min(len(own), left // (len(each) - number))
        chosen += [(list(KINDS).index(kind), place, finding) for place, finding in enumerate(own[:take])]
        left -= take
    return [finding for _, _, finding in sorted(chosen, key=lambda entry: entry[:2])]


# --- what images look like --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Looks:
    """Of each row: file format, PIL's colour mode, frames, upright size int64 [N], grey thumbnail uint8 [N, S, S]."""

    formats: tuple[str, ...]
    modes: tuple[str, ...]
    frames: tuple[int, ...]
    widths: np.ndarray
    heights: np.ndarray
    thumbnails: np.ndarray

    def oddities(self, row: int, dataset: Dataset) -> Iterable[str]:
        """What is odd about an image that can be read."""
        if not self.formats or self.formats[row] == "array":
            return
        width, height = int(self.widths[row]), int(self.heights[row])
        suffix = Path(str(dataset.sources[row])).suffix
        if _format_of(suffix) not in (None, self.formats[row]):
            yield f"named {suffix}, but is {self.formats[row]}"
        if self.modes[row] not in ("RGB", "L", "P"):
            yield f"colour mode {self.modes[row]}"
        if self.frames[row] > 1:
            yield f"{self.frames[row]} frames, of which the first is used"
        if max(width, height) > NARROW * min(width, height):
            yield f"{width} x {height} pixels: most of it is cut off"
        if min(width, height) < SMALL:
            yield f"{width} x {height} pixels: very small"
        if self.thumbnails[row].std() < EDGELESS:
            yield "one colour all over"

    def summary(self) -> dict[str, Any]:
        """Counts of formats, modes and sizes."""
        if not self.formats:
            return {"formats": {}, "modes": {}, "sizes": {}}
        aspect = self.widths / self.heights
        sizes = Counter(zip(self.widths.tolist(), self.heights.tolist(), strict=True))
        measured = {"width": self.widths, "height": self.heights, "aspect": aspect}
        return {
            "formats": dict(Counter(self.formats).most_common()),
            "modes": dict(Counter(self.modes).most_common()),
            "sizes": {
                name: [round(float(value), 3) for value in (values.min(), np.median(values), values.max())]
                for name, values in measured.items()
            }
            | {"most_common": [[*size, count] for size, count in sizes.most_common(10)], "different": len(sizes)},
        }


def look(dataset: Dataset) -> Looks:
    """Open every image once more, for its header and a thumbnail."""
    rows = range(0 if dataset.kind == "points" else len(dataset))
    with quiet_pil(), ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(lambda row: _look(dataset, row), rows))
    formats, modes, frames, widths, heights, thumbnails = zip(*seen, strict=True) if seen else ((),) * 6
    grey = np.stack(thumbnails) if seen else np.zeros((0, suspects.SIDE, suspects.SIDE), dtype=np.uint8)
    return Looks(formats, modes, frames, np.array(widths, np.int64), np.array(heights, np.int64), grey)


def _look(dataset: Dataset, row: int) -> tuple[str, str, int, int, int, np.ndarray]:
    from PIL import Image

    picture = dataset.picture(row, 2 * suspects.SIDE)
    grey = picture.convert("L").resize((suspects.SIDE,) * 2, Image.Resampling.BOX)
    if dataset.array is not None:
        return "array", "RGB", 1, *picture.size, np.asarray(grey)
    with Image.open(str(dataset.sources[row])) as image:  # only its header
        size, turned = image.size, False
        with contextlib.suppress(Exception):  # a broken EXIF block does not spoil the picture
            turned = image.getexif().get(0x0112, 1) >= 5
        width, height = size[::-1] if turned else size
        frames = int(getattr(image, "n_frames", 1))
        return image.format or "unknown", image.mode, frames, width, height, np.asarray(grey)


def _format_of(suffix: str) -> str | None:
    from PIL import Image

    return Image.registered_extensions().get(suffix.lower())


# --- the table, the CSV and the page ----------------------------------------------------------------------------------


def table(summary: Mapping[str, Any]) -> str:
    """The screen's account of an inspection."""
    lines = [f"data set {_plain(summary['data'], 80)}: {summary['files']} files, {summary['images']} different images"]
    lines += _count_lines(summary["counts"])
    sizes = summary["sizes"]
    if sizes:
        spans = (f"{name} {low:g} to {high:g}, median {middle:g}" for name, (low, middle, high) in _spans(sizes))
        lines += ["", f"sizes    {'; '.join(spans)}"]
        lines += [f"{name:<8} {_tally(summary[name])}" for name in ("formats", "modes")]
    if summary["features"]:
        accuracy = summary["classifier_accuracy"]
        agrees = "" if accuracy is None else f"; a classifier on them agrees with {100 * accuracy:.1f}% of the labels"
        lines.append(f"features {summary['features']}{agrees}")
    lines += ["", f"{'found':<32} {'count':>6}  first"]
    first: dict[str, Mapping[str, Any]] = {}
    for finding in summary["findings"]:
        first.setdefault(finding["kind"], finding)
    for kind, title in KINDS.items():
        example = _example(first[kind]) if kind in first else ""
        lines.append(f"{title:<32} {summary['totals'][kind]:>6}  {example}".rstrip())
    lines += [f"warning: {line}" for line in summary["warnings"]]
    lines += [f"not done: {line}" for line in summary["missing"]]
    return "\n".join(lines)


def _spans(sizes: Mapping[str, Any]) -> list[tuple[str, Sequence[float]]]:
    return [(name, sizes[name]) for name in ("width", "height", "aspect")]


def _tally(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _count_lines(counts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The classes with their counts; of many classes the largest and the smallest."""
    columns = list(counts[0])[1:]
    shown: list[Sequence[str]] = [
        [_plain(row["class"], 40) or "(unknown)", *map(str, list(row.values())[1:])] for row in counts
    ]
    if len(shown) > 20:
        by_size = sorted(range(len(counts)), key=lambda i: -counts[i]["files"])
        gap = [["..."] + [""] * len(columns)]
        shown = [shown[i] for i in by_size[:10]] + gap + [shown[i] for i in by_size[-5:]]
    totals = [str(sum(row[column] for row in counts)) for column in columns]
    shown = [["class", *columns], *shown, [f"{sum(row['class'] != '' for row in counts)} classes", *totals]]
    first = max(len(line[0]) for line in shown)
    return ["  ".join((line[0].ljust(first), *(cell.rjust(10) for cell in line[1:]))).rstrip() for line in shown]


def _example(finding: Mapping[str, Any]) -> str:
    """A finding in a few words."""
    text = _plain(finding["path"] or finding["class"], 50)
    if finding["kind"] in PAIRS:
        return f"{text} = {_plain(finding['other_path'], 50)}"
    if finding["kind"] == "wrong label":
        return f"{text}: rather {_plain(finding['suggested_class'])}"
    return text if finding["kind"] == "outlier" else f"{text}: {_plain(finding['explanation'], 60)}"


def _write_csv(path: Path, findings: Sequence[Finding]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(["" if cell is None else cell for cell in dataclasses.astuple(f)] for f in findings)
    write_text(path, text.getvalue())


def sections(
    summary: Mapping[str, Any], images: Mapping[str, np.ndarray] | None = None, *, most: int = 100
) -> list[dict[str, Any]]:
    """The sections of a page (report.write_report) from what inspect.json holds.

    images: thumbnails uint8 [h, w, 3] by path for the galleries; without them files below the data set's folder.
    most: rows of a table.
    """
    counts = summary["counts"]
    facts = [f"{summary['files']} files, {summary['images']} different images."]
    if summary["sizes"]:
        facts += [
            f"{name.capitalize()} {low:g} to {high:g}, median {mid:g}."
            for name, (low, mid, high) in _spans(summary["sizes"])
        ]
        facts += [f"{name.capitalize()}: {_tally(summary[name])}." for name in ("formats", "modes")]
    folder = RESULTS / summary["name"]
    page: list[dict[str, Any]] = [
        {
            "heading": f"The data set {summary['data']}",
            "text": " ".join(facts),
            "table": {"columns": list(counts[0]), "rows": [list(row.values()) for row in counts]},
            "pictures": [str(folder / name) for name in summary["pictures"] if name == "sizes.png"],
            "warnings": [*summary["warnings"], *(f"not done: {line}" for line in summary["missing"])],
        }
    ]
    for kind, title in KINDS.items():
        rows = [finding for finding in summary["findings"] if finding["kind"] == kind]
        if rows:
            page.append(_section(kind, title, rows, summary, images, most))
    return page


def _section(
    kind: str, title: str, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any],
    images: Mapping[str, np.ndarray] | None, most: int,
) -> dict[str, Any]:  # fmt: skip
    columns = [name for name in COLUMNS[1:] if any(row[name] not in ("", None) for row in rows)]
    cells = [["" if row[name] is None else row[name] for name in columns] for row in rows[:most]]
    gallery = []
    for row in rows[:SHOWN]:
        for path in (row["path"], row["other_path"]) if kind in PAIRS else (row["path"],):
            image: Any = images.get(path) if images is not None else _file(summary["data"], path)
            if image is not None and kind != "unreadable":
                gallery.append({"image": image, "caption": f"{path}: {row['explanation']}"})
    more = f" The first {most} of {len(rows)}." if len(rows) > most else ""
    heading = f"{title[0].upper()}{title[1:]}: {len(rows)}"
    return {
        "heading": heading,
        "text": ADVICE[kind] + more,
        "table": {"columns": columns, "rows": cells},
        "gallery": gallery,
    }


def _file(folder: str, path: str) -> str | None:
    """The file of an image, where the data set is a folder and the name is one that can be written down."""
    file = Path(folder).expanduser() / path
    return str(file) if path and file.is_file() else None
