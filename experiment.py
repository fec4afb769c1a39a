"""`run(options) -> summary`: data, networks, features, training, test, and all that a run leaves behind.

Everything that can be wrong with the input is found before the run's folder is made or replaced.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import re
import shlex
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import args
import cotraining
import visualization
from args import Options, command_line, recorded
from augment import recipe_for
from batches import Ask, Batches, FrozenSource, ImageSource, Order, Source
from data import Dataset, Split, find_dataset, split_dataset, summary_table, write_split
from evaluate import (
    ENOUGH_TO_FIT,
    calibrated,
    calibration_errors,
    confusion_matrix,
    fit_temperatures,
    metrics,
    probabilities,
    reliability,
    with_ensemble,
)
from features import FeatureBank, evict
from learner import Learner
from loading import (
    check_classes,
    check_leaks,
    check_not_itself,
    check_same_images,
    hashes_in,
    inherit,
    load_run,
    resumed_options,
    run_of,
    with_classes,
)
from models import (
    Backbone,
    Network,
    batch_norms_in_exam,
    build_backbone,
    build_head,
    describe,
    resolve_head,
    resolve_unfreeze,
    set_trainable,
)
from reporting import Board, MetricsLog, Screen, commit, require_tensorboard, results_table, versions
from run_report import Finished, worse_than_guessing, write_run
from train import (
    Progress,
    Row,
    Rules,
    Schedule,
    TrainingFault,
    fit,
    keep_best,
    load_checkpoint,
    mpl_step,
    progress_state,
    restore_progress,
    save_checkpoint,
    supervised_step,
    warmup_step,
)
from utils import (
    RESULTS,
    UserError,
    choose_device,
    choose_precision,
    generator,
    key,
    peak_memory_bytes,
    read_json,
    run_folder,
    say,
    warn,
    write_json,
    write_text,
)
from views import build_view, parse_view, restored_view, save_view, view_labels, view_record

DEFAULT_MODEL = {"digits": "cnn", "fake": "cnn", "moons": "mlp"} | dict.fromkeys(
    ("cifar10", "cifar100", "svhn"), "wrn28_2"
)
DEFAULT_STEPS, DEFAULT_EPOCHS = 1000, 10
# With fewer validation images a class, choosing the best of many epochs was measured to cost up to 9 points.
ENOUGH_VALIDATION = 10
MATURE_STEPS = 100  # of warm-up, after which a view's calibration tells something of the rest of the run
CALIBRATION_FOLDS = 3
LAYER_DECAY = 0.75  # from stage to stage of a view that is fine-tuned (Bao et al. 2021, BEiT: 0.65 to 0.75)
# A view is fine-tuned as a run of its own would be that learns from the labels alone.
TUNING: dict[str, Any] = {
    "cotrain_mode": False, "finetune_mode": True, "finetune_views": False, "unfreeze": "all", "head": "linear",
    "compile": False, "tensorboard": False,
}  # fmt: skip
MEASURED = (
    "supervised_loss", "uda_loss", "student_loss", "feedback_loss", "mask_rate", "student_mask_rate", "agreement",
    "pseudo_label_accuracy", "feedback_h", "feedback_ratio",
)  # fmt: skip


def run(options: Options) -> dict[str, Any]:
    """Train a run, test it, and return the summary, which is also written. Raises UserError and TrainingFault."""
    began = time.monotonic()
    training = prepare(options)
    options = training.options
    if options.run.overwrite:
        training.fill_bank()  # what can still go wrong with files and disks goes wrong before a run is deleted
    folder = run_folder(options.run.name or "", resume=options.run.resume, overwrite=options.run.overwrite)
    training.options = options.changed(name=folder.name)
    return carry_out(training, folder, began)


def carry_out(training: Training, folder: Path, began: float) -> dict[str, Any]:
    """Train in this folder, from where it stopped if the run goes on; test, write and return the summary."""
    options = training.options
    write_records(folder, training)
    training.save_views(folder)
    if options.data.show_images:
        say(f"samples: {training.draw_samples(folder / 'samples.png')}")
    progress = training.restore(folder) if options.run.resume else Progress()
    if options.run.resume and training.is_over(progress) and has_ended(folder):
        say(f"{folder} has ended already: nothing is left to do")
        return read_json(folder / "summary.json")
    seconds = training.train(folder, progress)
    summary = training.finish(folder, progress, began, seconds)
    say(results_table(summary))
    say(f"page: {folder / 'report.html'}")
    say(f"results: {folder}")
    return summary


def has_ended(folder: Path) -> bool:
    """Whether a run has been tested and its page written since its last checkpoint."""
    last, *results = (folder / name for name in ("checkpoints/last.pt", "summary.json", "report.html"))
    return all(path.is_file() and path.stat().st_mtime >= last.stat().st_mtime for path in results)


def prepare(options: Options) -> Training:
    """Everything up to the first step, checked, without writing anything but features. Raises UserError."""
    if options.run.resume:
        options = resumed_options(options)
    loaded = load_run(options) if options.mode.load_path else None
    if loaded is not None:
        options = inherit(options, loaded)
    dataset = find_dataset(options.data)
    if loaded is not None:
        check_classes(loaded, dataset)
    split = split_dataset(dataset, options.data, options.run.seed)
    if loaded is not None:
        check_leaks(loaded, dataset, split)
        check_not_itself(loaded, options)
    if options.run.resume:
        check_same_images(RESULTS / (options.run.name or ""), dataset, split)
    say(summary_table(dataset, split))
    training = make_training(options, dataset, split, loaded)
    training.show_networks()
    return training


# --- the experiment ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """One way to see an image: a backbone and the source of what is learned on it. All but co-training have one."""

    name: str
    backbone: Backbone
    source: Source

    @property
    def images(self) -> ImageSource:
        """The decoded and augmented images under whatever the source is."""
        source = self.source.frozen if isinstance(self.source, FeatureBank) else self.source
        return source.images if isinstance(source, FrozenSource) else source  # type: ignore[return-value]


# Frozen views, by what they depend on: many trainings in one process build them once.
Kept = dict[Hashable, list[View]]
WriteRow = Callable[[Row], None]


def foundation_of(options: Options, split: Split) -> Hashable:
    """What frozen views depend on, beside the data set: all but the learning and the head."""
    learned: Hashable = None  # from labeled images, before a view is frozen
    if options.cotraining.finetune_views:
        learned = options.cotraining.finetune_steps, options.learning.layer_decay, split.labeled.tobytes()
    model, views = replace(options.model, head=None), options.cotraining.views
    return options.run, options.data, model, views, learned, options.mode.load_path


class Setup:
    """Data, device, backbones and the sources of their inputs: what training and testing share. Writes nothing."""

    def __init__(
        self,
        options: Options,
        dataset: Dataset,
        split: Split,
        loaded: Mapping[str, Any] | None = None,
        kept: Kept | None = None,
    ) -> None:
        self.options, self.dataset, self.split, self.loaded = options, dataset, split, loaded
        self.tested: dict[str, np.ndarray] = {}  # each model's probabilities for the images of the test
        self.device = choose_device(options.run.device)
        self.precision = choose_precision(options.run.precision, self.device)
        foundation, kept = foundation_of(options, split), {} if kept is None else kept
        self.frozen = foundation in kept
        self.views = kept[foundation] if self.frozen else self._views()
        if self.frozen:
            kept[foundation] = self.views
        check_not_learned(self.views, dataset, np.concatenate([split.val, split.test]))
        # Told once and for all, so that what is loaded or goes on later has the same head whatever learns there.
        self.options = options.changed(head=resolve_head(options.model, frozen=self.frozen))

    def _views(self) -> list[View]:
        backbones = self._backbones()
        for backbone in backbones.values():
            several = len(backbones) > 1  # the views of co-training are frozen whatever they are
            set_trainable(backbone, "head" if several else resolve_unfreeze(self.options.model, backbone))
        self.frozen = not any(p.requires_grad for backbone in backbones.values() for p in backbone.parameters())
        if self.frozen and self.loaded is not None and not self.loaded["model"]["frozen"]:
            raise UserError("--unfreeze head: the loaded models have a backbone each; leave out --unfreeze")
        views = [View(name, backbone, self._source(backbone)) for name, backbone in backbones.items()]
        self._evict(views)
        return views

    def _backbones(self) -> dict[str, Backbone]:
        return make_backbones(self.options, self.dataset, self.loaded)

    def _source(self, backbone: Backbone) -> Source:
        run, recipe = self.options.run, recipe_for(self.dataset.kind, self.options.data.flip)
        images = ImageSource(self.dataset, backbone.transform, recipe, self.device, workers=run.num_workers)
        if not self.frozen:
            return images
        backbone.to(self.device).to(memory_format=torch.channels_last)
        frozen = FrozenSource(images, backbone, self.precision)
        return FeatureBank(Path(run.cache_dir).expanduser(), frozen, run.cache_dtype) if run.cache else frozen

    @property
    def banks(self) -> list[FeatureBank]:
        """The feature banks of this run; none where a backbone learns or with `--no_cache`."""
        return [view.source for view in self.views if isinstance(view.source, FeatureBank)]

    def _evict(self, views: list[View]) -> None:
        """Remove old banks beyond `--cache_limit`, but none of this run's."""
        run, own = self.options.run, [view.source.folder for view in views if isinstance(view.source, FeatureBank)]
        for folder in evict(Path(run.cache_dir).expanduser(), int(run.cache_limit * 1e9), own) if own else []:
            warn(f"--cache_limit {run.cache_limit:g}: removed the old feature bank {folder}")

    def view_of(self, model: str) -> View:
        """The view that a model sees: in co-training the one of its name, else the only one."""
        return next((view for view in self.views if view.name == model), self.views[0])

    def network(self, name: str, state: Mapping[str, Any] | None = None) -> nn.Module:
        """A model to learn or to test: the head alone on a shared frozen backbone; else a whole network of its own."""
        chosen, classes = self.options.model, len(self.dataset.classes)
        width, key_of_head = self.view_of(name).backbone.num_features, (self.options.run.seed, name, "head")
        kind = resolve_head(chosen, frozen=self.frozen)
        head = build_head(kind, width, classes, seed_key=key_of_head, members=chosen.head_ensemble)
        network: nn.Module = head if self.frozen else Network(self._own_backbone(name), head)
        if state is not None:
            # A head that was learned on a frozen backbone may now stand on the same backbone, learning too.
            onto_head = isinstance(network, Network) and self.loaded is not None and self.loaded["model"]["frozen"]
            (network.head if onto_head else network).load_state_dict(state)  # type: ignore[union-attr]
        return network.to(self.device).to(memory_format=torch.channels_last)

    def _own_backbone(self, name: str) -> Backbone:
        """A copy of pretrained weights; from scratch two models begin apart."""
        backbone = self.view_of(name).backbone
        if backbone.pretrained or self.loaded is not None:
            return copy.deepcopy(backbone)
        own = make_backbone(self.options.changed(seed=key(self.options.run.seed, name)), self.dataset)
        set_trainable(own, resolve_unfreeze(self.options.model, own))
        return own

    def used_images(self) -> dict[str, np.ndarray]:
        """Contents uint64 that this run and those that it came from have used, by what for (see `hashes_in`)."""
        split = self.split
        seen = np.concatenate([split.labeled, split.unlabeled, split.val])
        rows = {"seen": seen, "labels": split.labeled, "validation": split.val}
        used = {name: np.union1d(self.dataset.hashes[own], hashes_in(self.loaded, name)) for name, own in rows.items()}
        learned = [view.backbone.learned for view in self.views]
        return used | {name: functools.reduce(np.union1d, learned, used[name]) for name in ("seen", "labels")}

    def predictions(self, models: Mapping[str, nn.Module], rows: np.ndarray) -> dict[str, np.ndarray]:
        """Class probabilities [N, C] of each model and the ensemble on the rows, unaugmented."""
        return self.predicted(models, lambda view: view.source.evaluation(rows))

    def predicted(
        self, models: Mapping[str, nn.Module], inputs: Callable[[View], Iterable[torch.Tensor]]
    ) -> dict[str, np.ndarray]:
        """The same of any images: `inputs` gives the batches that the models of a view take."""
        predicted: dict[str, np.ndarray] = {}
        for view in self.views:
            mine = {name: model for name, model in models.items() if self.view_of(name) is view}
            if mine:
                predicted |= probabilities(mine, inputs(view))
        return with_ensemble({name: predicted[name] for name in models})

    def results(
        self, models: Mapping[str, nn.Module], rows: np.ndarray, folder: Path | None = None, prefix: str = ""
    ) -> dict[str, Any]:
        """Metrics of each model and the ensemble on the rows; with a folder also their confusion matrices."""
        if not len(rows):
            return {}
        results = {}
        classes, labels = self.dataset.classes, self.dataset.labels[rows]
        predictions = self.predictions(models, rows)
        if folder is not None:
            self.tested = predictions
        for name, predicted in predictions.items():
            confusion = confusion_matrix(labels, predicted.argmax(axis=1), len(classes))
            results[name] = metrics(confusion, classes)
            if folder is not None:
                title = f"{name}: {100 * results[name]['accuracy']:.1f}% of {len(rows)} test images"
                visualization.draw_confusion(folder / f"{prefix}{name}_CM.png", confusion, classes, title=title)
        return results

    def reliability(self, temperatures: Mapping[str, float], folder: Path, prefix: str = "") -> dict[str, Any]:
        """How well the test's probabilities say how often they are right, before and after calibration; and a picture.

        Only reported: nothing is chosen by it.
        """
        if not self.tested:
            return {}
        labels = self.dataset.labels[self.split.test]
        states = {"before": self.tested}
        if temperatures:
            states["after"] = calibrated(self.tested, temperatures)
        errors: dict[str, Any] = {}
        bins: dict[str, Any] = {"before": {}, "after": {}}
        for state, predictions in states.items():
            errors[state] = {name: calibration_errors(p, labels) for name, p in predictions.items()}
            bins[state] = {name: {**reliability(p, labels), **errors[state][name]} for name, p in predictions.items()}
        title = f"How often a prediction is right that is so sure: {len(labels)} test images"
        visualization.draw_reliability(folder / f"{prefix}reliability.png", bins["before"], bins["after"], title=title)
        return errors

    def summary(
        self, folder: Path, results: Mapping[str, Any], best_epoch: Mapping[str, int], seconds: Mapping[str, float]
    ) -> dict[str, Any]:
        """What `summary.json` holds."""
        split, used, options = self.split, self.used_images(), self.options
        # A run that goes on was begun by another line than this one.
        words = command_line(options) if options.run.resume else sys.argv[1:]
        counts = {"labeled": split.labeled, "unlabeled": split.unlabeled, "val": split.val, "test": split.test}
        filled = sum(bank.seconds for bank in self.banks)
        return {
            "name": folder.name,
            "mode": self.options.mode_name,
            "seed": self.options.run.seed,
            "command": shlex.join([Path(sys.argv[0]).name, *words]),
            "dataset": {
                "path": self.dataset.name,
                "classes": list(self.dataset.classes),
                "images": {name: len(rows) for name, rows in counts.items()},
            },
            "labels_used": len(np.union1d(used["labels"], used["validation"])),
            **results,
            "best_epoch": dict(best_epoch),
            "seconds": {name: round(value, 3) for name, value in {**seconds, "features": filled}.items()},
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "versions": versions(),
            "commit": commit(),
        }


class Training(Setup):
    """A setup with learners, their order of batches and their schedule."""

    def __init__(
        self,
        options: Options,
        dataset: Dataset,
        split: Split,
        loaded: Mapping[str, Any] | None = None,
        kept: Kept | None = None,
    ) -> None:
        super().__init__(options, dataset, split, loaded, kept)
        self.supervised = options.mode.finetune_mode
        self.order = self._order()
        self.schedule = self._schedule()
        self.learners = self._learners()
        self.companions = self._companions()
        self.enough_validation = self._enough_validation()
        self._check_batch_norms()
        if options.run.tensorboard:
            require_tensorboard()

    def _order(self) -> Order:
        learning = self.options.learning
        return Order(
            labeled=self.split.labeled,
            unlabeled=None if self.supervised else self.split.unlabeled,
            batch_size=learning.batch_size,
            unlabeled_batch_size=learning.unlabeled_batch_size,
            seed=self.options.run.seed,
            draws=self.options.data.augmentation_draws if self.frozen else None,
        )

    def _schedule(self) -> Schedule:
        learning, epoch = self.options.learning, self.order.steps_per_epoch
        total = learning.max_steps or epoch * (learning.num_epochs or 0)
        total = total or max(DEFAULT_STEPS, DEFAULT_EPOCHS * epoch)
        if self.supervised:
            return Schedule(epoch, total)
        given = learning.warmup_epoch_num
        warmup = epoch * given if given is not None else min(epoch * math.ceil(total / 10 / epoch), total // 2)
        if warmup >= total:
            raise UserError(
                f"the warm-up of {given} epochs ({warmup} steps) leaves none of the {total} steps for the student; "
                "lower --warmup_epoch_num or train longer"
            )
        return Schedule(epoch, total, warmup_steps=warmup, switch=self.options.mode.switch_mode)

    def _learners(self) -> list[Learner]:
        """Models with optimizers, the first of them the first teacher."""
        names = ["model_1", "model_2"] if self.options.mode.switch_mode else ["teacher", "student"]
        if self.supervised:
            names = ["student"]
            if self.loaded is not None and self._loaded_state("student", "model_2") is None:
                raise UserError(
                    f"{run_of(self.loaded['path'])} holds {', '.join(self.loaded['models'])}, no student that "
                    "--finetune_mode could go on from; --predict_dir and --export use it as it is"
                )
        learners = []
        for index, name in enumerate(names):
            network = self.network(name, self._loaded_state("student", "model_2"))
            if self.options.run.compile:
                network.compile()
            start = 0 if index == 0 else self.schedule.warmup_steps
            total, classes = self.schedule.total_steps, len(self.dataset.classes)
            learners.append(Learner(name, network, self.options.learning, classes=classes, start=start, total=total))
        return learners

    def _loaded_state(self, *names: str) -> Mapping[str, Any] | None:
        models = self.loaded["models"] if self.loaded is not None else {}
        return next((models[name] for name in names if name in models), None)

    def _companions(self) -> dict[str, nn.Module]:
        """The teacher that was loaded beside a student to be fine-tuned, as it was."""
        state = self._loaded_state("teacher", "model_1")
        return {} if state is None else {"teacher": self.network("teacher", state)}

    def _enough_validation(self) -> bool:
        counts = np.bincount(self.dataset.labels[self.split.val], minlength=len(self.dataset.classes))
        enough = int(counts.min()) >= ENOUGH_VALIDATION
        if self.options.learning.patience and not enough:
            raise UserError(
                f"--patience needs at least {ENOUGH_VALIDATION} validation images a class, the rarest has "
                f"{int(counts.min())}; raise --val_percent or leave it out"
            )
        return enough

    def _check_batch_norms(self) -> None:
        """A batch norm can't learn from one value: say so before the run begins."""
        network, learning = self.learners[0].network.train(), self.options.learning
        if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in network.modules()):
            return
        smallest = max(1, min(len(self.split.labeled), learning.batch_size) // learning.grad_accumulation)
        if not self.supervised:
            unlabeled = min(len(self.split.unlabeled), learning.unlabeled_batch_size)
            smallest = min(smallest, max(1, unlabeled // learning.grad_accumulation))
        view, rows = self.view_of(self.learners[0].name), self.split.labeled[:smallest]
        if self.frozen:
            inputs = torch.zeros(smallest, view.backbone.num_features, device=self.device)
        else:
            inputs = view.images.view(next(view.images.decoded(iter([rows]))), Ask(rows, np.zeros_like(rows), "eval"))
        try:
            with torch.no_grad(), batch_norms_in_exam(network):
                network(inputs)
        except ValueError as error:
            raise UserError(
                f"batches of {smallest} images are too small for the batch norms of this network; "
                "raise --batch_size or --unlabeled_batch_size, lower --grad_accumulation or give more labels"
            ) from error

    # What is done.

    def show_networks(self) -> None:
        """Print the layers, with `--print_model`."""
        if self.options.model.print_model:
            backbones = {view.name: view.backbone for view in self.views if self.frozen}
            say(describe(backbones | {learner.name: learner.network for learner in self.learners}))

    def train(self, folder: Path, progress: Progress) -> float:
        """Train from `progress` to the end, writing as it goes; returns the seconds, the filling of the bank apart."""
        self.fill_bank()
        log = MetricsLog(folder / "metrics.csv", self.columns(), progress.rows)
        board = Board(folder, self.options.run.tensorboard)
        if self.options.run.tensorboard:
            board.picture("samples", self.draw_samples(folder / "samples.png"), progress.step)
        began = time.monotonic()

        def write(row: Row) -> None:
            log.add(row)
            board.add(row)

        with Screen(self.schedule.total_steps, progress.step) as screen, board:
            last = folder / "checkpoints" / "last.pt"
            try:
                if not self.out_of_patience(progress):
                    self.learn(progress, write=write, show=screen.show, save=lambda: self.save(last, progress))
            except KeyboardInterrupt:
                warn(f"stopped; --name {self.options.run.name} --resume goes on")
                raise
        return time.monotonic() - began

    def learn(
        self,
        progress: Progress,
        *,
        validated: bool = True,
        write: Callable[[Row], None] = lambda row: None,
        show: Callable[[int, Mapping[str, float]], None] = lambda step, means: None,
        save: Callable[[], None] = lambda: None,
    ) -> None:
        """The training alone; what is to be written or shown is the caller's.

        validated: whether the validation images may take part; not those of a fold, which are what is measured.
        """

        def after_epoch(row: Row) -> bool:
            stop = validated and self.validate(row, progress)
            write(row)
            return stop

        rules = Rules(self.options.learning, self.options.run.seed, self.precision)
        warmup, main = (functools.partial(step, rules=rules) for step in self.steps())
        batches = self.batches([Batches(self.order, v.source, self.dataset.labels, self.device) for v in self.views])
        fit(
            self.learners, batches, (warmup, main), self.schedule, progress,
            after_warmup=functools.partial(self.after_warmup, validated=validated),
            after_epoch=after_epoch, show=show, save=save,
        )  # fmt: skip

    def steps(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """What is done in the warm-up, and after it."""
        return warmup_step, supervised_step if self.supervised else mpl_step

    def batches(self, of_views: list[Batches]) -> Callable[[int], Any]:
        """What a step sees: of the only view."""
        return of_views[0]

    def after_warmup(self, *, validated: bool) -> None:
        """What is measured once when the warm-up is over; `validated` as in `learn`."""

    def fill_bank(self) -> None:
        """Compute the features that training and test will ask for, all at once."""
        wanted = self.order.wanted(self.schedule.total_steps) if self.frozen else {}
        wanted["eval", 0] = np.concatenate([self.split.val, self.split.test])
        for bank in self.banks:
            missing = bank.missing(wanted)
            if missing:
                with Screen(missing, what=f"features of {bank.frozen.backbone.name}", unit="image") as screen:
                    bank.fill(wanted, show=screen.show)

    def validate(self, row: Row, progress: Progress) -> bool:
        """Measure each model on the validation images, if there are some; says whether to stop early."""
        if not len(self.split.val):
            return False
        labels = self.dataset.labels[self.split.val]
        with self.evaluated() as models:
            predictions = self.predictions(models, self.split.val)
        for name, predicted in predictions.items():
            row[f"val_accuracy_{name}"] = float((predicted.argmax(axis=1) == labels).mean())
        if not self.enough_validation:
            return False
        for learner in self.learners:
            if learner.step:
                keep_best(progress, learner, row["epoch"], row[f"val_accuracy_{learner.name}"])
        return self.out_of_patience(progress)

    def is_over(self, progress: Progress) -> bool:
        """Whether no step is left to train."""
        return progress.step >= self.schedule.total_steps or self.out_of_patience(progress)

    def out_of_patience(self, progress: Progress) -> bool:
        """Whether no model has become better for so long that the run ends; also asked of a run that goes on."""
        patience = self.options.learning.patience
        if patience is None or not progress.best or not all(learner.step for learner in self.learners):
            return False
        return len(progress.rows) - max(best["epoch"] for best in progress.best.values()) >= patience

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[dict[str, nn.Module]]:
        """Each learner's network with its evaluation weights, and what was loaded beside them."""
        with contextlib.ExitStack() as stack:
            yield {x.name: stack.enter_context(x.evaluated()) for x in self.learners} | self.companions

    def columns(self) -> list[str]:
        """The columns of metrics.csv."""
        names = [learner.name for learner in self.learners]
        measured = self.measured()
        if len(self.split.val):
            models = [*names, *self.companions]
            measured += [f"val_accuracy_{name}" for name in (*models, *(["ensemble"] if len(models) > 1 else []))]
        return ["epoch", "step", "teacher", *measured, *(f"learning_rate_{name}" for name in names)]

    def measured(self) -> list[str]:
        """The names of what the steps measure."""
        return ["supervised_loss"] if self.supervised else list(MEASURED)

    # What is kept.

    def description(self) -> dict[str, Any]:
        """What a checkpoint says of the network, and of the images that were used."""
        model = {
            "name": self.options.model.model_name or default_model(self.dataset),
            "native_size": self.dataset.native_size,
            "kind": self.dataset.kind,
            "frozen": self.frozen,
        }
        return {
            "format": 1,
            "classes": list(self.dataset.classes),
            "model": model,
            "options": recorded(self.options),
            **{name: torch.from_numpy(hashes.view(np.int64)) for name, hashes in self.used_images().items()},
            "views": {
                view.name: {
                    "record": view_record(view.backbone),
                    "backbone": view.backbone.state_dict() if self.frozen else None,
                }
                for view in self.views
            },
        }

    def save(self, path: Path, progress: Progress) -> None:
        """Write `last.pt`: all that the run needs to go on."""
        models = {x.name: x.evaluation_state() for x in self.learners}
        content = {**self.description(), "models": models, **progress_state(progress, self.learners)}
        save_checkpoint(path, content)

    def save_views(self, folder: Path) -> None:
        """Write what was made before the training itself and belongs to the run."""

    def about_views(self) -> dict[str, Any]:
        """What the summary says of that."""
        return {}

    def restore(self, folder: Path) -> Progress:
        """Go on from `last.pt`, or from the beginning where there is none yet."""
        path = folder / "checkpoints" / "last.pt"
        if not path.is_file():
            return Progress()
        progress = restore_progress(load_checkpoint(path), self.learners)
        say(f"going on after epoch {len(progress.rows)}, step {progress.step} of {self.schedule.total_steps}")
        return progress

    def save_best(
        self, path: Path, best_epoch: Mapping[str, int], temperatures: Mapping[str, float] | None = None
    ) -> None:
        """Write `best.pt`: the models as they are tested and used, without what learning needs."""
        with self.evaluated() as models:
            states = {name: model.state_dict() for name, model in models.items()}
            content = {**self.description(), "models": states, "best_epoch": dict(best_epoch)}
            save_checkpoint(path, {**content, "temperatures": dict(temperatures or {})})

    def finish(self, folder: Path, progress: Progress, began: float, training: float) -> dict[str, Any]:
        """Choose each model's epoch, calibrate, test once, and write everything that the run leaves."""
        best_epoch = self.take_best(progress)
        started = time.monotonic()
        calibration = self.calibrate()
        calibrating = time.monotonic() - started
        self.save_best(folder / "checkpoints" / "best.pt", best_epoch, calibration["temperatures"])
        with self.evaluated() as models:
            held_out = {"val": (self.split.val, None), "test": (self.split.test, folder)}
            results = {name: self.results(models, *part) for name, part in held_out.items()}
        results["calibration"] = calibration | self.reliability(calibration["temperatures"], folder)
        results |= self.about_views()
        with Board(folder, self.options.run.tensorboard) as board:
            for name in results["test"]:
                board.picture(f"confusion_matrix/{name}", folder / f"{name}_CM.png", progress.step)
        visualization.draw_curves(folder / "graphs.png", progress.rows, title=folder.name)
        seconds = {"total": time.monotonic() - began, "training": training, "calibration": calibrating}
        summary = self.summary(folder, results, best_epoch, seconds)
        write_json(folder / "summary.json", summary)
        view, tested = self.views[0], calibrated(self.tested, calibration["temperatures"])
        finished = (self.options, self.dataset, self.split, progress.rows, tested, view.name, view.source)
        run = Finished(*finished)
        write_run(folder, summary, run)
        for line in worse_than_guessing(summary, run):
            warn(line)
        return summary

    def take_best(self, progress: Progress) -> dict[str, int]:
        """Give each model the weights of its best epoch where validation tells it, else leave the last; the epochs."""
        best_epoch = {learner.name: len(progress.rows) for learner in self.learners}
        for learner in self.learners if self.enough_validation else []:
            if learner.name in progress.best:
                best_epoch[learner.name] = progress.best[learner.name]["epoch"]
                learner.take_over(progress.best[learner.name]["state"])
        return best_epoch

    # How far its probabilities can be trusted.

    def calibrate(self) -> dict[str, Any]:
        """Temperatures of the models and the ensemble, and how they were found; the test takes no part.

        On the validation images where there are enough; else on labeled images that a training without them predicts.
        """
        rows = self.split.val
        if len(rows) >= ENOUGH_TO_FIT:
            with self.evaluated() as models:
                temperatures = fit_temperatures(self.predictions(models, rows), self.dataset.labels[rows])
            return {"method": "validation", "images": len(rows), "temperatures": temperatures}
        count, reason = self._calibration_folds()
        if count:
            try:
                held_out, rows = self._cross_fitted(count)
            except (TrainingFault, UserError) as error:  # of a fold, which is smaller: the run itself is whole
                count, reason = 0, str(error)
        if not count:
            return {"method": "none", "reason": reason, "images": 0, "temperatures": {}}
        temperatures = fit_temperatures(held_out, self.dataset.labels[rows])
        return {"method": "cross-fitted", "folds": count, "images": len(rows), "temperatures": temperatures}

    def _calibration_folds(self) -> tuple[int, str]:
        """How many folds to train on again; 0 with the reason."""
        asked = self.options.use.calibration_folds
        rarest = int(np.bincount(self.dataset.labels[self.split.labeled]).min())
        instead = f"give --val_percent so much that there are {ENOUGH_TO_FIT} validation images"
        if asked is None and not self.frozen:
            return (
                0,
                f"training {CALIBRATION_FOLDS} times more takes long: ask for it by --calibration_folds, or {instead}",
            )
        if asked == 0:
            return 0, "--calibration_folds 0"
        if self.loaded is not None:
            return 0, f"the loaded run has learned from the labeled images; {instead}"
        if rarest < 2:
            return 0, f"a class has one label only; {instead}"
        return min(asked or CALIBRATION_FOLDS, rarest), ""

    def _cross_fitted(self, count: int, *, warmup_only: bool = False) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Predictions [N, C] of labeled images by trainings that saw nothing of them, and their rows [N].

        Each is as long as the run itself, with its learning rates; with `warmup_only` it ends where the warm-up does.
        """
        parts, steps = [], self.schedule.warmup_steps if warmup_only else self.schedule.total_steps
        # Views that were tuned on the labeled images know what is held out: each fold tunes its own, and takes none
        # that a stopped run left.
        total = self.schedule.total_steps
        options = self.options.changed(resume=False, max_steps=total, num_epochs=None, patience=None)
        kept: Kept = {foundation_of(options, self.split): self.views} if self.frozen else {}
        folds = folds_of(self.dataset, self.split, count, self.options.run.seed)
        what = "calibration of the views" if warmup_only else "calibration"
        with Screen(count * steps, what=what) as screen:
            for index, fold in enumerate(folds):

                def show(step: int, means: Mapping[str, float], done: int = index * steps) -> None:
                    screen.show(done + step)

                # As the test images are: not among the unlabeled ones either.
                fold = replace(fold, unlabeled=np.setdiff1d(fold.unlabeled, fold.val))
                training = make_training(options, self.dataset, fold, kept=kept)
                if warmup_only:
                    training.schedule = replace(training.schedule, warmup_steps=steps, total_steps=steps)
                training.calibrated_like(self)
                training.fill_bank()
                training.learn(Progress(), validated=False, show=show)
                with training.evaluated() as models:
                    parts.append(training.predictions(models, fold.val))  # its views may be its own
        predictions = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return predictions, np.concatenate([fold.val for fold in folds])

    def calibrated_like(self, other: Training) -> None:
        """Take over what `after_warmup` has measured in another training, instead of measuring it."""

    def draw_samples(self, path: Path, count: int = 8, draws: int = 3) -> Path:
        """A picture of some labeled images: raw, and a few draws of each view."""
        chosen = generator(self.options.run.seed, "samples").permutation(self.split.labeled)[:count]
        decoded = next(self.views[0].images.decoded(iter([chosen])))

        def view(name: str, draw: int) -> np.ndarray:
            return self.views[0].images.view(decoded, Ask(chosen, np.full(len(chosen), draw), name)).cpu().numpy()

        names = [self.dataset.classes[label] for label in self.dataset.labels[chosen]]
        if decoded.ndim == 2:
            weak, strong = view("weak", 0), view("strong", 0)
        else:
            weak, strong = (np.stack([view(name, k) for k in range(draws)], axis=1) for name in ("weak", "strong"))
        return visualization.draw_samples(path, view("eval", 0), weak, strong, names, title=self.dataset.name)


class ViewTuning(Training):
    """The supervised training of one view's whole backbone on the labeled images: `--finetune_views`.

    Its settings hang on nothing of the learning that follows but `--layer_decay` and `--grad_accumulation`, so that
    the trials of a search share what is tuned.
    """

    def __init__(self, options: Options, dataset: Dataset, split: Split, backbone: Backbone) -> None:
        self.given = backbone
        nothing = np.zeros(0, dtype=np.int64)
        own, usual = options.learning, args.Learning()
        learning = replace(
            usual,
            max_steps=options.cotraining.finetune_steps,
            grad_accumulation=own.grad_accumulation,
            layer_decay=LAYER_DECAY if own.layer_decay is None else own.layer_decay,
        )
        options = replace(options.changed(**TUNING), learning=learning)
        super().__init__(options, dataset, Split(split.labeled, nothing, nothing, nothing))

    def _backbones(self) -> dict[str, Backbone]:
        return {self.given.name: self.given}

    def _own_backbone(self, name: str) -> Backbone:
        return self.given

    def tune(self) -> Backbone:
        """Train to the end; returns the backbone that was given, on the CPU, with what it has learned."""
        with Screen(self.schedule.total_steps, what=f"fine-tuning {self.given.name}") as screen:
            self.learn(Progress(), validated=False, show=screen.show)
        self.given.to("cpu")
        self.given.pretrained = True
        self.given.learned = np.union1d(self.given.learned, self.dataset.hashes[self.split.labeled])
        return self.given


class CoTraining(Training):
    """A training of one head a view, on frozen backbones, by one of the algorithms of cotraining.py."""

    given_taus: dict[str, float] | None = None  # of another training of these views, see `calibrated_like`

    def _backbones(self) -> dict[str, Backbone]:
        """The views; with `--finetune_views` tuned on the labeled images, or as a stopped run had tuned them."""
        backbones = super()._backbones()
        tune = self.options.cotraining.finetune_views and self.loaded is None
        specs = dict(zip(backbones, self.options.cotraining.views, strict=True)) if tune else {}
        for label, spec in specs.items():
            if not has_parameters(backbones[label]):  # raw pixels have nothing to tune
                continue
            saved = RESULTS / (self.options.run.name or "") / view_file(label)
            if self.options.run.resume and saved.is_file():
                backbones[label] = make_view(f"{parse_view(spec).name}={saved}", self.options, self.dataset)
            else:
                backbones[label] = ViewTuning(self.options, self.dataset, self.split, backbones[label]).tune()
        return backbones

    def _tuned(self) -> list[View]:
        wanted = self.options.cotraining.finetune_views
        return [view for view in self.views if wanted and has_parameters(view.backbone)]

    def save_views(self, folder: Path) -> None:
        for view in self._tuned():
            path = folder / view_file(view.name)
            if not path.is_file():
                save_view(path, view.backbone)

    def about_views(self) -> dict[str, Any]:
        """Which views were fine-tuned, and where they lie in the run's folder."""
        return {"finetuned_views": {view.name: view_file(view.name) for view in self._tuned()}}

    def _order(self) -> Order:
        self.supervised = self.options.cotraining.algorithm == "labels_only"
        return super()._order()

    def _learners(self) -> list[Learner]:
        """One learner a view, named like it; a step of `meta` updates each twice."""
        schedule, learners = self.schedule, []
        total = schedule.total_steps
        if self.options.cotraining.algorithm == "meta":
            total += schedule.total_steps - schedule.warmup_steps
        for view in self.views:
            network = self.network(view.name)
            learner = Learner(
                view.name, network, self.options.learning, classes=len(self.dataset.classes), start=0, total=total
            )
            learners.append(learner)
        return learners

    def steps(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        return cotraining.labels_only_step, cotraining.STEPS[self.options.cotraining.algorithm]

    def batches(self, of_views: list[Batches]) -> Callable[[int], Any]:
        return cotraining.ViewBatches(of_views)

    def after_warmup(self, *, validated: bool) -> None:
        """Fit each view's tau, once: its weak predictions speak to the others as surely as they are right."""
        taus = self.given_taus if self.given_taus is not None else self._fitted_taus(validated)
        for learner in self.learners:
            learner.calibrate(taus.get(learner.name, 1.0))

    def _fitted_taus(self, validated: bool) -> dict[str, float]:
        """Tau by view, from validation images where there are enough, else from folds; none where neither will do.

        Nor after a short warm-up: a head that has hardly begun is unsure of all, and a tau that corrects this, kept to
        the end, makes the weakest view speak the loudest.
        """
        rows = self.split.val
        if self.schedule.warmup_steps < MATURE_STEPS:
            return {}
        if validated and len(rows) >= ENOUGH_TO_FIT:
            with self.evaluated() as models:
                return fit_temperatures(self.predictions(models, rows), self.dataset.labels[rows])
        rarest = int(np.bincount(self.dataset.labels[self.split.labeled]).min())
        # Views that were fine-tuned would have to be so again for each fold, within the folds of the end too.
        if rarest < 2 or self.options.cotraining.finetune_views or self.options.use.calibration_folds == 0:
            return {}
        try:
            predicted, rows = self._cross_fitted(min(CALIBRATION_FOLDS, rarest), warmup_only=True)
        except (TrainingFault, UserError) as error:  # of a fold, which is smaller: the run itself can go on
            warn(f"the views' probabilities are not calibrated after the warm-up: {error}")
            return {}
        return fit_temperatures(predicted, self.dataset.labels[rows])

    def calibrated_like(self, other: Training) -> None:
        self.given_taus = {learner.name: float(learner.temperature) for learner in other.learners}

    def measured(self) -> list[str]:
        return cotraining.measured(self.options.cotraining.algorithm, [view.name for view in self.views])


def make_training(
    options: Options,
    dataset: Dataset,
    split: Split,
    loaded: Mapping[str, Any] | None = None,
    kept: Kept | None = None,
) -> Training:
    """The training that the options ask for."""
    kind = CoTraining if options.mode.cotrain_mode else Training
    return kind(options, dataset, split, loaded, kept)


def write_records(folder: Path, training: Training) -> None:
    """What says what the run is: its options, its split, and the files that were left out."""
    write_json(folder / "commandline_args.txt", recorded(training.options))
    write_split(folder / "split.csv", training.dataset, training.split)
    write_bad_files(folder, training.dataset)


def write_bad_files(folder: Path, dataset: Dataset) -> None:
    """bad_files.txt: the files that were left out, and why."""
    lines = [f"{path}\t{reason}\n" for path, reason in dataset.bad_files]
    write_text(folder / "bad_files.txt", "".join(lines))


def default_model(dataset: Dataset) -> str:
    """The network that suits a data set where the user names none."""
    return DEFAULT_MODEL.get(dataset.name, "resnet")


def make_backbones(options: Options, dataset: Dataset, loaded: Mapping[str, Any] | None) -> dict[str, Backbone]:
    """The backbones that the options name, by view; with a loaded run, those that it was trained with."""
    specs = options.cotraining.views
    if specs and loaded is None:
        built = [make_view(spec, options, dataset) for spec in specs]
        return dict(zip(view_labels(specs), built, strict=True))
    if loaded is None:
        backbone = make_backbone(options, dataset)
        return {backbone.name: backbone}
    backbones = {}
    for name, view in loaded["views"].items():
        size, points = loaded["model"]["native_size"], loaded["model"]["kind"] == "points"
        backbones[name] = restored_view(view["record"], native_size=size, points=points, seed=options.run.seed)
        if view["backbone"] is not None:
            backbones[name].load_state_dict(view["backbone"])
    return backbones


def make_view(spec: str, options: Options, dataset: Dataset) -> Backbone:
    """The backbone of one of `--views`."""
    points = dataset.kind == "points"
    return build_view(spec, native_size=dataset.native_size, points=points, seed=options.run.seed)


def check_not_learned(views: Iterable[View], dataset: Dataset, rows: np.ndarray) -> None:
    """Nothing is measured on images whose labels a fine-tuned view has learned. Raises UserError."""
    for view in views:
        known = int(np.isin(dataset.hashes[rows], view.backbone.learned).sum())
        if known:
            raise UserError(
                f"the weights of {view.name} were fine-tuned on the labels of {known} of the images that would be "
                "measured on; take the --seed and the split of the run that tuned them, or other weights"
            )


def has_parameters(backbone: Backbone) -> bool:
    """Whether anything in it can learn."""
    return any(parameter.numel() for parameter in backbone.parameters())


def view_file(label: str) -> str:
    """Where a fine-tuned view lies in its run's folder, with a name that every disk takes."""
    return f"views/{re.sub(r'[^A-Za-z0-9_.-]+', '_', label)}.safetensors"


def make_backbone(options: Options, dataset: Dataset) -> Backbone:
    """The backbone of `--model_name`."""
    return build_backbone(
        options.model,
        native_size=dataset.native_size,
        points=dataset.kind == "points",
        seed=options.run.seed,
        default_name=default_model(dataset),
    )


# --- folds ------------------------------------------------------------------------------------------------------------


def folds_of(dataset: Dataset, split: Split, count: int, seed: int) -> list[Split]:
    """The labeled images cut into `count` stratified folds: each split learns without one and has it as `val`.

    What is held out stays among the unlabeled images, as it is there in the real run; the test stays empty.
    """
    fold = np.zeros(len(split.labeled), dtype=np.int64)
    labels = dataset.labels[split.labeled]
    for label in np.unique(labels).tolist():
        members = generator(seed, "folds", label).permutation(np.flatnonzero(labels == label))
        fold[members] = (np.arange(len(members)) + label) % count
    nothing = np.zeros(0, dtype=np.int64)
    return [Split(split.labeled[fold != i], split.unlabeled, split.labeled[fold == i], nothing) for i in range(count)]


def fold_accuracy(
    options: Options, dataset: Dataset, split: Split, *, kept: Kept | None = None, write: WriteRow | None = None
) -> dict[str, float]:
    """Train and measure every model on the validation images of the split, which is never tested.

    One of `folds_of` is measured once, at the end. With `write`, which gets every epoch's row, the validation images
    are those of a run: they also choose each model's epoch, as they do there.
    """
    training = make_training(options, dataset, split, kept=kept)
    training.fill_bank()
    progress = Progress()
    if write is None:
        training.learn(progress, validated=False)
    else:
        training.learn(progress, write=write)
        training.take_best(progress)
    with training.evaluated() as models:
        results = training.results(models, split.val)
    return {name: result["accuracy"] for name, result in results.items()}


# --- test only --------------------------------------------------------------------------------------------------------


def test(options: Options) -> dict[str, Any]:
    """Test a loaded run, and write into its folder: `test_summary.json` and `test_<model>_CM.png`.

    Every labeled image under `--data_dir` that the run has not learned from is tested: with the run's own data that is
    its test split, with new images it is all of them. No choice here can let a training image in.
    """
    began = time.monotonic()
    loaded = load_run(options)
    mine = {"device", "num_workers", "precision", "cache", "cache_dir", "cache_limit"}
    mine |= {"data_dir", "labels_csv", "data_root"}
    given = {name: value for name, value in options.flat().items() if name in options.given & mine}
    if "data_dir" in given:  # a table of labels belongs to the folder that it was made for
        given.setdefault("labels_csv", None)
    unused = options.given - mine - {"test_mode", "load_path", "load_best", "keep_pages"}
    if unused:
        warn(f"--{', --'.join(sorted(unused))}: not used; --test_mode takes the options of the run that it tests")
    stored = loaded["stored"].changed(model_name=loaded["model"]["name"], **given)
    stored = replace(stored, mode=options.mode)
    dataset = with_classes(find_dataset(stored.data, for_test=True), loaded)
    rows = np.flatnonzero((dataset.labels >= 0) & ~np.isin(dataset.hashes, hashes_in(loaded, "seen")))
    if not len(rows):
        raise UserError(f"every labeled image under {dataset.name} was used in training; give new images to test on")
    nothing = np.zeros(0, dtype=np.int64)
    setup = Setup(stored, dataset, Split(nothing, nothing, nothing, rows), loaded)
    models = {name: setup.network(name, state) for name, state in loaded["models"].items()}
    folder = run_of(loaded["path"])
    say(f"testing {', '.join(models)} of {folder} on {len(rows)} images of {len(dataset.classes)} classes")
    results = {"val": {}, "test": setup.results(models, rows, folder, prefix="test_")}
    temperatures = loaded.get("temperatures", {})
    results["calibration"] = {"temperatures": temperatures} | setup.reliability(temperatures, folder, prefix="test_")
    seconds = {"total": time.monotonic() - began, "training": 0.0}
    summary = setup.summary(folder, results, loaded.get("best_epoch", {}), seconds)
    write_json(folder / "test_summary.json", summary)
    say(results_table(summary))
    say(f"results: {folder / 'test_summary.json'}")
    return summary
