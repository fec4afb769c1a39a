"""Runs end to end, in this process: what every option does, and what a run leaves behind."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from PIL import Image

from runs import CLOCK, COLOURS, FROZEN, MOONS, Moment, Outcome, killed, make_data, make_images, run, same, same_run
from transfermpl import args, data, utils
from transfermpl.backbones import small
from transfermpl.learning import checkpoint, learner
from transfermpl.runs import calibration, context, metrics_log, prepare, trainer
from transfermpl.runs import run as experiment
from transfermpl.runs import training as run_training
from transfermpl.runs.prepare import fill_banks, make_trainer
from transfermpl.runs.trainer import Trainer

# Commands, co-training and what belongs to them are shown to have an effect by their own tests.
TRAINING = ("run", "data", "model", "learning", "mode")
OPTIONS = {f.name for name in TRAINING for f in dataclasses.fields(args.GROUPS[name])}
OPTIONS -= {*args.COMMANDS, "cotrain_mode"} - {"test_mode"}
_covered: set[str] = set()
Test = TypeVar("Test", bound=Callable[..., Any])


def covers(*names: str) -> Callable[[Test], Test]:
    """This test shows that these options have their effect."""
    assert set(names) <= OPTIONS, set(names) - OPTIONS
    _covered.update(names)
    return lambda test: test


class Lab:
    """Runs named `x`, each in a folder of its own, started once for all tests that look at them."""

    def __init__(self, root: Path) -> None:
        self.root, self.done = root, {}  # type: Path, dict[tuple[str, ...], Outcome]
        self.data = make_data(root / "bilder für alle")

    def run(self, *arguments: object) -> Outcome:
        line = tuple(str(word) for word in arguments)
        if line not in self.done:
            cwd = self.root / f"run{len(self.done)}"
            cwd.mkdir()
            self.done[line] = outcome = run("--name", "x", *line, cwd=cwd)
            assert outcome.code == 0, outcome.err
        return self.done[line]

    def moons(self, *arguments: object) -> Outcome:
        return self.run(*MOONS, *arguments)

    def images(self, *arguments: object) -> Outcome:
        """The three-coloured folder, a frozen backbone."""
        few = ("--num_labels", 6, "--unlabeled_batch_size", 15, "--max_steps", 6)
        return self.run("--data_dir", self.data, *FROZEN, *few, *arguments)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


def column(outcome: Outcome, name: str) -> list[float]:
    return [float(row[name]) for row in outcome.rows() if row[name]]


# --- options that change what is learned ------------------------------------------------------------------------------

CHANGES: dict[str, list[str]] = {
    "seed": ["1"],
    "precision": ["bf16"],
    "batch_size": ["7"],
    "optimizer": ["SGD"],
    "weight_decay": ["5"],
    "grad_clip": ["0.01"],
    "label_smoothing": ["0.2"],
    "threshold": ["0.51"],
    "temperature": ["0.3"],
    "lambda_u": ["0.2"],
    "uda_steps": ["2"],
    "mpl_weight": ["0"],
    "distribution_alignment": ["1"],
    "num_labels": ["50"],
    "num_labels_percent": ["10%"],
    "label_split": ["stratified"],
    "include_labeled": [],
    "switch_mode": [],
}
# Confident from the start, so that the consistency loss takes part in so short a run.
SURE = ("--threshold", "0.5", "--max_lr", "0.01")


@pytest.mark.slow
@covers(*CHANGES)
@pytest.mark.parametrize("name", sorted(set(CHANGES) - {"label_split"}))
def test_an_option_changes_what_is_learned(lab: Lab, name: str) -> None:
    base = lab.moons(*SURE)
    flag = f"--no_{name}" if name == "include_labeled" else f"--{name}"
    changed = lab.moons(*SURE, flag, *CHANGES[name])
    assert changed.metrics() != base.metrics()
    assert not same(changed.checkpoint()["models"], base.checkpoint()["models"])


def test_two_runs_are_equal_and_hold_nothing_of_the_clock(lab: Lab, tmp_path: Path) -> None:
    first = lab.moons(*SURE)
    second = run("--name", "x", *MOONS, *SURE, cwd=tmp_path)
    assert same_run(first, second)
    assert first.folder("x").joinpath("split.csv").read_text() == second.folder("x").joinpath("split.csv").read_text()


@covers("label_split")
@pytest.mark.slow
def test_labels_are_drawn_balanced_or_as_frequent_as_the_class(tmp_path: Path) -> None:
    make_images(tmp_path / "d" / "many", 30, (200, 50, 50))
    make_images(tmp_path / "d" / "few", 10, (50, 50, 200))
    counts = {}
    for how in ("balanced", "stratified"):
        line = ("--name", how, "--data_dir", "d", *FROZEN, "--num_labels", 8, "--label_split", how, "--max_steps", 2)
        outcome = run(*line, cwd=tmp_path)
        labeled = outcome.split(how)["labeled"]
        counts[how] = sum(path.startswith("many/") for path in labeled), len(labeled)
    assert counts == {"balanced": (4, 8), "stratified": (6, 8)}


@covers("max_steps", "num_epochs", "unlabeled_batch_size")
@pytest.mark.slow
def test_how_long_a_run_is(lab: Lab) -> None:
    assert [row["step"] for row in lab.moons().rows()] == ["4", "8", "12"]
    line = ("--data_dir", "moons", "--warmup_epoch_num", 1)
    epochs = lab.run(*line, "--num_epochs", 2, "--unlabeled_batch_size", 160)
    assert [row["step"] for row in epochs.rows()] == ["5", "10"]
    cut = lab.run(*line, "--max_steps", 7, "--unlabeled_batch_size", 160)
    assert [row["step"] for row in cut.rows()] == ["5", "7"]


@covers("warmup_epoch_num")
def test_only_the_teacher_learns_in_the_warm_up(lab: Lab) -> None:
    for epochs, expected in ((0, [False] * 3), (1, [True, False, False]), (2, [True, True, False])):
        rows = lab.moons("--warmup_epoch_num", epochs).rows()
        assert [row["student_loss"] == "" for row in rows] == expected
        first = learner.one_cycle(0) * args.Options().learning.max_lr
        assert [float(row["learning_rate_student"]) == pytest.approx(first) for row in rows] == expected
    by_itself = lab.run("--data_dir", "moons", "--max_steps", 40, "--unlabeled_batch_size", 200)
    assert [row["student_loss"] == "" for row in by_itself.rows()] == [True] + [False] * 9


@covers("max_lr")
def test_the_rate_is_one_cycle_below_its_maximum(lab: Lab) -> None:
    base, double = lab.moons("--max_lr", 0.001), lab.moons("--max_lr", 0.002)
    for name in ("learning_rate_teacher", "learning_rate_student"):
        rates = column(base, name)
        assert max(rates) <= 0.001
        assert column(double, name) == pytest.approx([2 * rate for rate in rates], rel=1e-4)
        assert rates[-1] < 1e-7


@covers("layer_decay")
def test_early_stages_of_a_pretrained_backbone_learn_slower(tmp_path: Path) -> None:
    torch.save(small.cnn().state_dict(), tmp_path / "w.pth")
    line = ("--data_dir", "digits", "--model_name", "cnn", "--weights", "w.pth", "--finetune_mode", "--unfreeze", "all",
            "--num_labels", 20, "--max_steps", 2, "--num_workers", 0)  # fmt: skip
    made = {d: run("--name", f"d{d}", *line, *(("--layer_decay", d) if d else ()), cwd=tmp_path) for d in (0, 1, 0.01)}
    base, one, slow = (outcome.checkpoint(name=f"d{d}")["models"]["student"] for d, outcome in made.items())
    assert same(base, one)
    start = torch.load(tmp_path / "w.pth", weights_only=True)["0.0.weight"]
    moved = [(state["backbone.net.0.0.weight"] - start).abs().max() for state in (base, slow)]
    assert 0 < moved[1] < 0.01 * moved[0]


@covers("grad_accumulation")
def test_parts_of_a_step_come_to_the_same_step(lab: Lab) -> None:
    whole, parts = lab.moons("--mpl_weight", 0), lab.moons("--mpl_weight", 0, "--grad_accumulation", 3)
    assert whole.checkpoint()["options"]["grad_accumulation"] == 1
    assert column(parts, "supervised_loss") == pytest.approx(column(whole, "supervised_loss"), rel=1e-3)
    assert not same(whole.checkpoint()["models"], parts.checkpoint()["models"])


@covers("ema")
def test_the_average_of_the_weights_is_for_evaluation_only(lab: Lab) -> None:
    base, averaged = lab.moons(), lab.moons("--ema", 0.9)
    assert base.metrics() == averaged.metrics()
    assert not same(base.checkpoint()["models"], averaged.checkpoint()["models"])
    assert same(averaged.checkpoint()["models"], averaged.checkpoint("last")["models"])
    learners = [outcome.checkpoint("last")["learners"]["student"] for outcome in (base, averaged)]
    assert same(learners[0]["network"], learners[1]["network"])


@covers("val_percent", "patience")
@pytest.mark.slow
def test_a_run_ends_when_validation_gets_no_better(lab: Lab) -> None:
    still = ("--val_percent", "20%", "--max_lr", "1e-12", "--max_steps", 40)
    patient, impatient = lab.moons(*still), lab.moons(*still, "--patience", 2)
    assert len(patient.rows()) == 10
    assert len(impatient.rows()) == 3 + 1  # the student begins to learn, and is first measured, in epoch 2
    assert impatient.summary()["best_epoch"] == {"teacher": 1, "student": 2}
    counts = impatient.summary()["dataset"]["images"]
    assert counts["val"] == 160
    assert impatient.summary()["labels_used"] == counts["labeled"] + counts["val"]
    assert set(impatient.summary()["val"]) == {"teacher", "student", "ensemble"}
    assert column(impatient, "val_accuracy_ensemble")


def test_the_best_epoch_is_kept_where_validation_is_enough(lab: Lab) -> None:
    outcome = lab.moons("--val_percent", "20%", "--max_lr", 0.02, "--max_steps", 40)
    for name, epoch in outcome.summary()["best_epoch"].items():
        measured = [float(row[f"val_accuracy_{name}"]) for row in outcome.rows()]
        if name == "student":
            measured = [0.0, *measured[1:]]
        assert epoch == 1 + int(np.argmax(measured))
        assert outcome.summary()["val"][name]["accuracy"] == pytest.approx(max(measured), abs=1e-6)
    assert outcome.checkpoint()["best_epoch"] == outcome.summary()["best_epoch"]
    few = lab.moons("--val_percent", "1%")
    assert few.summary()["best_epoch"] == {"teacher": 3, "student": 3}


# --- options of the data ----------------------------------------------------------------------------------------------


@covers("test_percent")
def test_the_share_that_is_tested(lab: Lab) -> None:
    assert lab.moons().summary()["dataset"]["images"]["test"] == 200
    half = lab.moons("--test_percent", "50%").summary()
    assert half["dataset"]["images"]["test"] == 500
    untested = lab.moons("--test_percent", 0)
    assert untested.summary()["test"] == {}
    assert not list(untested.folder().glob("*_CM.png"))


@covers("num_labels", "num_labels_percent", "include_labeled")
def test_how_many_labels_there_are(lab: Lab) -> None:
    def counts(*line: object) -> dict[str, int]:
        return lab.moons(*SURE, *line).summary()["dataset"]["images"]

    assert counts() == {"labeled": 24, "unlabeled": 800, "val": 0, "test": 200}
    assert counts("--num_labels", 50)["labeled"] == 50
    assert counts("--num_labels_percent", "10%")["labeled"] == 80
    assert counts("--no_include_labeled")["unlabeled"] == 776


@covers("data_dir")
@pytest.mark.parametrize("name", ["digits", "fake"])
def test_built_in_data(lab: Lab, name: str) -> None:
    outcome = lab.run("--data_dir", name, "--max_steps", 2, "--model_name", "mlp")
    assert outcome.summary()["dataset"]["path"] == name
    assert len(outcome.summary()["dataset"]["classes"]) == {"digits": 10, "fake": 4}[name]


@covers("data_dir")
@pytest.mark.slow
def test_any_path_to_the_images_works(lab: Lab, tmp_path: Path) -> None:
    base = lab.images()
    (tmp_path / "ein Ordner").mkdir()
    make_data(tmp_path / "ein Ordner" / "bílder 日本")
    line = (*FROZEN, "--num_labels", 6, "--unlabeled_batch_size", 15, "--max_steps", 6)
    for number, path in enumerate(("ein Ordner/bílder 日本", "./ein Ordner/../ein Ordner/bílder 日本/", lab.data)):
        outcome = run("--name", f"x{number}", "--data_dir", path, *line, cwd=tmp_path)
        assert outcome.code == 0, outcome.err
        assert outcome.metrics(f"x{number}") == base.metrics()
        assert outcome.summary(f"x{number}")["dataset"]["classes"] == sorted(COLOURS)


@covers("labels_csv")
def test_a_table_of_labels(lab: Lab, tmp_path: Path) -> None:
    lines = ["path,label"]
    for name in COLOURS:
        lines += [f"{name}/bild {k:02d}.png,{name if k < 6 else ''}" for k in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(lines), encoding="utf-8")
    outcome = lab.images("--labels_csv", tmp_path / "t.csv", "--test_percent", "30%")
    counts = outcome.summary()["dataset"]["images"]
    assert counts == {"labeled": 6, "unlabeled": 30, "val": 0, "test": 6}


def test_a_small_test_that_could_teach_is_named_before_the_training(lab: Lab, tmp_path: Path) -> None:
    lines = ["path,label", *(f"{name}/bild {k:02d}.png,{name}" for name in COLOURS for k in range(8))]
    (tmp_path / "t.csv").write_text("\n".join(lines), encoding="utf-8")
    advice = "labeled images are kept for a test, which says little; with --test_percent 0 they teach too"
    line = ("--name", "x", "--data_dir", lab.data, *FROZEN, "--labels_csv", tmp_path / "t.csv", "--max_steps", 2)
    some = run(*line, cwd=tmp_path)
    assert f"6 {advice}" in some.out
    assert some.out.index(advice) < some.out.index("learned from")
    assert advice not in run(*line, "--test_percent", 0, cwd=tmp_path).out
    assert advice not in lab.images().out  # whose labels are left out on purpose


@covers("download", "data_root")
@pytest.mark.slow
def test_downloadable_data_is_asked_for_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    asked = []

    class Fake:
        classes = ("cat", "dog")

        def __init__(self, root: str, *, download: bool, train: bool) -> None:
            asked.append((root, download, train))
            random = np.random.default_rng(int(train))
            self.targets = [0, 1] * (20 if train else 5)
            self.data = random.integers(0, 255, (len(self.targets), 32, 32, 3), dtype=np.uint8)

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
    line = ("--data_dir", "cifar10", *FROZEN, "--num_labels", 4, "--max_steps", 2)
    outcome = run("--name", "x", *line, "--download", "--data_root", "there", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert asked == [("there", True, True), ("there", True, False)]
    assert outcome.summary()["dataset"]["images"] == {"labeled": 4, "unlabeled": 40, "val": 0, "test": 10}
    run("--name", "x", *line, cwd=tmp_path)
    assert asked[2:] == [("datasets", False, True), ("datasets", False, False)]


@covers("augmentation_draws", "flip")
@pytest.mark.slow
def test_how_images_are_augmented(lab: Lab) -> None:
    base = lab.images()
    assert lab.images("--no_flip").metrics() != base.metrics()
    assert lab.images("--flip").metrics() == base.metrics()
    assert lab.images("--augmentation_draws", 1).metrics() != base.metrics()
    draws = {path.name for path in lab.images("--augmentation_draws", 1).cwd.glob("cache/*/*-0*")}
    assert draws == {"eval-000", "strong-000", "weak-000"}


@covers("show_images")
def test_samples_are_drawn_when_asked_for(lab: Lab, tmp_path: Path) -> None:
    assert not (lab.images().folder() / "samples.png").exists()
    for source in ("moons", "digits"):
        line = ("--name", source, "--data_dir", source, "--model_name", "mlp", "--max_steps", 2, "--show_images")
        outcome = run(*line, cwd=tmp_path)
        assert (outcome.folder(source) / "samples.png").is_file()
        assert "samples.png" in outcome.out


# --- options of the model ---------------------------------------------------------------------------------------------


@covers("model_name", "unfreeze", "print_model", "image_size", "weights")
@pytest.mark.slow
def test_which_network_learns_and_what_of_it(lab: Lab) -> None:
    frozen = lab.images("--print_model")
    assert "cnn" not in frozen.checkpoint()["models"]["student"]
    assert set(frozen.checkpoint()["models"]["student"]) == {"layers.1.weight", "layers.1.bias", "temperature"}
    assert frozen.backbone()
    whole = lab.images("--unfreeze", "all", "--print_model")
    assert whole.backbone() is None
    assert any(key.startswith("backbone.") for key in whole.checkpoint()["models"]["student"])
    totals = {}
    for name, outcome in (("head", frozen), ("all", whole), ("1", lab.images("--unfreeze", 1, "--print_model"))):
        line = next(line for line in outcome.out.splitlines() if line.startswith("total"))
        totals[name] = [int(cell.replace(",", "")) for cell in line.split()[-2:]]
    assert totals["head"][0] < totals["1"][0] < totals["all"][0]
    assert totals["all"][1] == 0
    assert "trainable" not in lab.images().out
    other = lab.images("--model_name", "mlp")
    assert other.checkpoint()["model"]["name"] == "mlp"
    larger = lab.images("--model_name", "mlp", "--image_size", 20)
    shapes = [outcome.backbone()["net.1.weight"].shape[1] for outcome in (other, larger)]
    assert shapes == [3 * 16 * 16, 3 * 20 * 20]


@covers("weights")
@pytest.mark.slow
def test_weights_from_a_file_are_used_and_frozen(lab: Lab, tmp_path: Path) -> None:
    backbone = lab.images("--seed", 5).backbone()
    state = {key.removeprefix("net."): value for key, value in backbone.items()}
    torch.save(state, tmp_path / "w.pth")
    few = ("--data_dir", lab.data, "--model_name", "cnn", "--image_size", 16, "--num_labels", 6, "--max_steps", 2)
    outcome = lab.run(*few, "--num_workers", 0, "--weights", tmp_path / "w.pth")
    assert same(outcome.backbone(), backbone)
    assert outcome.checkpoint()["model"]["frozen"]
    assert not lab.run(*few, "--num_workers", 0, "--weights", "none").checkpoint()["model"]["frozen"]


@covers("model_name")
@pytest.mark.parametrize("name", ["squeezenet1_1", "timm:test_vit"])
def test_a_librarys_backbone(lab: Lab, name: str) -> None:
    line = ("--model_name", name, "--weights", "none", "--image_size", 32, "--augmentation_draws", 1)
    outcome = lab.images(*line, "--max_steps", 2)
    assert outcome.checkpoint()["model"]["name"] == name
    assert outcome.summary()["test"]["student"]["per_class"].keys() == COLOURS.keys()


def test_a_stored_head_with_other_layers_is_told_in_one_line(lab: Lab, tmp_path: Path) -> None:
    whole = lab.images()
    shutil.copytree(whole.folder(), tmp_path / "old")
    path = tmp_path / "old" / "checkpoints" / "best.pt"
    content = torch.load(path, weights_only=True)
    for state in content["models"].values():
        state["layers.1.linear.weight"] = state.pop("layers.1.weight")
    torch.save(content, path)
    outcome = run("--test_mode", "--load_best", "--load_path", tmp_path / "old", cwd=whole.cwd)
    assert outcome.code == 2
    assert "other layers than this version" in outcome.err.splitlines()[-1]


def test_batches_of_one_are_too_small_for_batch_norms_of_vectors(lab: Lab, tmp_path: Path) -> None:
    for line in (("--batch_size", 1), ("--unlabeled_batch_size", 4, "--grad_accumulation", 4)):
        small = ("--model_name", "resnet", "--weights", "none", "--image_size", 32, "--num_labels", 6)
        outcome = run("--name", "x", "--data_dir", lab.data, *small, *line, cwd=tmp_path)
        assert outcome.code == 2
        assert "too small for the batch norms" in outcome.complaint()[0]


# --- options of the run -----------------------------------------------------------------------------------------------


@covers("name", "overwrite")
def test_a_run_is_kept_unless_it_is_overwritten(tmp_path: Path) -> None:
    short = (*MOONS[:4], "--max_steps", 2, "--warmup_epoch_num", 0)
    for expected in ("größe 1", "größe 1-2", "größe 1-3"):
        outcome = run("--name", "größe 1", *short, cwd=tmp_path)
        assert outcome.summary(expected)["name"] == expected
        assert f"results: results/{expected}" in outcome.out
        assert json.loads((outcome.folder(expected) / "commandline_args.txt").read_text())["name"] == expected
    (tmp_path / "results" / "größe 1" / "notes.txt").write_text("mine")
    outcome = run("--name", "größe 1", *short, "--seed", 3, "--overwrite", cwd=tmp_path)
    assert outcome.summary("größe 1")["seed"] == 3
    assert (outcome.folder("größe 1") / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["größe 1", "größe 1-2", "größe 1-3"]


@covers("config")
def test_a_runs_options_make_the_same_run_again(lab: Lab, tmp_path: Path) -> None:
    line = (*SURE, "--optimizer", "SGD", "--num_labels_percent", "5%")
    first = lab.moons(*line)
    again = run("--config", first.folder() / "commandline_args.txt", cwd=tmp_path)
    assert again.code == 0, again.err
    assert same_run(first, again)


@covers("resume")
def test_a_finished_run_that_is_resumed_stays_as_it_is(lab: Lab, tmp_path: Path) -> None:
    line = ("--name", "x", *MOONS, "--val_percent", "10%", "--ema", 0.9)
    first = run(*line, cwd=tmp_path)
    before = first.metrics(), first.checkpoint(), first.summary()
    again = run("--name", "x", "--resume", cwd=tmp_path)
    assert again.code == 0, again.err
    assert again.metrics() == before[0]
    assert same(again.checkpoint(), before[1])
    untimed = [{k: v for k, v in summary.items() if k not in CLOCK} for summary in (before[2], again.summary())]
    assert untimed[0] == untimed[1]
    assert not (tmp_path / "results" / "x-2").exists()


@covers("device")
def test_the_device_is_asked_for(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def choose(name: str) -> torch.device:
        asked.append(name)
        return torch.device("cpu")

    monkeypatch.setattr(context, "choose_device", choose)
    monkeypatch.setattr(prepare, "choose_device", choose)
    lab.run(*MOONS[:2], "--max_steps", 2, "--device", "cuda:7")
    assert asked == ["cuda:7"] * 2  # before the data are read, and for use


@covers("compile")
def test_the_networks_that_learn_are_compiled(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *args, **named: compiled.append(self))
    lab.moons("--compile")
    assert len(compiled) == 2


@pytest.mark.slow
def test_a_compiled_run_is_stored_without_a_trace_of_it(lab: Lab) -> None:
    outcome, plain = lab.moons("--compile", "--no_keep_pages"), lab.moons("--no_keep_pages")
    states = outcome.checkpoint()["models"], plain.checkpoint()["models"]
    assert {name: list(state) for name, state in states[0].items()} == {
        n: list(state) for n, state in states[1].items()
    }
    assert column(outcome, "supervised_loss") == pytest.approx(column(plain, "supervised_loss"), rel=1e-3)


@covers("num_workers")
@pytest.mark.slow
def test_workers_change_nothing_but_the_speed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = torch.utils.data.DataLoader

    def loader(*args: Any, **named: Any) -> Any:
        asked.append(named["num_workers"])
        return real(*args, **named)

    monkeypatch.setattr(torch.utils.data, "DataLoader", loader)
    alone = lab.images("--unfreeze", "all")
    assert set(asked) == {0}
    asked.clear()
    helped = lab.images("--unfreeze", "all", "--num_workers", 2)
    assert set(asked) == {2}
    assert alone.metrics() == helped.metrics()


@pytest.mark.parametrize("what", ["head", pytest.param("all", marks=pytest.mark.slow)])
def test_the_same_command_elsewhere_leaves_the_same(lab: Lab, tmp_path: Path, what: str) -> None:
    """From another working folder, with a bank of its own that two processes decode for."""
    few = ("--num_labels", 6, "--unlabeled_batch_size", 15, "--max_steps", 6, "--unfreeze", what)
    here = lab.images("--unfreeze", what)
    line = ("--data_dir", os.path.relpath(lab.data, tmp_path), *FROZEN, *few, "--num_workers", 2)
    there = run("--name", "x", *line, cwd=tmp_path)
    assert there.code == 0, there.err
    assert there.metrics() == here.metrics()
    assert same(there.checkpoint()["models"], here.checkpoint()["models"])


@pytest.mark.slow
def test_runs_on_equally_many_threads_are_equal(lab: Lab, tmp_path: Path) -> None:
    line = ("--data_dir", lab.data, *FROZEN, "--unfreeze", "all", "--num_labels", 6, "--max_steps", 6)
    outcomes = []
    try:
        torch.set_num_threads(2)
        for place in (tmp_path / "a", tmp_path / "b"):
            place.mkdir()
            outcomes.append(run("--name", "x", *line, cwd=place))
    finally:
        torch.set_num_threads(1)
    assert same_run(*outcomes)


@pytest.mark.parametrize(("freedom", "threads"), [("head", 1), ("all", 2)])
def test_small_heads_learn_on_one_thread(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, freedom: str, threads: int
) -> None:
    seen = set()
    monkeypatch.setattr(trainer, "fit", lambda *given: seen.add(torch.get_num_threads()))
    try:
        torch.set_num_threads(2)
        line = ("--data_dir", lab.data, *FROZEN, "--unfreeze", freedom, "--num_labels", 6, "--max_steps", 1)
        run("--name", "x", *line, "--calibration_folds", 0, cwd=tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert seen == {threads}


@covers("keep_pages")
def test_freed_memory_is_kept_unless_the_user_says_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(utils, "keep_pages", lambda: calls.append(1))
    run("--name", "x", "--data_dir", "absent", cwd=tmp_path)
    assert calls == [1]
    run("--name", "x", "--data_dir", "absent", "--no_keep_pages", cwd=tmp_path)
    assert calls == [1]


@covers("debug")
def test_an_unexpected_error_shows_its_traceback_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "prepare", lambda options: 1 // 0)
    assert run("--name", "x", *MOONS, cwd=tmp_path).code == 1
    with pytest.raises(ZeroDivisionError):
        run("--name", "x", *MOONS, "--debug", cwd=tmp_path)


@covers("tensorboard")
def test_curves_go_to_tensorboard_when_asked_for(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[Any, ...]] = []

    class Writer:
        def __init__(self, folder: Path) -> None:
            written.append(("folder", folder.name))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, step))

        def add_image(self, name: str, *args: object, **named: object) -> None:
            written.append((name, "picture"))

        def close(self) -> None:
            written.append(("closed",))

    monkeypatch.setattr(metrics_log, "_summary_writer", Writer)
    for module in (metrics_log, prepare):
        monkeypatch.setattr(module, "require_tensorboard", lambda: None)
    lab.moons("--tensorboard")
    assert written[0] == ("folder", "tensorboard")
    assert {("supervised_loss", 4), ("supervised_loss", 12), ("learning_rate_teacher", 8)} <= set(written)
    pictures = [name for name, *what in written if what == ["picture"]]
    models = ("teacher", "student", "ensemble")
    assert pictures == ["samples", *(f"confusion_matrix/{name}" for name in models)]
    assert written[-1] == ("closed",)


def test_without_the_option_nothing_of_tensorboard_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)  # whoever imports it fails
    outcome = run("--name", "x", *MOONS, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert not (outcome.folder() / "tensorboard").exists()
    assert not (outcome.folder() / "samples.png").exists()


def test_without_the_package_tensorboard_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    outcome = run("--name", "x", *MOONS, "--tensorboard", cwd=tmp_path)
    assert outcome.code == 2
    assert "pip install tensorboard" in outcome.err
    assert not (tmp_path / "results").exists()


@covers("head_prior")
def test_a_head_without_a_prior_learns_otherwise(lab: Lab) -> None:
    line = ("--data_dir", lab.data, *FROZEN, "--num_labels", 6, "--max_steps", 4)
    given, plain = lab.run(*line), lab.run(*line, "--head_prior", "none")
    assert not same(given.checkpoint()["models"], plain.checkpoint()["models"])


@covers("class_prior")
@pytest.mark.slow
def test_a_pile_that_is_not_like_the_labels_is_noticed(lab: Lab, tmp_path: Path) -> None:
    for (name, colour), count in zip(COLOURS.items(), (60, 20, 15), strict=True):
        make_images(tmp_path / "d" / name, count, colour)
    line = ("--data_dir", tmp_path / "d", *FROZEN, "--num_labels", 15, "--max_steps", 6, *SURE)
    noticed, told = lab.run(*line), lab.run(*line, "--class_prior", "labels")
    shares = noticed.summary()["class_prior"]
    assert shares[next(iter(COLOURS))] == max(shares.values()) > 0.5
    assert set(told.summary()["class_prior"].values()) == {0.3333}
    assert not same(noticed.checkpoint()["models"], told.checkpoint()["models"])


@covers("cache", "cache_dir", "cache_dtype", "cache_limit")
@pytest.mark.slow
def test_the_features_of_a_frozen_backbone_are_kept(lab: Lab, tmp_path: Path) -> None:
    line = ("--data_dir", lab.data, *FROZEN, "--num_labels", 6, "--max_steps", 3)

    def folders(name: str) -> set[Path]:
        return set((tmp_path / name).glob("*/bank.json"))

    uncached = run("--name", "a", *line, "--no_cache", cwd=tmp_path)
    assert uncached.code == 0, uncached.err
    assert not (tmp_path / "cache").exists()
    run("--name", "b", *line, cwd=tmp_path)
    assert len(folders("cache")) == 1
    run("--name", "c", *line, "--cache_dir", "my cache", "--cache_dtype", "float32", cwd=tmp_path)
    assert json.loads(folders("my cache").pop().read_text())["dtype"] == "float32"
    run("--name", "d", *line, "--seed", 9, "--cache_dir", "my cache", cwd=tmp_path)
    assert len(folders("my cache")) == 2
    outcome = run("--name", "e", *line, "--seed", 8, "--cache_dir", "my cache", "--cache_limit", 1e-6, cwd=tmp_path)
    assert len(folders("my cache")) == 1
    assert outcome.err.count("--cache_limit") == 2


# --- modes ------------------------------------------------------------------------------------------------------------


@covers("switch_mode")
def test_roles_change_every_epoch_in_switch_mode(lab: Lab) -> None:
    outcome = lab.moons("--switch_mode", "--max_steps", 20)
    assert [row["teacher"] for row in outcome.rows()] == ["model_1", "model_1", "model_2", "model_1", "model_2"]
    assert set(outcome.summary()["test"]) == {"model_1", "model_2", "ensemble"}
    assert outcome.summary()["mode"] == "switch"
    learners = outcome.checkpoint("last")["learners"]
    assert [learners[name]["step"] for name in ("model_1", "model_2")] == [20, 16]


@covers("finetune_mode")
def test_the_labels_only_baseline(lab: Lab) -> None:
    outcome = lab.moons("--finetune_mode")
    assert set(outcome.summary()["test"]) == {"student"}
    assert outcome.summary()["mode"] == "finetune"
    assert outcome.rows()[0].keys() == {"epoch", "step", "teacher", "supervised_loss", "learning_rate_student"}
    assert len(outcome.rows()) == 12  # an epoch is a pass over the labeled images, here one step
    more = lab.moons("--finetune_mode", "--no_include_labeled")
    assert more.metrics() == outcome.metrics()


@covers("finetune_mode", "load_path", "load_best")
@pytest.mark.parametrize("mode", ["mpl", "switch"])
def test_fine_tuning_a_trained_student(tmp_path: Path, mode: str) -> None:
    extra = ["--switch_mode"] if mode == "switch" else []
    base = run("--name", "exp", *MOONS, "--val_percent", "20%", "--max_lr", 0.02, *extra, cwd=tmp_path)
    assert base.code == 0, base.err
    tuned = run(
        "--name", "fine", "--finetune_mode", "--load_best", "--load_path", "exp", "--data_dir", "moons",
        "--max_steps", 3, "--max_lr", "1e-9", cwd=tmp_path,
    )  # fmt: skip
    assert tuned.code == 0, tuned.err
    assert set(tuned.summary("fine")["test"]) == {"student", "teacher", "ensemble"}
    trained, results = base.summary("exp"), tuned.summary("fine")
    for ours, theirs in (("student", "student" if mode == "mpl" else "model_2"), ("teacher", "teacher")):
        theirs = "model_1" if mode == "switch" and theirs == "teacher" else theirs
        assert results["test"][ours]["accuracy"] == trained["test"][theirs]["accuracy"]
    assert tuned.split("fine") == base.split("exp")
    last = run("--name", "last", "--finetune_mode", "--load_path", "exp", "--max_steps", 1, cwd=tmp_path)
    assert last.code == 0, last.err


@covers("test_mode", "load_path", "load_best")
def test_testing_writes_into_the_loaded_run(tmp_path: Path) -> None:
    base = run("--name", "exp", *MOONS, "--max_lr", 0.02, cwd=tmp_path)
    trained = base.summary("exp")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.pt").write_bytes((base.folder("exp") / "checkpoints" / "best.pt").read_bytes())
    places = ("exp", base.folder("exp"), base.folder("exp") / "checkpoints" / "best.pt", "/checkpoints/flowers/exp")
    for place in (*places, "elsewhere/mine.pt"):
        outcome = run("--test_mode", "--load_best", "--load_path", place, "--data_dir", "moons", cwd=tmp_path)
        assert outcome.code == 0, outcome.err
        folder = tmp_path / "elsewhere" if "mine" in str(place) else base.folder("exp")
        tested = json.loads((folder / "test_summary.json").read_text())
        assert tested["test"] == trained["test"]
        assert tested["mode"] == "test"
        (folder / "test_summary.json").unlink()
    assert base.summary("exp") == trained
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["exp"]
    assert run("--test_mode", "--load_path", "exp", cwd=tmp_path).code == 0


def test_images_that_were_learned_from_are_never_tested(lab: Lab, tmp_path: Path) -> None:
    base = lab.images()
    learned = base.split()["unlabeled"] + base.split()["labeled"]
    new = tmp_path / "new"
    make_images(new / "ähre", 3, COLOURS["ähre"], seed=1)
    make_images(new / "b c", 2, COLOURS["b c"], seed=1)
    for path in learned[:4]:
        (new / path).parent.mkdir(exist_ok=True)
        (new / path).with_suffix(".copy.png").write_bytes((lab.data / path).read_bytes())
    line = ("--test_mode", "--load_path", base.folder(), "--no_cache", "--num_workers", 0)
    outcome = run(*line, "--data_dir", new, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    tested = json.loads((base.folder() / "test_summary.json").read_text())
    assert tested["dataset"]["images"]["test"] == 5
    assert "4 more are left out" in outcome.out
    (new / "b c" / "bild 00.png").unlink()
    outcome = run("--name", "f", "--finetune_mode", "--load_path", base.folder(), "--seed", 77, cwd=tmp_path)
    assert outcome.code == 2
    assert "were training images of the loaded run" in outcome.err


def test_fine_tuning_may_open_the_backbone_of_a_frozen_run(lab: Lab, tmp_path: Path) -> None:
    base = lab.images()
    line = ("--finetune_mode", "--load_path", base.folder(), "--max_steps", 2, "--num_workers", 0)
    outcome = run("--name", "x", *line, "--unfreeze", "all", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert any(key.startswith("backbone.") for key in outcome.checkpoint()["models"]["student"])
    frozen = run("--name", "y", *line, cwd=tmp_path)
    assert frozen.checkpoint(name="y")["model"]["frozen"]
    assert same(frozen.backbone("y"), base.backbone())


def test_every_option_was_shown_to_have_an_effect() -> None:
    assert _covered == OPTIONS


# --- what a run leaves ------------------------------------------------------------------------------------------------

SUMMARY = {
    "name", "mode", "seed", "command", "dataset", "labels_used", "labels_unused", "val", "test", "best_epoch",
    "seconds", "peak_memory_bytes", "versions", "commit", "calibration", "class_prior", "precision", "views_with_prior",
    "backbones", "cross_validation", "decision",
}  # fmt: skip


def test_the_summary_has_the_keys_that_are_promised(lab: Lab) -> None:
    outcome = lab.images()
    summary = outcome.summary()
    assert set(summary) == SUMMARY
    assert summary["dataset"] == {
        "path": str(lab.data),
        "classes": sorted(COLOURS),
        "images": {"labeled": 6, "unlabeled": 30, "val": 0, "test": 6},
    }
    assert {"total", "training"} <= set(summary["seconds"])
    assert 0 < summary["seconds"]["training"] <= summary["seconds"]["total"]
    assert summary["val"] == {}
    assert set(summary["test"]) == {"teacher", "student", "ensemble"}
    for result in summary["test"].values():
        assert set(result) == {"accuracy", "ci95", "balanced_accuracy", "macro_f1", "per_class"}
        low, high = result["ci95"]
        assert 0 <= low <= result["accuracy"] <= high <= 1
        assert set(result["per_class"]) == set(COLOURS)
        assert all(0 <= value <= 1 for value in result["per_class"].values())
    assert summary["best_epoch"] == {"teacher": 3, "student": 3}
    assert summary["peak_memory_bytes"] > 1e6
    assert torch.__version__.startswith(summary["versions"]["torch"])
    assert summary["labels_used"] == 6


def test_the_files_that_a_run_leaves(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "d")
    (folder / "b c" / "broken.png").write_bytes(b"not a picture")
    (folder / "b c" / "cut.png").write_bytes((folder / "b c" / "bild 00.png").read_bytes()[:200])
    (folder / "b c" / "twin.png").write_bytes((folder / "b c" / "bild 00.png").read_bytes())
    (folder / "日本" / "stray.png").write_bytes((folder / "b c" / "bild 01.png").read_bytes())
    line = ("--name", "x", "--data_dir", folder, *FROZEN, "--num_labels", 6, "--max_steps", 6, "--show_images")
    outcome = run(*line, cwd=tmp_path, pictures=True)
    assert outcome.code == 0, outcome.err
    left = {path.relative_to(outcome.folder()).as_posix() for path in outcome.folder().rglob("*") if path.is_file()}
    pictures = {"graphs.png", "samples.png", "teacher_CM.png", "student_CM.png", "ensemble_CM.png", "reliability.png"}
    tables = {"commandline_args.txt", "metrics.csv", "summary.json", "split.csv", "bad_files.txt", "report.html"}
    tables |= {"unlabeled.csv", "label_next.csv"}
    assert left == pictures | tables | {
        "run.log", "written.txt", "checkpoints/last.pt", "checkpoints/best.pt",
    }  # fmt: skip
    for name in pictures:
        with Image.open(outcome.folder() / name) as image:
            assert image.format == "PNG"
            assert min(image.size) > 150
    bad = (outcome.folder() / "bad_files.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in bad] == ["b c/broken.png", "b c/cut.png"]
    assert all(line.split("\t")[1] for line in bad)
    split = outcome.split()
    assert set(split["bad"]) == {"b c/broken.png", "b c/cut.png"}
    assert len(split["duplicate"]) == 1
    in_conflict = set(split.get("conflict", [])) | {"b c/bild 01.png"}
    assert not in_conflict & set(split["labeled"] + split["test"])
    counts = outcome.summary()["dataset"]["images"]
    assert (len(split["labeled"]), len(split["test"])) == (counts["labeled"], counts["test"])
    warnings = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
    assert sum("left out" in line or "label is used" in line for line in warnings) == 3  # one a kind
    hashes = {line.split(",")[1] for line in (outcome.folder() / "split.csv").read_text().splitlines()[1:]}
    assert all(len(code) == 16 for code in hashes)


def test_the_metrics_of_a_run(lab: Lab) -> None:
    rows = lab.moons(*SURE, "--max_steps", 40).rows()
    assert [row["epoch"] for row in rows] == [str(n) for n in range(1, 11)]
    assert list(rows[0])[:3] == ["epoch", "step", "teacher"]
    assert not [name for name in rows[0] if "second" in name or "time" in name or "memory" in name]
    for row in rows:
        for name in ("mask_rate", "agreement", "pseudo_label_accuracy"):
            assert row[name] == "" or 0 <= float(row[name]) <= 1
    assert float(rows[-1]["supervised_loss"]) < float(rows[0]["supervised_loss"])


def test_the_screen_tells_what_was_found_and_where_the_results_are(lab: Lab) -> None:
    out = lab.images().out
    assert all(name in out for name in COLOURS)
    assert "training: step 6/6" in out
    assert "learned from 6 labels; cross-validated on 6 labels, in 2 folds, 2 times; tested on 6 images" in out
    assert "results: results/x" in out.splitlines()


def test_a_checkpoint_is_tensors_and_plain_values_without_wrappers(lab: Lab) -> None:
    content = lab.moons(*SURE).checkpoint("last")
    assert content["format"] == 1
    assert content["classes"] == ["0", "1"]
    assert len(content["seen"]) == 800
    for state in content["models"].values():
        assert not [key for key in state if key.startswith(("module.", "_orig_mod."))]


def test_no_run_leaves_a_trace_in_the_next(lab: Lab, tmp_path: Path) -> None:
    alone = lab.moons(*SURE)
    torch.manual_seed(12345)
    np.random.seed(54321)  # noqa: NPY002
    state = torch.get_rng_state()
    threads = torch.get_num_threads()
    run("--name", "other", "--data_dir", lab.data, *FROZEN, "--num_labels", 6, "--max_steps", 3, cwd=tmp_path)
    after = run("--name", "x", *MOONS, *SURE, cwd=tmp_path)
    assert same_run(alone, after)
    assert torch.get_num_threads() == threads
    assert not torch.is_autocast_enabled()
    assert torch.is_grad_enabled()
    del state


# --- killed and resumed -----------------------------------------------------------------------------------------------

# (moment, what is left to go on from)
MOMENTS = [
    pytest.param(Moment("runs.run:write_split"), marks=pytest.mark.slow),
    Moment("algorithms.algorithm:warmup_step", 2),
    pytest.param(Moment("algorithms.algorithm:mpl_step", 1), marks=pytest.mark.slow),
    Moment("algorithms.algorithm:mpl_step", 3, "after"),
    pytest.param(Moment("runs.metrics_log:MetricsLog.add", 2, "after"), marks=pytest.mark.slow),
    pytest.param(Moment("runs.checkpoints:save_checkpoint", 2), marks=pytest.mark.slow),
    Moment("runs.checkpoints:save_checkpoint", 2, "torn"),
    pytest.param(Moment("runs.checkpoints:save_checkpoint", 2, "after"), marks=pytest.mark.slow),
    pytest.param(Moment("runs.training:run_summary"), marks=pytest.mark.slow),
    Moment("runs.training:write_json"),
]


def resumed(moment: Moment, whole: Outcome, line: tuple[object, ...], cwd: Path) -> Outcome:
    killed(moment, "--name", "x", *line, cwd=cwd)
    assert not (cwd / "results" / "x" / "summary.json").exists()
    outcome = run("--name", "x", "--resume", cwd=cwd)
    assert outcome.code == 0, outcome.err
    assert same_run(whole, outcome)
    assert not list((cwd / "results").rglob(".part-*")) or moment.when == "torn"
    return outcome


@covers("resume")
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda m: f"{m.function}-{m.count}-{m.when}")
def test_a_killed_run_goes_on_bit_for_bit(lab: Lab, tmp_path: Path, moment: Moment) -> None:
    line = (*SURE, "--ema", 0.9, "--distribution_alignment", 0.5)
    resumed(moment, lab.moons(*line), (*MOONS, *line), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", [Moment("algorithms.algorithm:mpl_step", 2), Moment("runs.checkpoints:save_checkpoint", 1, "after")]
)
def test_a_killed_run_on_digits_goes_on_bit_for_bit(lab: Lab, tmp_path: Path, moment: Moment) -> None:
    line = (
        "--data_dir",
        "digits",
        "--unlabeled_batch_size",
        480,
        "--batch_size",
        20,
        "--max_steps",
        6,
        "--switch_mode",
    )
    resumed(moment, lab.run(*line), line, tmp_path)


BANK_MOMENTS = [
    pytest.param(Moment("features.bank:write_block", 1), marks=pytest.mark.slow),
    Moment("features.bank:write_block", 3, "torn"),
    pytest.param(Moment("features.bank:write_block", 3, "after"), marks=pytest.mark.slow),
    Moment("algorithms.algorithm:mpl_step", 3),
]


@pytest.mark.parametrize("moment", BANK_MOMENTS, ids=lambda m: f"{m.function}-{m.count}-{m.when}")
def test_a_killed_run_with_a_bank_goes_on_bit_for_bit(lab: Lab, tmp_path: Path, moment: Moment) -> None:
    line = ("--data_dir", lab.data, *FROZEN, "--num_labels", 6, "--unlabeled_batch_size", 15, "--max_steps", 6)
    resumed(moment, lab.images(), line, tmp_path)


@pytest.mark.parametrize(
    "moment", [Moment("runs.training:run_summary"), Moment("runs.metrics_log:MetricsLog.add", 4, "after")]
)
def test_a_run_that_had_stopped_early_does_not_train_on(lab: Lab, tmp_path: Path, moment: Moment) -> None:
    still = ("--val_percent", "20%", "--max_lr", "1e-12", "--max_steps", 40, "--patience", 2)
    resumed(moment, lab.moons(*still), (*MOONS, *still), tmp_path)


def test_a_killed_fine_tuning_goes_on_bit_for_bit(tmp_path: Path) -> None:
    run("--name", "exp", *MOONS, cwd=tmp_path)
    line = ("--finetune_mode", "--load_path", "exp", "--max_steps", 5)
    whole = run("--name", "x", *line, cwd=tmp_path)
    other = tmp_path / "other"
    (other / "results").mkdir(parents=True)
    (tmp_path / "results" / "exp").rename(other / "results" / "exp")
    resumed(Moment("algorithms.algorithm:supervised_step", 4), whole, line, other)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--seed", "5"], 2, "--seed"),
        (["--max_lr", "0.5"], 2, "--max_lr"),
        (["--max_steps", "99"], 2, "--max_steps"),
        (["--switch_mode"], 2, "--switch_mode"),
        (["--data_dir", "digits"], 2, "--data_dir"),
        (["--num_labels", "30"], 2, "--num_labels"),
        (["--overwrite"], 2, "exclude each other"),
        (["--data_dir", "moons", "--max_steps", "12", "--num_workers", "0", "--no_keep_pages"], 0, ""),
    ],
)
def test_a_resumed_run_keeps_its_options(tmp_path: Path, options: list[str], code: int, says: str) -> None:
    killed(Moment("algorithms.algorithm:mpl_step", 6), "--name", "x", *MOONS, cwd=tmp_path)
    outcome = run("--name", "x", "--resume", *options, cwd=tmp_path)
    assert outcome.code == code, outcome.err
    assert says in outcome.err
    assert len(outcome.complaint()) == (code == 2)
    assert (outcome.folder() / "summary.json").exists() == (code == 0)


def test_a_run_is_not_resumed_on_other_images(lab: Lab, tmp_path: Path) -> None:
    folder = make_data(tmp_path / "d")
    line = ("--data_dir", "d", *FROZEN, "--num_labels", 6, "--unlabeled_batch_size", 15, "--max_steps", 6)
    killed(Moment("algorithms.algorithm:mpl_step", 3), "--name", "x", *line, cwd=tmp_path)
    make_images(folder / "b c", 14, COLOURS["b c"], seed=9)
    outcome = run("--name", "x", "--resume", cwd=tmp_path)
    assert outcome.code == 2
    assert "have changed since the run began" in outcome.err


def test_a_loss_that_is_not_finite_ends_with_code_1_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    outcome = run("--name", "x", *MOONS, "--optimizer", "SGD", "--max_lr", "1e30", "--max_steps", 400, cwd=tmp_path)
    assert outcome.code == 1
    assert len(outcome.complaint()) == 1
    assert "not finite" in outcome.err
    assert "--max_lr" in outcome.err


def test_data_is_read_with_the_same_transform_everywhere(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    real = data.Dataset.read

    def read(self: data.Dataset, row: int, transform: Any) -> torch.Tensor:
        seen.add(transform)
        return real(self, row, transform)

    monkeypatch.setattr(data.Dataset, "read", read)
    lab.images("--unfreeze", "all", "--val_percent", "20%", "--seed", 3)
    assert len(seen) == 1


def test_an_optimizer_of_other_groups_is_no_traceback() -> None:
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    stored = torch.optim.AdamW(one.parameters()).state_dict()
    other = torch.optim.AdamW([{"params": [parameter]} for parameter in two.parameters()])
    with pytest.raises(utils.UserError, match="other layers than this version"), checkpoint.layers_checked():
        other.load_state_dict(stored)


@pytest.mark.slow
def test_a_run_that_goes_on_with_features_of_another_precision_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_data(tmp_path / "d", 12)
    line = ("--name", "x", "--data_dir", "d", *FROZEN, "--num_labels", 6, "--max_steps", 4, "--cache_dir", "c")
    monkeypatch.setattr("transfermpl.utils.cpu_multiplies_bf16", lambda: True)
    outcome = run(*line, cwd=tmp_path)
    assert outcome.summary()["precision"] == {"learning": "float32", "features": "bfloat16"}
    (outcome.folder() / "report.html").unlink()  # as if it had been stopped at its end
    assert "features in" not in run("--name", "x", "--resume", cwd=tmp_path).err
    monkeypatch.setattr("transfermpl.utils.cpu_multiplies_bf16", lambda: False)
    (outcome.folder() / "report.html").unlink()
    again = run("--name", "x", "--resume", cwd=tmp_path)
    assert again.code == 0, again.err
    assert "features in bfloat16 and goes on with features in float32" in again.err


# --- calibration's folds ----------------------------------------------------------------------------------------------


def test_folds_of_a_calibration_end_their_learning_rate_cycle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A fold has fewer images, so an epoch of it has fewer steps.
    line = ("--finetune_mode", "--num_epochs", 4, "--batch_size", 8, "--num_labels", 40, "--cache_dir", tmp_path)
    options = args.parse(["--name", "x", "--data_dir", "moons", *map(str, line)])
    dataset = data.find_dataset(options.data)
    training = make_trainer(options, dataset, data.split_dataset(dataset, options.data, 0))
    made, real = [], Trainer.learn
    monkeypatch.setattr(Trainer, "learn", lambda self, *a, **k: made.append(self) or real(self, *a, **k))
    calibration.cross_fitted(training, 4)
    assert [x.step for fold in made for x in fold.learners] == [training.schedule.total_steps] * 4
    assert max(x.learning_rate() for fold in made for x in fold.learners) < 1e-3 * options.learning.max_lr


def test_a_filled_bank_has_all_that_the_folds_of_a_calibration_ask_for(lab: Lab, tmp_path: Path) -> None:
    # A few images apiece would have the decoding processes started again for every fold.
    line = ("--data_dir", lab.data, *FROZEN, "--num_labels", 6, "--max_steps", 3, "--cache_dir", tmp_path)
    options = args.parse(["--name", "x", *map(str, line)])
    dataset = data.find_dataset(options.data)
    training = make_trainer(options, dataset, data.split_dataset(dataset, options.data, 0))
    fill_banks(training)
    [bank] = training.views.banks
    filled = bank.computed
    training.learn(experiment.Progress())
    assert calibration.held_out(training).method == "cross-fitted"
    assert run_training.learned_from(training) is not None
    assert 0 < bank.computed == filled


def test_a_run_whose_folds_are_too_small_ends_uncalibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_small(*given: object, **more: object) -> None:
        raise utils.UserError("batches of 1 images are too small")

    monkeypatch.setattr(calibration, "cross_fitted", too_small)
    outcome = run("--name", "x", *MOONS, "--calibration_folds", 2, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.summary()["calibration"]["reason"] == "batches of 1 images are too small"


def test_the_page_shows_calibrated_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(run_training, "write_run", lambda folder, summary, finished: shown.append(finished.tested))
    found = {"method": "validation", "images": 50, "temperatures": {"student": 10.0}}
    monkeypatch.setattr(run_training, "calibrate", lambda held: found)
    run("--name", "x", *MOONS, "--finetune_mode", cwd=tmp_path)
    assert shown[0]["student"].max() < 0.9


def test_a_run_that_has_ended_is_left_as_it_is(tmp_path: Path) -> None:
    first = run("--name", "x", *MOONS, cwd=tmp_path)
    before = {
        path: path.read_bytes() for path in first.folder().rglob("*") if path.name in ("summary.json", "report.html")
    }
    again = run("--name", "x", "--resume", cwd=tmp_path)
    assert again.code == 0
    assert "has ended already" in again.out
    assert len(before) == 2
    assert all(path.read_bytes() == content for path, content in before.items())
    (first.folder() / "report.html").unlink()  # as if it had been killed just before its end
    run("--name", "x", "--resume", cwd=tmp_path)
    assert (first.folder() / "report.html").is_file()
    assert "--data_dir moons" in first.summary()["command"]  # and not that of the line that went on


@pytest.mark.slow
def test_a_warm_bank_gives_the_same_summary_again(lab: Lab, tmp_path: Path) -> None:
    few = ("--num_labels", 6, "--unlabeled_batch_size", 15, "--max_steps", 6, "--cache_dir", tmp_path / "bank")
    summaries = []
    for name in ("cold", "warm", "again"):
        (tmp_path / name).mkdir()
        outcome = run("--name", "x", "--data_dir", lab.data, *FROZEN, *few, cwd=tmp_path / name)
        summary = outcome.summary()
        assert (summary["seconds"]["features"] > 0) == (name == "cold")
        summaries.append({k: v for k, v in summary.items() if k not in ("seconds", "peak_memory_bytes", "command")})
    assert summaries[0] == summaries[1] == summaries[2]
