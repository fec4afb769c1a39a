"""What everything stands on: errors, messages, keyed random numbers, device and precision.

Nothing here knows of images or losses, and torch is imported only where a tensor is at hand, so `--help` stays fast.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shlex
import signal
import sys
import threading
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import unquote, unquote_plus

import numpy as np

if TYPE_CHECKING:
    import torch

RUN_LOG = "run.log"  # of a run's folder


class OneLineError(Exception):
    """An end that its message explains in one line: nobody needs to see where in the code it came about."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler, Docker or a spot machine wants the program to end."""


class UserError(OneLineError):
    """Something the user can mend: one line that says what happened and what to do. The program ends with code 2."""


# --- signals that end a program ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM ends the program as Ctrl-C does: it raises Terminated."""

    def end(number: int, frame: object) -> None:
        raise Terminated

    with _handled({signal.SIGTERM: end}):
        yield


@contextlib.contextmanager
def stops_noted() -> Iterator[Callable[[], KeyboardInterrupt | None]]:
    """Inside, a first SIGINT or SIGTERM is only noted: what is yielded returns the error to raise when it suits.

    The second one ends the program where it is. Processes that are forked inside leave both to their parent.
    """
    noted: list[KeyboardInterrupt] = []
    owner = os.getpid()

    def note(number: int, frame: object) -> None:
        if os.getpid() != owner:
            return
        error = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
        if noted:
            raise error
        noted.append(error)

    with _handled({signal.SIGINT: note, signal.SIGTERM: note}):
        yield lambda: noted[0] if noted else None


@contextlib.contextmanager
def _handled(handlers: Mapping[signal.Signals, Callable[[int, Any], None]]) -> Iterator[None]:
    """Inside, these handle the signals; only the main thread may set handlers, in another nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


# --- what is never told -----------------------------------------------------------------------------------------------

_SECRET = r"pass|pw|secret|token|credential|api_?key|access_?key"  # in the name of a parameter
_PLACE = r"(?:\[[\da-f:.]+\]|[^:/?#@\[\]=;&\s]*)(?::\d+)?"
_URL = re.compile(
    # SQLite's place is a path.
    rf"(?P<sqlite>sqlite[\w+]*://)(?P<path>/[^?]*)(?:\?(?P<sqlite_query>.*))?"
    rf"|(?P<scheme>[a-z][\w+.-]*://)(?:(?P<user>[^:/?#@=;&\s]*)(?::[^@?#]*)?@)?"
    rf"(?P<place>{_PLACE}(?:,{_PLACE})*(?:/[^:?#@=;&]*)?)(?:\?(?P<query>[^?#]*))?",
    re.IGNORECASE,
)
_USER_PART = re.compile(r"(://[^\s:/@]*):[^\s/@]*(?=@)")
_PARAMETER = re.compile(rf"([?&;]\w*(?:{_SECRET})\w*=)[^\s&;'\"]+", re.IGNORECASE)


def without_password(url: str) -> str:
    """The URL of a database as it may be shown and written down; of one that can't be understood, next to nothing."""
    found = _URL.fullmatch(url)
    if found is None:
        begin = re.match(r"[A-Za-z][\w+.-]*://", url)
        return url if re.fullmatch(r"[\w.\\/ -]+", url) else f"{begin[0] if begin else ''}..."
    scheme, place, user = found["scheme"] or found["sqlite"], found["place"] or found["path"] or "", found["user"] or ""
    query = found["query"] or found["sqlite_query"] or ""
    if found["sqlite"]:
        hides = bool(re.search(rf":[^/\\]*@|({_SECRET})\w*=", _decoded(place), re.IGNORECASE))
    else:
        encoded = _decoded(place).count(":") > place.count(":") or ":" in _decoded(user)
        hides = encoded or bool(re.search("[@=]", _decoded(place)))
    if hides:
        return f"{scheme}..."
    kept = "&".join(part for part in re.split("[&;]", query) if _is_harmless(part))
    return scheme + (f"{user}@" if user else "") + place + (f"?{kept}" if kept else "")


def _is_harmless(parameter: str) -> bool:
    return "=" in parameter and not re.search(rf"@|({_SECRET})[\w.-]*\s*=", _decoded(parameter), re.IGNORECASE)


def _decoded(text: str) -> str:
    """Without percent signs, also where it was encoded twice."""
    while (plain := unquote_plus(text)) != text:
        text = plain
    return text


def keep_secret(url: str) -> None:
    """What `without_password` takes from this URL is told nowhere from now on, until the command ends."""
    shown = without_password(url)
    if url and shown != url:
        _told.secrets[url] = shown
        _told.secrets |= dict.fromkeys(_words(url) - _words(shown), "***")


def _words(url: str) -> set[str]:
    """The parts that a driver's error may quote, encoded and decoded."""
    user_part = url.partition("://")[2].rpartition("@")[0].partition(":")[2]
    words = {form for part in re.split(r"[\s:/?#@&;=,]+", url) for form in (part, unquote(part), unquote_plus(part))}
    words |= {user_part, unquote(user_part)}
    words |= {part for word in [*words] for part in re.split(r"[\s:/?#@&;=,]+", word)}
    return {word for word in words if len(word) > 1}


def hidden(text: str) -> str:
    """A text about something that went wrong, which may quote a password, without it."""
    text = _without_urls(text)
    for word in sorted(_told.secrets, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "***", text, flags=re.IGNORECASE)
    return re.sub(r"(?<=:)[^\s:/\\@]+(?=@)", "***", text)


def _without_urls(text: str) -> str:
    """A text without the passwords of URLs in it; a URL that has been named as secret is shown as it may be."""
    for url in sorted(_told.secrets, key=len, reverse=True):
        if _told.secrets[url] != "***":
            text = text.replace(url, _told.secrets[url])
    return _PARAMETER.sub(r"\1***", _USER_PART.sub(r"\1", text))


def hide_in_tracebacks() -> None:
    """A traceback that ends the program from here on shows no secret either."""
    secrets = _told.secrets

    def show(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        _told.secrets |= secrets  # the command has ended
        sys.stderr.write(hidden("".join(traceback.format_exception(kind, error, trace))))

    sys.excepthook = show


# --- what is told -----------------------------------------------------------------------------------------------------

LOG = logging.getLogger("transfermpl")
# As the logging module wants it of a library: who uses us decides what he sees.
LOG.addHandler(logging.NullHandler())


def say(message: str) -> None:
    """Tell the user a line, or a table: on the screen inside `on_screen`, and in the logs of `log_to`."""
    _tell(logging.INFO, message)


def warn(message: str) -> None:
    """One line on what is odd but does not stop the run."""
    _tell(logging.WARNING, message)


def complain(message: str) -> None:
    """One line on what ends the program."""
    _tell(logging.ERROR, message)


def shown(text: str) -> str:
    """Any text as one line that a screen shows as it is: line ends and what moves the cursor or other letters escaped.

    A file's name need not even be text.
    """
    if text.isprintable():
        return text
    return "".join(sign if _is_shown(sign) else sign.encode("unicode_escape").decode() for sign in text)


def _is_shown(sign: str) -> bool:
    # Spaces of any width, and what joins the letters of some scripts and the parts of an emoji.
    return sign.isprintable() or unicodedata.category(sign) == "Zs" or sign in "\u200c\u200d"


def _tell(level: int, message: str) -> None:
    # A table has many lines.
    record = _record(level, shown(message) if level >= logging.WARNING else "\n".join(map(shown, message.split("\n"))))
    # A run's log is complete, whatever the level that a user of the library has set.
    for log in _told.logs:
        log.write(record)
    if not _told.logs and _told.held is not None:
        _told.held.append(record)
    if LOG.isEnabledFor(level):
        LOG.handle(record)


def _record(level: int, message: str) -> logging.LogRecord:
    message = hidden(message) if level >= logging.WARNING else _without_urls(message)
    return LOG.makeRecord(LOG.name, level, __file__, 0, message, (), None)


def program() -> str:
    """What a user types to start this program: `python MPL.py` in a checkout, `transfermpl` where it is installed."""
    in_checkout = Path(__file__).with_name("pyproject.toml").is_file()
    return "python MPL.py" if in_checkout and Path(sys.argv[0]).stem != "transfermpl" else "transfermpl"


class _Screen(logging.Handler):
    """Plain lines on stdout, above a running progress bar and at once, also into a pipe; what is wrong on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")
        if record.levelno >= logging.WARNING:
            _print(_marked(record), sys.stderr)
        elif tqdm is not None and sys.stdout.isatty():
            tqdm.tqdm.write(_showable(record.getMessage(), sys.stdout))
        else:
            _print(record.getMessage(), sys.stdout)


def _print(message: str, stream: TextIO) -> None:
    """Print a line at once. Where nobody takes it any more (`| head`, a full disk), the program goes on unheard."""
    try:
        print(_showable(message, stream), file=stream, flush=True)
    except OSError:
        # What is left in the stream's buffer would make Python itself complain at its end.
        with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def _showable(message: str, stream: TextIO) -> str:
    """The message as the terminal's encoding can show it: a class may be named in letters that it does not have."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return message.encode(encoding, "backslashreplace").decode(encoding)


def _marked(record: logging.LogRecord) -> str:
    """The message behind what says how bad it is."""
    mark = {logging.WARNING: "warning: ", logging.ERROR: f"{program().split()[-1]}: "}
    return mark.get(record.levelno, "") + record.getMessage()


@contextlib.contextmanager
def on_screen() -> Iterator[None]:
    """Inside, all that is told is shown; the logging module's other handlers don't get it, or it might appear twice."""
    if _screens():  # a command that another one calls
        yield
        return
    screen, level, propagates = _Screen(), LOG.level, LOG.propagate
    LOG.addHandler(screen)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    try:
        yield
    finally:
        LOG.removeHandler(screen)
        LOG.setLevel(level)
        LOG.propagate = propagates


def bars_wanted() -> bool:
    """Whether a progress bar can be drawn, and somebody asked to see what is told."""
    return _screens() and sys.stderr.isatty()


def _screens() -> bool:
    return any(isinstance(handler, _Screen) for handler in LOG.handlers)


@dataclass
class _Told:
    """Where lines go beside the screen, and the command that says them.

    ending: what is left when the command ends; None outside a command. held: what was told before the folder of the log
    is known; None outside a command. fault: the log with the traceback of the last unexpected error. secrets: what is
    shown in place of a URL, or of a part of one.
    """

    logs: list[_RunLog] = field(default_factory=list)
    ending: contextlib.ExitStack | None = None
    held: list[logging.LogRecord] | None = None
    words: Sequence[str] | None = None
    fault: Path | None = None
    secrets: dict[str, str] = field(default_factory=dict)


_told = _Told()


class _RunLog:
    """A file of what was told, and when.

    It is opened for each line, which are few: nothing stays open that a forked process would inherit.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.process = path, os.getpid()

    def write(self, record: logging.LogRecord) -> None:
        """Append it, the further lines of a table below the first. A log that can't be written stops nothing."""
        if os.getpid() != self.process:  # a worker's: its supervisor says what is to be said
            return
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        lines = _marked(record).strip("\n").splitlines() or [""]
        text = "".join(f"{when if index == 0 else '':<19}  {line}".rstrip() + "\n" for index, line in enumerate(lines))
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)


@contextlib.contextmanager
def as_command(words: Sequence[str]) -> Iterator[None]:
    """Around all that a command line does; `words` are the user's, or would do the same.

    What is told before the command's folder is known is kept, and goes into the log of that folder.
    """
    before = _told.held, _told.words, _told.ending, _told.secrets
    _told.held, _told.words, _told.fault, _told.secrets = [], tuple(words), None, {}
    for word in words:
        if re.search(r"://\S*:\S*@", word) or _PARAMETER.search(word):  # also where --storage is misspelled
            keep_secret(word.partition("=")[2] if word.startswith("--") else word)
    try:
        with contextlib.ExitStack() as ending:
            _told.ending = ending
            yield
    finally:
        _told.held, _told.words, _told.ending, _told.secrets = before


def until_end(context: AbstractContextManager[object]) -> None:
    """Enter a context, and leave it when the command that runs now ends; outside a command, do nothing."""
    if _told.ending is not None:
        _told.ending.enter_context(context)


def typed(words: Sequence[str] | None = None) -> str:
    """The line that started what runs now, as one types it again but for secrets; with `words`, the line of these."""
    if words is None:
        words = sys.argv[1:] if _told.words is None else _told.words
    return shlex.join([program().split()[-1], *map(_without_urls, words)])


def traceback_in() -> Path | None:
    """The log that has the traceback of this command's unexpected error; None where it had no folder yet."""
    return _told.fault


@contextlib.contextmanager
def log_to(folder: Path) -> Iterator[None]:
    """Inside, all that is told also goes, with times, to `run.log` in this folder; and so does the error that ends it.

    Logs may lie within each other: a line goes to all of them.
    """
    log = _RunLog(folder / RUN_LOG)
    for record in _told.held or ():
        log.write(record)
    if _told.held:
        _told.held.clear()
    _told.logs.append(log)
    try:
        yield
    except BaseException as error:
        short = isinstance(error, (OneLineError, KeyboardInterrupt))
        text = " ".join(str(error).split()) or "stopped" if short else "".join(traceback.format_exception(error))
        log.write(_record(logging.ERROR, text))
        if not short:
            _told.fault = log.path
        raise
    finally:
        _told.logs.remove(log)


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
    """Uniform numbers in [0, 1) that depend on (key, draw, position, purpose) alone.

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
    by less than seeds do (docs/results.md). Networks that learn keep float32 there.
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

    By default each large activation is mapped again and faulted in page by page, which makes a forward pass on the CPU
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


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes on one thread of the CPU."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
