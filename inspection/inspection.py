"""Finds what is wrong with a data set before anything learns from it: `MPL.py --inspect`.

`inspect` reads the files, computes a backbone's features where one is available, lets each detector look, and leaves a
table on the screen, inspect.csv (a row a finding), inspect.json, a page and pictures. Nothing is changed or removed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from ..args import Data, Options, Study
from ..backbones.hub import WeightsMissing
from ..base.files import write_json
from ..base.progress import ProgressBar
from ..base.tables import number_of
from ..data import Dataset
from ..features.bank import FeatureBank
from ..features.nearest import Neighbours, nearest
from ..reports.page import write_report
from ..runs.auto import auto_model
from ..runs.context import RunContext, make_context, only
from ..runs.prepare import prepare_views
from ..runs.run_folder import run_folder
from ..runs.views import Views
from ..utils import log_to, peak_memory_bytes, say
from ..visualization import plain
from .files import InspectedFiles, class_findings, counts_by_class, read_files, unreadable_files
from .findings import count_table, in_order, sections, table, write_csv
from .identical_files import identical_files
from .image_properties import image_properties, odd_files
from .label_errors import FOLDS, LabelErrors, find_label_errors, label_error_findings, labels_to_judge
from .near_duplicates import (
    NEIGHBOURS,
    NearDuplicates,
    duplicate_groups,
    find_near_duplicates,
    near_duplicate_findings,
)
from .outliers import outlier_findings
from .pictures import draw_pictures, thumbnails
from .summary import Inspection, pairs_across_test, summary_of

LEAST_SIDE = 24  # pixels of images that come as an array, below which edges can't tell near-duplicates apart


def inspect(options: Options) -> dict[str, Any]:
    """Inspect the data set of the options and return what inspect.json holds. Raises UserError where none is found."""
    began = time.monotonic()
    files = read_files(options.data)
    say(count_table(files.dataset.name, len(files.found.items), len(files.dataset), counts_by_class(files)))
    chosen = auto_model(options.model, options.data, options.run, (), files.dataset, split=None)
    options = options.changed(**chosen)
    context = make_context(options.run, files.dataset, only(unlabeled=np.arange(len(files.dataset))))
    make_views = partial(prepare_views, options.changed(unfreeze=None), context)
    found = look_for_faults(files, context, make_views, options.data, options.model.model_name, options.study)
    images = thumbnails(found.files, found.findings)
    folder = run_folder(options.run.name or "", options.recorded, overwrite=options.run.overwrite)
    with log_to(folder):
        pictures = draw_pictures(folder, found.files, found.properties, found.findings, images)
        summary = summary_of(folder.name, found, options.study.near_duplicate, options.run.seed) | {
            "pictures": pictures,
            "seconds": round(time.monotonic() - began, 3),
            "peak_memory_bytes": peak_memory_bytes(context.device),
        }
        write_csv(folder / "inspect.csv", found.findings)
        write_json(folder / "inspect.json", summary)
        lead = f"Inspection of {found.files.dataset.name}"
        write_report(folder / "report.html", folder.name, sections(summary, images), lead=lead)
        say(table(summary))
        say(f"results: {folder} ({', '.join(['inspect.csv', 'inspect.json', 'report.html', *pictures])})")
    return summary


def look_for_faults(
    files: InspectedFiles,
    context: RunContext,
    make_views: Callable[[], Views],
    data: Data,
    model_name: str | None,
    study: Study,
) -> Inspection:
    """Let every detector look at the files; `make_views` makes what computes their features. Writes nothing."""
    device, seed, not_done = context.device, context.seed, list[str]()
    dataset = files.dataset
    properties = image_properties(dataset)
    features = compute_features(dataset, model_name, make_views, not_done)
    neighbours = None if features is None else nearest(torch.from_numpy(features.values), NEIGHBOURS, device=device)
    threshold = study.near_duplicate
    near = _near_duplicates(dataset, properties.thumbnails, neighbours, threshold, device, not_done)
    errors = None if features is None else _label_errors(dataset, features, near, seed, not_done)
    findings = in_order(
        [
            *unreadable_files(files),
            *identical_files(files, errors),
            *(near_duplicate_findings(files, near) if near is not None else ()),
            *(label_error_findings(files, errors) if errors is not None else ()),
            *(outlier_findings(files, neighbours) if neighbours is not None else ()),
            *odd_files(files, properties),
            *class_findings(files),
        ]
    )
    across = None if near is None else pairs_across_test(files, near, data, seed)
    backbone = "" if features is None else features.backbone
    return Inspection(files, properties, backbone, near, across, errors, findings, not_done)


# --- features ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """Features float32 [N, D] of all rows, what made them, and whether that has learned labels of these images."""

    values: np.ndarray
    backbone: str
    knows_labels: bool = False


def compute_features(
    dataset: Dataset, model_name: str | None, make_views: Callable[[], Views], not_done: list[str]
) -> Features | None:
    """Features of every row; None where there are no images, or no pretrained backbone, which `not_done` then says.

    model_name: of the backbone, None where the user names none; make_views: builds it.
    """
    rows = np.arange(len(dataset))
    if not len(rows) or dataset.kind == "points":
        return None
    if dataset.array is not None and dataset.kind == "digits" and model_name is None:
        pixels = dataset.array[np.array(dataset.sources)][..., 0].reshape(len(rows), -1)
        return Features(pixels.astype(np.float32), "pixels")
    without = "outliers, likely wrong labels and cropped or mirrored near-duplicates"
    try:
        views = make_views()
    except WeightsMissing as error:
        not_done.append(f"{without}: {error}")
        return None
    view = views.first
    if not views.frozen:
        hint = "give a pretrained --model_name, or --weights FILE"
        not_done.append(f"{without}: {view.name} has random weights, whose features mean nothing; {hint}")
        return None
    wanted = {("eval", 0): rows}
    if isinstance(view.source, FeatureBank) and (missing := view.source.missing(wanted)):
        with ProgressBar(missing, what="features", unit="image") as bar:
            view.source.fill(wanted, show=bar.show)
    values = torch.cat([part.cpu() for part in view.source.inputs(rows)]).numpy()
    return Features(values, view.name, bool(np.isin(dataset.hashes, view.backbone.learned).any()))


# --- detectors that may not be possible -------------------------------------------------------------------------------


def _near_duplicates(
    dataset: Dataset,
    grey: np.ndarray,
    neighbours: Neighbours | None,
    threshold: float,
    device: torch.device,
    not_done: list[str],
) -> NearDuplicates | None:
    if dataset.kind == "points" or 0 < dataset.native_size < LEAST_SIDE:
        not_done.append("near-duplicates: with so few pixels all images of a class are similar")
        return None
    found = find_near_duplicates(grey, neighbours, threshold, device)
    if found.cut_off:
        not_done.append(f"near-duplicates: only the {found.candidates} most similar pairs were compared")
    return found


def _label_errors(
    dataset: Dataset, features: Features, near: NearDuplicates | None, seed: int, not_done: list[str]
) -> LabelErrors | None:
    if features.knows_labels:
        not_done.append(f"likely wrong labels: {features.backbone} was fine-tuned on these very labels")
        return None
    pairs = near.pairs if near is not None else np.zeros((0, 2), dtype=np.int64)
    groups = duplicate_groups(pairs, len(dataset))
    labels, too_few = labels_to_judge(dataset.labels, groups)
    not_done += [
        f"wrong labels of {plain(dataset.classes[label])}: "
        + number_of(count, "image, near-duplicates counted once, is", "images, near-duplicates counted once, are")
        + " too few"
        for label, count in too_few.items()
    ]
    if len(np.unique(labels[labels >= 0])) < 2:
        not_done.append(f"likely wrong labels: needs two classes of {FOLDS} images or more")
        return None
    return find_label_errors(features.values, labels, groups, len(dataset.classes), seed)
