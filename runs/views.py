"""The views of a run: its backbones, what is learned on them, and what many runs of the same views need only once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .. import args
from ..backbones.backbone import Backbone
from ..features.bank import FeatureBank
from ..features.blocks import evict
from ..features.sources import FrozenSource, ImageSource, Source
from ..images.augment import recipe_for
from ..utils import warn
from .context import RunContext
from .networks import on_device

Value = TypeVar("Value")


@dataclass(frozen=True)
class View:
    """One way to see an image: a backbone and the source of what is learned on it. All but co-training have one."""

    name: str
    backbone: Backbone
    source: Source

    @property
    def images(self) -> ImageSource:
        """The decoded and augmented images under whatever the source is."""
        source = self.source.frozen if isinstance(self.source, FeatureBank) else self.source
        return source.images if isinstance(source, FrozenSource) else source  # type: ignore[return-value]


@dataclass(frozen=True)
class Views:
    """The views of a run, in their order.

    frozen: no backbone learns, so that heads learn on features; key: what frozen views depend on, beside the data set.
    """

    each: tuple[View, ...]
    frozen: bool
    key: Hashable = None

    def __iter__(self) -> Iterator[View]:
        return iter(self.each)

    def __len__(self) -> int:
        return len(self.each)

    @property
    def first(self) -> View:
        """The only view, or the first of co-training."""
        return self.each[0]

    @property
    def backbones(self) -> dict[str, Backbone]:
        """The backbones by the names of their views."""
        return {view.name: view.backbone for view in self.each}

    @property
    def banks(self) -> list[FeatureBank]:
        """The feature banks; none where a backbone learns or with `--no_cache`."""
        return [view.source for view in self.each if isinstance(view.source, FeatureBank)]

    def of(self, model: str) -> View:
        """The view that a model sees: in co-training the one of its name, else the only one."""
        return next((view for view in self.each if view.name == model), self.each[0])


@dataclass
class FeatureCache:
    """Frozen views, and what is computed from their features, by an explicit key: many runs make them once."""

    views: dict[Hashable, Views] = field(default_factory=dict)
    computed: dict[Hashable, Any] = field(default_factory=dict)

    def remember(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """What `compute` gives, computed when the key is new."""
        if key not in self.computed:
            self.computed[key] = compute()
        return self.computed[key]

    def forget(self, *, views: int, computed: int) -> None:
        """Drop the oldest beyond these numbers."""
        for held, most in ((self.views, views), (self.computed, computed)):
            while len(held) > most:
                held.pop(next(iter(held)))


def make_views(
    backbones: Mapping[str, Backbone], run: args.Run, flip: bool | None, context: RunContext, *, frozen: bool
) -> Views:
    """Views of the run's images through these backbones; old feature banks beyond `--cache_limit` are removed."""
    sources = [make_source(backbone, run, flip, context, frozen=frozen) for backbone in backbones.values()]
    views = Views(tuple(map(View, backbones, backbones.values(), sources)), frozen)
    own = [bank.folder for bank in views.banks]
    for folder in evict(Path(run.cache_dir).expanduser(), int(run.cache_limit * 1e9), own) if own else []:
        warn(f"--cache_limit {run.cache_limit:g}: removed the old feature bank {folder}")
    return views


def make_source(
    backbone: Backbone, run: args.Run, flip: bool | None, context: RunContext, *, frozen: bool
) -> ImageSource | FrozenSource | FeatureBank:
    """What is learned on a backbone: images where it learns too, else its features, from a bank unless `--no_cache`."""
    recipe = recipe_for(context.data.kind, flip)
    images = ImageSource(context.data, backbone.transform, recipe, context.device, workers=run.num_workers)
    if not frozen:
        return images
    on_device(backbone, context.device)
    features = FrozenSource(images, backbone, context.precision.features)
    return FeatureBank(Path(run.cache_dir).expanduser(), features, run.cache_dtype) if run.cache else features
