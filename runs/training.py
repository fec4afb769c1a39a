"""The training of a run: its learners, its order of batches, what it measures, keeps, calibrates and leaves."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import visualization
from ..args import Learning, Options, recorded
from ..backbones.registry import view_record
from ..base.files import write_json
from ..base.metrics import ENOUGH_TO_FIT, calibrated, fit_temperatures
from ..data import Dataset, Split, folds_of
from ..features.bank import Kind
from ..features.class_prior import MOST, estimate_shares, features_of, labels_shares, some_of_each
from ..features.head_prior import center_of, fit_axes, seen
from ..features.neighbours import nearest
from ..features.sources import Ask
from ..learning.batches import Batches, Order
from ..learning.checkpoint import layers_checked, load_checkpoint, save_checkpoint
from ..learning.learner import Learner, Prior
from ..models import batch_norms_in_exam, describe
from ..train import (
    Progress,
    Row,
    Rules,
    Schedule,
    TrainingFault,
    fit,
    keep_best,
    mpl_step,
    progress_state,
    restore_progress,
    supervised_step,
    warmup_step,
)
from ..utils import UserError, generator, say, warn
from .page import Finished, worse_than_guessing, write_run
from .progress import Board, MetricsLog, Screen, require_tensorboard
from .resume import run_of
from .setup import Kept, Setup, View, default_model, foundation_of

DEFAULT_STEPS, DEFAULT_EPOCHS = 1000, 10
# With fewer validation images a class, choosing the best of many epochs was measured to cost up to 9 points.
ENOUGH_VALIDATION = 10
CALIBRATION_FOLDS = 3
MEASURED = (
    "supervised_loss", "uda_loss", "student_loss", "feedback_loss", "mask_rate", "student_mask_rate", "agreement",
    "pseudo_label_accuracy", "feedback_h", "feedback_ratio",
)  # fmt: skip

WriteRow = Callable[[Row], None]


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
        self.planned_steps = self.schedule.total_steps  # also of a fold that will end with the warm-up
        self.learners = self._learners()
        self.companions = self._companions()
        self.enough_validation = self._enough_validation()
        self._check_batch_norms()
        if options.run.tensorboard:
            require_tensorboard()

    @functools.cached_property
    def learning(self) -> Learning:
        """The options of learning; what was left open is set as suits what learns."""
        given = self.options.learning
        alignment = given.distribution_alignment
        if alignment is None:
            alignment = 1.0 if self.frozen else 0.0
        return replace(given, distribution_alignment=0.0 if self.supervised else alignment)

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
            learners.append(Learner(name, network, self.learning, classes=classes, start=start, total=total))
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
        if self.options.learning.neighbours and self.near[0] is None:
            warn("--neighbours: not used; that takes a frozen backbone and at least two unlabeled images")

        def write(row: Row) -> None:
            log.add(row)
            board.add(row)

        with Screen(self.schedule.total_steps, progress.step) as screen, board:
            last = folder / "checkpoints" / "last.pt"
            if not self.out_of_patience(progress):
                self.learn(progress, write=write, show=screen.show, save=lambda: self.save(last, progress))
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

        self.take_priors()
        rules = Rules(self.learning, self.options.run.seed, self.precision)
        pile = self.schedule.total_steps > self.schedule.warmup_steps  # else nothing is drawn towards shares
        if self.learning.distribution_alignment and pile:
            for learner in self.learners:
                learner.shares.copy_(torch.from_numpy(self.class_shares))
        warmup, main = (functools.partial(step, rules=rules) for step in self.steps())
        batches = self.batches(
            [
                Batches(self.order, view.source, self.dataset.labels, self.device, near)
                for view, near in zip(self.views, self.near, strict=True)
            ]
        )
        fit(
            self.learners, batches, (warmup, main), self.schedule, progress,
            after_warmup=functools.partial(self.after_warmup, validated=validated),
            after_epoch=after_epoch, show=show, save=save,
        )  # fmt: skip

    @property
    def class_shares(self) -> np.ndarray:
        """float64 [C]: the classes' shares of the unlabeled images, as far as the labeled ones tell them."""
        split, source = self.split, self.options.learning.class_shares
        rows = split.labeled.tobytes(), split.unlabeled.tobytes()
        key, known = (source, foundation_of(self.options, split), *rows), self.kept.shares
        if key not in known:  # each trial of a search asks
            known[key] = self._class_shares()
        return known[key]

    def _class_shares(self) -> np.ndarray:
        split, labels, classes = self.split, self.dataset.labels, len(self.dataset.classes)
        own = labels_shares(labels[split.labeled], classes)
        learned = [view.backbone.learned for view in self.views]
        # Features that know their labels would find any estimate to be a good one.
        spoiled = np.isin(self.dataset.hashes[split.labeled], np.concatenate(learned)).any()
        if not self.frozen or spoiled or self.options.learning.class_shares == "labels":
            return own
        random, labeled = generator(self.options.run.seed, "shares"), self.some_labeled
        again, new = np.intersect1d(split.unlabeled, split.labeled), np.setdiff1d(split.unlabeled, split.labeled)
        sources = [view.source for view in self.views]
        known, unknown = (features_of(sources, rows) for rows in (labeled, random.permutation(new)[:MOST]))
        if not (np.isfinite(known).all() and np.isfinite(unknown).all()):
            return own  # the training will say so
        found = estimate_shares(known, labels[labeled], unknown, classes)
        # Labeled images may be in the pile too, and of those the classes are known.
        counted = np.bincount(labels[again], minlength=classes)
        return (counted + len(new) * found) / (len(again) + len(new))

    @property
    def some_labeled(self) -> np.ndarray:
        """The labeled rows, or where they are very many about MOST of them, of each class its part."""
        labeled = generator(self.options.run.seed, "some labeled").permutation(self.split.labeled)
        return labeled[some_of_each(self.dataset.labels[labeled], MOST)]

    def take_priors(self) -> None:
        """Give the heads what the unlabeled images tell of their weights; each time the same."""
        for view, axes in zip(self.views, self.axes, strict=True):
            if axes is None:
                continue
            prior = Prior(self._center(view).to(self.device), axes.to(self.device))
            for learner in self.learners:
                if self.view_of(learner.name) is view:
                    learner.take_prior(prior)

    def _center(self, view: View) -> Tensor:
        """The center [D] of the prior of a view's heads."""
        rows = self.some_labeled
        kinds = self._kinds(rows)
        mean = sum(seen(view.source, rows, kinds), torch.zeros(())) / len(kinds)
        return center_of(mean, self.dataset.labels[rows])

    @property
    def axes(self) -> list[Tensor | None]:
        """The axes [D, D] of the prior of each view's heads; None without one.

        That is where heads are not linear, nothing is frozen, nothing is unlabeled or it tells nothing.
        """
        chosen, order = self.options.model, self.order
        wanted = chosen.head == "linear" and chosen.head_prior == "pile"
        if not wanted or not self.frozen or order.unlabeled is None:
            return [None] * len(self.views)
        rows = generator(self.options.run.seed, "prior").permutation(np.setdiff1d(order.unlabeled, order.labeled))
        kinds = self._kinds(rows)
        key, known = (foundation_of(self.options, self.split), rows.tobytes(), *kinds), self.kept.axes
        if key not in known:  # each fold asks
            known[key] = [fit_axes(self._looks("the prior", view, rows[:MOST], kinds)) for view in self.views]
        return known[key]

    @property
    def near(self) -> list[np.ndarray] | list[None]:
        """Of each view, which unlabeled images are near to which: rows [N, count], 0 for images outside the pile.

        None without neighbours: where they are not wanted, nothing is frozen, or the pile has no two images.
        """
        wanted, pile = self.options.learning.neighbours, self.order.unlabeled
        if not wanted or not self.frozen or pile is None or len(pile) < 2:
            return [None] * len(self.views)
        # By content, which is arbitrary as a draw is, and the order in which a bank holds them.
        rows = pile[np.argsort(self.dataset.hashes[pile], kind="stable")]
        kinds = [kind for kind in self._kinds(rows) if kind[0] == "weak"]
        key, known = (foundation_of(self.options, self.split), wanted, rows.tobytes(), *kinds), self.kept.near
        if key not in known:  # each trial of a search asks
            known[key] = [self._near(view, rows, kinds, wanted) for view in self.views]
        return known[key]

    def _near(self, view: View, rows: np.ndarray, kinds: list[Kind], count: int) -> np.ndarray:
        looks = functools.partial(self._looks, "neighbours", view, kinds=kinds)
        found = nearest(lambda some: sum(looks(some), torch.zeros(())), rows, count)
        near = np.zeros((len(self.dataset), found.shape[1]), dtype=np.int64)
        near[rows] = found
        return near

    def _looks(self, purpose: str, view: View, rows: np.ndarray, kinds: list[Kind]) -> Iterator[Tensor]:
        """See `priors.seen`; with its progress where no bank holds the features, and each look takes a while."""
        looks = seen(view.source, rows, kinds)
        if self.banks:
            yield from looks
            return
        with Screen(len(rows) * len(kinds), what=f"features of {view.name} for {purpose}", unit="image") as screen:
            for number, look in enumerate(looks, 1):
                screen.show(number * len(rows))
                yield look

    def _kinds(self, rows: np.ndarray) -> list[Kind]:
        """The views and draws of these rows that the training asks for, which a bank holds."""
        wanted = self.order.wanted(self.planned_steps)
        return [kind for kind, held in wanted.items() if np.isin(rows, held).all()]

    def steps(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """What is done in the warm-up, and after it."""
        return warmup_step, supervised_step if self.supervised else mpl_step

    def batches(self, of_views: list[Batches]) -> Callable[[int], Any]:
        """What a step sees: of the only view."""
        return of_views[0]

    def after_warmup(self, *, validated: bool) -> None:
        """What is measured once when the warm-up is over; `validated` as in `learn`."""

    def fill_bank(self) -> None:
        """Compute the features that training, test and calibration will ask for, all at once."""
        wanted = self.order.wanted(self.planned_steps) if self.frozen else {}
        by_folds = len(self.split.val) < ENOUGH_TO_FIT and self._calibration_folds()[0]
        held_out = [self.split.labeled] if by_folds else []
        wanted["eval", 0] = np.concatenate([self.split.val, self.split.test, *held_out])
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
            "precision": self.precisions(),
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

    def about_shares(self) -> dict[str, Any]:
        """How frequent the classes were taken to be among the unlabeled images, where that was used."""
        if not self.learning.distribution_alignment:
            return {}
        return {"class_shares": dict(zip(self.dataset.classes, self.class_shares.round(4).tolist(), strict=True))}

    def about_priors(self) -> dict[str, Any]:
        """The views whose heads learned along a prior's axes."""
        told = [view.name for view, axes in zip(self.views, self.axes, strict=True) if axes is not None]
        return {"views_with_prior": told}

    def about_neighbours(self) -> dict[str, Any]:
        """How many neighbours a target was read off: fewer than asked for in a small pile, 0 where there were none."""
        return {"neighbours": 0 if self.near[0] is None else self.near[0].shape[1]}

    def about_views(self) -> dict[str, Any]:
        """What the summary says of that."""
        return {}

    def restore(self, folder: Path) -> Progress:
        """Go on from `last.pt`, or from the beginning where there is none yet."""
        path = folder / "checkpoints" / "last.pt"
        if not path.is_file():
            return Progress()
        content = load_checkpoint(path)
        with layers_checked():
            progress = restore_progress(content, self.learners)
        before, now = content["model"].get("precision", {}).get("features"), self.precisions().get("features")
        if before is not None and before != now:
            warn(
                f"the run began with features in {before} and goes on with features in {now}, which differ a little; "
                "where that matters, train under another --name from the beginning"
            )
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
        results |= self.about_views() | self.about_shares() | self.about_priors() | self.about_neighbours()
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
        if self.knows_labels():
            return 0, f"the weights were fine-tuned on the labels that folds would hold out; {instead}"
        if rarest < 2:
            return 0, f"a class has one label only; {instead}"
        return min(asked or CALIBRATION_FOLDS, rarest), ""

    def knows_labels(self) -> bool:
        """Whether a backbone was given that has learned labels of this run, so that no fold can hold them out."""
        own = self.dataset.hashes[self.split.labeled]
        given = [] if self.options.cotraining.finetune_views else self.views  # else each fold tunes its own
        return any(bool(np.isin(own, view.backbone.learned).any()) for view in given)

    def _cross_fitted(self, count: int, *, warmup_only: bool = False) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Predictions [N, C] of labeled images by trainings that saw nothing of them, and their rows [N].

        Each is as long as the run itself, with its learning rates; with `warmup_only` it ends where the warm-up does.
        """
        parts, steps = [], self.schedule.warmup_steps if warmup_only else self.schedule.total_steps
        # Views that were tuned on the labeled images know what is held out: each fold tunes its own, and takes none
        # that a stopped run left.
        total = self.schedule.total_steps
        options = self.options.changed(resume=False, max_steps=total, num_epochs=None, patience=None)
        own_views = {foundation_of(options, self.split): self.views} if self.frozen else {}
        kept = Kept(own_views, self.kept.shares, self.kept.axes, self.kept.near)
        folds = folds_of(self.dataset, self.split, count, self.options.run.seed)
        what = "calibration of the views" if warmup_only else "calibration"
        with Screen(count * steps, what=what) as screen:
            for index, fold in enumerate(folds):

                def show(step: int, means: Mapping[str, float], done: int = index * steps) -> None:
                    screen.show(done + step)

                # As the test images are: not among the unlabeled ones either.
                fold = replace(fold, unlabeled=np.setdiff1d(fold.unlabeled, fold.val))
                training = type(self)(options, self.dataset, fold, kept=kept)
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
