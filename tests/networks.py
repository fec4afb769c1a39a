"""Backbones and views as tests ask for them, and how tests compare networks. No network is needed: files are made."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from transfermpl import args
from transfermpl.backbones.backbone import Backbone
from transfermpl.backbones.library import build_backbone
from transfermpl.backbones.registry import build_view
from transfermpl.backbones.weights import state_digest
from transfermpl.utils import UserError


def build(name: str | None = None, weights: object = "none", **more: Any) -> Backbone:
    """A backbone, from scratch unless weights are given."""
    place = {"native_size": 0, "points": False, "seed": 0, "default_name": "cnn"}
    place |= {key: more.pop(key) for key in list(more) if key in place}
    return build_backbone(args.Model(model_name=name, weights=str(weights), **more), **place)


def equal(a: nn.Module, b: nn.Module) -> bool:
    return state_digest(a) == state_digest(b)


# --- views ------------------------------------------------------------------------------------------------------------


def built_view(spec: str, **more: Any) -> Backbone:
    return build_view(spec, **{"native_size": 0, "points": False, "seed": 0, **more})


def complaint(spec: str, **more: Any) -> str:
    """The one line that a user reads."""
    with pytest.raises(UserError) as caught:
        built_view(spec, **more)
    assert "\n" not in str(caught.value)
    assert "--model_name" not in str(caught.value)
    return str(caught.value)


def same_features(backbone: Backbone, expected: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Both map the same images to the same numbers, sane ones."""
    images = torch.rand(2, 3, backbone.transform.size, backbone.transform.size)
    with torch.no_grad():
        features = backbone.eval()(images)
        wanted = expected((images - backbone.mean) / backbone.std)
    assert features.shape == (2, backbone.num_features)
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    torch.testing.assert_close(features, wanted)


def randomised(net: nn.Module) -> nn.Module:
    """Every weight away from its start: zeros and ones would hide that something was not loaded."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.05 * torch.randn_like(parameter) + (0.5 if parameter.ndim == 1 else 0))
    return net.eval()


def cached(caches: Path, repository: str, *files: Path) -> None:
    """Put files where the hub's client keeps those of a repository."""
    folder = caches / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("0123")
    (folder / "snapshots" / "0123").mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(file, folder / "snapshots" / "0123")


# --- EsViT's files ----------------------------------------------------------------------------------------------------


def esvit_shapes(
    width: int, depths: tuple[int, ...], window: int, heads: tuple[int, ...], *, old: bool = False
) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the teacher in EsViT's checkpoints: a Swin that joins patches at the end of a stage, and two
    heads of DINO. old: with the masks that its first version kept.
    """
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (width, 3, 4, 4),
        "patch_embed.proj.bias": (width,),
    }
    shapes |= {f"patch_embed.norm.{part}": (width,) for part in ("weight", "bias")}
    tokens = window * window
    for stage, depth in enumerate(depths):
        d = width * 2**stage
        for block in range(depth):
            inside = f"layers.{stage}.blocks.{block}"
            shapes |= {f"{inside}.norm{i}.{part}": (d,) for i in (1, 2) for part in ("weight", "bias")}
            table = {"relative_position_bias_table": ((2 * window - 1) ** 2, heads[stage])}
            table |= {"relative_position_index": (tokens, tokens)}
            linear = {"qkv": (3 * d, d), "proj": (d, d)}
            shapes |= {f"{inside}.attn.{name}": shape for name, shape in table.items()}
            shapes |= {f"{inside}.attn.{name}.weight": shape for name, shape in linear.items()}
            shapes |= {f"{inside}.attn.{name}.bias": shape[:1] for name, shape in linear.items()}
            shapes |= {f"{inside}.mlp.fc1.weight": (4 * d, d), f"{inside}.mlp.fc1.bias": (4 * d,)}
            shapes |= {f"{inside}.mlp.fc2.weight": (d, 4 * d), f"{inside}.mlp.fc2.bias": (d,)}
            if old and block % 2 and stage < len(depths) - 1:
                shapes[f"{inside}.attn_mask"] = (4, tokens, tokens)
        if stage < len(depths) - 1:
            shapes[f"layers.{stage}.downsample.reduction.weight"] = (2 * d, 4 * d)
            shapes |= {f"layers.{stage}.downsample.norm.{part}": (4 * d,) for part in ("weight", "bias")}
    last = width * 2 ** (len(depths) - 1)
    shapes |= {"norm.weight": (last,), "norm.bias": (last,)}
    for head in ("head", "head_dense"):
        for layer in (0, 2, 4):
            shapes |= {f"{head}.mlp.{layer}.weight": (5, 5), f"{head}.mlp.{layer}.bias": (5,)}
        shapes |= {f"{head}.last_layer.weight_g": (9, 1), f"{head}.last_layer.weight_v": (9, 5)}
    return shapes


def esvit_checkpoint(path: Path, *arguments: Any, **more: Any) -> dict[str, torch.Tensor]:
    """A whole checkpoint as main_esvit.py writes it; returns the teacher's state."""
    shapes = esvit_shapes(*arguments, **more)
    teacher = {
        key: torch.zeros(shape, dtype=torch.long) if key.endswith("index") else 0.1 * torch.randn(shape)
        for key, shape in shapes.items()
    }
    student = {f"module.{key}": torch.zeros_like(value) for key, value in teacher.items()}
    line = argparse.Namespace(arch="swin_tiny", epochs=300, local_crops_number=(8,), use_fp16=True)
    content = {"student": student, "teacher": teacher, "optimizer": {"state": {}, "param_groups": []}, "epoch": 300}
    torch.save({**content, "args": line, "dino_loss": {"center": torch.zeros(1, 9)}, "fp16_scaler": {}}, path)
    return teacher
