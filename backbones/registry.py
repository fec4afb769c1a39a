"""The views of co-training: backbones by short names, the list of them, building one and keeping it in a file.

To add a view: a row of CATALOGUE; where neither torchvision nor timm has the network, also a builder in RAW or BUILT.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import args
from ..base.files import atomic_file
from ..base.tables import text_table
from ..images.decode import Transform
from ..utils import UserError, say
from . import hub, library, published, raw_views, vision_towers
from .backbone import Backbone, as_backbone, keyed_weights, scaled
from .library import resolve_name
from .weights import RECORD, SUFFIXES, learned_in, load_into, one_line, read_weights, record_in, state_digest


@dataclass(frozen=True)
class Entry:
    """A row of the list. `source` is a name of --model_name, or where a family that is built here comes from."""

    source: str
    size: int  # pixels of a side; 0: the data's own
    parameters: float  # millions
    features: int  # 0: they follow from the size
    licence: str  # of the weights, as their publisher states it
    labels: str  # whether the training saw ImageNet's labels


# Parameters and features are compared with the built networks by tests/backbones/test_registry.py.
CATALOGUE = {
    "pixels": Entry("built in: raw pixels", 0, 0, 0, "", "no"),
    "gradients": Entry("built in: histograms of gradients", 0, 0, 0, "", "no"),
    "lite0": Entry(library.ALIASES["lite0"], 224, 3.4, 1280, "Apache-2.0", "yes"),
    # 518 px, its own size, would cost 5.3 times the tokens.
    "dinov2": Entry("timm:vit_base_patch14_dinov2.lvd142m", 224, 85.7, 768, "Apache-2.0", "no"),
    "dinov3": Entry("timm:vit_base_patch16_dinov3.lvd1689m", 256, 85.6, 768, "DINOv3 License", "no"),
    "clip": Entry("timm:vit_base_patch16_clip_224.openai", 224, 85.8, 768, "Apache-2.0", "no"),
    "siglip": Entry("timm:vit_base_patch16_siglip_224.webli", 224, 92.9, 768, "Apache-2.0", "no"),
    "mae": Entry("timm:vit_base_patch16_224.mae", 224, 85.8, 768, "CC-BY-NC-4.0", "no"),
    "hiera": Entry("timm:hiera_base_224.mae", 224, 50.8, 768, "CC-BY-NC-4.0", "no"),
    "eva": Entry("timm:eva_giant_patch14_clip_224.laion400m", 224, 1011.1, 1408, "MIT", "no"),
    "eva02": Entry("timm:eva02_base_patch14_224.mim_in22k", 224, 85.8, 768, "MIT", "no"),
    "swav": Entry("torchvision resnet50, SwAV's file", 224, 23.5, 2048, "CC-BY-NC-4.0", "no"),
    "esvit": Entry("timm Swin-B, EsViT's file", 224, 86.9, 1024, "MIT", "no"),
    "blip": Entry(vision_towers.TOWERS["blip"].repository, 384, 86.1, 768, "BSD-3-Clause", "yes, at its start"),
    "blip2": Entry(vision_towers.TOWERS["blip2"].repository, 224, 986.0, 1408, "MIT", "no"),
    "align": Entry(vision_towers.TOWERS["align"].repository, 289, 62.1, 640, "not stated", "no"),
    "owlv2": Entry(vision_towers.TOWERS["owlv2"].repository, 960, 88.4, 768, "Apache-2.0", "no"),
}
RAW = {"pixels": raw_views.pixels, "gradients": raw_views.gradients}
BUILT = {"swav": published.swav, "esvit": published.esvit} | {
    name: partial(vision_towers.vision_tower, name) for name in vision_towers.TOWERS
}


@dataclass(frozen=True)
class ViewName:
    """What `--views NAME[=WEIGHTS]` says; weights: a file, a folder, a name of the hub, `none`, or `default`."""

    name: str
    weights: str = "default"


def parse_view(spec: str) -> ViewName:
    """The parts of NAME or NAME=WEIGHTS; only the first = separates them. Raises UserError."""
    try:
        name, sign, weights = args.view_name(spec).partition("=")
    except ValueError as error:
        raise UserError(f"--views {spec}: {error}") from None
    return ViewName(name, weights if sign else "default")


def check_views(specs: Sequence[str]) -> list[ViewName]:
    """All views by name, before anything is built. Raises UserError for the first name that is unknown."""
    views = [parse_view(spec) for spec in specs]
    for view in views:
        if view.name not in CATALOGUE:
            _check_name(view)
    return views


def view_labels(specs: Sequence[str]) -> list[str]:
    """A name for each view, no two alike: dinov2, clip, dinov2-2."""
    labels: list[str] = []
    for view in map(parse_view, specs):
        number = 2
        label = view.name
        while label in labels:
            label, number = f"{view.name}-{number}", number + 1
        labels.append(label)
    return labels


def _check_name(view: ViewName) -> None:
    try:
        resolve_name(view.name)
    except UserError as error:
        near = difflib.get_close_matches(view.name, CATALOGUE, n=2)
        if not near:
            raise UserError(_in_words_of_views(str(error), view)) from error
        raise UserError(f"--views {view.name} is unknown; did you mean {' or '.join(near)}?") from None


def _in_words_of_views(message: str, view: ViewName) -> str:
    """What library.py says of --model_name and --weights, for a user who gave neither."""
    message = re.sub(r"(,|,? or( use)?) --weights none,?", "", message)  # random features are no view to offer
    return message.replace("--model_name ", "--views ").replace("--weights ", f"--views {view.name}=")


# --- building ---------------------------------------------------------------------------------------------------------


def build_view(spec: str, *, native_size: int, points: bool, seed: int, image_size: int | None = None) -> Backbone:
    """The backbone that NAME[=WEIGHTS] means, on the CPU, with its own transform.

    native_size: side of the data's own images in pixels, 0 when they differ; points: the data are [N, 2], not images;
    seed: of random weights (NAME=none). Raises UserError for an unknown name, and for weights that can't be had or do
    not fit.
    """
    view = check_views([spec])[0]
    place: dict[str, Any] = {"native_size": native_size, "points": points, "seed": seed}
    try:
        if points and view.name in CATALOGUE:
            raise UserError(f"--views {view.name} needs images and these data are points; use mlp")
        view = replace(view, weights=_located(view))
        record = record_in(view.weights)
        if record is None:
            return _build(view, image_size=image_size, shape={}, **place)
        return _from_own_file(view, record, image_size=image_size, **place)
    except UserError as error:
        raise UserError(_in_words_of_views(str(error), view)) from error


def _located(view: ViewName) -> str:
    """The weights; a folder stands for the file in it, except where a family reads the whole folder."""
    folder = Path(view.weights).expanduser()
    if view.name in vision_towers.TOWERS or view.weights in ("default", "none") or not folder.is_dir():
        return view.weights
    files = [folder / name for name in vision_towers.FILES if name.endswith(SUFFIXES) and (folder / name).is_file()]
    if not files:
        raise UserError(f"--weights {view.weights} is a folder without model.safetensors; name the file in it")
    return str(files[0])


def _build(
    view: ViewName, *, shape: Mapping[str, Any], image_size: int | None, native_size: int, points: bool, seed: int
) -> Backbone:
    entry = CATALOGUE.get(view.name)
    if entry is None or entry.source.startswith("timm:"):
        name, size = (view.name, image_size) if entry is None else (entry.source, image_size or entry.size)
        model = args.Model(model_name=name, weights=view.weights, image_size=size)
        return library.build_backbone(model, native_size=native_size, points=points, seed=seed, default_name=name)
    if view.name in RAW:
        if view.weights not in ("default", "none"):
            raise UserError(f"--views {view.name} has no weights; leave out ={view.weights}")
        built = RAW[view.name](image_size or raw_views.default_side(view.name, native_size))
    else:
        with keyed_weights("backbone", seed):
            built = BUILT[view.name](view.weights, size=image_size or 0, shape=shape)
    pretrained = view.name in RAW or view.weights != "none"
    transform = scaled(built.transform, image_size)
    backbone = as_backbone(built.net, name=view.name, transform=transform, pretrained=pretrained)
    backbone.shape = built.shape
    return backbone


# --- keeping a view ---------------------------------------------------------------------------------------------------


def view_record(backbone: Backbone) -> dict[str, Any]:
    """Plain values from which `restored_view` builds the same network with random weights, without any other file."""
    return {
        "name": backbone.name,
        "transform": asdict(backbone.transform),
        "shape": dict(backbone.shape),
        "pretrained": backbone.pretrained,
        "learned": [f"{code:016x}" for code in backbone.learned.tolist()],
    }


def restored_view(record: Mapping[str, Any], *, native_size: int, points: bool, seed: int) -> Backbone:
    """The backbone of a record, its weights still to be loaded; its transform is the recorded one."""
    values = {**record["transform"], "mean": tuple(record["transform"]["mean"])}
    transform = Transform(**values | {"std": tuple(record["transform"]["std"])})
    view = ViewName(record["name"], "none")
    try:
        built = _build(
            view, shape=record["shape"], image_size=None if points else transform.size, native_size=native_size,
            points=points, seed=seed,
        )  # fmt: skip
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"the view {view.name} can't be built again ({one_line(error)}); take a good copy") from error
    backbone = Backbone(
        built.net, name=built.name, transform=transform, pretrained=record["pretrained"],
        num_features=built.num_features,
    )  # fmt: skip
    backbone.shape, backbone.learned = built.shape, learned_in(record)
    return backbone.train()


def save_view(path: Path, backbone: Backbone) -> None:
    """Write a view (a fine-tuned one) into a .safetensors file that `--views NAME=FILE` takes, on any machine."""
    from safetensors.torch import save_file

    # Clones: a file holds no two tensors in one memory.
    state = {key: value.detach().cpu().contiguous().clone() for key, value in backbone.net.state_dict().items()}
    record = {**view_record(backbone), "digest": state_digest(backbone.net)}
    with atomic_file(path) as temporary:
        save_file(state, temporary, metadata={RECORD: json.dumps(record)})


def _from_own_file(
    view: ViewName, record: Mapping[str, Any], *, image_size: int | None, native_size: int, points: bool, seed: int
) -> Backbone:
    entry = CATALOGUE.get(view.name)
    source = entry.source if entry is not None and entry.source.startswith("timm:") else view.name
    name = source if source in CATALOGUE else resolve_name(source)
    if record["name"] != name:
        raise UserError(f"--weights {view.weights} was saved from {record['name']}, not from {name}; name that")
    size = record["transform"]["size"]
    if image_size not in (None, size):
        raise UserError(f"--weights {view.weights} was saved for {size} px; leave out --image_size")
    backbone = restored_view(record, native_size=native_size, points=points, seed=seed)
    path = Path(view.weights).expanduser()
    load_into(backbone.net, read_weights(path), (), f"--weights {path} does not fit {view.name}")
    if state_digest(backbone.net) != record.get("digest", state_digest(backbone.net)):
        raise UserError(f"--weights {path} is damaged: its weights are not those that were saved; take a good copy")
    backbone.pretrained = True
    return backbone.train()


# --- the list ---------------------------------------------------------------------------------------------------------


def list_views() -> None:
    """Print what --views knows by a short name, and what of it lies on this disk. Asks no network, builds nothing."""
    head = ("name", "source", "px", "parameters", "features", "licence", "ImageNet labels", "on this disk")
    rows = [head, *(_row(name, entry) for name, entry in CATALOGUE.items())]
    numbers = ("px", "parameters", "features")
    say(text_table(rows, left=[column for column, name in enumerate(head) if name not in numbers]))
    say("\nand whatever --model_name takes: resnet50, timm:NAME, ...; NAME=FILE takes the weights of a file")


def _row(name: str, entry: Entry) -> tuple[str, ...]:
    if name in RAW:
        features = {"pixels": "3 x px x px", "gradients": "up to 1568"}[name]
        side = f"<={raw_views.LARGEST_SIDE[name]}"
        return (name, entry.source, side, "0", features, "none needed", entry.labels, "none needed")
    disk = "yes" if on_disk(name) is not None else "no"
    counts = (f"{entry.size}", f"{entry.parameters:.1f} M", f"{entry.features}")
    return (name, entry.source, *counts, entry.licence, entry.labels, disk)


def on_disk(name: str) -> Path | None:
    """The file that a short name would be loaded from without a network, or None where it would be fetched."""
    entry = CATALOGUE[name]
    if entry.source in library.INSTALLED:
        return library.installed_weights()
    if entry.source.startswith("timm:"):
        return hub.hub_file(entry.source.replace("timm:", "timm/"))
    if name in vision_towers.TOWERS:
        return vision_towers.tower_on_disk(name)
    places = {
        "swav": hub.torch_hub_file(published.SWAV_URL),
        "esvit": hub.torch_hub_file(published.ESVIT_URL, published.ESVIT_FILE),
    }
    path = places.get(name)
    return path if path is not None and path.is_file() else None
