"""What is wrong with a data set, said before anything learns from it: `MPL.py --inspect`.

`inspect` finds the files (data.py), asks a backbone for features where one can be had, lets suspects.py judge, and
leaves a table on the screen, inspect.csv (a row a finding), inspect.json and pictures. Nothing is changed or removed.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
import sys
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..args import Options, recorded
from ..backbones.library import WeightsMissing
from ..base.files import write_json
from ..data import Split, clean, split_dataset
from ..features.nearest import Neighbours, nearest, outliers, unit
from ..images.builtin import Item
from ..images.decode import quiet_pil
from ..images.layouts import find_files
from ..images.scan import scan
from ..reports.galleries import CELL, Tile, draw_gallery, draw_sizes
from ..reports.page import write_report
from ..runs.progress import Screen, commit, versions
from ..runs.run_folder import run_folder
from ..runs.setup import Setup
from ..utils import UserError, choose_device, peak_memory_bytes, say, warn
from ..visualization import plain
from . import label_errors, near_duplicates
from .findings import COLUMNS, KINDS, PAIRS, SHOWN, Finding, images_of, sections, shown, table, write_csv
from .image_properties import look

__all__ = ["Audit", "inspect", "sections"]

OUTLIER = 2.5  # robust standard deviations; in flowers5 25 of 2,494 images lie beyond
RARE = 3.0  # times smaller than the largest class
GALLERIES = {"duplicates": PAIRS, "labels": ("wrong label",), "outliers": ("outlier",), "odd": ("odd file",)}
USED = {
    "inspect", "name", "overwrite", "seed", "device", "precision", "num_workers", "cache", "cache_dir", "cache_limit",
    "cache_dtype", "keep_pages", "data_dir", "data_root", "download", "labels_csv", "val_percent", "test_percent",
    "model_name", "weights", "image_size", "near_duplicate",
}  # fmt: skip


def inspect(options: Options) -> dict[str, Any]:
    """Inspect the data set of the options and return what inspect.json holds. Raises UserError where none is found."""
    began = time.monotonic()
    usual = Options().flat()
    unused = sorted(name for name in options.given - USED if options.flat()[name] != usual[name])
    if unused:
        warn(f"--{', --'.join(unused)}: not used by --inspect")
    audit = Audit(options)
    findings = audit.findings()
    images = audit.thumbnails(findings)
    folder = run_folder(options.run.name or "", overwrite=options.run.overwrite)
    write_json(folder / "commandline_args.txt", recorded(options.changed(name=folder.name)))
    pictures = [path.name for path in audit.draw(folder, findings, images)]
    summary = audit.summary(folder.name, findings) | {
        "pictures": pictures,
        "seconds": round(time.monotonic() - began, 3),
    }
    write_csv(folder / "inspect.csv", findings)
    write_json(folder / "inspect.json", summary)
    write_report(
        folder / "report.html", folder.name, sections(summary, images), lead=f"Inspection of {audit.dataset.name}"
    )
    say(table(summary))
    say(f"results: {folder} ({', '.join(['inspect.csv', 'inspect.json', 'report.html', *summary['pictures']])})")
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
        self.learned = False  # whether what makes the features has learned labels of these images
        self.features, self.features_of = self._features()
        self.neighbours: Neighbours | None = None
        if self.features is not None:
            self.neighbours = nearest(unit(self.features), near_duplicates.NEIGHBOURS, self.device)
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
            setup = Setup(self.options.changed(unfreeze=None), dataset, Split(nothing, rows, nothing, nothing))
        except WeightsMissing as error:
            return self._without_features(str(error))
        if not setup.frozen:
            name = setup.views[0].name
            hint = "give a pretrained --model_name, or --weights FILE"
            return self._without_features(f"{name} has random weights, which see nothing; {hint}")
        for bank in setup.banks:
            missing = bank.missing({("eval", 0): rows})
            if missing:
                with Screen(missing, what="features", unit="image") as screen:
                    bank.fill({("eval", 0): rows}, show=screen.show)
        (view,) = setup.views
        self.learned = bool(np.isin(dataset.hashes, view.backbone.learned).any())
        return torch.cat([part.cpu() for part in view.source.inputs(rows)]).numpy(), view.name

    def _without_features(self, reason: str) -> tuple[None, str]:
        self.missing.append(f"outliers, likely wrong labels and cropped or mirrored near-duplicates: {reason}")
        return None, ""

    def _alike(self) -> near_duplicates.Alike | None:
        if self.dataset.kind == "points" or 0 < self.dataset.native_size < 24:
            self.missing.append("near-duplicates: at so few pixels all images of a class are alike")
            return None
        threshold = self.options.study.near_duplicate
        alike = near_duplicates.near_duplicates(self.looks.thumbnails, self.neighbours, threshold, self.device)
        if alike.cut_off:
            self.missing.append(f"near-duplicates: only the {alike.candidates} likeliest pairs were compared")
        return alike

    def _doubts(self) -> label_errors.Doubts | None:
        """Doubts about the labels of classes that have enough images to be judged."""
        if self.features is None:
            return None
        if self.learned:
            self.missing.append(f"likely wrong labels: {self.features_of} was fine-tuned on these very labels")
            return None
        pairs = self.alike.pairs if self.alike is not None else np.zeros((0, 2), dtype=np.int64)
        group = near_duplicates.groups(pairs, len(self.dataset))
        labels = self.dataset.labels.copy()
        for label, name in enumerate(self.dataset.classes):
            count = len(np.unique(group[labels == label]))
            if count < label_errors.FOLDS:
                labels[labels == label] = -1
                self.missing.append(
                    f"wrong labels of {plain(name)}: {count} images, near-duplicates counted once, are too few"
                )
        if len(np.unique(labels[labels >= 0])) < 2:
            self.missing.append(f"likely wrong labels: needs two classes of {label_errors.FOLDS} images or more")
            return None
        classes = len(self.dataset.classes)
        return label_errors.doubtful_labels(self.features, labels, group, classes, self.options.run.seed)

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
        """Which of the classes that an image lies in the classifier takes it for, and how surely.

        Nothing where it knows fewer than two of them: the only one it knows would always win.
        """
        if self.doubts is None:
            return "", None
        number_of = {name: label for label, name in enumerate(self.dataset.classes) if self.doubts.judged[label]}
        known = [name for name in labels if name in number_of]
        if len(known) < 2:
            return "", None
        own = np.array([self.doubts.probabilities[row, number_of[name]] for name in known])
        return known[int(own.argmax())], round(float(own.max() / max(own.sum(), 1e-9)), 4)

    def _near(self) -> Iterable[Finding]:
        for (one, other), score in zip(
            *((self.alike.pairs, self.alike.scores) if self.alike else ((), ())), strict=True
        ):
            a, b = (self.items[self.dataset.paths[row]] for row in (one, other))
            text = "looks like the same picture"
            if _at_odds(a, b):
                text += f", filed under {a.label} and {b.label}"
            if a.place != b.place:
                text += f", in {a.place} and {b.place}"
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
        far = outliers(self.neighbours)
        for row in np.flatnonzero(far >= OUTLIER):
            text = f"{far[row]:.1f} robust deviations farther from its nearest images than is usual"
            closest = self.dataset.paths[self.neighbours.rows[row, 0]]
            score = round(float(far[row]), 4)
            yield self._finding("outlier", self.dataset.paths[row], other_path=closest, score=score, explanation=text)

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
            "across_test": self._across_test,
        }

    @functools.cached_property
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
                f"the largest class has {ratio:.1f} times the images of the smallest: label images as they come "
                "(--label_split stratified), or keep --class_shares estimate"
            )
        across = self._across_test if self.alike is not None and counts["near-duplicate"] else None
        if across:
            lines.append(
                f"{across} near-duplicate pairs lie on both sides of the test split of --seed {self.options.run.seed}"
            )
        if self.doubts is not None and self.doubts.accuracy < 0.7:
            share = 100 * self.doubts.accuracy
            lines.append(f"the classifier agrees with {share:.0f}% of the labels only, so its doubts say little")
        return lines

    # Pictures.

    def thumbnails(self, findings: Sequence[Finding]) -> dict[str, np.ndarray]:
        """The images that galleries show, uint8 [h, w, 3] with sides below CELL, by path."""
        if self.dataset.kind == "points":
            return {}
        first = [finding for kind in KINDS for finding in [f for f in findings if f.kind == kind][:SHOWN]]
        paths = {path for f in first for path in images_of(f.kind, f.path, f.other_path)}
        with quiet_pil():
            return {path: self._thumbnail(path) for path in sorted(paths)}

    def _thumbnail(self, path: str) -> np.ndarray:
        image = self.dataset.picture(self.row_of[path], CELL).copy()
        image.thumbnail((CELL - 4, CELL - 4))
        return np.asarray(image)

    def draw(self, folder: Path, findings: Sequence[Finding], images: Mapping[str, np.ndarray]) -> list[Path]:
        """Sizes, and a gallery of each kind that can be shown; returns the files."""
        if self.dataset.kind == "points" or not len(self.dataset):
            return []
        name = plain(self.dataset.name, 60)
        title = f"{name}: {len(self.dataset)} images"
        drawn = [draw_sizes(folder / "sizes.png", self.looks.widths, self.looks.heights, title=title)]
        for file, kinds in GALLERIES.items():
            some = shown(findings, kinds)
            if some:
                count = sum(finding.kind in kinds for finding in findings)
                what = KINDS[kinds[0]] if len(kinds) == 1 else "identical files and near-duplicates"
                tiles = [_tile(finding, images) for finding in some]
                title = f"{name}: {what}, {len(some)} of {count}"
                drawn.append(draw_gallery(folder / f"{file}.png", tiles, title=title))
        return drawn


def _tile(finding: Finding, images: Mapping[str, np.ndarray]) -> Tile:
    """A finding in a gallery: its images, the files' names, and what is said of them."""
    paths = images_of(finding.kind, finding.path, finding.other_path)
    names = " | ".join(plain(path, 25) for path in paths)
    score = "" if finding.score is None else f" {finding.score:.2f}"
    said = {
        "near-duplicate": [f"near-duplicate{score}"],
        "wrong label": [f"labelled {finding.label}", f"rather {finding.suggested_class}{score}"],
        "outlier": [f"labelled {finding.label or 'not'}", f"far from all others{score}"],
        "odd file": textwrap.wrap(plain(finding.explanation, 70), 26),
    }
    return Tile([images[path] for path in paths], (names, *said.get(finding.kind, [finding.kind])))


def _at_odds(one: Item, other: Item) -> bool:
    """Filed under two classes; an unknown label is at odds with none."""
    return bool(one.label and other.label and one.label != other.label)
