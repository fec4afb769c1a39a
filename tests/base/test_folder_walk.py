"""The one walk through folders: what is found, in which order, and where links lead."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from transfermpl.base.folder_walk import FoundFile, files_below, printable, visible_names


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def found(root: Path) -> list[str]:
    return [file.path for file in files_below(root)]


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a folder one that can't be listed, for every user."""
    scandir = os.scandir

    def close(folder: Path) -> None:
        def refuse(path: str | Path) -> object:
            if Path(path) == folder:
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)

    return close


def test_files_come_in_the_order_of_their_whole_paths(tmp_path: Path) -> None:
    paths = ["b/1", "a/2", "a.x", "a/1/z", "a/1.z", "c", "a-1", "a b/x", "B", "é/ü"]
    touch(tmp_path, *paths)
    assert found(tmp_path) == sorted(paths)
    assert [file.file for file in files_below(tmp_path)] == [str(tmp_path / path) for path in sorted(paths)]


def test_what_is_hidden_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, ".x", ".git/config", "a/.thumb/x", "__MACOSX/a/x", "a/__MACOSX/x", "a/x")
    assert found(tmp_path) == ["a/x"]


@pytest.mark.parametrize(
    "name", ["@eaDir/a.jpg/S.jpg", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN/x", ".ipynb_checkpoints/x", "lost+found/x"]
)
def test_what_a_system_puts_there_is_left_out(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a/x", name, f"a/{name}")
    assert found(tmp_path) == ["a/x"]


def test_folders_that_this_program_writes_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1", "results/exp/commandline_args.txt", "results/exp/graphs.png", "results/two/metrics.csv")
    touch(tmp_path, "cache/0f/bank.json", "cache/0f/x.block", "cat/mine/commandline_args.txt", "cat/mine/a.png")
    assert found(tmp_path) == ["cat/1", "results/two/metrics.csv"]
    touch(tmp_path, "results/two/commandline_args.txt")
    assert [*visible_names(tmp_path)] == ["cat/"]
    (tmp_path / "results" / "mine.png").touch()  # beside the runs lies something else
    assert found(tmp_path) == ["cat/1", "results/mine.png"]


def test_links_are_followed_once_each(tmp_path: Path) -> None:
    away = touch(tmp_path / "away", "1")
    root = touch(tmp_path / "root", "a/1", "z/1")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "later").symlink_to(root / "z")  # z is met in the root's own list, so it keeps its own path
    (root / "m").symlink_to(away)
    (root / "n").symlink_to(away)
    (root / "gone").symlink_to("nowhere")
    (root / "itself").symlink_to("itself")
    assert found(root) == ["a/1", "gone", "itself", "m/1", "z/1"]


def test_a_folder_that_can_not_be_listed_stands_for_its_files(tmp_path: Path, closed: Callable[[Path], None]) -> None:
    touch(tmp_path, "a/1", "b/1", "c/1")
    closed(tmp_path / "b")
    files = list(files_below(tmp_path))
    assert files[1] == FoundFile("b/", f"{tmp_path}/b/")
    assert [file.is_unlisted_folder for file in files] == [False, True, False]
    closed(tmp_path)
    with pytest.raises(PermissionError):
        next(files_below(tmp_path))


def test_what_is_no_text_can_be_written() -> None:
    assert printable("é/犬.png") == "é/犬.png"
    assert printable(os.fsdecode(b"a/\xff.png")) == "a/\\xff.png"
