"""A finished run packed into one file that needs nothing of this project: ONNX, or a program of torch.export.

The file takes uint8 RGB images [N, 3, S, S], already resized, any number of them, and gives calibrated probabilities
[N, C]. Scaling, normalisation, backbones, heads, ensemble and temperature are inside; what S is, how images are brought
there and what the classes are called stands in its metadata. Beside it lies a program that does both for image files.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..args import Mode, Use
from ..base.folder_walk import files_below
from ..data import find_dataset
from ..images import builtin
from ..images.decode import Transform
from ..utils import UserError, say, shown
from . import classify
from .classifier import Classifier
from .output import classifier_of, output, writing

SUFFIX = {"onnx": ".onnx", "torch_export": ".pt2"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch_export": ()}
EXACT = {"device": "cpu", "precision": "fp32"}  # what a file is compared with
CHECKED = 64  # real images on which the file is compared with the run's own models
ALLOWED = 1e-3  # the largest difference of a probability
SCRIPT = "classify.py"
RECIPE = "upright, 8-bit RGB on white, the short side to `resize`, the middle `size` x `size`"
Runner = Callable[[np.ndarray], np.ndarray]


class Packed(nn.Module):
    """uint8 RGB [N, 3, S, S] to calibrated probabilities [N, C]: what a `Classifier` does after decoding."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        trained = classifier.trained
        self.backbones, self.groups = nn.ModuleList(), nn.ModuleList()
        for view, backbone in trained.views.items():
            models = [head for name, head in trained.heads.items() if trained.view_of(name) == view]
            if models:
                self.backbones.append(plain(backbone) if trained.frozen else nn.Identity())
                self.groups.append(nn.ModuleList(plain(model) for model in models))
        self.temperature = classifier.temperatures.get(classifier.name, 1.0)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.to(torch.float32) / 255
        each = []
        for backbone, models in zip(self.backbones, self.groups, strict=True):
            seen = backbone(pixels)
            each += [model(seen).softmax(dim=1) for model in cast(nn.ModuleList, models)]
        mean = torch.stack(each).mean(dim=0)
        # As `metrics.tempered` does it.
        return (mean.clamp(min=torch.finfo(torch.float32).tiny).log() / self.temperature).softmax(dim=1)


def plain(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).cpu().float().to(memory_format=torch.contiguous_format)


def export(
    mode: Mode, use: Use, settings: Mapping[str, Any], *, check_with: str | None, overwrite: bool
) -> dict[str, Any]:
    """Write the classifier of `--load_path` into one file and check it; returns its place and the largest difference.

    settings: options of the group Run that replace those of the run, by name; check_with: images to check the file
    with, None for the run's own; overwrite: whether the file may exist.

    Raises UserError when packages are missing, the views want images of different sizes, or the check fails.
    """
    kind = mode.export or ""
    missing = [name for name in PACKAGES[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--export {kind} needs packages that are missing: pip install {' '.join(missing)}")
    classifier = classifier_of(mode, {**settings, **EXACT})
    transform = _only_transform(classifier)
    images = sample(classifier, check_with or classifier.stored.data.data_dir)
    name = f"classifier{SUFFIX[kind]}"
    out, _ = output(use.out, classifier.path, name, overwrite=overwrite, is_own=_IS_OWN[kind])
    with writing(out) as temporary:
        with _quiet():
            _WRITERS[kind](Packed(classifier), transform, temporary, metadata(classifier, transform))
        difference = check(classifier, _RUNNERS[kind](temporary), images)
        if not difference <= ALLOWED:
            raise UserError(
                f"the file's probabilities differ from the run's by {difference:.2g} on {len(images)} images, which is "
                f"more than {ALLOWED:g}, so it is not kept; try --export {next(k for k in SUFFIX if k != kind)}"
            )
    script = write_script(out)
    size = out.stat().st_size / 1e6
    say(f"checked on {len(images)} images: the probabilities differ by {difference:.2g} at most")
    say(shown(f"exported: {out}") + f" ({size:.1f} MB; uint8 RGB [N, 3, {transform.size}, {transform.size}])")
    say(f"to classify images with these two files alone: python {script.name} {out.name} IMAGE ...")
    return {"out": str(out), "script": str(script), "images": len(images), "difference": difference}


def write_script(model: Path) -> Path:
    """Write the program that classifies image files with an exported model beside it; returns its place."""
    for number in count(1):
        path = model.with_name(SCRIPT if number == 1 else SCRIPT.replace(".", f"-{number}."))
        if not os.path.lexists(path) or _is_script(path):
            with writing(path) as temporary:
                temporary.write_text(script(), encoding="utf-8")
            return path
    raise AssertionError


def script() -> str:
    """The text of classify.py, in which the decoding that it imports stands itself: it is the very same code."""
    own = Path(__file__).with_name(SCRIPT).read_text(encoding="utf-8")
    known = {line for line in own.splitlines() if line.startswith("import ")}
    for line in (line for line in own.splitlines() if line.startswith("from ..")):
        file = Path(__file__).parents[1].joinpath(*line.split()[1].removeprefix("..").split(".")).with_suffix(".py")
        text = file.read_text(encoding="utf-8").partition("from __future__ import annotations\n")[2].strip()
        own = own.replace(line, "\n".join(one for one in text.splitlines() if one not in known))
        known |= {one for one in text.splitlines() if one.startswith("import ")}
    return own


def _is_script(path: Path) -> bool:
    first = str(classify.__doc__).encode().splitlines()[0]
    return path.is_file() and path.read_bytes()[:200].startswith(b'"""' + first)


def _only_transform(classifier: Classifier) -> Transform:
    """The one way in which images must be resized; mean and std lie inside the backbones and may differ."""
    first = classifier.transforms[0]
    for other in classifier.transforms[1:]:
        if (other.size, other.resize, other.interpolation) != (first.size, first.resize, first.interpolation):
            sizes = " and ".join(f"{t.size} ({t.interpolation} to {t.resize})" for t in (first, other))
            raise UserError(
                f"the run's views want images of {sizes} pixels, and one file takes only one kind of images"
            )
    return first


def metadata(classifier: Classifier, transform: Transform) -> dict[str, str]:
    """What a user of the file must know, as texts; `classes` is a JSON list."""
    return {
        "size": str(transform.size),
        "resize": str(transform.resize),
        "interpolation": transform.interpolation,
        "input": f"images: uint8 RGB [N, 3, {transform.size}, {transform.size}]",
        "recipe": RECIPE,
        "ranges": json.dumps(classifier.ranges),
        "output": "probabilities: float32 [N, C], calibrated"
        if classifier.temperatures
        else "probabilities: float32 [N, C]",
        "classes": json.dumps(list(classifier.classes)),
        "decision": json.dumps(classifier.decision),
        "model": classifier.name,
    }


# --- the check --------------------------------------------------------------------------------------------------------


def sample(classifier: Classifier, place: str) -> np.ndarray:
    """Real images uint8 [n, 3, S, S], at most CHECKED, spread over the run's data (or over `--data_dir`)."""
    transform = classifier.transforms[0]
    if place in builtin.NAMES:
        dataset = find_dataset(classifier.stored.changed(data_dir=place).data, for_test=True)
        rows = np.linspace(0, len(dataset) - 1, min(CHECKED, len(dataset))).astype(np.int64)
        return np.stack([dataset.read(int(row), transform).numpy() for row in rows])
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"the run's images are not in {place} any more; give --data_dir a folder of images to check with"
        )
    total = sum(1 for _ in files_below(folder))
    spread = islice(files_below(folder), 0, None, max(1, total // (2 * CHECKED)))  # twice as many: some may be bad
    found = [fitted[0] for _, fitted in classifier.decoded(spread) if not isinstance(fitted, str)]
    if not found:
        raise UserError(f"no image in {folder}; give --data_dir a folder of images to check the file with")
    return np.stack(found[:: max(1, len(found) // CHECKED)][:CHECKED])


def check(classifier: Classifier, run: Runner, images: np.ndarray) -> float:
    """The largest difference of a probability between the file and the run's own models; in batches of two sizes."""
    ours = classifier.probabilities([(image,) * len(classifier.transforms) for image in images])[classifier.name]
    theirs = np.concatenate([run(images[:1]), *(run(images[i : i + 16]) for i in range(1, len(images), 16))])
    return float(np.abs(ours - theirs).max())


# --- the formats ------------------------------------------------------------------------------------------------------


def write_onnx(packed: Packed, transform: Transform, path: Path, about: dict[str, str]) -> None:
    """One .onnx file, weights inside."""
    example = torch.zeros(2, 3, transform.size, transform.size, dtype=torch.uint8)
    program: Any = torch.onnx.export(
        packed,
        (example,),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes={"images": {0: torch.export.Dim("N")}},
        dynamo=True,
        verbose=False,
    )
    program.model.metadata_props.update(about)
    program.save(str(path), external_data=False)


def run_onnx(path: Path) -> Runner:
    """The file in onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def write_torch_export(packed: Packed, transform: Transform, path: Path, about: dict[str, str]) -> None:
    """One .pt2 file; `torch.export.load(file, extra_files={"metadata.json": ""})` fills in the metadata."""
    example = torch.zeros(2, 3, transform.size, transform.size, dtype=torch.uint8)
    shapes = {"images": {0: torch.export.Dim("N")}}
    program = torch.export.export(packed, (example,), dynamic_shapes=shapes)
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(about, ensure_ascii=False, indent=2)})


def run_torch_export(path: Path) -> Runner:
    """The file in torch, on the CPU."""
    program = torch.export.load(path).module()
    return lambda images: program(torch.from_numpy(images)).numpy()


def is_onnx(path: Path) -> bool:
    """Whether a file is a classifier that was exported to ONNX."""
    import onnx

    try:
        found = onnx.load(str(path), load_external_data=False).metadata_props
    except Exception:  # whatever a foreign file makes the reader of protocol buffers raise
        return False
    return "recipe" in {entry.key for entry in found}


def is_torch_export(path: Path) -> bool:
    """Whether a file is a classifier that was exported by torch.export."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("extra/metadata.json") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


_IS_OWN = {"onnx": is_onnx, "torch_export": is_torch_export}
_WRITERS = {"onnx": write_onnx, "torch_export": write_torch_export}
_RUNNERS = {"onnx": run_onnx, "torch_export": run_torch_export}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters talk to their developers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
