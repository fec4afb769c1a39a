"""Where the images of a data set lie, and what their folders or a table say of them: folder and CSV layouts.

To add a layout: make its `Item`s here and call it in `find_files`; hashing, duplicates and splits follow by themselves.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .. import args
from ..base.folder_walk import files_below, printable, visible_names
from ..utils import UserError, warn
from . import builtin
from .builtin import Found, Item

SUFFIXES = tuple(
    f".{kind}"
    for kind in "jpg jpeg jpe jfif png apng bmp dib gif webp tif tiff ppm pgm pbm pnm tga jp2 avif".split()  # noqa: SIM905
)
LAYOUTS = "DIR/<class>/*, DIR/train|val|test/<class>/*, DIR/labeled/<class>/* with DIR/unlabeled/*, or --labels_csv"
# What folders and the column `split` may be called, and the place of an image (`Item.place`) that they mean.
PLACE_OF_NAME = {
    "train": "train",
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    "test": "test",
    **dict.fromkeys(("labeled", "labelled"), "labeled"),
    **dict.fromkeys(("unlabeled", "unlabelled"), "unlabeled"),
}
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
            csv_file = data.labels_csv
            found = Found(_from_csv(folder, csv_file) if csv_file else _from_folder(folder, for_test=for_test))
        except OSError as error:
            raise UserError(f"{error.filename} can't be read ({error.strerror}); give another --data_dir") from error
    if not found.items:
        raise UserError(f"no images in {data.data_dir}; the layouts are {LAYOUTS}")
    return found


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


# --- folders ----------------------------------------------------------------------------------------------------------


class Images(NamedTuple):
    """The image files below a folder, and the folders below it that can't be listed."""

    files: list[str]
    unlisted: list[str]


def _from_folder(folder: Path, *, for_test: bool) -> list[Item]:
    images = _images_by_subfolder(folder)
    filled = [sub for sub in images if images[sub].files]
    placed = {sub: PLACE_OF_NAME[sub.name.lower()] for sub in filled if sub.name.lower() in PLACE_OF_NAME}
    others = [sub.name for sub in filled if sub not in placed]
    # A class of trains beside other classes is the one reading of such a name that is not a mistake.
    if not placed or (others and set(placed.values()) == {"train"}):
        return _class_items(folder, folder, images, "")
    names = listed(sub.name for sub in placed)
    if others:
        raise UserError(f"{folder} has {names} beside {listed(others)}; move one kind elsewhere")
    if not for_test and not {"train", "labeled"} & set(placed.values()):
        raise UserError(f"{folder} has {names} but no train; the layouts are {LAYOUTS}")
    items = []
    for sub, place in placed.items():
        if place == "unlabeled":
            _warn_of_unlisted([images[sub]])
            items += [_item(folder, file, "", place) for file in images[sub].files]
        else:
            items += _class_items(folder, sub, _images_by_subfolder(sub), place)
    return items


def _images_by_subfolder(folder: Path) -> dict[Path, Images]:
    subs = sorted(folder / name for name in visible_names(folder) if name.endswith("/"))
    return {sub: _images_below(sub) for sub in subs}


def _images_below(folder: Path) -> Images:
    images = Images([], [])
    try:
        for found in files_below(folder):
            if found.is_unlisted_folder:
                images.unlisted.append(found.file)
            elif _is_image(found.file):
                images.files.append(found.file)
    except OSError:
        images.unlisted.append(str(folder))
    return images


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _class_items(root: Path, folder: Path, images: dict[Path, Images], place: str) -> list[Item]:
    """The items of a folder with a subfolder for each class; what lies elsewhere in it is named in a warning."""
    _warn_of_unlisted(images.values())
    empty = [sub.name for sub, found in images.items() if not found.files]
    if empty:
        warn(f"no images in {listed(empty)} under {folder}, so no class of that name")
    loose = sum(map(_is_image, visible_names(folder)))
    if loose:
        warn(f"{loose} images lie directly in {folder}, in no class folder, and are left out")
    return [_item(root, file, sub.name, place) for sub, found in images.items() for file in found.files]


def _warn_of_unlisted(images: Iterable[Images]) -> None:
    folders = [folder for found in images for folder in found.unlisted]
    if folders:
        warn(f"{len(folders)} folders can't be read and are left out, the first: {printable(folders[0])}")


def _item(root: Path, file: str, label: str, place: str) -> Item:
    return Item(printable(Path(file).relative_to(root).as_posix()), file, printable(label), place)


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# --- a table ----------------------------------------------------------------------------------------------------------


def _from_csv(folder: Path, given: str) -> list[Item]:
    """Items of a table with the columns path, label and, if the user likes, split."""
    table = next((f for f in (folder / given, Path(os.path.expanduser(given))) if os.path.isfile(f)), None)
    if table is None:
        raise UserError(f"there is no table {given}, neither under {folder} nor here; give --labels_csv a file")
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{table} can't be read as a CSV table in UTF-8 ({error}); write it again") from error
    header = [name.strip().lower() for name in lines[0]] if lines else []
    if not {"path", "label"} <= set(header):
        raise UserError(f"{table} must start with the line path,label (or path,label,split), not {','.join(header)!r}")
    items: dict[str, Item] = {}
    for number, cells in enumerate(lines[1:], 2):
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        where = f"{table}, row {number}"
        if len(cells) > len(header):
            raise UserError(f"{where} has {len(cells)} cells under {len(header)} names; put quotes around a comma")
        item = _csv_item(folder, dict(zip(header, cells, strict=False)), where)
        if items.setdefault(item.path, item) != item:
            raise UserError(f"{where}: {item.path} stands there twice, and not alike; remove one")
    return list(items.values())


def _csv_item(folder: Path, row: dict[str, str], where: str) -> Item:
    path, label, split = row.get("path", ""), row.get("label", ""), row.get("split", "").lower()
    place = PLACE_OF_NAME.get(split, "" if not split else None)
    if place is None:
        raise UserError(f"{where}: the split {split!r} is unknown; use train, val or test")
    if place in HELD_OUT_PLACES and not label:
        raise UserError(f"{where}: an image of the {place} split needs a label")
    file = folder / path
    if not path or not os.path.exists(file):
        raise UserError(f"{where}: there is no file {path!r}; paths are absolute or relative to {folder}")
    relative = file.relative_to(folder) if file.is_relative_to(folder) else file
    label = "" if place == "unlabeled" else label
    return Item(printable(relative.as_posix()), str(file), label, place)
