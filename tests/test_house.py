"""The house as docs/architecture.md describes it: who imports from whom, and that nothing grows out of its room."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from draw_house import API, FLOOR, ROOT, all_imports, draw, group_of, imports_of, modules, tree_of

CLASS_LINES, FUNCTION_LINES = 250, 60
OPTIONS_PLACES, OPTIONS_FILES = 20, 8
# What does not hold yet. A line that is mended goes; none is added.
KNOWN_VIOLATIONS: set[str] = set()


def wrong_imports() -> Iterator[str]:
    """Imports of what stands on no lower floor, and in no folder of one's own."""
    for one in all_imports():
        source, target = group_of(one.source), group_of(one.target)
        if source != target and FLOOR[target] >= FLOOR[source]:
            yield f"{one.source} imports {one.target}"


def circles() -> Iterator[str]:
    """Modules that need each other; what is imported inside a function counts, for type checkers alone not."""
    targets: dict[str, set[str]] = {module: set() for module in modules()}
    for one in all_imports():
        if not one.types_only:
            targets[one.source].add(one.target)
    reached = {module: reachable(module, targets) for module in targets}
    for module in targets:
        circle = sorted(other for other in reached[module] if module in reached[other])
        if circle and module == circle[0]:
            yield f"a circle of {', '.join(circle)}"


def reachable(start: str, targets: dict[str, set[str]]) -> set[str]:
    """All that a module imports, and what that imports, ..."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = targets.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def underscores() -> Iterator[str]:
    """Names with an underscore that belong to another module."""
    known = modules()
    defined = {module: private_names(path) for module, path in known.items()}
    for one in all_imports():
        if private(one.name or one.target.split(".")[-1]):
            yield f"{one.source} imports {one.name or one.target} of {one.target}"
    for module, path in known.items():
        foreign = set().union(*defined.values()) - defined[module]
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and node.attr in foreign:
                yield f"{module} uses {node.attr} of another module"


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(path: Path) -> set[str]:
    """The names with an underscore that a file defines: of functions, classes, variables and attributes."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return {name for name in found if private(name)}


def sizes() -> Iterator[str]:
    """Classes and functions that are too long."""
    for module, path in modules().items():
        for node in ast.walk(tree_of(path)):
            lines = getattr(node, "end_lineno", 0) - getattr(node, "lineno", 0) + 1
            if isinstance(node, ast.ClassDef) and lines > CLASS_LINES:
                yield f"the class {node.name} of {module} has over {CLASS_LINES} lines"
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and lines > FUNCTION_LINES:
                yield f"the function {node.name} of {module} has over {FUNCTION_LINES} lines"


def options_everywhere() -> Iterator[str]:
    """Functions take the options that they need, and few of them all."""
    places = {module: count for module, path in modules().items() if (count := options_in(tree_of(path)))}
    if sum(places.values()) > OPTIONS_PLACES or len(places) > OPTIONS_FILES:
        yield f"Options is an annotation in over {OPTIONS_PLACES} places or {OPTIONS_FILES} files"


def options_in(tree: ast.Module) -> int:
    """How often `Options` is what an argument, a result or a variable is said to be."""
    said = [
        annotation
        for node in ast.walk(tree)
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if annotation is not None
    ]
    names = [
        node for annotation in said for node in ast.walk(annotation) if isinstance(node, (ast.Name, ast.Attribute))
    ]
    return sum(getattr(node, "id", None) == "Options" or getattr(node, "attr", None) == "Options" for node in names)


CHECKS = (wrong_imports, circles, underscores, sizes, options_everywhere)


def test_the_rules_hold() -> None:
    found = {line for check in CHECKS for line in check()}
    assert not found - KNOWN_VIOLATIONS, "new: " + "; ".join(sorted(found - KNOWN_VIOLATIONS))
    assert not KNOWN_VIOLATIONS - found, "mended, leave it out: " + "; ".join(sorted(KNOWN_VIOLATIONS - found))


def test_every_group_has_a_floor_and_every_floor_its_groups() -> None:
    assert {group_of(module) for module in modules()} == set(FLOOR)
    assert API in modules()


def test_utils_imports_nothing_of_the_project() -> None:
    assert list(imports_of("utils", ROOT / "utils.py", modules())) == []


@pytest.mark.parametrize("name", ["mpl", "optuna", "inspect"])
def test_no_file_takes_the_name_of_a_library(name: str) -> None:
    """On a system that takes MPL.py and mpl.py for the same, and wherever the folder is on the path."""
    assert [path for path in modules().values() if path.stem == name] == []


def test_the_picture_is_of_these_imports() -> None:
    picture = (ROOT / "docs" / "house.svg").read_text(encoding="utf-8")
    assert picture == draw(), "run: python docs/draw_house.py"


# --- the checks themselves --------------------------------------------------------------------------------------------


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / (name.replace("__", "/", 1) + ".py" if not name.startswith("__") else name + ".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return root


def test_imports_are_read_wherever_they_stand(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        __init__="",
        utils="import os\n",
        base____init__="",
        base__files="from ..utils import say as tell\n",
        runs____init__="",
        runs__run=(
            "from typing import TYPE_CHECKING\nfrom .. import utils\nfrom transfermpl import __version__\n"
            "if TYPE_CHECKING:\n    from . import page\n"
            "def f():\n    from transfermpl.base.files import _hidden\n    import transfermpl.base.files\n"
        ),
        runs__page="from ..base import files\n",
    )
    found = {(one.source, one.target, one.name, one.types_only) for one in all_imports(root)}
    assert found == {
        ("base.files", "utils", "say", False),
        ("runs.run", "utils", None, False),
        ("runs.run", "runs.page", None, True),
        ("runs.run", "base.files", "_hidden", False),
        ("runs.run", "base.files", None, False),
        ("runs.page", "base.files", None, False),
    }
    assert sorted(modules(root)) == ["__init__", "base", "base.files", "runs", "runs.page", "runs.run", "utils"]


def test_a_circle_is_found_whatever_it_goes_through() -> None:
    targets = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert reachable("a", targets) == {"a", "b", "c"}
    assert reachable("d", targets) == {"a", "b", "c"}
    assert options_in(ast.parse("def f(a: Options, b: list[args.Options] | None) -> Options: ...")) == 3
