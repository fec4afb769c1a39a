"""Any bytes in the place of a file that is read back: one line and exit code 1 or 2, or all is well; no code runs."""

from __future__ import annotations

import functools
import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runs import FROZEN, MOONS, Outcome, make_data, run
from transfermpl.search import supervisor

DATA = ("--data_dir", "d", "--num_labels", 9, "--max_steps", 2, "--num_workers", 0, "--cache_dir", "c")
IMAGES = (*DATA, *FROZEN)
COTRAINING = (*DATA, "--cotrain_mode", "--views")
SEARCH = ("--optuna_mode", "--n_trials", 2, "--folds", 2, *MOONS, "--num_labels", 20)


# --- bytes ------------------------------------------------------------------------------------------------------------


class Evil:
    """What would make a file named `touched` if it were unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return open, ("touched", "w")


def evil_files() -> dict[str, bytes]:
    """A pickle that runs code, in all the ways that it may come."""
    made = {"pickle": pickle.dumps({"format": 1, "models": Evil()})}
    for name, save in {
        "torch": lambda file: torch.save({"format": 1, "models": Evil()}, file),
        "old torch": lambda file: torch.save(Evil(), file, _use_new_zipfile_serialization=False),
        "npy": lambda file: np.save(file, np.array([Evil()], dtype=object)),
        "npz": lambda file: np.savez(file, a=np.array([Evil()], dtype=object)),
    }.items():
        file = io.BytesIO()
        save(file)
        made[name] = file.getvalue()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as parts:
        parts.writestr("archive/data.pkl", made["pickle"])
        parts.writestr("archive/version", "3")
    return {**made, "zip": file.getvalue()}


TEXTS = (b"", b"{}", b"[]", b"null", b"NaN", b"1e999", b'{"a": 1}', b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000)
TEXTS += (b'{"name": []}', b'{"seed": 1e400}', b"\xff\xfe", b"\x00" * 100, b"path,label\n" * 3, b"a\n" + b"x," * 10_000)
Change = Callable[[bytes], bytes]


def at(share: float, whole: bytes) -> int:
    return int(share * max(0, len(whole) - 1))


def changes() -> st.SearchStrategy[Change]:
    """Some bytes flipped, cut off, put in or replaced; or other bytes in the place of all."""
    place, some = st.floats(0, 1), st.binary(min_size=1, max_size=20)
    whole = st.one_of(st.sampled_from(TEXTS), st.sampled_from(sorted(evil_files().values())), st.binary(max_size=200))
    return st.one_of(
        st.builds(lambda p, x: lambda b: b[: at(p, b)] + bytes(i ^ x for i in b[at(p, b) :][:1]) + b[at(p, b) + 1 :],
                  place, st.integers(1, 255)),
        st.builds(lambda p: lambda b: b[: at(p, b)], place),
        st.builds(lambda p, x: lambda b: b[: at(p, b)] + x + b[at(p, b) :], place, some),
        st.builds(lambda p, x: lambda b: b[: at(p, b)] + x + b[at(p, b) + len(x) :], place, some),
        whole.map(lambda new: lambda b: new),
    )  # fmt: skip


# --- the files and the commands that read them ------------------------------------------------------------------------


def resume(name: str) -> tuple[object, ...]:
    return ("--name", name, "--resume")


# By its place: the command that reads it.
QUICK: dict[str, tuple[object, ...]] = {
    "results/m/commandline_args.txt": resume("m"),
    "results/m/split.csv": resume("m"),
    "results/m/checkpoints/last.pt": resume("m"),
    "results/m/written.txt": ("--name", "m", *MOONS, "--overwrite"),
    "labels.csv": ("--name", "new", *IMAGES, "--labels_csv", "labels.csv"),
    "config.json": ("--name", "new", *MOONS, "--config", "config.json"),
    "weights.pth": ("--name", "new", *IMAGES, "--weights", "weights.pth"),
    "block": ("--name", "new", *IMAGES),
}
SLOW: dict[str, tuple[object, ...]] = {
    "config.toml": ("--name", "new", *MOONS, "--config", "config.toml"),
    "results/f/checkpoints/best.pt": ("--predict_dir", "d", "--load_path", "f", "--out", "p.csv", "--overwrite"),
    "results/f/summary.json": resume("f"),
    "results/f/metrics.csv": resume("f"),
    "results/f/report.html": resume("f"),
    "bank.json": ("--name", "new", *IMAGES),
    "p.csv": ("--predict_dir", "d", "--load_path", "f", "--out", "p.csv", "--overwrite"),
    "results/r/seed-0/summary.json": resume("r"),
    "results/r/commandline_args.txt": resume("r"),
    "results/c/journal.json": resume("c"),
    "results/c/seed-0/split.csv": resume("c"),
    "results/s/study.journal": resume("s"),
    "results/s/commandline_args.txt": resume("s"),
    "results/s/best_args.json": ("--name", "new", *MOONS, "--config", "results/s/best_args.json"),
    "view.safetensors": ("--name", "new", *COTRAINING, "cnn=view.safetensors", "gradients"),
}  # fmt: skip


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quick")
    make_data(root / "d")
    rows = [f"{file.relative_to(root / 'd')},{file.parent.name}" for file in sorted((root / "d").rglob("*.png"))]
    (root / "labels.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    (root / "config.json").write_text('{"seed": 3, "max_lr": 0.01, "head": "linear", "views": []}')
    (root / "config.toml").write_text('seed = 3\nmax_lr = 0.01\nhead = "linear"\nviews = []\n')
    for line in (("--name", "m", *MOONS, "--num_labels", 20), ("--name", "f", *IMAGES)):
        assert run(*line, cwd=root).code == 0
    best = torch.load(root / "results" / "f" / "checkpoints" / "best.pt", weights_only=True)
    state = {key.removeprefix("net."): value for key, value in best["views"]["cnn"]["backbone"].items()}
    torch.save(state, root / "weights.pth")
    return root


@pytest.fixture(scope="module")
def everything(quick: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("everything") / "p"
    shutil.copytree(quick, root)
    tuned = ("--name", "t", *COTRAINING, "cnn", "gradients", "--finetune_views", "--finetune_steps", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor, "START", "fork")
        for line in (
            ("--name", "r", *MOONS, "--num_labels", 20, "--repeat", 2),
            ("--name", "c", *MOONS, "--num_labels", 20, "--compare", "--repeat", 1),
            ("--name", "s", *SEARCH),
            ("--predict_dir", "d", "--load_path", "f", "--out", "p.csv"),
            tuned,
        ):
            outcome = run(*line, cwd=root)
            assert outcome.code == 0, outcome.err
    shutil.copy(root / "results" / "t" / "views" / "cnn.safetensors", root / "view.safetensors")
    return root


def file_of(root: Path, place: str) -> Path:
    if place == "block":
        return min(root.glob("c/*/*/*.block"))
    return min(root.glob("c/*/bank.json")) if place == "bank.json" else root / place


@functools.cache
def reference(root: Path, line: tuple[object, ...]) -> str:
    """The metrics of a run whose features come from a whole bank."""
    copy = root.with_name("whole")
    shutil.copytree(root, copy)
    return run(*line, cwd=copy).metrics("new")


def tried(root: Path, place: str, line: tuple[object, ...], change: Change | None) -> Outcome:
    """Run the command with a changed file, or with a folder in its place, in a copy; what it must never do."""
    copy = root.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(root, copy)
    file = file_of(copy, place)
    if change is None:
        file.unlink()
        (file / "below").mkdir(parents=True)
    else:
        file.write_bytes(change(file.read_bytes()))
    outcome = run(*line, cwd=copy)
    if outcome.code == 0 and place in ("block", "bank.json"):
        assert outcome.metrics("new") == reference(root, line)
    assert outcome.code in (0, 1, 2)
    assert len(outcome.complaint()) == (outcome.code != 0), outcome.err
    assert "an unexpected error" not in outcome.err
    assert not list(copy.rglob("touched"))
    assert not os.path.exists("touched")
    return outcome


def no_code_runs(root: Path, place: str, line: tuple[object, ...]) -> None:
    for content in evil_files().values():
        tried(root, place, line, lambda whole, content=content: content)


def check(root: Path, lines: dict[str, tuple[object, ...]], examples: int) -> None:
    """Each file in turn with chosen bytes, and with any others."""
    quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]

    @settings(max_examples=examples, deadline=None, suppress_health_check=quiet, derandomize=True, database=None)
    @given(st.sampled_from(sorted(lines)), st.one_of(st.none(), changes()))
    def any_bytes(place: str, change: Change | None) -> None:
        tried(root, place, lines[place], change)

    any_bytes()


@pytest.mark.parametrize("place", sorted(QUICK))
def test_a_folder_in_a_files_place_and_a_pickle_in_it(quick: Path, place: str) -> None:
    tried(quick, place, QUICK[place], None)
    tried(quick, place, QUICK[place], lambda whole: evil_files()["torch"])


def test_any_bytes_in_a_file(quick: Path) -> None:
    check(quick, QUICK, 15)


@pytest.mark.slow
@pytest.mark.parametrize("place", sorted(QUICK | SLOW))
def test_a_pickle_in_each_place(everything: Path, place: str) -> None:
    no_code_runs(everything, place, (QUICK | SLOW)[place])


@pytest.mark.slow
@pytest.mark.parametrize("place", sorted(QUICK | SLOW))
def test_many_bytes_in_each_file(everything: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "START", "fork")
    check(everything, {place: (QUICK | SLOW)[place]}, 15)
