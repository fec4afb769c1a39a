"""`--model_name auto`: what is taken, when, and what the user reads of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runs import make_data, prepared, run
from transfermpl import args
from transfermpl.backbones import hub
from transfermpl.data import find_dataset, split_dataset
from transfermpl.runs import auto
from transfermpl.runs.training import show_networks

LITE0, VIT = "timm:tf_efficientnet_lite0", "timm:vit_small_patch14_dinov2.lvd142m"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("photos"), 4)


@pytest.fixture
def choose(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What auto takes with these options; nothing is measured, and no hub is asked."""
    monkeypatch.setattr(auto, "images_per_second", lambda *_: 20.0)
    monkeypatch.setattr(hub, "hub_file", lambda *_: None)
    monkeypatch.setattr(hub, "fetched", lambda *_: False)

    def chosen(*words: object) -> dict[str, Any]:
        line = ("--name", "x", "--data_dir", photos, "--device", "cpu", *words)
        options = args.parse([str(word) for word in line])
        dataset, views = find_dataset(options.data), options.cotraining.views
        split = split_dataset(dataset, options.data, 0)
        return auto.auto_model(options.model, options.data, options.run, views, dataset, split)

    return chosen


def test_without_a_hub_it_is_the_installed_network_and_one_line_says_so(choose: Any, capsys: Any) -> None:
    assert choose()["model_name"] == LITE0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "auto" in line]
    assert "EfficientNet-Lite0" in line
    assert "20 images/s" in line
    assert "DINOv2" in line
    assert choose("--model_name", "auto")["model_name"] == LITE0


def test_what_is_named_or_built_in_is_not_chosen(choose: Any) -> None:
    assert choose("--model_name", "cnn") == {}
    assert choose("--data_dir", "digits") == {}
    assert choose("--data_dir", "moons") == {}
    assert choose("--cotrain_mode", "--views", "pixels", "gradients") == {}


def test_few_images_or_a_gpu_take_dinov2_if_it_can_be_had(choose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub_file", lambda *_: Path("cached"))
    assert choose() == {"model_name": VIT, "image_size": 224, "weights": "default"}
    assert choose("--image_size", 98)["image_size"] == 98
    assert choose("--image_size", 100)["model_name"] == LITE0  # no multiple of its patch
    assert choose("--unfreeze", "all")["model_name"] == LITE0
    monkeypatch.setattr(auto, "FEW", 10)
    assert choose()["model_name"] == LITE0
    monkeypatch.setattr(auto, "choose_device", lambda _: torch.device("cuda"))
    assert choose()["model_name"] == VIT


def test_the_hub_is_not_asked_where_its_weights_would_not_be_taken(
    choose: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "FEW", 10)
    monkeypatch.setattr(hub, "fetched", lambda *_: pytest.fail("it was asked"))
    assert choose()["model_name"] == LITE0
    assert choose("--weights", "none")["model_name"] == LITE0


def test_weights_of_dinov2_in_a_file_are_known(choose: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "v.safetensors"
    save_file({"patch_embed.proj.weight": torch.zeros(384, 3, 14, 14)}, file)
    assert choose("--weights", file) == {"model_name": VIT, "image_size": 224, "weights": str(file)}
    save_file({"conv_stem.weight": torch.zeros(1)}, file)
    assert choose("--weights", file)["model_name"] == LITE0


def test_random_weights_say_what_they_cost(photos: Path, tmp_path: Path, capsys: Any) -> None:
    words = ("--num_labels", 6, "--max_steps", 5, "--num_workers", 0, "--device", "cpu", "--image_size", 32)
    line = ("--name", "x", "--data_dir", photos, "--weights", "none", *words)
    show_networks(prepared(*line, "--model_name", "timm:resnet10t"))
    (said,) = [said for said in capsys.readouterr().out.splitlines() if said.startswith("--weights none")]
    assert "about" in said
    assert "lite0" in said
    show_networks(prepared(*line, "--model_name", "cnn"))
    assert "--weights none" not in capsys.readouterr().out


@pytest.mark.parametrize("labels", [(), ("--num_labels_percent", "50%"), ("--no_include_labeled", "--num_labels", "6")])
@pytest.mark.parametrize("draws", [1, 5, 8])
def test_what_is_said_to_be_computed_is_computed(
    labels: tuple[str, ...], draws: int, photos: Path, tmp_path: Path
) -> None:
    line = ("--name", "x", "--data_dir", photos, "--model_name", "cnn", "--unfreeze", "head", "--image_size", 16)
    words = ("--augmentation_draws", draws, "--cache_dir", tmp_path, "--max_steps", 400, "--unlabeled_batch_size", 8)
    trainer = prepared(*line, *words, "--num_workers", 0, "--device", "cpu", *labels)
    split, [bank] = trainer.context.split, trainer.views.banks
    wanted = trainer.sampler.wanted(trainer.planned_steps) | {("eval", 0): np.concatenate([split.val, split.test])}
    assert auto.rows_of_bank(split, draws) == bank.missing(wanted) > 0


@pytest.mark.slow
def test_a_run_keeps_what_was_taken(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed, tested or predicted with, it chooses nothing again."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line = ("--name", "x", "--data_dir", photos, "--max_steps", 4, "--augmentation_draws", 1, "--num_workers", 0)
    first = run(*line, "--test_percent", "50%", cwd=tmp_path)
    assert first.code == 0, first.err
    assert first.out.count("--model_name auto") == 1
    stored = json.loads((first.folder() / "commandline_args.txt").read_text(encoding="utf-8"))
    assert stored["model_name"] == LITE0
    assert first.summary()["backbones"] == {LITE0: f"{LITE0}, 224 px"}
    monkeypatch.setattr(auto, "images_per_second", lambda *_: pytest.fail("it chose again"))
    for more in (
        ("--name", "x", "--resume", "--model_name", "auto"),
        ("--test_mode", "--load_path", "x", "--data_dir", photos),
        ("--predict_dir", photos, "--load_path", "x"),
        ("--name", "y", "--finetune_mode", "--load_path", "x", "--max_steps", 2, "--num_workers", 0),
    ):
        again = run(*more, cwd=tmp_path)
        assert again.code == 0, again.err
