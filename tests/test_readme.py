"""The README and docs/ say what the program does: their commands are understood, and what they link to is there."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from transfermpl import args

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
MOST_BYTES = 9_000  # of the README: what needs more goes into a page of docs/


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands(page: Path) -> list[str]:
    """The command lines in a page's blocks, without comments."""
    blocks = re.findall(r"```\n(.*?)```", text_of(page), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.startswith(("python MPL.py", "transfermpl "))]


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    lines = re.findall(r"^#+ (.*)$", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def words(command: str) -> list[str]:
    found = shlex.split(command.removeprefix("python MPL.py").removeprefix("transfermpl "))
    if "--config" in found:  # of a file that a search is still to write
        del found[found.index("--config") : found.index("--config") + 2]
    return found


@pytest.mark.parametrize(("page", "command"), [(page.name, c) for page in PAGES for c in commands(page)])
def test_every_command_is_understood(page: str, command: str) -> None:
    assert args.parse(words(command))


def test_the_readme_has_commands() -> None:
    assert len(commands(README)) >= 4


def test_the_readme_is_short() -> None:
    assert README.stat().st_size <= MOST_BYTES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)) if "://" not in link]
    for link in links:
        place, _, heading = link.partition("#")
        target = page.parent / place if place else page
        assert target.exists(), link
        assert not heading or heading in headings(target), link


def test_each_page_can_be_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[^)#\s]+\.md)", text_of(README)))
    assert linked == {f"docs/{page.name}" for page in PAGES[1:]}


def test_figures_of_the_readme_stand_nowhere_else() -> None:
    rows = re.findall(r"^\|.*95% interval.*\n.*\n((?:\|.*\n)+)", text_of(README), flags=re.MULTILINE)
    gains = re.findall(r"\+\d\.\d \([^)]*\)", "".join(rows))
    assert len(gains) >= 3
    elsewhere = [row for page in PAGES[1:] for row in text_of(page).splitlines() if "43 labels" in row or "|" in row]
    for gain in gains:
        assert not [row for row in elsewhere if "ensemble" in row and gain in row], gain


def names_in(file: Path) -> set[str]:
    """What a module defines: functions, classes with their methods, and constants."""
    found = set()
    for node in ast.walk(ast.parse(text_of(file))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


@pytest.mark.parametrize("page", ["architecture.md", "how_it_learns.md"])
def test_the_files_and_functions_that_a_page_names_are_there(page: str) -> None:
    text = text_of(ROOT / "docs" / page)
    files = set(re.findall(r"`((?:\w+/)*\w+\.(?:py|svg))\b", text))
    assert len(files) >= 5
    assert not [file for file in files if not (ROOT / file).exists()]
    # As `folder/file.py: name`, `name` (`folder/file.py`) and module.name, the last also without backticks.
    named = set(re.findall(r"`((?:\w+/)*\w+\.py): (\w+)`", text))
    named |= {(file, name) for name, file in re.findall(r"`(\w+)` \(`((?:\w+/)*\w+\.py)`\)", text)}
    named |= {(f"{module}.py", name) for module, name in re.findall(r"\b(train|utils)\.(\w+)", text) if name != "py"}
    assert len(named) >= 10
    assert not [(file, name) for file, name in named if name not in names_in(ROOT / file)]


def test_the_functions_of_cotraining_that_the_derivation_names_are_there() -> None:
    text = text_of(ROOT / "docs" / "how_it_learns.md")
    block = text[text.index("    z_j ") : text.index("| f_j, z_j")]
    named = set(re.findall(r" {4}(\w+)$", block, flags=re.MULTILINE))
    assert len(named) >= 5
    assert named <= names_in(ROOT / "algorithms" / "cotraining_steps.py")
