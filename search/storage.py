"""Where a search keeps its trials: opening it, which process runs a trial, and what becomes of trials of dead ones.

A journal file is the default: one file, no server. It has no heartbeat, so every trial names its host and process. Any
database that Optuna supports will do as well; there a heartbeat shows which trials are alive, on whatever machine.

Private names of Optuna are used in this file only, in `mark_failed`.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import json
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from ..base.files import claimed
from ..base.written_files import note, noted_in
from ..utils import UserError, hidden, key, warn, without_password

if TYPE_CHECKING:
    from optuna import Study

JOURNAL = "study.journal"
LOCK_SECONDS = 10  # an append takes milliseconds; a lock that is held for so long belongs to a process that was killed
HEARTBEAT_SECONDS, SILENT_SECONDS = 10, 60
OWNERLESS_SECONDS = 60.0  # a trial names its owner moments after it begins, unless its process was killed
MOST_RETRIES = 3  # values that kill their process every time are not tried for ever
DIED, INTERRUPTED = "its process died", "interrupted"
LOST = (DIED, INTERRUPTED)  # reasons that are no fault of the values: they are tried once more

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


# --- opening ----------------------------------------------------------------------------------------------------------


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """The database at `url`, or without one the journal in `folder`. Raises UserError where it can't be opened."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # each trial is reported by its reason, not by a traceback
    if url is None:
        return open_journal(folder / JOURNAL)
    url = with_driver(url)
    settings: dict[str, Any] = {"pool_pre_ping": True}  # a server may close a connection during a long trial
    if url.startswith("sqlite"):
        settings["connect_args"] = {"timeout": 60}  # seconds to wait for another worker's lock
    for attempt in range(5):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the heartbeat is marked experimental
                return RDBStorage(
                    url,
                    engine_kwargs=settings,
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=SILENT_SECONDS,
                    heartbeat_stale_trial_callback=try_again,
                )
        except ModuleNotFoundError as error:
            raise UserError(f"--storage {without_password(url)} needs a package: pip install {error.name}") from error
        except Exception as error:  # every driver has errors of its own
            # Of two machines that make the tables at the same moment, one fails once.
            clash = any(word in str(error).lower() for word in ("exist", "duplicate", "unique", "locked"))
            if attempt == 4 or not clash:
                raise UserError(f"--storage {without_password(url)} can't be opened: {_reason(error)}") from error
            time.sleep(0.2 * 2**attempt)
    raise AssertionError


def _reason(error: Exception) -> str:
    """The first line of what a driver says, and what to do about a password that a search was resumed without."""
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    return hidden(reason) + "; no file keeps a password: give --storage with it" * ("password" in reason)


def with_driver(url: str) -> str:
    """The URL with the PostgreSQL driver that is installed, where it names none."""
    scheme, separator, rest = url.partition("://")
    if scheme in ("postgresql", "postgres") and importlib.util.find_spec("psycopg") is not None:
        scheme = "postgresql+psycopg"
    return scheme + separator + rest


class MendingLock(JournalFileSymlinkLock):
    """Optuna's lock of a journal; its holder first cuts off an incomplete line left by a dead process or a full disk.

    A record appended to such a line would make the whole study unreadable. The path must be absolute: the lock is a
    link to the journal, and one whose target does not exist is never found to be stale, so all would wait for ever.
    """

    def __init__(self, path: Path) -> None:
        assert path.is_absolute()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().__init__(str(path), grace_period=LOCK_SECONDS)
        self.path = path

    def acquire(self) -> bool:
        """Wait for the lock, then mend the journal."""
        acquired = super().acquire()
        cut_torn_line(self.path)
        return acquired

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Journal(JournalFileBackend):
    """Optuna's journal file, but synced to the disk only when a trial ends, with all that was written before.

    Optuna syncs after each value of each trial, which on a busy disk took longer than the training of a head. A process
    that is killed loses nothing that it wrote either way.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, MendingLock(path)
        super().__init__(str(path), lock_obj=self.lock)
        with self.lock:  # mends it
            pass

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add records, whole lines at once."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self.lock, self.path.open("ab") as file:
            file.write(lines.encode())
            file.flush()
            if any("state" in log for log in logs):
                os.fsync(file.fileno())


def open_journal(path: Path) -> JournalStorage:
    """The journal file, mended if need be. Raises UserError when it is damaged elsewhere than at its end."""
    path = path.resolve()
    if noted_in(path.parent).get(path.name) is False:
        warn(f"{path} is gone, and its trials with it: the search begins again")
    note(path, grows=True)
    try:
        return JournalStorage(Journal(path))
    except OSError as error:
        raise UserError(f"the study {path} can't be opened: {error.strerror}; give another --name") from error
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise UserError(f"the study {path} is damaged ({error}); start again under another --name") from error


def cut_torn_line(path: Path) -> None:
    """Cut off what follows the last line end; the caller holds the lock."""
    with path.open("rb+") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 4096)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())


# --- which process runs a trial ---------------------------------------------------------------------------------------


def owner() -> dict[str, Any]:
    """This process, as a trial records it; a later process of the same number has another start."""
    return {"host": socket.gethostname(), "process": os.getpid(), "started": _started(os.getpid())}


def _started(process: int) -> int | None:
    """When a process began, in the system's ticks; None where the system does not say, or the process has ended."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else int(fields[18])
    return None


def is_dead(trial: FrozenTrial) -> bool:
    """Whether a running trial's process is known to be gone; of another host's processes nothing is known."""
    of_trial = trial.user_attrs.get("owner")
    if of_trial is None:
        began = trial.datetime_start or datetime.datetime.now()
        return (datetime.datetime.now() - began).total_seconds() > OWNERLESS_SECONDS
    if of_trial["host"] != socket.gethostname():
        return False
    try:
        os.kill(of_trial["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return of_trial["started"] is not None and _started(of_trial["process"]) != of_trial["started"]


# --- trials of dead processes -----------------------------------------------------------------------------------------


def mend(study: Study) -> None:
    """Mark the trials of dead processes failed, and enqueue their values once more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optuna.storages.fail_stale_trials(study)  # by their heartbeat, where there is one
        fail_dead_trials(study)
        retry_lost_trials(study)


def fail_dead_trials(study: Study) -> None:
    """Mark the running trials of this host's dead processes failed; see also `retry_lost_trials`."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if is_dead(trial):
            # Another process may do the same at this moment; then it is done.
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                mark_failed(study, trial, DIED)


def mark_failed(study: Study, trial: FrozenTrial, reason: str) -> None:
    """Record that a trial of another process has failed, and why. Raises UpdateFinishedTrialError where it has ended.

    Optuna has no public way to give a trial of another process an attribute, so this uses `Study._storage` and
    `FrozenTrial._trial_id`. Without them the trials of dead processes would stay running, and never be tried again.
    """
    study._storage.set_trial_user_attr(trial._trial_id, "reason", reason)
    study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def retry_lost_trials(study: Study) -> None:
    """Enqueue once more the values of each trial that was lost on this host and has not been enqueued again."""
    with claimed(_retry_lock(study), wait=LOCK_SECONDS):  # of two supervisors here only one may enqueue them
        trials = study.get_trials(deepcopy=False)
        again = {trial.user_attrs.get("retry_of") for trial in trials}
        for trial in trials:
            here = trial.user_attrs.get("owner", {}).get("host") == socket.gethostname()
            # A trial whose heartbeat stopped has no reason: Optuna has called `try_again` itself.
            lost = trial.user_attrs.get("reason") in LOST
            if here and lost and trial.state == TrialState.FAIL and trial.number not in again:
                try_again(study, trial)


def _retry_lock(study: Study) -> Path:
    """A file that is the same for all processes of this host and user that work on a study of that name."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"mpl-{user}-{key(study.study_name):x}.lock"


def try_again(study: Study, trial: FrozenTrial) -> None:
    """Enqueue a lost trial's values once more. Optuna calls this too, for a trial whose heartbeat stopped."""
    values = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    retries = trial.user_attrs.get("retries", 0)
    if values and retries < MOST_RETRIES:
        kept = {"first": True} if trial.user_attrs.get("first") else {}
        study.enqueue_trial(values, user_attrs={**kept, "retry_of": trial.number, "retries": retries + 1})


# --- trials that count ------------------------------------------------------------------------------------------------


def is_lost(trial: FrozenTrial) -> bool:
    """Whether a trial ended by no fault of its values."""
    silent = "reason" not in trial.user_attrs  # failed because its heartbeat stopped
    return trial.state == TrialState.FAIL and (silent or trial.user_attrs["reason"] in LOST)


def finished(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count: complete, pruned, failed by a fault of their values, or lost too often to be retried."""
    return [
        trial
        for trial in trials
        if trial.state in FINISHED and (not is_lost(trial) or trial.user_attrs.get("retries", 0) >= MOST_RETRIES)
    ]


def best_of(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """The best complete trial, the earliest of equals."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return max(complete, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)


# --- faults -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def storage_errors(url: str | None) -> Iterator[None]:
    """Inside, a fault of the open storage becomes a UserError of one line."""
    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        where = "the study's journal" if url is None else f"--storage {without_password(url)}"
        raise UserError(f"{where} failed: {hidden(str(error).splitlines()[0])}; --resume goes on") from error
