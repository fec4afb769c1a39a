"""Whether a refactoring changed nothing: a revision and the working tree run side by side, and must leave the same.

    python benchmarks/same_results.py REV [--only NAME ...] [--keep DIR] [--verbose]

Each scenario is a few tiny runs of `MPL.py`, by its command line alone, in a folder of its own for either tree. All that
they leave is compared: tables and JSON value by value, checkpoints, safetensors and ONNX tensor by tensor, bit for bit.
Times, memory, versions and the commit are passed over; pages, pictures and logs must be there, whatever they hold. What
a refactoring renames on purpose stands in the tables below and is listed as renamed. Prints a line a difference, then
`no difference in N files of M scenarios (K renamed)` and exits with 0; else with 1. About five minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import io
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What was renamed since REV: old -> new. A tree gets the new words of a command line if its --help knows them.
OPTIONS: dict[tuple[str, ...], tuple[str, ...]] = {}
FILES: dict[str, str] = {"timm:test_byobnet_CM.png": "timm_test_byobnet_CM.png"}  # a file that a run leaves
# A key, a column, a part of a tensor's name or a whole text; None: left out.
KEYS: dict[str, str | None] = {}
NEW_FILES = {"run.log", "written.txt", "classify.py"}  # what runs leave since then
NEW_KEYS = {"ranges", "labels_unused", "digest"}  # and what summaries, checkpoints and exports say

CLOCK = {"seconds", "peak_memory_bytes", "versions", "commit"}  # of the moment and the machine
UNSEEN = {".html", ".png", ".log", ".journal"}  # of these it counts that they are there
UNSEEN_FILES = {"written.txt"}  # grows when a run goes on
# Numbers that another library computes since then, equal but for their last bits: the interval of Wilson by scipy.
ROUNDED = {"ci95"}
LAST_BITS = 1e-15
OF_A_TRIAL = ("number", "state", "value", "seconds", "reason", "retry_of")  # the other columns are its parameters
CHECKPOINTS_BEFORE_KILL = 8
LIMIT_SECONDS = 900  # of a command, on a busy machine
ROOT = Path(__file__).resolve().parents[1]
# What the runs import, so that each need not: it takes them longer than what they do.
LIBRARIES = (
    "torch", "torch._dynamo", "torchvision", "timm", "sklearn.linear_model", "sklearn.covariance", "sklearn.datasets",
    "sklearn.neighbors", "sklearn.semi_supervised", "matplotlib.figure", "matplotlib.backends.backend_agg", "optuna",
    "safetensors.torch", "tqdm",
)  # fmt: skip

# Sure from the start, so that every loss takes part in so few steps.
MOONS = "--data_dir moons --unlabeled_batch_size 200 --max_steps 12 --warmup_epoch_num 1 --max_lr 0.01 --threshold 0.5"
DIGITS = (
    "--data_dir digits --test_percent 0.6 --num_labels 40 --unlabeled_batch_size 250 --max_steps 8"
    " --augmentation_draws 2 --max_lr 0.01 --threshold 0.2"
)
IMAGES = (
    "--data_dir ../../images --num_labels 12 --unlabeled_batch_size 12 --max_steps 6 --augmentation_draws 1"
    " --max_lr 0.01 --threshold 0.4"
)
NETWORK = "--model_name timm:test_byobnet --weights ../../network.safetensors --num_workers 0"
BANK = f"{IMAGES} {NETWORK}"
SLOW = "--data_dir moons --unlabeled_batch_size 200 --max_steps 400"  # epochs enough to be killed among
TRIALS = f"{MOONS} --optuna_mode --n_trials 4 --folds 2"
KILLED = "kill "  # begins a line that is killed by SIGKILL when some checkpoints have been written

SCENARIOS: dict[str, tuple[str, ...]] = {
    "mpl": (f"--name x {DIGITS} --val_percent 0.2 --show_images",),
    "options": (
        f"--name x {MOONS} --optimizer SGD --ema 0.9"
        " --grad_clip 1 --grad_accumulation 2 --label_smoothing 0.1 --lambda_u 2",
    ),
    "switch": (f"--name x {MOONS} --switch_mode",),
    "finetune": (
        f"--name a {MOONS}",
        "--name b --finetune_mode --load_best --load_path a --data_dir moons --max_steps 6",
    ),
    "cotraining": (f"--name x {DIGITS} --cotrain_mode --algorithm cotraining --views pixels gradients",),
    "meta": (f"--name x {DIGITS} --cotrain_mode --views pixels gradients --calibration_folds 0",),
    "views3": (
        f"--name x {IMAGES} --num_workers 0 --cotrain_mode --calibration_folds 0"
        " --views pixels gradients timm:test_byobnet=../../network.safetensors",
    ),
    "tuned_views": (
        f"--name x {IMAGES} --num_workers 0 --cotrain_mode --finetune_views --finetune_steps 3 --calibration_folds 0"
        " --views timm:test_byobnet=../../network.safetensors pixels",
    ),
    "bank": (
        f"--name x {BANK} --head_prior unlabeled --class_prior estimate",
        f"--name y {BANK} --head_prior none --class_prior labels --calibration_folds 0",
        "--test_mode --load_best --load_path x",
        "--predict_dir ../../unknown --load_path x --min_probability 0.45 --predict_copy sorted",
        "--export onnx --load_path x",
    ),
    "no_cache": (f"--name x {BANK} --head_prior unlabeled --class_prior estimate --no_cache --calibration_folds 2",),
    "unfrozen": (f"--name x {IMAGES} {NETWORK} --num_workers 1 --unfreeze all --image_size 64",),
    "resume": (f"--name x {SLOW}", f"{KILLED}--name y {SLOW}", "--name y --resume"),
    "compare": (f"--name x {MOONS} --compare --repeat 2",),
    "repeat": (f"--name x {MOONS} --switch_mode --repeat 2",),
    "search": (f"--name x {TRIALS}",),
    "search_workers": (f"--name x {TRIALS} --search_workers 2",),
    "inspect": (f"--name x --inspect --data_dir ../../images {NETWORK}",),
    "view_report": ("--name x --view_report --data_dir ../../images --num_labels 18 --views pixels gradients",),
}
TWINS = {"resume": ("x", "y")}  # runs of either tree that must be alike but for their names
UNORDERED = {"search_workers"}  # which worker draws which trial depends on the clock

Leaves = dict[tuple[str, ...], Any]


@dataclass
class Report:
    """What was compared, and how it came out."""

    differences: list[str] = field(default_factory=list)
    renamed: Counter[str] = field(default_factory=Counter)
    files: int = 0

    def differs(self, *where: str) -> None:
        self.differences.append(", ".join(where))
        print("different:", self.differences[-1], flush=True)


# --- reading what a run leaves ----------------------------------------------------------------------------------------


def flat(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each number, text and tensor of a tree, with the way to it; an empty branch is one too."""
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value)) or "[]"
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from flat(part, (*path, str(key)))
    else:
        yield path or ("value",), value


def read(path: Path) -> Leaves | None:
    """What a file holds, by key; None where it counts only that it is there."""
    if path.suffix in UNSEEN:
        return None
    if path.suffix in (".pt", ".pth"):
        import torch

        content = torch.load(path, map_location="cpu", weights_only=True)
        for learner in content.get("learners", {}).values():
            learner |= of_one_layout(learner)
        return dict(flat(content))
    reader = {".csv": read_table, ".safetensors": read_safetensors, ".onnx": read_onnx}.get(path.suffix)
    if reader:
        return reader(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return {("bytes",): path.read_bytes().hex()}
    with contextlib.suppress(ValueError):
        return dict(flat(json.loads(text)))
    return {(f"line {number}",): line for number, line in enumerate(text.splitlines(), start=1)}


def of_one_layout(learner: dict[str, Any]) -> dict[str, Any]:
    """What its optimizer has summed up, which lies by number or by name, in an order that both have."""
    states = learner["optimizer"].get("state", learner["optimizer"]).values()
    texts = [
        repr([(name, x.flatten()[:50].tolist(), x.shape) for name, x in state.items()]) for state in states if state
    ]
    along = [one if isinstance(one, dict) else dict(zip("vb", one, strict=True)) for one in learner.get("along", ())]
    ordered = [state for _, state in sorted(zip(texts, filter(None, states), strict=True), key=lambda pair: pair[0])]
    return {"optimizer": dict(enumerate(ordered)), "along": dict(enumerate(along))}


def read_table(path: Path) -> Leaves:
    columns, *rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8")))) or [[]]
    named = {f"row {number}": dict(zip(columns, row, strict=True)) for number, row in enumerate(rows, start=1)}
    return dict(flat({"columns": columns, **named}))


def read_safetensors(path: Path) -> Leaves:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = dict(file.metadata() or {})
        for key, text in about.items():
            with contextlib.suppress(ValueError):
                about[key] = json.loads(text)
        return dict(flat({"metadata": about, **{key: file.get_tensor(key) for key in file.keys()}}))  # noqa: SIM118


def read_onnx(path: Path) -> Leaves:
    """Weights, metadata, the kinds of nodes, and what comes of two fixed images."""
    import numpy as np
    import onnx
    import onnxruntime
    import torch

    model, options = onnx.load(path), onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    images = np.random.default_rng(0).integers(0, 256, (2, *given.shape[1:]), dtype=np.uint8)
    weights = {w.name: torch.from_numpy(onnx.numpy_helper.to_array(w).copy()) for w in model.graph.initializer}
    outputs = {f"output {n}": torch.from_numpy(x) for n, x in enumerate(session.run(None, {given.name: images}))}
    about = {entry.key: entry.value for entry in model.metadata_props}
    return dict(flat({**weights, **outputs, "metadata": about, "nodes": [n.op_type for n in model.graph.node]}))


# --- comparing --------------------------------------------------------------------------------------------------------


def other_part(part: str) -> str | None:
    """The new name of a key, or of parts of a tensor's name; None where it is left out."""
    names: dict[str, str | None] = {old[0].lstrip("-"): new[0].lstrip("-") for old, new in OPTIONS.items()} | KEYS
    if part in names:
        return names[part]
    return ".".join(names.get(piece) or piece for piece in part.split("."))


def other_value(key: tuple[str, ...], text: str) -> str | None:
    """A text in the new words: a command line, the value of an option, or another."""
    if key[-1] == "command":
        return shlex.join(other_words(shlex.split(text)))
    option = OPTIONS.get((f"--{key[-1]}", text))
    return option[-1] if option else KEYS.get(text, text)


def equal(old: Any, new: Any) -> bool:
    """Bit for bit: 0.0 is not -0.0, and NaN is NaN."""
    if hasattr(old, "untyped_storage") and hasattr(new, "untyped_storage"):
        import torch

        raw = [torch.cat([x.reshape(-1)]).view(torch.uint8) for x in (old, new)]  # a copy without gaps
        return old.dtype == new.dtype and old.shape == new.shape and torch.equal(*raw)
    return type(old) is type(new) and repr(old) == repr(new)


def shown(value: Any) -> str:
    if hasattr(value, "untyped_storage"):
        numbers = " ".join(f"{x:.9g}" for x in value.reshape(-1)[:3].tolist())
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} {numbers} ..."
    return repr(value)[:80]


def of_the_clock(key: tuple[str, ...], passed: set[str]) -> bool:
    return not {*passed, *(KEYS.get(name) for name in passed)}.isdisjoint(key)


def by_last_bits(key: tuple[str, ...], old: Any, new: Any) -> bool:
    """Whether these are numbers of ROUNDED that differ by no more than a double's rounding."""
    return (
        bool(ROUNDED & set(key)) and isinstance(old, float) and isinstance(new, float) and abs(old - new) <= LAST_BITS
    )


def expected(key: tuple[str, ...], old: Any, new: Any) -> str | None:
    """By which table above two unlike values are alike; None where they differ."""
    if by_last_bits(key, old, new):
        return f"last bits of {key[-2]}"
    if isinstance(old, str) and equal(other_value(key, old), new):
        return "words of command lines" if key[-1] == "command" else f"{old} -> {new}"
    return None


def compare_leaves(old: Leaves, new: Leaves, report: Report, *where: str, passed: set[str] = CLOCK) -> None:
    """Every value of one file against the other's; what a table above renames is noted, not different."""
    left = {key: value for key, value in new.items() if not of_the_clock(key, passed)}
    for key, value in old.items():
        if of_the_clock(key, passed):
            continue
        parts = [part if key in new else other_part(part) for part in key]
        named = "/".join(key)
        for before, after in zip(key, parts, strict=True):
            if before != after:
                report.renamed[f"{before} -> {after}"] += 1
        if None in parts:
            continue
        if tuple(parts) not in left:
            report.differs(*where, named, f"{shown(value)} / missing")
            continue
        found = left.pop(tuple(str(part) for part in parts))
        if equal(value, found):
            continue
        why = expected(key, value, found)
        if why is None:
            report.differs(*where, named, f"{shown(value)} / {shown(found)}{by_how_much(value, found)}")
        else:
            report.renamed[why] += 1
    for key in [key for key in left if not is_new(key, report)]:
        report.differs(*where, "/".join(key), f"missing / {shown(left[key])}")


def is_new(key: tuple[str, ...], report: Report) -> bool:
    """Whether this is said since then only; it is noted."""
    if not NEW_KEYS & set(key):
        return False
    report.renamed[f"new: {key[-1]}"] += 1
    return True


def by_how_much(old: Any, new: Any) -> str:
    """Of tensors of one shape: how many elements differ, and by how much at most."""
    if not hasattr(old, "untyped_storage") or getattr(new, "shape", None) != old.shape:
        return ""
    apart = (old.double() - new.double()).abs()
    return f" ({int((old != new).sum())} of {old.numel()} elements, by {float(apart.max()):.3g} at most)"


def compare_trials(old: Path, new: Path, report: Report, *where: str) -> None:
    """Of two workers' search: as many trials, and the same value where both trees tried the same parameters.

    A worker draws by its own number and place in its own order, but which of them is quicker differs.
    """
    report.files += 1
    of_a_trial = {*OF_A_TRIAL, *(other_part(name) for name in OF_A_TRIAL)}
    tables: list[dict[str, Any]] = []
    for path in (old, new):
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        texts = [[text for name, text in row.items() if name not in of_a_trial] for row in rows]
        results = [[text for name, text in row.items() if name in of_a_trial][1:3] for row in rows]
        tables.append({" ".join(parameters): result for parameters, result in zip(texts, results, strict=True)})
    both = tables[0].keys() & tables[1].keys()
    if len(tables[0]) != len(tables[1]) or not both:
        report.differs(*where, f"{len(tables[0])} / {len(tables[1])} trials, {len(both)} of them alike")
    print(f"{', '.join(where)}: {len(both)} of {len(tables[0])} trials were tried by both", file=sys.stderr)
    for parameters in sorted(both):
        if tables[0][parameters] != tables[1][parameters]:
            report.differs(*where, parameters, f"{tables[0][parameters]} / {tables[1][parameters]}")


def compare_file(old: Path, new: Path, report: Report, *where: str, passed: set[str] = CLOCK) -> None:
    report.files += 1
    before, unlike = (len(report.differences), report.renamed.total()), old.read_bytes() != new.read_bytes()
    if not unlike or old.suffix in UNSEEN or old.name in UNSEEN_FILES:
        return
    leaves = read(old), read(new)
    assert leaves[0] is not None
    assert leaves[1] is not None
    compare_leaves(leaves[0], leaves[1], report, *where, passed=passed)
    explained = before != (len(report.differences), report.renamed.total())
    if old.suffix == ".csv" and not explained and not any(of_the_clock(key, passed) for key in leaves[0]):
        report.differs(*where, "the same values, but not the same bytes")


def files_in(folder: Path) -> list[str]:
    """All that runs have left below a folder, the features apart."""
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [path.as_posix() for path in found if path.parts[0] != "cache"]


def other_file(name: str) -> str:
    """Its new name: whole, or that of its last parts or of a folder on the way."""
    for old, new in FILES.items():
        name = f"/{name}/".replace(f"/{old}/", f"/{new}/").strip("/")
    return name


def compare_folders(
    old: Path, new: Path, report: Report, name: str, *, passed: set[str] = CLOCK, unordered: bool = False
) -> None:
    """Every file of one folder against that of the other."""
    theirs, left = set(files_in(new)), set(files_in(new))
    for file in files_in(old):
        found = file if file in theirs else other_file(file)
        if found not in theirs:
            report.differs(name, file, "there / missing")
            continue
        left.discard(found)
        if found != file:
            report.renamed[f"{file} -> {found}"] += 1
        if unordered and file.endswith("trials.csv"):
            compare_trials(old / file, new / found, report, name, file)
        elif not (unordered and file.endswith("best_args.json")):  # which depends on what was tried
            compare_file(old / file, new / found, report, name, file, passed=passed)
    for file in sorted(left):
        if Path(file).name in NEW_FILES:
            report.renamed[f"new: {Path(file).name}"] += 1
        else:
            report.differs(name, file, "missing / there")


# --- running ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """One of both versions: where it lies, where it runs, and what its --help says."""

    code: Path
    place: Path
    help: str


def other_words(words: Sequence[str], known: str | None = None) -> list[str]:
    """The new words for a command line; with `known`, only those that this --help knows."""
    said: list[str] = []
    while words:
        old = tuple(words[:2]) if tuple(words[:2]) in OPTIONS else tuple(words[:1])
        new = OPTIONS.get(old, old)
        said += new if known is None or knows(known, new) else old
        words = words[len(old) :]
    return said


def knows(text: str, words: Sequence[str]) -> bool:
    """Whether a --help knows an option, and its value where it lists them."""
    found = re.search(rf"^\s+{re.escape(words[0])}(?![\w-])(?:\s+\{{([^}}]*)\}})?", text, re.MULTILINE)
    choices = found.group(1) if found else None
    return bool(found) and (len(words) < 2 or choices is None or words[1] in choices.split(","))


def tree_at(code: Path, place: Path) -> Tree:
    command = [sys.executable, str(code / "MPL.py"), "--help"]
    env = {**os.environ, "COLUMNS": "500"}
    text = subprocess.run(command, cwd=place.parent, env=env, capture_output=True, text=True, check=True).stdout
    return Tree(code, place, text)


def draw_nothing() -> None:
    """Pictures, which took most of a run's time and are not compared, become one grey pixel."""
    from matplotlib.figure import Figure
    from PIL import Image

    Figure.savefig = lambda figure, file, **settings: Image.new("RGB", (1, 1), "grey").save(file, "PNG")  # type: ignore


def start(tree: Tree, words: Sequence[str], folder: Path, screen: Path, *, hurried: bool = False) -> int:
    """`python MPL.py` with these words in a process of its own, forked so that it need not load libraries."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        handle = os.open(screen, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.chdir(folder)
        sys.argv, sys.path[0] = ["MPL.py", *words], str(tree.code)
        draw_nothing()
        if hurried:  # checkpoints are made by the clock
            monotonic, perf_counter = time.monotonic, time.perf_counter
            time.monotonic, time.perf_counter = lambda: 1000 * monotonic(), lambda: 1000 * perf_counter()
        runpy.run_path(str(tree.code / "MPL.py"), run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(processes: Mapping[int, Path], *, kill: str) -> list[int]:
    """Wait for all; their exit codes. `kill`: each by SIGKILL once its run of that name has some checkpoints."""
    codes: dict[int, int] = {}
    written: dict[int, set[int]] = {process: set() for process in processes}
    limit = time.monotonic() + LIMIT_SECONDS
    while len(codes) < len(processes):
        for process in processes.keys() - codes.keys():
            if kill:
                with contextlib.suppress(OSError):
                    files = [p for p in processes[process].rglob(f"{kill}/**/*.pt") if not p.name.startswith(".")]
                    written[process] |= {path.stat().st_mtime_ns for path in files}
            if len(written[process]) >= CHECKPOINTS_BEFORE_KILL or time.monotonic() > limit:
                os.kill(process, signal.SIGKILL)
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                codes[process] = os.waitstatus_to_exitcode(status)
        time.sleep(0.001 if kill else 0.02)
    return [codes[process] for process in processes]


def carry_out(name: str, trees: Sequence[Tree], report: Report, *, verbose: bool) -> None:
    """Run a scenario in all trees at once, where it has no processes of its own, and compare what they leave."""
    for number, text in enumerate(SCENARIOS[name], start=1):
        kill, words = text.startswith(KILLED), shlex.split(text.removeprefix(KILLED))
        words += ["--device", "cpu", "--cache_dir", "cache"] if "--resume" not in words else []
        groups = [[tree] for tree in trees] if name in UNORDERED else [trees]
        codes = []
        for group in groups:
            processes = {}
            for tree in group:
                folder, screen = tree.place / name, tree.place / f"{name}-{number}.txt"
                folder.mkdir(parents=True, exist_ok=True)
                process = start(tree, other_words(words, tree.help), folder, screen, hurried=kill)
                processes[process] = folder
            codes += finish(processes, kill=words[1] if kill else "")
        screens = [tree.place / f"{name}-{number}.txt" for tree in trees]
        if codes != [-signal.SIGKILL if kill else 0] * len(codes):
            last = (path.read_text(encoding="utf-8").strip().rpartition("\n")[2] for path in screens)
            ends = (f"ended with {code}: {line}" for code, line in zip(codes, last, strict=True))
            report.differs(name, f"line {number}", " / ".join(ends))
        if verbose:
            compare_screens(screens, name)
    old, new = (tree.place / name for tree in trees)
    compare_folders(old, new, report, name, unordered=name in UNORDERED)
    if name in TWINS:
        for folder in (old, new):
            pair = [folder / "results" / run for run in TWINS[name]]
            compare_folders(*pair, report, f"{name} of {folder.parent.name}", passed=CLOCK | {"name", "command"})


def compare_screens(screens: Sequence[Path], name: str) -> None:
    """Say which lines were on one side's screen only, numbers apart."""
    texts = [path.read_text(encoding="utf-8").replace(str(path.parent), "") for path in screens]
    lines = [{re.sub(r"\d[\d.,:]*", "#", line) for line in text.splitlines()} for text in texts]
    for side, line in [*(("old", x) for x in lines[0] - lines[1]), *(("new", x) for x in lines[1] - lines[0])]:
        print(f"note: {name}, only on the {side} screen: {line[:120]}")


# --- what they run on -------------------------------------------------------------------------------------------------


def make_material(folder: Path) -> None:
    """Images with near-duplicates, a copy and a broken file, images to predict, and a network's weights, from seeds."""
    import numpy as np
    import timm
    import torch
    from PIL import Image, ImageDraw, ImageOps
    from safetensors.torch import save_file

    random = np.random.default_rng(0)
    colours = {"red": (200, 60, 50), "green": (60, 190, 70), "blue": (60, 70, 210)}
    for place, counts in (("images", (18, 10, 8)), ("unknown", (2, 2, 2))):
        for (name, colour), count in zip(colours.items(), counts, strict=True):
            (folder / place / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.array(colour) + random.normal(0, 25, (72, 84, 3)) + random.normal(0, 60, 3)
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                corner = random.integers(0, 40, 2).tolist()
                ImageDraw.Draw(image).ellipse((*corner, *random.integers(45, 70, 2).tolist()), fill=colour[::-1])
                image.save(folder / place / name / f"{index:02d}.png")
                if index < 2:
                    ImageOps.mirror(image).crop((2, 2, 82, 70)).save(folder / place / name / f"{index:02d} again.png")
        (folder / place / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    blue = folder / "images" / "blue"
    (blue / "copy.png").write_bytes((blue / "05.png").read_bytes())
    torch.manual_seed(0)
    save_file(timm.create_model("test_byobnet", pretrained=False).state_dict(), folder / "network.safetensors")


def check_out(revision: str, folder: Path) -> Path:
    """The files of a revision, in a folder of their own."""
    packed = subprocess.run(["git", "-C", str(ROOT), "archive", revision], stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as files:
        files.extractall(folder, filter="data")
    return folder


def compare_all(revision: str, names: Sequence[str], folder: Path, *, verbose: bool) -> Report:
    """Run and compare these scenarios in this empty folder."""
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    make_material(folder)
    (folder / "old").mkdir()
    (folder / "new").mkdir()
    trees = [tree_at(check_out(revision, folder / "revision"), folder / "old"), tree_at(ROOT, folder / "new")]
    report = Report()
    for name in names:
        began, files, before = time.monotonic(), report.files, len(report.differences)
        carry_out(name, trees, report, verbose=verbose)
        found, seconds = len(report.differences) - before, time.monotonic() - began
        print(
            f"{name}: {found} differences, {report.files - files} files, {seconds:.0f} s", file=sys.stderr, flush=True
        )
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", metavar="REV", help="what git calls the version to compare with")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), metavar="NAME")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new folder for all that the runs leave")
    parser.add_argument("--verbose", action="store_true", help="also say which lines of the screen differ")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with contextlib.ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=given.keep is None)
        report = compare_all(given.revision, given.only, folder.resolve(), verbose=given.verbose)
    for name, count in sorted(report.renamed.items()):
        print(f"renamed: {name} ({count})")
    counted = f"in {report.files} files of {len(given.only)} scenarios ({len(report.renamed)} renamed)"
    print(f"{len(report.differences)} differences {counted}" if report.differences else f"no difference {counted}")
    return int(bool(report.differences))


if __name__ == "__main__":
    sys.exit(main())
