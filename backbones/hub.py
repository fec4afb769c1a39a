"""Published weights from the network, or from what torch.hub and the Hugging Face hub keep on this disk."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import torch

from ..utils import UserError, say
from .weights import one_line

# What else a user can do whose network reaches no model hub.
WAYS_OUT = "--weights none, or --model_name lite0, whose weights came with this program"
NETWORK_TIMEOUT = 8.0  # seconds: without a network the user shall read what to do, not wait
FETCH_TIMEOUT = 90.0  # seconds for a whole file that would be good to have, but is not needed


class WeightsMissing(UserError):
    """The library's pretrained weights can't be fetched: what can do without them may go on."""


# --- torch.hub --------------------------------------------------------------------------------------------------------


def downloaded(name: str, url: str, file: str | None = None) -> Path:
    """A file of torch.hub's folder; the network is asked only where it is missing. Raises UserError."""
    target = torch_hub_file(url, file)
    if not target.is_file():
        with fetching(name, url, file):
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(target))
    return target


@contextlib.contextmanager
def fetching(name: str, url: str, file: str | None = None) -> Iterator[None]:
    """Inside, torch.hub fetches the url (see `torch_hub_file`). Raises WeightsMissing, which says what to do."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        yield
    except Exception as error:  # no network, no disk, a proxy's page, a broken file: the way out is the same
        place = torch_hub_file(url, file)
        raise WeightsMissing(
            f"the weights of {name} can't be had ({one_line(error)}); put {url} at {place}, "
            f"or use --weights FILE, {WAYS_OUT}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def torch_hub_file(url: str, file: str | None = None) -> Path:
    """Where torch.hub keeps a file; `file` is its name there, if not that of the url."""
    return Path(torch.hub.get_dir()) / "checkpoints" / (file or Path(url).name)


# --- the Hugging Face hub ---------------------------------------------------------------------------------------------


def hub_file(repository: str, file: str | None = None) -> Path | None:
    """A file of the hub's cache on this disk (without a name, the weights), or None. Asks no network."""
    from huggingface_hub import try_to_load_from_cache

    names = (file,) if file else ("model.safetensors", "pytorch_model.bin")
    found = (try_to_load_from_cache(repository, name) for name in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


@contextlib.contextmanager
def hub_or_cache(*, cached: object = None) -> Iterator[None]:
    """Inside, the hub's client asks the hub, or only its cache, where that has the file or the hub gives no answer.

    Without a network it tries each file six times, which takes a minute; its cache works at once.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or bool(cached) or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def fetched(repository: str, file: str = "model.safetensors", *, seconds: float = FETCH_TIMEOUT) -> bool:
    """Try to bring a file into the hub's cache, for at most so many seconds; what came of it is kept for the next try.

    In a process of its own, since no other download can be broken off.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or not _answers(constants.ENDPOINT):
        return False
    say(f"looking for {repository} at the hub, for {seconds:.0f} seconds at most")
    words = "import sys; from huggingface_hub import hf_hub_download; hf_hub_download(*sys.argv[1:])"
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", words, repository, file], timeout=seconds, stderr=subprocess.DEVNULL)
    return hub_file(repository, file) is not None


def _answers(address: str) -> bool:
    """Whether a server answers in time. In a thread, since the search for its address has no limit of its own."""
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(_asked(address)), daemon=True)
    thread.start()
    thread.join(NETWORK_TIMEOUT)
    return bool(found and found[0])


def _asked(address: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=NETWORK_TIMEOUT).close()
    except urllib.error.HTTPError:
        return True  # an answer, if not a friendly one
    except OSError:
        return False
    return True
