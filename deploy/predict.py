"""A finished run applied to new images, any number of them and of any size: `predict`."""

from __future__ import annotations

import csv
import io
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..args import Mode, Use
from ..base.files import atomic_file, file_names
from ..base.folder_walk import printable
from ..base.metrics import disagreement
from ..base.progress import ProgressBar
from ..base.tables import csv_rows, csv_text, number_of, percent, text_table
from ..features.sources import EVALUATION_BATCH
from ..images.decode import reason_of
from ..runs.resume import run_of
from ..utils import UserError, say, shown, warn
from .classifier import Classifier, in_batches
from .only_new import FINGERPRINT, damaged, earlier_table, of_call, of_file, rows_of
from .output import STDOUT, classifier_of, output, standard_output, writing
from .sources import Given, GivenFile

TOP = 5
PREDICTIONS = "predictions.csv"
UNSURE = ("path", "label", "likely", "probability", "disagreement")


# --- a folder ---------------------------------------------------------------------------------------------------------


def predict(mode: Mode, use: Use, settings: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any]:
    """Classify what `--predict_dir` names into a table; returns counts and the tables' places.

    settings: options of the group Run that replace those of the run, by name; overwrite: whether the table may exist.
    """
    given = Given(mode.predict_dir)
    given.check()
    if use.out != STDOUT:
        table = Table(classifier_of(mode, settings), use, given.place)
        sorter = Sorter(use, given, table.classifier.classes)
        if given.is_one_file and not (use.out or use.only_new):
            return _predict_one(given, table, sorter)
        return _predict_into_file(given, table, sorter, use, overwrite=overwrite)
    if use.only_new:
        raise UserError("--only_new adds to a table, and --out - has none; give --out a file")
    with standard_output() as stream:
        table = Table(classifier_of(mode, settings), use, given.place)
        sorter = Sorter(use, given, table.classifier.classes)
        table.begin(stream)
        _classify(given.groups(), table, sorter, None)
        return _told(table, None, None, sorter.folder)


def _predict_one(given: Given, table: Table, sorter: Sorter) -> dict[str, Any]:
    """Show the most probable classes of one image, and write nothing."""
    row = io.BytesIO()
    table.begin(row)
    (batch,) = in_batches(table.classifier.decoded(next(given.groups())), 1)
    (name,) = table.add(batch)
    sorter.place(batch[0][0], name)
    cells = dict(zip(table.header, list(csv_rows(io.StringIO(row.getvalue().decode(), newline="")))[1], strict=True))
    if cells["error"]:
        warn(f"{cells['path']} can't be classified: {cells['error']}")
    else:
        ranks = range(1, table.top + 1)
        say(text_table([(cells[f"top{rank}"], percent(float(cells[f"p{rank}"]))) for rank in ranks]))
        if cells["prediction"] != cells["top1"]:
            say(shown(f"prediction: {cells['prediction'] or 'none'}"))
    return _counts(table, None, None)


def _predict_into_file(given: Given, table: Table, sorter: Sorter, use: Use, *, overwrite: bool) -> dict[str, Any]:
    """Write the table, and that of the unsure images beside it, as a whole or not at all."""
    checkpoint = table.classifier.path
    unsure, wanted, before = use.min_probability > 0, use.out, None
    if use.only_new:
        first = Path(use.out).expanduser() if use.out else run_of(checkpoint) / PREDICTIONS
        before = earlier_table(first, table.header, table.call, numbered=not use.out)
        wanted, overwrite = (wanted, overwrite) if before is None else (str(before), True)
    beside = "_unsure.csv" if unsure else ""
    out, unsure_out = output(wanted, checkpoint, PREDICTIONS, beside, overwrite=overwrite, is_own=is_table)
    groups, total = given.groups(), None
    if before is not None:
        new = table.changed(before, groups)
        groups, total = iter([iter(new)]), len(new)
    elif not given.is_list:
        total = sum(1 for group in given.groups() for _ in group)
    what = "what standard input names" if total is None else number_of(total, "file")
    below = f" below {given.folder}" if given.folder is not None else ""
    say(shown(f"classifying {what}{below} by {checkpoint}"))
    with writing(out) as temporary:
        with temporary.open("wb") as file:
            table.begin(file)
            if before is not None:
                table.keep(before, {image.path for image in new})
            _classify((_but(group, out) for group in groups), table, sorter, total)
        if unsure:
            table.write_unsure(temporary, unsure_out)
    return _told(table, out, unsure_out if unsure else None, sorter.folder)


def _classify(groups: Iterable[Iterable[GivenFile]], table: Table, sorter: Sorter, total: int | None) -> None:
    """Write a row for each file, as they come."""
    with ProgressBar(total, what="predicting", unit="image") as bar:
        done = 0
        for group in groups:
            for batch in in_batches(table.classifier.decoded(group), EVALUATION_BATCH):
                for (image, _), name in zip(batch, table.add(batch), strict=True):
                    sorter.place(image, name)
                done += len(batch)
                bar.show(done)


def _but(files: Iterable[GivenFile], out: Path) -> Iterator[GivenFile]:
    """Without the table itself, which an earlier run may have left in the folder."""
    mine = os.path.realpath(out)
    return (image for image in files if os.path.realpath(image.file) != mine)


def is_table(path: Path) -> bool:
    """Whether a file is a table of predictions, or one of unsure images in which no label was filled in."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv_rows(file)
            header = next(rows, [])
            if header[:3] == ["path", "prediction", "probability"]:
                return True
            return header == list(UNSURE) and not any(row[1] for row in rows if len(row) > 1)
    except (OSError, ValueError, csv.Error):
        return False


class Table:
    """The table of predictions, written row by row. What is unsure is remembered by its place in the file alone."""

    def __init__(self, classifier: Classifier, use: Use, place: str) -> None:
        self.classifier, self.least, self.reject = classifier, use.min_probability, use.reject
        if use.reject < 1:
            classifier.check_distance()
        self.classes = [printable(name) for name in classifier.classes]
        self.top = min(TOP, len(self.classes))
        self.columns = ["path", "prediction", "probability"]
        self.columns += [f"{what}{rank}" for rank in range(1, self.top + 1) for what in ("top", "p")]
        self.columns += ["disagreement", "distance", "error"]
        self.header = [*self.columns, FINGERPRINT]
        self.call = of_call(classifier.path, self.columns, self.least, self.reject, place)
        self.apart, self.sure, self.places = array("d"), array("d"), array("q")
        self.counts: Counter[str] = Counter()  # images of a class
        self.rows = self.bad = self.far = self.bytes = 0

    def begin(self, file: BinaryIO) -> None:
        """Write into this file, from its beginning."""
        self.file = file
        self._write(self.header)
        self.file.flush()

    def changed(self, before: Path, groups: Iterable[Iterable[GivenFile]]) -> list[GivenFile]:
        """The files that have no row in an earlier table, or another one than they would have now."""
        known = {row[0]: row[-1] for row in rows_of(before, self.header) if not row[-2]}
        return [file for group in groups for file in group if known.get(file.path) != self._fingerprint(file)]

    def keep(self, before: Path, but: Collection[str]) -> None:
        """Take over the rows of an earlier table, without those of the paths `but`."""
        for row in rows_of(before, self.header):
            cells = dict(zip(self.header, row, strict=True))
            if cells["path"] in but:
                continue
            self.rows += 1
            if cells["error"]:
                self.bad += 1
            elif cells["prediction"]:
                self.counts[cells["prediction"]] += 1
            else:
                try:
                    far = bool(cells["distance"]) and float(cells["distance"]) > self.reject
                    if not far or float(cells["probability"]) < self.least:
                        self._note_unsure(float(cells["disagreement"]), float(cells["probability"]))
                except ValueError as error:
                    raise damaged(before, error) from error
                self.far += far
            self._write(row)

    def add(self, batch: Sequence[tuple[GivenFile, tuple[np.ndarray, ...] | str]]) -> list[str | None]:
        """Write a row for each image; returns the class of each, None where it is unsure or bad."""
        fine = [fitted for _, fitted in batch if not isinstance(fitted, str)]
        predicted, distance = self.classifier.examine(fine) if fine else ({}, None)
        far = iter([None] * len(fine) if distance is None else distance.tolist())
        apart = iter(disagreement(predicted, self.classifier.models).tolist() if fine else ())
        probabilities = predicted.get(self.classifier.name, np.zeros((0, len(self.classes))))
        found = iter(zip(probabilities, self.classifier.name_of(probabilities), strict=True))
        names: list[str | None] = []
        for image, fitted in batch:
            self.rows += 1
            if isinstance(fitted, str):
                self.bad += 1
                self._write([image.path, *[""] * (len(self.columns) - 2), fitted, self._fingerprint(image)])
                names.append(None)
            else:
                names.append(self._add(image, *next(found), next(apart), next(far)))
        self.file.flush()
        self.counts.update(name for name in names if name is not None)
        return names

    def _add(
        self, image: GivenFile, probabilities: np.ndarray, found: str, apart: float, far: float | None
    ) -> str | None:
        order = np.argsort(-probabilities, kind="stable")[: self.top].tolist()
        place = self.classifier.classes.index(found)
        probability = float(probabilities[place])  # with --recall the class may be another than the most probable one
        sure, known = probability >= self.least, far is None or far <= self.reject
        if not sure:
            self._note_unsure(apart, probability)
        self.far += not known
        cells = [self.classes[place] if sure and known else "", f"{probability:.6f}"]
        cells += [cell for k in order for cell in (self.classes[k], f"{probabilities[k]:.6f}")]
        cells += [f"{apart:.6f}", "" if far is None else f"{far:.6f}", "", self._fingerprint(image)]
        self._write([image.path, *cells])
        return found if sure and known else None

    def _note_unsure(self, apart: float, probability: float) -> None:
        self.apart.append(apart)
        self.sure.append(probability)
        self.places.append(self.bytes)

    def _fingerprint(self, image: GivenFile) -> str:
        return f"{self.call}-{of_file(image.state)}"

    def _write(self, cells: Sequence[str]) -> None:
        self.bytes += self.file.write(csv_text([cells]).encode())

    def write_unsure(self, written: Path, path: Path) -> None:
        """A table of what is left to a person: first what the models disagree on most, then the least probable.

        Its empty column `label` can be filled in, and the table then be given to a training as `--labels_csv`.
        """
        order = np.lexsort((np.array(self.sure), -np.array(self.apart)))
        with atomic_file(path, noted=False) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(csv_text([UNSURE]))
            with written.open(encoding="utf-8", newline="") as table:
                for place in order.tolist():
                    table.seek(self.places[place])
                    cells = dict(zip(self.header, next(csv_rows(table)), strict=True))
                    row = [cells["path"], "", cells["top1"], cells["p1"], cells["disagreement"]]
                    file.write(csv_text([row]))


def free_name(path: Path) -> Path:
    """The path, or the first one with a number that is free."""
    numbered = (path if number == 1 else path.with_stem(f"{path.stem}-{number}") for number in count(1))
    return next(one for one in numbered if not os.path.lexists(one))


class Sorter:
    """`--predict_copy`: the classified images below a folder for each class, where they lay, as links or copies."""

    def __init__(self, use: Use, source: Given, classes: Sequence[str]) -> None:
        given, self.by = use.predict_copy, use.copy_by
        self.folder = Path(given).expanduser().absolute() if given else None
        self.names = file_names(classes)
        if self.folder is None:
            return
        full = not use.only_new and self.folder.is_dir() and any(self.folder.iterdir())
        if full or (self.folder.exists() and not self.folder.is_dir()):
            raise UserError(f"--predict_copy {given} is there already and is not empty; give a new folder")
        if any(self.folder.resolve().is_relative_to(folder.resolve()) for folder in source.folders):
            raise UserError(f"--predict_copy {given} lies below --predict_dir; give a folder elsewhere")

    def place(self, image: GivenFile, name: str | None) -> None:
        """Put an image into its class; one that is of none stays where it is."""
        if self.folder is None or name is None:
            return
        # A path that was given may lead out of the folder that it is to lie in.
        parts = [part for part in Path(image.path).parts if part not in ("..", Path(image.path).anchor)]
        target = self.folder.joinpath(self.names[name], *parts)
        if target.is_symlink() and os.path.realpath(target) == os.path.realpath(image.file):  # of an earlier call
            return
        target = free_name(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if self.by == "copy":
                shutil.copy2(image.file, target)
            else:
                target.symlink_to(os.path.abspath(image.file))
        except OSError as error:
            hint = "make room or give another folder" if self.by == "copy" else "try --copy_by copy"
            raise UserError(f"{target} can't be made ({reason_of(error)}); {hint}") from error


def _told(table: Table, out: Path | None, unsure_out: Path | None, sorted_into: Path | None) -> dict[str, Any]:
    """Say what was found; returns the same."""
    numbers = [(number, printable(name)) for name, number in table.counts.most_common(20)]
    if len(table.counts) > 20:
        numbers.append((sum(sorted(table.counts.values())[:-20]), f"of {len(table.counts) - 20} other classes"))
    if unsure_out is not None:
        numbers.append((len(table.places), f"to be labeled by you: {unsure_out}"))
    if table.reject < 1:
        numbers.append((table.far, "farther from the training images than --reject allows: no class"))
    if numbers:
        say(text_table(numbers, left=(1,)))
    if table.bad:
        warn(f"{number_of(table.bad, 'file')} can't be classified; the table's column error says why")
    if sorted_into is not None:
        say(shown(f"sorted into: {sorted_into}"))
    if out is not None:
        say(shown(f"predictions: {out}"))
    return _counts(table, out, unsure_out)


def _counts(table: Table, out: Path | None, unsure_out: Path | None) -> dict[str, Any]:
    counts = {"images": table.rows, "classes": dict(table.counts), "unsure": len(table.places), "bad": table.bad}
    counts["far"], counts["thresholds"] = table.far, table.classifier.decision["thresholds"]
    return counts | {name: path and str(path) for name, path in (("out", out), ("unsure_out", unsure_out))}
