"""What several tests of backbones share: a computer without network, and tiny models of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from networks import randomised


@pytest.fixture(scope="module")
def zoo() -> Any:
    return pytest.importorskip("torchvision.models")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """No connection, and caches that are empty; gives their folder."""
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    caches = tmp_path / "caches"
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(caches))
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(caches))
    torch.manual_seed(0)
    yield caches
    torch.hub.set_dir(before)


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """timm's networks under their own names, one block deep: so `create_model` builds them for everybody."""
    import timm

    real = timm.create_model

    def create(name: str, **more: Any) -> Any:
        smaller = {"stages": (1, 1, 1, 1)} if name.startswith("hiera") else {"depth": 1}
        return real(name, **more, **smaller)

    monkeypatch.setattr(timm, "create_model", create)
    return create


# --- models of transformers -------------------------------------------------------------------------------------------


VIT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}


TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}


QFORMER = {**TEXT, "encoder_hidden_size": 32}


def whole_model(family: str) -> Any:
    """A tiny random model of the class that was published."""
    transformers = pytest.importorskip("transformers")
    vit = {**VIT, "image_size": 32}
    if family == "align":
        vision = {"image_size": 40, "width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 64}
        model = transformers.AlignModel(transformers.AlignConfig(vision_config=vision, text_config=TEXT))
    elif family == "blip":
        config = transformers.BlipConfig(vision_config=vit, text_config=TEXT)
        model = transformers.BlipForConditionalGeneration(config)
    elif family == "blip2":
        config = transformers.Blip2Config(vision_config=vit, qformer_config=QFORMER)
        model = transformers.Blip2ForImageTextRetrieval(config)
    else:
        model = transformers.Owlv2ForObjectDetection(transformers.Owlv2Config(vision_config=vit, text_config=TEXT))
    return randomised(model)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """A tiny model of a family and the folder that it was saved into."""
    made: dict[str, tuple[Any, Path]] = {}

    def get(family: str) -> tuple[Any, Path]:
        if family not in made:
            torch.manual_seed(2)
            folder = tmp_path_factory.mktemp(family) / "größe 1"
            model = whole_model(family)
            model.save_pretrained(folder)
            made[family] = model, folder
        return made[family]

    return get
