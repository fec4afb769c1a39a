"""A page that tells what came out: one HTML file with its pictures inside, without scripts, for a phone or for paper.

`write_report` makes a page of plain sections, for any command; run_report.py makes the sections of a finished run.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from ..base.files import write_text
from ..images.decode import Transform, fit, open_rgb, quiet_pil
from .charts import Markup, text

THUMBNAIL = 144  # pixels: sharp at the 120 that a phone gives it
MOST_ROWS = 200  # of a table
MOST_IMAGES = 60  # of a gallery
MOST_BYTES = 300_000  # of a picture: what is larger is made smaller, so that a page stays under 3 MB


class Section(TypedDict, total=False):
    """One part of a page; what is absent or empty is left out. All of it is plain text, whatever signs it holds.

    text: a paragraph, or several. table: {"columns": names, "rows": lists of cells}. pictures: PNG or JPEG
    files, alone or with what they show, as (file, text). gallery: {"image": a file or uint8 [H, W, 3], "caption": a
    line or several}. figures: what charts.py makes. diagnostic: it needs what real life does not have.
    """

    heading: str
    text: str | Sequence[str]
    warnings: Sequence[str]
    diagnostic: bool
    figures: Sequence[Markup]
    table: dict[str, Any]
    pictures: Sequence[Any]
    gallery: Sequence[dict[str, Any]]
    command: str


# --- any page ---------------------------------------------------------------------------------------------------------


def write_report(path: Path, title: str, sections: Sequence[Section], *, lead: str = "") -> Path:
    """Write the page, whole or not at all. lead: what came out, in a sentence, under the title.

    A picture or an image that can't be read is told in its place: a page never fails for one.
    """
    links = "".join(
        f'<li><a href="#s{number}">{text(section["heading"])}</a></li>' for number, section in enumerate(sections)
    )
    parts = [_section(section, f"s{number}") for number, section in enumerate(sections)]
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<header><h1><bdi>{text(title)}</bdi></h1>{f'<p class="lead">{text(lead)}</p>' if lead else ""}
<nav aria-label="Contents"><ul>{links}</ul></nav></header>
<main>
{chr(10).join(parts)}
</main>
</body>
</html>
"""
    write_text(path, page)
    return path


def _section(section: Section, anchor: str) -> str:
    heading = section["heading"]
    mark = ' <span class="mark">diagnostic</span>' if section.get("diagnostic") else ""
    parts = [f'<section id="{anchor}"><h2>{text(heading)}{mark}</h2>']
    paragraphs = section.get("text", ())
    parts += [f"<p>{text(line)}</p>" for line in ([paragraphs] if isinstance(paragraphs, str) else paragraphs) if line]
    if section.get("warnings"):
        lines = "".join(f"<li>{text(line)}</li>" for line in section["warnings"])
        parts.append(f'<ul class="warnings">{lines}</ul>')
    figures = section.get("figures", ())
    if not all(isinstance(figure, Markup) for figure in figures):
        raise TypeError("figures are what charts.py makes; any other text would not be escaped")
    if figures:
        many = " many" if len(figures) > 1 else ""
        parts.append(f'<div class="figures{many}">{"".join(_scroll(figure, heading) for figure in figures)}</div>')
    if section.get("table"):
        parts.append(_scroll(_table(section["table"]), heading))
    parts += [_picture(picture, heading) for picture in section.get("pictures", ())]
    if section.get("gallery"):
        parts.append(_gallery(section["gallery"]))
    if section.get("command"):
        # A line is broken between words only: at the hyphens of an option it would be read wrong.
        words = re.sub(r"\S+", r"<span>\g<0></span>", text(section["command"]))
        parts.append(f"<pre><code>{words}</code></pre>")
    return "".join(parts) + "</section>"


def _scroll(inner: str, label: str) -> str:
    """What may be wider than a phone scrolls by itself; the page does not."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}">{inner}</div>'


def _table(table: dict[str, Any]) -> str:
    rows = list(table["rows"])
    numeric = [
        all(isinstance(row[i], (int, float, type(None))) for row in rows) for i in range(len(table.get("columns", ())))
    ]
    head = "".join(
        f'<th scope="col"{_number_class(is_number)}>{text(name)}</th>'
        for name, is_number in zip(table.get("columns", ()), numeric, strict=True)
    )
    lines = []
    for row in rows[:MOST_ROWS]:
        first, *others = row
        cells = f'<th scope="row">{_cell(first)}</th>'
        cells += "".join(f"<td{_number_class(isinstance(cell, (int, float)))}>{_cell(cell)}</td>" for cell in others)
        lines.append(f"<tr>{cells}</tr>")
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    more = f"<p><small>and {len(rows) - MOST_ROWS} more</small></p>" if len(rows) > MOST_ROWS else ""
    return f"<table>{head}<tbody>{''.join(lines)}</tbody></table>{more}"


def _number_class(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else f"<bdi>{text(value)}</bdi>"


def _picture(picture: Any, heading: str) -> str:
    path, shows = picture if isinstance(picture, tuple) else (picture, heading)
    source = _embedded(Path(path))
    if source is None:
        return f"<p><small>{text(Path(path).name)}: no such picture</small></p>"
    return _scroll(f'<img class="picture" src="{source[0]}" {source[1]} alt="{text(shows)}">', str(shows))


def _gallery(items: Sequence[dict[str, Any]]) -> str:
    cards = []
    for item in items[:MOST_IMAGES]:
        caption = item.get("caption", "")
        lines = [caption] if isinstance(caption, str) else list(caption)
        source = thumbnail(item["image"])
        shown = f'<img src="{source}" alt="{text(", ".join(lines))}">' if source else '<p class="gone">unreadable</p>'
        told = "".join(f"<span><bdi>{text(line)}</bdi></span>" for line in lines)
        cards.append(f"<li><figure>{shown}<figcaption>{told}</figcaption></figure></li>")
    more = len(items) - MOST_IMAGES
    return f'<ul class="gallery">{"".join(cards)}</ul>' + (f"<p><small>and {more} more</small></p>" if more > 0 else "")


# --- pictures as text -------------------------------------------------------------------------------------------------


def thumbnail(image: Any) -> str | None:
    """The middle square of a file or of uint8 [H, W, 3] as a small data URI; None when it can't be decoded."""
    from PIL import Image

    wanted = Transform(THUMBNAIL, THUMBNAIL, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    try:
        with quiet_pil():
            if isinstance(image, np.ndarray):
                picture = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
            else:
                picture = open_rgb(str(image), 2 * THUMBNAIL)
            side = min(picture.size)
            if side <= THUMBNAIL // 2:  # whole pixels: an 8 x 8 digit stays sharp
                factor = THUMBNAIL // side
                wanted = Transform(side * factor, side * factor, "nearest", wanted.mean, wanted.std)
            return _data_uri(fit(picture, wanted), "PNG" if side <= THUMBNAIL // 2 else "JPEG")
    except Exception:  # decoders meet damaged data with whatever exception comes up
        return None


def _embedded(path: Path) -> tuple[str, str] | None:
    """A picture file as a data URI and its measures as attributes; None when it is none."""
    from PIL import Image

    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            kind, size = picture.format or "", picture.size
            if len(content) <= MOST_BYTES and kind in ("PNG", "JPEG"):
                return _uri(content, kind), f'width="{size[0]}" height="{size[1]}"'
            smaller = picture.convert("RGB")
    except Exception:  # decoders meet damaged data with whatever exception comes up
        return None
    smaller.thumbnail((1800, 1800))
    source = _data_uri(smaller, "JPEG")  # what makes a PNG so large is photographs
    return source, f'width="{smaller.width}" height="{smaller.height}"'


def _data_uri(picture: Any, kind: str) -> str:
    picture.info.clear()  # comments and profiles would be copied along
    content = io.BytesIO()
    picture.save(content, kind, quality=80, optimize=True)
    return _uri(content.getvalue(), kind)


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"


# --- how it looks -----------------------------------------------------------------------------------------------------

# Pictures made elsewhere are drawn for white paper, so they keep a white card on a dark page. What is wider than a
# phone scrolls in its own frame. The shades c0 to c5 stand for visualization.PALETTE.
STYLE = """
:root { --page: #fbfbfa; --card: #ffffff; --ink: #1f2328; --soft: #5c646d; --rule: #dcdfe3; --link: #0059a8;
  --warn: #8a4b00; --warn-card: #fff4e2; --hit: 0 114 178; --miss: 213 94 0;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b8578d; --c4: #b87d00; --c5: #3a9bd5; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1d2125; --ink: #e8eaed; --soft: #a5adb6;
  --rule: #383e45; --link: #7cc0f5; --warn: #ffc46b; --warn-card: #33270f; --hit: 74 163 224; --miss: 240 132 66;
  --c0: #4aa3e0; --c1: #f08442; --c2: #2fc497; --c3: #dd8fb8; --c4: #ecb22e; --c5: #9ad6fb; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1rem 4rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 0.6rem; padding-top: 0.9rem; border-top: 1px solid var(--rule); }
p { margin: 0.5rem 0; max-width: 44rem; }
small, .chart figcaption small { color: var(--soft); font-size: 0.85rem; }
.lead { font-size: 1.1rem; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; padding: 0; margin: 0.8rem 0 0; list-style: none; }
nav a { display: inline-block; padding: 0.25rem 0; }
.mark { font-size: 0.75rem; font-weight: 600; color: var(--warn); background: var(--warn-card); border-radius: 0.3rem;
  padding: 0.15rem 0.45rem; vertical-align: 0.15em; white-space: nowrap; }
.warnings { margin: 0.6rem 0; padding: 0; list-style: none; }
.warnings li { margin: 0.4rem 0; padding: 0.5rem 0.8rem; border-left: 4px solid var(--warn);
  background: var(--warn-card); border-radius: 0 0.3rem 0.3rem 0; }
.scroll { overflow-x: auto; margin: 0.6rem 0; }
figure { margin: 0; }
table { border-collapse: collapse; font-size: 0.95rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.8rem 0.3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; min-width: 4.5rem; }
thead th { color: var(--soft); font-size: 0.85rem; vertical-align: bottom; }
.number { text-align: right; white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
td { min-width: 4.5rem; }
th, .chart { overflow-wrap: break-word; }
tbody th { font-weight: 500; }
th bdi { display: inline-block; max-width: 12rem; }
.figures.many { display: grid; gap: 0.6rem 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.chart { background: var(--card); border: 1px solid var(--rule); border-radius: 0.5rem; padding: 0.7rem 0.8rem;
  max-width: 40rem; }
.chart > svg { display: block; width: 100%; height: auto; margin-top: 0.3rem; }
.grid path { stroke: var(--rule); stroke-width: 1; }
.grid path.zero { stroke: var(--soft); }
.grid text { fill: var(--soft); font-size: 11px; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1rem; margin: 0.2rem 0 0; padding: 0; list-style: none;
  font-size: 0.85rem; color: var(--soft); }
.legend svg { width: 22px; height: 8px; margin-right: 0.4rem; }
.bars { width: 100%; max-width: 44rem; }
.bars th { font-weight: 500; }
.bars th bdi, .matrix tbody th bdi { max-width: 8rem; }
.matrix thead th bdi { max-width: 6rem; }
.bars td { white-space: nowrap; border: 0; vertical-align: middle; }
.bars tbody th { border: 0; vertical-align: middle; }
.bars td:nth-child(2) { width: 100%; min-width: 6rem; }
.bar { position: relative; height: 1rem; background: var(--rule); border-radius: 0.2rem; print-color-adjust: exact; }
.bar b { position: absolute; inset: 0 auto 0 0; background: var(--c0); border-radius: 0.2rem; }
.bar i { position: absolute; top: 50%; height: 0; border-top: 2px solid var(--ink); }
.bar i::before, .bar i::after { content: ""; position: absolute; top: -5px; height: 8px;
  border-left: 2px solid var(--ink); }
.bar i::after { right: 0; }
.matrix th, .matrix td { border: 1px solid var(--rule); padding: 0.35rem 0.5rem; vertical-align: middle; }
.matrix thead th { vertical-align: bottom; text-align: center; }
.matrix th, .matrix td { min-width: 2.6rem; }
.matrix th { font-size: 0.85rem; }
.matrix tbody td { text-align: center; print-color-adjust: exact; }
.matrix .corner { font-size: 0.75rem; color: var(--soft); vertical-align: bottom; overflow-wrap: normal; }
.matrix .none { color: var(--soft); }
.hit { background: rgb(var(--hit) / calc(0.65 * var(--share))); }
.miss { background: rgb(var(--miss) / calc(0.12 * min(1, 1000 * var(--share)) + 0.6 * var(--share))); }
.picture { display: block; width: auto; height: auto; max-width: max(100%, 44rem); padding: 0.5rem; background: #ffffff;
  border: 1px solid var(--rule); border-radius: 0.5rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 1rem 0.8rem; padding: 0;
  margin: 0.8rem 0; list-style: none; }
.gallery img, .gone { width: 100%; max-width: 12rem; aspect-ratio: 1; object-fit: cover; border-radius: 0.4rem;
  background: #ffffff; display: block; margin: 0; }
.gone { background: var(--rule); color: var(--soft); padding: 1rem; }
.gallery figcaption { font-size: 0.85rem; line-height: 1.35; margin-top: 0.3rem; }
.gallery span { display: block; }
.gallery span + span { color: var(--soft); }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 0.5rem; padding: 0.8rem; margin: 0.6rem 0;
  white-space: pre-wrap; font-size: 0.9rem; }
pre span { display: inline-block; max-width: 100%; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
@media print {
  :root { --page: #ffffff; --card: #ffffff; --ink: #000000; --soft: #444444; --rule: #cccccc; --link: #000000;
    --warn: #8a4b00; --warn-card: #fff4e2; --hit: 0 114 178; --miss: 213 94 0;
    --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b8578d; --c4: #b87d00; --c5: #3a9bd5; }
  html { font-size: 11px; }
  body { max-width: none; padding: 0; }
  p { max-width: none; }
  nav { display: none; }
  h2, section > p { break-after: avoid; }
  figure, tr, .matrix, .bars, .picture, .chart, .warnings li, .gallery li { break-inside: avoid; }
  .scroll { overflow: visible; }
  .picture { max-width: 100%; }
  .figures.many { grid-template-columns: 1fr 1fr; }
  .gallery { grid-template-columns: repeat(6, 1fr); }
}
"""
