"""Backbones by name with their transforms and weights, and the heads on top of them. Nothing is trained here.

A backbone maps images in [0, 1] to feature vectors: what its last linear layer would take in. A head maps features to
logits. Three small backbones for small images and for points are written out below; all others are a library's.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import math
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from . import args, utils
from .backbones.weights import learned_in, load_into, one_line, read_weights, record_in, weight_file
from .images.decode import Transform
from .utils import UserError

ALIASES = {
    "resnet": "resnet18",
    "alexnet": "alexnet",
    "vgg": "vgg16",
    "squeezenet": "squeezenet1_0",
    "densenet": "densenet121",
}
# A head that forgets its start needs larger steps than layers that already see well.
PRETRAINED_LR_SCALE = 0.1
# The decay that heads on frozen features gain by would pull pretrained weights to nothing.
BACKBONE_DECAY_SCALE = 0.1
# At least as accurate as the larger mlp head with the usual options, in a tenth of its time (benchmarks/RESULTS.md).
HIDDEN_WIDTH = 256
# The head of Meta Co-Training's authors: three layers of it.
MLP_WIDTH = 1024
# With few labels and wide features the hidden layers are what overfits.
HEAD_DROPOUT = 0.2
# What the variance over the members of an ensemble takes off their mean logit.
VARIANCE_WEIGHT = 0.3
LEAK = 0.1  # slope of WRN-28-2's leaky ReLU, as in UDA and FixMatch
AUXILIARY = ("aux1", "aux2", "AuxLogits")  # the side classifiers of googlenet and inception_v3
NETWORK_TIMEOUT = 8.0  # seconds: without a network the user shall read what to do, not wait


class WeightsMissing(UserError):
    """The library's pretrained weights can't be fetched: what can do without them may go on."""


# --- the parts of a network -------------------------------------------------------------------------------------------


class Backbone(nn.Module):
    """Images float [N, 3, S, S] in [0, 1] (or points float [N, 2]) to features float [N, num_features].

    It normalises by itself, so no caller can forget it or do it twice. `transform` says how images are brought to
    S x S; `pretrained` whether the weights were learned before.
    """

    mean: Tensor
    std: Tensor
    shape: Mapping[str, Any] = {}  # what else, beside the name, must be known to build the network again
    learned = np.zeros(0, dtype=np.uint64)  # contents of images whose labels its weights have learned, sorted

    def __init__(self, net: nn.Module, *, name: str, transform: Transform, pretrained: bool, num_features: int) -> None:
        super().__init__()
        self.net, self.name, self.transform = net, name, transform
        self.pretrained, self.num_features = pretrained, num_features
        self.register_buffer("mean", torch.tensor(transform.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(transform.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Float32 also under autocast: heads, losses and the bank count on it. Float64 stays, for exact checks."""
        if images.ndim == 4:
            images = (images - self.mean) / self.std
        features = self.net(images)
        return features.float() if features.dtype in (torch.bfloat16, torch.float16) else features

    def train(self, mode: bool = True) -> Backbone:
        """As always, but pretrained batch norms stay in eval mode, and so does all of a frozen backbone.

        The statistics of small batches destroy pretrained features; what does not learn is a fixed function.
        """
        super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))
        if self.pretrained:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def stages(self) -> list[nn.Module]:
        """The units that `--unfreeze N` counts, from input to output; parameters outside of all units are in none.

        While there are fewer than four, the largest one that can be opened is replaced by its children.
        """
        units = _learning_children(self.net)
        while len(units) < 4:
            openable = [unit for unit in units if _learning_children(unit)]
            if not openable:
                break
            at = units.index(max(openable, key=_size))
            units[at : at + 1] = _learning_children(units[at])
        return units


def feature_norm(width: int) -> nn.RMSNorm:
    """What heads bring features [N, width] to before anything else: a root mean square of 1 a row."""
    return nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)


class Head(nn.Module):
    """Features [N, in_features] to logits [N, num_classes], without an activation on the logits.

    kind: `linear`; `hidden` with one hidden layer of 256; or `mlp` with three of 1,024, the second and third beside a
    skip (Rothenberger & Diochnos 2023); each layer with batch norm. Whatever the kind, the first logits are small, so
    the first pseudo-labels are unsure, and heads of two keys differ.

    Features come first to a root mean square of 1. Backbones differ in scale by a factor of ten and more, and large
    features make large logits: a teacher that is sure from the start teaches its errors.

    `temperature` divides the logits when the head is evaluated: a calibration that was fitted while it learned.
    """

    temperature: Tensor

    def __init__(self, kind: str, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()))
        self.layers = nn.Sequential(feature_norm(in_features))
        if kind == "hidden":
            self.layers.append(Block(in_features, HIDDEN_WIDTH))
            in_features = HIDDEN_WIDTH
        elif kind == "mlp":
            self.layers.append(Block(in_features, MLP_WIDTH))
            self.layers.extend([Block(MLP_WIDTH, MLP_WIDTH, skip=True), Block(MLP_WIDTH, MLP_WIDTH, skip=True)])
            in_features = MLP_WIDTH
        self.layers.append(nn.Linear(in_features, num_classes))
        if kind != "linear":
            # What comes out of a norm is large: smaller weights give logits like those of the linear head.
            nn.init.normal_(self.layers[-1].weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(self.layers[-1].bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        logits = self.layers(features)
        return logits if self.training else logits / self.temperature


class Block(nn.Module):
    """A hidden layer of a head, [N, inputs] to [N, width]: Linear, batch norm, ReLU, dropout; beside a skip or not."""

    def __init__(self, inputs: int, width: int, *, skip: bool = False) -> None:
        super().__init__()
        self.skip = skip
        self.linear = nn.Linear(inputs, width, bias=False)  # the norm brings the bias
        self.norm, self.dropout = WideNorm(width), Dropout(HEAD_DROPOUT)
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        inside = self.dropout(self.norm(self.linear(x)).relu())
        return x + inside if self.skip else inside


class Dropout(nn.Dropout):
    """Dropout by uniform numbers: a CPU makes them much faster than torch's Bernoulli numbers."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        kept = torch.rand_like(x, dtype=torch.float32) >= self.p
        return x * (kept.to(x.dtype) / (1 - self.p))


class WideNorm(nn.BatchNorm1d):
    """A batch norm that also under autocast takes its statistics, and goes on, in the precision of its weights.

    vmap has no batch norm of bfloat16 with the float32 weights that autocast leaves it.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class HeadEnsemble(nn.Module):
    """N heads that learn as one: features [B, in_features] to combined logits [B, num_classes].

    The members' logits are combined to mean / sqrt(1 + 0.3 var), class by class: where members disagree, the ensemble
    is less sure. Losses see the combined logits, in training too.

    `member` is the layout of one head; its parameters and buffers are those of all members in a stack, one dimension
    larger, and are what is learned, averaged and saved. Its modules are real: `train()` and `batch_norms_in_exam` act
    on all members alike. In training each member has dropout of its own, and its own running statistics.
    """

    temperature: Tensor

    def __init__(self, members: list[Head]) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()))  # of the combined logits, as a head's own
        self.size = len(members)
        parameters, buffers = stack_module_state(members)
        self.member = copy.deepcopy(members[0])
        for name, stack in {**parameters, **buffers}.items():
            owner, _, leaf = name.rpartition(".")
            stack = nn.Parameter(stack.detach()) if name in parameters else stack
            setattr(self.member.get_submodule(owner), leaf, stack)

    def forward(self, features: Tensor) -> Tensor:
        logits = self.each(features)
        combined = logits.mean(dim=0) / (1 + VARIANCE_WEIGHT * logits.var(dim=0, correction=0)).sqrt()
        return combined if self.training else combined / self.temperature

    def each(self, features: Tensor) -> Tensor:
        """The members' own logits [N, B, num_classes]."""
        stacks = {**dict(self.member.named_parameters()), **dict(self.member.named_buffers())}

        def one(state: dict[str, Tensor]) -> Tensor:
            return functional_call(self.member, state, (features,))

        if self.training:
            return vmap(one, randomness="different")(stacks)
        # One after the other: torch.export can't follow vmap for batches of any size.
        states = [{name: stack[m] for name, stack in stacks.items()} for m in range(self.size)]
        return torch.stack([one(state) for state in states])


class Network(nn.Module):
    """A backbone and a head: images [N, 3, S, S] in [0, 1] to logits [N, num_classes]."""

    def __init__(self, backbone: Backbone, head: Head | HeadEnsemble) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def build_head(
    kind: str, in_features: int, num_classes: int, *, seed_key: tuple[object, ...], members: int = 1
) -> Head | HeadEnsemble:
    """A head whose first weights are a function of `seed_key` alone; with several members each has a key of its own."""
    if members > 1:
        keys = [(*seed_key, number) for number in range(members)]
        return HeadEnsemble([cast(Head, build_head(kind, in_features, num_classes, seed_key=own)) for own in keys])
    with keyed_weights("head", *seed_key):
        return Head(kind, in_features, num_classes)


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
            net, transform = _small(name, model, native_size, points)
        elif name.startswith("timm:"):
            net, transform = _timm(name, model)
        else:
            net, transform = _torchvision(name, model)
    pretrained = model.weights != "none" and not (name in SMALL and model.weights == "default")
    backbone = as_backbone(net, name=name, transform=transform, pretrained=pretrained, points=points)
    backbone.learned = learned_in(record_in(model.weights))
    return backbone


def as_backbone(net: nn.Module, *, name: str, transform: Transform, pretrained: bool, points: bool = False) -> Backbone:
    """The network with its transform; one image tells how many features it gives. Raises UserError if it gives none."""
    images = torch.zeros(1, 2) if points else torch.zeros(1, 3, transform.size, transform.size)
    with size_checked(name, transform.size), torch.no_grad():
        features = net.eval()(images)
    if features.ndim != 2:
        raise UserError(f"--model_name {name} gives maps instead of one feature vector an image; use another backbone")
    num_features = features.shape[1]
    backbone = Backbone(net, name=name, transform=transform, pretrained=pretrained, num_features=num_features)
    return backbone.train()


@contextlib.contextmanager
def keyed_weights(*key: object) -> Iterator[None]:
    """Inside, the CPU's random numbers follow from the key; outside, nobody notices."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would also reseed the accelerators, which fork_rng leaves alone here.
        torch.default_generator.manual_seed(utils.key(*key))
        yield


@contextlib.contextmanager
def size_checked(name: str, size: int) -> Iterator[None]:
    try:
        yield
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{name} can't take images of {size} px ({one_line(error)}); choose another --image_size"
        ) from error


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


# --- the libraries' backbones -----------------------------------------------------------------------------------------


def _torchvision(name: str, model: args.Model) -> tuple[nn.Module, Transform]:
    from torchvision import models as zoo

    published = zoo.get_model_weights(name)
    file = weight_file(model.weights)
    entry = published.DEFAULT
    if file is not None:  # a published file brings its own preset; any other is taken for the first recipe's
        entry = next((e for e in published if e.url.endswith(f"/{file.name}")), next(iter(published)))
    preset = entry.transforms()
    transform = Transform(
        preset.crop_size[0], preset.resize_size[0], preset.interpolation.value, tuple(preset.mean), tuple(preset.std)
    )
    transform = scaled(transform, model.image_size)
    with size_checked(name, transform.size):
        net = zoo.get_model(name, weights=None, **_arguments(name, transform.size))
    heads = (_drop_classifier(net), *AUXILIARY)
    if model.weights == "none":
        return net, transform
    state = _fetch(name, entry) if file is None else read_weights(file)
    if name.startswith("vit_") and "encoder.pos_embedding" in state:
        state = zoo.vision_transformer.interpolate_embeddings(transform.size, net.patch_size, state)
    load_into(net, state, heads, f"--weights {model.weights} does not fit {name}")
    return net, transform


def _arguments(name: str, size: int) -> dict[str, Any]:
    """What some of torchvision's builders must be told."""
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


@contextlib.contextmanager
def fetching(name: str, url: str, file: str | None = None) -> Iterator[None]:
    """Inside, torch.hub gets a file (in its folder named as in the url, or `file`); without it, what to do is said."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        yield
    except Exception as error:  # no network, no disk, a proxy's page, a broken file: the way out is the same
        target = Path(torch.hub.get_dir()) / "checkpoints" / (file or Path(url).name)
        raise WeightsMissing(
            f"the weights of {name} can't be had ({one_line(error)}); put {url} at {target}, "
            "or use --weights FILE or --weights none"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


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
    if transform.size != size and hasattr(net, "set_input_size"):
        with size_checked(name, transform.size):  # resamples position tables, so it comes after loading
            net.set_input_size(img_size=(transform.size, transform.size))
    return net, transform


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
            "and use --weights FILE, or use --weights none"
        ) from error


def hub_file(repository: str, file: str | None = None) -> Path | None:
    """A file of the hub's cache on this disk (without a name, the weights), or None. Asks no network."""
    from huggingface_hub import try_to_load_from_cache

    names = (file,) if file else ("model.safetensors", "pytorch_model.bin")
    found = (try_to_load_from_cache(repository, name) for name in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


@contextlib.contextmanager
def hub_or_cache(*, cached: object = None) -> Iterator[None]:
    """Inside, the hub's client asks the hub, or only its cache, where that has the file or the hub gives no answer.

    Without a network it tries each file six times, which takes a minute; its cache works at once.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or bool(cached) or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=NETWORK_TIMEOUT).close()
    except urllib.error.HTTPError:
        return True  # an answer, if not a friendly one
    except OSError:
        return False
    return True


def scaled(transform: Transform, size: int | None) -> Transform:
    """The same transform for another size: the share of the image that is seen stays."""
    if size is None:
        return transform
    return replace(transform, size=size, resize=round(transform.resize * size / transform.size))


# --- what learns, and how ---------------------------------------------------------------------------------------------


def resolve_unfreeze(model: args.Model, backbone: Backbone) -> str:
    """What learns: as the user says, else `head` on pretrained features and `all` from scratch."""
    return model.unfreeze or ("head" if backbone.pretrained else "all")


def set_trainable(backbone: Backbone, unfreeze: str) -> None:
    """Let `all`, nothing (`head`) or a number of last stages of the backbone learn.

    Raises UserError when it has fewer stages than that.
    """
    stages = backbone.stages()
    count = 0 if unfreeze in ("head", "all") else int(unfreeze)
    if count > len(stages):
        raise UserError(f"--unfreeze {unfreeze}: {backbone.name} has {len(stages)} stages; give fewer, or all")
    backbone.requires_grad_(unfreeze == "all")
    for stage in stages[len(stages) - count :]:
        stage.requires_grad_(True)
    backbone.train(backbone.training)


def parameter_groups(network: nn.Module, *, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """What learns, as the optimizer's groups with "params", "weight_decay" and "lr_scale", a factor of the rate.

    A pretrained backbone learns slower than the rest, each of its stages `layer_decay` times as fast as the one after
    it. Biases and the parameters of norms do not decay: pulling them to zero does not make a network simpler, only
    worse. Backbones decay less than heads, which see many features of few labeled images.
    """
    slow: dict[int, float] = {}
    below: set[int] = set()
    for module in network.modules():
        if isinstance(module, Backbone):
            below |= set(map(id, module.parameters()))
            slow |= _rates(module, layer_decay) if module.pretrained else {}
    ensembles = [module for module in network.modules() if isinstance(module, HeadEnsemble)]
    stacked = {id(parameter) for ensemble in ensembles for parameter in ensemble.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            scale = slow.get(id(parameter), 1.0)
            dimensions = parameter.ndim - (id(parameter) in stacked)
            decay = weight_decay * (BACKBONE_DECAY_SCALE if id(parameter) in below else 1.0)
            decay = decay if dimensions > 1 else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    return [{"params": p, "weight_decay": decay, "lr_scale": scale} for (scale, decay), p in groups.items()]


def _rates(backbone: Backbone, layer_decay: float) -> dict[int, float]:
    """The factor of each parameter's rate, by its id; what is in no stage (a position table) learns like the first."""
    stages = backbone.stages()
    first = PRETRAINED_LR_SCALE * layer_decay ** max(0, len(stages) - 1)
    rates = {id(parameter): first for parameter in backbone.parameters()}
    for later, stage in enumerate(reversed(stages)):
        rates |= {id(parameter): PRETRAINED_LR_SCALE * layer_decay**later for parameter in stage.parameters()}
    return rates


@contextlib.contextmanager
def batch_norms_in_exam(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms in train mode still normalise by the batch but write nothing down."""
    writing = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for norm in writing:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in writing:
            norm.track_running_stats = True


def describe(network: nn.Module | Mapping[str, nn.Module]) -> str:
    """The layers down to two levels below each part, with their parameters, trainable and frozen, and the totals."""
    parts = dict(network.named_children()) if isinstance(network, nn.Module) else network
    rows = [row for name, part in parts.items() for row in _rows(name, part, 0)]
    tops = [_counts(part) for part in parts.values()]
    rows.append(("total", "", sum(learn for learn, _ in tops), sum(frozen for _, frozen in tops)))
    wide, kinds = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    lines = [f"{'layer':{wide}}  {'kind':{kinds}}  {'trainable':>13}  {'frozen':>13}"]
    lines += [f"{name:{wide}}  {kind:{kinds}}  {learn:>13,}  {frozen:>13,}" for name, kind, learn, frozen in rows]
    return "\n".join(lines)


def _rows(name: str, module: nn.Module, depth: int) -> list[tuple[str, str, int, int]]:
    rows = [("  " * depth + name, type(module).__name__, *_counts(module))]
    inner = module.net if isinstance(module, Backbone) else module
    if depth < 2:
        rows += [row for child_name, child in inner.named_children() for row in _rows(child_name, child, depth + 1)]
    return rows


def _counts(module: nn.Module) -> tuple[int, int]:
    learn = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return learn, _size(module) - learn


def _learning_children(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.children() if _size(child)]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- small backbones, from scratch ------------------------------------------------------------------------------------


class WideBlock(nn.Module):
    """Two 3 x 3 convolutions, each after its norm and activation (pre-activation), beside a shortcut.

    first: norm and activation come before the shortcut branches off, as in the first block of UDA and FixMatch.
    """

    def __init__(self, inner: int, outer: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.norm1, self.norm2 = nn.BatchNorm2d(inner), nn.BatchNorm2d(outer)
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inner, outer, 1, stride, bias=False) if inner != outer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        activated = nn.functional.leaky_relu(self.norm1(x), LEAK)
        inside = self.conv2(nn.functional.leaky_relu(self.norm2(self.conv1(activated)), LEAK))
        return self.shortcut(activated if self.first else x) + inside


def _pooled(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def wrn28_2() -> nn.Module:
    """Wide ResNet 28-2 (Zagoruyko & Komodakis 2016) as in UDA and FixMatch: 1.47 M parameters, 128 features.

    The norms keep torch's momentum: their 0.001 is made for runs of a million steps.
    """
    stages: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
    for inner, outer, stride in ((16, 32, 1), (32, 64, 2), (64, 128, 2)):
        blocks = [WideBlock(inner, outer, stride, first=inner == 16)]
        blocks += [WideBlock(outer, outer, 1, first=False) for _ in range(3)]
        stages.append(nn.Sequential(*blocks))
    net = _pooled(*stages, nn.BatchNorm2d(128), nn.LeakyReLU(LEAK))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=LEAK, mode="fan_out", nonlinearity="leaky_relu")
    return net


def cnn() -> nn.Module:
    """Three convolutions with norms for images of 8 to 64 px: 0.1 M parameters, 128 features."""

    def stage(inner: int, outer: int, *after: nn.Module) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(), *after
        )

    return _pooled(stage(3, 32, nn.MaxPool2d(2)), stage(32, 64, nn.MaxPool2d(2)), stage(64, 128))


def mlp(inputs: int) -> nn.Module:
    """Two hidden layers on flattened input, for points: 64 features."""
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())


SMALL: dict[str, Callable[..., nn.Module]] = {"cnn": cnn, "wrn28_2": wrn28_2, "mlp": mlp}


def _small(name: str, model: args.Model, native_size: int, points: bool) -> tuple[nn.Module, Transform]:
    # At least 16 px, so that crops and shifts of scanned digits have room; 32 px where the images have many sizes.
    size = model.image_size or (max(native_size, 16) if native_size else 32)
    transform = Transform(size, size, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    net = SMALL[name]() if name != "mlp" else mlp(2 if points else 3 * size * size)
    file = weight_file(model.weights)
    if file is not None:
        load_into(net, read_weights(file), (), f"--weights {file} does not fit {name}")
    return net, transform
