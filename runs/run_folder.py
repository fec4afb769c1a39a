"""The folder of a run: made, found again, and removed only where it is one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..base.files import read_json
from ..utils import UserError

RESULTS = Path("results")


def run_folder(name: str, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Make `results/<name>`, or `<name>-2`, `-3`, ... beside an existing one; with `resume`, find exactly that name."""
    folder = RESULTS / name
    if resume:
        if not (folder / "commandline_args.txt").is_file():
            raise UserError(f"there is no run to resume in {folder}; leave out --resume to start it")
        return folder
    if overwrite and folder.exists():
        remove_run(folder)
    number = 1
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
            folder = RESULTS / f"{name}-{number}"
        except OSError as error:
            reason = error.strerror
            raise UserError(f"can't make the run folder {folder} ({reason}); choose another --name") from error
        else:
            return folder


def remove_run(folder: Path) -> None:
    """Delete a run's folder, but never something that is not a run."""
    content = {entry.name for entry in folder.iterdir()} if folder.is_dir() and not folder.is_symlink() else None
    if content is None or (content and "commandline_args.txt" not in content):
        raise UserError(f"{folder} does not look like a run, so --overwrite leaves it alone; choose another --name")
    shutil.rmtree(folder)


@contextlib.contextmanager
def going_on(folder: Path) -> Iterator[None]:
    """Inside, Ctrl-C ends with how the run in this folder goes on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"stopped; --name {folder.name} --resume goes on") from stop


def find_checkpoint(load_path: str, *, best: bool) -> Path:
    """The checkpoint that `--load_path` means: a run's name, its folder, or the file itself.

    `/checkpoints/flowers/NAME`, the way the original project wrote it, also finds the run NAME.
    """
    given = Path(load_path).expanduser()
    if os.path.isfile(given):  # unlike Path.is_file, it takes a name that is too long for a plain no
        return given
    wanted = "best.pt" if best else "last.pt"
    folders = [RESULTS / load_path, given, RESULTS / given.name]
    for folder in folders:
        for candidate in (folder / "checkpoints" / wanted, folder / wanted):
            if os.path.isfile(candidate):
                return candidate
    for folder in folders:
        if os.path.isfile(folder / "commandline_args.txt"):
            raise UserError(_no_model(folder, load_path, wanted))
    raise UserError(f"--load_path {load_path}: no such run, folder or checkpoint; see the names in {RESULTS}/")


def _no_model(folder: Path, load_path: str, wanted: str) -> str:
    """Why there is no checkpoint in the folder of a run, and what to do."""
    if os.path.isfile(folder / "journal.json"):
        return f"{folder} is a comparison and keeps no models; train the method that it names"
    for seed in sorted(folder.glob("seed-*")):
        return f"{folder} holds a run for each seed; give one of them: --load_path {load_path}/{seed.name}"
    asked = read_json(folder / "commandline_args.txt")
    if asked.get("optuna_mode"):
        return f"{folder} is a search and keeps no models; train what it found, by --config {folder}/best_args.json"
    if asked.get("inspect") or asked.get("view_report"):
        return f"{folder} is a report and keeps no models; give a run that was trained"
    hint = "leave out --load_best to take the last one" if wanted == "best.pt" else "its training has not got that far"
    return f"the run {folder} has no {wanted} yet; {hint}, or go on with --resume"
