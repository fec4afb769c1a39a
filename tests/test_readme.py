"""The README says what the program does: its options, its commands and its links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from transfermpl import args

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_table_of_options_is_made_from_args() -> None:
    assert args.readme_table().strip() in README, (
        'paste the output of python -c "import args; print(args.readme_table())"'
    )


def commands() -> list[str]:
    blocks = re.findall(r"```\n(.*?)```", README, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.startswith("python MPL.py")]


@pytest.mark.parametrize("command", commands())
def test_every_command_is_understood(command: str) -> None:
    words = shlex.split(command)[2:]
    if "--config" in words:  # of a file that a search is still to write
        del words[words.index("--config") : words.index("--config") + 2]
    assert args.parse(words)


def test_what_the_readme_links_to_is_there() -> None:
    root = Path(__file__).parents[1]
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert all((root / link).exists() for link in links)
