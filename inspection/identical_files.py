"""Files with the same bytes: in two classes, in two splits, or twice in one class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from ..images.builtin import Item
from .files import InspectedFiles, differ_in_class
from .findings import Finding
from .label_errors import LabelErrors, likeliest_class


def identical_files(files: InspectedFiles, errors: LabelErrors | None) -> Iterable[Finding]:
    """For each further file with the same bytes one finding, beside the copy that it contradicts most.

    errors: by which the likelier one of two classes is suggested, where labels could be judged.
    """
    same: dict[int, list[Item]] = defaultdict(list)
    for path, row in files.row_of.items():
        same[row].append(files.items[path])
    for row, items in same.items():
        items.sort(key=lambda item: item.path)
        names = sorted({item.label for item in items} - {""})
        suggestion = likeliest_class(errors, row, names, files.dataset.classes) if errors is not None else ("", None)
        for number, item in enumerate(items[1:], 1):
            yield _finding(files, item, _most_contradicted(item, items[:number]), suggestion)


def _most_contradicted(item: Item, others: Sequence[Item]) -> Item:
    """One in another class, else one in another split, else the first."""
    return min(others, key=lambda o: (not differ_in_class(o, item), o.place == item.place, o.path))


def _finding(files: InspectedFiles, item: Item, other: Item, suggestion: tuple[str, float | None]) -> Finding:
    kind = "copy" if other.place == item.place else "two splits"
    text = f"the same bytes as {other.path}"
    suggested, score = "", None
    if differ_in_class(other, item):
        kind, text = "two classes", f"the same bytes are filed under {other.label} and {item.label}"
        suggested, score = suggestion
    if other.place != item.place:
        text += f", in {other.place} and {item.place}"
    return files.finding(
        kind, item.path, other_path=other.path, suggested_class=suggested, score=score, explanation=text
    )
