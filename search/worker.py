"""What a worker process of a search does: it runs one trial each time that its supervisor asks for one.

A worker is started by spawn and imports this module, so nothing is imported here that a trial does not need.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import Trial

from .. import args
from ..base.written_files import note
from ..runs.views import FeatureCache
from ..train import TrainingFault
from ..utils import UserError, hidden, keep_pages, keep_secret, key, on_screen
from .objective import accuracy, goal_of
from .space import Space, suggest
from .storage import INTERRUPTED, open_storage, owner

WORKERS_LOG = "workers.log"


@dataclass(frozen=True)
class Job:
    """A search as its workers get it: what a trial tries, what it is measured on, and where it is kept."""

    study: str  # its name
    folder: Path
    base: dict[str, Any]  # the values that all trials share
    space: Space
    run: args.Run
    search: args.Search
    finetune_views: bool
    by_validation: bool  # whether validation images measure a trial, instead of folds


@on_screen()
def work(connection: Connection, job: Job, number: int, trials: int) -> None:
    """Run a trial for each True that the supervisor sends, until it sends False or has ended.

    number: of this worker. trials: how many the study held when it was started.
    """
    if job.run.keep_pages:
        keep_pages()
    redirect_output(job.folder / WORKERS_LOG)
    if job.search.storage is not None:
        keep_secret(job.search.storage)
    try:
        _work(connection, job, number, trials)
    except Exception as error:
        sys.stderr.write(hidden("".join(traceback.format_exception(error))))
        sys.exit(1)


def _work(connection: Connection, job: Job, number: int, trials: int) -> None:
    threading.Thread(target=end_with_supervisor, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a write to the study is never cut short; see `interruptible`
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // job.search.search_workers))
    url = job.search.storage
    # Several machines may share a database, and the workers of each must draw values of their own.
    identity = (socket.gethostname(), os.getpid()) if url else number
    study = optuna.load_study(
        study_name=job.study,
        storage=open_storage(url, job.folder),
        sampler=sampler_of(job.run.seed, identity, trials),
        pruner=pruner_of(job.search, job.by_validation),
    )
    worker = Worker(job, connection)
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):  # the supervisor has ended or stops us
        while True:
            connection.send("ready")
            if not connection.recv():
                break
            worker.run(study)


def end_with_supervisor() -> None:
    """End at once when the supervisor dies: a resumed search has new workers, and only they may write to its study."""
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None
    wait([supervisor.sentinel])
    os._exit(1)


def redirect_output(path: Path) -> None:
    """Send the output of this process and its libraries to a file: the terminal shows the supervisor's progress bar."""
    note(path, grows=True)
    with path.open("a", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def sampler_of(seed: int, worker: object, trials: int) -> optuna.samplers.BaseSampler:
    """TPE, seeded by the worker, so that workers differ; and by `trials`, so that a replaced one draws new values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `multivariate` and `constant_liar` are marked experimental
        number = key(seed, "search", worker, trials) % 2**32
        return optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=number)


def pruner_of(search: args.Search, by_validation: bool) -> optuna.pruners.BasePruner:
    """The pruner that `--pruner` names; a step is a fold, or with validation images an epoch."""
    folds = None if by_validation else search.folds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if search.pruner == "median":
            return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=0 if folds else 3)
        if search.pruner == "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=folds or "auto", reduction_factor=3)
    return optuna.pruners.NopPruner()


# --- a trial ----------------------------------------------------------------------------------------------------------


class Worker:
    """Runs trials, and keeps from one to the next what both need."""

    def __init__(self, job: Job, connection: Connection) -> None:
        self.job, self.connection = job, connection
        self.cache = FeatureCache()

    def run(self, study: optuna.Study) -> None:
        """One trial: complete, pruned, or failed with its reason."""
        with warnings.catch_warnings(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            # (Another machine may have marked the trial failed while this one was asleep.)
            warnings.simplefilter("ignore")
            study.optimize(self.objective, n_trials=1, catch=(Exception,))
        # Each fold has fine-tuned views of its own; all folds share other views. Each set takes memory.
        folds = self.job.search.folds
        self.cache.forget(views=folds if self.job.finetune_views else 2, computed=6 * folds)

    def objective(self, trial: Trial) -> float:
        """The value of one trial; a fault is raised again when its reason is noted."""
        trial.set_user_attr("owner", owner())
        try:
            values = {**self.job.base, **suggest(trial, self.job.space)}
            options = args.make(values)
            with interruptible():
                goal = goal_of(options.data, options.run.seed, self.job.search.folds)
                return accuracy(values, goal, self.cache, lambda value, step: self.report(trial, value, step))
        except optuna.TrialPruned:
            raise
        except KeyboardInterrupt:
            trial.set_user_attr("reason", INTERRUPTED)
            raise
        except Exception as error:
            trial.set_user_attr("reason", reason_of(error))
            if isinstance(error, MemoryError) or "memory" in str(error):
                free_memory()
            raise

    def report(self, trial: Trial, value: float, step: int) -> None:
        """Note the value so far; raises KeyboardInterrupt or TrialPruned where the trial must end here."""
        trial.report(value, step)
        if self.connection.poll():  # the supervisor has sent an end, or has ended itself
            raise KeyboardInterrupt
        if trial.should_prune():
            raise optuna.TrialPruned


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT interrupt what is done inside, and nothing else: a write to the study is never cut short."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def reason_of(error: Exception) -> str:
    """One line on why a trial failed."""
    text = hidden(" ".join(str(error).split()))[:300]
    return text if isinstance(error, (UserError, TrainingFault)) else f"{type(error).__name__}: {text}"


def free_memory() -> None:
    """Free what a trial that ran out of memory held."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
