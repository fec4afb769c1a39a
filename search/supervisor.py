"""The processes of a search: workers that run trials, and the supervisor that hands them out and mends what dies.

A worker runs one trial for each word that it gets from its supervisor, so that neither a crash nor a kill costs more
than the trials that were running, and those are tried once more.
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
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, Trial, TrialState

from .. import args
from ..args import Options
from ..base.files import write_json
from ..runs import setup
from ..train import TrainingFault
from ..utils import UserError, keep_pages, key, say
from .objective import accuracy, goal_of
from .space import best_options, space_of, suggest
from .storage import INTERRUPTED, fail_dead_trials, finished, open_storage, owner, retry_lost_trials

FAILURES_IN_A_ROW = 10
TICK_SECONDS = 0.5
PLAIN_LINE_SECONDS = 10.0  # between two lines where the output is no terminal
WORKERS_LOG = "workers.log"
START = "spawn"  # how workers are started: a GPU does not survive a fork
FAREWELL_SECONDS = 15.0  # that a stopped worker gets to write down its trial


def pruner_of(options: Options, by_validation: bool) -> optuna.pruners.BasePruner:
    """The pruner that `--pruner` names; a step is a fold, or with validation images (`Goal.by_validation`) an epoch."""
    folds = None if by_validation else options.search.folds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if options.search.pruner == "median":
            return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=0 if folds else 3)
        if options.search.pruner == "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=folds or "auto", reduction_factor=3)
    return optuna.pruners.NopPruner()


def sampler_of(seed: int, worker: object, trials: int) -> optuna.samplers.BaseSampler:
    """TPE, seeded by the worker, so that workers differ; `trials` at its start, so that it does not repeat itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both are marked experimental
        number = key(seed, "search", worker, trials) % 2**32
        return optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=number)


def best_of(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """The best complete trial, the earliest of equals."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return max(complete, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)


# --- a worker ---------------------------------------------------------------------------------------------------------


def work(
    connection: Connection,
    options: Options,
    by_validation: bool,
    name: str,
    folder: Path,
    number: int,
    trials: int,
) -> None:
    """What a worker process does: a trial for each True that it gets, until it gets False or its supervisor is gone."""
    if options.run.keep_pages:
        keep_pages()
    redirect_output(folder / WORKERS_LOG)
    threading.Thread(target=end_with_supervisor, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the study is never left half-written; see `interruptible`
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.search.search_workers))
    url = options.search.storage
    # In a database workers are many searches' and machines', and each must draw values of its own.
    where = (socket.gethostname(), os.getpid()) if url else number
    study = optuna.load_study(
        study_name=name,
        storage=open_storage(url, folder),
        sampler=sampler_of(options.run.seed, where, trials),
        pruner=pruner_of(options, by_validation),
    )
    worker = Worker(options, connection)
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):  # the supervisor is gone, or wants an end
        while True:
            connection.send("ready")
            if not connection.recv():
                break
            worker.run(study)


def end_with_supervisor() -> None:
    """End at once when the supervisor dies: it may be started anew, and then nobody else may write to its study."""
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None
    wait([supervisor.sentinel])
    os._exit(1)


def redirect_output(path: Path) -> None:
    """Send what this process and its libraries say to a file: the screen belongs to the supervisor's bar."""
    with path.open("a", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


class Worker:
    """What a process keeps from trial to trial, and how it runs one."""

    def __init__(self, options: Options, connection: Connection) -> None:
        self.options, self.connection = options, connection
        self.base, self.space = space_of(options)
        self.kept = setup.Kept()

    def run(self, study: optuna.Study) -> None:
        """One trial: complete, pruned, or failed with its reason."""
        with warnings.catch_warnings(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            # (A trial may have been given up by another machine, after a sleep of this one.)
            warnings.simplefilter("ignore")
            study.optimize(self.objective, n_trials=1, catch=(Exception,))
        # Tuned views are a fold's own. Of others all folds share one set, and each takes memory.
        folds = self.options.search.folds
        self.kept.forget(views=folds if self.options.cotraining.finetune_views else 2, told=2 * folds)

    def objective(self, trial: Trial) -> float:
        """The value of one trial; a reason is noted before a fault goes on."""
        trial.set_user_attr("owner", owner())
        try:
            options = args.make({**self.base, **suggest(trial, self.space)})

            def report(value: float, step: int) -> None:
                trial.report(value, step)
                if self.connection.poll():  # told to stop, or the supervisor is gone
                    raise KeyboardInterrupt
                if trial.should_prune():
                    raise optuna.TrialPruned

            with interruptible():
                goal = goal_of(options, self.options.search.folds)
                return accuracy(options, goal, self.kept, report)
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


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT break off what is done here, and only that: not a write to the study."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def reason_of(error: Exception) -> str:
    """One line on why a trial failed."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, (UserError, TrainingFault)) else f"{type(error).__name__}: {text}"


def free_memory() -> None:
    """Give back what a trial that ran out of memory held."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


# --- the supervisor ---------------------------------------------------------------------------------------------------


@dataclass
class Process:
    """A worker as its supervisor sees it."""

    process: Any
    connection: Connection
    answered: bool = False
    busy: bool = True  # until it says that it is ready

    @property
    def owner(self) -> tuple[str, int]:
        """How its trials name it."""
        return socket.gethostname(), self.process.pid


@dataclass
class Supervisor:
    """Hands out trials to the workers of this machine, and mends what their deaths leave."""

    study: optuna.Study
    folder: Path
    options: Options
    by_validation: bool
    name: str
    workers: list[Process] = field(default_factory=list)
    started: int = 0
    deaths: int = 0  # of workers in a row that never answered
    best: int | None = None
    fault: str = ""

    def run(self) -> None:
        """Until all trials are run, the time is over or too many failed. A Ctrl-C ends the workers cleanly."""
        mend(self.study)
        before = {trial.number for trial in finished(self.trials())}
        screen = Screen(self.options.search.n_trials, self.options.search.timeout)
        self.began = time.monotonic()
        over = len(before) >= self.options.search.n_trials
        try:
            while not over:
                self.start_missing()
                self.listen()
                self.bury()
                trials = self.trials()
                screen.show(trials)
                self.note_best(trials)
                self.fault = self.fault_of([trial for trial in trials if trial.number not in before])
                over = self.hand_out(trials)
        finally:
            screen.close()
            self.end()
            mend(self.study)

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def start_missing(self) -> None:
        """As many workers as were asked for."""
        context = multiprocessing.get_context(START)
        while len(self.workers) < self.options.search.search_workers:
            ours, theirs = context.Pipe()
            place = self.name, self.folder, self.started, len(self.trials())
            arguments = (theirs, self.options, self.by_validation, *place)
            # No daemon: those may have no children, and a worker has some that decode.
            process = context.Process(target=work, args=arguments, name=f"worker {self.started}")  # type: ignore[attr-defined]
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: a Ctrl-C is for us, and we pass it on
            try:
                process.start()
            finally:
                signal.signal(signal.SIGINT, before)
            theirs.close()
            self.started += 1
            self.workers.append(Process(process, ours))

    def listen(self) -> None:
        """Wait a moment for a worker that is ready, or that has died."""
        wait([end for w in self.workers for end in (w.connection, w.process.sentinel)], TICK_SECONDS)
        for worker in self.workers:
            with contextlib.suppress(EOFError, OSError):
                while worker.connection.poll():
                    worker.connection.recv()
                    worker.answered, worker.busy, self.deaths = True, False, 0

    def bury(self) -> None:
        """See to the trials of workers that have died, and of other processes that have."""
        for worker in [worker for worker in self.workers if not worker.process.is_alive()]:
            worker.process.join()
            self.deaths += not worker.answered
            self.workers.remove(worker)
        mend(self.study)

    def note_best(self, trials: list[FrozenTrial]) -> None:
        """Keep best_args.json at the best trial, so that it is there whatever happens."""
        best = best_of(trials)
        if best is not None and best.number != self.best:
            self.best = best.number
            write_json(self.folder / "best_args.json", best_options(self.options, best.params))

    def fault_of(self, trials: list[FrozenTrial]) -> str:
        """Why the search must stop, or nothing: failures in a row, of trials or of whole workers."""
        if self.deaths >= FAILURES_IN_A_ROW:
            return f"{self.deaths} workers in a row died before their first trial, see {self.folder / WORKERS_LOG}"
        ended = [trial for trial in trials if trial.state.is_finished() and trial.datetime_complete]
        ended = sorted(ended, key=lambda trial: trial.datetime_complete)  # type: ignore[arg-type,return-value]
        last = [trial for trial in ended if trial.user_attrs.get("reason") != INTERRUPTED][-FAILURES_IN_A_ROW:]
        if len(last) < FAILURES_IN_A_ROW or any(trial.state != TrialState.FAIL for trial in last):
            return ""
        return f"{FAILURES_IN_A_ROW} failures in a row, the last: {last[-1].user_attrs.get('reason', 'unknown')}"

    def hand_out(self, trials: list[FrozenTrial]) -> bool:
        """Give each ready worker a trial while there are some left; says whether all is over."""
        wanted, done = self.options.search.n_trials, len(finished(trials))
        running = [worker for worker in self.workers if worker.answered and worker.busy]
        late = self.options.search.timeout is not None and time.monotonic() - self.began >= self.options.search.timeout
        if self.fault:
            return True
        if done >= wanted or late:
            return not running
        left = wanted - done - len(running) - self.running_elsewhere(trials)
        for worker in [worker for worker in self.workers if not worker.busy][: max(0, left)]:
            with contextlib.suppress(OSError):
                worker.connection.send(True)
                worker.busy = True
        return False

    def running_elsewhere(self, trials: list[FrozenTrial]) -> int:
        """Running trials of other processes, as far as it is known whether they live."""
        ours, count = {worker.owner for worker in self.workers}, 0
        for trial in trials:
            of_trial = trial.user_attrs.get("owner", {"host": None, "process": 0})
            here = of_trial["host"] in (None, socket.gethostname())
            if trial.state == TrialState.RUNNING and (of_trial["host"], of_trial["process"]) not in ours:
                count += here or self.options.search.storage is not None
        return count

    def end(self) -> None:
        """Stop the workers: those that train are interrupted and write that down."""
        for worker in self.workers:
            with contextlib.suppress(OSError):
                worker.connection.send(False)
                if worker.answered and worker.busy:
                    os.kill(worker.process.pid, signal.SIGINT)
        limit = time.monotonic() + FAREWELL_SECONDS
        for worker in self.workers:
            worker.process.join(max(0.0, limit - time.monotonic()) if worker.answered else 0.0)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def mend(study: optuna.Study) -> None:
    """Mark the trials of dead processes failed, and put their values in once more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optuna.storages.fail_stale_trials(study)  # by their heartbeat, where there is one
        fail_dead_trials(study)
        retry_lost_trials(study)


class Screen:
    """A bar with what there is to know; plain lines where the output is no terminal."""

    def __init__(self, total: int, timeout: float | None) -> None:
        from tqdm import tqdm

        self.total, self.timeout, self.began, self.told = total, timeout, time.monotonic(), ("", 0.0)
        self.bar = tqdm(total=total, desc="search", unit="trial") if sys.stderr.isatty() else None

    def show(self, trials: list[FrozenTrial]) -> None:
        """Best value, finished, pruned and failed trials, and the time left."""
        done, text = len(finished(trials)), self.text(trials)
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.n = done
            self.bar.refresh()
            return
        now, (said, when), line = time.monotonic(), self.told, f"search: {done} of {self.total} trials, {text}"
        if line != said and (now - when > PLAIN_LINE_SECONDS or done >= self.total):
            self.told = line, now
            say(line)

    def text(self, trials: list[FrozenTrial]) -> str:
        """What stands behind the bar."""
        best = best_of(trials)
        counts = {state: sum(trial.state == state for trial in trials) for state in TrialState}
        parts = [f"best {best.value:.1%} (trial {best.number})"] if best is not None else []
        parts += [f"{counts[TrialState.PRUNED]} pruned", f"{counts[TrialState.FAIL]} failed"]
        if self.timeout is not None:
            parts.append(f"{max(0.0, self.timeout - time.monotonic() + self.began):.0f} s left to --timeout")
        return ", ".join(parts)

    def close(self) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.close()
