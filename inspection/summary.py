"""All that an inspection found, and what inspect.json holds of it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..args import Data
from ..data import clean, split_dataset
from ..runs.summary import made_with, summary_header
from ..utils import UserError
from .files import RARE, InspectedFiles, counts_by_class, imbalance
from .findings import COLUMNS, KINDS, Finding
from .image_properties import ImageProperties
from .label_errors import LEAST_AGREEMENT, LabelErrors
from .near_duplicates import NearDuplicates


@dataclass(frozen=True)
class Inspection:
    """What was found. near_duplicates and label_errors: None where they could not be searched for.

    backbone: what made the features, "" without any. across_test: how many pairs of near-duplicates are on both sides
    of the test split that a run would draw, None where it could draw none. not_done: a sentence for each thing that
    could not be done.
    """

    files: InspectedFiles
    properties: ImageProperties
    backbone: str
    near_duplicates: NearDuplicates | None
    across_test: int | None
    label_errors: LabelErrors | None
    findings: Sequence[Finding]
    not_done: Sequence[str]


def pairs_across_test(files: InspectedFiles, found: NearDuplicates, data: Data, seed: int) -> int | None:
    """How many of the pairs a run with these options would have on both sides of its test split; None without one."""
    try:
        dataset = clean(data.data_dir, files.found, files.scanned)
        split = split_dataset(dataset, data, seed)
    except UserError:  # there are too few images for a run
        return None
    tested = dataset.hashes[split.test]
    one, other = (np.isin(files.dataset.hashes[rows], tested) for rows in found.pairs.T)
    return int((one != other).sum())


def summary_of(name: str, inspection: Inspection, threshold: float, seed: int) -> dict[str, Any]:
    """What inspect.json holds, and what the page is made from; plain lists and numbers.

    name: of the folder; threshold: --near_duplicate; seed: --seed.
    """
    files, near, errors = inspection.files, inspection.near_duplicates, inspection.label_errors
    counts = Counter(finding.kind for finding in inspection.findings)
    return {
        **summary_header(name),
        "data": files.dataset.name,
        "files": len(files.found.items),
        "images": len(files.dataset),
        "counts": counts_by_class(files),
        **inspection.properties.summary(),
        "features": inspection.backbone or None,
        "near_duplicates": None
        if near is None
        else {
            "threshold": threshold,
            "candidates": near.candidates,
            "pairs": len(near.pairs),
            "across_test": inspection.across_test,
        },
        "classifier_accuracy": None if errors is None else round(errors.accuracy, 4),
        "totals": {kind: counts[kind] for kind in KINDS},
        "warnings": _warnings(inspection, seed),
        "missing": list(inspection.not_done),
        "findings": [dict(zip(COLUMNS, dataclasses.astuple(f), strict=True)) for f in inspection.findings],
        **made_with(),
    }


def _warnings(inspection: Inspection, seed: int) -> list[str]:
    lines, errors = [], inspection.label_errors
    times = imbalance(inspection.files.dataset)
    if times >= RARE:
        lines.append(
            f"the largest class has {times:.1f} times the images of the smallest: for a rare one train with "
            "--recall CLASS=0.95, and label as images come (--label_split stratified)"
        )
    if inspection.across_test:
        lines.append(
            f"{inspection.across_test} near-duplicate pairs are on both sides of the test split of --seed {seed}"
        )
    if errors is not None and errors.accuracy < LEAST_AGREEMENT:
        lines.append(
            f"the classifier agrees with only {100 * errors.accuracy:.0f}% of the labels, so the likely wrong labels "
            "are uncertain"
        )
    return lines
