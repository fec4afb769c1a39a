"""A disk without room: one line that names the file, and a run that goes on when there is room again."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from runs import FROZEN, MOONS, make_data, run, same_run
from transfermpl import train
from transfermpl.base.files import atomic_file, write_text
from transfermpl.learning.checkpoint import save_checkpoint


@contextlib.contextmanager
def room(size: int) -> Iterator[None]:
    """Inside, no file can grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 1000, 4096, 10_000, 60_000])
def test_a_checkpoint_that_does_not_fit_names_its_file_and_keeps_the_last(tmp_path: Path, size: int) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"a": torch.zeros(10)})
    before = path.read_bytes()
    with room(size), pytest.raises(OSError, match="large|full") as raised:
        save_checkpoint(path, {"a": torch.zeros(30_000)})
    assert raised.value.filename == str(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_every_file_is_named_by_its_own_name(tmp_path: Path) -> None:
    with room(10), pytest.raises(OSError, match="large|full") as raised:
        write_text(tmp_path / "summary.json", "x" * 100)
    assert raised.value.filename == str(tmp_path / "summary.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(IsADirectoryError) as of_folder:
        write_text(tmp_path / "folder.json", "x")
    assert "folder.json" in str(of_folder.value)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), atomic_file(tmp_path / "file" / "x.csv"):
        pass


@pytest.mark.parametrize(
    "size", [2000, *(pytest.param(more, marks=pytest.mark.slow) for more in (0, 200, 8000, 20_000))]
)
@pytest.mark.parametrize("frozen", [False, True], ids=["moons", "bank"])
def test_a_run_on_a_full_disk_ends_in_one_line_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, frozen: bool
) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1.0)
    make_data(tmp_path / "d")
    line = ("--data_dir", tmp_path / "d", "--num_labels", 6, "--max_steps", 4, *FROZEN) if frozen else MOONS
    (tmp_path / "full").mkdir()
    (tmp_path / "whole").mkdir()
    with room(size):
        outcome = run("--name", "x", *line, cwd=tmp_path / "full")
    assert outcome.code in (1, 2), outcome.err
    assert len(outcome.complaint()) == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert "unexpected" not in outcome.err
    assert "results" in outcome.complaint()[0] or "cache" in outcome.complaint()[0]
    whole = run("--name", "x", *line, cwd=tmp_path / "whole")
    again = (outcome.folder() / "commandline_args.txt").is_file()
    resumed = run("--name", "x", *(["--resume"] if again else ["--overwrite", *line]), cwd=tmp_path / "full")
    assert resumed.code == 0, resumed.err
    assert same_run(whole, resumed)
