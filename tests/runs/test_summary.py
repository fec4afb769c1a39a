"""What the summaries of all commands have in common."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from transfermpl import args
from transfermpl.data import find_dataset, split_dataset
from transfermpl.runs import summary
from transfermpl.runs.summary import commit, data_used, made_with, summary_header, versions


def test_the_header_names_the_run_and_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/MPL.py", "--name", "a b"])
    header = summary_header("x", mode="mpl", seed=3)
    assert list(header.items()) == [("name", "x"), ("mode", "mpl"), ("seed", 3), ("command", "MPL.py --name 'a b'")]
    assert summary_header("x", words=["--resume"])["command"] == "MPL.py --resume"
    assert list(made_with()) == ["versions", "commit"]


def test_images_are_counted_by_part_and_labels_by_content() -> None:
    dataset = find_dataset(args.Data(data_dir="moons"))
    split = split_dataset(dataset, args.Data(data_dir="moons", num_labels=20), 0)
    used = {"labels": np.array([1, 2, 3], dtype=np.uint64), "validation": np.array([3, 4], dtype=np.uint64)}
    found = data_used(dataset, split, used)
    assert found["labels_used"] == 4
    assert list(found["dataset"]["images"]) == ["labeled", "unlabeled", "val", "test"]
    assert found["dataset"]["images"]["labeled"] == 20
    assert found["dataset"]["path"] == "moons"
    assert len(found["dataset"]["classes"]) == 2


def test_versions_and_commit_are_known_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.__version__.startswith(versions()["torch"])
    assert {"python", "torch", "torchvision", "timm", "numpy"} <= set(versions())
    found = commit()
    assert found is None or len(found.removesuffix("+")) == 40

    def missing(*args: object, **named: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert commit() is None


def test_an_installed_program_has_no_commit_though_it_lies_in_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.setattr(summary, "__file__", str(tmp_path / "site-packages" / "transfermpl" / "runs" / "summary.py"))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("git was asked"))
    assert commit() is None
