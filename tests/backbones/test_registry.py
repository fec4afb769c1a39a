"""Views: their names, timm's among them, the list, and views that are kept in a file. No network is needed.

The timm views are tried one block deep; the networks of full size on the meta device.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from networks import built_view, cached, complaint, esvit_checkpoint, randomised, same_features
from runs import ROOT, run
from transfermpl import args
from transfermpl.backbones import hub, registry, vision_towers
from transfermpl.backbones.registry import (
    CATALOGUE,
    ViewName,
    check_views,
    parse_view,
    restored_view,
    save_view,
    view_labels,
)
from transfermpl.backbones.weights import state_digest
from transfermpl.utils import UserError

pytestmark = pytest.mark.usefixtures("no_network")
TIMM = [name for name, entry in CATALOGUE.items() if entry.source.startswith("timm:")]
VITS = [name for name in TIMM if name != "lite0"]

# --- names ------------------------------------------------------------------------------------------------------------


def test_a_name_may_bring_weights() -> None:
    assert parse_view("clip") == ViewName("clip", "default")
    assert parse_view("clip=/a=b/ü.pth") == ViewName("clip", "/a=b/ü.pth")
    for wrong in ("", "=x", "clip=", " =x"):
        with pytest.raises(UserError, match="takes NAME or NAME=FILE"):
            parse_view(wrong)
        with pytest.raises(UserError, match="takes NAME or NAME=FILE|list of words"):
            args.make({"name": "x", "views": ["clip", wrong]})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dinov22", "did you mean dinov2"),
        ("Clip", "did you mean clip"),
        ("pixel", "did you mean pixels"),
        ("resent18", "did you mean resnet18"),
        ("resnet10t", "did you mean timm:resnet10t"),
        ("q", "is unknown"),
    ],
)
def test_an_unknown_name(name: str, says: str) -> None:
    line = complaint(f"{name}=/no/file")
    assert line.startswith(f"--views {name} is unknown")
    assert says in line
    with pytest.raises(UserError, match=re.escape(says)):  # and before anything is built
        check_views(["dinov2", name])


def test_labels_of_views_differ() -> None:
    assert view_labels(["clip", "swav=a", "clip=b", "clip", "clip-2"]) == [
        "clip",
        "swav",
        "clip-2",
        "clip-3",
        "clip-2-2",
    ]


def test_whatever_model_name_takes_is_a_view(tmp_path: Path) -> None:
    torch.save(built_view("cnn").net.state_dict(), tmp_path / "c.pt")
    backbone = built_view(f"cnn={tmp_path / 'c.pt'}", native_size=8)
    assert (backbone.name, backbone.pretrained, backbone.transform.size) == ("cnn", True, 16)
    assert built_view("squeezenet=none", image_size=64).name == "squeezenet1_0"
    assert built_view("timm:test_vit=none").num_features == 64
    assert built_view("mlp", points=True).num_features == 64
    assert "points" in complaint("clip", points=True)
    assert complaint("cnn", points=True).startswith("--views cnn needs images")


def test_errors_speak_of_views(tmp_path: Path) -> None:
    assert complaint("resnet18=/no/such.pth").startswith("--views resnet18=/no/such.pth: there is no such file")
    assert "name the file in it" in complaint(f"clip={tmp_path}")
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pth")
    line = complaint(f"resnet18={tmp_path / 'x.pth'}")
    assert line.startswith(f"--views resnet18={tmp_path / 'x.pth'} does not fit resnet18")
    assert "pixels has no weights" in complaint("pixels=x.pth")


# --- timm -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [name if name in ("clip", "mae") else pytest.param(name, marks=pytest.mark.slow) for name in VITS if name != "eva"],
)
def test_timm_views_load_a_file_and_keep_timms_transform(name: str, shallow: Any, tmp_path: Path) -> None:
    import timm

    short = CATALOGUE[name].source.removeprefix("timm:")
    # As published: eva and clip with their projection.
    net = randomised(shallow(short, pretrained=False))
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    backbone = built_view(f"{name}={tmp_path / 'model.safetensors'}")
    assert backbone.pretrained
    assert backbone.name == CATALOGUE[name].source
    own = timm.data.resolve_model_data_config(net)
    transform, size = backbone.transform, CATALOGUE[name].size
    assert (transform.interpolation, transform.mean, transform.std) == (own["interpolation"], own["mean"], own["std"])
    assert transform.size == size == (224 if name == "dinov2" else own["input_size"][-1])
    assert transform.resize == int(size / own["crop_pct"])
    assert backbone.num_features == CATALOGUE[name].features == net.num_features
    if name == "dinov2":  # its own size, to which the net was made
        net.set_input_size(img_size=(224, 224))
    same_features(backbone, lambda images: net.forward_head(net.forward_features(images), pre_logits=True))
    folder = built_view(f"{name}={tmp_path}")  # a folder as the hub gives it
    assert state_digest(folder) == state_digest(backbone)


def test_timm_views_are_taken_from_the_cache(shallow: Any, tmp_path: Path, no_network: Path) -> None:
    line = complaint("mae")
    assert "download model.safetensors of https://huggingface.co/timm/vit_base_patch16_224.mae" in line
    assert "--views mae=FILE" in line
    assert "none" not in line
    net = randomised(shallow("vit_base_patch16_224.mae", pretrained=False, num_classes=0))
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    cached(no_network, "timm/vit_base_patch16_224.mae", tmp_path / "model.safetensors")
    assert registry.on_disk("mae") is not None
    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "_answers", lambda address: asked.append(address))
        same_features(built_view("mae"), net)
    assert not asked  # what is there needs no look at the network


@pytest.mark.slow
def test_files_of_the_authors_are_read_by_timms_map(shallow: Any, tmp_path: Path) -> None:
    net = randomised(shallow("vit_base_patch14_dinov2.lvd142m", pretrained=False, num_classes=0))
    state = {**net.state_dict(), "mask_token": torch.zeros(1, 768)}
    torch.save(state, tmp_path / "dinov2_vitb14_pretrain.pth")
    backbone = built_view(f"dinov2={tmp_path / 'dinov2_vitb14_pretrain.pth'}")
    net.set_input_size(img_size=(224, 224))
    same_features(backbone, net)
    torch.save({**state, "extra.weight": torch.zeros(1)}, tmp_path / "x.pth")
    assert "1 unexpected (extra.weight)" in complaint(f"dinov2={tmp_path / 'x.pth'}")
    del state["blocks.0.norm1.weight"]
    torch.save(state, tmp_path / "y.pth")
    assert "1 missing (blocks.0.norm1.weight)" in complaint(f"dinov2={tmp_path / 'y.pth'}")


# --- keeping a view ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["cnn", "timm:test_vit", *(pytest.param(n, marks=pytest.mark.slow) for n in ("esvit", "blip")), "align", "pixels"],
)
def test_a_view_is_saved_and_named_later(name: str, saved: Any, tmp_path: Path) -> None:
    """Also built again from its record alone, as a checkpoint does it: none of its own files is needed any more."""
    spec = {"pixels": "pixels", "cnn": "cnn", "timm:test_vit": "timm:test_vit=none"}.get(name)
    if name == "esvit":
        esvit_checkpoint(tmp_path / "e.pth", 8, (1, 1), 7, (1, 2))
        spec = f"esvit={tmp_path / 'e.pth'}"
    backbone = built_view(spec or f"{name}={saved(name)[1]}", image_size=112 if name == "esvit" else None)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.01  # as if it had been fine-tuned
    record = json.loads(json.dumps(registry.view_record(backbone)))
    again = restored_view(record, native_size=0, points=False, seed=3)
    again.load_state_dict(backbone.state_dict())
    assert again.transform == backbone.transform
    assert (again.name, again.pretrained, again.num_features) == (
        backbone.name,
        backbone.pretrained,
        backbone.num_features,
    )
    same_features(again, backbone.eval().net)
    if name == "pixels":
        return
    path = tmp_path / "fine-tuned.safetensors"
    save_view(path, backbone)
    taken = built_view(f"{name}={path}")
    assert taken.pretrained
    assert taken.transform == backbone.transform
    assert state_digest(taken) == state_digest(backbone)
    assert f"was saved from {backbone.name}, not from swav" in complaint(f"swav={path}")
    assert "leave out --image_size" in complaint(f"{name}={path}", image_size=48)
    assert not list(tmp_path.glob(".part-*"))


def test_a_saved_short_name_is_taken_under_both_names(shallow: Any, tmp_path: Path) -> None:
    backbone = built_view("dinov2=none")
    save_view(tmp_path / "v.safetensors", backbone)
    for name in ("dinov2", "timm:vit_base_patch14_dinov2.lvd142m"):
        assert state_digest(built_view(f"{name}={tmp_path / 'v.safetensors'}")) == state_digest(backbone)


# --- the list ---------------------------------------------------------------------------------------------------------


def test_the_list(tmp_path: Path, no_network: Path) -> None:
    cached(no_network, "timm/vit_base_patch16_clip_224.openai")
    snapshot = no_network / "models--timm--vit_base_patch16_clip_224.openai" / "snapshots" / "0123"
    (snapshot / "model.safetensors").write_bytes(b"weights")
    begin = time.monotonic()
    outcome = run("--list_views", cwd=tmp_path)
    assert time.monotonic() - begin < 2
    assert outcome.code == 0, outcome.err
    assert not list(tmp_path.glob("results*"))
    lines = outcome.out.splitlines()
    for word in ("name", "source", "parameters", "features", "licence", "ImageNet labels", "on this disk"):
        assert word in lines[0]
    rows = {line.split()[0]: line for line in lines[1 : 1 + len(CATALOGUE)]}
    assert list(rows) == list(CATALOGUE)
    assert rows["clip"].endswith("yes")
    assert rows["dinov2"].endswith("no")
    assert "85.7 M" in rows["dinov2"]
    assert "CC-BY-NC-4.0" in rows["mae"]
    assert "yes, at its start" in rows["blip"]
    assert rows["pixels"].endswith("none needed")
    assert all(len(line) <= 140 for line in lines)


def test_the_page_on_views_says_the_same() -> None:
    text = (ROOT / "docs" / "views.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")
    ]
    page = {row[0]: row for row in rows if row[0] in CATALOGUE}
    assert list(page) == list(CATALOGUE)
    for name, entry in CATALOGUE.items():
        cells = page[name]
        assert cells[-1] == entry.labels
        if name not in registry.RAW:
            assert cells[1:4] == [str(entry.size), f"{entry.parameters:.1f} M", str(entry.features)]
            assert cells[5] == entry.licence
    commands = [line for line in text.splitlines() if line.startswith("python MPL.py")]
    assert commands
    for command in commands:
        assert check_views(args.parse(shlex.split(command)[2:]).cotraining.views) is not None


def test_timms_licences_are_those_that_timm_states() -> None:
    import timm

    for name in TIMM:
        stated = timm.models.get_pretrained_cfg(CATALOGUE[name].source.removeprefix("timm:")).license
        ours = CATALOGUE[name].licence.lower().replace(" ", "-")
        assert ours == stated, name


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CATALOGUE if name not in registry.RAW])
def test_the_list_says_what_the_networks_are(name: str) -> None:
    """At full size, but without memory: shapes alone are computed."""
    if name in vision_towers.TOWERS:
        pytest.importorskip("transformers")
    entry = CATALOGUE[name]
    with torch.device("meta"):
        backbone = built_view(f"{name}=none").eval()
        size = backbone.transform.size
        features = backbone(torch.zeros(2, 3, size, size))
    assert not backbone.pretrained
    assert features.shape == (2, entry.features)
    assert size == entry.size
    assert round(sum(parameter.numel() for parameter in backbone.parameters()) / 1e6, 1) == entry.parameters
