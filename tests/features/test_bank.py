"""The feature bank's promises: right rows, computed once, whatever happens to the files and the processes."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runs import COLOURS, FROZEN, Moment, make_data, make_images, run, same
from transfermpl import args
from transfermpl.backbones.library import build_backbone
from transfermpl.data import Dataset, find_dataset
from transfermpl.features import bank as features
from transfermpl.features import blocks
from transfermpl.features.bank import FeatureBank
from transfermpl.features.blocks import evict, read_block, write_block
from transfermpl.features.sources import FrozenSource, ImageRequest, ImageSource
from transfermpl.images import augment
from transfermpl.learning.batches import BatchSampler
from transfermpl.utils import UserError

CPU = torch.device("cpu")
Kind = tuple[str, int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "bilder", 14)


@functools.cache
def backbone(model: str, size: int, seed: int = 0) -> Any:
    options = args.Model(model_name=model, weights="none", image_size=size)
    made = build_backbone(options, native_size=0, points=False, seed=seed, default_name="")
    return made.requires_grad_(False).eval().to(memory_format=torch.channels_last)


def source(dataset: Dataset, model: str = "cnn", size: int = 16, *, seed: int = 0, flip: bool = True) -> FrozenSource:
    net = backbone(model, size, seed)
    recipe = augment.recipe_for(dataset.kind, flip)
    return FrozenSource(ImageSource(dataset, net.transform, recipe, CPU, workers=0), net)


def read(folder: Path) -> Dataset:
    return find_dataset(args.Data(data_dir=str(folder)))


def everything(dataset: Dataset, *kinds: Kind) -> dict[Kind, np.ndarray]:
    rows = np.arange(len(dataset))
    return dict.fromkeys(kinds or (("eval", 0), ("weak", 0), ("weak", 1), ("strong", 0)), rows)


@torch.no_grad()
def direct(frozen: FrozenSource, rows: np.ndarray, kind: Kind) -> torch.Tensor:
    """The features by the backbone alone, one image after another."""
    parts = []
    for row in rows:
        one = np.array([row])
        image = next(frozen.images.decoded(iter([one])))
        parts.append(frozen.backbone(frozen.images.view(image, ImageRequest(one, np.array([kind[1]]), kind[0]))))
    return torch.cat(parts)


def stored(bank: FeatureBank, kind: Kind, rows: np.ndarray | None = None) -> torch.Tensor:
    rows = np.arange(len(bank.hashes)) if rows is None else rows
    return bank.rows(ImageRequest(rows, np.full(len(rows), kind[1]), kind[0]))


def block_files(bank: FeatureBank) -> list[Path]:
    return sorted(bank.folder.glob("*/*.block"))


# --- right rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "size"), [("cnn", 16), ("squeezenet1_1", 48), ("timm:test_vit", 32)])
def test_rows_are_those_of_the_direct_path(tmp_path: Path, folder: Path, model: str, size: int) -> None:
    dataset = read(folder)
    frozen = source(dataset, model, size)
    bank = FeatureBank(tmp_path, frozen)
    bank.fill(everything(dataset))
    for kind in everything(dataset):
        expected = direct(frozen, np.arange(len(dataset)), kind)
        assert stored(bank, kind).dtype == torch.float32
        torch.testing.assert_close(stored(bank, kind), expected, rtol=1e-3, atol=1e-3)
    assert not stored(bank, ("weak", 0)).equal(stored(bank, ("weak", 1)))
    assert not stored(bank, ("eval", 0)).equal(stored(bank, ("strong", 0)))


# squeezenet's last bits depend on the batch: of less than 16 images at 224 px, it gives others.
@pytest.mark.parametrize(
    ("model", "size"),
    [("cnn", 16), pytest.param("squeezenet1_1", 224, marks=pytest.mark.slow), ("timm:test_vit", 32)],
)
def test_a_float32_bank_streams_what_is_computed_without_it(
    tmp_path: Path, folder: Path, model: str, size: int
) -> None:
    dataset = read(folder)
    frozen = source(dataset, model, size)
    sampler = BatchSampler(np.arange(3), np.arange(1, 8), 2, 4, seed=1, draws=2)
    bank = FeatureBank(tmp_path, frozen, "float32")
    bank.fill(sampler.wanted(3))
    for _, ours, theirs in zip(
        range(3), bank.stream(sampler.requests, 0), frozen.stream(sampler.requests, 0), strict=False
    ):
        assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))
    rows = np.arange(0, 20, 2)
    assert torch.cat(list(bank.inputs(rows))).equal(torch.cat(list(frozen.inputs(rows))))


@pytest.mark.parametrize(
    "mode",
    [
        ("--switch_mode",),
        *(pytest.param(mode, marks=pytest.mark.slow) for mode in ((), ("--finetune_mode",))),
    ],
)
def test_training_from_a_float32_bank_is_training_without_one(
    tmp_path: Path, folder: Path, mode: tuple[str, ...]
) -> None:
    line = ("--data_dir", folder, *FROZEN, "--num_labels", 6, "--unlabeled_batch_size", 10, "--max_steps", 9, *mode)
    with_bank = run("--name", "a", *line, "--cache_dtype", "float32", cwd=tmp_path)
    without = run("--name", "b", *line, "--no_cache", cwd=tmp_path)
    assert with_bank.metrics("a") == without.metrics("b")
    assert same(with_bank.checkpoint("best", "a")["models"], without.checkpoint("best", "b")["models"])
    assert with_bank.summary("a")["test"] == without.summary("b")["test"]


def test_rows_come_in_the_order_asked_with_each_its_draw(tmp_path: Path, folder: Path) -> None:
    dataset = read(folder)
    bank = FeatureBank(tmp_path, source(dataset))
    bank.fill(everything(dataset))
    rows, draws = np.array([7, 3, 3, 20, 7]), np.array([1, 0, 1, 0, 1])
    expected = [stored(bank, ("weak", draw), np.array([row])) for row, draw in zip(rows, draws, strict=True)]
    assert bank.rows(ImageRequest(rows, draws, "weak")).equal(torch.cat(expected))


def test_a_bank_larger_than_memory_is_read_from_disk(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = read(folder)
    monkeypatch.setattr(features, "BLOCK_ROWS", 8)
    bank = FeatureBank(tmp_path, source(dataset))
    bank.fill(everything(dataset))
    held = {kind: stored(bank, kind) for kind in everything(dataset)}
    assert bank.table(("eval", 0)).resident is not None
    monkeypatch.setattr(features, "free_memory", lambda device: 0)
    other = FeatureBank(tmp_path, source(dataset))
    for kind, rows in held.items():
        assert stored(other, kind).equal(rows)
        assert other.table(kind).resident is None


def test_points_have_a_bank_too(tmp_path: Path) -> None:
    line = ("--data_dir", "moons", "--unfreeze", "head", "--max_steps", 4)
    outcome = run("--name", "x", *line, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert list((tmp_path / "cache").glob("*/strong-000/*.block"))


# --- computed once ----------------------------------------------------------------------------------------------------


def test_nothing_is_computed_twice(tmp_path: Path, folder: Path) -> None:
    dataset = read(folder)
    first = FeatureBank(tmp_path, source(dataset))
    shown: list[int] = []
    wanted = everything(dataset)
    total = sum(map(len, wanted.values()))
    assert first.missing(wanted) == total
    assert first.fill(wanted, show=shown.append) == first.computed == total
    assert shown[-1] == total
    assert shown == sorted(shown)
    assert first.missing(wanted) == first.fill(wanted) == 0
    second = FeatureBank(tmp_path, source(dataset))
    assert second.folder == first.folder
    assert second.fill(wanted) == second.computed == 0


def test_another_split_costs_only_what_is_new(tmp_path: Path, folder: Path) -> None:
    dataset = read(folder)
    FeatureBank(tmp_path, source(dataset)).fill({("weak", 0): np.arange(20)})
    bank = FeatureBank(tmp_path, source(dataset))
    assert bank.fill({("weak", 0): np.arange(10, 30)}) == 10
    assert bank.fill({("weak", 0): np.arange(5), ("weak", 1): np.arange(5), ("strong", 0): np.arange(3)}) == 8
    expected = direct(bank.frozen, np.arange(30), ("weak", 0))
    torch.testing.assert_close(stored(bank, ("weak", 0), np.arange(30)), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_another_seed_of_a_run_costs_only_new_views(tmp_path: Path, folder: Path) -> None:
    torch.save(backbone("cnn", 16).net.state_dict(), tmp_path / "w.pth")  # from scratch a seed has its own weights
    line = ("--data_dir", folder, *FROZEN, "--weights", "w.pth", "--num_labels", 6, "--max_steps", 8)
    one = ("--augmentation_draws", 1)
    first = run("--name", "a", *line, *one, cwd=tmp_path)
    before = {path for path in (tmp_path / "cache").rglob("*.block")}
    again = run("--name", "b", *line, *one, cwd=tmp_path)
    assert again.metrics("b") == first.metrics("a")
    assert "features:" not in again.out
    assert {path for path in (tmp_path / "cache").rglob("*.block")} == before
    run("--name", "c", *line, *one, "--seed", 1, cwd=tmp_path)
    rows = sum(read_rows(path) for path in (tmp_path / "cache").rglob("*.block"))
    assert rows < 1.6 * sum(read_rows(path) for path in before)


def read_rows(path: Path) -> int:
    return blocks.HEADER.unpack(path.read_bytes()[: blocks.HEADER.size])[1]


def test_renamed_and_added_files_cost_only_what_is_new(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "d", 6)
    cache = tmp_path / "cache"
    FeatureBank(cache, source(read(folder))).fill(everything(read(folder)))
    (folder / "b c").rename(folder / "zebra")
    for number, path in enumerate(sorted((folder / "ähre").iterdir())):
        path.rename(path.with_name(f"{9 - number}.png"))
    moved = read(folder)
    bank = FeatureBank(cache, source(moved))
    assert bank.fill(everything(moved)) == 0
    make_images(folder / "zebra", 1, (1, 2, 3), seed=8)
    (folder / "zebra" / "bild 00.png").rename(folder / "zebra" / "new.png")
    grown = read(folder)
    bank = FeatureBank(cache, source(grown))
    assert bank.fill(everything(grown)) == 4 * (len(grown) - 17)
    for kind in everything(grown):
        expected = direct(bank.frozen, np.arange(len(grown)), kind)
        torch.testing.assert_close(stored(bank, kind), expected, rtol=1e-3, atol=1e-3)


def test_a_changed_file_never_meets_its_old_row(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "d", 6)
    cache = tmp_path / "cache"
    FeatureBank(cache, source(read(folder))).fill(everything(read(folder)))
    make_images(folder / "b c", 1, COLOURS["日本"], seed=5)  # bild 00.png has another content now
    changed = read(folder)
    bank = FeatureBank(cache, source(changed))
    assert bank.fill(everything(changed)) == 4
    expected = direct(bank.frozen, np.arange(len(changed)), ("weak", 0))
    torch.testing.assert_close(stored(bank, ("weak", 0)), expected, rtol=1e-3, atol=1e-3)


def test_what_makes_another_feature_makes_another_bank(tmp_path: Path, folder: Path) -> None:
    dataset = read(folder)
    base = source(dataset)
    other_backbones = [source(dataset, "cnn", 20), source(dataset, "cnn", seed=1), source(dataset, "mlp")]
    others = [*other_backbones, source(dataset, flip=False), FrozenSource(base.images, base.backbone, torch.bfloat16)]
    interpolation = dataclasses.replace(base.backbone.transform, interpolation="bicubic")
    changed = build_backbone(
        args.Model(model_name="cnn", weights="none", image_size=16),
        native_size=0, points=False, seed=0, default_name="",
    )  # fmt: skip
    changed.transform = interpolation
    others.append(FrozenSource(base.images, changed))
    banks = [FeatureBank(tmp_path, other) for other in (base, *others)] + [FeatureBank(tmp_path, base, "float32")]
    assert len({bank.folder for bank in banks}) == len(banks)
    assert FeatureBank(tmp_path, source(dataset)).folder == banks[0].folder
    with torch.no_grad():  # one weight, by one bit
        changed.transform = base.backbone.transform
        assert FeatureBank(tmp_path, FrozenSource(base.images, changed)).folder == banks[0].folder
        weight = next(changed.parameters()).view(-1)
        weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    assert FeatureBank(tmp_path, FrozenSource(base.images, changed)).folder not in {bank.folder for bank in banks}


# --- damaged files ----------------------------------------------------------------------------------------------------


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda whole: (
        whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] if at >= 0 else flip(len(whole) + at)(whole)
    )


DAMAGES = {
    "magic": flip(0), "count": flip(8), "columns": flip(12), "digest": flip(20), "hashes": flip(70),
    "features": flip(-3), "half": lambda whole: whole[: len(whole) // 2], "header only": lambda whole: whole[:30],
    "empty": lambda whole: b"", "longer": lambda whole: whole[:64] + b"x" + whole[64:],
    "another's": lambda whole: b"what is this doing here" * 100,
}  # fmt: skip


def test_a_block_that_another_process_is_writing_is_left_alone(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = FeatureBank(tmp_path, source(read(folder)))
    kind_folder = bank.folder / "eval-000"
    kind_folder.mkdir()
    present, abandoned = kind_folder / ".part-a.block", kind_folder / ".part-b.block"
    for path in (present, abandoned):
        path.write_bytes(b"half a blo")
    os.utime(abandoned, (0, 0))
    bank.table(("eval", 0)).reload()
    assert present.exists()
    assert not abandoned.exists()  # its writer was killed long ago
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_a_damaged_block_is_computed_again(
    tmp_path: Path, folder: Path, damage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(features, "BLOCK_ROWS", 16)
    dataset = read(folder)
    wanted = everything(dataset, ("eval", 0), ("weak", 0))
    bank = FeatureBank(tmp_path, source(dataset))
    bank.fill(wanted)
    good = {kind: stored(bank, kind) for kind in wanted}
    victim = max(block_files(bank), key=read_rows)
    content = victim.read_bytes()
    # Readers hold the old file open, so a damaged one comes beside it and is renamed, as a bad copy would.
    (tmp_path / "bad").write_bytes(DAMAGES[damage](content))
    (tmp_path / "bad").replace(victim)
    again = FeatureBank(tmp_path, source(dataset))
    assert again.fill(wanted) == 16
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert str(victim) in errors[0]
    assert "computed again" in errors[0]
    for kind, expected in good.items():
        assert stored(again, kind).equal(expected)
    assert victim.read_bytes() == content


def test_a_lost_block_is_computed_again_without_a_word(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = read(folder)
    bank = FeatureBank(tmp_path, source(dataset))
    bank.fill(everything(dataset))
    block_files(bank)[0].unlink()
    assert FeatureBank(tmp_path, source(dataset)).fill(everything(dataset)) == len(dataset)
    assert capsys.readouterr().err == ""


def test_progress_is_shown_within_a_block(tmp_path: Path, folder: Path) -> None:
    """A block of a slow network takes minutes."""
    dataset, seen = read(folder), list[int]()
    wanted = everything(dataset)
    total = FeatureBank(tmp_path, source(dataset)).fill(wanted, show=seen.append)
    assert len(dataset) < features.BLOCK_ROWS
    assert seen == sorted(seen)
    assert len(seen) >= len(wanted)
    assert seen[-1] == total


def test_a_block_is_read_as_it_was_written(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for dtype in ("float16", "float32"):
        hashes = random.integers(0, 2**64, 5, dtype=np.uint64, endpoint=False)
        rows = random.normal(size=(5, 7)).astype(dtype)
        write_block(tmp_path / "a" / "x.block", hashes, rows)
        found = read_block(tmp_path / "a" / "x.block", 7, np.dtype(dtype))
        assert found is not None
        assert (found[0] == hashes).all()
        assert (found[1] == rows).all()
        assert read_block(tmp_path / "a" / "x.block", 8, np.dtype(dtype)) is None
        (tmp_path / "of another draw.block").write_bytes((tmp_path / "a" / "x.block").read_bytes())
        assert read_block(tmp_path / "of another draw.block", 7, np.dtype(dtype)) is None
    assert read_block(tmp_path / "none.block", 7, np.dtype("float16")) is None
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.block"]


def test_features_beyond_float16_stay_finite(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = read(folder)
    frozen = source(dataset)
    monkeypatch.setattr(frozen, "features", lambda pixels: torch.full((len(pixels), 128), 1e9))
    bank = FeatureBank(tmp_path, frozen)
    bank.fill(everything(dataset, ("eval", 0)))
    assert bool(torch.isfinite(stored(bank, ("eval", 0))).all())


# --- several processes ------------------------------------------------------------------------------------------------


def child(work: Callable[[], None]) -> int:
    """Do it in a forked process; returns the process's number."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def slow(frozen: FrozenSource, seconds: float) -> FrozenSource:
    real = frozen.features

    def wait(pixels: torch.Tensor) -> torch.Tensor:
        time.sleep(seconds)
        return real(pixels)

    frozen.features = wait  # type: ignore[method-assign]
    return frozen


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_that_fill_one_bank_share_the_work(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(features, "BLOCK_ROWS", 4)
    dataset = read(folder)
    wanted = everything(dataset, ("eval", 0), ("strong", 0))
    total = 2 * len(dataset)
    begin = time.monotonic() + 0.2

    def fill(number: int) -> None:
        bank = FeatureBank(tmp_path / "cache", slow(source(dataset), 0.02))
        time.sleep(max(0, begin - time.monotonic()))
        bank.fill(wanted)
        assert bank.missing(wanted) == 0
        (tmp_path / f"computed{number}").write_text(str(bank.computed))

    children = [child(functools.partial(fill, number)) for number in range(processes)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * processes
    computed = [int((tmp_path / f"computed{number}").read_text()) for number in range(processes)]
    assert sum(computed) >= total
    assert max(computed) < total
    assert sum(computed) < 1.3 * total
    bank = FeatureBank(tmp_path / "cache", source(dataset))
    assert bank.fill(wanted) == 0
    for kind in wanted:
        expected = direct(bank.frozen, np.arange(len(dataset)), kind)
        torch.testing.assert_close(stored(bank, kind), expected, rtol=1e-3, atol=1e-3)
    assert not list(bank.folder.rglob(".part-*"))


def test_processes_with_other_wishes_end_right(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BLOCK_ROWS", 4)
    dataset = read(folder)
    begin = time.monotonic() + 0.2

    def fill(start: int) -> None:
        bank = FeatureBank(tmp_path, slow(source(dataset), 0.01))
        wanted = {("weak", 0): np.arange(start, start + 24), ("eval", 0): np.arange(start, len(dataset), 2)}
        time.sleep(max(0, begin - time.monotonic()))
        bank.fill(wanted)
        for kind, rows in wanted.items():
            expected = direct(source(dataset), rows, kind)
            torch.testing.assert_close(stored(bank, kind, rows), expected, rtol=1e-3, atol=1e-3)

    children = [child(functools.partial(fill, start)) for start in (0, 5, 11)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 3


@pytest.mark.parametrize("moment", ["torn", "before", "after"])
def test_a_killed_writer_leaves_no_wrong_row_and_no_lock(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    from runs import _arm

    monkeypatch.setattr(features, "BLOCK_ROWS", 8)
    dataset = read(folder)
    wanted = everything(dataset, ("eval", 0))

    def fill() -> None:
        bank = FeatureBank(tmp_path, source(dataset))
        _arm(Moment("features.bank:write_block", 3, moment))
        bank.fill(wanted)

    pid = child(fill)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    bank = FeatureBank(tmp_path, source(dataset))
    there = 24 if moment == "after" else 16
    assert bank.fill(wanted) == len(dataset) - there
    expected = direct(bank.frozen, np.arange(len(dataset)), ("eval", 0))
    torch.testing.assert_close(stored(bank, ("eval", 0)), expected, rtol=1e-3, atol=1e-3)


# --- the disk ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def full_disk(*args: object) -> Iterator[Path]:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    yield Path()


def test_a_full_disk_is_one_line_with_folder_and_size(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = read(folder)
    bank = FeatureBank(tmp_path, source(dataset, "squeezenet1_1", 32))
    monkeypatch.setattr(features, "BLOCK_ROWS", 8)
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "atomic_file", full_disk)
        with pytest.raises(UserError) as caught:
            bank.fill(everything(dataset))
    message = str(caught.value)
    size = 4 * len(dataset) * (512 * 2 + 8) / 1e6
    assert str(bank.folder) in message
    assert f"{size:.1f} MB" in message or f"{size:.0f} MB" in message
    assert "0 MB" not in message.replace(f"{size:.0f} MB", "")
    assert "--no_cache" in message
    assert "\n" not in message
    # Nothing is left locked, and with room again it goes on.
    assert bank.fill(everything(dataset)) == 4 * len(dataset)


def test_a_full_disk_ends_a_run_with_code_2(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "atomic_file", full_disk)
    line = ("--name", "x", "--data_dir", folder, *FROZEN, "--num_labels", 6, "--max_steps", 2)
    outcome = run(*line, cwd=tmp_path)
    assert outcome.code == 2
    assert len(outcome.complaint()) == 1
    assert "cache/" in outcome.complaint()[0]
    assert "No space left" in outcome.complaint()[0]
    again = run("--name", "x", *line[2:], "--no_cache", "--overwrite", cwd=tmp_path)
    assert again.code == 0, again.err


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENOSPC])
def test_a_disk_that_takes_nothing_is_said_before_a_run_begins(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(path: Path, value: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(features, "write_json", refuse)
    with pytest.raises(UserError, match="--cache_dir"):
        FeatureBank(tmp_path, source(read(folder)))


def make_bank(cache: Path, name: str, size: int, age: float) -> Path:
    folder = cache / name
    (folder / "eval-000").mkdir(parents=True)
    (folder / "eval-000" / "a.block").write_bytes(bytes(size))
    (folder / "bank.json").write_text(json.dumps({}))
    os.utime(folder / "bank.json", (1e9 - age, 1e9 - age))
    return folder


def test_the_longest_unused_banks_go_first_and_the_one_in_use_stays(tmp_path: Path) -> None:
    ages = {"new": 1, "old": 3, "mine": 9, "older": 5}
    banks = {name: make_bank(tmp_path, name, 100, age) for name, age in ages.items()}
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.block").write_bytes(bytes(1000))
    assert evict(tmp_path, 400, [banks["mine"]]) == []
    assert evict(tmp_path, 399, [banks["mine"]]) == [banks["older"]]
    assert evict(tmp_path, 10, [banks["mine"]]) == [banks["old"], banks["new"]]
    assert evict(tmp_path, 0, [banks["mine"]]) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["holiday", "mine"]
    assert (banks["mine"] / "eval-000" / "a.block").exists()
    assert evict(tmp_path / "absent", 0, [banks["mine"]]) == []


def test_a_bank_that_another_process_uses_is_not_evicted(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features.Table, "_fits", lambda table: False)  # so that each batch reads the disk
    dataset, (ready, done), (told, tell) = read(folder), os.pipe(), os.pipe()

    def use() -> None:
        bank = FeatureBank(tmp_path, source(dataset))
        bank.fill(everything(dataset))
        os.write(done, b"x")
        os.read(told, 1)
        stored(bank, ("weak", 1))

    pid = child(use)
    assert os.read(ready, 1)
    idle = make_bank(tmp_path, "idle", 100, 1)
    found = evict(tmp_path, 0, [])
    os.write(tell, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert found == [idle]
    assert len(evict(tmp_path, 0, [])) == 1  # its user has ended
    assert not list(tmp_path.iterdir())


def test_a_bank_that_this_process_has_done_with_is_evicted(tmp_path: Path, folder: Path) -> None:
    bank = FeatureBank(tmp_path, source(read(folder)))
    bank.fill(everything(read(folder)))
    assert evict(tmp_path, 0, []) == []
    place = bank.folder
    del bank
    assert evict(tmp_path, 0, []) == [place]
    assert not place.exists()


def test_using_a_bank_makes_it_young(tmp_path: Path, folder: Path) -> None:
    bank = FeatureBank(tmp_path, source(read(folder)))
    os.utime(bank.folder / "bank.json", (1, 1))
    FeatureBank(tmp_path, source(read(folder)))
    assert (bank.folder / "bank.json").stat().st_mtime > 1e9


def test_a_bank_says_what_it_is_of(tmp_path: Path, folder: Path) -> None:
    bank = FeatureBank(tmp_path, source(read(folder)))
    identity = json.loads((bank.folder / "bank.json").read_text())
    assert identity["backbone"] == "cnn"
    assert {"weights", "transform", "recipe", "precision", "dtype", "version"} <= set(identity)
