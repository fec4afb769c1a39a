"""A page of results: one HTML file with its pictures inside, without scripts, for a phone or for paper.

`write_report` makes a page of plain sections, for any command; `runs/page.py` makes the sections of a finished run.
The HTML itself is in `page.html.j2` and `parts.html.j2`, its style in `page.css`.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from markupsafe import Markup

from ..base.files import write_text
from ..images.decode import Transform, fit, open_rgb, quiet_pil, read_content
from .templates import environment, package_file

THUMBNAIL = 144  # pixels: sharp at the 120 that a phone gives it
MOST_ROWS = 200  # of a table
MOST_IMAGES = 60  # of a gallery
MOST_BYTES = 300_000  # of a picture: what is larger is made smaller, so that a page stays under 3 MB


class Section(TypedDict, total=False):
    """One part of a page; what is absent or empty is left out. All of it is plain text, whatever signs it holds.

    text: a paragraph, or several.
    table: {"columns": names, "rows": lists of cells}.
    pictures: PNG or JPEG files, alone or with what they show, as (file, text).
    photographs: whether the pictures hold photographs, which stay as they are on a dark page.
    gallery: dicts {"image": a file or uint8 [H, W, 3], "caption": a line or several}.
    figures: what `charts.py` makes.
    diagnostic: it needs what is not known of real unlabeled images.
    """

    heading: str
    text: str | Sequence[str]
    warnings: Sequence[str]
    diagnostic: bool
    figures: Sequence[Markup]
    table: dict[str, Any]
    pictures: Sequence[Any]
    photographs: bool
    gallery: Sequence[dict[str, Any]]
    command: str


# --- any page ---------------------------------------------------------------------------------------------------------


def write_report(path: Path, title: str, sections: Sequence[Section], *, lead: str = "") -> Path:
    """Write the page, whole or not at all, and return its path.

    A picture or an image that can't be read is named in its place: a page never fails because of one.

    Args:
        path: the file to write.
        title: the page's heading.
        sections: the parts, in their order.
        lead: the main result in a sentence, under the title.

    Raises:
        TypeError: a figure is not one of `charts.py`, so its text would not be escaped.
    """
    page = (
        environment()
        .get_template("page.html.j2")
        .render(title=title, lead=lead, style=style(), sections=[_prepared(section) for section in sections])
    )
    write_text(path, page + "\n")
    return path


def style() -> Markup:
    """The page's style sheet, which holds nothing from outside."""
    return Markup(package_file("page.css"))


def _prepared(section: Section) -> dict[str, Any]:
    """A section as the template takes it: each part present, lists cut to their limits, pictures as data."""
    heading, paragraphs = section["heading"], section.get("text", ())
    figures = section.get("figures", ())
    if not all(isinstance(figure, Markup) for figure in figures):
        raise TypeError("figures are made by charts.py; any other text would not be escaped")
    return {
        "heading": heading,
        "diagnostic": section.get("diagnostic", False),
        "text": [line for line in ([paragraphs] if isinstance(paragraphs, str) else paragraphs) if line],
        "warnings": section.get("warnings", ()),
        "figures": figures,
        "table": _table(section["table"]) if section.get("table") else None,
        "pictures": [_picture(p, heading, section.get("photographs", False)) for p in section.get("pictures", ())],
        "gallery": _gallery(section["gallery"]) if section.get("gallery") else None,
        "command": re.findall(r"\S+|\s+", section.get("command", "")),
    }


def _table(table: dict[str, Any]) -> dict[str, Any]:
    """The first rows, each cell with whether it is a number; a column of numbers has its name to the right."""
    rows, names = list(table["rows"]), table.get("columns", ())
    numeric = [all(isinstance(row[i], (int, float, type(None))) for row in rows) for i in range(len(names))]
    shown = [
        [(f"{cell:.4g}" if isinstance(cell, float) else cell, isinstance(cell, (int, float))) for cell in row]
        for row in rows[:MOST_ROWS]
    ]
    return {"columns": list(zip(names, numeric, strict=True)), "rows": shown, "more": len(rows) - MOST_ROWS}


def _picture(picture: Any, heading: str, photographs: bool) -> dict[str, Any]:
    path, shows = picture if isinstance(picture, tuple) else (picture, heading)
    source, width, height = _embedded(Path(path)) or ("", 0, 0)
    size = {"width": width, "height": height}
    return {"name": Path(path).name, "shows": shows, "source": source, **size, "photographs": photographs}


def _gallery(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    cards = []
    for item in items[:MOST_IMAGES]:
        caption = item.get("caption", "")
        lines = [caption] if isinstance(caption, str) else list(caption)
        cards.append({"source": thumbnail(item["image"]), "lines": lines})
    return {"cards": cards, "more": len(items) - MOST_IMAGES}


# --- pictures as text -------------------------------------------------------------------------------------------------


def thumbnail(image: Any) -> str | None:
    """The middle square of an image as a small data URI; None when it can't be decoded.

    image: a file, uint8 [H, W, 3], or a function that opens the image with no side under the number it gets.
    """
    from PIL import Image

    wanted = Transform(THUMBNAIL, THUMBNAIL, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    try:
        with quiet_pil():
            if isinstance(image, np.ndarray):
                picture = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
            else:
                picture = (
                    image(2 * THUMBNAIL) if callable(image) else open_rgb(read_content(str(image)), 2 * THUMBNAIL, {})
                )
            side = min(picture.size)
            if side <= THUMBNAIL // 2:  # whole pixels: an 8 x 8 digit stays sharp
                factor = THUMBNAIL // side
                wanted = Transform(side * factor, side * factor, "nearest", wanted.mean, wanted.std)
            return _data_uri(fit(picture, wanted), "PNG" if side <= THUMBNAIL // 2 else "JPEG")
    except Exception:  # decoders meet damaged data with whatever exception comes up
        return None


def _embedded(path: Path) -> tuple[str, int, int] | None:
    """A picture file as a data URI, its width and its height in pixels; None when it can't be decoded."""
    from PIL import Image

    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            kind, size = picture.format or "", picture.size
            if len(content) <= MOST_BYTES and kind in ("PNG", "JPEG"):
                return _uri(content, kind), *size
            clear = picture.mode == "RGBA"
            smaller = picture.convert("RGBA" if clear else "RGB")
    except Exception:  # decoders meet damaged data with whatever exception comes up
        return None
    smaller.thumbnail((1800, 1800))
    return _data_uri(smaller, "WEBP" if clear else "JPEG"), *smaller.size  # what makes a PNG so large is photographs


def _data_uri(picture: Any, kind: str) -> str:
    picture.info.clear()  # comments and profiles would be copied along
    content = io.BytesIO()
    picture.save(content, kind, quality=80, optimize=True)
    return _uri(content.getvalue(), kind)


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
