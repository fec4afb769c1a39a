"""Files that are written whole or not at all, and locks between processes and threads."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfermpl.base.files import atomic_file, claimed, file_names, read_json, share, write_json, write_text
from transfermpl.base.options import folder_name
from transfermpl.utils import UserError

# --- whole files ------------------------------------------------------------------------------------------------------


def write_half(path: Path) -> None:
    with atomic_file(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".txt"
        temporary.write_text("half")
        raise RuntimeError


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "größe.txt"
    write_text(path, "one\n")
    with pytest.raises(RuntimeError):
        write_half(path)
    assert path.read_text(encoding="utf-8") == "one\n"
    write_text(path, "ü\n")
    assert path.read_bytes() == b"\xc3\xbc\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["größe.txt"]


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_a_file_gets_the_mode_that_the_user_has_set(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640
    assert os.umask(before) == before


def test_json_is_for_people_and_programs(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"größe": [1, None]})
    assert "größe" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"größe": [1, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"a": float("nan")})
    assert not (tmp_path / "b.json").exists()
    for name, content in (("c.json", b"{"), ("d.json", b"\xff\xfe"), ("e.json", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_json(tmp_path / name)


# --- locks ------------------------------------------------------------------------------------------------------------


HOLD = """
import sys, time
from transfermpl.base.files import claimed
from pathlib import Path
with claimed(Path(sys.argv[1]), wait=True):
    print(1, flush=True)
    time.sleep(60)
"""


def test_a_lock_is_held_by_one_and_freed_by_death(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with claimed(path, wait=False) as mine:
        assert mine
        with claimed(path, wait=False) as theirs:
            assert not theirs
    with claimed(path, wait=False) as mine:
        assert mine
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with claimed(path, wait=False) as mine:
        assert not mine
    holder.kill()
    with claimed(path, wait=True) as mine:  # until the holder is dead
        assert mine
    holder.communicate()


def test_who_waited_for_a_lock_holds_the_file_that_has_its_name(tmp_path: Path) -> None:
    path, holds, done = tmp_path / "a.lock", threading.Event(), threading.Event()

    def second() -> None:
        with claimed(path, wait=True):
            holds.set()
            done.wait(20)

    with claimed(path, wait=False):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.1)  # it waits for a file that its holder removes
    assert holds.wait(20)
    with claimed(path, wait=False) as mine:
        assert not mine
    done.set()
    thread.join()


def test_what_is_shared_can_not_be_claimed(tmp_path: Path) -> None:
    path = tmp_path / "bank" / "in-use"
    one, two = share(path), share(path)
    assert one is not None
    assert two is not None
    for file in one, two:
        with claimed(path, wait=False) as mine:
            assert not mine
        file.close()
    with claimed(path, wait=False) as mine:
        assert mine


def test_a_share_of_a_file_that_is_being_removed_is_one_of_its_successor(tmp_path: Path) -> None:
    path, shared = tmp_path / "bank" / "in-use", []
    with claimed(path, wait=False):
        waiting = threading.Thread(target=lambda: shared.append(share(path)))
        waiting.start()
        time.sleep(0.1)
        assert not shared
        shutil.rmtree(path.parent)
    waiting.join(10)
    assert path.exists()
    with claimed(path, wait=False) as mine:
        assert not mine
    shared[0].close()


def test_a_lock_on_a_file_that_was_just_removed_is_not_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last holder removed it after it was opened and before it was locked."""
    fcntl = pytest.importorskip("fcntl")
    path, flock = tmp_path / "a.lock", fcntl.flock

    def removed(*arguments: object) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", removed)
    with claimed(path, wait=True) as mine:
        assert mine
        assert path.exists()
        with claimed(path, wait=False) as theirs:
            assert not theirs


def test_no_file_of_a_lock_stays(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.lock"
    with claimed(path, wait=True):
        assert path.exists()
        with claimed(path, wait=False):
            pass
        assert path.exists()  # of its holder still
    assert list(path.parent.iterdir()) == []


def test_a_lock_may_be_freed_by_another_thread(tmp_path: Path) -> None:
    path, stack = tmp_path / "a.lock", contextlib.ExitStack()
    assert stack.enter_context(claimed(path, wait=False))
    other = threading.Thread(target=stack.close)
    other.start()
    other.join()
    with claimed(path, wait=False) as mine:
        assert mine


@pytest.mark.parametrize("wait", [False, True])
def test_on_a_disk_without_locks_nobody_holds_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: bool) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claimed(tmp_path / "a.lock", wait=wait) as mine:
        assert not mine
    shared = share(tmp_path / "in-use")
    assert shared is not None
    shared.close()


def test_a_lock_that_can_not_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.lock").mkdir()
    with pytest.raises(OSError), claimed(tmp_path / "a.lock", wait=False):  # noqa: PT011
        pass


def test_a_process_that_was_forked_does_not_keep_the_lock(tmp_path: Path) -> None:
    """The workers of a loader may be forked while their parent holds a lock."""
    path = tmp_path / "a.lock"
    with claimed(path, wait=False):
        child = os.fork()
        if child == 0:
            time.sleep(20)
            os._exit(0)
    with claimed(path, wait=False) as mine:
        assert mine
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_become_those_of_files_that_any_disk_takes() -> None:
    odd = ["a/b", "..", "a:b", "Rose", "rose", " x ", "", "日本", "n\nl", "y" * 300, "a_b-2", "CON", "nul.a"]
    names = file_names(odd)
    assert list(names.values()) == [
        "a_b", "_", "a_b-3", "Rose", "rose-2", "x", "_-2", "日本", "n_l", "y" * 60, "a_b-2", "_CON", "_nul.a",
    ]  # fmt: skip


ALIKE = st.text("aA:_-. 2\u00e4\u0308\0\n", max_size=6) | st.sampled_from(["con", "Aux.b"])


@given(st.lists(st.text(max_size=8) | ALIKE))
def test_different_names_stay_different(names: list[str]) -> None:
    found = file_names(names)
    assert set(found) == set(names)
    assert len({normalize("NFC", name).casefold() for name in found.values()}) == len(found)
    for name in found.values():
        assert folder_name(name) == name
        assert len(name.encode()) < 250
    assert file_names(found.values()) == {name: name for name in found.values()}
