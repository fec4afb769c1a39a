"""The supervisor of a search: it starts the workers of this machine, gives them trials, and replaces those that die.

A worker runs one trial for each message that it gets, so a crash or a kill costs no more than the trials that were
running, and those are tried once more.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ..base.files import write_json
from ..base.progress import ProgressBar
from .space import best_options
from .storage import INTERRUPTED, best_of, finished, mend
from .worker import WORKERS_LOG, Job, work

FAILURES_IN_A_ROW = 10
TICK_SECONDS = 0.5
START = "spawn"  # how workers are started: a GPU does not survive a fork
SHUTDOWN_SECONDS = 15.0  # that a stopped worker gets to record its trial


@dataclass
class Process:
    """A worker as its supervisor sees it."""

    process: Any
    connection: Connection
    answered: bool = False
    busy: bool = True  # until it says that it is ready

    @property
    def owner(self) -> tuple[str, int]:
        """The host and process that its trials name."""
        return socket.gethostname(), self.process.pid


@dataclass
class Supervisor:
    """Gives trials to the workers of this machine, replaces those that die, and has their trials run once more."""

    study: optuna.Study
    job: Job
    workers: list[Process] = field(default_factory=list)
    started: int = 0
    deaths: int = 0  # of workers in a row that never answered
    best: int | None = None
    fault: str = ""

    def run(self) -> None:
        """Run until all trials are finished, the time is over or too many failed. Ctrl-C ends the workers cleanly."""
        mend(self.study)
        search = self.job.search
        before = {trial.number for trial in finished(self.trials())}
        progress = SearchProgress(search.n_trials, search.timeout)
        self.began = time.monotonic()
        over = len(before) >= search.n_trials
        try:
            while not over:
                self.start_missing()
                self.listen()
                self.remove_dead()
                trials = self.trials()
                progress.show(trials)
                self.note_best(trials)
                self.fault = self.fault_of([trial for trial in trials if trial.number not in before])
                over = self.hand_out(trials)
        finally:
            progress.bar.close()
            self.end()
            mend(self.study)

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def start_missing(self) -> None:
        """Start workers until there are as many as were asked for."""
        context = multiprocessing.get_context(START)
        while len(self.workers) < self.job.search.search_workers:
            ours, theirs = context.Pipe()
            arguments = (theirs, self.job, self.started, len(self.trials()))
            # Not as a daemon, which could not start the processes that decode images.
            process = context.Process(target=work, args=arguments, name=f"worker {self.started}")  # type: ignore[attr-defined]
            # Inherited: Ctrl-C in a terminal reaches all processes, and `end` passes it on to those that train.
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
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

    def remove_dead(self) -> None:
        """Forget the workers that have died; their trials, and those of other dead processes, are tried once more."""
        for worker in [worker for worker in self.workers if not worker.process.is_alive()]:
            worker.process.join()
            self.deaths += not worker.answered
            self.workers.remove(worker)
        mend(self.study)

    def note_best(self, trials: list[FrozenTrial]) -> None:
        """Write best_args.json for each new best trial, so that it is there even after a kill."""
        best = best_of(trials)
        if best is not None and best.number != self.best:
            self.best = best.number
            write_json(self.job.folder / "best_args.json", best_options(self.job.base, best.params))

    def fault_of(self, trials: list[FrozenTrial]) -> str:
        """Why the search must stop, or nothing: failures in a row, of trials or of whole workers."""
        if self.deaths >= FAILURES_IN_A_ROW:
            return f"{self.deaths} workers in a row died before their first trial, see {self.job.folder / WORKERS_LOG}"
        ended = [trial for trial in trials if trial.state.is_finished() and trial.datetime_complete]
        ended = sorted(ended, key=lambda trial: trial.datetime_complete)  # type: ignore[arg-type,return-value]
        last = [trial for trial in ended if trial.user_attrs.get("reason") != INTERRUPTED][-FAILURES_IN_A_ROW:]
        if len(last) < FAILURES_IN_A_ROW or any(trial.state != TrialState.FAIL for trial in last):
            return ""
        return f"{FAILURES_IN_A_ROW} failures in a row, the last: {last[-1].user_attrs.get('reason', 'unknown')}"

    def hand_out(self, trials: list[FrozenTrial]) -> bool:
        """Give each ready worker a trial while there are some left; returns whether the search is over."""
        wanted, timeout = self.job.search.n_trials, self.job.search.timeout
        done = len(finished(trials))
        running = [worker for worker in self.workers if worker.answered and worker.busy]
        late = timeout is not None and time.monotonic() - self.began >= timeout
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
        """How many trials other processes run; in a journal those of other hosts, which may be dead, do not count."""
        ours, count = {worker.owner for worker in self.workers}, 0
        for trial in trials:
            of_trial = trial.user_attrs.get("owner", {"host": None, "process": 0})
            here = of_trial["host"] in (None, socket.gethostname())
            if trial.state == TrialState.RUNNING and (of_trial["host"], of_trial["process"]) not in ours:
                count += here or self.job.search.storage is not None
        return count

    def end(self) -> None:
        """Stop the workers: those that train are interrupted, and record that."""
        for worker in self.workers:
            with contextlib.suppress(OSError):
                worker.connection.send(False)
                if worker.answered and worker.busy:
                    os.kill(worker.process.pid, signal.SIGINT)
        limit = time.monotonic() + SHUTDOWN_SECONDS
        for worker in self.workers:
            worker.process.join(max(0.0, limit - time.monotonic()) if worker.answered else 0.0)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


class SearchProgress:
    """The progress of a search: a bar in a terminal, plain lines elsewhere."""

    def __init__(self, total: int, timeout: float | None) -> None:
        self.total, self.timeout, self.began = total, timeout, time.monotonic()
        self.bar = ProgressBar(total, what="search", unit="trial", slow=True)

    def show(self, trials: list[FrozenTrial]) -> None:
        """Show the best value, the finished, pruned and failed trials, and the time left."""
        done, text = len(finished(trials)), self.text(trials)
        self.bar.show_text(done, text, f"search: {done} of {self.total} trials, {text}")

    def text(self, trials: list[FrozenTrial]) -> str:
        """What is shown behind the bar."""
        best = best_of(trials)
        counts = {state: sum(trial.state == state for trial in trials) for state in TrialState}
        parts = [f"best {best.value:.1%} (trial {best.number})"] if best is not None else []
        parts += [f"{counts[TrialState.PRUNED]} pruned", f"{counts[TrialState.FAIL]} failed"]
        if self.timeout is not None:
            parts.append(f"{max(0.0, self.timeout - time.monotonic() + self.began):.0f} s left to --timeout")
        return ", ".join(parts)
