"""A finished run tested again, on its own test images or on new ones."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from ..args import Options
from ..base.files import write_json
from ..data import Split, find_dataset
from ..runs.progress import results_table
from ..runs.resume import hashes_in, load_run, run_of, with_classes
from ..runs.setup import Setup
from ..utils import UserError, say, warn


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
    labeled, seen = dataset.labels >= 0, np.isin(dataset.hashes, hashes_in(loaded, "seen"))
    rows = np.flatnonzero(labeled & ~seen)
    if not len(rows):
        raise UserError(f"every labeled image under {dataset.name} was used in training; give new images to test on")
    nothing = np.zeros(0, dtype=np.int64)
    setup = Setup(stored, dataset, Split(nothing, nothing, nothing, rows), loaded)
    models = {name: setup.network(name, state) for name, state in loaded["models"].items()}
    folder = run_of(loaded["path"])
    say(f"testing {', '.join(models)} of {folder} on {len(rows)} images of {len(dataset.classes)} classes")
    if (labeled & seen).any():
        say(f"{(labeled & seen).sum()} more are left out: the run has seen them, labeled or not")
    results = {"val": {}, "test": setup.results(models, rows, folder, prefix="test_")}
    temperatures = loaded.get("temperatures", {})
    results["calibration"] = {"temperatures": temperatures} | setup.reliability(temperatures, folder, prefix="test_")
    seconds = {"total": time.monotonic() - began, "training": 0.0}
    summary = setup.summary(folder, results, loaded.get("best_epoch", {}), seconds)
    write_json(folder / "test_summary.json", summary)
    say(results_table(summary))
    say(f"results: {folder / 'test_summary.json'}")
    return summary
