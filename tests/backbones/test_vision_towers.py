"""The vision towers of transformers, tiny ones: their files, keys, transforms and errors. No network is needed."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from networks import built_view, cached, complaint, same_features
from transfermpl.backbones import registry, vision_towers
from transfermpl.backbones.weights import state_digest

pytestmark = pytest.mark.usefixtures("no_network")


FAMILIES = list(vision_towers.TOWERS)


def tower_of(model: Any) -> nn.Module:
    return getattr(model, "owlv2", model).vision_model


# What the published files hold beside the tower, by the first parts of the keys.
BESIDE = {
    "blip": ["text_decoder.bert.embeddings.LayerNorm.bias", "text_decoder.cls.predictions.bias", "vision_proj.weight",
             "text_encoder.encoder.layer.0.output.dense.bias", "itm_head.weight", "text_proj.bias"],
    "blip2": ["query_tokens", "qformer.layernorm.weight", "language_projection.bias", "itm_head.bias", "temp",
              "language_model.model.decoder.embed_tokens.weight", "text_proj.weight", "vision_proj.weight",
              "cls.predictions.decoder.bias", "vision_projection.bias", "embeddings.word_embeddings.weight"],
    "align": ["text_model.pooler.dense.bias", "text_model.embeddings.position_ids", "text_projection.weight",
              "temperature"],
    "owlv2": ["owlv2.text_model.final_layer_norm.bias", "owlv2.logit_scale", "owlv2.visual_projection.weight",
              "owlv2.vision_model.embeddings.position_ids", "box_head.dense0.bias", "class_head.logit_shift.weight",
              "objectness_head.dense2.bias", "layer_norm.weight", "owlv2.text_projection.weight"],
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_towers_are_loaded_from_whole_models(family: str, saved: Any, tmp_path: Path) -> None:
    model, folder = saved(family)
    backbone = built_view(f"{family}={folder}")
    assert (backbone.name, backbone.pretrained) == (family, True)
    tower = tower_of(model)
    same_features(backbone, lambda images: tower(pixel_values=images).pooler_output)
    # The same with all that published files hold besides, in the older format.
    state = load_file(folder / "model.safetensors") | {key: torch.zeros(3) for key in BESIDE[family]}
    torch.save(state, tmp_path / "pytorch_model.bin")
    shutil.copy(folder / "config.json", tmp_path)
    assert state_digest(built_view(f"{family}={tmp_path}")) == state_digest(backbone)
    # And what nobody named is an error.
    key = next(key for key in state if "vision_model." in key and key.endswith(".weight"))
    state["stranger.weight"] = state.pop(key)
    torch.save(state, tmp_path / "pytorch_model.bin")
    line = complaint(f"{family}={tmp_path}")
    assert re.search(r"1 missing \(.*1 unexpected \(stranger.weight\)", line)


@pytest.mark.parametrize("family", FAMILIES)
def test_towers_are_loaded_alone_and_from_shards(family: str, saved: Any, tmp_path: Path) -> None:
    model, folder = saved(family)
    digest = state_digest(built_view(f"{family}={folder}"))
    tower_of(model).save_pretrained(tmp_path / "alone")
    assert state_digest(built_view(f"{family}={tmp_path / 'alone'}")) == digest
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert state_digest(built_view(f"{family}={tmp_path / 'shards'}")) == digest
    places = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {place for key, place in places.items() if "vision_model" in key}
    for shard in shards:
        if shard.name not in needed:
            shard.unlink()
    assert state_digest(built_view(f"{family}={tmp_path / 'shards'}")) == digest
    (tmp_path / "shards" / next(iter(needed))).unlink()
    assert "download them all" in complaint(f"{family}={tmp_path / 'shards'}")


@pytest.mark.parametrize("family", FAMILIES)
def test_towers_are_taken_from_the_cache(family: str, saved: Any, no_network: Path) -> None:
    model, folder = saved(family)
    repository = vision_towers.TOWERS[family].repository
    line = complaint(family)
    assert f"model.safetensors of https://huggingface.co/{repository}" in line
    assert f"--views {family}=FOLDER" in line
    cached(no_network, repository, folder / "model.safetensors")
    assert registry.on_disk(family) is None  # the configuration is needed as well
    cached(no_network, repository, folder / "config.json")
    assert registry.on_disk(family) is not None
    digest = state_digest(built_view(f"{family}={folder}"))
    assert state_digest(built_view(family)) == digest
    cached(no_network, "somebody/else", folder / "model.safetensors", folder / "config.json")
    assert state_digest(built_view(f"{family}=somebody/else")) == digest


@pytest.mark.parametrize("family", ["blip", "blip2", "align", "owlv2"])
def test_towers_take_another_size(family: str, saved: Any) -> None:
    backbone = built_view(f"{family}={saved(family)[1]}", image_size=48)
    assert backbone.transform.size == 48
    features = backbone.eval()(torch.rand(2, 3, 48, 48))
    assert features.shape == (2, backbone.num_features)
    assert features.isfinite().all()


FIRST = (vision_towers.CLIP[0][0], vision_towers.CLIP[1][0])  # mean and std of red


# preprocessor_config.json as published: of BLIP, of ALIGN, of OWLv2, and of older versions of the library.
PROCESSORS: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 3,
      "size": {"height": 384, "width": 384}, "rescale_factor": 1 / 255}, (384, 384, "bicubic", 0.1, 0.4)),
    ({"crop_size": {"height": 289, "width": 289}, "do_center_crop": True, "do_normalize": False, "do_rescale": True,
      "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2, "rescale_factor": 2 / 255,
      "rescale_offset": True, "size": {"height": 346, "width": 346}}, (289, 346, "bilinear", 0.5, 0.5)),
    ({"do_pad": True, "resample": 2, "size": {"height": 960, "width": 960}}, (960, 960, "bilinear", *FIRST)),
    ({"size": [224, 224], "crop_size": 224, "do_center_crop": True}, (224, 224, "bicubic", *FIRST)),
    ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True}, (224, 256, "bicubic", *FIRST)),
]  # fmt: skip


@pytest.mark.parametrize(("processor", "expected"), PROCESSORS)
def test_towers_bring_their_transform(processor: dict[str, Any], expected: tuple[Any, ...]) -> None:
    t = vision_towers._transform(processor, vision_towers.TOWERS["blip"].transform)
    assert (t.size, t.resize, t.interpolation) == expected[:3]
    assert (t.mean[0], t.std[0]) == pytest.approx(expected[3:])


def test_the_processor_in_a_folder_counts(saved: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(saved("blip")[1], tmp_path / "b")
    processor = {"size": {"height": 48, "width": 48}, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    backbone = built_view(f"blip={folder}")
    assert (backbone.transform.size, backbone.transform.mean) == (48, (0.1, 0.2, 0.3))
    assert built_view(f"blip={saved('blip')[1]}").transform.size == 32  # without one, the configuration's


def test_folders_that_are_no_tower(saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "holds a model of the type owlv2, not blip" in complaint(f"blip={saved('owlv2')[1]}")
    assert "there is no config.json" in complaint(f"blip={tmp_path}")
    assert "there is no such folder" in complaint("blip=/no/such/folder")
    shutil.copy(saved("blip")[1] / "config.json", tmp_path)
    assert "neither model.safetensors nor pytorch_model.bin" in complaint(f"blip={tmp_path}")
    (tmp_path / "config.json").write_text("{")
    assert "can't be read as JSON" in complaint(f"blip={tmp_path}")
    (tmp_path / "config.json").write_text("[]")
    assert "of the type None, not blip" in complaint(f"blip={tmp_path}")
    (tmp_path / "config.json").write_text('{"model_type": "blip", "vision_config": {"hidden_size": "many"}}')
    assert "config.json of blip describes no network" in complaint(f"blip={tmp_path}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install transformers" in complaint(f"blip={saved('blip')[1]}")


def test_nothing_runs_code_from_a_folder(saved: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(saved("blip")[1], tmp_path / "b")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\n")
    built_view(f"blip={folder}")
    assert not (tmp_path / "harm").exists()
