"""What the folders of a data set, and the column `split` of a table, may be called."""

from __future__ import annotations

import re
from collections.abc import Iterable

# By the place of an image (`Item.place`).
_NAMES_OF_PLACES = {
    "train": "train training trn",
    "val": "val valid validation dev eval evaluation",
    "test": "test testing tst",
    "labeled": "labeled labelled",
    "unlabeled": "unlabeled unlabelled unsorted",
}
_WORDS_BESIDE = frozenset(("set", "data", "dataset", "seg", "split", "images", "imgs", "img"))


def place_of(name: str) -> str | None:
    """The place that a folder's name means, as `Training`, `seg_train` and `train2017` mean train; None: of a class."""
    words = re.findall(r"[^\W\d_]+", re.sub(r"(set|data)$", "", name.lower()))
    words = [word for word in words if word not in _WORDS_BESIDE]
    if len(words) != 1:
        return None
    return next((place for place, names in _NAMES_OF_PLACES.items() if words[0] in names.split()), None)


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
