"""The training of a run, from its first step to all that it leaves: metrics, checkpoints, test, summary and page."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import visualization
from ..backbones.small import SMALL
from ..base.files import write_json
from ..base.metrics import calibrated
from ..base.progress import ProgressBar
from ..features.reference import MOST, Reference, reference_of
from ..features.sources import ImageRequest, normalized_features
from ..models import describe
from ..train import Hooks, Progress, Row
from ..utils import generator, program, say, stops_noted, warn
from .auto import cost_of_no_weights
from .calibration import HeldOut, after_warmup, calibrate, cross_validation, held_out
from .checkpoints import save_best, save_last, used_images
from .decision import Decision, choose_decision
from .evaluation import confusion_files, confusion_of, draw_confusions, measure, predict_rows, report_reliability
from .finetuning import finetuned_files
from .finished_run import FinishedRun
from .folds import SMALL_TEST
from .metrics_log import MetricsLog, TensorBoardLog, shown_by
from .page import write_run
from .page_warnings import hidden, unmeasured
from .prepare import fill_banks
from .relevance import explained
from .run_summary import run_summary
from .trainer import Trainer
from .unlabeled_tables import predict_unlabeled, write_unlabeled


def show_networks(trainer: Trainer) -> None:
    """Print the layers, with `--print_model`, and what it costs to begin without weights."""
    random = trainer.options.model.weights == "none" and not trainer.views.frozen
    if random and trainer.views.first.backbone.name not in SMALL:  # which have no weights to begin with
        say(cost_of_no_weights(trainer))
    if trainer.options.model.print_model:
        backbones = trainer.views.backbones if trainer.views.frozen else {}
        say(describe(backbones | {learner.name: learner.network for learner in trainer.learners}))


def train(trainer: Trainer, folder: Path, progress: Progress) -> float:
    """Train from `progress` to the end, writing as it goes; returns the seconds, the filling of the bank apart."""
    fill_banks(trainer)
    options = trainer.options
    log = MetricsLog(folder / "metrics.csv", trainer.columns())
    log.begin(progress.rows)
    board = TensorBoardLog(folder, options.run.tensorboard)
    began = time.monotonic()

    def write(row: Row) -> bool:
        log.add(row)
        board.add(row)
        return False

    last = folder / "checkpoints" / "last.pt"
    with ProgressBar(trainer.schedule.total_steps, progress.step) as bar, board, stops_noted() as stopped:
        if options.run.tensorboard:
            board.picture("samples", draw_samples(trainer, folder / "samples.png"), progress.step)
        if not trainer.out_of_patience(progress):
            hooks = Hooks(
                after_warmup=after_warmup(trainer),
                after_epoch=write,
                show=shown_by(bar),
                save=lambda: save_last(last, trainer, progress),
                stopped=stopped,
            )
            trainer.learn(progress, hooks)
    return time.monotonic() - began


def finish(trainer: Trainer, folder: Path, progress: Progress, began: float, training: float) -> dict[str, Any]:
    """Choose each model's epoch, calibrate, test once, and write everything that the run leaves; the summary."""
    options, data, split = trainer.options, trainer.context.data, trainer.context.split
    best_epoch = trainer.take_best(progress)
    started = time.monotonic()
    held = held_out(trainer)
    calibration = calibrate(held)
    calibrating = time.monotonic() - started
    temperatures = calibration["temperatures"]
    decision, about_decision = decision_of(trainer, held, temperatures)
    save_best(folder / "checkpoints" / "best.pt", trainer, best_epoch, temperatures, decision, learned_from(trainer))
    with trainer.evaluated() as models:
        validated, tested = (predict_rows(models, trainer.views, rows) for rows in (split.val, split.test))
        learned = trainer.sampler.unlabeled is not None
        unlabeled = (
            predict_unlabeled(models, trainer.views, trainer.context, temperatures, decision) if learned else None
        )
    labels = data.labels[split.test]
    decided = decision.of_models(tested, temperatures, data.classes)
    draw_confusions(folder, decided, labels, data.classes)
    decided_folds = decision.of_models(held.predictions, temperatures, data.classes)
    folds = cross_validation(held, decided_folds, data.classes)
    results: dict[str, Any] = {
        "val": measure(decision.of_models(validated, temperatures, data.classes), data.labels[split.val], data.classes),
        "test": measure(decided, labels, data.classes),
        "cross_validation": folds if len(split.test) < SMALL_TEST else {},
        "decision": about_decision,
        "calibration": calibration | report_reliability(folder / "reliability.png", tested, labels, temperatures),
        **about(trainer),
    }
    log_confusions(folder, results["test"], progress.step, wanted=options.run.tensorboard)
    visualization.draw_curves(folder / "graphs.png", progress.rows, title=folder.name)
    seconds = {"total": time.monotonic() - began, "training": training, "calibration": calibrating}
    results["best_epoch"] = best_epoch
    used = used_images(trainer.context, trainer.views, trainer.loaded)
    # A run that goes on was begun by another line than this one.
    words = options.command_line() if options.run.resume else None
    about_run = (folder.name, options.mode.name, trainer.context, trainer.views)
    summary = run_summary(*about_run, used, results, seconds, words=words)
    write_json(folder / "summary.json", summary)
    if unlabeled is not None:
        write_unlabeled(folder, data, unlabeled)
    view, probabilities = trainer.views.first, calibrated(tested, temperatures)
    again = shlex.join([*program().split(), *options.command_line()])
    asked = (options.mode, options.model, options.cotraining, options.run.seed)
    raw = tested if temperatures else {}
    run = FinishedRun(*asked, again, view.name, data, split, progress.rows, probabilities, view.source, decided, raw)
    counted = {name: confusion_of(classes, held.labels, len(data.classes)) for name, classes in decided_folds.items()}
    run = replace(
        run, unlabeled=unlabeled, resumed=options.run.resume, folds=counted if results["cross_validation"] else {}
    )
    if not tested and results["cross_validation"]:
        run = judged_by_folds(run, held.once(), temperatures, decision)
    if tested:
        with trainer.evaluated() as models:
            run = replace(run, overlays=explained(run, models, run.surest_mistakes()))
    write_run(folder, summary, run)
    for line in [*unmeasured(summary), *hidden(summary, run)]:
        warn(line)
    return summary


def judged_by_folds(
    run: FinishedRun, once: HeldOut, temperatures: Mapping[str, float], decision: Decision
) -> FinishedRun:
    """The run, with the labeled images as folds predicted them in place of a test that it does not have."""
    decided = decision.of_models(once.predictions, temperatures, run.dataset.classes)
    return replace(run, held_out=once.rows, tested=calibrated(once.predictions, temperatures), decided=decided)


def decision_of(trainer: Trainer, held: HeldOut, temperatures: Mapping[str, float]) -> tuple[Decision, dict[str, Any]]:
    """How calibrated probabilities become classes, chosen on what was held out, each image once, and how it was."""
    use, data, once = trainer.options.use, trainer.context.data, held.once()
    if use.recall and not once.predictions:
        warn(f"--recall has no threshold: no image was held out, since {held.reason}")
    counts = np.bincount(data.labels[trainer.context.split.labeled], minlength=len(data.classes))
    return choose_decision(use, data.classes, counts, (calibrated(once.predictions, temperatures), once.labels))


def log_confusions(folder: Path, tested: Mapping[str, Any], step: int, *, wanted: bool) -> None:
    """The pictures of the confusion matrices for TensorBoard."""
    with TensorBoardLog(folder, wanted) as board:
        for name, file in confusion_files(tested).items():
            board.picture(f"confusion_matrix/{name}", folder / file, step)


def learned_from(trainer: Trainer) -> Reference | None:
    """The images that the models have learned from, unlabeled ones too, as the first frozen view sees them."""
    if not trainer.views.frozen or trainer.context.data.kind == "points":
        return None
    labeled, unlabeled = trainer.sampler.labeled, trainer.sampler.unlabeled
    rows = labeled if unlabeled is None else np.union1d(labeled, unlabeled)
    rows = generator(trainer.context.seed, "reference").permutation(rows)[:MOST]
    return reference_of(normalized_features(trainer.views.first.source, rows, "weak"))


def about(trainer: Trainer) -> dict[str, Any]:
    """What the summary says of the views and of what the unlabeled images said.

    Returns {backbones, finetuned_views, class_prior, views_with_prior}: the network of each view and the side of its
    images, files of fine-tuned views, how frequent the classes were taken to be among the unlabeled images, where that
    was used, and the views whose heads had a prior.
    """
    statistics, views = trainer.statistics, trainer.views
    found: dict[str, Any] = {"backbones": {v.name: f"{v.backbone.name}, {v.backbone.transform.size} px" for v in views}}
    if trainer.options.mode.cotrain_mode:
        tuned = trainer.options.cotraining.finetune_views
        found["finetuned_views"] = finetuned_files(trainer.views) if tuned else {}
    if statistics.class_prior is not None:
        frequencies = statistics.class_prior.round(4).tolist()
        found["class_prior"] = dict(zip(trainer.context.data.classes, frequencies, strict=True))
    with_prior = zip(trainer.views, statistics.head_priors, strict=True)
    found["views_with_prior"] = [view.name for view, prior in with_prior if prior is not None]
    return found


def draw_samples(trainer: Trainer, path: Path, count: int = 8, draws: int = 3) -> Path:
    """A picture of some labeled images: raw, and a few draws of each view."""
    data, images = trainer.context.data, trainer.views.first.images
    chosen = generator(trainer.context.seed, "samples").permutation(trainer.context.split.labeled)[:count]
    decoded = next(images.decoded(iter([chosen])))

    def view(name: str, draw: int) -> np.ndarray:
        return images.view(decoded, ImageRequest(chosen, np.full(len(chosen), draw), name)).cpu().numpy()

    names = [data.classes[label] for label in data.labels[chosen]]
    if decoded.ndim == 2:
        weak, strong = view("weak", 0), view("strong", 0)
    else:
        weak, strong = (np.stack([view(name, k) for k in range(draws)], axis=1) for name in ("weak", "strong"))
    return visualization.draw_samples(path, view("eval", 0), weak, strong, names, title=data.name)
