"""The comparison of methods, cheap references, and one method over several seeds."""

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
import torch
from PIL import Image

from runs import FROZEN, MOONS, ROOT, Moment, Outcome, killed, make_data, run
from transfermpl import args
from transfermpl.base.metrics import paired_difference
from transfermpl.comparison import baselines, compare
from transfermpl.comparison.baselines import Given
from transfermpl.features import blocks
from transfermpl.runs import setup as foundation
from transfermpl.utils import UserError

TRAINED = [method.name for method in compare.METHODS]
SHORT = (*MOONS, "--max_lr", 0.01)
IMAGES = (*FROZEN, "--num_labels", 9, "--unlabeled_batch_size", 15, "--max_steps", 4)


def started(cwd: Path, *arguments: object) -> Outcome:
    outcome = run("--name", "x", *arguments, cwd=cwd)
    assert outcome.code == 0, outcome.err
    return outcome


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


def test_every_model_of_every_method_has_a_row(moons: Outcome, images: Outcome) -> None:
    pairs = [f"{method}: {model}" for method in ("UDA", "MPL") for model in ("teacher", "student", "ensemble")]
    pairs += [f"MPL with switched roles: {model}" for model in ("model_1", "model_2", "ensemble")]
    pairs += [f"fine-tuned student: {model}" for model in ("student", "ensemble")]
    for outcome, what in ((moons, "points"), (images, "features")):
        cheap = [f"{name} on {what}" for name in ("logistic regression", "nearest neighbours", "label spreading")]
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


def test_views_are_paired_with_the_mean_of_the_views_from_labels_only() -> None:
    def of(a: float, b: float, both: float) -> dict[int, dict[str, float]]:
        return {seed: {"a": a, "b": b, "ensemble": both + seed / 100} for seed in range(3)}

    results = {"labels only": of(0.5, 0.6, 0.7), "meta": of(0.7, 0.7, 0.8)}
    differences = {row["method"]: round(row["difference"], 3) for row in compare.rows_of(results)}
    assert differences == {
        **{"labels only: a": -0.21, "labels only: b": -0.11, "labels only: ensemble": 0.0},
        **{"meta: a": -0.01, "meta: b": -0.01, "meta: ensemble": 0.1},
    }
    head, _, *lines = compare.table(results).splitlines()
    assert "against labels only: ensemble" in head
    assert [line.split("|")[4].strip() == "" for line in lines] == [False, False, True, False, False, False]


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
    assert f"| MPL: ensemble                     | {100 * rows(moons)['MPL: ensemble']['mean']:.1f}%" in moons.out


def test_what_lies_in_the_folder(images: Outcome) -> None:
    folder = images.folder()
    assert {path.name for path in folder.iterdir()} == {
        "bad_files.txt", "commandline_args.txt", "comparison.csv", "comparison.png", "journal.json", "seed-0", "seed-1",
        "summary.json",
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


def test_methods_without_a_pile_learn_as_long_as_the_others(tmp_path: Path) -> None:
    line = ("--data_dir", "moons", "--unlabeled_batch_size", 200, "--num_epochs", 3, "--warmup_epoch_num", 1)
    outcome = started(tmp_path, "--compare", "--repeat", 1, *line)
    for method in ("labels-only", "mpl", "fine-tuned-student"):
        metrics = (outcome.folder() / "seed-0" / method / "metrics.csv").read_text()
        assert list(csv.DictReader(io.StringIO(metrics)))[-1]["step"] == "12", method


def test_the_test_is_touched_once_a_run_and_data_are_found_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested, found, written = [], [], []
    results, find, write = foundation.Setup.results, compare.find_dataset, blocks.write_block

    def counted(self: foundation.Setup, models: Any, where: np.ndarray, *rest: Any, **named: Any) -> Any:
        tested.append((self.options.run.seed, self.options.mode_name, len(where), tuple(models)))
        return results(self, models, where, *rest, **named)

    def written_block(path: Path, hashes: np.ndarray, *rest: Any) -> None:
        written.extend((*path.parts[-3:-1], code) for code in hashes.tolist())
        write(path, hashes, *rest)

    monkeypatch.setattr(foundation.Setup, "results", counted)
    monkeypatch.setattr(compare, "find_dataset", lambda data: (found.append(data), find(data))[1])
    monkeypatch.setattr(blocks, "write_block", written_block)
    make_data(tmp_path / "d")
    started(tmp_path, "--compare", "--repeat", 2, "--data_dir", "d", *IMAGES, "--val_percent", 0.1)
    assert len(tested) == len(TRAINED) * 2
    assert {count for _, _, count, _ in tested} == {6}
    assert len(found) == 1
    assert len(written) == len(set(written))  # every feature is computed once for all methods


def test_without_a_test_there_is_nothing_to_compare(tmp_path: Path) -> None:
    outcome = run("--name", "x", "--compare", *SHORT, "--test_percent", 0, cwd=tmp_path)
    assert outcome.code == 2
    assert "needs test images" in outcome.err
    assert not (tmp_path / "results").exists()


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    outcome = started(tmp_path, "--compare", "--repeat", 1, *SHORT)
    for row in rows(outcome).values():
        assert row["std"] is None
        assert row["ci95"] is None
        assert len(row["accuracies"]) == 1
    assert "1 seed can't tell a difference from noise" in outcome.summary()["advice"]
    table = csv.DictReader(io.StringIO((outcome.folder() / "comparison.csv").read_text()))
    assert {(row["std"], row["ci95_low"], row["ci95_high"]) for row in table} == {("", "", "")}


def test_five_seeds_by_default_and_one_for_a_single_method() -> None:
    def seeds(*line: str) -> tuple[list[int], list[int]]:
        options = args.parse(["--name", "x", *line])
        return compare.seeds_of(options, compare.DEFAULT_REPEAT), compare.seeds_of(options, 1)

    assert seeds("--compare", "--seed", "3")[0] == [3, 4, 5, 6, 7]
    assert seeds("--compare", "--repeat", "2")[0] == [0, 1]
    assert seeds("--seed", "3")[1] == [3]


# --- killed and resumed -----------------------------------------------------------------------------------------------

MOMENTS = [
    Moment("comparison.compare:load_run", 2),  # between MPL and what starts from it, at the second seed
    Moment("runs.training:mpl_step", 3),  # within a run
]
MORE_MOMENTS = [
    Moment("comparison.compare:measure"),  # nothing is done yet
    Moment("comparison.compare:Bench.accuracies", 3, "after"),  # tested, but not written down
    Moment("runs.training:save_checkpoint", 2, "torn"),  # in the first run
    Moment("comparison.compare:Bench.clear", 1, "after"),  # between two seeds
    Moment("comparison.compare:draw"),  # all is measured
]
SLOW = [pytest.param(moment, marks=pytest.mark.slow) for moment in MORE_MOMENTS]


@pytest.mark.parametrize("moment", [*MOMENTS, *SLOW], ids=str)
def test_a_killed_comparison_goes_on(moons: Outcome, tmp_path: Path, moment: Moment) -> None:
    killed(moment, "--name", "x", "--compare", "--repeat", 2, "--seed", 4, *SHORT, cwd=tmp_path)
    journal = tmp_path / "results" / "x" / "journal.json"
    done = json.loads(journal.read_text()) if journal.exists() else {}
    outcome = started(tmp_path, "--resume")
    assert rows(outcome) == rows(moons)
    finished = [(seed, name) for name, seeds in done.items() for seed in seeds]
    assert outcome.out.count("/16] seed ") == 16 - len(finished)  # what is finished is not done again
    for seed, name in finished:
        assert f"] seed {seed}, {name}:" not in outcome.out


def test_more_seeds_are_added_to_a_finished_comparison(moons: Outcome, tmp_path: Path) -> None:
    first = started(tmp_path, "--compare", "--repeat", 1, "--seed", 4, *SHORT)
    assert first.summary()["seeds"] == [4]
    more = started(tmp_path, "--resume", "--repeat", 2)
    assert more.out.count("/16] seed 5") == 8
    assert more.out.count("/16] seed ") == 8
    assert rows(more) == rows(moons)
    assert json.loads((more.folder() / "commandline_args.txt").read_text())["repeat"] == 2


def test_a_comparison_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "d")
    killed(Moment("runs.training:mpl_step", 3), "--name", "x", "--compare", "--data_dir", "d", *IMAGES, cwd=tmp_path)
    (folder / "b c" / "bild 03.png").unlink()
    outcome = run("--name", "x", "--resume", cwd=tmp_path)
    assert outcome.code == 2
    assert "have changed since" in outcome.err


# --- which to use -----------------------------------------------------------------------------------------------------

NOISE = np.array([0.01, -0.01, 0.0, 0.005, -0.005])


def results(count: int = 5, **means: float) -> dict[str, dict[int, dict[str, float]]]:
    """Results of methods whose seeds differ by noise of their own."""
    names = {"labels": "labels only", "mpl": "MPL", "uda": "UDA", "regression": "logistic regression"}
    return {
        names[name]: {seed: {"ensemble": mean + float(np.roll(NOISE, place)[seed])} for seed in range(count)}
        for place, (name, mean) in enumerate(means.items())
    }


def test_a_clear_winner_is_said_to_be_more_than_noise() -> None:
    said = compare.advice(results(labels=0.5, uda=0.6, mpl=0.9))
    assert said.startswith("Use MPL (90.0%): its +40.0 points (95% interval +")
    assert "are more than noise, also when it is picked as the best of 3." in said
    assert "Not distinguishable" not in said
    assert "a little flattered" in said
    assert said.endswith("To train MPL: leave out --compare.")


def test_what_may_be_as_good_is_named() -> None:
    said = compare.advice(results(labels=0.5, uda=0.898, mpl=0.9, regression=0.4))
    assert "more than noise" in said
    assert "Not distinguishable from it: UDA." in said
    said = compare.advice(results(labels=0.5, uda=0.898, mpl=0.9))
    assert "Not distinguishable from it: any other." in said


def test_a_lead_that_zero_is_inside_of_is_noise() -> None:
    said = compare.advice(results(labels=0.897, uda=0.7, mpl=0.9))
    assert said.startswith("MPL (90.0%) is the best here, but not distinguishable from labels only: +0.3 points (95%")
    assert "Use " not in said


def test_many_comparisons_ask_for_more() -> None:
    gains = np.array([0.02, 0.03, 0.005, 0.04, 0.01])  # t = 3.4: beyond 2.8 for one comparison, within 4.9 for six
    base = {"labels only": {seed: {"student": 0.7} for seed in range(5)}}
    best = {"MPL": {seed: {"ensemble": 0.7 + float(gains[seed])} for seed in range(5)}}
    fillers = {name: {seed: {"m": 0.3 + NOISE[seed]} for seed in range(5)} for name in compare.REFERENCES}
    assert "are more than noise" in compare.advice({**base, **best})
    said = compare.advice({**base, **best, **fillers, "UDA": {seed: {"m": 0.2} for seed in range(5)}})
    assert "likely more than noise, but 5 seeds can't make that sure when it is picked as the best of 6" in said


def test_labels_only_may_be_the_best() -> None:
    said = compare.advice(results(labels=0.9, uda=0.5, mpl=0.899))
    assert said.startswith("Use labels only (90.0%): nothing did better here. Not distinguishable from it: MPL.")


def test_a_reference_may_be_the_best() -> None:
    said = compare.advice(results(labels=0.5, mpl=0.6, regression=0.9))
    assert said.startswith("Use logistic regression (90.0%)")
    assert "the best that is trained here is MPL. To train MPL: leave out --compare." in said


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_seeds_tell_nothing(count: int) -> None:
    same = {name: {seed: {"m": value} for seed in range(count)} for name, value in (("labels only", 0.5), ("MPL", 0.9))}
    assert "can't tell a difference from noise: use --repeat 5" in compare.advice(same)


def test_an_ensemble_stands_for_its_method() -> None:
    of_seed = {"teacher": 0.9, "student": 0.8, "ensemble": 0.7}
    assert compare.finals({"MPL": {0: of_seed}, "labels only": {0: {"student": 0.6}}}) == {
        "MPL": [0.7],
        "labels only": [0.6],
    }


def test_every_way_to_train_is_one_that_the_command_line_takes() -> None:
    for method in compare.METHODS:
        given = {**method.options, **({"load_path": "run"} if method.start else {})}
        assert args.make({"name": "x", **given})


# --- references -------------------------------------------------------------------------------------------------------


def blobs(each: int, *, width: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three clouds of points, far apart."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), each)
    return (5 * np.eye(3, width)[labels] + random.normal(0, 0.5, (3 * each, width))).astype(np.float32), labels


@pytest.mark.parametrize("name", sorted(baselines.REFERENCES))
@pytest.mark.parametrize("each", [1, 2, 12])
@pytest.mark.parametrize("angles", [True, False])
def test_references_classify_clouds(name: str, each: int, angles: bool) -> None:
    rows, labels = blobs(each)
    tested, truth = blobs(30, seed=1)
    given = Given(rows, labels, blobs(20, seed=2)[0], angles)
    assert (baselines.REFERENCES[name].fit(given)(tested) == truth).mean() > (0.95 if each > 2 else 0.75)


def test_label_spreading_uses_the_pile() -> None:
    from sklearn.datasets import make_moons

    rows, labels = make_moons(400, noise=0.05, random_state=0)
    few = [int(np.flatnonzero(labels == label)[0]) for label in (0, 1)]
    given = Given(rows[few], labels[few], np.delete(rows, few, axis=0), False)
    tested, truth = make_moons(400, noise=0.05, random_state=1)
    spread = (baselines.label_spreading(given)(tested) == truth).mean()
    assert spread > 0.97
    assert spread > (baselines.nearest_neighbours(given)(tested) == truth).mean()


def test_the_strength_of_regularisation_is_cross_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.model_selection import GridSearchCV

    searches: list[GridSearchCV] = []
    fit = GridSearchCV.fit
    monkeypatch.setattr(GridSearchCV, "fit", lambda self, *a: (searches.append(self), fit(self, *a))[1])
    rows, labels = blobs(12)
    baselines.logistic_regression(Given(rows, labels, rows[:0], True))
    baselines.logistic_regression(Given(rows, np.random.default_rng(0).permutation(labels), rows[:0], True))
    clear, shuffled = (search.best_params_["logisticregression__C"] for search in searches)
    assert shuffled < clear
    assert searches[0].cv.n_splits == 5


def test_a_large_pile_is_cut_for_the_graph(images: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Given] = []

    def spread(given: Given) -> Any:
        seen.append(given)
        return baselines.label_spreading(given)

    spreading = baselines.Reference(spread, spreads=True)
    monkeypatch.setitem(baselines.REFERENCES, "label spreading", spreading)
    options = args.parse(["--name", "x", "--data_dir", str(images.cwd / "bilder für $alle$"), *map(str, IMAGES)])
    options = options.changed(cache_dir=str(images.cwd / "cache"), device="cpu")
    dataset = compare.find_dataset(options.data)
    split = compare.split_dataset(dataset, options.data, 0)
    baselines.reference_accuracy("label spreading", options, dataset, split)
    monkeypatch.setattr(baselines, "SPREAD_OVER", 5)
    baselines.reference_accuracy("label spreading", options, dataset, split)
    assert [len(given.pile) for given in seen] == [len(np.setdiff1d(split.unlabeled, split.labeled)), 5]
    assert len(seen[0].labeled) == 9
    assert seen[0].labeled.shape[1] == seen[0].pile.shape[1] > 2


def test_what_references_stand_on(tmp_path: Path) -> None:
    make_data(tmp_path / "d")

    def ground(*line: object) -> tuple[str, int]:
        words = ["--name", "x", "--data_dir", tmp_path / "d", "--cache_dir", tmp_path / "c", "--device", "cpu", *line]
        options = args.parse(list(map(str, words)))
        dataset = compare.find_dataset(options.data)
        split = compare.split_dataset(dataset, options.data, 0)
        setup, what = baselines.ground(options, dataset, split)
        return what, baselines.inputs(setup, split.labeled, what).shape[1]

    scratch = ("--model_name", "cnn", "--num_workers", 0, "--num_labels", 6)
    assert ground(*scratch, "--image_size", 16) == ("pixels", 3 * 16 * 16)
    assert ground(*scratch, "--image_size", 64) == ("pixels", 3 * 32 * 32)
    assert ground(*scratch, "--image_size", 16, "--unfreeze", "head") == ("features", 128)
    options = args.parse(["--name", "x", "--data_dir", "fake", *map(str, scratch)])
    dataset = compare.find_dataset(options.data)
    backbone = foundation.Setup(options, dataset, compare.split_dataset(dataset, options.data, 0)).views[0].backbone
    torch.save(backbone.net.state_dict(), tmp_path / "w.pth")
    weights = ("--weights", tmp_path / "w.pth", "--image_size", 16, "--unfreeze", "all")
    assert ground(*scratch, *weights) == ("features", 128)  # those that the network begins with


# --- one method over several seeds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [[], ["--switch_mode"], ["--finetune_mode"]])
def test_a_repeated_run_is_a_run_for_each_seed(tmp_path: Path, mode: list[str]) -> None:
    outcome = started(tmp_path, *SHORT, *mode, "--seed", 4, "--repeat", 2)
    summary = outcome.summary()
    assert summary["seeds"] == [4, 5]
    for seed in (4, 5):
        single = run("--name", f"s{seed}", *SHORT, *mode, "--seed", seed, cwd=tmp_path)
        folder = outcome.folder() / f"seed-{seed}"
        assert (folder / "metrics.csv").read_text() == single.metrics(f"s{seed}")
        assert (folder / "split.csv").read_text() == (single.folder(f"s{seed}") / "split.csv").read_text()
        assert json.loads((folder / "summary.json").read_text())["test"] == single.summary(f"s{seed}")["test"]
        assert {path.name for path in folder.iterdir()} == {path.name for path in single.folder(f"s{seed}").iterdir()}
        for model, result in single.summary(f"s{seed}")["test"].items():
            assert summary["test"][model]["accuracies"][seed - 4] == result["accuracy"]
    for result in summary["test"].values():
        assert result["accuracy"] == result["mean"] == pytest.approx(np.mean(result["accuracies"]))
        assert result["std"] == pytest.approx(np.std(result["accuracies"], ddof=1))
        low, high = result["ci95"]
        half = 12.7062 * result["std"] / np.sqrt(2)  # Student's t of two seeds, within what an accuracy can be
        assert [low, high] == pytest.approx(
            [max(0.0, result["mean"] - half), min(1.0, result["mean"] + half)], rel=1e-4
        )
    assert "test accuracy of 2 seeds" in outcome.out


def test_a_run_of_one_seed_is_a_plain_run(tmp_path: Path) -> None:
    outcome = started(tmp_path, *SHORT, "--repeat", 1)
    assert (outcome.folder() / "checkpoints" / "best.pt").is_file()
    assert "seeds" not in outcome.summary()


@pytest.mark.parametrize(
    "moment",
    [
        Moment("runs.training:mpl_step", 5),
        Moment("comparison.compare:carry_out", 1, "after"),
        Moment("comparison.compare:over_seeds"),
    ],
)
def test_a_killed_repetition_goes_on(tmp_path: Path, moment: Moment) -> None:
    line = (*SHORT, "--repeat", 2)
    (tmp_path / "whole").mkdir()
    whole = started(tmp_path / "whole", *line)
    killed(moment, "--name", "x", *line, cwd=tmp_path)
    finished = moment.function != "runs.training:mpl_step"
    outcome = started(tmp_path, "--resume")
    assert outcome.summary()["test"] == whole.summary()["test"]
    assert ("seed 0: finished before" in outcome.out) == finished
    assert not list(outcome.folder().rglob(".part-*"))


def test_one_run_of_a_repetition_is_used_like_any(tmp_path: Path) -> None:
    outcome = started(tmp_path, *SHORT, "--repeat", 2)
    tested = run("--test_mode", "--load_path", "x/seed-1", cwd=tmp_path)
    assert tested.code == 0, tested.err
    found = json.loads((outcome.folder() / "seed-1" / "test_summary.json").read_text())["test"]
    assert found["student"]["accuracy"] == outcome.summary()["test"]["student"]["accuracies"][1]
    whole = run("--test_mode", "--load_path", "x", cwd=tmp_path)
    assert whole.code == 2
    assert "--load_path x/seed-0" in whole.err
    again = run("--config", outcome.folder() / "seed-1" / "commandline_args.txt", "--name", "y", cwd=tmp_path)
    assert again.code == 0, again.err
    assert again.metrics("y") == (outcome.folder() / "seed-1" / "metrics.csv").read_text()


def test_a_comparison_keeps_no_models(moons: Outcome) -> None:
    outcome = run("--test_mode", "--load_path", "x", cwd=moons.cwd)
    assert outcome.code == 2
    assert "keeps no models" in outcome.err


def test_a_second_repetition_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    line = ("--data_dir", "moons", "--max_steps", 2, "--finetune_mode", "--repeat", 2)
    started(tmp_path, *line)
    started(tmp_path, *line)
    assert json.loads((tmp_path / "results" / "x-2" / "commandline_args.txt").read_text())["name"] == "x-2"
    started(tmp_path, *line, "--overwrite")
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["x", "x-2"]


def test_without_a_test_a_repetition_has_no_table(tmp_path: Path) -> None:
    line = ("--data_dir", "moons", "--max_steps", 2, "--finetune_mode", "--repeat", 2, "--test_percent", 0)
    outcome = started(tmp_path, *line)
    assert outcome.summary()["test"] == {}
    assert "nothing was tested" in outcome.out


def test_a_loaded_run_is_not_repeated() -> None:
    with pytest.raises(UserError, match="exclude each other"):
        args.parse(["--name", "x", "--finetune_mode", "--load_path", "y", "--repeat", "3"])


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
    dataset = compare.find_dataset(options.data)
    with pytest.raises(UserError, match="starts from MPL: name that first"):
        compare.measure(options, dataset, [0], tmp_path, steps=1, methods=["fine-tuned student"])
