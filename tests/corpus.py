"""Odd files as people have them, each with what a user expects of it; the layouts are in corpus_layouts.py.

An odd file lies beside twelve good images of two classes. A case says the class of every path that is used, why others
are left out, which warnings are given, or with which line the data set is refused.
"""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, features

from image_folders import folder, noise

RED, BLUE, WHITE = (200, 60, 50), (40, 50, 210), (255, 255, 255)
GOOD = {f"{name}/{number:03d}.png": name for name in "ab" for number in range(6)}


@dataclass(frozen=True)
class Case:
    """A data set and what is expected of it.

    make: fills a folder. labels: the class of each path that is used, "" unknown; places: of those that have one.
    left_out: by path a pattern of the reason, as in bad_files.txt, or `duplicate` or `conflict`. said: a pattern for
    each warning. refused: a pattern of the one line. colour: of the odd file, above and left of its middle.
    """

    name: str
    make: Callable[[Path], object]
    labels: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    refused: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    odd: str = ""
    colour: tuple[int, int, int] | None = None
    slow: bool = False


# --- an odd file beside good ones -------------------------------------------------------------------------------------


def _beside(make: Callable[[Path], object] | bytes, file: str) -> Callable[[Path], object]:
    def both(root: Path) -> None:
        folder(root, {"a": 6, "b": 6})
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_bytes(make) if isinstance(make, bytes) else make(root / file)

    return both


def used(name: str, make: Callable[[Path], object] | bytes, file: str, colour: tuple[int, int, int] | None) -> Case:
    return Case(name, _beside(make, file), GOOD | {file: "a"}, odd=file, colour=colour)


def bad(name: str, make: Callable[[Path], object] | bytes, file: str, reason: str) -> Case:
    said = r"1 of 13 files can't be decoded and is left out, the first: a/.*"
    return Case(name, _beside(make, file), GOOD, left_out={file: reason}, said=(said,), odd=file)


def counted(name: str, make: Callable[[Path], object] | bytes, file: str, kind: str) -> Case:
    said = f"1 file is of no kind that is read and is left out: 1 {kind}"
    return Case(name, _beside(make, file), GOOD, said=(said,), odd=file)


def ignored(name: str, make: Callable[[Path], object] | bytes, file: str) -> Case:
    return Case(name, _beside(make, file), GOOD, odd=file)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def red(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, RED).convert(mode)


def rough(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(noise(height, width, 3))


# --- cut off ----------------------------------------------------------------------------------------------------------

WRITTEN: dict[str, tuple[str, dict[str, object]]] = {
    "jpg": ("JPEG", {"quality": 90}),
    "progressive.jpg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "ppm": ("PPM", {}),
    "tga": ("TGA", {}),
    "rle.tga": ("TGA", {"compression": "tga_rle"}),
    "tif": ("TIFF", {}),
    "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}),
    "deflate.tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "webp": ("WEBP", {}),
    "lossless.webp": ("WEBP", {"lossless": True}),
    "jp2": ("JPEG2000", {}),
    "avif": ("AVIF", {}),
}


def cut_off() -> Iterator[Case]:
    for suffix, (kind, options) in WRITTEN.items():
        if kind == "AVIF" and not features.check("avif"):
            continue
        content = encoded(rough(), kind, **options)
        for percent in (5, 30, 60, 95):
            part = content[: len(content) * percent // 100]
            yield bad(f"{percent} % of a {suffix}", part, f"a/cut.{suffix}", ".+")


# --- kinds and names of files -----------------------------------------------------------------------------------------

HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Not Found</body></html>\n"
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>'
EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n"
    b"(/tmp/of-an-eps) (w) file closefile\n200 0 0 setrgbcolor 0 0 20 20 rectfill showpage\n%%EOF\n"
)
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj 2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\n%%EOF\n"
ZIP = b"PK\x05\x06" + bytes(18)
MP4 = b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(200)
MPEG = b"\0\0\1\xb3\x14\0\xf0\x13" + bytes(200)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
PSD = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(14) + bytes([200]) * 243
WMF = b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hH", 0, 0, 20, 20, 96) + bytes(6) + b"\1\0\t\0\0\3" + bytes(40)
HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(200)


def raw_photograph() -> bytes:
    """As cameras write them: a TIFF whose first picture is a small preview."""
    return encoded(red(size=(16, 12)), "TIFF", tiffinfo={271: "NIKON CORPORATION", 254: 1})


def kinds_of_files() -> Iterator[Case]:
    whole = {kind: encoded(red(), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "PPM")}
    for kind in whole:
        wrong = "png" if kind != "PNG" else "jpg"
        yield used(f"{kind} named .{wrong}", whole[kind], f"a/x.{wrong}", RED)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000"):
        yield used(f"{kind} without a suffix", whole[kind], "a/0f3a", RED)
    for suffix in ("JPG", "JPEG", "Jpe", "jfif", "jpg ", "jpg.1", "jpg_large", "jpg~", "txt"):
        yield used(f"JPEG named .{suffix}", whole["JPEG"], f"a/x.{suffix}", RED)
    yield used("big TIFF without a suffix", encoded(red(), "TIFF", big_tiff=True), "a/0f3a", RED)
    yield used("PSD named .jpg", PSD, "a/x.jpg", (200, 200, 200))
    yield bad("empty .jpg", b"", "a/x.jpg", "empty file")
    yield bad("one byte named .png", b"\x89", "a/x.png", "not an image")
    yield bad("zeros named .jpg", bytes(5000), "a/x.jpg", "not an image")
    yield bad("text named .png", b"hello\n", "a/x.png", "not an image")
    for name, content in (
        ("HTML", HTML), ("SVG", SVG), ("PDF", PDF), ("ZIP", ZIP), ("MP4", MP4), ("EPS", EPS), ("MPEG", MPEG),
        ("WMF", WMF), ("HDF5", HDF5),
    ):  # fmt: skip
        reason = {"EPS": "a program", "MPEG": ".+", "WMF": ".+", "HDF5": ".+"}.get(name, "not an image")
        yield bad(f"{name} named .jpg", content, "a/x.jpg", reason)
        yield counted(f"{name} named as what it is", content, f"a/x.{name.lower()}", rf"\.{name.lower()}")
    yield bad("HEIC named .jpg", HEIC, "a/x.jpg", "HEIC image; to read these: pip install pi-heif")
    yield Case(
        "HEIC", _beside(HEIC, "a/x.HEIC"), GOOD, said=(r"1 HEIC image .* pip install pi-heif.*",), odd="a/x.HEIC"
    )
    yield counted("PSD", PSD, "a/x.psd", r"\.psd")
    for suffix in ("nef", "DNG", "cr2", "arw"):
        yield counted(f"raw photograph .{suffix}", raw_photograph(), f"a/x.{suffix}", rf"\.{suffix.lower()}")
    yield counted("ICO", encoded(red(), "ICO"), "a/x.ico", r"\.ico")
    for suffix in ("xmp", "json", "txt", "xml", "csv", "aae"):
        yield counted(f"sidecar .{suffix}", b"{}", f"a/000.{suffix}", rf"\.{suffix}")
    yield counted("empty file without a suffix", b"", "a/x", "no suffix")
    yield counted("text without a suffix", b"hello\n", "a/README", "no suffix")
    for name in (".DS_Store", "._000.png", "Thumbs.db", "desktop.ini", "Icon\r"):
        yield ignored(f"{name!r} of a system", b"\0\5\x16\7", f"a/{name}")
    for name in ("@eaDir", "__MACOSX", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found"):
        yield ignored(f"folder {name}", whole["PNG"], f"a/{name}/x.png".replace("a/", "", 1))


# --- what is inside an image ------------------------------------------------------------------------------------------


def with_exif(orientation: int, size: int = 0) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    if size:
        exif[0x010E] = "x" * size
    return encoded(red(), "JPEG", exif=exif)


LETTERS = b"Exif\0\0II*\0\x08\0\0\0\1\0" + struct.pack("<HHI", 0x0112, 2, 4) + b"top\0" + bytes(4)


def turned(orientation: int) -> bytes:
    """Upright it is red above and blue below; stored as a camera held that way does."""
    upright = red(size=(32, 32))
    upright.paste(BLUE, (0, 16, 32, 32))
    undo = [None, 0, 3, 1, 5, 2, 6, 4][orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    return encoded(stored, "JPEG", exif=exif, quality=95, subsampling=0)


def ycck() -> bytes:
    """CMYK as Adobe's programs write it: inverted, its first three turned to YCbCr."""
    ink = Image.new("RGB", (40, 30), tuple(255 - value for value in RED)).convert("YCbCr")
    planes = [Image.eval(plane, lambda value: 255 - value) for plane in ink.split()]
    content = encoded(Image.merge("CMYK", [*planes, Image.new("L", (40, 30), 0)]), "JPEG", quality=95)
    marker = content.index(b"Adobe") + 11
    return content[:marker] + b"\2" + content[marker + 1 :]


def sized_jpeg(width: int, height: int) -> bytes:
    """A small JPEG whose header states another size."""
    content = encoded(red(), "JPEG")
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">HH", height, width) + content[place + 4 :]


def jpegs() -> Iterator[Case]:
    whole = encoded(red(), "JPEG")
    for name, content in {
        "grey JPEG": encoded(red("L"), "JPEG"),
        "16 KB of JPEG comment": encoded(red(), "JPEG", comment=b"x" * 16000),
    }.items():
        yield used(name, content, "a/x.jpg", None)
    for name, content in {
        "progressive JPEG": encoded(red(), "JPEG", progressive=True),
        "JPEG without subsampling": encoded(red(), "JPEG", subsampling=0),
        "CMYK JPEG": encoded(red("CMYK"), "JPEG", quality=95),
        "YCCK JPEG": ycck(),
        "JPEG with EXIF that is no EXIF": encoded(red(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        "JPEG with orientation 0": with_exif(0),
        "JPEG with orientation 9": with_exif(9),
        "JPEG with an orientation in letters": encoded(red(), "JPEG", exif=LETTERS),
        "JPEG with 60 KB of EXIF": with_exif(1, 60_000),
        "JPEG with garbage behind": whole + b"garbage" * 9999,
        "JPEG with zeros behind": whole + bytes(99_999),
        "JPEG with a web page behind": whole + HTML,
        "two JPEGs one after another": whole + encoded(Image.new("RGB", (40, 30), BLUE), "JPEG"),
        "JPEG with an ICC profile that is none": encoded(red(), "JPEG", icc_profile=b"no profile"),
        "MPO of two pictures": encoded(red(), "MPO", save_all=True, append_images=[Image.new("RGB", (40, 30), BLUE)]),
    }.items():
        yield used(name, content, "a/x.jpg", RED)
    for orientation in range(1, 9):
        yield used(f"JPEG with orientation {orientation}", turned(orientation), "a/x.jpg", RED)
    yield bad("JPEG that states 0 x 0", sized_jpeg(0, 0), "a/x.jpg", ".+")
    yield bad("JPEG that states 65,000 x 65,000", sized_jpeg(65000, 65000), "a/x.jpg", "pixels")
    # No decoder tells: the rows that are missing are grey.
    yield used("JPEG of 30 rows that states 60", sized_jpeg(40, 60), "a/x.jpg", RED)
    yield bad("JPEG without its first byte", whole[1:], "a/x.jpg", "not an image")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(size: tuple[int, int], depth: int, colour: int, rows: bytes, *more: bytes, interlaced: bool = False) -> bytes:
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlaced)
    body = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def interlaced_png() -> bytes:
    """Adam7: seven pictures of every eighth, fourth and second pixel."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b""
    for left, top, across, down in passes:
        width, height = len(range(left, 40, across)), len(range(top, 30, down))
        rows += (b"\0" + bytes(RED) * width) * height
    return png((40, 30), 8, 2, rows, interlaced=True)


def png_of_16_bits(colours: np.ndarray) -> bytes:
    """A PNG of [height, width, 3] 16-bit colours, which Pillow can read and not write."""
    height, width, _ = colours.shape
    return png((width, height), 16, 2, b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours))


def pngs() -> Iterator[Case]:
    plain = (b"\0" + bytes(RED) * 40) * 30
    palette = chunk(b"PLTE", bytes(WHITE + RED + BLUE + BLUE))
    wide = struct.pack(">3H", *(257 * value for value in RED))
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 200_000)
    blue = Image.new("RGB", (40, 30), BLUE)
    for name, content in {
        "PNG with a palette": encoded(red("P"), "PNG"),
        "PNG with a palette of 1 bit": png((40, 30), 1, 3, (b"\0" + b"\xff" * 5) * 30, palette),
        "PNG with a palette of 2 bits": png((40, 30), 2, 3, (b"\0" + b"\x55" * 10) * 30, palette),
        "PNG with a palette of 4 bits": png((40, 30), 4, 3, (b"\0" + b"\x11" * 20) * 30, palette),
        "PNG of 16 bits": png((40, 30), 16, 2, (b"\0" + wide * 40) * 30),
        "PNG of 16 bits with alpha": png((40, 30), 16, 6, (b"\0" + (wide + b"\xff\xff") * 40) * 30),
        "interlaced PNG": interlaced_png(),
        "APNG": encoded(red(), "PNG", save_all=True, append_images=[blue]),
        "PNG with gAMA": png((40, 30), 8, 2, plain, chunk(b"gAMA", struct.pack(">I", 45455))),
        "PNG with iCCP that is no profile": png((40, 30), 8, 2, plain, chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no"))),
        "PNG with a long text": encoded(red(), "PNG", pnginfo=text),
        "PNG with an unknown chunk": png((40, 30), 8, 2, plain, chunk(b"teSt", b"x" * 100)),
        "PNG with garbage behind": png((40, 30), 8, 2, plain) + b"garbage" * 999,
        "PNG without its end": png((40, 30), 8, 2, plain)[:-12],
    }.items():
        yield used(name, content, "a/x.png", RED)
    yield used("transparent PNG", encoded(Image.new("RGBA", (40, 30), (*BLUE, 0)), "PNG"), "a/x.png", WHITE)
    clear = png((40, 30), 2, 3, (b"\0" + b"\xaa" * 10) * 30, palette, chunk(b"tRNS", b"\xff\xff\0"))
    yield used("PNG with a transparent palette", clear, "a/x.png", WHITE)
    key = chunk(b"tRNS", struct.pack(">3H", *RED))
    yield used("PNG with a transparent colour", png((40, 30), 8, 2, plain, key), "a/x.png", WHITE)
    yield used("PNG of 1 bit", png((40, 30), 1, 0, (b"\0" + b"\xff" * 5) * 30), "a/x.png", WHITE)
    yield used("PNG of 2 bits", png((40, 30), 2, 0, (b"\0" + b"\xaa" * 10) * 30), "a/x.png", (170, 170, 170))
    yield used("PNG of 1 x 1", encoded(red(size=(1, 1)), "PNG"), "a/x.png", RED)
    yield used("PNG of 1 x 5,000", encoded(red(size=(1, 5000)), "PNG"), "a/x.png", RED)
    yield used("PNG of 20,000 x 1", encoded(red(size=(20000, 1)), "PNG"), "a/x.png", RED)
    text_chunk = chunk(b"tEXt", b"a\0b")[:-4] + bytes(4)
    yield bad("PNG with a broken text", png((40, 30), 8, 2, plain, text_chunk), "a/x.png", ".+")
    whole = png((40, 30), 8, 2, plain)
    place = whole.index(b"IDAT") + 8
    broken = whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]
    yield bad("PNG with a broken checksum", broken, "a/x.png", ".+")
    yield bad("PNG that states 60,000 x 60,000", png((60000, 60000), 8, 2, plain), "a/x.png", "pixels")
    yield bad("PNG that states 9,900 x 9,900", png((9900, 9900), 8, 2, plain), "a/x.png", "too large")
    yield bad("PNG that states 0 x 5", png((0, 5), 8, 2, plain), "a/x.png", ".+")
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000), 9))
    yield bad("PNG with 50 MB of text in 50 KB", png((40, 30), 8, 2, plain, bomb), "a/x.png", ".+")
    yield used("PNG whose rows are too few", png((40, 30), 8, 2, plain[: len(plain) // 2]), "a/x.png", RED)
    yield bad("PNG of a CR and LF less", whole.replace(b"\r\n", b"\n", 1), "a/x.png", "not an image")


def gifs_and_webps() -> Iterator[Case]:
    blue = Image.new("RGB", (40, 30), BLUE)
    clear = Image.new("P", (40, 30), 1)
    clear.putpalette([*RED, *BLUE])
    yield used("GIF of two frames", encoded(red(), "GIF", save_all=True, append_images=[blue]), "a/x.gif", RED)
    yield used("GIF of one frame", encoded(red(), "GIF"), "a/x.gif", RED)
    yield used("interlaced GIF", encoded(red("P"), "GIF", interlace=1), "a/x.gif", RED)
    yield used("transparent GIF", encoded(clear, "GIF", transparency=1), "a/x.gif", WHITE)
    # The cut begins in the last frame, so the first is whole.
    several = encoded(red(), "GIF", save_all=True, append_images=[rough(40, 30), rough(40, 30)])
    yield used("GIF whose last frame is cut off", several[: len(several) * 2 // 3], "a/x.gif", RED)
    yield used("WebP", encoded(red(), "WEBP"), "a/x.webp", RED)
    yield used("lossless WebP", encoded(red(), "WEBP", lossless=True), "a/x.webp", RED)
    two = encoded(red(), "WEBP", save_all=True, append_images=[blue], lossless=True)
    yield used("WebP of two frames", two, "a/x.webp", RED)
    half = Image.new("RGBA", (40, 30), (*BLUE, 0))
    yield used("transparent WebP", encoded(half, "WEBP", lossless=True, exact=True), "a/x.webp", WHITE)
    if features.check("avif"):
        yield used("AVIF", encoded(red(), "AVIF"), "a/x.avif", RED)
        yield used("AVIF named .jpg", encoded(red(), "AVIF"), "a/x.jpg", RED)
        yield used("AVIF without a suffix", encoded(red(), "AVIF"), "a/x", RED)
    yield used("JPEG 2000", encoded(red(), "JPEG2000"), "a/x.jp2", RED)
    yield used("PPM", encoded(red(), "PPM"), "a/x.ppm", RED)
    yield used("PPM in letters", b"P3\n# a comment\n2 2\n255\n" + b"200 60 50 " * 4, "a/x.ppm", RED)
    yield used("PGM", encoded(red("L"), "PPM"), "a/x.pgm", None)
    yield used("PBM in letters", b"P1\n2 2\n0 0\n0 0\n", "a/x.pbm", WHITE)
    yield used("TGA", encoded(red(), "TGA"), "a/x.tga", RED)
    yield used("TGA with runs", encoded(red(), "TGA", compression="tga_rle"), "a/x.tga", RED)


def bmp(width: int, height: int, bits: int, how: int, body: bytes, between: bytes = b"") -> bytes:
    start = 54 + len(between)
    header = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, how, len(body), 2835, 2835, 2 if bits <= 8 else 0, 0
    )
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + between + body


def bmps() -> Iterator[Case]:
    colours = bytes([*WHITE[::-1], 0, *RED[::-1], 0])
    runs = (bytes([40, 1]) + b"\0\0") * 30 + b"\0\1"
    five = struct.pack("<H", RED[0] >> 3 << 10 | RED[1] >> 3 << 5 | RED[2] >> 3)
    six = struct.pack("<H", RED[0] >> 3 << 11 | RED[1] >> 2 << 5 | RED[2] >> 3)
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    row = bytes(RED[::-1]) * 40
    core = struct.pack("<IHHHH", 12, 40, 30, 1, 24)
    for name, content in {
        "BMP": encoded(red(), "BMP"),
        "BMP with runs": bmp(40, 30, 8, 1, runs, colours),
        "BMP of 16 bits": bmp(40, 30, 16, 0, five * 1200),
        "BMP of 16 bits by masks": bmp(40, 30, 16, 3, six * 1200, masks),
        "BMP of 32 bits with an empty alpha": bmp(40, 30, 32, 0, (bytes(RED[::-1]) + b"\0") * 1200),
        "BMP from above": bmp(40, -30, 24, 0, row * 15 + bytes(BLUE[::-1]) * 600),
        "BMP from below": bmp(40, 30, 24, 0, bytes(BLUE[::-1]) * 600 + row * 15),
        "BMP of OS/2": b"BM" + struct.pack("<IHHI", 26 + 3600, 0, 0, 26) + core + row * 30,
    }.items():
        yield used(name, content, "a/x.bmp", tuple(value // 8 * 8 for value in RED) if "16" in name else RED)
    yield used("BMP of 1 bit", encoded(Image.new("1", (40, 30), 1), "BMP"), "a/x.bmp", WHITE)
    yield bad("BMP that states 50,000 x 50,000", bmp(50000, 50000, 24, 0, row), "a/x.bmp", "pixels")


def tiff(tags: dict[int, tuple[int, tuple[int, ...]]], body: bytes) -> bytes:
    """A TIFF of one picture. tags: by number the type (3: 16 bits, 4: 32 bits) and the values; the body is at 8."""
    entries, behind = b"", b""
    after = 8 + len(body) + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack("<" + ["_", "_", "_", "H", "I"][kind] * len(values), *values)
        place = struct.pack("<I", after + len(behind)) if len(packed) > 4 else packed.ljust(4, b"\0")
        behind += packed if len(packed) > 4 else b""
        entries += struct.pack("<HHI", tag, kind, len(values)) + place
    return (
        b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries + bytes(4) + behind
    )


def tiffs() -> Iterator[Case]:
    size = {256: (3, (32,)), 257: (3, (32,)), 259: (3, (1,))}
    rgb = size | {258: (3, (8, 8, 8)), 262: (3, (2,)), 277: (3, (3,))}
    tile = bytes(RED) * 256
    tiles = rgb | {322: (3, (16,)), 323: (3, (16,))}
    tiles |= {324: (4, tuple(8 + 768 * k for k in range(4))), 325: (4, (768,) * 4)}
    planes = b"".join(bytes([value]) * 1024 for value in RED)
    apart = rgb | {284: (3, (2,)), 273: (4, (8, 1032, 2056)), 279: (4, (1024,) * 3), 278: (3, (32,))}
    strip = {273: (4, (8,)), 278: (3, (32,))}
    wide = struct.pack("<3H", *(257 * value for value in RED)) * 1024
    deep = rgb | strip | {258: (3, (16, 16, 16)), 279: (4, (len(wide),))}
    white = size | strip | {258: (3, (8,)), 262: (3, (0,)), 277: (3, (1,)), 279: (4, (1024,))}
    blue = Image.new("RGB", (40, 30), BLUE)
    for name, content in {
        "TIFF of two pages": encoded(red(), "TIFF", save_all=True, append_images=[blue]),
        "TIFF in tiles": tiff(tiles, tile * 4),
        "TIFF in planes": tiff(apart, planes),
        "TIFF of 16 bits": tiff(deep, wide),
        "CMYK TIFF": encoded(red("CMYK"), "TIFF"),
        "LZW TIFF": encoded(red(), "TIFF", compression="tiff_lzw"),
        "deflated TIFF": encoded(red(), "TIFF", compression="tiff_adobe_deflate"),
        "TIFF with packed bits": encoded(red(), "TIFF", compression="packbits"),
        "JPEG in a TIFF": encoded(red(), "TIFF", compression="jpeg", quality=95),
        "big TIFF": encoded(red(), "TIFF", big_tiff=True),
        "TIFF with a palette": encoded(red("P"), "TIFF"),
        "TIFF with alpha": encoded(red("RGBA"), "TIFF"),
    }.items():
        yield used(name, content, "a/x.tif", RED)
    yield used("TIFF whose 0 is white", tiff(white, bytes(1024)), "a/x.tiff", WHITE)
    yield used("fax in a TIFF", encoded(Image.new("1", (40, 30), 1), "TIFF", compression="group4"), "a/x.tif", WHITE)
    hole = tiff(rgb | strip | {279: (4, (10**9,)), 273: (4, (10**6,))}, b"")
    yield bad("TIFF whose pixels are elsewhere", hole, "a/x.tif", ".+")
    loop = b"II*\0\x08\0\0\0" + b"\0\0" + b"\x08\0\0\0"
    yield bad("TIFF whose list leads to itself", loop, "a/x.tif", ".+")


# --- names, links and what is no file ---------------------------------------------------------------------------------


def among_good(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def both(root: Path) -> None:
        folder(root, {"a": 6, "b": 6})
        make(root)

    return both


def _socket(file: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    before = os.getcwd()
    try:
        os.chdir(file.parent)  # the name of a socket is short
        listener.bind(file.name)
    finally:
        os.chdir(before)
        listener.close()


def _sparse(file: Path) -> None:
    with file.open("wb") as stream:
        stream.write(encoded(red(), "PNG"))
        stream.truncate(5 * 2**30)


def _linked(target: str, link: str, *, hard: bool = False) -> Callable[[Path], object]:
    def make(root: Path) -> None:
        (root / link).hardlink_to(root / target) if hard else (root / link).symlink_to(target)

    return among_good(make)


def _dated(root: Path) -> None:
    folder(root, {"a": 6, "b": 6})
    folder(root, {"../more": 2})
    (root / "a" / "more").symlink_to(root.parent / "more")


def names_and_links() -> Iterator[Case]:
    content = encoded(red(), "PNG")
    names = {
        "a line feed": "x\ny.png", "a carriage return": "x\ry.png", "a tab": "x\ty.png", "quotes": "\"x', y\".png",
        "a leading dash": "-rf.png", "an emoji": "\N{CAT FACE}.png", "255 bytes": "x" * 251 + ".png",
        "a backslash": "x\\y.png", "percent signs": "%s%n%d.png", "braces": "{x}{0}.png", "an equals sign": "=1+1.png",
        "spaces at its ends": " x .png", "colons and stars": 'x:*?<>|".png', "a tilde": "~.png",
        "an escape sequence": "x\x1b[2Jy.png", "right-to-left signs": "x\u202egnp.png", "no text before its dot": "x.png",
        "two dots": "x..png", "a comma": "x,a,train.png", "a hash": "#x.png", "a dollar sign": "$HOME`id`.png",
    }  # fmt: skip
    for name, file in names.items():
        yield used(f"name with {name}", content, f"a/{file}", RED)

    for name in ("a line feed", "an escape sequence", "right-to-left signs"):
        yield bad(f"text named with {name}", b"no image", f"a/{names[name]}", "not an image")
        yield counted(f"suffix with {name}", b"no image", f"a/x.{names[name][:-4]}", ".+")

    def undecodable(root: Path) -> None:
        Path(os.fsdecode(os.fsencode(root) + b"/a/\xff\xfe.png")).write_bytes(content)

    yield Case(
        "name that is no text", among_good(undecodable), GOOD | {"a/\\xff\\xfe.png": "a"}, odd="a/\\xff\\xfe.png"
    )
    copies = r"1 of 13 images is a copy of another one.*"
    yield Case(
        "hard link", _linked("a/000.png", "a/x.png", hard=True), GOOD, left_out={"a/x.png": "duplicate"}, said=(copies,)
    )
    yield Case(
        "link beside its file", _linked("000.png", "a/x.png"), GOOD, left_out={"a/x.png": "duplicate"}, said=(copies,)
    )
    yield Case(
        "link to a file of another class", _linked("../b/000.png", "a/x.png"),
        {path: name for path, name in GOOD.items() if path != "b/000.png"} | {"a/x.png": ""},
        left_out={"b/000.png": "conflict"}, said=(r"1 image is filed under more than one class.*",),
    )  # fmt: skip
    yield Case("link to a folder elsewhere", _dated, GOOD | {"a/more/000.png": "a", "a/more/001.png": "a"})
    for name, target in {"itself": ".", "the data set": "..", "another class": "../b"}.items():
        yield Case(f"link to {name}", _linked(target, "a/x"), GOOD)

    def bad_link(target: str) -> Callable[[Path], object]:
        return lambda file: file.symlink_to(target)

    yield bad("dead link", bad_link("nothing.png"), "a/x.png", "no such file")
    yield bad("link that leads to itself", bad_link("x.png"), "a/x.png", "too many levels")
    yield bad("link to /dev/zero", bad_link("/dev/zero"), "a/x.png", "not a file")
    yield bad("link to /dev/random", bad_link("/dev/random"), "a/x.jpg", "not a file")
    yield bad("link to /proc/self/mem", bad_link("/proc/self/mem"), "a/x.jpg", "empty file|not a file")
    yield bad("pipe named .png", os.mkfifo, "a/x.png", "not a file")
    yield counted("pipe", os.mkfifo, "a/x", "no suffix")
    yield counted("socket", _socket, "a/x.sock", r"\.sock")
    yield bad("socket named .png", _socket, "a/x.png", "not a file")
    yield counted("dead link without a suffix", bad_link("nothing"), "a/x", "no suffix")
    yield bad("image of 5 GB", _sparse, "a/x.png", "5.0 GiB")
    yield bad("image of 5 GB without a suffix", _sparse, "a/x", "5.0 GiB")

    def in_folder(root: Path) -> None:
        folder(root, {"a/x.jpg": 2, "a/empty.jpg": 0})
        (root / "b" / "empty.png").mkdir()

    yield Case(
        "folders named as images", among_good(in_folder), GOOD | {"a/x.jpg/000.png": "a", "a/x.jpg/001.png": "a"}
    )


ODD_FILES = [
    *cut_off(), *kinds_of_files(), *jpegs(), *pngs(), *gifs_and_webps(), *bmps(), *tiffs(), *names_and_links(),
]  # fmt: skip
