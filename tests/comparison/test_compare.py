"""The comparison of methods: what it leaves, what all methods share, and that it goes on after a kill."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pages import Page
from runs import FROZEN, MOONS, ROOT, Moment, Outcome, killed, make_data, run, started
from transfermpl import args
from transfermpl.base.metrics import paired_difference
from transfermpl.comparison import compare, task
from transfermpl.comparison.baselines import BASELINES
from transfermpl.comparison.methods import METHODS
from transfermpl.comparison.task import Task
from transfermpl.data import find_dataset, split_dataset
from transfermpl.features import bank
from transfermpl.runs.trainer import Trainer
from transfermpl.utils import UserError

TRAINED = [method.name for method in METHODS]
SHORT = (*MOONS, "--max_lr", 0.01)
IMAGES = (*FROZEN, "--num_labels", 9, "--unlabeled_batch_size", 15, "--max_steps", 4)


@pytest.fixture(scope="module")
def moons(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return started(tmp_path_factory.mktemp("moons"), "--compare", "--repeat", 2, "--seed", 4, *SHORT)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    cwd = tmp_path_factory.mktemp("images")
    make_data(cwd / "bilder für $alle$")
    return started(cwd, "--compare", "--repeat", 2, "--data_dir", "bilder für $alle$", *IMAGES)


def rows(outcome: Outcome) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in outcome.summary()["comparison"]}


# --- what a comparison leaves -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_model_of_every_method_has_a_row(moons: Outcome, images: Outcome) -> None:
    pairs = [f"{method}: {model}" for method in ("UDA", "MPL") for model in ("teacher", "student", "ensemble")]
    pairs += [f"MPL with switched roles: {model}" for model in ("model_1", "model_2", "ensemble")]
    pairs += [f"fine-tuned student: {model}" for model in ("student", "ensemble")]
    for outcome, what in ((moons, "points"), (images, "features")):
        told = what == "features"  # of points the unlabeled ones say nothing before the training
        cheap = [f"{name} on {what}" for name, baseline in BASELINES.items() if told or not baseline.informed]
        assert list(rows(outcome)) == ["labels only", *pairs, *cheap]


def test_a_row_is_paired_with_labels_only(moons: Outcome) -> None:
    base = rows(moons)["labels only"]["accuracies"]
    for row in rows(moons).values():
        assert set(row) == {"method", "accuracies", "mean", "std", "difference", "ci95"}
        assert len(row["accuracies"]) == 2
        assert row["mean"] == pytest.approx(np.mean(row["accuracies"]))
        assert row["std"] == pytest.approx(np.std(row["accuracies"], ddof=1))
        difference, interval = paired_difference(row["accuracies"], base)
        assert row["difference"] == pytest.approx(difference)
        assert row["ci95"] == (pytest.approx(interval) if np.isfinite(interval).all() else None)


def test_the_summary_says_what_was_compared(moons: Outcome) -> None:
    summary = moons.summary()
    assert summary["mode"] == "compare"
    assert summary["seeds"] == [4, 5]
    assert summary["labels_used"] == summary["dataset"]["images"]["labeled"] == 24
    assert summary["dataset"]["images"]["test"] == 200
    assert {"name", "seed", "command", "seconds", "versions", "commit", "advice"} <= set(summary)


def test_table_picture_and_sentence(moons: Outcome) -> None:
    text = (moons.folder() / "comparison.csv").read_text(encoding="utf-8")
    table = list(csv.DictReader(io.StringIO(text)))
    assert [row["method"] for row in table] == list(rows(moons))
    for row in table:
        accuracies = [float(row[f"seed_{seed}"]) for seed in (4, 5)]
        assert accuracies == rows(moons)[row["method"]]["accuracies"]
        ends = [float(row[name]) for name in ("ci95_low", "ci95_high") if row[name]]
        assert ends == (rows(moons)[row["method"]]["ci95"] or [])
    with Image.open(moons.folder() / "comparison.png") as picture:
        assert min(picture.size) > 300
    assert moons.summary()["advice"] in moons.out
    assert moons.summary()["advice"] in Page(moons.folder() / "report.html").words
    assert f"| MPL: ensemble                     | {100 * rows(moons)['MPL: ensemble']['mean']:.1f}%" in moons.out


@pytest.mark.slow
def test_what_lies_in_the_folder(images: Outcome) -> None:
    folder = images.folder()
    assert {path.name for path in folder.iterdir()} == {
        "bad_files.txt", "commandline_args.txt", "comparison.csv", "comparison.png", "journal.json", "seed-0", "seed-1",
        "report.html", "run.log", "summary.json", "written.txt",
    }  # fmt: skip
    assert {path.name for path in (folder / "seed-1").iterdir()} == {
        "split.csv", "labels-only", "uda", "mpl", "mpl-with-switched-roles", "fine-tuned-student",
    }  # fmt: skip
    assert not list(folder.rglob("*.pt"))
    assert not list(folder.rglob(".part-*"))


# --- same splits, same options, one test ------------------------------------------------------------------------------

ALONE = {
    "labels only": ["--finetune_mode"],
    "UDA": ["--mpl_weight", 0],
    "MPL": [],
    "MPL with switched roles": ["--switch_mode"],
}


@pytest.mark.slow
def test_each_method_is_the_run_that_one_would_start_alone(moons: Outcome, tmp_path: Path) -> None:
    found = rows(moons)

    def same_as(method: str, alone: dict[str, Any]) -> None:
        for model, result in alone.items():
            name = method if len(alone) == 1 else f"{method}: {model}"
            if name in found:
                assert found[name]["accuracies"][1] == result["accuracy"], name

    for method, options in ALONE.items():
        alone = run("--name", "mpl", "--overwrite", *SHORT, "--seed", 5, *options, cwd=tmp_path)
        same_as(method, alone.summary("mpl")["test"])
        if method == "MPL":
            line = ("--finetune_mode", "--load_best", "--load_path", "mpl", "--max_lr", 0.01, "--max_steps", 12)
            tuned = run("--name", "tuned", *line, cwd=tmp_path)
            assert found["MPL: teacher"]["accuracies"][1] == tuned.summary("tuned")["test"]["teacher"]["accuracy"]
            same_as("fine-tuned student", tuned.summary("tuned")["test"])


@pytest.mark.slow
def test_methods_without_unlabeled_images_learn_as_long_as_the_others(tmp_path: Path) -> None:
    line = ("--data_dir", "moons", "--unlabeled_batch_size", 200, "--num_epochs", 3, "--warmup_epoch_num", 1)
    outcome = started(tmp_path, "--compare", "--repeat", 1, *line)
    for method in ("labels-only", "mpl", "fine-tuned-student"):
        metrics = (outcome.folder() / "seed-0" / method / "metrics.csv").read_text()
        assert list(csv.DictReader(io.StringIO(metrics)))[-1]["step"] == "12", method


@pytest.mark.slow
def test_the_test_is_touched_once_a_run_and_data_are_found_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested, found, written = [], [], []
    test, find, write = Trainer.predictions, task.find_dataset, bank.write_block

    def counted(self: Trainer, rows: np.ndarray) -> Any:
        if np.array_equal(rows, self.context.split.test):
            tested.append((self.context.seed, self.options.mode.name, len(rows)))
        return test(self, rows)

    def written_block(path: Path, hashes: np.ndarray, *rest: Any) -> None:
        written.extend((*path.parts[-3:-1], code) for code in hashes.tolist())
        write(path, hashes, *rest)

    monkeypatch.setattr(Trainer, "predictions", counted)
    monkeypatch.setattr(task, "find_dataset", lambda data: (found.append(data), find(data))[1])
    monkeypatch.setattr(bank, "write_block", written_block)
    make_data(tmp_path / "d")
    started(tmp_path, "--compare", "--repeat", 2, "--data_dir", "d", *IMAGES, "--val_percent", 0.1)
    assert len(tested) == len(TRAINED) * 2
    assert {count for _, _, count in tested} == {6}
    assert len(found) == 1
    assert len(written) == len(set(written))  # every feature is computed once for all methods


def test_without_a_test_there_is_nothing_to_compare(tmp_path: Path) -> None:
    outcome = run("--name", "x", "--compare", *SHORT, "--test_percent", 0, cwd=tmp_path)
    assert outcome.code == 2
    assert "needs test images" in outcome.err
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    outcome = started(tmp_path, "--compare", "--repeat", 1, *SHORT)
    for row in rows(outcome).values():
        assert row["std"] is None
        assert row["ci95"] is None
        assert len(row["accuracies"]) == 1
    assert "1 seed can't tell a difference from noise" in outcome.summary()["advice"]
    table = csv.DictReader(io.StringIO((outcome.folder() / "comparison.csv").read_text()))
    assert {(row["std"], row["ci95_low"], row["ci95_high"]) for row in table} == {("", "", "")}


# --- killed and resumed -----------------------------------------------------------------------------------------------

MOMENTS = [
    Moment("comparison.task:load_run", 2),  # between MPL and what starts from it, at the second seed
]
MORE_MOMENTS = [
    Moment("algorithms.algorithm:mpl_step", 3),  # within a run
    Moment("comparison.compare:measure"),  # nothing is done yet
    Moment("comparison.compare:OneSeed.accuracies", 3, "after"),  # tested, but not written down
    Moment("runs.checkpoints:save_checkpoint", 2, "torn"),  # in the first run
    Moment("comparison.compare:OneSeed.clear", 1, "after"),  # between two seeds
    Moment("comparison.compare:picture"),  # all is measured
]
SLOW = [pytest.param(moment, marks=pytest.mark.slow) for moment in MORE_MOMENTS]


@pytest.mark.parametrize("moment", [*MOMENTS, *SLOW], ids=str)
@pytest.mark.slow
def test_a_killed_comparison_goes_on(moons: Outcome, tmp_path: Path, moment: Moment) -> None:
    killed(moment, "--name", "x", "--compare", "--repeat", 2, "--seed", 4, *SHORT, cwd=tmp_path)
    journal = tmp_path / "results" / "x" / "journal.json"
    done = json.loads(journal.read_text()) if journal.exists() else {}
    outcome = started(tmp_path, "--resume")
    assert rows(outcome) == rows(moons)
    finished = [(seed, name) for name, seeds in done.items() for seed in seeds]
    assert outcome.out.count("/20] seed ") == 20 - len(finished)  # what is finished is not done again
    for seed, name in finished:
        assert f"] seed {seed}, {name}:" not in outcome.out


@pytest.mark.slow
def test_more_seeds_are_added_to_a_finished_comparison(moons: Outcome, tmp_path: Path) -> None:
    first = started(tmp_path, "--compare", "--repeat", 1, "--seed", 4, *SHORT)
    assert first.summary()["seeds"] == [4]
    more = started(tmp_path, "--resume", "--repeat", 2)
    assert more.out.count("/20] seed 5") == 10
    assert more.out.count("/20] seed ") == 10
    assert rows(more) == rows(moons)
    assert json.loads((more.folder() / "commandline_args.txt").read_text())["repeat"] == 2


def test_a_comparison_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "d")
    killed(
        Moment("algorithms.algorithm:mpl_step", 3), "--name", "x", "--compare", "--data_dir", "d", *IMAGES, cwd=tmp_path
    )
    (folder / "b c" / "bild 03.png").unlink()
    outcome = run("--name", "x", "--resume", cwd=tmp_path)
    assert outcome.code == 2
    assert "have changed since" in outcome.err


def test_a_comparison_keeps_no_models(moons: Outcome) -> None:
    outcome = run("--test_mode", "--load_path", "x", cwd=moons.cwd)
    assert outcome.code == 2
    assert "keeps no models" in outcome.err


# --- the benchmark ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_benchmark_calls_the_comparison(tmp_path: Path) -> None:
    words = ["--seeds", "3", "1", "--methods", "MPL", "nearest neighbours", "--plot", "p.png", "--"]
    line = [str(ROOT / "benchmarks" / "gain.py"), *words, *map(str, SHORT)]
    done = subprocess.run([sys.executable, *line], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "| against MPL: ensemble, 95% interval" in done.stdout
    assert (tmp_path / "p.png").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


def test_a_method_needs_the_one_that_it_starts_from(tmp_path: Path) -> None:
    options = args.parse(["--name", "x"])
    dataset = find_dataset(options.data)
    task = Task(options, dataset, split_dataset(dataset, options.data, 0))
    with pytest.raises(UserError, match="starts from MPL: name that first"):
        compare.measure(task, [0], tmp_path, steps=1, names=["fine-tuned student"])
