"""Tuning with Optuna: a search space over the options, trials side by side, and what a search leaves.

A trial is the training of `experiment`, in whatever mode, on folds of the labeled images or with validation images; the
test images are never touched. This process watches over workers that run one trial for each word they get from it, so
that neither a crash nor a kill costs more than the trials that were running, and those are tried once more.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import gc
import hashlib
import io
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

import args
import experiment
import search_pictures
from args import Data, Options
from data import Dataset, Split, find_dataset, split_dataset, summary_table
from evaluate import wilson_interval
from loading import resumed_options
from study_storage import (
    INTERRUPTED,
    JOURNAL,
    fail_dead_trials,
    finished,
    open_storage,
    owner,
    retry_lost_trials,
    storage_errors,
    without_password,
)
from train import Row, TrainingFault
from utils import UserError, keep_pages, key, read_json, run_folder, say, warn, write_json, write_text

USUAL = {
    "weight_decay": "0.001:0.5:log",
    "max_lr": "0.0003:0.01:log",
    "temperature": "0.4:1.2",
    "lambda_u": "0.1:10:log",
    "uda_steps": "0:300",
    "threshold": "0.5:0.95",
    "mpl_weight": "0:1",
    "label_smoothing": "0:0.2",
}
# What learning from labels alone does not read.
UNLABELED_ONLY = ("temperature", "lambda_u", "uda_steps", "threshold", "mpl_weight")
# Values of different trials can be compared only on the same images, so what chooses those can't be searched.
SEARCHABLE_GROUPS = ("model", "learning")
SEARCHABLE = (
    "precision", "augmentation_draws", "flip", "include_labeled", "switch_mode", "finetune_mode", "algorithm",
    "consistency_target",
)  # fmt: skip
# What may differ between the machines of one search.
OF_THE_MACHINE = (
    "name", "device", "precision", "compile", "num_workers", "keep_pages", "cache", "cache_dir", "cache_limit",
    "data_dir", "data_root", "labels_csv", "weights", "n_trials", "timeout", "search_workers", "storage", "pruner",
    "download", "print_model",
)  # fmt: skip

FAILURES_IN_A_ROW = 10
TICK_SECONDS = 0.5
PLAIN_LINE_SECONDS = 10.0  # between two lines where the output is no terminal
WORKERS_LOG = "workers.log"
START = "spawn"  # how workers are started: a GPU does not survive a fork
FAREWELL_SECONDS = 15.0  # that a stopped worker gets to write down its trial

Space = dict[str, BaseDistribution]


def search(options: Options) -> dict[str, Any]:
    """Search for better options, and write what was found into the run's folder. Raises UserError, TrainingFault."""
    name = options.run.name or ""
    if options.run.resume:
        name = read_json(run_folder(name, resume=True) / "commandline_args.txt")["name"]
        options = resumed_options(options)
    base, space = space_of(options)
    goal = goal_of(options, options.search.folds)
    say(summary_table(goal.dataset, goal.whole))
    say(goal.described())
    first = first_values(options, space)
    fill_banks(args.make({**base, **first}), goal)
    url = options.search.storage
    # A database can refuse us: before a folder is made. The journal lies in the folder.
    storage = open_storage(url, Path()) if url else None
    study = None if storage is None else open_study(storage, name, options, space, goal, first)
    folder = run_folder(options.run.name or "", resume=options.run.resume, overwrite=options.run.overwrite)
    write_options(folder, options, name)
    if study is None:
        study = open_study(open_storage(None, folder), name, options, space, goal, first)
    with storage_errors(url):
        return conduct(study, folder, options, name)


def conduct(study: optuna.Study, folder: Path, options: Options, name: str) -> dict[str, Any]:
    """Run the trials that are still to be run, then write what was found, however it ended."""
    supervisor = Supervisor(study, folder, options, name)
    try:
        supervisor.run()
    finally:
        result = leave(study, folder, options)
    if supervisor.fault:
        raise TrainingFault(f"the search stopped after {supervisor.fault}; --resume goes on")
    return result


# --- the space --------------------------------------------------------------------------------------------------------


def space_of(options: Options) -> tuple[dict[str, Any], Space]:
    """The values that all trials share, and what is searched. Raises UserError for a wrong `--search`."""
    base = shared_values(options)
    wanted = {name: text for name, text in USUAL.items() if name not in base_unused(options)}
    space: Space = {name: distribution_of(name, text, base) for name, text in wanted.items()}
    for word in options.search.search:
        name, separator, text = word.partition("=")
        if not separator or not text:
            raise UserError(f"--search {word}: write KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=A,B,C")
        check_searchable(name)
        try:
            found = distribution_of(name, text, base)
        except UserError as error:
            raise UserError(f"--search {word}: {error}") from error
        space.pop(name, None)
        if isinstance(found, CategoricalDistribution) and len(found.choices) == 1:
            base[name] = found.choices[0]
        else:
            base.pop(name, None)
            space[name] = found
    if not space:
        raise UserError("--search leaves nothing to search; give a range or a list of values")
    return base, space


def shared_values(options: Options) -> dict[str, Any]:
    """What the user chose for every trial: the options that differ from their defaults, the search's own apart."""
    own = {*args.NOT_RECORDED, *args.SEARCHING, "optuna_mode"}
    defaults = Options().flat()
    return {name: value for name, value in options.flat().items() if name not in own and value != defaults[name]}


def base_unused(options: Options) -> tuple[str, ...]:
    """The usual keys that the mode does not read."""
    algorithm = options.cotraining.algorithm if options.mode.cotrain_mode else "meta"
    if options.mode.finetune_mode or algorithm == "labels_only":
        return UNLABELED_ONLY
    return ("mpl_weight",) if algorithm == "cotraining" else ()


def check_searchable(name: str) -> None:
    """Raises UserError for a key that is no option, or one that a search keeps as it is."""
    group, _ = args.kind_of(name)
    if group in SEARCHABLE_GROUPS or name in SEARCHABLE:
        return
    raise UserError(
        f"--search {name}: the search keeps --{name} as it is, since it does not belong to the learning or the model "
        "or decides which images are learned and measured"
    )


def distribution_of(name: str, text: str, base: Mapping[str, Any]) -> BaseDistribution:
    """The distribution that `LOW:HIGH[:log]` or `A,B,C` means for an option. Raises UserError."""

    _, kind = args.kind_of(name)

    def value(word: str) -> Any:
        typed = {"true": True, "false": False}.get(word.lower(), word) if kind is bool else word
        others = {other: v for other, v in base.items() if other != name}
        return args.make({**others, name: typed}).flat()[name]

    if kind not in (int, float) or ":" not in text:
        choices = list(dict.fromkeys(value(word.strip()) for word in text.split(",")))
        return CategoricalDistribution(choices)
    low_text, _, rest = text.partition(":")
    high_text, colon, scale = rest.partition(":")
    if colon and scale != "log":
        raise UserError(f"after the second colon stands log or nothing, not {scale!r}")
    low, high = value(low_text), value(high_text)
    if not low < high:
        raise UserError("a range goes from the lower to the higher value")
    if colon and low <= 0:
        raise UserError("a logarithmic range begins above 0")
    return (IntDistribution if kind is int else FloatDistribution)(low, high, log=bool(colon))


def first_values(options: Options, space: Space) -> dict[str, Any]:
    """The present values of what is searched: the first trial. One that its range lacks becomes the nearest one."""
    present, values = options.flat(), {}
    for name, distribution in space.items():
        values[name] = value = present[name]
        if isinstance(distribution, CategoricalDistribution):
            if value not in distribution.choices:
                values[name] = distribution.choices[0]
        elif value is None or not distribution.low <= value <= distribution.high:  # type: ignore[attr-defined]
            low, high = distribution.low, distribution.high  # type: ignore[attr-defined]
            values[name] = low if value is None else min(max(value, low), high)
        if values[name] != value:
            warn(f"--{name} {value} is not among what is searched, so the first trial takes {values[name]}")
    return values


def suggest(trial: Trial, space: Space) -> dict[str, Any]:
    """This trial's value of everything that is searched."""
    values: dict[str, Any] = {}
    for name, d in space.items():
        if isinstance(d, CategoricalDistribution):
            values[name] = trial.suggest_categorical(name, d.choices)
        elif isinstance(d, IntDistribution):
            values[name] = trial.suggest_int(name, d.low, d.high, log=d.log)
        elif isinstance(d, FloatDistribution):
            values[name] = trial.suggest_float(name, d.low, d.high, log=d.log)
    return values


# --- the objective ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    """What a trial is measured on: folds of the labeled images, or the validation images. Never the test."""

    dataset: Dataset
    whole: Split
    parts: tuple[Split, ...]

    @property
    def by_validation(self) -> bool:
        """Whether there are validation images."""
        return len(self.whole.val) > 0

    def described(self) -> str:
        """A line on the objective and how noisy it is."""
        count = sum(len(part.val) for part in self.parts)
        low, high = wilson_interval(round(0.75 * count), count)
        what = "validation accuracy" if self.by_validation else f"mean accuracy over {len(self.parts)} folds"
        return f"objective: {what}, {count} predictions a trial; at 75% its 95% interval is {low:.0%} to {high:.0%}"

    def digest(self) -> str:
        """Of the contents that are learned and measured: machines that share a study must have the same."""
        digest = hashlib.blake2b(digest_size=10)
        for part in self.parts:
            for rows in (part.labeled, part.unlabeled, part.val):
                digest.update(np.sort(self.dataset.hashes[rows]).tobytes() + b"|")
        return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def dataset_of(data: Data) -> Dataset:
    """The images, found once a process."""
    return find_dataset(data)


@functools.lru_cache(maxsize=4)
def _goal(data: Data, seed: int, folds: int) -> Goal:
    dataset = dataset_of(replace(data, augmentation_draws=1, flip=None, include_labeled=True))
    split = split_dataset(dataset, data, seed)
    untested = replace(split, test=split.test[:0])
    if len(split.val):
        return Goal(dataset, split, (untested,))
    rarest = int(np.bincount(dataset.labels[split.labeled], minlength=len(dataset.classes)).min())
    if rarest < folds:
        raise UserError(
            f"--folds {folds} needs {folds} labeled images of each class, the rarest has {rarest}; "
            "lower --folds, give more labels, or --val_percent"
        )
    return Goal(dataset, split, tuple(experiment.folds_of(dataset, untested, folds, seed)))


def goal_of(options: Options, folds: int) -> Goal:
    """What trials with these options are measured on; made once a process. Raises UserError."""
    return _goal(options.data, options.run.seed, folds)


def accuracy(options: Options, goal: Goal, kept: experiment.Kept, report: Callable[[float, int], None]) -> float:
    """Train with these options and measure: THE function of a trial.

    report: called with the value so far and the number of the fold (of the epoch, with validation images); it may end
    the trial by raising.
    """
    if goal.by_validation:

        def write(row: Row) -> None:
            report([v for name, v in row.items() if name.startswith("val_accuracy_")][-1], row["epoch"])

        return last_of(experiment.fold_accuracy(options, goal.dataset, goal.parts[0], kept=kept, write=write))
    found: list[float] = []
    for number, part in enumerate(goal.parts, start=1):
        found.append(last_of(experiment.fold_accuracy(options, goal.dataset, part, kept=kept)))
        report(float(np.mean(found)), number)
    return float(np.mean(found))


def last_of(accuracies: Mapping[str, float]) -> float:
    """The ensemble's accuracy, which comes last; that of the only model where there is one."""
    return list(accuracies.values())[-1]


def fill_banks(options: Options, goal: Goal) -> None:
    """Compute the features that the first trial needs, once and where one sees it. Finds what is wrong with options."""
    kept: experiment.Kept = {}
    for part in goal.parts:
        experiment.make_training(options, goal.dataset, part, kept=kept).fill_bank()


# --- the study --------------------------------------------------------------------------------------------------------


def open_study(
    storage: BaseStorage, name: str, options: Options, space: Space, goal: Goal, first: dict[str, Any]
) -> optuna.Study:
    """The study of that name, made where there is none, with the present options as its first trial.

    Raises UserError when it is a search of something else.
    """
    try:
        study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
        made = True
    except optuna.exceptions.DuplicatedStudyError:
        study, made = optuna.load_study(storage=storage, study_name=name), False
    check_same_search(study, options, space, goal)
    # By one of several machines that begin together; and after a kill right here, when it is resumed.
    firsts = [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get("first")]
    if made or (options.run.resume and not firsts):
        study.enqueue_trial(first, user_attrs={"first": True})
    return study


def check_same_search(study: optuna.Study, options: Options, space: Space, goal: Goal) -> None:
    """Note in a new study what it searches; raises UserError when an old one searches something else."""
    machine = {*OF_THE_MACHINE, *args.NOT_RECORDED}
    ours = {f"--{k}": v for k, v in options.flat().items() if k not in machine and k not in space}
    ours |= {f"the range of {k}": distribution_to_json(d) for k, d in space.items()}
    ours["the images"] = goal.digest()
    ours = {k: list(v) if isinstance(v, tuple) else v for k, v in ours.items()}
    theirs = study.user_attrs.get("search")
    if theirs is None:
        study.set_user_attr("search", ours)
        return
    for what in {**theirs, **ours}:
        if theirs.get(what) != ours.get(what):
            raise UserError(
                f"the study {study.study_name} searches with another value of {what} "
                f"({theirs.get(what)}, not {ours.get(what)}); give the same options, or another --name"
            )


def pruner_of(options: Options) -> optuna.pruners.BasePruner:
    """The pruner that `--pruner` names; a step is a fold, or with validation images an epoch."""
    folds = options.search.folds if not options.data.val_percent else None
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


# --- a worker ---------------------------------------------------------------------------------------------------------


def work(connection: Connection, options: Options, name: str, folder: Path, number: int, trials: int) -> None:
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
        pruner=pruner_of(options),
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
        self.kept: experiment.Kept = {}

    def run(self, study: optuna.Study) -> None:
        """One trial: complete, pruned, or failed with its reason."""
        with warnings.catch_warnings(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            # (A trial may have been given up by another machine, after a sleep of this one.)
            warnings.simplefilter("ignore")
            study.optimize(self.objective, n_trials=1, catch=(Exception,))
        while len(self.kept) > 2:
            self.kept.pop(next(iter(self.kept)))

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
        except KeyboardInterrupt:
            warn(f"stopped; --name {self.folder.name} --resume goes on")
            raise
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
            arguments = (theirs, self.options, self.name, self.folder, self.started, len(self.trials()))
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
            write_json(self.folder / "best_args.json", best_args(self.options, best))

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


# --- what a search leaves ---------------------------------------------------------------------------------------------


def best_of(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """The best complete trial, the earliest of equals."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return max(complete, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)


def best_args(options: Options, best: FrozenTrial) -> dict[str, Any]:
    """What `--config` takes: the options of the search, with the best values; its name is left to the command line."""
    base, _ = space_of(options)
    return {name: value for name, value in {**base, **best.params}.items() if name != "name"}


def write_options(folder: Path, options: Options, name: str) -> None:
    """What the search is, for `--resume`; a password goes into no file."""
    record = {**args.recorded(options), "name": name}
    if options.search.storage:
        record["storage"] = without_password(options.search.storage)
    write_json(folder / "commandline_args.txt", record)


def write_trials(path: Path, trials: list[FrozenTrial], searched: list[str]) -> None:
    """trials.csv: a row a trial."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["number", "state", "value", *searched, "seconds", "reason", "retry_of"])
    for trial in trials:
        seconds = f"{trial.duration.total_seconds():.3f}" if trial.duration is not None else ""
        lost = "its heartbeat fell silent" if trial.state == TrialState.FAIL else ""
        values = [trial.params.get(name, "") for name in searched]
        marks = [trial.user_attrs.get("reason", lost), trial.user_attrs.get("retry_of", "")]
        value = "" if trial.value is None else trial.value
        out.writerow([trial.number, trial.state.name.lower(), value, *values, seconds, *marks])
    write_text(path, text.getvalue())


def leave(study: optuna.Study, folder: Path, options: Options) -> dict[str, Any]:
    """Write and tell what was found so far; returns it."""
    trials = study.get_trials(deepcopy=False)
    _, space = space_of(options)
    write_trials(folder / "trials.csv", trials, list(space))
    best = best_of(trials)
    result: dict[str, Any] = {"name": folder.name, "trials": len(finished(trials)), "best": None}
    if best is None:
        say("no trial has been completed")
        return result
    write_json(folder / "best_args.json", best_args(options, best))
    search_pictures.draw(folder, study, list(space))
    first = next((t for t in trials if t.user_attrs.get("first") and t.state == TrialState.COMPLETE), None)
    beside = f"; the present options (trial {first.number}): {first.value:.1%}" if first is not None else ""
    say(f"best: trial {best.number}, {best.value:.1%}{beside}")
    say(f"train with it: python MPL.py --name {folder.name}-best --config {folder / 'best_args.json'}")
    say(f"look at it: pip install optuna-dashboard; optuna-dashboard {where_to_look(folder, options)}")
    say(f"results: {folder}")
    return {**result, "best": {"number": best.number, "value": best.value, "params": best.params}}


def where_to_look(folder: Path, options: Options) -> str:
    """What optuna-dashboard takes."""
    return without_password(options.search.storage) if options.search.storage else str(folder / JOURNAL)
