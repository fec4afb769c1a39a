"""A finished run tested again, on its own test images or on new ones."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..args import Mode
from ..base.files import remove_parts, write_json
from ..base.metrics import wilson_interval
from ..base.tables import number_of, percent
from ..data import find_dataset
from ..runs.checkpoints import used_images
from ..runs.context import make_context, only
from ..runs.evaluation import confusion_of, draw_confusions, measure, predict_rows, report_reliability
from ..runs.page_warnings import misleading
from ..runs.resume import hashes_in, load_run, run_of, with_classes, with_ranges
from ..runs.run_summary import results_table, run_summary
from ..runs.trained_models import restored_models
from ..runs.views import make_views
from ..utils import UserError, say, shown, warn


def test(mode: Mode, given: Mapping[str, Any]) -> dict[str, Any]:
    """Test a loaded run, and write into its folder: `test_summary.json` and `test_<model>_CM.png`.

    Every labeled image under `--data_dir` that the run has not learned from is tested: with the run's own data that is
    its test split, with new images it is all of them. No choice here can let a training image in. given: the options
    that replace those of the run, by name.
    """
    began = time.monotonic()
    loaded = load_run(replace(mode, load_best=True))  # what a prediction takes too
    if "data_dir" in given:  # a table of labels belongs to the folder that it was made for
        given = {"labels_csv": (), **given}
    stored = loaded["stored"].changed(model_name=loaded["model"]["name"], **given)
    dataset = with_ranges(with_classes(find_dataset(stored.data, for_test=True), loaded), loaded)
    labeled, seen = dataset.labels >= 0, np.isin(dataset.hashes, hashes_in(loaded, "seen"))
    rows = np.flatnonzero(labeled & ~seen)
    if not len(rows):
        raise UserError(f"every labeled image under {dataset.name} was used in training; give new images to test on")
    context = make_context(stored.run, dataset, only(test=rows))
    models = restored_models(
        loaded, stored.model, seed=context.seed, device=context.device, precision=context.precision.features
    )
    views = make_views(models.views, stored.run, stored.data.flip, context, frozen=models.frozen)
    folder = run_of(loaded["path"])
    remove_parts(folder)
    images = number_of(len(rows), "image")
    say(f"testing {', '.join(models.heads)} of {folder} on {images} of {len(dataset.classes)} classes")
    if (labeled & seen).any():
        more = number_of((labeled & seen).sum(), "more is", "more are")
        say(f"{more} left out, which the run has seen, labeled or not")
    tested, labels, temperatures = predict_rows(models, views, rows), dataset.labels[rows], models.temperatures
    decided = models.decision.of_models(tested, temperatures, dataset.classes)
    draw_confusions(folder, decided, labels, dataset.classes, prefix="test_")
    reliability = report_reliability(folder / "test_reliability.png", tested, labels, temperatures)
    results = {
        "val": {},
        "test": measure(decided, labels, dataset.classes),
        "calibration": {"temperatures": temperatures} | reliability,
        "best_epoch": dict(loaded.get("best_epoch", {})),
    }
    seconds = {"total": time.monotonic() - began, "training": 0.0}
    used = used_images(context, views, loaded)
    summary = run_summary(folder.name, mode.name, context, views, used, results, seconds)
    judge = models.name
    counted = confusion_of(decided[judge], labels, len(dataset.classes))
    sought = models.decision.thresholds.get(judge, ())
    if sought:
        summary["called"] = {name: called(counted, dataset.classes.index(name)) for name in sought}
    write_json(folder / "test_summary.json", summary)
    say(results_table(summary))
    for name, found in summary.get("called", {}).items():
        low, high = (percent(bound) for bound in found["ci95"])
        share = f"{percent(found['precision'])} ({low} to {high}), where {percent(found['share'])} of all images are"
        say(shown(f"of {found['images']} images called {name}, {found['right']} are: {share}"))
    for line in misleading(judge, counted, dataset.classes, sought):
        warn(line)
    say(f"results: {folder / 'test_summary.json'}")
    return summary


def called(counted: np.ndarray, place: int) -> dict[str, Any]:
    """How many images are called a class, by counts [C, C]: {images, right, precision, its ci95, the class's share}."""
    images, right = int(counted[:, place].sum()), int(counted[place, place])
    precision = right / images if images else 0.0
    share = float(counted[place].sum() / max(1, counted.sum()))
    ci95 = wilson_interval(right, images) if images else [0.0, 1.0]
    return {"images": images, "right": right, "precision": precision, "ci95": ci95, "share": share}
