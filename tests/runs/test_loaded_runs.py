"""Runs that are loaded, resumed and tested: what they take over, and what they must never see."""

from __future__ import annotations

import csv
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from runs import Moment, killed, make_data, run, same_run
from transfermpl.args import parse
from transfermpl.backbones.library import build_backbone
from transfermpl.data import find_dataset
from transfermpl.features import bank
from transfermpl.features.bank import FeatureBank
from transfermpl.features.sources import FrozenSource, ImageSource
from transfermpl.images.augment import recipe_for

QUICK = ("--model_name", "cnn", "--image_size", 16, "--max_steps", 6)


def photos(folder: Path, counts: dict[str, int], *, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    for place, count in counts.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / place / f"{number}.png")
    return folder


@pytest.mark.slow
def test_validation_is_never_what_a_loaded_run_has_learned(tmp_path: Path) -> None:
    make_data(tmp_path / "data", 20)
    assert run("--name", "m", "--data_dir", "data", "--num_labels", 12, *QUICK, cwd=tmp_path).code == 0
    words = ("--finetune_mode", "--load_path", "m", "--load_best", "--max_steps", 3)
    outcome = run("--name", "f", *words, "--val_percent", "50%", cwd=tmp_path)
    assert outcome.code == 2
    assert "of this validation were training images of the loaded run" in outcome.complaint()[0]
    assert not (tmp_path / "results" / "f").exists()


@pytest.mark.slow
def test_labels_of_the_loaded_run_are_counted(tmp_path: Path) -> None:
    make_data(tmp_path / "data", 20)
    assert run("--name", "m", "--data_dir", "data", "--num_labels", 12, *QUICK, cwd=tmp_path).code == 0
    words = ("--finetune_mode", "--load_path", "m", "--load_best", "--max_steps", 3)
    fewer = run("--name", "f", *words, "--num_labels", 3, cwd=tmp_path)
    assert fewer.code == 0, fewer.err
    assert fewer.summary("f")["labels_used"] == 12
    tested = run("--test_mode", "--load_path", "f", "--load_best", cwd=tmp_path)
    assert "learned from 12 labels" in tested.out


def test_a_loaded_run_is_not_overwritten_by_what_is_made_of_it(tmp_path: Path) -> None:
    assert run("--name", "m", "--data_dir", "moons", "--max_steps", 4, cwd=tmp_path).code == 0
    outcome = run("--name", "m", "--overwrite", "--finetune_mode", "--load_path", "m", "--load_best", cwd=tmp_path)
    assert outcome.code == 2
    assert "--overwrite would delete" in outcome.complaint()[0]
    assert (tmp_path / "results" / "m" / "summary.json").is_file()


def test_a_changed_unlabeled_pool_is_noticed_on_resume(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", {"labeled/a": 4, "labeled/b": 4, "unlabeled": 8, "test/a": 2, "test/b": 2})
    assert run("--name", "x", "--data_dir", "data", *QUICK, cwd=tmp_path).code == 0
    photos(data, {"unlabeled/more": 2}, seed=5)
    outcome = run("--name", "x", "--resume", cwd=tmp_path)
    assert outcome.code == 2
    assert "have changed since the run began" in outcome.complaint()[0]


@pytest.mark.slow
def test_a_test_may_come_alone_or_with_one_class(tmp_path: Path) -> None:
    make_data(tmp_path / "data", 10)
    assert run("--name", "m", "--data_dir", "data", "--num_labels", 6, *QUICK, cwd=tmp_path).code == 0
    classes = sorted(entry.name for entry in (tmp_path / "data").iterdir())
    before = (tmp_path / "results" / "m" / "ensemble_CM.png").read_bytes()
    for folder, counts in {"alone": {f"test/{classes[0]}": 3, f"test/{classes[1]}": 3}, "one": {classes[0]: 4}}.items():
        photos(tmp_path / folder, counts, seed=9)
        outcome = run(
            "--test_mode", "--load_path", "m", "--load_best", "--data_dir", folder, cwd=tmp_path, pictures=True
        )
        assert outcome.code == 0, outcome.err
        assert f"on {sum(counts.values())} images" in outcome.out
    assert (tmp_path / "results" / "m" / "ensemble_CM.png").read_bytes() == before
    assert (tmp_path / "results" / "m" / "test_ensemble_CM.png").is_file()


@pytest.mark.slow
def test_a_table_of_labels_belongs_to_its_folder(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", {"all": 20})
    with (data / "labels.csv").open("w", newline="") as file:
        rows = [[f"all/{n}.png", "ab"[n % 2]] for n in range(20)]
        csv.writer(file).writerows([["path", "label"], *rows])
    table = ("--labels_csv", data / "labels.csv", "--num_labels", 4)
    assert run("--name", "m", "--data_dir", "data", *table, *QUICK, cwd=tmp_path).code == 0
    photos(tmp_path / "new", {"a": 3, "b": 3}, seed=4)
    outcome = run("--test_mode", "--load_path", "m", "--load_best", "--data_dir", "new", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "on 6 images" in outcome.out


def test_options_that_a_test_does_not_use_are_named(tmp_path: Path) -> None:
    assert run("--name", "m", "--data_dir", "moons", "--max_steps", 4, cwd=tmp_path).code == 0
    outcome = run("--test_mode", "--load_path", "m", "--load_best", "--seed", 3, cwd=tmp_path)
    assert outcome.code == 0
    assert "--seed: not used" in outcome.err


def test_the_command_line_overrules_what_excludes_it_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"num_labels": 50, "max_steps": 100, "seed": 7}')
    words = ["--name", "x", "--config", str(tmp_path / "a.json"), "--num_labels_percent", "10%", "--num_epochs", "5"]
    options = parse(words)
    assert (options.data.num_labels, options.data.num_labels_percent) == (None, 0.1)
    assert (options.learning.max_steps, options.learning.num_epochs, options.run.seed) == (None, 5, 7)


def test_batches_too_small_for_batch_norms_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    words = ("--data_dir", "fake", "--model_name", "resnet", "--weights", "none", "--image_size", 32)
    outcome = run("--name", "x", "--finetune_mode", "--batch_size", 1, *words, cwd=tmp_path)
    assert outcome.code == 2
    assert "too small for the batch norms" in outcome.complaint()[0]
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 5])
def test_a_run_killed_within_an_epoch_goes_on_bit_for_bit(count: int, tmp_path: Path) -> None:
    """50 steps an epoch, a checkpoint every 20."""
    words = ("--name", "x", "--data_dir", "moons", "--unlabeled_batch_size", 16, "--max_steps", 150)
    for place in ("whole", "killed"):
        (tmp_path / place).mkdir()
    whole = run(*words, cwd=tmp_path / "whole")
    killed(Moment("runs.checkpoints:save_checkpoint", count, "after"), *words, cwd=tmp_path / "killed")
    saved = torch.load(tmp_path / "killed" / "results" / "x" / "checkpoints" / "last.pt", weights_only=True)
    assert saved["step"] % 50
    resumed = run("--name", "x", "--resume", cwd=tmp_path / "killed")
    assert resumed.code == 0, resumed.err
    assert same_run(whole, resumed)


def test_a_test_without_images_shows_the_validation(tmp_path: Path) -> None:
    words = ("--data_dir", "moons", "--test_percent", 0, "--val_percent", "20%", "--max_steps", 4)
    outcome = run("--name", "x", *words, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "on validation" in outcome.out


@pytest.mark.slow
def test_a_bank_of_many_blocks_needs_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running out of file handles must neither break a run nor pass for damage."""
    monkeypatch.setattr(bank, "BLOCK_ROWS", 4)
    options = parse(["--name", "x", "--data_dir", "fake", "--model_name", "cnn", "--unfreeze", "head"])
    dataset = find_dataset(options.data)
    backbone = build_backbone(options.model, native_size=32, points=False, seed=0, default_name="")
    images = ImageSource(dataset, backbone.transform, recipe_for("photos", None), torch.device("cpu"), workers=0)
    rows = np.arange(len(dataset))
    FeatureBank(tmp_path, FrozenSource(images, backbone)).fill({("eval", 0): rows})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, hard))
    try:
        again = FeatureBank(tmp_path, FrozenSource(images, backbone))
        assert again.fill({("eval", 0): rows}) == 0
        assert len(list(again.inputs(rows))) > 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(list(again.folder.glob("*/*.block"))) == 200
    shutil.rmtree(tmp_path)
