"""The proof that a refactoring changed nothing finds what it is there to find (benchmarks/same_results.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import same_results
from benchmarks.same_results import Report, compare_folders, knows, other_words

WEIGHTS = torch.linspace(-1, 1, 6).reshape(2, 3)


def leave(folder: Path) -> Path:
    """What a run may leave."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "metrics.csv").write_text("epoch,loss\n1,0.5\n2,0.25\n")
    (folder / "summary.json").write_text(json.dumps({"mode": "mpl", "test": {"pair": [0.5, 0.75]}, "seconds": 1}))
    (folder / "graphs.png").write_bytes(b"pixels")
    torch.save({"models": {"head.weight": WEIGHTS}, "step": 2}, folder / "checkpoints" / "last.pt")
    save_file({"conv": WEIGHTS, "none": torch.zeros(0)}, folder / "view.safetensors", metadata={"view": '{"size": 8}'})
    return folder


def compared(tmp_path: Path, change: Callable[[Path], object] = lambda folder: None) -> Report:
    old, new, report = leave(tmp_path / "old"), leave(tmp_path / "new"), Report()
    change(new)
    compare_folders(old, new, report, "x")
    assert report.files == 5 - sum("there / missing" in line for line in report.differences)
    return report


def rewrite(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


def flip_a_bit(folder: Path) -> None:
    weights = WEIGHTS.clone()
    weights.view(torch.int32)[1, 2] ^= 1
    torch.save({"models": {"head.weight": weights}, "step": 2}, folder / "checkpoints" / "last.pt")


def widen(folder: Path) -> None:
    named = {"conv": WEIGHTS.double(), "none": torch.zeros(0)}
    save_file(named, folder / "view.safetensors", metadata={"view": '{"size": 8}'})


def test_equal_runs_are_equal_whatever_the_clock_and_the_pictures_say(tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        rewrite("summary.json", '"seconds": 1', '"seconds": 2')(folder)
        (folder / "graphs.png").write_bytes(b"others")

    report = compared(tmp_path, change)
    assert not report.differences
    assert not report.renamed


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (rewrite("metrics.csv", "0.25", "0.250001"), "x, metrics.csv, row 2/loss, '0.25' / '0.250001'"),
        (rewrite("metrics.csv", "2,0.25", "2,0.25\n3,0.1"), "x, metrics.csv, row 3/epoch, missing / '3'"),
        (rewrite("metrics.csv", "0.25\n", "0.25\r\n"), "x, metrics.csv, the same values, but not the same bytes"),
        (rewrite("summary.json", "0.75", "0.7500000000000001"), "test/pair/1, 0.75 / 0.7500000000000001"),
        (rewrite("summary.json", "0.75", "-0.75"), "test/pair/1, 0.75 / -0.75"),
        (rewrite("summary.json", '"mode"', '"method"'), "summary.json, mode, 'mpl' / missing"),
        (flip_a_bit, "last.pt, models/head.weight, float32 [2, 3] -1 -0.600000024 -0.199999988 ..."),
        (flip_a_bit, "(1 of 6 elements, by 1.19e-07 at most)"),
        (widen, "view.safetensors, conv, float32 [2, 3]"),
        (lambda folder: (folder / "graphs.png").unlink(), "x, graphs.png, there / missing"),
        (lambda folder: (folder / "new.csv").write_text(""), "x, new.csv, missing / there"),
    ],
)
def test_a_difference_is_told_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], object], told: str
) -> None:
    assert compared(tmp_path, change).differences
    assert told in capsys.readouterr().out


def rename(folder: Path) -> None:
    rewrite("summary.json", '"mode": "mpl"', '"method": "meta"')(folder)
    rewrite("metrics.csv", "loss", "supervised")(folder)
    torch.save({"models": {"top.weight": WEIGHTS}}, folder / "checkpoints" / "last.pt")
    (folder / "checkpoints").rename(folder / "models")


def test_what_is_renamed_is_listed_and_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"mode": "method", "mpl": "meta", "loss": "supervised", "head": "top", "step": None}
    monkeypatch.setattr(same_results, "KEYS", names)
    monkeypatch.setattr(same_results, "FILES", {"checkpoints": "models"})
    report = compared(tmp_path, rename)
    assert not report.differences
    assert set(report.renamed) == {
        "mode -> method", "mpl -> meta", "loss -> supervised", "head.weight -> top.weight", "step -> None",
        "checkpoints/last.pt -> models/last.pt",
    }  # fmt: skip


@pytest.mark.parametrize(("now", "differ"), [("0.7500000000000001", 0), ("0.75000001", 1), ("-0.75", 1), ("true", 1)])
def test_the_last_bits_of_some_numbers_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: str, differ: int
) -> None:
    monkeypatch.setattr(same_results, "ROUNDED", {"pair"})
    report = compared(tmp_path, rewrite("summary.json", "0.75", now))
    assert len(report.differences) == differ
    assert set(report.renamed) == (set() if differ else {"last bits of pair"})


def test_a_table_hides_no_other_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_results, "KEYS", {"mode": "method", "mpl": "meta"})
    report = compared(tmp_path, rewrite("summary.json", '"mode": "mpl"', '"method": "uda"'))
    assert report.differences == ["x, summary.json, mode, 'mpl' / 'uda'"]


def test_a_tree_gets_the_words_that_its_help_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--name", "x", "--head_prior", "pile", "--no_cache", "--switch_mode"]
    old = "  --head_prior {pile,none}  what\n  --no_cache  not\n  --switch_mode  roles\n"
    new = "  --head_prior {unlabeled,none}  what\n  --keep {yes,no}  or not\n  --mode {mpl,switch}  how\n"
    table = {
        ("--head_prior", "pile"): ("--head_prior", "unlabeled"),
        ("--no_cache",): ("--keep", "no"),
        ("--switch_mode",): ("--mode", "switch"),
    }
    monkeypatch.setattr(same_results, "OPTIONS", table)
    assert other_words(words, old) == words
    assert other_words(words, new) == [
        "--name", "x", "--head_prior", "unlabeled", "--keep", "no", "--mode", "switch",
    ]  # fmt: skip
    assert same_results.other_value(("command",), "MPL.py --no_cache --seed 1") == "MPL.py --keep no --seed 1"
    assert same_results.other_value(("options", "head_prior"), "pile") == "unlabeled"
    assert not knows(new, ["--mod"])
    assert not knows(new, ["--mode", "finetune"])
