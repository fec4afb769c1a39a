"""Published files that neither torchvision nor timm reads: those of SwAV and of EsViT.

What becomes of each key of such a file is written down here, in a `KeyMap`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..images.decode import Transform
from ..utils import UserError
from .backbone import Built, size_checked
from .hub import downloaded
from .weights import KeyMap, load_into, read_weights, weight_file

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


SWAV_URL = "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar"
# Both are of the evaluation scripts of their authors; SwAV's 0.228 is no slip of ours.
SWAV_TRANSFORM = Transform(224, 256, "bilinear", IMAGENET[0], (0.228, 0.224, 0.225))
SWAV_KEYS = KeyMap(dropped=(r"projection_head\.", r"prototypes\.", r"fc\."))

ESVIT_FILE = "esvit_swin_base_window14.pth"  # all of EsViT's files are called checkpoint_best.pth
ESVIT_URL = (
    "https://chunyleu.blob.core.windows.net/output/ckpts/esvit/swin/swin_base/"
    "bl_lr0.0005_nodes4_gpu16_bs8_multicrop_epoch300_dino_aug_window14_lv/"
    "continued_from_epoch0200_dense_norm_true/checkpoint_best.pth"
)
ESVIT_TRANSFORM = Transform(224, 256, "bicubic", *IMAGENET)
# timm joins patches before a stage, EsViT after the one before it.
ESVIT_KEYS = KeyMap(
    dropped=(r"head\.", r"head_dense\.", r"layers\..*\.relative_position_index$", r"layers\..*\.attn_mask$"),
    renamed=tuple((rf"layers\.{i}\.downsample\.", f"layers.{i + 1}.downsample.") for i in (2, 1, 0)),
)
SWIN_BASE = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 14, "patch_size": 4}


def swav(weights: str, *, size: int, shape: Mapping[str, Any]) -> Built:
    """SwAV's ResNet-50 (Caron et al. 2020): 2,048 features. torchvision's layers, its head for training left out."""
    from torchvision import models as zoo

    net = zoo.resnet50(weights=None)
    net.fc = nn.Identity()
    if weights != "none":
        file = weight_file(weights) or downloaded("swav", SWAV_URL)
        load_into(net, SWAV_KEYS.applied(read_weights(file)), (), f"--weights {file} does not fit swav")
    return Built(net, SWAV_TRANSFORM)


def esvit(weights: str, *, size: int, shape: Mapping[str, Any]) -> Built:
    """EsViT's Swin transformer (Li et al. 2022), of the size and window that its file has; the teacher's weights."""
    if weights == "none":
        shape = shape or SWIN_BASE
        return Built(_swin(shape, size), ESVIT_TRANSFORM, dict(shape))
    file = weight_file(weights) or downloaded("esvit", ESVIT_URL, ESVIT_FILE)
    complaint = f"--weights {file} does not fit esvit"
    state = read_weights(file, below=("teacher",))
    shape = _swin_shape(state, complaint)
    net = _swin(shape, ESVIT_TRANSFORM.size)
    theirs = "layers.0.downsample.reduction.weight" in state  # else it was saved by this program
    keys = ESVIT_KEYS if theirs else KeyMap(dropped=ESVIT_KEYS.dropped)
    load_into(net, keys.applied(state), (), complaint)
    if size and size != ESVIT_TRANSFORM.size:
        with size_checked("esvit", size):
            # Unless the window is named, timm changes its size and resamples what was learned for it.
            net.set_input_size(img_size=(size, size), window_size=(shape["window_size"],) * 2)
    return Built(net, ESVIT_TRANSFORM, shape)


def _swin(shape: Mapping[str, Any], size: int) -> Any:
    from timm.models.swin_transformer import SwinTransformer

    # EsViT's norms have a smaller epsilon than timm's.
    norm: Any = partial(nn.LayerNorm, eps=1e-6)
    with size_checked("esvit", size):
        return SwinTransformer(img_size=size or ESVIT_TRANSFORM.size, num_classes=0, norm_layer=norm, **shape)


def _swin_shape(state: Mapping[str, Tensor], complaint: str) -> dict[str, Any]:
    """Read off the tensors: width, depth, heads, window and patch."""
    tables = {
        (int(found[1]), int(found[2])): value
        for key, value in state.items()
        if (found := re.fullmatch(r"layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table", key))
    }
    patch = state.get("patch_embed.proj.weight")
    if patch is None or not tables or patch.ndim != 4:
        raise UserError(f"{complaint}: there is no Swin transformer in it; of EsViT's networks give one of those")
    stages = range(1 + max(stage for stage, _ in tables))
    firsts = [tables.get((stage, 0), torch.zeros(0, 0)) for stage in stages]
    return {
        "embed_dim": patch.shape[0],
        "depths": [sum(at == stage for at, _ in tables) for stage in stages],
        "num_heads": [max(1, table.shape[1]) for table in firsts],
        "window_size": (math.isqrt(firsts[0].shape[0]) + 1) // 2,
        "patch_size": patch.shape[-1],
    }
