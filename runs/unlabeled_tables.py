"""What a finished run says of its unlabeled images: `unlabeled.csv`, and in `label_next.csv` which to label next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..base.files import write_text
from ..base.metrics import calibrated, disagreement
from ..base.tables import csv_text
from ..base.written_files import LIST, is_as_written, written_in
from ..data import Dataset
from ..features.bank import FeatureBank
from ..features.label_choice import MOST, most_useful
from ..features.sources import normalized_features
from ..utils import generator, warn
from .context import RunContext
from .decision import Decision
from .evaluation import Predictions, predict_rows
from .trained_models import TrainedModels
from .views import Views

TABLE, NEXT = "unlabeled.csv", "label_next.csv"
TO_LABEL, TOP = 50, 5


@dataclass(frozen=True)
class UnlabeledPredictions:
    """What the models say of the unlabeled images.

    rows: int64 [N] of the data set; probabilities: float32 [N, C], calibrated, of the model that is used; decided:
    int64 [N], the classes by them; apart: float64 [N], how far the models disagree; distance: float64 [N], 1 - cosine
    to the nearest labeled image, None where no features are at hand; chosen: positions among the rows, of the images to
    label next.
    """

    rows: np.ndarray
    probabilities: np.ndarray
    decided: np.ndarray
    apart: np.ndarray
    distance: np.ndarray | None
    chosen: np.ndarray


def unlabeled_predictions(models: TrainedModels, views: Views, rows: np.ndarray) -> Predictions:
    """Probabilities [N, C] of each model and the ensemble, from features of the training where a bank has them."""
    weak = {("weak", 0): rows}
    if views.frozen and all(not bank.missing(weak) for bank in views.banks) and len(views.banks) == len(views):
        return models.predict(lambda name: views.of(name).source.inputs(rows, "weak"))
    return predict_rows(models, views, rows)


def predict_unlabeled(
    models: TrainedModels, views: Views, context: RunContext, temperatures: dict[str, float], decision: Decision
) -> UnlabeledPredictions | None:
    """What the models say of the unlabeled images; None where there are none."""
    split = context.split
    rows = np.setdiff1d(split.unlabeled, split.labeled)
    if not len(rows) or context.data.kind == "points":
        return None
    predicted = calibrated(unlabeled_predictions(models, views, rows), temperatures)
    probabilities, apart = predicted[models.name], disagreement(predicted, models.heads)
    decided = decision.of_model(models.name, probabilities, context.data.classes)
    # A label would not help an image that is filed under two classes.
    in_conflict = {path for group in context.data.conflicts for path in group}
    useful = np.array([context.data.paths[row] not in in_conflict for row in rows.tolist()], dtype=bool)
    source = views.first.source
    bank = source if isinstance(source, FeatureBank) else None
    everything = np.concatenate([rows, split.labeled])
    if bank is None or bank.missing({("weak", 0): everything}):
        least_sure = np.argsort(probabilities.max(axis=1), kind="stable")
        chosen = least_sure[useful[least_sure]][:TO_LABEL]
        return UnlabeledPredictions(rows, probabilities, decided, apart, None, chosen)
    labeled = generator(context.seed, "label next", "labeled").permutation(split.labeled)[:MOST]
    known = normalized_features(bank, labeled, "weak").numpy()
    some = np.sort(generator(context.seed, "label next").permutation(len(rows))[:MOST])
    some = some[useful[some]]
    features = normalized_features(bank, rows[some], "weak").numpy()
    chosen = most_useful(probabilities[some], features, known, TO_LABEL, decided[some])
    return UnlabeledPredictions(rows, probabilities, decided, apart, _distances(bank, rows, known), some[chosen])


def _distances(bank: FeatureBank, rows: np.ndarray, known: np.ndarray) -> np.ndarray:
    """float64 [N]: 1 - cosine of each row to the nearest of the known features [L, D], part by part."""
    known = known / np.linalg.norm(known, axis=1, keepdims=True)
    parts = []
    for start in range(0, len(rows), MOST):
        features = normalized_features(bank, rows[start : start + MOST], "weak").numpy()
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        parts.append(1 - (features @ known.T).max(axis=1))
    return np.concatenate(parts)


def write_unlabeled(folder: Path, dataset: Dataset, found: UnlabeledPredictions) -> None:
    """Write both tables, the one to label where a label would help.

    One that a person has changed stays as it is, and a warning says so.
    """
    cells = [_row(dataset, found, place) for place in range(len(found.rows))]
    ranks = [f"{what}{rank}" for rank in range(1, min(TOP, len(dataset.classes)) + 1) for what in ("top", "p")]
    head = ["path", "prediction", "probability", *ranks, "disagreement", "distance_to_labels"]
    write_text(folder / TABLE, csv_text([head, *cells]))
    if not len(found.chosen):
        return
    chosen = ([cells[i][0], "", cells[i][1], cells[i][2], *cells[i][-2:]] for i in found.chosen.tolist())
    text = csv_text([["path", "label", "likely", "probability", *head[-2:]], *chosen])
    if _is_edited(folder / NEXT, text):
        warn(f"{folder / NEXT} was edited since it was written, so it stays as it is")
    else:
        write_text(folder / NEXT, text)


def _row(dataset: Dataset, found: UnlabeledPredictions, place: int) -> Sequence[str]:
    probabilities = found.probabilities[place]
    order = np.argsort(-probabilities, kind="stable")[:TOP].tolist()
    ranks = [cell for k in order for cell in (dataset.classes[k], f"{probabilities[k]:.6f}")]
    distance = "" if found.distance is None else f"{found.distance[place]:.6f}"
    decided = found.decided[place]
    first = [dataset.classes[decided], f"{probabilities[decided]:.6f}"]
    return [dataset.paths[found.rows[place]], *first, *ranks, f"{found.apart[place]:.6f}", distance]


def _is_edited(table: Path, text: str) -> bool:
    """Whether a table is there that holds something else than what a run wrote into it, or would write now."""
    if not table.is_file() or table.read_bytes() == text.encode():
        return False
    written = written_in(table.parent) if (table.parent / LIST).is_file() else {}
    return not is_as_written(table, written.get(table.name, set()))
