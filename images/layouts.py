"""Where the images of a data set lie, and what their folders or a table say of them: folder and CSV layouts.

To add a layout: make its `Item`s here and call it in `find_files`; hashing, duplicates and splits follow by themselves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from .. import args
from ..base.folder_walk import FoundFile, files_below, printable, visible_names
from ..base.tables import number_of
from ..utils import UserError, say, warn
from . import builtin
from .builtin import Found, Item
from .file_kinds import counted, is_heif, is_image, kind_of
from .labels_csv import items_of_csv, table_file
from .places import listed, place_of

LAYOUTS = "DIR/<class>/*, with or without DIR/unlabeled/*, DIR/train|val|test|labeled/<class>/*, or --labels_csv"
HELD_OUT_PLACES = ("test", "val")  # of copies in several places the one that comes first here stays


def find_files(data: args.Data, *, for_test: bool = False) -> Found:
    """All images of the options' data set as they lie, copies and bad files among them. Raises UserError for none."""
    if data.data_dir in builtin.NAMES:
        if data.labels_csv:
            raise UserError(f"--labels_csv needs a folder as --data_dir, and {data.data_dir} is a built-in data set")
        found = builtin.load(data.data_dir, data.data_root, download=data.download)
    else:
        folder = _folder(data.data_dir)
        try:
            tables = data.labels_csv
            items = (
                _from_tables(folder, tables, for_test=for_test) if tables else _from_folder(folder, for_test=for_test)
            )
            found = Found(items)
            found = dataclasses.replace(found, items=_with_one_name_a_class(found.items))
        except OSError as error:
            raise UserError(f"{error.filename} can't be read ({error.strerror}); give another --data_dir") from error
    if not found.items:
        raise UserError(f"no images in {data.data_dir}; the layouts are {LAYOUTS}")
    return found


def _with_one_name_a_class(items: list[Item]) -> list[Item]:
    """The items with their classes' names in one Unicode form: macOS writes an accent apart from its letter.

    Raises UserError where names differ in what is easily mistyped, upper case or spaces: one class, or two?
    """
    items = [dataclasses.replace(item, label=unicodedata.normalize("NFC", item.label)) for item in items]
    alike: dict[str, set[str]] = defaultdict(set)
    for label in {item.label for item in items}:
        alike[" ".join(label.casefold().split())].add(label)
    for names in alike.values():
        if len(names) > 1:
            shown = " and ".join(repr(name) for name in sorted(names))
            raise UserError(
                f"the classes {shown} differ only in upper case or spaces; give them one name, or clear ones"
            )
    return items


def _folder(name: str) -> Path:
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):
        return folder
    if os.path.exists(folder):
        raise UserError(f"--data_dir {name} is a file; give a folder: {LAYOUTS}")
    near = difflib.get_close_matches(name.lower(), builtin.NAMES, n=1)
    with contextlib.suppress(OSError):
        siblings = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()]
        near = [str(folder.parent / s) for s in difflib.get_close_matches(folder.name, siblings, n=2)] + near
    hint = f"did you mean {' or '.join(near)}?" if near else f"give a folder, or one of {', '.join(builtin.NAMES)}"
    raise UserError(f"there is no folder {name}; {hint}")


def _from_tables(folder: Path, given: Sequence[str], *, for_test: bool) -> list[Item]:
    """What the tables say, on top of what folders do where some are named as parts of a data set; the later one counts.

    Where a label is missing, what was said before it stays.
    """
    items = {item.path: item for item in _from_folder(folder, for_test=for_test)} if _has_parts(folder) else {}
    tables = [table_file(folder, name) for name in given]
    changed: list[str] = []
    for number, table in enumerate(tables, 1):
        for item in items_of_csv(folder, table):
            item = dataclasses.replace(item, table=number if item.label else 0)
            before = items.get(item.path)
            items[item.path] = item if before is None else _updated(before, item)
            if before is not None and item.label and before.label not in ("", item.label):
                changed.append(f"{item.path}, which was {before.label} and is {item.label} by {table}")
    if changed:
        warn(
            f"{number_of(len(changed), 'label differs', 'labels differ')} from what was said before, and the later one "
            f"counts; the first: {changed[0]}"
        )
    return [*items.values(), *_in_no_row(folder, tables, list(items.values()))]


def _has_parts(folder: Path) -> bool:
    """Whether folders say what is labeled: one for training that holds classes, or `unlabeled` beside other folders."""
    images = _images_by_subfolder(folder)
    filled = {sub: place_of(sub.name) for sub in images if images[sub].files}
    if any(place in ("train", "labeled") and _subfolders(sub, images) for sub, place in filled.items()):
        return True
    return set(filled.values()) == {None, "unlabeled"}


def _updated(before: Item, item: Item) -> Item:
    label = item.label or before.label
    place = item.place or before.place
    place = "" if label and place == "unlabeled" else place
    return dataclasses.replace(
        before, label=label, place=place, table=item.table or before.table, asked=item.asked or before.asked
    )


def _in_no_row(folder: Path, tables: Sequence[Path], items: list[Item]) -> list[Item]:
    """The images below the folder that no table names, as unlabeled ones; what else lies there is counted.

    Not those of a whole disk, whose paths a table may hold.
    """
    real = Path(os.path.realpath(folder))
    if real == Path(real.anchor):
        return []
    named = {item.path for item in items}
    try:
        unnamed = [found for found in files_below(folder) if found.path not in named]
    except OSError:  # of a folder that can't be listed the files can be read all the same
        return []
    targets = {*map(os.path.realpath, tables), *(os.path.realpath(str(item.source)) for item in items if unnamed)}
    images = Images.among(found for found in unnamed if os.path.realpath(found.file) not in targets)
    unlabeled = [_item(folder, file, "", "unlabeled") for file in images.files]
    if unlabeled:
        where = f"{listed(map(str, tables))}, so without a label; the first: {unlabeled[0].path}"
        these = number_of(len(unlabeled), f"image below {folder} is", f"images below {folder} are")
        say(f"{these} in no row of {where}")
        labels = {item.label for item in items}
        in_classes = sum(item.path.split("/")[0] in labels for item in unlabeled)
        if in_classes:
            warn(
                f"{in_classes} of these lie in folders named like classes, which count as labels only in "
                f"{folder}/labeled or where {folder}/unlabeled is beside them"
            )
    _warn_of_unlisted([images])
    _warn_of_others([images])
    return unlabeled


# --- folders ----------------------------------------------------------------------------------------------------------


class Images(NamedTuple):
    """The image files in a folder, the folders below it that can't be listed, and what else is there, by kind."""

    files: list[str]
    unlisted: list[str]
    others: Counter[str]

    @classmethod
    def among(cls, found: Iterable[FoundFile]) -> Images:
        """Those among files that were found."""
        images = cls([], [], Counter())
        for one in found:
            if one.is_unlisted_folder:
                images.unlisted.append(one.file)
            elif is_image(one.file):
                images.files.append(one.file)
            else:
                images.others[".heic" if is_heif(one.file) else kind_of(one.file)] += 1
        return images


def _from_folder(folder: Path, *, for_test: bool) -> list[Item]:
    images = _images_by_subfolder(folder)
    found = [*images.values(), _loose(folder)]
    filled = [sub for sub in images if images[sub].files]
    placed = {sub: place for sub in filled if (place := place_of(sub.name))}
    others = [sub for sub in filled if sub not in placed]
    # A class of trains is the one reading of such a name that is not a mistake.
    a_class = set(placed.values()) == {"train"} and not any(_subfolders(sub, images) for sub in placed)
    if not placed or a_class:
        _check_are_classes(folder, {sub: images[sub] for sub in filled})
        _warn_of_others(found)
        return _class_items(folder, folder, images, "")
    names = listed(sub.name for sub in placed)
    if others and set(placed.values()) == {"unlabeled"}:
        _check_are_classes(folder, {sub: images[sub] for sub in others})
        _warn_of_others(found)
        classes = {sub: images[sub] for sub in images if sub not in placed}
        return [*_class_items(folder, folder, classes, ""), *_unlabeled_items(folder, placed, images)]
    if others:
        raise UserError(
            f"{folder} has {names}, which is read as a part of the data set, beside {listed(s.name for s in others)}; "
            "move one kind elsewhere, or rename it"
        )
    if not for_test and not {"train", "labeled"} & set(placed.values()):
        raise UserError(f"{folder} has {names} but no train; the layouts are {LAYOUTS}")
    _warn_of_others(found)
    items = _unlabeled_items(folder, [sub for sub, place in placed.items() if place == "unlabeled"], images)
    for sub, place in placed.items():
        if place != "unlabeled":
            sub = _unwrapped(sub, images[sub])
            inside = _images_by_subfolder(sub, root=folder)
            _check_are_classes(sub, {one: inside[one] for one in inside if inside[one].files})
            _loose(sub)
            items += _class_items(folder, sub, inside, place)
    return items


def _unwrapped(folder: Path, images: Images) -> Path:
    """The folder, or the only one in it where that has the same name: archives are often packed so (`train/train`)."""
    below = _first_names(folder, images)
    name = next(iter(below), None)
    return folder / name if len(below) == 1 and name and name.lower() == folder.name.lower() else folder


def _check_are_classes(folder: Path, images: dict[Path, Images]) -> None:
    """Raises UserError where most classes hold the same subfolders: those may be the classes, and these parts.

    So it does for a part of the data set inside a class: its test images would be learned from.
    """
    for sub, found in images.items():
        inner = listed(sorted(name for name in _first_names(sub, found) if name and place_of(name) in HELD_OUT_PLACES))
        if inner:
            raise UserError(
                f"{folder}: {inner} lies inside the class {sub.name}, but parts of a data set lie above its classes, "
                f"as in test/{sub.name}; move it there, or rename it"
            )
    inside = {sub: _subfolders(sub, images) for sub in images}
    counts = Counter(name for names in inside.values() for name in names)
    common = {name for name, count in counts.items() if count > max(1, len(inside) / 2)}
    if len(common) < 2:
        return
    parts, shared = listed(sub.name for sub in inside if inside[sub] & common), listed(sorted(common))
    raise UserError(
        f"{folder}: each of {parts} holds the folders {shared}, so it is not clear which are the classes; rename the "
        f"parts to train, val and test, give one of them as --data_dir, or name classes by --labels_csv"
    )


def _subfolders(folder: Path, images: dict[Path, Images]) -> set[str]:
    """The folders right below this one that hold images; none where images lie beside them."""
    names = _first_names(folder, images[folder])
    return set() if None in names else {name for name in names if name}


def _first_names(folder: Path, images: Images) -> set[str | None]:
    """The folders right below in which images are; None stands for the folder itself."""
    parts = (Path(file).relative_to(folder).parts for file in images.files)
    return {part[0] if len(part) > 1 else None for part in parts}


def _images_by_subfolder(folder: Path, root: Path | None = None) -> dict[Path, Images]:
    subs = sorted(folder / name for name in visible_names(folder) if name.endswith("/"))
    # Into a class no link may bring the other classes: not one to the data set's own folder, or to what that lies in.
    above = os.path.realpath(root or folder)
    not_into = {
        above,
        *map(str, Path(above).parents),
        *(os.path.realpath(sub) for sub in subs),
        os.path.realpath(folder),
    }
    return {sub: _images_below(sub, not_into) for sub in subs}


def _images_below(folder: Path, not_into: Collection[str]) -> Images:
    try:
        return Images.among(files_below(folder, not_into))
    except OSError:
        return Images([], [str(folder)], Counter())


def _loose(folder: Path) -> Images:
    """What lies in no folder of a class; images are named in a warning."""
    names = (name for name in visible_names(folder) if not name.endswith("/"))
    images = Images.among(FoundFile(name, str(folder / name)) for name in names)
    if images.files:
        where = f"directly in {folder}, in no class folder, and"
        warn(number_of(len(images.files), f"image lies {where} is left out", f"images lie {where} are left out"))
    return images


def _class_items(root: Path, folder: Path, images: dict[Path, Images], place: str) -> list[Item]:
    """The items of a folder with a subfolder for each class; what lies elsewhere in it is named in a warning."""
    _warn_of_unlisted(images.values())
    empty = [sub.name for sub, found in images.items() if not found.files and not found.unlisted]
    if empty:
        warn(f"no images in {listed(empty)} under {folder}, so no class of that name")
    return [_item(root, file, sub.name, place) for sub, found in images.items() for file in found.files]


def _unlabeled_items(root: Path, folders: Iterable[Path], images: dict[Path, Images]) -> list[Item]:
    """The items of folders whose images no class is known of."""
    folders = list(folders)
    _warn_of_unlisted(images[sub] for sub in folders)
    return [_item(root, file, "", "unlabeled") for sub in folders for file in images[sub].files]


def _warn_of_unlisted(images: Iterable[Images]) -> None:
    folders = [folder for found in images for folder in found.unlisted]
    if folders:
        left = number_of(len(folders), "folder can't be read and is", "folders can't be read and are")
        warn(f"{left} left out, the first: {printable(folders[0])}")


def _warn_of_others(images: Iterable[Images]) -> None:
    """Name by kind what was not read: a phone's photographs that need a package, and what is no image."""
    others = sum((found.others for found in images), Counter[str]())
    phones = others.pop(".heic", 0)
    if phones:
        unread = number_of(phones, "HEIC image (of phones) was", "HEIC images (of phones) were")
        warn(f"{unread} not read; pip install pi-heif reads such")
    if others:
        kind = "of no kind that is read and"
        left = number_of(others.total(), f"file is {kind} is", f"files are {kind} are")
        warn(f"{left} left out: {counted(others)}")


def _item(root: Path, file: str, label: str, place: str) -> Item:
    return Item(printable(Path(file).relative_to(root).as_posix()), file, printable(label), place)
