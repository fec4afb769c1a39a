"""The ground that everything stands on: errors, keyed randomness, devices, atomic files and the run folder.

Nothing here knows of images or losses, and torch is imported only where a tensor is at hand, so `--help` stays fast.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

RESULTS = Path("results")


class UserError(Exception):
    """Something the user can mend: one line that says what happened and what to do. The program ends with code 2."""


def say(message: str) -> None:
    """Print a line for the user at once, also into a pipe, and above a running progress bar."""
    tqdm = sys.modules.get("tqdm")
    if tqdm is not None and sys.stdout.isatty():
        tqdm.tqdm.write(message)
    else:
        print(message, flush=True)


def warn(message: str) -> None:
    """One line on what is odd but does not stop the run."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


# --- randomness is a function of a key, never a state -----------------------------------------------------------------


def key(*parts: object) -> int:
    """A 63-bit number that depends on all parts and on nothing else: the seed of every random choice."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: object) -> np.random.Generator:
    """A NumPy generator for one purpose, e.g. `generator(seed, "split")`."""
    return np.random.Generator(np.random.Philox(key(*parts)))


def seed_torch(number: int) -> None:
    """Seed torch's own generators, on the CPU and on the accelerators that are in use.

    `torch.manual_seed` also notes a stack trace for each kind of accelerator that was never used: asked four times a
    step, that was half the time of a small head's training.
    """
    import torch

    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(number)


def counter_uniform(keys: np.ndarray, draws: np.ndarray, count: int, purpose: str) -> np.ndarray:
    """Uniform numbers in [0, 1) that hang on (key, draw, position, purpose) alone.

    keys: uint64 [N], one per image (from its content); draws: int64 [N]; returns float32 [N, count]. A row does not
    depend on the rows beside it, so batches, workers and processes can be cut in any way. The mixer is SplitMix64
    (Steele, Lea, Flood 2014), applied once per ingredient.
    """
    with np.errstate(over="ignore"):
        state = _mix(keys.astype(np.uint64) ^ np.uint64(key(purpose)))
        state = _mix(state + draws.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        position = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)
        bits = _mix(state[:, None] + position[None, :])
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


# --- devices ----------------------------------------------------------------------------------------------------------


def choose_device(name: str) -> torch.device:
    """`auto` takes an accelerator where there is one; a device that is not there is a UserError."""
    import torch

    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is None or accelerator.type not in ("cuda", "mps"):
            return torch.device("cpu")
        return torch.device(accelerator.type)
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):  # torch knows more, some of which are no devices at all
            raise RuntimeError(device.type)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} is not available here; use --device auto or --device cpu") from error
    return device


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array as a tensor on the device; a GPU gets it from pinned memory, so that nobody waits for the copy."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def choose_precision(name: str, device: torch.device, *, frozen: bool = False) -> torch.dtype:
    """The dtype of autocast: `auto` is bfloat16 where the device multiplies in it, else float32 (no autocast).

    On a CPU that goes for `frozen` backbones alone: it takes a quarter off the filling of a bank and changes accuracy
    by less than seeds do (benchmarks/RESULTS.md). Networks that learn keep float32 there.
    """
    import torch

    if name == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = frozen and device.type == "cpu" and cpu_multiplies_bf16()
        name = "bf16" if native else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def cpu_multiplies_bf16() -> bool:
    """Whether this is an x86 CPU with instructions for products of bfloat16; without them they are slower than others.

    On other kinds of CPU nothing was measured.
    """
    import torch

    # The function is younger than the oldest torch that we run on.
    has: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def keep_pages() -> None:
    """Tell glibc to keep freed memory instead of giving it back to the system; call it before torch is imported.

    By default each large activation is mapped anew and faulted in page by page, which makes a forward pass on the CPU
    up to twice as slow. Other C libraries are left as they are.
    """
    import ctypes

    if not sys.platform.startswith("linux"):
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch then asks for huge pages: fewer faults still
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: on a GPU, of the device; else by the process."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_process_bytes()


def _peak_process_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows keeps no such count in the standard library
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# --- files ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`; what is written there becomes `path` at once, synced, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The random part keeps two writers apart; the true suffix stays last for libraries that look at it.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def claimed(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock on a file; yields whether it is ours. The system frees it when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # without such locks two processes may do the same work twice: slower, never wrong
        yield True
        return
    while True:
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError:
                yield False
                return
            # Its last holder removed it while we waited: somebody else may hold the file that has its name now.
            if not _is_at(file.fileno(), path):
                continue
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
            return


def share(path: Path) -> IO[bytes] | None:
    """Hold a shared lock on a file, so that nobody can claim it, until what is returned is closed or its holder dies.

    None where there are no such locks.
    """
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # whoever had claimed it has just removed the whole folder
            file = path.open("ab")
            with contextlib.suppress(OSError):  # not on every network's disk
                fcntl.flock(file, fcntl.LOCK_SH)
            if _is_at(file.fileno(), path):
                return file
            file.close()


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def write_text(path: Path, text: str) -> None:
    """Write a small text file, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: object) -> None:
    """Write JSON that a person can read; NaN has no place in it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a file that is not JSON is a UserError naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as JSON ({error}); give another file") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- the run folder ---------------------------------------------------------------------------------------------------


def run_folder(name: str, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Make `results/<name>`, or `<name>-2`, `-3`, ... beside an existing one; with `resume`, find exactly that name."""
    folder = RESULTS / name
    if resume:
        if not (folder / "commandline_args.txt").is_file():
            raise UserError(f"there is no run to resume in {folder}; leave out --resume to start it")
        return folder
    if overwrite and folder.exists():
        remove_run(folder)
    number = 1
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
            folder = RESULTS / f"{name}-{number}"
        except OSError as error:
            reason = error.strerror
            raise UserError(f"can't make the run folder {folder} ({reason}); choose another --name") from error
        else:
            return folder


def remove_run(folder: Path) -> None:
    """Delete a run's folder, but never something that is not a run."""
    content = {entry.name for entry in folder.iterdir()} if folder.is_dir() and not folder.is_symlink() else None
    if content is None or (content and "commandline_args.txt" not in content):
        raise UserError(f"{folder} does not look like a run, so --overwrite leaves it alone; choose another --name")
    shutil.rmtree(folder)


@contextlib.contextmanager
def going_on(folder: Path) -> Iterator[None]:
    """Inside, Ctrl-C ends with how the run in this folder goes on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"stopped; --name {folder.name} --resume goes on") from stop


def find_checkpoint(load_path: str, *, best: bool) -> Path:
    """The checkpoint that `--load_path` means: a run's name, its folder, or the file itself.

    `/checkpoints/flowers/NAME`, the way the original project wrote it, also finds the run NAME.
    """
    given = Path(load_path).expanduser()
    if os.path.isfile(given):  # unlike Path.is_file, it takes a name that is too long for a plain no
        return given
    wanted = "best.pt" if best else "last.pt"
    folders = [RESULTS / load_path, given, RESULTS / given.name]
    for folder in folders:
        for candidate in (folder / "checkpoints" / wanted, folder / wanted):
            if os.path.isfile(candidate):
                return candidate
    for folder in folders:
        if os.path.isfile(folder / "commandline_args.txt"):
            raise UserError(_no_model(folder, load_path, wanted))
    raise UserError(f"--load_path {load_path}: no such run, folder or checkpoint; see the names in {RESULTS}/")


def _no_model(folder: Path, load_path: str, wanted: str) -> str:
    """Why there is no checkpoint in the folder of a run, and what to do."""
    if os.path.isfile(folder / "journal.json"):
        return f"{folder} is a comparison and keeps no models; train the method that it names"
    for seed in sorted(folder.glob("seed-*")):
        return f"{folder} holds a run for each seed; give one of them: --load_path {load_path}/{seed.name}"
    asked = read_json(folder / "commandline_args.txt")
    if asked.get("optuna_mode"):
        return f"{folder} is a search and keeps no models; train what it found, by --config {folder}/best_args.json"
    if asked.get("inspect") or asked.get("view_report"):
        return f"{folder} is a report and keeps no models; give a run that was trained"
    hint = "leave out --load_best to take the last one" if wanted == "best.pt" else "its training has not got that far"
    return f"the run {folder} has no {wanted} yet; {hint}, or go on with --resume"
