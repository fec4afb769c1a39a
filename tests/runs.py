"""What the end-to-end tests start and read: runs in this process, as a process of their own, and killed ones."""

from __future__ import annotations

import contextlib
import csv
import functools
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from transfermpl import MPL, args, visualization
from transfermpl.base.files import atomic_file
from transfermpl.data import find_dataset, split_dataset
from transfermpl.runs.prepare import make_trainer
from transfermpl.runs.trainer import Trainer
from transfermpl.runs.views import FeatureCache

ROOT = Path(MPL.__file__).resolve().parent
PICTURES = ("draw_curves", "draw_confusion", "draw_samples", "draw_reliability")
# One epoch of moons takes four of these steps; the warm-up is the first.
MOONS = ("--data_dir", "moons", "--unlabeled_batch_size", "200", "--max_steps", "12", "--warmup_epoch_num", "1")
# A frozen backbone that costs next to nothing, so that the feature bank takes part.
FROZEN = ("--model_name", "cnn", "--unfreeze", "head", "--image_size", "16", "--num_workers", "0")


@dataclass(frozen=True)
class Outcome:
    """What a run ended with: its exit code, both streams, and the folder that it ran in."""

    code: int
    out: str
    err: str
    cwd: Path

    def folder(self, name: str = "x") -> Path:
        return self.cwd / "results" / name

    def rows(self, name: str = "x") -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.metrics(name))))

    def metrics(self, name: str = "x") -> str:
        return (self.folder(name) / "metrics.csv").read_text(encoding="utf-8")

    def summary(self, name: str = "x") -> dict[str, Any]:
        return json.loads((self.folder(name) / "summary.json").read_text(encoding="utf-8"))

    def split(self, name: str = "x") -> dict[str, list[str]]:
        """The paths of each split of split.csv."""
        paths: dict[str, list[str]] = {}
        with (self.folder(name) / "split.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                paths.setdefault(row["split"], []).append(row["path"])
        return paths

    def checkpoint(self, which: str = "best", name: str = "x") -> dict[str, Any]:
        return torch.load(self.folder(name) / "checkpoints" / f"{which}.pt", weights_only=True)

    def backbone(self, name: str = "x") -> Any:
        """The weights of the run's one frozen backbone; None where a backbone learns."""
        (view,) = self.checkpoint(name=name)["views"].values()
        return view["backbone"]

    def complaint(self) -> list[str]:
        """The lines on stderr, warnings apart."""
        return [line for line in self.err.splitlines() if not line.startswith("warning: ")]


def run(*arguments: object, cwd: Path, pictures: bool = False) -> Outcome:
    """MPL.main in this process, on the CPU (where results are equal bit for bit); pictures are left out."""
    line = [str(word) for word in arguments]
    if "--device" not in line:
        line += ["--device", "cpu"]
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n", write_through=True), io.StringIO()
    drawing = contextlib.nullcontext() if pictures else no_pictures()
    with drawing, contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = MPL.main(line)
    return Outcome(code, out.buffer.getvalue().decode(), err.getvalue(), cwd)


def started(cwd: Path, *arguments: object) -> Outcome:
    """A run named x, which must end well."""
    outcome = run("--name", "x", *arguments, cwd=cwd)
    assert outcome.code == 0, outcome.err
    return outcome


@contextlib.contextmanager
def no_pictures() -> Any:
    """Drawing takes a second a picture, and has its own tests: here each is one grey pixel."""

    def draw(path: Path, *args: object, **named: object) -> Path:
        with atomic_file(path) as temporary:
            Image.new("RGB", (1, 1), "grey").save(temporary, "PNG")
        return path

    with pytest.MonkeyPatch.context() as patch:
        for name in PICTURES:
            patch.setattr(visualization, name, draw)
        yield


def start(*arguments: object, cwd: Path, saves_often: bool = False) -> subprocess.Popen[str]:
    """MPL.py as a process of a group of its own; `saves_often` makes a checkpoint after every epoch."""
    program = [str(ROOT / "MPL.py")]
    if saves_often:
        setting = "from transfermpl import MPL, train; train.CHECKPOINT_SECONDS = -1.0"
        program = ["-c", f"import sys; {setting}; sys.exit(MPL.main(sys.argv[1:]))"]
    command = [sys.executable, *program, *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, start_new_session=True, **pipes)


def end(process: subprocess.Popen[str], cwd: Path) -> Outcome:
    out, err = process.communicate(timeout=300)
    return Outcome(process.returncode, out, err, cwd)


# --- killed runs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """The `count`-th call of a function (`module:name`): the process is killed before, after, or halfway its file."""

    function: str
    count: int = 1
    when: str = "before"


def killed(moment: Moment, *arguments: object, cwd: Path) -> None:
    """Run in a forked process that is killed by SIGKILL at that moment, with a checkpoint after every epoch."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            _arm(moment)
            _patch("train:CHECKPOINT_SECONDS", lambda old: -1.0)
            code = run(*arguments, cwd=cwd).code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the run ended with code {os.waitstatus_to_exitcode(status)} before {moment}"
    assert os.WTERMSIG(status) == signal.SIGKILL


def _arm(moment: Moment) -> None:
    left = moment.count

    def wrap(old: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(old)
        def call(*args: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and moment.when == "before":
                die()
            if left == 0 and moment.when == "torn":
                _patch("os:fsync", lambda old: _tear)
            result = old(*args, **named)
            if left == 0 and moment.when == "after":
                die()
            return result

        return call

    _patch(moment.function, wrap)


def _tear(handle: int) -> None:
    """Files are synced just before they are renamed: the last moment at which half of one can be there."""
    os.ftruncate(handle, os.fstat(handle).st_size // 2)
    die()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _patch(function: str, change: Callable[[Any], Any]) -> None:
    """Replace `module:name`, where the module is one of the package's, or os."""
    module, _, name = function.partition(":")
    owner: Any = importlib.import_module(module if module == "os" else f"transfermpl.{module}")
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    setattr(owner, last, change(getattr(owner, last)))


# --- comparing --------------------------------------------------------------------------------------------------------


def same(a: Any, b: Any) -> bool:
    """Whether two trees of dicts, lists, tensors and plain values are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def same_run(a: Outcome, b: Outcome, name: str = "x") -> bool:
    """Whether two runs left the same metrics, the same weights and the same results."""
    untimed = [{k: v for k, v in o.summary(name).items() if k not in CLOCK} for o in (a, b)]
    return (
        a.metrics(name) == b.metrics(name)
        and same(a.checkpoint("last", name), b.checkpoint("last", name))
        and same(a.checkpoint("best", name), b.checkpoint("best", name))
        and untimed[0] == untimed[1]
    )


CLOCK = ("seconds", "peak_memory_bytes", "command")


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file under a folder with its time and content, and every folder."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


# --- images -----------------------------------------------------------------------------------------------------------

COLOURS = {"ähre": (200, 60, 50), "b c": (60, 190, 70), "日本": (60, 70, 210)}


def make_images(folder: Path, count: int, colour: tuple[int, int, int], *, seed: int = 0, suffix: str = "png") -> None:
    """`count` small noisy pictures of about one colour, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng([seed, *colour])
    for index in range(count):
        pixels = np.array(colour) + random.normal(0, 40, (20, 24, 3)) + random.normal(0, 30, 3)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"bild {index:02d}.{suffix}")


def photograph(seed: int) -> Image.Image:
    """Coloured blobs of many sizes: edges everywhere, no two alike."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((120, 160, 3))
    for cells in (3, 6, 12, 24):
        coarse = Image.fromarray(random.integers(0, 256, (cells, cells + 2, 3), np.uint8))
        pixels += np.asarray(coarse.resize((160, 120), Image.Resampling.BICUBIC), dtype=float) * (3 / cells) ** 0.5
    return Image.fromarray((255 * pixels / pixels.max()).astype(np.uint8))


def make_data(folder: Path, count: int = 12, *, classes: dict[str, tuple[int, int, int]] | None = None) -> Path:
    """DIR/<class>/*: three classes that colour tells apart."""
    for name, colour in (classes or COLOURS).items():
        make_images(folder / name, count, colour)
    return folder


def training(folder: Path, *words: object, cache: FeatureCache | None = None) -> Trainer:
    """A training of the images in this folder on a frozen backbone, not yet begun."""
    line = ("--name", "x", "--data_dir", folder, *FROZEN, "--num_labels", 9, "--max_steps", 4, *words)
    return prepared(*line, "--cache_dir", folder.parent / "c", cache=cache)


def prepared(*line: object, cache: FeatureCache | None = None) -> Trainer:
    """The training that a command line asks for, not yet begun."""
    options = args.parse([str(word) for word in line])
    dataset = find_dataset(options.data)
    split = split_dataset(dataset, options.data, 0)
    return make_trainer(options, dataset, split, cache=cache)


def goes_on_to_the_same(outcome: Outcome) -> None:
    """A run that goes on after its last step leaves the models that it left before."""
    before = outcome.checkpoint()["models"]
    for name in ("summary.json", "checkpoints/best.pt"):
        (outcome.folder() / name).unlink()
    again = run("--name", "x", "--resume", cwd=outcome.cwd)
    assert again.code == 0, again.err
    for name, state in again.checkpoint()["models"].items():
        for key, value in state.items():
            assert value.equal(before[name][key])
