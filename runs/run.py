"""`run(options) -> summary`: data, networks, features, training, test, and all that a run leaves behind.

Everything that can be wrong with the input is found before the run's folder is made or replaced.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..args import Options
from ..base.files import read_json, write_text
from ..base.tables import no_formula
from ..base.written_files import noted_in
from ..data import Dataset, ImagesChanged, Split, find_dataset, split_dataset, summary_table, write_split
from ..train import Hooks, Progress, Row
from ..utils import log_to, say, shown, warn
from .auto import auto_model
from .calibration import after_warmup
from .checkpoints import restore
from .evaluation import measure
from .finetuning import save_finetuned
from .folds import better_taught
from .prepare import drop_changed, fill_banks, filled, make_trainer, without_changed
from .resume import (
    check_classes,
    check_leaks,
    check_not_itself,
    check_same_images,
    inherit,
    load_run,
    resumed_options,
    with_ranges,
)
from .run_folder import RESULTS, going_on, run_folder
from .run_summary import results_table
from .trainer import Trainer
from .training import draw_samples, finish, show_networks, train
from .views import FeatureCache

# Beginnings of the names of what `--test_mode` and TensorBoard leave in a run's folder.
NOT_MADE_AGAIN = ("test_", "tensorboard/")

WriteRow = Callable[[Row], None]


def run(options: Options) -> dict[str, Any]:
    """Train a run, test it, and return the summary, which is also written. Raises UserError and TrainingFault."""
    began = time.monotonic()
    trainer = prepare(options)
    options = trainer.options
    if options.run.overwrite:
        trainer = filled(trainer)  # what can still go wrong with files and disks goes wrong before a run is deleted
    name, resume, overwrite = options.run.name or "", options.run.resume, options.run.overwrite
    folder = run_folder(name, options.recorded, resume=resume, overwrite=overwrite)
    trainer.options = options.changed(name=folder.name)
    return carry_out(trainer, folder, began)


def carry_out(trainer: Trainer, folder: Path, began: float) -> dict[str, Any]:
    """Train in this folder, from where it stopped if the run goes on; test, write and return the summary.

    Without images whose files change meanwhile: then it goes on from the last checkpoint.
    """
    with log_to(folder), going_on(folder):
        resumed = trainer.options.run.resume
        while True:
            try:
                return _carry_out(trainer, folder, began, resumed=resumed)
            except ImagesChanged:
                trainer, resumed = without_changed(trainer), True


def _carry_out(trainer: Trainer, folder: Path, began: float, *, resumed: bool) -> dict[str, Any]:
    options = trainer.options
    write_records(folder, trainer)
    if options.cotraining.finetune_views:
        save_finetuned(folder, trainer.views)
    if options.data.show_images:
        say(f"samples: {draw_samples(trainer, folder / 'samples.png')}")
    progress = restore(folder, trainer) if resumed else Progress()
    if resumed and trainer.is_over(progress) and has_ended(folder):
        say(f"{folder} has ended already: nothing is left to do")
        return read_json(folder / "summary.json", {str: object}, advice="remove it, and --resume makes it again")
    seconds = train(trainer, folder, progress)
    summary = finish(trainer, folder, progress, began, seconds)
    say(results_table(summary))
    say(f"page: {folder / 'report.html'}")
    say(f"results: {folder}")
    return summary


def has_ended(folder: Path) -> bool:
    """Whether a run has been tested and its page written since its last checkpoint, and all of it is still there.

    What other commands wrote into its folder, and curves for TensorBoard, can't be made again; a warning names them.
    """
    last, results, noted = "checkpoints/last.pt", ("summary.json", "report.html"), noted_in(folder)
    lost = [name for name, is_there in noted.items() if name.startswith(NOT_MADE_AGAIN) and not is_there]
    if lost:
        warn(f"{folder} lacks {', '.join(lost[:3])}, which --resume can't make again; a new run or test does")
    whole = all(is_there or name in lost for name, is_there in noted.items())
    if not whole or not {last, *results, "metrics.csv", "graphs.png", "checkpoints/best.pt"} <= noted.keys():
        return False
    return all((folder / name).stat().st_mtime >= (folder / last).stat().st_mtime for name in results)


def prepare(options: Options) -> Trainer:
    """Everything up to the first step, checked, without writing anything but features. Raises UserError."""
    if options.run.resume:
        options = resumed_options(options)
    loaded = load_run(options.mode) if options.mode.load_path else None
    if loaded is not None:
        options = inherit(options, loaded)
    dataset = find_dataset(options.data)
    if loaded is not None:
        check_classes(loaded, dataset)
        dataset = with_ranges(dataset, loaded)
    split = split_dataset(dataset, options.data, options.run.seed)
    chosen = auto_model(options.model, options.data, options.run, options.cotraining.views, dataset, split)
    options = options.changed(**chosen)
    if loaded is not None:
        check_leaks(loaded, dataset, split)
        check_not_itself(loaded, options.run)
    if options.run.resume:
        check_same_images(RESULTS / (options.run.name or ""), dataset, split)
    say(summary_table(dataset, split))
    while True:
        try:
            trainer = make_trainer(options, dataset, split, loaded)
        except ImagesChanged:
            dataset, split = drop_changed(dataset, split)
        else:
            show_networks(trainer)
            if advice := better_taught(trainer):
                say(advice)
            return trainer


def write_records(folder: Path, trainer: Trainer) -> None:
    """What the run learns from: its split, and the files that were left out."""
    write_split(folder / "split.csv", trainer.context.data, trainer.context.split)
    write_bad_files(folder, trainer.context.data)


def write_bad_files(folder: Path, dataset: Dataset) -> None:
    """bad_files.txt: the files that were left out, and why."""
    lines = [f"{no_formula(shown(path))}\t{no_formula(shown(reason))}\n" for path, reason in dataset.bad_files]
    write_text(folder / "bad_files.txt", "".join(lines))


# --- folds ------------------------------------------------------------------------------------------------------------


def fold_accuracy(
    options: Options,
    dataset: Dataset,
    split: Split,
    *,
    cache: FeatureCache | None = None,
    write: WriteRow | None = None,
) -> dict[str, float]:
    """Train and measure every model on the validation images of the split, which is never tested.

    One of `folds_of` is measured once, at the end. With `write`, which gets every epoch's row, the validation images
    are those of a run: they also choose each model's epoch, as they do there.
    """
    trainer = make_trainer(options, dataset, split, cache=cache)
    fill_banks(trainer)
    progress, validated = Progress(), write is not None

    def after_epoch(row: Row) -> bool:
        if write is not None:
            write(row)
        return False

    hooks = Hooks(after_warmup=after_warmup(trainer, validated=validated), after_epoch=after_epoch)
    trainer.learn(progress, hooks, validated=validated)
    if validated:
        trainer.take_best(progress)
    results = measure(trainer.predictions(split.val), dataset.labels[split.val], dataset.classes)
    return {name: result["accuracy"] for name, result in results.items()}
