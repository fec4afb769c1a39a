"""`--model_name auto`: the pretrained backbone that suits these photographs on this machine, and what it costs.

It is chosen once, by numbers that do not depend on the clock, and written into the run's options: what goes on with the
run, or uses it, chooses nothing again.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import args
from ..backbones import hub
from ..backbones.library import build_backbone
from ..backbones.weights import read_weights, weight_file
from ..data import Dataset, Split
from ..learning.batches import BatchSampler, weak_draws
from ..utils import choose_device, say
from .context import choose_precisions
from .networks import DEFAULT_MODEL, on_device
from .trainer import Trainer

LITE0, DINOV2 = "timm:tf_efficientnet_lite0", "timm:vit_small_patch14_dinov2.lvd142m"
TITLES = {LITE0: "EfficientNet-Lite0 (installed with this program)", DINOV2: "DINOv2 ViT-S/14"}
REPOSITORY = "timm/vit_small_patch14_dinov2.lvd142m"
PUBLISHED = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth"
SIZE, PATCH = 224, 14  # pixels: its own 518 would cost 5.3 times the tokens
# Images x draws that one core computes with DINOv2 in 4 minutes, with Lite0 in a tenth of that (docs/results.md).
FEW = 1_000
SAMPLE = 8  # images by which the speed is measured


class Chosen(NamedTuple):
    """Values of options, and what would be better, in words; empty where nothing would."""

    values: dict[str, Any]
    better: str = ""


def auto_model(
    model: args.Model, data: args.Data, run: args.Run, views: Sequence[str], dataset: Dataset, split: Split | None
) -> dict[str, Any]:
    """The options `model_name`, `weights` and `image_size` that auto means; {} where there is nothing to choose.

    A line says what was taken, what it costs and what would be better. split: None where each image is computed once
    and not augmented; the choice is the same, so that an inspection and a training share a feature bank.
    """
    if model.model_name is not None or views or dataset.name in DEFAULT_MODEL or dataset.kind == "points":
        return {}
    affordable = len(dataset) * (data.augmentation_draws + weak_draws(data.augmentation_draws)) <= FEW
    values, better = chosen(model, affordable or choose_device(run.device).type != "cpu")
    if values["weights"] == "none":  # which has a line of its own
        return values
    rows = len(dataset) if split is None else rows_of_bank(split, data.augmentation_draws)
    speed = images_per_second(values, run)
    what = "images" if split is None else "images with their --augmentation_draws"
    cost = f"{rows:,} {what} at about {speed:.0f} images/s here: {in_words(rows / speed)}, once"
    say(f"--model_name auto: {TITLES[values['model_name']]}; {cost}" + (f"; {better}" if better else ""))
    return values


def rows_of_bank(split: Split, draws: int) -> int:
    """Images x draws that a training with this split computes, but for the labeled ones that folds hold out."""
    batches = BatchSampler(split.labeled, split.unlabeled, len(split.labeled), len(split.unlabeled), 0, draws)
    augmented = batches.wanted(draws).values()  # an epoch a draw: all of them
    return sum(map(len, augmented)) + len(split.val) + len(split.test)


def chosen(model: args.Model, affordable: bool) -> Chosen:
    """What suits; affordable: whether DINOv2, several times slower, takes minutes and not hours here."""
    size = model.image_size or SIZE
    lite0 = {"model_name": LITE0, "weights": model.weights, "image_size": model.image_size}
    dinov2 = lite0 | {"model_name": DINOV2, "image_size": size}
    file = weight_file(model.weights)
    if file is not None:  # of any other network, what reads it will say that it does not fit
        return Chosen(dinov2 if _is_dinov2(file) else lite0)
    if model.weights == "none" or size % PATCH or model.unfreeze not in (None, "head"):
        return Chosen(lite0)
    ask = f"--model_name {DINOV2} --image_size {size}"
    if not affordable:
        return Chosen(
            lite0, f"DINOv2 ViT-S/14 may be better where its weights can be had, and is several times as slow: {ask}"
        )
    weights = dinov2_weights()
    if weights is None:
        place = f"https://huggingface.co/{REPOSITORY}"
        return Chosen(lite0, f"DINOv2 ViT-S/14 may be better, but no hub answers: get {place} for --weights FILE")
    return Chosen(dinov2 | {"weights": weights})


def dinov2_weights() -> str | None:
    """`default` where the hub's cache has DINOv2's weights or gets them now, torch.hub's file of them, or None."""
    file = hub.torch_hub_file(PUBLISHED)
    if hub.hub_file(REPOSITORY) is None and file.is_file():
        return str(file)
    return "default" if hub.hub_file(REPOSITORY) is not None or hub.fetched(REPOSITORY) else None


def _is_dinov2(file: Path) -> bool:
    """Whether these are weights of DINOv2's ViT-S/14, in timm's or in the authors' layout."""
    first = "patch_embed.proj.weight"
    value = read_weights(file, wanted=lambda key: key == first).get(first)
    return value is not None and tuple(value.shape) == (384, 3, PATCH, PATCH)


def images_per_second(values: dict[str, Any], run: args.Run) -> float:
    """What this machine computes now with the backbone of these options, measured on a few images."""
    backbone = build_backbone(args.Model(**values), native_size=0, points=False, seed=0, default_name=LITE0)
    device, size = choose_device(run.device), backbone.transform.size
    return network_speed(on_device(backbone, device), size, choose_precisions(run.precision, device).features)


def network_speed(network: nn.Module, size: int, precision: torch.dtype) -> float:
    """Images a second of a forward pass: the faster of two, since the first one makes ready."""
    network = copy.deepcopy(network).eval()  # what is measured must change nothing
    device = next(network.parameters()).device
    images = torch.zeros(SAMPLE, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        with torch.no_grad(), torch.autocast(device.type, precision, enabled=precision != torch.float32):
            network(images).sum().item()
        seconds.append(time.perf_counter() - began)
    return SAMPLE / min(seconds)


def cost_of_no_weights(trainer: Trainer) -> str:
    """A line on what a training without pretrained weights costs here."""
    learning, view = trainer.options.learning, trainer.views.first
    labeled = min(learning.batch_size, len(trainer.context.split.labeled))
    unlabeled = 0 if trainer.options.mode.finetune_mode else learning.unlabeled_batch_size
    # A pass that learns costs about three forward ones: see the passes of `mpl_step`.
    passes = trainer.schedule.total_steps * (5 * labeled + 7 * unlabeled if unlabeled else 3 * labeled)
    backbone = view.backbone
    speed = network_speed(backbone, backbone.transform.size, trainer.context.precision.learning)
    return (
        f"--weights none: {backbone.name} knows nothing yet and learns from these images alone: "
        f"{in_words(passes / speed)} here, and with few labels far more errors than a pretrained one makes; "
        "--model_name lite0 has installed weights"
    )


def in_words(seconds: float) -> str:
    """A time that is not known exactly."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} seconds"
    return f"about {seconds / 60:.0f} minutes" if seconds < 5400 else f"about {seconds / 3600:.0f} hours"
