"""Three small backbones that learn from scratch, for small images and for points."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .. import args
from ..images.decode import Transform
from .weights import load_into, read_weights, weight_file

LEAK = 0.1  # slope of WRN-28-2's leaky ReLU, as in UDA and FixMatch


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


def small_net(name: str, model: args.Model, native_size: int, points: bool) -> tuple[nn.Module, Transform]:
    """A network of SMALL with its transform, and with the weights of `--weights FILE`. Raises UserError.

    native_size: side of the data's own images in pixels, 0 when they differ; points: the data are [N, 2], not images.
    """
    # At least 16 px, so that crops and shifts of scanned digits have room; 32 px where the images have many sizes.
    size = model.image_size or (max(native_size, 16) if native_size else 32)
    transform = Transform(size, size, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    net = SMALL[name]() if name != "mlp" else mlp(2 if points else 3 * size * size)
    file = weight_file(model.weights)
    if file is not None:
        load_into(net, read_weights(file), (), f"--weights {file} does not fit {name}")
    return net, transform
