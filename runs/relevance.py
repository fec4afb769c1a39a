"""What a decision rests on: the parts of an image that speak for a class, by the gradient at a network's last map.

    relevance = max(0, sum over channels of activation * gradient of the class's logit)

Where the last map is averaged before the head this is Grad-CAM (Selvaraju et al. 2017). Of a transformer it is the
same for the values of the patches in the last attention: what the class token takes from each patch. Behind it nothing
of a patch reaches the class token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.backbone import Backbone
from ..features.sources import evaluation_pixels
from ..images.decode import fit
from ..utils import warn
from .finished_run import FinishedRun
from .trained_models import TrainedModels

COARSE = 16  # cells a side of the map of a network that has none of its own: of its pixels
LEAST_SIDE = 64  # pixels of images on which a map shows more than a few squares
OPACITY = 0.75  # of what is most relevant


@dataclass(frozen=True)
class Part:
    """A backbone with the heads that look through it. name: of the view, or of the model whose own backbone it is."""

    name: str
    view: str
    backbone: Backbone
    heads: Sequence[nn.Module]


def parts_of(models: TrainedModels) -> list[Part]:
    """A part for each view; for each model where backbones have learned."""
    heads: dict[str, list[nn.Module]] = {}
    for name, head in models.heads.items():
        heads.setdefault(models.view_of(name) if models.frozen else name, []).append(head)
    if models.frozen:
        return [Part(view, view, models.views[view], some) for view, some in heads.items()]
    networks = {name: network for name, (network,) in heads.items()}
    return [
        Part(name, models.view_of(name), network.get_submodule("backbone"), [network.get_submodule("head")])  # type: ignore[arg-type]
        for name, network in networks.items()
    ]


def relevance(part: Part, images: Tensor, classes: Tensor) -> Tensor:
    """float [N, S, S] in [0, 1]: how far each place of an image speaks for a class; the most relevant place has 1.

    images: [N, 3, S, S] in [0, 1]; classes: int64 [N]. Logits are defined up to a constant, so it is their distance
    from their mean that is explained. All is 0 where nothing speaks for the class.
    """
    pixels = images.detach().clone().requires_grad_()
    with torch.enable_grad(), _recorded(part.backbone.eval(), len(images)) as layers:
        features = part.backbone(pixels)
        logits = torch.stack([head.eval()(features) for head in part.heads]).mean(dim=0)
        score = (logits - logits.mean(dim=1, keepdim=True)).gather(1, classes[:, None]).sum()
        found = _of_last_map(score, layers)
        if found is None:
            (gradient,) = torch.autograd.grad(score, pixels)
            found = functional.adaptive_avg_pool2d((pixels * gradient).sum(dim=1, keepdim=True), COARSE)[:, 0]
    grid = found.detach().clamp_min(0)[:, None]
    shown = functional.interpolate(grid, images.shape[-2:], mode="bilinear")[:, 0]
    return shown / shown.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(shown.dtype).tiny)


@contextmanager
def _recorded(backbone: Backbone, count: int) -> Iterator[list[Tensor]]:
    """Inside, tokens [N, T, D] and square maps [N, h, h, D] of N images, in the order in which layers make them."""
    layers: list[Tensor] = []

    def note(module: nn.Module, _: object, output: object) -> None:
        if not isinstance(output, Tensor) or not output.requires_grad or len(output) != count:
            return
        if output.ndim == 3 and isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.Linear)):
            layers.append(output)
        elif output.ndim == 4 and not isinstance(module, (nn.Dropout, nn.Identity)):  # which see attention, not maps
            _, first, second, third = output.shape
            if second == third > 1 or first == second > 1:
                layers.append(output)

    hooks = [module.register_forward_hook(note) for module in backbone.net.modules()]
    try:
        yield layers
    finally:
        for hook in hooks:
            hook.remove()


def _is_joint(layer: Tensor, layers: Sequence[Tensor]) -> bool:
    """Whether tokens are queries, keys and values in one: three times as wide as those before."""
    before = [other.shape[2] for other in layers if other.ndim == 3]
    return layer.shape[2] == 3 * min(before)


def _of_last_map(score: Tensor, layers: Sequence[Tensor]) -> Tensor | None:
    """[N, h, h] of the last layer in which more than one place matters; None where there is none."""
    for layer in reversed(layers):
        (gradient,) = torch.autograd.grad(score, layer, retain_graph=True, allow_unused=True)
        if gradient is None:
            continue
        product = layer * gradient
        if layer.ndim == 3 and layer.shape[2] % 3 == 0 and _is_joint(layer, layers):
            product = product[:, :, -layer.shape[2] // 3 :]
        if layer.ndim == 4:
            return product.sum(dim=1 if layer.shape[2] == layer.shape[3] else 3)
        if int((gradient != 0).any(dim=2).any(dim=0).sum()) > 1:
            side = math.isqrt(layer.shape[1])  # class and register tokens come before the patches
            return product.sum(dim=2)[:, -side * side :].unflatten(1, (side, side))
    return None


# --- pictures ---------------------------------------------------------------------------------------------------------


def overlays(models: TrainedModels, images: Callable[[str], Tensor], classes: np.ndarray) -> dict[str, np.ndarray]:
    """uint8 [N, S, S, 3] of each part: the images in grey, and glowing where they speak for the classes [N].

    images: of a view's name, decoded images uint8 [N, 3, S, S].
    """
    drawn = {}
    for part in parts_of(models):
        decoded = images(part.view)
        wanted = torch.from_numpy(classes).to(decoded.device)
        drawn[part.name] = overlay(decoded, relevance(part, evaluation_pixels(decoded), wanted))
    return drawn


def overlay(images: Tensor, shares: Tensor) -> np.ndarray:
    """uint8 [N, S, S, 3] of images uint8 [N, 3, S, S] and what `relevance` says of them."""
    import matplotlib

    weight = shares.cpu().numpy()[..., None]
    grey = images.cpu().numpy().mean(axis=1)[..., None]
    glow = 255 * matplotlib.colormaps["inferno"](weight[..., 0])[..., :3]
    mixed = (1 - OPACITY * weight) * grey + OPACITY * weight * glow
    return mixed.round().astype(np.uint8)


def explained(run: FinishedRun, models: TrainedModels, positions: Sequence[int]) -> dict[int, dict[str, np.ndarray]]:
    """The overlays of test images for the class that they are taken for, by position and part.

    None of images that are too small, or gone meanwhile, and none of points.
    """
    transforms = {view: backbone.transform for view, backbone in models.views.items()}
    if run.dataset.kind == "points" or min(t.size for t in transforms.values()) < LEAST_SIDE:
        return {}
    predicted = run.predicted(run.judge)
    found: dict[int, dict[str, np.ndarray]] = {}
    device = next(iter(models.views.values())).mean.device
    for position in positions:
        row = int(run.split.test[position])
        try:
            fitted = {
                view: np.array(fit(run.dataset.picture(row, 2 * t.resize), t)).transpose(2, 0, 1)
                for view, t in transforms.items()
            }
        except Exception:  # decoders meet damaged data with whatever exception comes up
            continue

        def decoded(view: str, fitted: dict[str, np.ndarray] = fitted) -> Tensor:
            return torch.from_numpy(fitted[view][None]).to(device)

        try:
            each = overlays(models, decoded, predicted[position : position + 1])
        except (RuntimeError, ValueError, MemoryError) as error:  # a run that has ended well is not lost by pictures
            warn(f"what decisions rest on can't be drawn for this network ({' '.join(str(error).split())[:100]})")
            return found
        found[position] = {name: images[0] for name, images in each.items()}
    return found
