"""Tuning with Optuna: `search(options)` finds better options and writes down what it found.

A trial is the training of `experiment`, in whatever mode, on folds of the labeled images or with validation images; the
test images are never touched.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from . import args
from .args import Options
from .base.files import read_json, write_json, write_text
from .data import summary_table
from .runs.resume import resumed_options
from .runs.run_folder import going_on, run_folder
from .search import plots
from .search.objective import Goal, fill_banks, goal_of
from .search.space import Space, best_options, first_values, space_of
from .search.storage import JOURNAL, finished, open_storage, storage_errors, without_password
from .search.supervisor import Supervisor, best_of
from .train import TrainingFault
from .utils import UserError, say

# What may differ between the machines of one search.
OF_THE_MACHINE = (
    "name", "device", "precision", "compile", "num_workers", "keep_pages", "cache", "cache_dir", "cache_limit",
    "data_dir", "data_root", "labels_csv", "weights", "n_trials", "timeout", "search_workers", "storage", "pruner",
    "download", "print_model",
)  # fmt: skip


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
        return conduct(study, folder, options, goal.by_validation, name)


def conduct(study: optuna.Study, folder: Path, options: Options, by_validation: bool, name: str) -> dict[str, Any]:
    """Run the trials that are still to be run, then write what was found, however it ended."""
    supervisor = Supervisor(study, folder, options, by_validation, name)
    try:
        with going_on(folder):
            supervisor.run()
    finally:
        result = leave(study, folder, options)
    if supervisor.fault:
        raise TrainingFault(f"the search stopped after {supervisor.fault}; --resume goes on")
    return result


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
    for what in theirs:  # an option that is newer than the study is none of its
        if theirs[what] != ours.get(what):
            raise UserError(
                f"the study {study.study_name} searches with another value of {what} "
                f"({theirs[what]}, not {ours.get(what)}); give the same options, or another --name"
            )


# --- what a search leaves ---------------------------------------------------------------------------------------------


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
    write_json(folder / "best_args.json", best_options(options, best.params))
    plots.draw(folder, study, list(space))
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
