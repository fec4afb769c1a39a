"""A finished run applied to a folder of new images of any size: `predict`."""

from __future__ import annotations

import csv
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..args import Mode, Use
from ..base.files import atomic_file, file_names
from ..base.folder_walk import FoundFile, files_below, printable
from ..base.progress import ProgressBar
from ..base.tables import csv_rows, csv_text, text_table
from ..features.sources import EVALUATION_BATCH
from ..images.decode import reason_of
from ..utils import UserError, say, shown, warn
from .classifier import Classifier, disagreement, in_batches
from .output import classifier_of, output, writing

TOP = 5
UNSURE = ("path", "label", "likely", "probability", "disagreement")


# --- a folder ---------------------------------------------------------------------------------------------------------


def predict(mode: Mode, use: Use, settings: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any]:
    """Classify every image below `--predict_dir` into a table; returns counts and the tables' places.

    settings: options of the group Run that replace those of the run, by name; overwrite: whether the table may exist.
    """
    folder = Path(mode.predict_dir or "").expanduser()
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        hint = (
            "a file; give its folder"
            if folder.is_file()
            else "there is no such folder, or it can't be read; give another one"
        )
        raise UserError(f"--predict_dir {folder}: {hint}")
    classifier = classifier_of(mode, settings)
    sorter = Sorter(use, folder, classifier.classes)
    unsure = use.min_probability > 0
    beside = "_unsure.csv" if unsure else ""
    out, unsure_out = output(use.out, classifier.path, "predictions.csv", beside, overwrite=overwrite, is_own=is_table)
    total = sum(1 for _ in files_below(folder))
    if not total:
        raise UserError(f"--predict_dir {folder}: there is no file in it")
    say(shown(f"classifying {total} files below {folder} by {classifier.path}"))
    with writing(out) as temporary:
        table = Table(temporary, classifier, use.min_probability)
        with table, ProgressBar(total, what="predicting", unit="image") as bar:
            for batch in in_batches(classifier.decoded(_but(files_below(folder), out)), EVALUATION_BATCH):
                for (image, _), name in zip(batch, table.add(batch), strict=True):
                    sorter.place(image, name)
                bar.show(table.rows)
        if unsure:
            table.write_unsure(unsure_out)
    return _told(table, out, unsure_out if unsure else None, sorter.folder)


def _but(files: Iterable[FoundFile], out: Path) -> Iterator[FoundFile]:
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

    def __init__(self, path: Path, classifier: Classifier, least: float) -> None:
        self.path, self.classifier, self.least = path, classifier, least
        self.classes = [printable(name) for name in classifier.classes]
        self.top = min(TOP, len(self.classes))
        self.columns = ["path", "prediction", "probability"]
        self.columns += [f"{what}{rank}" for rank in range(1, self.top + 1) for what in ("top", "p")]
        self.columns += ["disagreement", "error"]
        self.apart, self.sure, self.places = array("d"), array("d"), array("q")
        self.counts: Counter[str] = Counter()  # images of a class
        self.rows = self.bad = 0

    def __enter__(self) -> Table:
        self.file = self.path.open("wb")
        self._write(self.columns)
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def add(self, batch: Sequence[tuple[FoundFile, tuple[np.ndarray, ...] | str]]) -> list[str | None]:
        """Write a row for each image; returns the class of each, None where it is unsure or bad."""
        fine = [fitted for _, fitted in batch if not isinstance(fitted, str)]
        predicted = self.classifier.probabilities(fine) if fine else {}
        apart = iter(disagreement(predicted, self.classifier.models).tolist() if fine else ())
        probabilities = iter(predicted.get(self.classifier.name, ()))
        names: list[str | None] = []
        for image, fitted in batch:
            self.rows += 1
            if isinstance(fitted, str):
                self.bad += 1
                self._write([image.path, *[""] * (len(self.columns) - 2), fitted])
                names.append(None)
            else:
                names.append(self._add(image, next(probabilities), next(apart)))
        self.file.flush()
        self.counts.update(name for name in names if name is not None)
        return names

    def _add(self, image: FoundFile, probabilities: np.ndarray, apart: float) -> str | None:
        order = np.argsort(-probabilities, kind="stable")[: self.top].tolist()
        most = float(probabilities[order[0]])
        sure = most >= self.least
        if not sure:
            self.apart.append(apart)
            self.sure.append(most)
            self.places.append(self.file.tell())
        ranks = [cell for k in order for cell in (self.classes[k], f"{probabilities[k]:.6f}")]
        name = self.classes[order[0]] if sure else ""
        self._write([image.path, name, f"{most:.6f}", *ranks, f"{apart:.6f}", ""])
        return self.classifier.classes[order[0]] if sure else None

    def _write(self, cells: Sequence[str]) -> None:
        self.file.write(csv_text([cells]).encode())

    def write_unsure(self, path: Path) -> None:
        """A table of what is left to a person: first what the models disagree on most, then the least probable.

        Its empty column `label` can be filled in, and the table then be given to a training as `--labels_csv`.
        """
        order = np.lexsort((np.array(self.sure), -np.array(self.apart)))
        with atomic_file(path, noted=False) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(csv_text([UNSURE]))
            with self.path.open(encoding="utf-8", newline="") as table:
                for place in order.tolist():
                    table.seek(self.places[place])
                    cells = dict(zip(self.columns, next(csv_rows(table)), strict=True))
                    row = [cells["path"], "", cells["top1"], cells["probability"], cells["disagreement"]]
                    file.write(csv_text([row]))


class Sorter:
    """`--predict_copy`: the classified images below a folder for each class, where they lay, as links or copies."""

    def __init__(self, use: Use, source: Path, classes: Sequence[str]) -> None:
        given, self.by = use.predict_copy, use.copy_by
        self.folder = Path(given).expanduser().absolute() if given else None
        self.names = file_names(classes)
        if self.folder is None:
            return
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UserError(f"--predict_copy {given} is there already and is not empty; give a new folder")
        if self.folder.resolve().is_relative_to(source.resolve()):
            raise UserError(f"--predict_copy {given} lies below --predict_dir; give a folder elsewhere")

    def place(self, image: FoundFile, name: str | None) -> None:
        """Put an image into its class; one that is of none stays where it is."""
        if self.folder is None or name is None:
            return
        target = self.folder / self.names[name] / image.path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if self.by == "copy":
                shutil.copy2(image.file, target)
            else:
                target.symlink_to(os.path.abspath(image.file))
        except OSError as error:
            hint = "make room or give another folder" if self.by == "copy" else "try --copy_by copy"
            raise UserError(f"{target} can't be made ({reason_of(error)}); {hint}") from error


def _told(table: Table, out: Path, unsure_out: Path | None, sorted_into: Path | None) -> dict[str, Any]:
    """Say what was found; returns the same."""
    counted = [(number, printable(name)) for name, number in table.counts.most_common(20)]
    if len(table.counts) > 20:
        counted.append((sum(sorted(table.counts.values())[:-20]), f"of {len(table.counts) - 20} other classes"))
    if unsure_out is not None:
        counted.append((len(table.places), f"to be labeled by you: {unsure_out}"))
    if counted:
        say(text_table(counted, left=(1,)))
    if table.bad:
        warn(f"{table.bad} files can't be classified; the table's column error says why")
    if sorted_into is not None:
        say(shown(f"sorted into: {sorted_into}"))
    say(shown(f"predictions: {out}"))
    counts = {"images": table.rows, "classes": dict(table.counts), "unsure": len(table.places), "bad": table.bad}
    return counts | {"out": str(out), "unsure_out": None if unsure_out is None else str(unsure_out)}
