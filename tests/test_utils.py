"""Keyed randomness, atomic files, the run folder: the ground that resuming and reproducing stand on."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfermpl import utils
from transfermpl.base import files
from transfermpl.base.files import atomic_file, claimed, read_json, write_json, write_text
from transfermpl.runs.run_folder import find_checkpoint, remove_run, run_folder
from transfermpl.utils import UserError, choose_device, choose_precision, counter_uniform, generator, key

# --- randomness -------------------------------------------------------------------------------------------------------


def test_keys_are_the_same_on_every_machine_and_in_every_version() -> None:
    # Written down once: another value would give other splits and orders for the same seed.
    assert key(0, "split") == 3692668185207323792
    assert generator(0, "split").integers(0, 1000, 4).tolist() == [138, 381, 198, 586]
    uniform = counter_uniform(np.array([1, 2**63], dtype=np.uint64), np.array([0, 5]), 3, "weak")
    in_whole_numbers = [[0.617509723, 0.231072545, 0.381288469], [0.863843501, 0.144028187, 0.524264097]]
    assert uniform == pytest.approx(np.array(in_whole_numbers), abs=1e-7)


PARTS = st.lists(st.integers() | st.text(max_size=5), max_size=4)


@given(PARTS, PARTS)
def test_other_parts_make_another_key(a: list[object], b: list[object]) -> None:
    assert 0 <= key(*a) < 2**63
    if [str(x) for x in a] != [str(x) for x in b] and not any("\x1f" in str(x) for x in a + b) and a and b:
        assert key(*a) != key(*b)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 999)), min_size=1, max_size=8), st.integers(1, 30))
def test_a_row_of_numbers_does_not_hang_on_the_others(rows: list[tuple[int, int]], count: int) -> None:
    keys = np.array([k for k, _ in rows], dtype=np.uint64)
    draws = np.array([d for _, d in rows])
    whole = counter_uniform(keys, draws, count, "strong")
    assert whole.dtype == np.float32
    assert (whole >= 0).all()
    assert (whole < 1).all()
    for i in range(len(rows)):
        assert (counter_uniform(keys[i : i + 1], draws[i : i + 1], count, "strong")[0] == whole[i]).all()
    assert (counter_uniform(keys, draws, count + 1, "strong")[:, :count] == whole).all()


def test_the_numbers_are_uniform_and_do_not_hang_together() -> None:
    keys = np.arange(20000, dtype=np.uint64)  # the worst keys there are
    for purpose in ("weak", "strong"):
        uniform = counter_uniform(keys, np.zeros(20000, dtype=np.int64), 4, purpose)
        assert uniform.mean(axis=0) == pytest.approx(np.full(4, 0.5), abs=0.015)
        counts = np.stack([np.histogram(column, 20, (0, 1))[0] for column in uniform.T])
        assert np.abs(counts - 1000).max() < 160
        assert np.abs(np.corrcoef(uniform.T) - np.eye(4)).max() < 0.03
    first = counter_uniform(keys, np.zeros(20000, dtype=np.int64), 1, "weak")[:, 0]
    for other in (
        counter_uniform(keys, np.ones(20000, dtype=np.int64), 1, "weak")[:, 0],
        counter_uniform(keys, np.zeros(20000, dtype=np.int64), 1, "strong")[:, 0],
        counter_uniform(keys + np.uint64(1), np.zeros(20000, dtype=np.int64), 1, "weak")[:, 0],
    ):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.03


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["meta", "abacus", "", "hpu", "privateuseone", "cuda:99", "cpu:-1", "xpu"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="use --device auto or --device cpu"):
        choose_device(name)


def test_the_device_and_the_precision_that_are_there() -> None:
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    assert choose_precision("auto", cpu) is torch.float32
    assert choose_precision("bf16", cpu) is torch.bfloat16
    assert choose_precision("fp32", cpu) is torch.float32
    assert choose_precision("fp32", cpu, frozen=True) is torch.float32
    assert utils.peak_memory_bytes(cpu) > 1e7


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "avx512_f": True}, torch.float32),
        ({}, torch.float32),
        (None, torch.float32),  # a torch that does not tell
    ],
)
def test_a_frozen_backbone_takes_bfloat16_on_a_cpu_that_multiplies_in_it(
    found: dict[str, bool] | None, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    if found is not None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu, frozen=True) is expected
    assert choose_precision("auto", cpu) is torch.float32
    assert choose_precision("auto", torch.device("mps"), frozen=True) is torch.float32


def test_keeping_pages_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    def no_libc(name: str) -> object:
        raise OSError(name)

    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    monkeypatch.setattr(ctypes, "CDLL", no_libc)
    utils.keep_pages()
    monkeypatch.setattr(sys, "platform", "darwin")
    utils.keep_pages()


# --- files ------------------------------------------------------------------------------------------------------------


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


# --- the run folder ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_names_are_counted_up() -> None:
    assert [run_folder("x").name for _ in range(3)] == ["x", "x-2", "x-3"]
    (Path("results") / "x-2").rmdir()
    assert run_folder("x").name == "x-2"


def test_only_a_run_is_resumed_or_overwritten() -> None:
    with pytest.raises(UserError, match="no run to resume"):
        run_folder("x", resume=True)
    folder = run_folder("x")
    (folder / "commandline_args.txt").write_text("{}")
    assert run_folder("x", resume=True) == folder
    assert run_folder("x", overwrite=True) == folder
    assert list(folder.iterdir()) == []
    assert run_folder("new", overwrite=True).name == "new"
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="does not look like a run"):
        run_folder("x", overwrite=True)
    assert (folder / "thesis.tex").exists()


def test_what_is_no_folder_of_a_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "file").write_text("mine")
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "commandline_args.txt").write_text("{}")
    (tmp_path / "results" / "link").symlink_to(target)
    for name in ("file", "link"):
        with pytest.raises(UserError, match="does not look like a run"):
            remove_run(tmp_path / "results" / name)
    assert (target / "commandline_args.txt").exists()
    assert run_folder("file").name == "file-2"


def test_results_that_are_a_file_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("not a folder")
    with pytest.raises(UserError, match="can't make the run folder"):
        run_folder("x")


def make_checkpoint(folder: Path, *names: str) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "commandline_args.txt").write_text("{}")
    for name in names:
        (folder / "checkpoints" / name).touch()


def test_a_checkpoint_is_found_by_name_folder_or_file(tmp_path: Path) -> None:
    folder = Path("results") / "exp"
    make_checkpoint(folder, "last.pt", "best.pt")
    last, best = folder / "checkpoints" / "last.pt", folder / "checkpoints" / "best.pt"
    for place in ("exp", "results/exp", "/checkpoints/flowers/exp", str(tmp_path / "results" / "exp"), "exp/"):
        assert find_checkpoint(place, best=False).resolve() == last.resolve()
        assert find_checkpoint(place, best=True).resolve() == best.resolve()
    assert find_checkpoint(str(last), best=True) == last
    assert find_checkpoint("results/exp/checkpoints", best=True).resolve() == best.resolve()


def test_a_checkpoint_that_is_not_there_is_explained() -> None:
    make_checkpoint(Path("results") / "young")
    make_checkpoint(Path("results") / "going", "last.pt")
    with pytest.raises(UserError, match=r"no last\.pt yet.*--resume"):
        find_checkpoint("young", best=False)
    with pytest.raises(UserError, match=r"no best\.pt yet; leave out --load_best"):
        find_checkpoint("going", best=True)
    with pytest.raises(UserError, match="no such run, folder or checkpoint"):
        find_checkpoint("absent", best=False)
    for command, says in (("optuna_mode", "best_args.json"), ("inspect", "a report"), ("view_report", "a report")):
        folder = Path("results") / command
        folder.mkdir()
        write_json(folder / "commandline_args.txt", {"name": command, command: True})
        with pytest.raises(UserError, match=says):
            find_checkpoint(command, best=False)


# --- locks ------------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from transfermpl import utils
from pathlib import Path
with utils.claimed(Path(sys.argv[1]), wait=True):
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
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, cwd=Path(utils.__file__).parent
    )
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
    one, two = files.share(path), files.share(path)
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
        waiting = threading.Thread(target=lambda: shared.append(files.share(path)))
        waiting.start()
        time.sleep(0.1)
        assert not shared
        shutil.rmtree(path.parent)
    waiting.join(10)
    assert path.exists()
    with claimed(path, wait=False) as mine:
        assert not mine
    shared[0].close()
