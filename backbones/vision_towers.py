"""Backbones of transformers: the vision towers of BLIP, BLIP-2, ALIGN and OWLv2.

They come from a folder as the library writes it, or from the hub and its cache; no code that lies beside the weights is
run. What becomes of each key of a whole model is written down in `TOWERS`.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..base.files import read_json
from ..images.decode import Transform
from ..utils import UserError
from .backbone import Built
from .hub import hub_file, hub_or_cache
from .weights import KeyMap, load_into, one_line, read_weights

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers for them


@dataclass(frozen=True)
class Tower:
    """A family's vision tower: its repository on the hub, its classes in transformers, and the keys of whole models."""

    repository: str
    kinds: tuple[str, ...]  # `model_type` of the configurations that have one
    network: str
    config: str
    keys: KeyMap
    transform: Transform
    fixed: bool = True  # it has a table of positions, made for one size


_TEXT = (r"text_(model|encoder|decoder|proj|projection)\b", r"(vision|visual)_proj(ection)?\b", r"logit_scale$")
PLACES = {"weight_map": {str: str}}  # what a file's index says, as `fields.fault` reads it
_POSITIONS = r".*\.position_ids$"  # a buffer that older versions kept in files
TOWERS = {
    "blip": Tower(
        "Salesforce/blip-image-captioning-base",
        ("blip", "blip_vision_model"),
        "BlipVisionModel",
        "BlipVisionConfig",
        KeyMap((*_TEXT, r"itm_head\.", r"temp$", _POSITIONS), ((r"vision_model\.", ""),)),
        Transform(384, 384, "bicubic", *CLIP),
    ),
    "blip2": Tower(
        "Salesforce/blip2-itm-vit-g",
        ("blip-2", "blip_2_vision_model"),
        "Blip2VisionModel",
        "Blip2VisionConfig",
        KeyMap(
            (
                *_TEXT, r"(qformer|language_model|language_projection|itm_head|cls)\.", r"(query_tokens|temp)$",
                r"embeddings\.(word_embeddings|position_embeddings|LayerNorm|layernorm)\.", _POSITIONS,
            ),
            ((r"vision_model\.", ""),),
        ),
        Transform(224, 224, "bicubic", *CLIP),
    ),
    "align": Tower(
        "kakaobrain/align-base",
        ("align", "align_vision_model"),
        "AlignVisionModel",
        "AlignVisionConfig",
        KeyMap((*_TEXT, r"temperature$", _POSITIONS), ((r"vision_model\.", ""),)),
        Transform(289, 346, "bilinear", *HALF),
        fixed=False,
    ),
    "owlv2": Tower(
        "google/owlv2-base-patch16-ensemble",
        ("owlv2", "owlv2_vision_model"),
        "Owlv2VisionTransformer",
        "Owlv2VisionConfig",
        KeyMap(
            (
                r"(owlv2\.)?(text_model|text_projection|visual_projection)\.", r"(owlv2\.)?logit_scale$",
                r"(box_head|class_head|objectness_head|layer_norm)\.", _POSITIONS,
            ),
            ((r"(owlv2\.)?vision_model\.", ""),),
        ),
        Transform(960, 960, "bilinear", *CLIP),
    ),
}  # fmt: skip
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
Get = Callable[[str], Path | None]


class VisionTower(nn.Module):
    """Images [N, 3, S, S] to the pooled output [N, D] of a tower; its table of positions is resampled for another S."""

    def __init__(self, tower: nn.Module, own_size: int | None) -> None:
        super().__init__()
        self.tower, self.own_size = tower, own_size

    def forward(self, images: Tensor) -> Tensor:
        resample = self.own_size is not None and images.shape[-1] != self.own_size
        more = {"interpolate_pos_encoding": True} if resample else {}
        return self.tower(pixel_values=images, **more).pooler_output


def vision_tower(family: str, weights: str, *, size: int, shape: Mapping[str, Any]) -> Built:
    """A vision tower from a folder, or from a repository of the hub (`default`: the family's own) and its cache."""
    tower = TOWERS[family]
    if weights == "none":
        transform = Transform(**shape["transform"]) if shape else tower.transform
        own = {"image_size": tower.transform.size} if tower.fixed else {}
        net, config = _tower_net(family, shape["config"] if shape else own)
        return Built(net, transform, _shape(config, transform))
    get = _opened(family, weights)
    content = read_json(get("config.json") or Path("config.json"))
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind not in tower.kinds:
        raise UserError(f"--weights {weights} holds a model of the type {kind}, not {tower.kinds[0]}; give another one")
    net, config = _tower_net(family, content.get("vision_config", content))
    complaint = f"--weights {weights} does not fit {family}"
    load_into(net.tower, tower.keys.applied(_state(get, tower.keys, complaint)), (), complaint)
    processor = get("preprocessor_config.json")
    usual = tower.transform
    if tower.fixed:
        usual = Transform(config.image_size, config.image_size, usual.interpolation, usual.mean, usual.std)
    try:
        transform = usual if processor is None else _transform(read_json(processor, {str: object}), usual)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{processor} describes no images ({one_line(error)}); mend it") from error
    return Built(net, transform, _shape(config, transform))


def _shape(config: Any, transform: Transform) -> dict[str, Any]:
    # Through JSON, so that nothing but plain values is kept.
    return json.loads(json.dumps({"config": config.to_diff_dict(), "transform": vars(transform)}))


def _tower_net(family: str, values: Mapping[str, Any]) -> tuple[VisionTower, Any]:
    tower = TOWERS[family]
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"the view {family} needs a package: pip install transformers") from error
    try:
        config = getattr(transformers, tower.config).from_dict(dict(values))
        # Not every tower is named at the top of the package, but each stands in the file beside its configuration's.
        module = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
        net = getattr(module, tower.network)(config)
    except Exception as error:  # what the library makes of a wrong number may be anything
        raise UserError(f"the config.json of {family} describes no network ({one_line(error)}); mend it") from error
    return VisionTower(net, config.image_size if tower.fixed else None), config


def _state(get: Get, keys: KeyMap, complaint: str) -> dict[str, Tensor]:
    """The tensors of all files that hold a part of the tower."""
    for name in FILES:
        path = get(name)
        if path is None:
            continue
        files = [path]
        if name.endswith(".index.json"):
            places = read_json(path, PLACES)["weight_map"]
            shards = sorted({place for key, place in places.items() if not keys.drops(key)})
            files = [shard for shard in map(get, shards) if shard is not None]
            if len(files) < len(shards):
                raise UserError(f"{complaint}: of its files {', '.join(shards)} some are missing; download them all")
        state: dict[str, Tensor] = {}
        for file in files:
            state |= read_weights(file, wanted=lambda key: not keys.drops(key))
        return state
    raise UserError(f"{complaint}: there is neither {FILES[0]} nor {FILES[2]} in it")


def _opened(family: str, weights: str) -> Get:
    """What gives the files of a folder, or of a repository: from the cache if it is all there, else from the hub."""
    repository = TOWERS[family].repository if weights == "default" else weights
    folder = Path(weights).expanduser()
    if folder.is_file():
        folder = folder.parent
    if weights != "default" and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"--weights {weights}: there is no config.json in {folder}; give a model's whole folder")
        return lambda name: (folder / name) if (folder / name).is_file() else None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(
            f"--weights {weights}: there is no such folder; give one, or a name such as {TOWERS[family].repository}"
        )
    if tower_on_disk(family, repository) is not None:
        return lambda name: hub_file(repository, name)
    return partial(_from_hub, family, repository)


def tower_on_disk(family: str, repository: str | None = None) -> Path | None:
    """The file of the tower's weights in the hub's cache, if all that is needed is there."""
    repository = repository or TOWERS[family].repository
    path = next((path for name in FILES if (path := hub_file(repository, name)) is not None), None)
    if path is None or hub_file(repository, "config.json") is None:
        return None
    if path.name.endswith(".index.json"):
        places = read_json(path, PLACES)["weight_map"]
        shards = {place for key, place in places.items() if not TOWERS[family].keys.drops(key)}
        if any(hub_file(repository, shard) is None for shard in shards):
            return None
    return path


def _from_hub(family: str, repository: str, name: str) -> Path | None:
    """A file of a repository, or None where it has none of that name. Raises UserError when it can't be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        with hub_or_cache():
            return Path(hf_hub_download(repository, name))
    except Exception as error:  # as for every library: no network, no disk, a proxy's page, a name that is not there
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise UserError(
            f"the weights of {family} can't be had ({one_line(error)}); download config.json, preprocessor_config.json "
            f"and model.safetensors of https://huggingface.co/{repository} elsewhere and use --weights FOLDER"
        ) from error


def _transform(processor: Mapping[str, Any], usual: Transform) -> Transform:
    """What preprocessor_config.json says, for images in [0, 1]; what it leaves open is as usual.

    Where the library squeezes or pads an image to a square, here its middle is cut out.
    """
    resize = _side(processor.get("size"), usual.resize)
    size = _side(processor.get("crop_size"), usual.size) if processor.get("do_center_crop") else resize
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if processor.get("do_normalize", True):
        mean, std = (tuple(processor.get(f"image_{x}", getattr(usual, x))) for x in ("mean", "std"))
    # The library's numbers are `scale` times ours, less 1 where an offset is on.
    scale = 255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255.0
    offset = 1.0 if processor.get("rescale_offset") else 0.0
    resample = processor.get("resample")
    return Transform(
        size,
        max(resize, size),
        RESAMPLE[resample] if isinstance(resample, int) and 0 <= resample < len(RESAMPLE) else usual.interpolation,
        _three((offset + m) / scale for m in mean),
        _three(s / scale for s in std),
    )


def _three(values: Any) -> tuple[float, float, float]:
    first, second, third = values
    return (first, second, third)


def _side(size: Any, usual: int) -> int:
    """A side in pixels of `224`, `[224, 224]`, {"height": 224, ...} or {"shortest_edge": 224}."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge", size.get("height"))
    if isinstance(size, Sequence) and not isinstance(size, str) and size:
        size = size[0]
    return size if isinstance(size, int) else usual
