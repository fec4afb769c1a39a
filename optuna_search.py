"""Tuning with Optuna: `search(options)` finds better options and writes down what it found.

A trial is one training, in whatever mode, measured on folds of the labeled images or on validation images; the test
images are never used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from . import args
from .args import Options
from .base.files import read_json, write_json, write_text
from .base.tables import csv_text
from .base.written_files import OPTIONS
from .data import summary_table
from .runs.auto import auto_model
from .runs.next_command import say_next
from .runs.resume import resumed_options
from .runs.run_folder import going_on, resumed_folder, run_folder
from .search import plots
from .search.objective import Goal, fill_banks, goal_of
from .search.page import write_page
from .search.space import Space, best_options, first_values, space_of
from .search.storage import JOURNAL, best_of, finished, open_storage, storage_errors
from .search.supervisor import Supervisor
from .search.worker import Job
from .train import TrainingFault
from .utils import UserError, log_to, say, without_password


def search(options: Options) -> dict[str, Any]:
    """Search for better options, and write what was found into the run's folder.

    Returns:
        name: of the folder.
        trials: how many have finished.
        best: number, value and params of the best trial; None where none is complete.

    Raises:
        UserError: the options, the images or the storage are wrong.
        TrainingFault: too many trials or workers failed.
    """
    name = options.run.name or ""
    if options.run.resume:
        name = read_json(resumed_folder(name) / OPTIONS, {"name": str, str: object})["name"]
        options = resumed_options(options)
    base, space = space_of(options.flat())
    goal = goal_of(options.data, options.run.seed, options.search.folds)
    if "model_name" not in {*base, *space}:
        views = options.cotraining.views
        chosen = auto_model(options.model, options.data, options.run, views, goal.dataset, goal.whole)
        options = options.changed(**chosen)
        base, space = space_of(options.flat())
    say(summary_table(goal.dataset, goal.whole))
    say(goal.described())
    first = first_values(options.flat(), space)
    fill_banks({**base, **first}, goal)
    identity, resume = identity_of(options.flat(), space, goal), options.run.resume
    url = options.search.storage
    # A database is opened before a folder is made, since it may refuse us. The journal lies in the folder.
    study = open_study(open_storage(url, Path()), name, identity, first, resume) if url else None
    asked, overwrite = options.run.name or "", options.run.overwrite
    # What is recorded is the name of the study, which may lie in a database.
    folder = run_folder(asked, lambda _: options.recorded(name), resume=resume, overwrite=overwrite, shared=True)
    if study is None:
        study = open_study(open_storage(None, folder), name, identity, first, resume)
    tuned, validated = options.cotraining.finetune_views, goal.by_validation
    with log_to(folder), storage_errors(url):
        return run_trials(study, Job(name, folder, base, space, options.run, options.search, tuned, validated))


def run_trials(study: optuna.Study, job: Job) -> dict[str, Any]:
    """Run the trials that are missing, then write the results, however the search ended; returns what `search` does."""
    supervisor = Supervisor(study, job)
    try:
        with going_on(job.folder):
            supervisor.run()
    finally:
        result = write_results(study, job)
    if supervisor.fault:
        raise TrainingFault(f"the search stopped after {supervisor.fault}; --resume goes on")
    return result


# --- the study --------------------------------------------------------------------------------------------------------


def identity_of(values: Mapping[str, Any], space: Space, goal: Goal) -> dict[str, Any]:
    """What must be equal on all machines that share a study: options, ranges and images, each by its name."""
    machine = args.per_machine() | args.NOT_RECORDED
    identity = {f"--{k}": v for k, v in values.items() if k not in machine and k not in space}
    identity |= {f"the range of {k}": distribution_to_json(d) for k, d in space.items()}
    identity["the images"] = goal.digest()
    return {k: list(v) if isinstance(v, tuple) else v for k, v in identity.items()}


def open_study(
    storage: BaseStorage, name: str, identity: dict[str, Any], first: dict[str, Any], resume: bool
) -> optuna.Study:
    """The study of that name, made where there is none, with `first` as its first trial.

    Raises UserError when it is a search of something else.
    """
    try:
        study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
        made = True
    except optuna.exceptions.DuplicatedStudyError:
        study, made = optuna.load_study(storage=storage, study_name=name), False
    check_same_search(study, identity)
    # Of several machines that begin together one enqueues it; a search that was killed just here does when resumed.
    firsts = [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get("first")]
    if made or (resume and not firsts):
        study.enqueue_trial(first, user_attrs={"first": True})
    return study


def check_same_search(study: optuna.Study, identity: dict[str, Any]) -> None:
    """Note in a new study what it searches; raises UserError when an old one searches something else."""
    known = study.user_attrs.get("search")
    if known is None:
        study.set_user_attr("search", identity)
        return
    for what in known:  # not an option that is newer than the study
        if known[what] != identity.get(what):
            raise UserError(
                f"the study {study.study_name} searches with another value of {what} "
                f"({known[what]}, not {identity.get(what)}); give the same options, or another --name"
            )


# --- what a search leaves ---------------------------------------------------------------------------------------------


def write_results(study: optuna.Study, job: Job) -> dict[str, Any]:
    """Write and print what was found so far; returns what `search` does."""
    folder, trials = job.folder, study.get_trials(deepcopy=False)
    write_trials(folder / "trials.csv", trials, list(job.space))
    best = best_of(trials)
    result: dict[str, Any] = {"name": folder.name, "trials": len(finished(trials)), "best": None}
    if best is None:
        say("no trial has been completed")
        return result
    write_json(folder / "best_args.json", best_options(job.base, best.params))
    pictures = plots.draw(folder, study, list(job.space))
    first = next((t for t in trials if t.user_attrs.get("first") and t.state == TrialState.COMPLETE), None)
    beside = f"; the present options (trial {first.number}): {first.value:.1%}" if first is not None else ""
    url = job.search.storage
    lead = f"best: trial {best.number}, {best.value:.1%}{beside}"
    write_page(folder, trials, pictures, lead, list(job.space), best_options(job.base, best.params))
    say(lead)
    say_next("train with it", ["--name", f"{folder.name}-best", "--config", str(folder / "best_args.json")])
    shown = without_password(url) if url else str(folder / JOURNAL)
    say(f"look at it: pip install optuna-dashboard; optuna-dashboard {shown}")
    say(f"results: {folder}")
    return {**result, "best": {"number": best.number, "value": best.value, "params": best.params}}


def write_trials(path: Path, trials: list[FrozenTrial], searched: list[str]) -> None:
    """Write trials.csv: one row a trial."""
    rows: list[list[object]] = [["number", "state", "value", *searched, "seconds", "reason", "retry_of"]]
    for trial in trials:
        seconds = f"{trial.duration.total_seconds():.3f}" if trial.duration is not None else ""
        lost = "its heartbeat stopped" if trial.state == TrialState.FAIL else ""
        values = [trial.params.get(name, "") for name in searched]
        marks = [trial.user_attrs.get("reason", lost), trial.user_attrs.get("retry_of", "")]
        rows.append([trial.number, trial.state.name.lower(), trial.value, *values, seconds, *marks])
    write_text(path, csv_text(rows))
