"""Whether labeled images can be held out from a training that is done again without them, and in how many folds."""

from __future__ import annotations

import numpy as np

from ..base.metrics import ENOUGH_TO_FIT
from ..base.tables import number_of
from ..data import unused_labels
from .trainer import Trainer

CALIBRATION_FOLDS = 3
SMALL_TEST = 100  # with fewer test images, the accuracy on the folds says more
REPEATS = 2  # of the folds, where their accuracy is asked for; a third time narrows the interval by 3% only


def calibration_folds(trainer: Trainer) -> tuple[int, str]:
    """How many folds to train on again; 0 with the reason."""
    asked = trainer.options.use.calibration_folds
    rarest = rarest_label(trainer)
    instead = f"give --val_percent so much that there are {ENOUGH_TO_FIT} validation images"
    if asked is None and not trainer.views.frozen:
        return (
            0,
            f"training {CALIBRATION_FOLDS} times more takes long: ask for it by --calibration_folds, or {instead}",
        )
    if asked == 0:
        return 0, "--calibration_folds 0"
    if trainer.loaded is not None:
        return 0, f"the loaded run has learned from the labeled images; {instead}"
    if knows_labels(trainer):
        return 0, f"the weights were fine-tuned on the labels that folds would hold out; {instead}"
    if rarest < 2:
        return 0, f"a class has one label only; {instead}"
    return min(asked or CALIBRATION_FOLDS, rarest), ""


def fold_repeats(trainer: Trainer) -> int:
    """How often the labels are dealt out into folds: again where the accuracy on them matters and costs little."""
    return REPEATS if len(trainer.context.split.test) < SMALL_TEST and trainer.views.frozen else 1


def better_taught(trainer: Trainer) -> str:
    """What is said before a training whose own small test costs labels, and measures less than folds do; "" if not."""
    data, split = trainer.context.data, trainer.context.split
    own = "test" in data.places or unused_labels(data, split)  # labels that nobody wants to learn from
    if own or not 0 < len(split.test) < SMALL_TEST or not calibration_folds(trainer)[0]:
        return ""
    kept = number_of(len(split.test), "labeled image is kept for a test", "labeled images are kept for a test")
    return f"{kept}, which says little; with --test_percent 0 they teach too, and the folds measure"


def rarest_label(trainer: Trainer) -> int:
    """How many labeled images the class with the fewest has."""
    return int(np.bincount(trainer.context.data.labels[trainer.context.split.labeled]).min())


def knows_labels(trainer: Trainer) -> bool:
    """Whether a backbone was given that has learned labels of this run, so that no fold can hold them out."""
    own = trainer.context.data.hashes[trainer.context.split.labeled]
    given = () if trainer.options.cotraining.finetune_views else trainer.views  # else each fold tunes its own
    return any(bool(np.isin(own, view.backbone.learned).any()) for view in given)
