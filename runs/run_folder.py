"""The folder of a run: made, found again, and removed only where it is one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from ..base.files import PART, claimed, read_json, remove_parts, write_json
from ..base.folder_walk import files_below
from ..base.tables import number_of
from ..base.written_files import LIST, OPTIONS, RESULTS, begin_list, forget, is_as_written, note, written_in
from ..train import TrainingFault
from ..utils import RUN_LOG, UserError, say, until_end, warn

Record = Callable[[str], Mapping[str, Any]]
CLAIM_SECONDS = 10.0  # a killed command's processes may live a little longer than itself


def run_folder(
    name: str, record: Record, *, resume: bool = False, overwrite: bool = False, shared: bool = False
) -> Path:
    """Make `results/<name>`, or `<name>-2`, `-3`, ... beside an existing one; with `resume`, find exactly that name.

    With `overwrite`, what an earlier command wrote there is removed first. Until the command ends, no other one gets
    the folder, unless it is to be `shared`. Raises UserError.

    record: gives all options by the folder's name; they are written there before anybody else may enter it.
    """
    if resume:
        folder = resumed_folder(name)
        if not shared:
            until_end(claim(folder))
        remove_parts(folder)
        if not (folder / LIST).is_file():
            begin_list(folder)  # what is there is noted as it is written again
        write_json(folder / OPTIONS, record(name))
        return folder
    if os.path.lexists(RESULTS) and not RESULTS.is_dir():
        raise UserError(f"{RESULTS} is a file, or a link to a place that is not there; move it, or mount its disk")
    with contextlib.ExitStack() as stack:
        folder = _made(name, stack, overwrite=overwrite)
        begin_list(folder)
        note(folder / RUN_LOG, grows=True)
        write_json(folder / OPTIONS, record(folder.name))
        if not shared:
            until_end(stack.pop_all())
    if folder.name != name:
        say(f"{RESULTS / name} is there already, so this is {folder}; --overwrite replaces the earlier one")
    return folder


def _made(name: str, stack: contextlib.ExitStack, *, overwrite: bool) -> Path:
    """A new folder of this name, or of the first number behind it that is free, claimed until the stack is closed."""
    for number in count(1):
        folder = RESULTS / (name if number == 1 else f"{name}-{number}")
        replaced = overwrite and number == 1 and os.path.lexists(folder)
        if not replaced and not _is_free(folder):
            continue
        try:
            stack.enter_context(claim(folder, wait=CLAIM_SECONDS if replaced else 0.0))
            remove_parts(folder)  # what killed writers left
            if replaced:
                remove_run(folder)
            if replaced or _is_free(folder):  # still, now that it is ours
                folder.mkdir(parents=True, exist_ok=folder.is_dir())
                return folder
        except (InUse, FileExistsError):
            if replaced:
                raise
        except OSError as error:
            reason = error.strerror
            raise UserError(f"can't make the run folder {folder} ({reason}); choose another --name") from error
        stack.close()
    raise AssertionError


def _is_free(folder: Path) -> bool:
    """Whether nothing is there, or only what a command leaves that was killed while it made the folder."""
    if not os.path.lexists(folder):
        return True
    if folder.is_symlink() or not folder.is_dir():
        return False
    return all(path.name == LIST or path.name.startswith(PART) for path in folder.iterdir())


def resumed_folder(name: str) -> Path:
    """The folder of the run that is to go on. Raises UserError where there is none."""
    folder = RESULTS / name
    if not (folder / OPTIONS).is_file():
        raise UserError(f"there is no run to resume in {folder}; leave out --resume to start it")
    return folder


class InUse(UserError):
    """Another command has the folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"another command writes into {folder} now; wait for its end, or give another --name")


@contextlib.contextmanager
def claim(folder: Path, wait: float = CLAIM_SECONDS) -> Iterator[None]:
    """Inside, no other process gets this folder for a command of its own. Raises InUse where one has it."""
    lock = folder.absolute().with_name(f".{folder.name}.lock")
    with claimed(lock, wait=wait) as ours:
        if ours is False:
            raise InUse(folder)
        yield


def removable(folder: Path) -> list[Path]:
    """The files in a command's folder that it wrote and that are there.

    Raises UserError where the folder is not one of a command, and where a person has edited a table in it.
    """
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        return []
    if folder.is_symlink() or not (folder / LIST).is_file():
        raise UserError(f"{folder} does not look like a run, so --overwrite leaves it alone; choose another --name")
    written = written_in(folder)
    there = {folder / name: digests for name, digests in written.items() if os.path.isfile(folder / name)}
    for file, digests in there.items():
        if not is_as_written(file, digests):
            raise UserError(f"{file} was edited since it was written; move it elsewhere, or choose another --name")
    return [*there]


def remove_run(folder: Path) -> None:
    """Delete what a command wrote into its folder and nothing else; what is left is named in a warning.

    Raises UserError as `removable` does.
    """
    files = removable(folder)
    for file in [*files, folder / LIST]:
        file.unlink(missing_ok=True)
    forget(folder)
    folders = {parent for file in files for parent in file.parents if folder in parent.parents} | {folder}
    for parent in sorted(folders, key=lambda path: -len(path.parts)):
        with contextlib.suppress(OSError):  # something else lies in it
            parent.rmdir()
    left = [found.path for found in files_below(folder)] if folder.is_dir() else []
    if left:
        warn(f"{folder} keeps {number_of(len(left), 'file')} that no run wrote: {', '.join(left[:3])}")


def check_overwrite(values: Mapping[str, Any]) -> None:
    """Raises UserError where --overwrite may not remove a run, or would remove what the command itself reads.

    values: of all options, by name.
    """
    if not values["overwrite"] or values["name"] is None or not os.path.lexists(RESULTS / values["name"]):
        return
    removable(RESULTS / values["name"])
    folder = (RESULTS / values["name"]).resolve()
    read = [("views", spec.partition("=")[2]) for spec in values["views"]]
    read += [("labels_csv", table) for table in values["labels_csv"]]
    read += [(name, values[name] or "") for name in ("data_dir", "config", "weights", "load_path")]
    for option, given in read:
        place = Path(given).expanduser().resolve()
        if given and (place == folder or folder in place.parents):
            raise UserError(f"--{option} {given} lies in {folder}, which --overwrite replaces; give another --name")


@contextlib.contextmanager
def going_on(folder: Path) -> Iterator[None]:
    """Inside, Ctrl-C ends with how the run in this folder goes on, and a fault with whether it can."""
    note(folder / RUN_LOG, grows=True)
    try:
        yield
    except TrainingFault as fault:
        if (folder / "checkpoints" / "last.pt").is_file() and "checkpoint" not in str(fault):
            raise TrainingFault(f"{fault} (the last good checkpoint is kept)") from fault
        raise
    except KeyboardInterrupt as stop:
        raise type(stop)(f"stopped; --name {folder.name} --resume goes on") from stop


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
        if os.path.isfile(folder / OPTIONS):
            raise UserError(_no_model(folder, load_path, wanted))
    raise UserError(f"--load_path {load_path}: no such run, folder or checkpoint; see the names in {RESULTS}/")


def _no_model(folder: Path, load_path: str, wanted: str) -> str:
    """Why there is no checkpoint in the folder of a run, and what to do."""
    if os.path.isfile(folder / "journal.json"):
        return f"{folder} is a comparison and keeps no models; train the method that it names"
    for seed in sorted(folder.glob("seed-*")):
        return f"{folder} holds a run for each seed; give one of them: --load_path {load_path}/{seed.name}"
    asked = read_json(folder / OPTIONS, {str: object})
    if asked.get("optuna_mode"):
        return f"{folder} is a search and keeps no models; train what it found, by --config {folder}/best_args.json"
    if asked.get("inspect") or asked.get("view_report"):
        return f"{folder} is a report and keeps no models; give a run that was trained"
    last = folder / "checkpoints" / "last.pt"
    hint = f", or take the last one by --load_path {last}" if wanted == "best.pt" and last.is_file() else ""
    return f"the run {folder} has no {wanted} yet; go on with --resume{hint}"
