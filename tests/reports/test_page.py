"""The page: whole, escaped, small, without anything from elsewhere; and in a real browser as a reader sees it."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser import DESK, PHONE, Browser, find_browser
from pages import Page
from runs import FROZEN, make_data, run
from transfermpl.reports import charts
from transfermpl.reports import page as report
from transfermpl.reports.page import Section, thumbnail, write_report
from transfermpl.visualization import BLUE, Panel, draw_confusion

EVIL = "<script>alert(1)</script>"
NASTY = (EVIL, '"><img src=x onerror=alert(2)>', "a\nb\t c", "'single' & \"double\"", "x" * 300, "ünï 日本 \u202eevil")


def photo(path: Path, size: tuple[int, int] = (300, 200), seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def opened(uri: str) -> Image.Image:
    kind, _, content = uri.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == f"data:image/{image.format.lower()}"  # type: ignore[union-attr]
    return image


def everything(folder: Path) -> list[Section]:
    """One of each kind, with names that try to be markup."""
    confusion = draw_confusion(folder / "CM.png", np.array([[5, 1], [2, 4]]), [EVIL, "b"], title=EVIL)
    panel = Panel(EVIL, "loss", [("loss", EVIL, BLUE, "-")])
    return [
        {"heading": name, "text": [name, name], "warnings": [name], "command": f"python MPL.py {name}",
         "table": {"columns": [name, "n"], "rows": [(name, 3), (name, 0.25)]}, "diagnostic": True,
         "figures": [charts.bars([(name, 0.5, (0.4, 0.6), name)], head=("a", "b")),
                     charts.matrix(np.array([[5, 1], [2, 4]]), [name, "b"]),
                     charts.curves(panel, [{"epoch": 1, "loss": 1}, {"epoch": 2, "loss": 2}])],
         "pictures": [(confusion, name)],
         "gallery": [{"image": photo(folder / "a.jpg"), "caption": [name, "filed under b"]},
                     {"image": np.full((8, 8, 3), 99, dtype=np.uint8), "caption": name}]}
        for name in NASTY
    ]  # fmt: skip


# --- what is written --------------------------------------------------------------------------------------------------


def test_a_page_is_one_file_without_scripts_and_loads_nothing(tmp_path: Path) -> None:
    path = write_report(tmp_path / "deep" / "report.html", EVIL, everything(tmp_path), lead=EVIL)
    assert path == tmp_path / "deep" / "report.html"
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    page = Page(path)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form", "video"}
    assert page.source.startswith("<!doctype html>")
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), attributes
        for name in ("src", "href", "srcset", "action", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), attributes
    assert "url(" not in page.source
    assert "@import" not in page.source
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_every_name_is_shown_as_it_is(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "r.html", EVIL, everything(tmp_path), lead=EVIL))
    for name in NASTY:
        shown = " ".join(name.replace("\u202e", "\ufffd").split())
        assert page.words.count(shown) >= 10, name
    assert page.headings[0].startswith(EVIL.replace("<", "&lt;").replace(">", "&gt;"))


def test_a_page_is_semantic_and_its_pictures_are_told(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "r.html", "t", everything(tmp_path)))
    assert [len(page.all(tag)) for tag in ("h1", "header", "main", "nav")] == [1, 1, 1, 1]
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("section")) == len(page.all("h2")) == len(NASTY)
    assert all(image["alt"] for image in page.all("img"))
    assert all(drawing.get("aria-label") or drawing.get("aria-hidden") for drawing in page.all("svg"))
    assert {link["href"][1:] for link in page.all("a")} == {section["id"] for section in page.all("section")}
    assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
    assert any(meta.get("content", "").startswith("width=device-width") for meta in page.all("meta"))


def test_what_is_absent_or_empty_leaves_no_trace(tmp_path: Path) -> None:
    sections: list[Section] = [
        {"heading": "bare"},
        {"heading": "empty", "text": "", "warnings": [], "table": {}, "pictures": [], "gallery": [], "figures": []},
    ]
    page = Page(write_report(tmp_path / "r.html", "t", sections))
    assert page.words.endswith("bare empty")
    assert Page(write_report(tmp_path / "r.html", "t", [])).all("main")


def test_numbers_are_set_to_the_right_and_nothing_is_nothing(tmp_path: Path) -> None:
    table = {"columns": ["name", "n", "x"], "rows": [("a", 3, 0.123456), ("b", 12, None)]}
    page = Page(write_report(tmp_path / "r.html", "t", [{"heading": "h", "table": table}]))
    assert "a 3 0.1235 b 12" in page.words
    assert "None" not in page.words
    assert [head.get("class") for head in page.all("th")][:3] == [None, "number", "number"]


def test_a_picture_that_is_gone_or_broken_is_told_and_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nonsense")
    section: Section = {
        "heading": "h",
        "pictures": [tmp_path / "gone.png", tmp_path / "broken.png", tmp_path],
        "gallery": [{"image": tmp_path / "gone.jpg", "caption": "one"}, {"image": "\0", "caption": "two"}],
    }
    page = Page(write_report(tmp_path / "r.html", "t", [section]))
    assert page.all("img") == []
    assert page.words.count("no such picture") == 3
    assert "unreadable one unreadable two" in page.words


def test_a_command_can_be_copied_and_is_broken_between_words_only(tmp_path: Path) -> None:
    command = "python MPL.py --name 'a  b' --data_dir '<i>'"
    source = Page(write_report(tmp_path / "r.html", "t", [{"heading": "h", "command": command}])).source
    code = source.partition("<code>")[2].partition("</code>")[0]
    assert "".join(Page(f"<p>{code}</p>").parts) == command
    assert "<span>--data_dir</span>" in code


def test_no_line_ends_within_the_name_of_an_option(tmp_path: Path) -> None:
    line = "a < b; --num_labels_percent 100% uses all"
    path = write_report(tmp_path / "r.html", "x", [{"heading": "h", "text": line, "warnings": [line]}])
    whole = 'a &lt; b; <span class="option">--num_labels_percent</span> 100% uses all'
    assert path.read_text(encoding="utf-8").count(whole) == 2


def test_text_can_not_pass_for_a_figure(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not be escaped"):
        write_report(tmp_path / "r.html", "t", [{"heading": "h", "figures": [EVIL]}])  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []


def test_a_page_is_made_where_the_checkout_itself_is_the_package(tmp_path: Path) -> None:
    """As under `python MPL.py`, where nothing is installed: the templates are found there too."""
    code = (
        "import runpy, sys, pathlib; runpy.run_path(sys.argv[1], run_name='__mp_main__')\n"
        "from transfermpl.reports.page import write_report\n"
        "write_report(pathlib.Path('r.html'), 'a title', [{'heading': '<b>', 'text': 'words'}])\n"
    )
    program = Path(report.__file__).resolve().parents[1] / "MPL.py"
    subprocess.run([sys.executable, "-I", "-c", code, program], cwd=tmp_path, check=True)
    page = Page(tmp_path / "r.html")
    assert page.words.endswith("<b> words")
    assert "--page: #fbfbfa" in page.source


def test_long_lists_are_cut_and_counted(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    section: Section = {
        "heading": "h",
        "table": {"columns": ["a"], "rows": [(str(i),) for i in range(report.MOST_ROWS + 7)]},
        "gallery": [{"image": pixels, "caption": "x"}] * (report.MOST_IMAGES + 3),
    }
    page = Page(write_report(tmp_path / "r.html", "t", [section]))
    assert len(page.all("img")) == report.MOST_IMAGES
    assert "and 7 more" in page.words
    assert "and 3 more" in page.words


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(640, 480), (90, 2000), (3000, 100), (1, 1), (8, 8), (32, 32)])
def test_thumbnails_are_small_squares(width: int, height: int) -> None:
    uri = thumbnail(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))
    assert uri is not None
    image = opened(uri)
    assert image.width == image.height
    assert report.THUMBNAIL / 2 < image.width <= report.THUMBNAIL
    assert len(uri) < 30_000


def test_a_small_image_stays_sharp() -> None:
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[3, 5] = 255
    image = np.asarray(opened(thumbnail(pixels) or ""))
    assert set(np.unique(image)) == {0, 255}
    assert (image[:, :, 0] == 255).sum() == (report.THUMBNAIL // 8) ** 2


def test_a_thumbnail_stands_upright_and_tells_no_secrets(tmp_path: Path) -> None:
    pixels = np.zeros((200, 200, 3), dtype=np.uint8)
    pixels[:100] = 255
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 3, "a camera"  # upside down
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, comment=b"where it was taken")
    uri = thumbnail(tmp_path / "a.jpg") or ""
    image = opened(uri)
    content = base64.b64decode(uri.partition(",")[2])
    assert np.asarray(image)[10].mean() < 20
    assert np.asarray(image)[-10].mean() > 235
    assert b"camera" not in content
    assert b"where" not in content


def test_a_large_picture_is_made_smaller_and_a_small_one_is_kept(tmp_path: Path) -> None:
    large = photo(tmp_path / "large.png", (2400, 1200))
    small = draw_confusion(tmp_path / "small.png", np.eye(2, dtype=int), ["a", "b"], title="t")
    assert large.stat().st_size > 8e6
    page = Page(write_report(tmp_path / "r.html", "t", [{"heading": "h", "pictures": [large, small]}]))
    first, second = (opened(image["src"]) for image in page.all("img"))
    assert first.size == (1800, 900)
    assert (page.all("img")[0]["width"], page.all("img")[0]["height"]) == ("1800", "900")
    assert page.all("img")[1]["src"].endswith(base64.b64encode(small.read_bytes()).decode())
    assert second.size == Image.open(small).size
    assert (tmp_path / "r.html").stat().st_size < 3e6


# --- in a browser -----------------------------------------------------------------------------------------------------

# Of every picture whether it was decoded and has a place on the page; of every drawing whether it has one.
PICTURES = """[...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().width,
    i.getBoundingClientRect().height, i.checkVisibility({opacityProperty: true, visibilityProperty: true})])"""
DRAWINGS = "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect()).map(r => [r.width, r.height])"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# What sticks out of the page and lies in nothing that scrolls.
OUTSIDE = """[...document.querySelectorAll('main *, header *')].filter(e =>
    !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 90))"""
# The contrast (WCAG) of each piece of text with the nearest background that is opaque.
CONTRAST = """(() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => { const [r, g, b] = parse(c).slice(0, 3).map(v => v / 255).map(v =>
    v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    const p = parse(c); if (p.length < 4 || p[3] > 0.9) return c; } return 'rgb(255, 255, 255)'; };
  return Math.min(...[...document.querySelectorAll('h1, h2, p, li, td, th, small, span, code, a, .grid text')]
    .filter(e => e.textContent.trim()).map(e => { const s = getComputedStyle(e);
      const a = light(e.closest('svg') ? s.fill : s.color), b = light(ground(e));
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); }));
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if find_browser() is None:
        pytest.skip("there is no Chromium here: .ci/packages installs it")
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page with everything on it, and that of a real run, whose first class tries to be a script."""
    folder = tmp_path_factory.mktemp("pages")
    # No folder's name holds a slash: a table says the class.
    data = make_data(folder / "data", 30)
    lines = ["path,label"]
    for name, label in zip(sorted(sub.name for sub in data.iterdir()), (EVIL, "b", "x" * 80), strict=True):
        lines += [f'{name}/{image.name},"{label}"' for image in sorted((data / name).iterdir())]
    (data / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    (data / "torn.png").write_bytes(b"no image")
    line = ("--data_dir", data, "--labels_csv", "labels.csv", *FROZEN, "--num_labels", 6, "--max_steps", 6)
    outcome = run("--name", "x", *line, "--show_images", cwd=folder, pictures=True)
    assert outcome.code == 0, outcome.err
    everywhere = write_report(folder / "all.html", EVIL, everything(folder), lead=EVIL)
    return {"all": everywhere, "run": outcome.folder() / "report.html"}


@pytest.mark.slow
@pytest.mark.parametrize("which", ["all", "run"])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [PHONE, DESK, (320, 568)])
def test_a_reader_sees_all_of_it(
    browser: Browser, pages: dict[str, Path], which: str, dark: bool, size: tuple[int, int]
) -> None:
    browser.messages.clear()
    browser.requests.clear()
    browser.open(pages[which], size=size, dark=dark)
    images: list[list[Any]] = browser.ask(PICTURES)
    assert len(images) >= 10
    assert all(natural > 0 and width > 40 and height > 40 and seen for natural, width, height, seen in images)
    assert all(width > 5 and height > 5 for width, height in browser.ask(DRAWINGS))
    assert browser.ask("innerWidth") == size[0]  # a phone would zoom out of a page that is too wide
    assert browser.ask(OVERFLOW) <= 0
    assert browser.ask(OUTSIDE) == []
    assert browser.ask(CONTRAST) >= 4.5
    assert browser.ask("document.scripts.length") == 0
    assert EVIL in browser.ask("document.body.innerText")
    assert EVIL in browser.ask("[...document.querySelectorAll('th')].map(e => e.textContent).join()")
    assert browser.messages == []
    assert {url.split(":")[0] for url in browser.requests} == {"file", "data"}
    ground = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 150) == dark
    # Drawings made for paper are turned to the page's ground, and photographs stay as they are.
    filters = browser.ask("[...document.querySelectorAll('.drawing')].map(e => getComputedStyle(e).filter)")
    assert {shown == "none" for shown in filters} <= {not dark}
    photographs = browser.ask(
        "[...document.querySelectorAll('img:not(.drawing)')].map(e => getComputedStyle(e).filter)"
    )
    assert set(photographs) <= {"none"}


@pytest.mark.slow
def test_a_page_can_be_printed(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    browser.open(pages["run"], size=DESK, dark=True)
    content = browser.pdf(tmp_path / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 8
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.ask("getComputedStyle(document.documentElement).getPropertyValue('--page')").strip() == "#ffffff"
    assert browser.ask("getComputedStyle(document.querySelector('nav')).display") == "none"


@pytest.mark.slow
def test_a_browser_would_tell_of_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    """The tests above look at something: each fault is seen on a page that has it."""
    scripts = ("console.error('a fault')", "throw Error('b')", "alert(1)")
    (tmp_path / "bad.html").write_text(
        "<meta name=viewport content='width=device-width'><body>"
        + "".join(f"<script>{script}</script>" for script in scripts)
        + "<img src='gone.png'><header><p style='width: 900px'>wide</p></header>"
        + "<main><p style='color: #ddd'>pale</p></main></body>"
    )
    browser.messages.clear()
    browser.open(tmp_path / "bad.html")
    told = " ".join(browser.messages)
    assert "a fault" in told
    assert "Uncaught" in told
    assert "dialog: 1" in told
    assert browser.ask(PICTURES)[0][0] == 0
    assert browser.ask("innerWidth") > PHONE[0] or browser.ask(OUTSIDE)
    browser.open(tmp_path / "bad.html", size=(800, 600))
    assert browser.ask(OVERFLOW) > 0
    assert "wide" in browser.ask(OUTSIDE)[0]
    assert browser.ask(CONTRAST) < 2
