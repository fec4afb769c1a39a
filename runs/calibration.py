"""How sure the models are, made to say how often they are right: temperatures, on images that were held out.

On the validation images where there are enough of them; else on labeled images that trainings without them predict,
which also say how good a run is whose test is small.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..base.metrics import ENOUGH_TO_FIT, cross_validated_interval, fit_temperatures
from ..base.progress import ProgressBar
from ..data import folds_of
from ..train import Hooks, Progress, TrainingFault
from ..utils import UserError, key, warn
from .evaluation import measure
from .folds import CALIBRATION_FOLDS, calibration_folds, fold_repeats, knows_labels, rarest_label
from .prepare import fill_banks, make_trainer, views_key
from .trainer import Trainer
from .views import FeatureCache

# A head at the end of its warm-up is unsure of most. A temperature that corrects this and stays to the end, when the
# head has long become sure by itself, lets wrong labels pass (docs/results.md).
SMALLEST_TEMPERATURE = 1.0
NO_ROWS = np.zeros(0, dtype=np.int64)
# A few held-out images that are nearly all right would make 99.9% of 98%: that so few are wrong, they can't show.
ENOUGH_TO_SHARPEN = 100
LEAST_DRAWN = 10  # labels that nobody chose, to leave out those that a run asked for


# --- at the end of a run ----------------------------------------------------------------------------------------------


class HeldOut(NamedTuple):
    """Images of the run that its models have not learned from, as models like them predict them.

    method: validation, cross-fitted or none; predictions: {name: float32 [N, C]}, not calibrated; labels: int64 [N];
    folds: how many trainings predicted them, 0 where it was the run's own; repeats: how often each image is there,
    dealt out into other folds; reason: why there are none; rows: int64 [N] of the data set; asked: how many labels that
    a run asked for were left out, since they are harder than other images.
    """

    method: str
    predictions: Mapping[str, np.ndarray]
    labels: np.ndarray
    folds: int = 0
    reason: str = ""
    repeats: int = 1
    rows: np.ndarray = NO_ROWS
    asked: int = 0

    @property
    def images(self) -> int:
        """How many different ones they are: in the rows, all of them come once before any comes again."""
        return len(self.labels) // self.repeats

    def once(self) -> HeldOut:
        """The same with each image once, as the first deal has it."""
        predictions = {name: p[: self.images] for name, p in self.predictions.items()}
        labels, rows = self.labels[: self.images], self.rows[: self.images]
        return self._replace(predictions=predictions, labels=labels, rows=rows, repeats=1)


def held_out(trainer: Trainer) -> HeldOut:
    """The validation images where they are enough, else the labeled ones by folds; the test takes no part."""
    rows, labels = trainer.context.split.val, trainer.context.data.labels
    if len(rows) >= ENOUGH_TO_FIT:
        return HeldOut("validation", trainer.predictions(rows), labels[rows], rows=rows)
    count, reason = calibration_folds(trainer)
    repeats = fold_repeats(trainer)
    if count:
        try:
            predictions, rows = cross_fitted(trainer, count, repeats=repeats)
        except (TrainingFault, UserError) as error:  # of a fold, which is smaller: the run itself is whole
            count, reason = 0, str(error)
    if not count:
        return HeldOut("none", {}, labels[:0], reason=reason)
    drawn = drawn_at_random(trainer, rows)
    asked = int((~drawn).sum()) // repeats
    predictions, rows = {name: p[drawn] for name, p in predictions.items()}, rows[drawn]
    return HeldOut("cross-fitted", predictions, labels[rows], folds=count, repeats=repeats, rows=rows, asked=asked)


def drawn_at_random(trainer: Trainer, rows: np.ndarray) -> np.ndarray:
    """bool [N]: which held-out rows say how good the models are on any images, all where too few would be left.

    Not those that a run asked for: it was unsure of them.
    """
    data = trainer.context.data
    drawn = ~np.isin(rows, data.asked)
    counts = np.bincount(data.labels[np.unique(rows[drawn])], minlength=len(data.classes))
    if drawn.all() or (counts.min() and counts.sum() >= LEAST_DRAWN):
        return drawn
    warn(
        "the folds measure also on images whose labels a run asked for, since too few others are labeled; these are "
        "harder than others, so the models are better than the figures"
    )
    return np.ones(len(rows), dtype=bool)


def calibrate(held: HeldOut) -> dict[str, Any]:
    """Temperatures of the models and the ensemble, and how they were found.

    Returns {method, images, temperatures} and, by method, folds or the reason why there are none.
    """
    how: dict[str, Any] = {"method": held.method}
    how |= {"folds": held.folds} if held.folds else {}
    how |= {"reason": held.reason} if held.method == "none" else {}
    more = {"repeats": held.repeats} if held.repeats > 1 else {}
    temperatures = fit_temperatures(held.predictions, held.labels, **more)
    if held.images < ENOUGH_TO_SHARPEN:
        temperatures = {name: max(1.0, temperature) for name, temperature in temperatures.items()}
    return {**how, "images": held.images, "temperatures": temperatures}


def cross_validation(held: HeldOut, decided: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, Any]:
    """How good the models are by what they decided on the labeled images that folds held out.

    It is a little lower than that of the run's models, who learn from all of them. Returns {folds, repeats, images,
    models}, and `asked` where labels were left out, the models as `measure` does, with an interval for folds; {} where
    there are no folds.
    """
    if not held.folds:
        return {}
    models = measure(decided, held.labels, classes)
    for result in models.values():
        result["ci95"] = cross_validated_interval(result["accuracy"], held.images, held.folds, held.repeats)
    asked = {"asked": held.asked} if held.asked else {}
    return {"folds": held.folds, "repeats": held.repeats, "images": held.images, **asked, "models": models}


def cross_fitted(
    trainer: Trainer, count: int, *, repeats: int = 1, warmup_only: bool = False
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Predictions [repeats * N, C] of labeled images by trainings that saw nothing of them, and their rows.

    Each is as long as the run itself, with its learning rates; with `warmup_only` it ends where the warm-up does. Only
    the temperatures between views, a number each, are those of the run, which all labels took part in.

    repeats: how often the N images are dealt out into folds, each time otherwise.
    """
    schedule, context = trainer.schedule, trainer.context
    parts, steps = [], schedule.warmup_steps if warmup_only else schedule.total_steps
    # Views that were tuned on the labeled images know what is held out: each fold tunes its own, and takes none that a
    # stopped run left.
    options = trainer.options.changed(
        resume=False, recall=(), max_steps=schedule.total_steps, num_epochs=None, patience=None
    )
    own_views = {views_key(options, context.split): trainer.views} if trainer.views.frozen else {}
    cache = FeatureCache(own_views, trainer.cache.computed)
    seeds = [context.seed, *(key(context.seed, "folds", number) for number in range(1, repeats))]
    folds = [fold for seed in seeds for fold in folds_of(context.data, context.split, count, seed)]
    by_view = trainer.algorithm.by_view
    temperatures = {learner.name: float(learner.temperature) for learner in trainer.learners}
    what = "calibration of the views" if warmup_only else f"calibration by {len(folds)} trainings"
    with ProgressBar(len(folds) * steps, what=what) as bar:
        for index, fold in enumerate(folds):

            def show(step: int, means: Mapping[str, float], done: int = index * steps) -> None:
                bar.show(done + step)

            # As the test images are: not among the unlabeled ones either.
            fold = replace(fold, unlabeled=np.setdiff1d(fold.unlabeled, fold.val))
            training = make_trainer(options, context.data, fold, cache=cache)
            if warmup_only:
                training.schedule = replace(training.schedule, warmup_steps=steps, total_steps=steps)
            fill_banks(training)
            like_ours = functools.partial(set_temperatures, training, temperatures) if by_view else lambda: None
            training.learn(Progress(), Hooks(after_warmup=like_ours, show=show), validated=False)
            parts.append(training.predictions(fold.val))  # its views may be its own
    predictions = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return predictions, np.concatenate([fold.val for fold in folds])


# --- between the warm-up and co-training ------------------------------------------------------------------------------


def after_warmup(trainer: Trainer, *, validated: bool = True) -> Callable[[], None]:
    """What is done once between the warm-up and the rest: in co-training the views are calibrated."""
    return (
        functools.partial(calibrate_views, trainer, validated=validated) if trainer.algorithm.by_view else lambda: None
    )


def calibrate_views(trainer: Trainer, *, validated: bool = True) -> None:
    """Fit each view's temperature, once, so that it speaks to the others no surer than it is right.

    validated: whether the validation images may take part.
    """
    set_temperatures(trainer, view_temperatures(trainer, validated=validated))


def set_temperatures(trainer: Trainer, temperatures: Mapping[str, float]) -> None:
    """Set the temperature of each view by its name; 1 where there is none."""
    for learner in trainer.learners:
        learner.calibrate(max(SMALLEST_TEMPERATURE, temperatures.get(learner.name, 1.0)))


def view_temperatures(trainer: Trainer, *, validated: bool) -> dict[str, float]:
    """Temperatures by view, from validation images where there are enough, else from folds; none where neither do."""
    rows, labels = trainer.context.split.val, trainer.context.data.labels
    if not trainer.schedule.warmup_steps:
        return {}
    if validated and len(rows) >= ENOUGH_TO_FIT:
        return fit_temperatures(trainer.predictions(rows), labels[rows])
    rarest = rarest_label(trainer)
    # Views that were fine-tuned would have to be so again for each fold, within the folds of the end too.
    tuned = trainer.options.cotraining.finetune_views or knows_labels(trainer)
    if rarest < 2 or tuned or trainer.options.use.calibration_folds == 0:
        return {}
    try:
        predicted, rows = cross_fitted(trainer, min(CALIBRATION_FOLDS, rarest), warmup_only=True)
    except (TrainingFault, UserError) as error:  # of a fold, which is smaller: the run itself can go on
        warn(f"the views' probabilities are not calibrated after the warm-up: {error}")
        return {}
    return fit_temperatures(predicted, labels[rows])
