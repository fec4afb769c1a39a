"""Files on disk: written whole or not at all, locked between processes, read with errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import socket
import tempfile
import time
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import IO, Any

from ..utils import UserError
from .fields import fault
from .options import FORBIDDEN, is_reserved
from .written_files import note

PART = ".part-"  # how the name of a file begins while it is being written; its host and process follow
LEFT_SECONDS = 3600  # of a writer of whom nothing is known: what is so old was left by one that was killed
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what a disk without locks answers, as some networks' are


# --- whole files ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_file(path: Path, *, noted: bool = True) -> Iterator[Path]:
    """Yield a path beside `path`; what is written there becomes `path` at once, synced, or not at all.

    noted: in the list of the run's folder that it lies in (base/written_files.py), whose --overwrite may remove it.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The random part keeps two writers apart; the true suffix stays last for libraries that look at it.
        prefix = f"{PART}{_host()}-{os.getpid()}-"
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if noted:
            note(path, temporary)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:  # of which file, a reader of the message knows by its own name alone
        if error.errno is None or not Path(error.filename or PART).name.startswith(PART):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def remove_parts(folder: Path, *, foreign: bool = False) -> None:
    """Remove what killed writers have left half-written below a folder of ours; what is being written stays.

    foreign: the folder is not ours. What lies directly in it and is named after a process of this machine goes.
    """
    for path in folder.glob(f"{PART}{_host()}-*") if foreign else folder.rglob(f"{PART}*"):
        with contextlib.suppress(OSError):  # its writer has just ended after all
            if _is_left(path):
                path.unlink()


def _is_left(part: Path) -> bool:
    """Whether the writer of a half-written file is gone, as far as can be known."""
    writer = re.match(rf"{re.escape(PART)}{_host()}-(\d+)-", part.name)
    if writer is None or os.name != "posix":  # of another machine, or a process that can't be asked for
        return time.time() - part.stat().st_mtime > LEFT_SECONDS
    try:
        os.kill(int(writer[1]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # another user's
        pass
    return False


@functools.cache
def _host() -> str:
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a small text file, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: object) -> None:
    """Write JSON that a person can read; NaN has no place in it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, wanted: Any = object, *, advice: str = "give another file") -> Any:
    """Read JSON; a file that is not JSON, or does not hold what is wanted (see `fields.fault`), is a UserError."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("not a file")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read as JSON ({error}); {advice}") from error
    wrong = fault(value, wanted)
    if wrong is not None:
        raise UserError(f"{path} is damaged: {wrong}; {advice}")
    return value


# --- names ------------------------------------------------------------------------------------------------------------


def file_names(names: Iterable[str]) -> dict[str, str]:
    """Of each of these names of classes, models or views one for a file, which any disk takes; no two are alike.

    A disk may take letters for alike that differ in case or in how Unicode composes them.
    """
    plain = {name: _file_name(name) for name in names}
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in sorted(plain, key=lambda name: plain[name] != name):  # what is right already stays
        numbered = (plain[name] if number == 1 else f"{plain[name]}-{number}" for number in count(1))
        found[name] = next(candidate for candidate in numbered if _as_a_disk(candidate) not in taken)
        taken.add(_as_a_disk(found[name]))
    return {name: found[name] for name in plain}


def _file_name(name: str) -> str:
    plain = "".join("_" if sign in FORBIDDEN or not sign.isprintable() else sign for sign in name)[:60]
    plain = plain.strip(" .") or "_"
    return f"_{plain}" if is_reserved(plain) else plain


def _as_a_disk(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


# --- locks ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def claimed(path: Path, *, wait: bool | float) -> Iterator[bool | None]:
    """Hold a lock on a file alone; yields whether we do. The system frees it when its holder dies.

    wait: for how many seconds, or for ever (True). The file is there only while somebody holds it or waits for it. On a
    disk without locks nobody gets it: there None is yielded.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    # A generator may be closed by another thread than the one that claimed.
    lock, ours = FileLock(path, thread_local=False), None
    try:
        lock.acquire(timeout=-1 if wait is True else float(wait))
        ours = True
    except Timeout:
        ours = False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield ours
    finally:
        if ours:
            # A bank would be left with a lock for each of its blocks. Removed under the lock: who then gets the lock of
            # a file without a name lets go of it and tries again, as filelock does since 3.21.
            with contextlib.suppress(OSError):
                path.unlink()
            lock.release()


def share(path: Path) -> IO[bytes] | None:
    """Hold a shared lock on a file, so that nobody can claim it, until what is returned is closed or its holder dies.

    None where there are no such locks. filelock has shared locks only as a transaction in a SQLite file, which neither
    excludes `claimed` nor works on a network's disk; so this one is taken from the system, as `claimed` takes its own.
    """
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # whoever had claimed it has just removed the whole folder
            file = path.open("ab")
            with contextlib.suppress(OSError):  # not on every network's disk
                fcntl.flock(file, fcntl.LOCK_SH)
            if _is_at(file.fileno(), path):  # else its last holder removed it while we waited
                return file
            file.close()


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
