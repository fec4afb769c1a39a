"""Layouts and tables as people have them, each with what a user expects of it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from corpus import GOOD, HEIC, RED, Case, among_good, encoded, red
from image_folders import folder, picture


def _folders(*classes: str, count: int = 3) -> Callable[[Path], object]:
    return lambda root: folder(root, dict.fromkeys(classes, count))


def _labels(*classes: str, count: int = 3) -> dict[str, str]:
    """What class folders say: the last name, or the first of `name=class`."""
    found = {}
    for name in classes:
        path, given, label = name.partition("=")
        found |= {f"{path}/{number:03d}.png": label if given else path.split("/")[-1] for number in range(count)}
    return found


def layout(name: str, *classes: str, said: tuple[str, ...] = (), places: Mapping[str, str] | None = None) -> Case:
    """Folders of images: `path`, of the class of its last name, or `path=class`; places: by the path's first name."""
    labels = _labels(*classes)
    placed = {path: place for path in labels for first, place in (places or {}).items() if path.startswith(f"{first}/")}
    return Case(name, _folders(*(one.partition("=")[0] for one in classes)), labels, placed, said=said)


def refused(name: str, line: str, *classes: str, said: tuple[str, ...] = ()) -> Case:
    return Case(name, _folders(*classes), refused=line, said=said)


PARTS = (
    ("train", "valid", "test"), ("Train", "Val", "Test"), ("TRAIN", "VALIDATION", "TEST"), ("training", "dev", "testing"),
    ("train_data", "val_data", "test_data"), ("training set", "validation set", "test set"),
    ("train-images", "val-images", "test-images"), ("images_train", "images_val", "images_test"),
    ("train2017", "val2017", "test2017"), ("train_224", "valid_224", "test_224"), ("01_train", "02_val", "03_test"),
    ("TrainingData", "ValidationData", "TestData"), ("Train Dataset", "Valid Dataset", "Test Dataset"), ("trn", "val", "tst"),
)  # fmt: skip
UNKNOWN_PARTS = (
    ("entrenamiento", "prueba"), ("treino", "teste"), ("entraînement", "évaluation"), ("训练集", "测试集"), ("学習", "検証"),
    ("обучение", "тест"), ("Trainieren", "Prüfen"), ("part1", "part2"), ("batch_1", "batch_2"), ("A", "B"),
)  # fmt: skip


def parts() -> Iterator[Case]:
    for names in PARTS:
        places = dict(zip(names, ("train", "val", "test"), strict=True))
        yield layout(f"parts {', '.join(names)}", *(f"{part}/{name}" for part in names for name in "xy"), places=places)
    for one, other in UNKNOWN_PARTS:
        line = ".*each of .* holds the folders x, y.*not clear which are the classes.*"
        yield refused(f"unknown parts {one}, {other}", line, f"{one}/x", f"{one}/y", f"{other}/x", f"{other}/y")
    line = r".*not clear which are the classes.*"
    yield refused(
        "unknown parts, one of fewer classes", line, *(f"entrenamiento/{c}" for c in "xyz"), "prueba/x", "prueba/y"
    )
    yield refused("unknown parts beside samples", line, "one/x", "one/y", "two/x", "two/y", "samples")
    yield refused(
        "train beside holdout", ".*train, which is read as a part.*beside holdout.*", "train/x", "train/y", "holdout/x"
    )
    yield refused("classes beside test", ".*test, which is read as a part.*beside x, y.*", "x", "y", "test")
    yield refused("parts inside the classes", ".*test.* inside the class.*", "x/train", "x/test", "y/train", "y/test")
    yield refused("a test inside one class", ".*test.* inside the class.*", "x/train", "x/test", "y/train")
    yield refused("classes in one folder", ".*at least two classes, but has images.*", "images/x", "images/y")
    yield refused("test alone", ".*test but no train.*", "test/x", "test/y")
    lie = "{} images? lies? directly in .*, in no class folder, and (is|are) left out"

    def flat(root: Path) -> None:
        folder(root, {"train/x": 3, "train/y": 3, "test": 4})

    yield Case("a test without classes", flat, _labels("train/x", "train/y"), said=(lie.format(4),))
    yield refused(
        "train and test without classes", "no images in .*", "train", "test", said=(lie.format(3), lie.format(3))
    )
    yield refused("train alone, without classes", ".*at least two classes, but has train.*", "train")
    yield layout("classes in unlabeled", "train/x", "train/y", "unlabeled/x=", places={"unlabeled": "unlabeled"})
    yield layout(
        "one part in two spellings", "train/x", "train/y", "Test/x", "test/y", places={"Test": "test", "test": "test"}
    )
    yield refused("a class only in test", ".*not in train: z.*", "train/x", "train/y", "test/x", "test/z")
    yield refused("masks beside images", line, "images/x", "images/y", "masks/x", "masks/y")
    yield layout(
        "train inside train", "train/train/x", "train/train/y", "test/test/x", places={"train": "train", "test": "test"}
    )
    yield layout(
        "labeled beside unlabeled",
        "labeled/x",
        "labeled/y",
        "unlabeled=",
        places={"labeled": "labeled", "unlabeled": "unlabeled"},
    )
    yield layout("classes beside unlabeled", "x", "y", "unlabeled=", places={"unlabeled": "unlabeled"})
    yield layout(
        "unlabelled", "train/x", "train/y", "Unlabelled Images=", places={"train": "train", "Unlabelled": "unlabeled"}
    )


def classes() -> Iterator[Case]:
    yield layout("two classes", "x", "y")
    yield layout("nested classes", "x/1/2=x", "x=x", "x/1=x", "y/deep/er=y")
    yield layout("classes of numbers", "0", "1", "10", "02")
    yield layout(
        "classes with spaces, dots and signs", "a b", "v1.0", "x.jpg", "-y", "ß", "\N{DOG FACE}", "a'b", 'c"d', "50%"
    )
    yield layout("classes named by devices of Windows", "CON", "nul", "aux.txt")
    yield layout("classes named by values", "nan", "None", "null", "True", "1e5")
    yield layout("a class of trains", "train", "bus")
    yield layout("classes named by words of the program", "labels", "results", "cache", "images", "bad")
    yield layout("classes of one letter in two alphabets", "a", "\u0430")
    yield layout("a common subfolder of the classes", "x/images=x", "y/images=y", "z")
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    yield Case("one name in two Unicode forms", _folders(nfc, nfd, "tea"), _labels(nfc, f"{nfd}={nfc}", "tea"))
    for one, other in (("Cat", "cat"), ("cat", "cat "), ("a b", "a  b"), ("straße", "STRASSE")):
        yield refused(f"{one!r} beside {other!r}", ".*differ only in upper case or spaces.*", one, other, "dog")
    yield refused("one class", ".*at least two classes, but has x.*", "x")
    yield refused("no folder", "no images in .*", said=())
    yield Case("an empty class", _empty, _labels("x", "y"), said=("no images in none .*",))
    one, asked = (
        among_good(lambda root: picture(root / "c" / "0.png")),
        ("only one image of c: is the name mistyped.*",),
    )
    yield Case("a class of one image", one, GOOD | {"c/0.png": "c"}, said=asked)
    many = [f"c{number:04d}" for number in range(1000)]
    yield Case("1,000 classes", _folders(*many, count=1), _labels(*many, count=1), slow=True)
    yield layout("classes whose names end lines and clear screens", "x\ny", "x\x1b[2Jz")
    yield layout("folders 40 deep", "/".join(["x", *"abcdefghijklmnopqrst" * 2]) + "=x", "y")


def _classes_by_links(*targets: str) -> Callable[[Path], object]:
    def make(root: Path) -> None:
        folder(root.parent / "real", dict.fromkeys(targets, 3))
        for name, target in zip("xy", targets, strict=True):
            (root / name).symlink_to(root.parent / "real" / target)

    return make


def _empty(root: Path) -> None:
    folder(root, {"x": 3, "y": 3})
    (root / "none").mkdir()


def _plus(*files: str) -> Callable[[Path], object]:
    """Twelve good images and these, each another picture where its name is that of one."""

    def make(root: Path) -> None:
        for file in files:
            if file.endswith(".png"):
                picture(root / file)
            else:
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                (root / file).write_text(file)

    return among_good(make)


def _own_folders(root: Path) -> None:
    folder(root, {"a": 6, "b": 6, "results/x/wrong": 2, "cache/0123": 2})
    (root / "results" / "x" / "commandline_args.txt").write_text("{}")
    (root / "cache" / "0123" / "bank.json").write_text("{}")


def _elsewhere(root: Path) -> None:
    folder(root.parent / "real", {"a": 6, "b": 6})
    root.rmdir()
    root.symlink_to(root.parent / "real")


def _same(*files: str) -> Callable[[Path], object]:
    return among_good(lambda root: [picture(root / file, RED) for file in files])


def _in_parts(*same: str) -> Callable[[Path], object]:
    def make(root: Path) -> None:
        folder(root, {"train/a": 3, "train/b": 3, "test/a": 2, "test/b": 2})
        for file in same:
            picture(root / file, RED)

    return make


def beside_the_classes() -> Iterator[Case]:
    lie = "{} images? lies? directly in .*, in no class folder, and (is|are) left out"
    others = "{} (file is|files are) of no kind that is read and (is|are) left out: {}"
    yield Case("loose images", _plus("x.png", "y.png"), GOOD, said=(lie.format(2),))
    yield Case("loose files", _plus("README.md", "labels.csv"), GOOD, said=(others.format(2, r"1 \.\w+, 1 \.\w+"),))
    yield Case(
        "loose files and some in classes", _plus("LICENSE", "a/x.txt", "b/x.txt"), GOOD,
        said=(others.format(3, r"2 \.txt, 1 no suffix"),),
    )  # fmt: skip
    yield Case(
        "a folder of papers", _plus("docs/x.pdf"), GOOD, said=("no images in docs .*", others.format(1, r"1 \.pdf"))
    )
    yield Case(
        "only loose images", lambda root: folder(root, {".": 5}), refused="no images in .*", said=(lie.format(5),)
    )
    trained = _labels("train/a", "train/b") | {f"test/{c}/{n:03d}.png": c for c in "ab" for n in range(2)}

    def loose_beside_parts(root: Path) -> None:
        _in_parts()(root)
        picture(root / "x.png")
        picture(root / "train" / "y.png")
        (root / "classes.txt").write_text("a\nb\n")
        (root / "train" / "_annotations.json").write_text("{}")

    yield Case(
        "loose files beside parts", loose_beside_parts, trained,
        said=(lie.format(1), lie.format(1), others.format(2, r"1 \.\w+, 1 \.\w+")),
    )  # fmt: skip
    yield Case("links as classes", _classes_by_links("one", "two"), _labels("x", "y"))
    yield Case(
        "two links to one class", _classes_by_links("one", "one"), refused=".*at least two classes, but has none.*",
        said=("3 images are filed under more than one class.*", "x, y: no usable image is left.*"),
    )  # fmt: skip

    def of_phones(root: Path) -> None:
        for name in "abcd":
            (root / name).mkdir()
            (root / name / "IMG_1.HEIC").write_bytes(HEIC + name.encode())

    yield Case(
        "nothing but HEIC", of_phones, refused="no images in .*",
        said=("no images in a, b, c, d under.*", "4 HEIC images .* pip install pi-heif.*"),
    )  # fmt: skip
    yield Case("the program's own folders", _own_folders, GOOD)
    yield Case("a link as the data set", _elsewhere, GOOD)
    yield Case(
        "hidden and system's folders",
        _plus("@eaDir/x.png", "__MACOSX/a/x.png", ".git/x.png", ".ipynb_checkpoints/x.png"),
        GOOD,
    )
    yield Case("hidden class", _plus(".c/x.png"), GOOD)
    yield Case(
        "the same bytes twice", _same("a/x.png", "a/y.png"), GOOD | {"a/x.png": "a"}, left_out={"a/y.png": "duplicate"},
        said=("1 of 14 images is a copy.*",),
    )  # fmt: skip
    yield Case(
        "the same bytes in two classes", _same("a/x.png", "b/x.png"), GOOD | {"a/x.png": ""}, left_out={"b/x.png": "conflict"},
        said=("1 image is filed under more than one class.*",),
    )  # fmt: skip
    yield Case(
        "the same bytes in train and test", _in_parts("train/a/x.png", "test/a/x.png"), trained | {"test/a/x.png": "a"},
        left_out={"train/a/x.png": "duplicate"}, said=("1 of 12 images is a copy.*",), places={"test/a/x.png": "test"},
    )  # fmt: skip
    yield Case(
        "the same bytes in train and in another class of test", _in_parts("train/a/x.png", "test/b/x.png"), trained,
        left_out={"train/a/x.png": "conflict", "test/b/x.png": "conflict"},
        said=("1 image is filed under more than one class.*",),
    )  # fmt: skip

    def all_broken(root: Path) -> None:
        folder(root, {"a": 6, "b": 6})
        (root / "c").mkdir()
        (root / "c" / "x.png").write_bytes(b"no")

    yield Case(
        "a class of bad files", all_broken, GOOD, left_out={"c/x.png": "not an image"},
        said=("1 of 13 files can't be decoded.*", "c: no usable image is left.*"),
    )  # fmt: skip


# --- tables -----------------------------------------------------------------------------------------------------------

SIX = [f"{name}/{number:03d}.png" for name in "ab" for number in range(3)]


def _table(content: str | bytes, *more: str) -> Callable[[Path], object]:
    """Six images, a table of them in t.csv, and more images."""

    def make(root: Path) -> None:
        folder(root, {"a": 3, "b": 3})
        for file in more:
            picture(root / file)
        text = content.replace("ROOT", str(root)) if isinstance(content, str) else content
        (root / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())

    return make


def csv(
    name: str,
    content: str | bytes,
    labels: Mapping[str, str] | None = None,
    *more: str,
    refused: str = "",
    **named: object,
) -> Case:
    """A table of labels; without labels those of the folders are expected."""
    found = {} if refused else {path: path[0] for path in SIX} if labels is None else labels
    return Case(name, _table(content, *more), found, refused=refused, options={"labels_csv": ("t.csv",)}, **named)  # type: ignore[arg-type]


def lines(header: str, *rows: str, end: str = "\n") -> str:
    """A table of the six images; a row is what is put behind each path, or all behind `{}`."""
    behind = rows or (",{}",)
    body = [(path + behind[0]).format(path[0]) for path in SIX]
    return end.join([header, *body, *behind[1:], ""])


def tables() -> Iterator[Case]:
    plain = lines("path,label")
    yield csv("table", plain)
    for name, text in {
        "semicolons": plain.replace(",", ";"),
        "tabs": plain.replace(",", "\t"),
        "bars": plain.replace(",", "|"),
        "CR and LF": lines("path,label", end="\r\n"),
        "CR alone": lines("path,label", end="\r"),
        "CR alone and semicolons in a label": lines("path,label", end="\r").replace("b/000.png,b", 'b/000.png,"b"'),
        "quotes": lines('"path","label"', ',"{}"'),
        "spaces": lines("path , label", " , {} "),
        "no last line end": plain.rstrip(),
        "empty lines": plain.replace("\n", "\n\n"),
        "lines of commas": plain + ",\n,,\n",
        "empty columns at the end": lines("path,label,,", ",{},,"),
        "empty columns under no name": lines("path,label", ",{},,"),
        "another column": lines("id,path,label,note").replace("a/", "7,a/").replace("b/", "7,b/"),
        "columns the other way round": "label,path\n" + "".join(f"{path[0]},{path}\n" for path in SIX),
        "rows twice": plain + "a/000.png,a\n",
        "a path in two spellings": plain + "./a/000.png,a\na//001.png,a\n",
        "absolute paths": "path,label\n" + "".join(f"ROOT/{path},{path[0]}\n" for path in SIX),
        "backslashes": plain.replace("/", "\\"),
        "names in upper case": lines("FILENAME,CLASS"),
        "Kaggle's names": lines("image_id,target"),
    }.items():
        yield csv(f"table with {name}", text)
    forms = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    text = plain.replace("0.png,a", f"0.png,{forms[0]}").replace(".png,a", f".png,{forms[1]}")
    yield csv(
        "table with a label in two Unicode forms", text, {path: "b" if path[0] == "b" else forms[0] for path in SIX}
    )
    for encoding in ("utf-8-sig", "utf-16", "utf-16-be-bom"):
        content = b"\xfe\xff" + plain.encode("utf-16-be") if encoding.endswith("bom") else plain.encode(encoding)
        yield csv(f"table in {encoding}", content)
    unlabeled = ["NaN", "nan", "None", "null", "<NA>", "NA", "N/A", "#N/A", "unlabeled", "Unlabelled"]
    for word in ("", *unlabeled):
        known = {path: path[0] for path in SIX} | {"a/000.png": ""}
        yield csv(f"table with the label {word!r}", plain.replace("a/000.png,a", f"a/000.png,{word}"), known)
    numbers = {path: str("ab".index(path[0])) for path in SIX}
    yield csv(
        "table with 0 and 0.0",
        lines("path,label").replace(",a", ",0").replace(",b", ",1.0").replace("1.png,0", "1.png,0.0"),
        numbers,
    )
    yield csv(
        "table with a row cut short",
        plain.replace("a/000.png,a", "a/000.png"),
        {p: p[0] for p in SIX} | {"a/000.png": ""},
    )
    yield csv(
        "table with a label of quotes",
        plain.replace("a\n", '"x, ""y"" \n z"\n'),
        {p: 'x, "y" \n z' if p[0] == "a" else "b" for p in SIX},
    )
    split = "path,label,split\n" + "".join(f"{path},{path[0]},{word}\n" for path, word in zip(
        SIX, ("Train", "valid", "TESTING", "training", "dev", "test_set"), strict=True))  # fmt: skip
    yield csv("table with splits", split, places=dict(zip(SIX, ("train", "val", "test") * 2, strict=True)))
    unsplit = split.replace("Train\n", "unlabeled\n").replace("training\n", "\n")
    yield csv("table with an unlabeled split", unsplit, refused=".*not in train: a.*")
    outside = "path,label\n" + "".join(f"{path},{path[0]}\n" for path in SIX) + "../out/x.png,a\n"
    yield csv("table with a path outside", outside, {p: p[0] for p in SIX} | {"../out/x.png": "a"}, "../out/x.png")
    few = "path,label\n" + "".join(f"{path},{path[0]}\n" for path in SIX if "002" not in path)
    in_classes = r"2 of these lie in folders named like classes, .*"
    named = {path: "" if "002" in path else path[0] for path in SIX}
    rest = {path: "unlabeled" for path in SIX if "002" in path}
    more = {path: "" for path in ("c/x.png", "y.png")}
    yield csv(
        "table of some images",
        few,
        named | more,
        *more,
        places=rest | dict.fromkeys(more, "unlabeled"),
        said=(in_classes,),
    )

    def with_others(root: Path) -> None:
        _table(few)(root)
        (root / "notes.txt").write_text("x")
        (root / "a" / "000.json").write_text("x")
        (root / "a" / ".hidden").write_text("x")

    others = r"2 files are of no kind that is read and are left out: 1 \.\w+, 1 \.\w+"
    yield Case(
        "table of some images beside other files", with_others, named,
        places=rest, said=(others, in_classes), options={"labels_csv": ("t.csv",)},
    )  # fmt: skip

    def through_a_link(root: Path) -> None:
        _table("path,label\n" + "".join(f"l{path},{path[0]}\n" for path in SIX))(root)
        (root / "la").symlink_to("a")
        (root / "lb").symlink_to("b")

    yield Case(
        "table that names links", through_a_link, {f"l{p}": p[0] for p in SIX}, options={"labels_csv": ("t.csv",)}
    )
    yield csv(
        "table with one row",
        "path,label\na/000.png,a\n",
        refused=".*at least two classes, but has a.*",
        said=(in_classes,),
    )
    for name, text, line in (
        ("no header", plain.partition("\n")[2], ".*must start with the line path,label.*"),
        ("unknown names", plain.replace("path,label", "picture,kind"), ".*must start with the line path,label.*"),
        ("two labels of a file", plain + "a/000.png,b\n", ".*row 8: a/000.png stands there twice.*"),
        ("two labels of a file in two spellings", plain + "./a/000.png,b\n", ".*a/000.png stands there twice.*"),
        ("an absolute path of another label", plain + "ROOT/a/000.png,b\n", ".*a/000.png stands there twice.*"),
        ("two labels of a file by way of ..", plain + "b/../a/000.png,b\n", ".*a/000.png stands there twice.*"),
        ("missing files", plain + "a/9.png,a\nc:\\x.png,b\n", r".*there is no file 'a/9.png', 'c:.*x.png'; .*"),
        ("a folder in a file's place", plain + "a,a\n", ".*there is no file 'a'.*"),
        ("a path of nothing", plain + ",a\n", ".*there is no file ''.*"),
        ("a header alone", "path,label\n", ".*no row.*"),
        ("nothing in it", "", ".*must start with the line path,label.*"),
        ("two columns of a name", plain.replace("path,label", "path,label,label"), ".*two columns 'label'.*"),
        ("more cells than names", plain + "a/000.png,a,b\n", ".*row 8 has 3 cells under 2 names.*"),
        ("an open quote", plain + '"a/000.png,a\n', ".*can't be read as a CSV table.*"),
        ("a cell of 200 KB", plain + "a/000.png," + "x" * 200_000 + "\n", ".*can't be read as a CSV table.*"),
        ("case twins", plain.replace("0.png,a", "0.png,A"), ".*'A' and 'a' differ only in upper case.*"),
        ("labels that are all empty", lines("path,label", ",", ), ".*at least two classes, but has none.*"),
        ("an unknown split", split.replace("Train\n", "later\n"), ".*the split 'later' is unknown.*"),
        ("a test image without a label", plain.replace("label", "label,split") + "a/000.png,,test\n", ".*needs a label.*"),
    ):  # fmt: skip
        yield csv(f"table with {name}", text, refused=line)
    for name, content in {
        "in Latin-1": plain.replace(",a", ",é").encode("latin-1"),
        "in UTF-16 without its mark": plain.encode("utf-16-le"),
        "that is a picture": encoded(red(), "PNG"),
        "of zeros": bytes(999),
    }.items():
        yield csv(f"table {name}", content, refused=".*t.csv (can't be read as a CSV table|must start with).*")
    yield Case(
        "table that is not there",
        _folders("a", "b"),
        refused="there is no table t.csv.*",
        options={"labels_csv": ("t.csv",)},
    )
    yield Case(
        "table that is a folder", _folders("a", "b", "t.csv"), refused=".*t.csv.*", options={"labels_csv": ("t.csv",)}
    )


LAYOUTS = [*parts(), *classes(), *beside_the_classes(), *tables()]
