"""A finished run applied to a folder of new images of any size, and packed into one file: `predict` and `export`."""

from __future__ import annotations

import csv
import io
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ..args import Options
from ..base.files import atomic_file
from ..features.sources import EVALUATION_BATCH
from ..images.decode import reason_of
from ..runs.progress import Screen
from ..runs.resume import run_of
from ..utils import UserError, say, warn
from .classifier import Classifier, NewImage, disagreement, in_batches, loaded_checkpoint

TOP = 5
UNSURE = ("path", "label", "likely", "probability", "disagreement")


# --- a folder ---------------------------------------------------------------------------------------------------------


def files_under(folder: Path) -> Iterator[NewImage]:
    """Every visible file below the folder, in the order of its path there, found as they are asked for.

    A folder that can't be listed comes as if it were a file; one that links lead to twice is entered once.
    """
    seen = {os.path.realpath(folder)}

    def below(start: str) -> Iterator[NewImage]:
        with os.scandir(folder / start) as entries:
            found = [e.name + "/" * _is_folder(e) for e in entries if not e.name.startswith(".")]
        # As folders end in a slash, they and files come in the order of whole paths.
        for name in sorted(found):
            path = start + name
            file = os.path.join(folder, path)
            if not name.endswith("/"):
                yield NewImage(_printable(path), file)
            elif name != "__MACOSX/" and (real := os.path.realpath(file)) not in seen:
                seen.add(real)
                try:
                    yield from below(path)
                except PermissionError:
                    yield NewImage(_printable(path), file)

    return below("")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def predict(options: Options) -> dict[str, Any]:
    """Classify every image below `--predict_dir` into a table; returns counts and the tables' places."""
    folder = Path(options.mode.predict_dir or "").expanduser()
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        hint = (
            "a file; give its folder"
            if folder.is_file()
            else "there is no such folder, or it can't be read; give another one"
        )
        raise UserError(f"--predict_dir {folder}: {hint}")
    classifier = classifier_of(options, "--predict_dir", {"out", "predict_copy", "copy_by", "min_probability"})
    sorter = Sorter(options, folder, classifier.classes)
    unsure = options.use.min_probability > 0
    out, unsure_out = output(options, classifier.path, "predictions.csv", "_unsure.csv" if unsure else "")
    total = sum(1 for _ in files_under(folder))
    if not total:
        raise UserError(f"--predict_dir {folder}: there is no file in it")
    say(f"classifying {total} files below {folder} by {classifier.path}")
    with writing(out) as temporary:
        table = Table(temporary, classifier, options.use.min_probability)
        with table, Screen(total, what="predicting", unit="image") as screen:
            for batch in in_batches(classifier.decoded(_but(files_under(folder), out)), EVALUATION_BATCH):
                for (image, _), name in zip(batch, table.add(batch), strict=True):
                    sorter.place(image, name)
                screen.show(table.rows)
        if unsure:
            table.write_unsure(unsure_out)
    return _told(table, out, unsure_out if unsure else None, sorter.folder)


def classifier_of(options: Options, command: str, used: set[str], **fixed: Any) -> Classifier:
    """The classifier of `--load_path`, on these settings; options that the command does not heed are named."""
    mine = {"device", "num_workers", "precision"} - set(fixed)
    used = mine | used | {"load_path", "load_best", "keep_pages", "overwrite", command.removeprefix("--")}
    if options.given - used:
        warn(f"--{', --'.join(sorted(options.given - used))}: not used by {command}")
    given = {name: value for name, value in options.flat().items() if name in options.given & mine}
    return Classifier(*loaded_checkpoint(options.mode.load_path or ""), given | fixed)


def output(options: Options, checkpoint: Path, name: str, beside: str = "") -> tuple[Path, Path]:
    """The file to write, and another one beside it whose name ends so; nothing that is there is replaced.

    `--out`, or `name` in the run's folder, or its next free number. Raises UserError when `--out` is there already.
    """
    given = Path(options.use.out).expanduser() if options.use.out else None
    first = given or run_of(checkpoint) / name
    for number in count(1):
        out = first if number == 1 else first.with_stem(f"{first.stem}-{number}")
        other = out.with_name(out.stem + beside) if beside else out
        if out.is_dir():
            raise UserError(f"{out} is a folder; give --out a file")
        if options.run.overwrite or not (out.exists() or other.exists()):
            return out, other
        if given is not None:
            there = out if out.exists() else other
            raise UserError(f"{there} is there already; give another --out, or --overwrite to replace it")
    raise AssertionError


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """As `atomic_file`; what an interrupted run has written is kept beside, and a folder closed to us is an error."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        with atomic_file(path) as temporary:
            try:
                yield temporary
            except KeyboardInterrupt as stop:
                temporary.replace(partial)
                raise KeyboardInterrupt(f"stopped; what was done is in {partial}") from stop
    except PermissionError as error:
        raise UserError(f"{error.filename} can't be written ({error.strerror}); give another --out") from error


def _but(files: Iterable[NewImage], out: Path) -> Iterator[NewImage]:
    """Without the table itself, which an earlier run may have left in the folder."""
    mine = os.path.realpath(out)
    return (image for image in files if os.path.realpath(image.file) != mine)


class Table:
    """The table of predictions, written row by row. What is unsure is remembered by its place in the file alone."""

    def __init__(self, path: Path, classifier: Classifier, least: float) -> None:
        self.path, self.classifier, self.least = path, classifier, least
        self.classes = [_printable(name) for name in classifier.classes]
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

    def add(self, batch: Sequence[tuple[NewImage, tuple[np.ndarray, ...] | str]]) -> list[str | None]:
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

    def _add(self, image: NewImage, probabilities: np.ndarray, apart: float) -> str | None:
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
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        self.file.write(line.getvalue().encode())

    def write_unsure(self, path: Path) -> None:
        """A table of what is left to a person: first what the models disagree on most, then the least probable.

        Its empty column `label` can be filled in, and the table then be given to a training as `--labels_csv`.
        """
        order = np.lexsort((np.array(self.sure), -np.array(self.apart)))
        with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(UNSURE)
            with self.path.open(encoding="utf-8", newline="") as table:
                for place in order.tolist():
                    table.seek(self.places[place])
                    cells = dict(zip(self.columns, next(csv.reader(table)), strict=True))
                    writer.writerow([cells["path"], "", cells["top1"], cells["probability"], cells["disagreement"]])


class Sorter:
    """`--predict_copy`: the classified images below a folder for each class, where they lay, as links or copies."""

    def __init__(self, options: Options, source: Path, classes: Sequence[str]) -> None:
        given, self.by = options.use.predict_copy, options.use.copy_by
        self.folder = Path(given).expanduser().absolute() if given else None
        self.names = folder_names(classes)
        if self.folder is None:
            return
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UserError(f"--predict_copy {given} is there already and is not empty; give a new folder")
        if self.folder.resolve().is_relative_to(source.resolve()):
            raise UserError(f"--predict_copy {given} lies below --predict_dir; give a folder elsewhere")

    def place(self, image: NewImage, name: str | None) -> None:
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


def folder_names(classes: Sequence[str]) -> dict[str, str]:
    """A folder's name for each class, no two alike: a class of a table may be called `a/b` or `..`."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for name in classes:
        plain = "".join("_" if sign in '/\\:*?"<>|' or not sign.isprintable() else sign for sign in name)[:60]
        plain = plain.strip(" .") or "_"
        numbered = (plain if number == 1 else f"{plain}-{number}" for number in count(1))
        names[name] = next(candidate for candidate in numbered if candidate.casefold() not in taken)
        taken.add(names[name].casefold())
    return names


def _told(table: Table, out: Path, unsure_out: Path | None, sorted_into: Path | None) -> dict[str, Any]:
    """Say what was found; returns the same."""
    for name, number in table.counts.most_common(20):
        say(f"{number:>9}  {_printable(name)}")
    if len(table.counts) > 20:
        say(f"{sum(sorted(table.counts.values())[:-20]):>9}  of {len(table.counts) - 20} other classes")
    if unsure_out is not None:
        say(f"{len(table.places):>9}  left to a person: {unsure_out}")
    if table.bad:
        warn(f"{table.bad} files can't be classified; the table's column error says why")
    if sorted_into is not None:
        say(f"sorted into: {sorted_into}")
    say(f"predictions: {out}")
    counts = {"images": table.rows, "classes": dict(table.counts), "unsure": len(table.places), "bad": table.bad}
    return counts | {"out": str(out), "unsure_out": None if unsure_out is None else str(unsure_out)}


# --- one file ---------------------------------------------------------------------------------------------------------


def export(options: Options) -> dict[str, Any]:
    """Pack the classifier of `--load_path` into one file (see exporting.py)."""
    from .export import pack

    return pack(options)
