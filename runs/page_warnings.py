"""What to distrust in a finished run: its files, the counts of its images, and results that mislead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..base.tables import percent
from ..data import Dataset
from ..reports.page import Section
from .decision import UNEVEN
from .finished_run import FinishedRun

FEW_LABELS = 5  # of a class
ODD_FILES = 10  # of each kind, by name


def warnings_section(summary: Mapping[str, Any], run: FinishedRun, distant: int) -> Section:
    """The page's warnings; distant: how many images are unusually far from every labeled one."""
    lines = [*_about_files(run.dataset), *_about_counts(run), *unmeasured(summary), *_about_results(summary, run)]
    if distant:
        lines.append(f"Images that are unusually far from every labeled one: {distant}. Do they belong to any class?")
    text = "" if lines else "Nothing odd was found in the files, the counts and the results."
    return {"heading": "Warnings", "warnings": lines, "text": text, "table": _odd_files(run.dataset)}


def unmeasured(summary: Mapping[str, Any]) -> list[str]:
    """A warning where nothing says how good the models are: no test, no folds and no validation."""
    if any(summary.get(part) for part in ("test", "cross_validation", "val")):
        return []
    reason = (summary.get("calibration") or {}).get("reason", "")
    why = f" ({reason})" if reason else ""
    return [f"How good this run is, nobody knows: no image was kept for a test, and there are no folds{why}."]


def hidden(summary: Mapping[str, Any], run: FinishedRun) -> list[str]:
    """What the accuracy that leads hides: that of the folds where the test is small, else that of the test."""
    sought = summary.get("decision", {}).get("recall", ())
    return [] if run.leading is None else misleading(run.judge, run.leading, run.dataset.classes, sought)


def misleading(judge: str, confusion: np.ndarray, classes: Sequence[str], sought: Iterable[str] = ()) -> list[str]:
    """What an accuracy hides, by a model's counts [C, C] on images: it is got by guessing, or a class never comes.

    Nothing where only one class was tested: there is nothing to guess. sought: the classes with a threshold
    (`--recall`), to which an accuracy is given up.
    """
    counts, predicted, total = confusion.sum(axis=1), confusion.sum(axis=0), max(1, confusion.sum())
    if np.count_nonzero(counts) < 2:
        return []
    lines = []
    accuracy, guessing = float(np.diag(confusion).sum() / total), float(counts.max() / total)
    if accuracy <= guessing:
        always = f"always predicting {classes[int(counts.argmax())]} would be right on {percent(guessing)}"
        names = _first_of(list(sought), 8)
        why = (
            "Pseudo-labels can confirm a model's first errors: try --finetune_mode, which uses no unlabeled images, or "
            "label more; --compare measures which helps."
        )
        if names:
            why = (
                f"That is the price of --recall, which calls many images {names} that are not; more labels of it help."
            )
        lines.append(f"The {judge} is right on {percent(accuracy)}; {always}. {why}")
    never = [classes[i] for i in np.flatnonzero((predicted == 0) & (counts > 0)).tolist()]
    if never:
        lines.append(f"The {judge} never predicts {_first_of(never, 8)}.")
    return lines


def _odd_files(dataset: Dataset) -> dict[str, Any]:
    """The files of the warnings by name, the first of each kind."""
    rows = [(path, reason) for path, reason in dataset.bad_files[:ODD_FILES]]
    rows += [(path, f"another class: {_first_of(others)}") for path, *others in dataset.conflicts[:ODD_FILES]]
    rows += [(path, f"copy of {kept}") for path, kept in dataset.duplicates[:ODD_FILES]]
    return {"columns": ["file", "what is wrong"], "rows": rows} if rows else {}


def _about_files(dataset: Dataset) -> list[str]:
    found = (
        (dataset.bad_files, "Files that can't be decoded and were left out (all of them: bad_files.txt)"),
        (dataset.conflicts, "Images that lie under more than one class, so that their labels were not used"),
        (dataset.duplicates, "Files that are copies of others and were left out"),
    )
    return [f"{what}: {len(files)}." for files, what in found if files]


def _about_counts(run: FinishedRun) -> list[str]:
    parts = {
        "labeled": (run.split.labeled, "the rare class may be overlooked"),
        "test": (run.split.test, "the accuracy says little about the rare class, so look at each class"),
    }
    lines, classes = [], run.dataset.classes
    for part, (rows, advice) in parts.items():
        counts = run.class_counts(rows)
        low, high = int(counts.argmin()), int(counts.argmax())
        if counts[high] >= UNEVEN * max(counts[low], 1):
            spread = f"{counts[high]} of {classes[high]}, {counts[low]} of {classes[low]}"
            lines.append(f"The {part} images are unevenly spread ({spread}): {advice}.")
    counts = run.class_counts(run.split.labeled)
    few = [f"{classes[i]} ({counts[i]})" for i in np.flatnonzero(counts < FEW_LABELS)]
    if few:
        lines.append(f"Fewer than {FEW_LABELS} labels of {_first_of(few, 8)}: a few more would help most.")
    return lines


def _about_results(summary: Mapping[str, Any], run: FinishedRun) -> list[str]:
    lines = hidden(summary, run)
    if not summary["test"]:
        return lines
    result = summary["test"][run.judge]
    low, high = result["ci95"]
    if high - low > 0.1:
        lines.append(f"The test is small: the interval of the accuracy is {100 * (high - low):.0f} points wide.")
    confidence, accuracy = float(run.confidence(run.judge).mean()), result["accuracy"]
    if abs(confidence - accuracy) > 0.1:
        kind = "overconfident" if confidence > accuracy else "underconfident"
        means = f"its mean confidence is {percent(confidence)}, its accuracy {percent(accuracy)}"
        lines.append(f"The {run.judge} is {kind}: {means}.")
    return lines


def _first_of(names: Sequence[str], most: int = 5) -> str:
    return "; ".join(names[:most]) + (f"; and {len(names) - most} more" if len(names) > most else "")
