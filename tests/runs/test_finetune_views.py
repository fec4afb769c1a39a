"""Views that are fine-tuned on the labeled images before they co-train, and the rates that their stages learn with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from runs import Moment, Outcome, killed, run, same, same_run
from transfermpl import args
from transfermpl.backbones import weights as weights_module
from transfermpl.backbones.backbone import Backbone
from transfermpl.backbones.registry import build_view, save_view
from transfermpl.data import folds_of
from transfermpl.images.decode import Transform
from transfermpl.models import PRETRAINED_LR_SCALE, Network, build_head, parameter_groups
from transfermpl.runs import finetuning, prepare
from transfermpl.runs import run as experiment
from transfermpl.runs.context import RunContext, make_context
from transfermpl.runs.networks import make_view, spec_of
from transfermpl.runs.prepare import make_trainer, views_key
from transfermpl.runs.trainer import Trainer

LINE = ("--name", "x", "--cotrain_mode", "--data_dir", "digits", "--num_labels", 40, "--max_steps", 12,
        "--unlabeled_batch_size", 400, "--augmentation_draws", 1, "--num_workers", 0,
        "--calibration_folds", 0)  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a tiny network's weights, as a user gives one."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_view(path, build_view("cnn=none", native_size=8, points=False, seed=3))
    return path


def line(pretrained: Path, *more: object) -> tuple[object, ...]:
    return (*LINE, "--views", f"cnn={pretrained}", "pixels", *more)


TUNED = ("--finetune_views", "--finetune_steps", 6)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Outcome:
    outcome = run(*line(pretrained, *TUNED), cwd=tmp_path_factory.mktemp("tuned"))
    assert outcome.code == 0, outcome.err
    return outcome


def weights(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: value.contiguous() for name, value in backbone.state_dict().items()}


# --- the rates --------------------------------------------------------------------------------------------------------


def network(*, pretrained: bool = True) -> Network:
    """Five stages, and a table beside them that belongs to none."""
    net = nn.Sequential(nn.Flatten(), *(nn.Linear(12, 12) for _ in range(5)))
    net.register_parameter("table", nn.Parameter(torch.zeros(2, 12)))
    transform = Transform(2, 2, "bilinear", (0.5,) * 3, (0.5,) * 3)
    backbone = Backbone(net, name="x", transform=transform, pretrained=pretrained, num_features=12)
    return Network(backbone, build_head(12, 3, seed_key=(0,)))


def rates(made: Network, layer_decay: float) -> dict[str, float]:
    groups = parameter_groups(made, weight_decay=0.1, layer_decay=layer_decay)
    rate = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    return {name: rate[id(p)] for name, p in made.named_parameters()}


def test_each_stage_learns_slower_than_the_one_after_it() -> None:
    found = rates(network(), 0.5)
    assert found["head.layers.1.weight"] == 1.0
    stages = [found[f"backbone.net.{i}.{kind}"] for i in range(1, 6) for kind in ("weight", "bias")]
    assert stages == [PRETRAINED_LR_SCALE * 0.5**i for i in (4, 4, 3, 3, 2, 2, 1, 1, 0, 0)]
    assert found["backbone.net.table"] == PRETRAINED_LR_SCALE * 0.5**4


def test_without_decay_the_groups_are_as_they_were() -> None:
    made = network()
    plain, one = (parameter_groups(made, weight_decay=0.1, **more) for more in ({}, {"layer_decay": 1.0}))
    assert [group["lr_scale"] for group in plain] == [PRETRAINED_LR_SCALE, PRETRAINED_LR_SCALE, 1.0, 1.0]
    assert [[id(p) for p in g["params"]] for g in plain] == [[id(p) for p in g["params"]] for g in one]


def test_a_backbone_from_scratch_learns_at_one_rate() -> None:
    assert set(rates(network(pretrained=False), 0.5).values()) == {1.0}


def test_a_tuned_view_decays_as_the_options_say(pretrained: Path) -> None:
    options = args.make({"name": "x", "cotrain_mode": True, "views": [f"cnn={pretrained}", "pixels"],
                         "finetune_views": True, "num_labels": 20, "num_workers": 0, "device": "cpu"})  # fmt: skip
    dataset = experiment.find_dataset(options.data)
    split = experiment.split_dataset(dataset, options.data, 0)
    for given, expected in ((None, prepare.LAYER_DECAY), (0.5, 0.5)):
        backbone = make_view(f"cnn={pretrained}", spec_of(options.model, dataset, 0))
        context = make_context(options.run, dataset, split)
        tuning = prepare.finetuning_trainer(backbone, options.changed(layer_decay=given), context)
        scales = sorted({group["lr_scale"] for group in tuning.learners[0].optimizer.param_groups})
        stages = len(backbone.stages())
        wanted = [PRETRAINED_LR_SCALE * expected**k for k in reversed(range(stages))] + [1.0]
        assert scales == pytest.approx(wanted)
        assert not any(m.training for m in backbone.train().modules() if isinstance(m, nn.BatchNorm2d))


# --- what is learned --------------------------------------------------------------------------------------------------


def test_the_tuned_view_is_what_co_training_stands_on(tuned: Outcome, pretrained: Path) -> None:
    kept = tuned.checkpoint()["views"]
    before = weights(build_view(f"cnn={pretrained}", native_size=8, points=False, seed=0))
    changed = {name for name, value in kept["cnn"]["backbone"].items() if not value.equal(before[name])}
    assert {name for name in before if name.endswith("weight")} <= changed
    # Batch norms were in eval mode: what they have seen of images is what it was.
    assert not {name for name in changed if "running" in name or "tracked" in name}
    assert tuned.summary()["finetuned_views"] == {"cnn": "views/cnn.safetensors"}
    assert [path.name for path in (tuned.folder() / "views").iterdir()] == ["cnn.safetensors"]


def test_a_tuned_view_can_be_named_as_a_view(tuned: Outcome) -> None:
    saved = tuned.folder() / "views" / "cnn.safetensors"
    again = build_view(f"cnn={saved}", native_size=8, points=False, seed=5)
    assert again.pretrained
    assert same(weights(again), dict(tuned.checkpoint()["views"]["cnn"]["backbone"]))
    # Its bank is that of the run: not one feature is computed again.
    banks = sorted((tuned.cwd / "cache").glob("*/bank.json"))
    outcome = run(*LINE, "--views", f"cnn={saved}", "pixels", "--max_steps", 12, "--name", "named", cwd=tuned.cwd)
    assert outcome.code == 0, outcome.err
    assert sorted((tuned.cwd / "cache").glob("*/bank.json")) == banks
    # After the warm-up a view that was not tuned by the run itself is calibrated.
    assert outcome.rows("named")[0] == tuned.rows()[0]
    assert "finetuned_views" not in outcome.summary("named") or outcome.summary("named")["finetuned_views"] == {}


@pytest.mark.slow
def test_a_tuned_view_is_never_measured_on_labels_that_it_learned(tuned: Outcome) -> None:
    """It knows them wherever it goes: to another split, another seed, the main job, folds, and a run made of it."""
    saved = tuned.folder() / "views" / "cnn.safetensors"
    learned = build_view(f"cnn={saved}", native_size=8, points=False, seed=5).learned
    assert len(learned) == 40
    assert set(learned.tolist()) <= set(tuned.checkpoint()["labels"].numpy().view(np.uint64).tolist())
    views = ("--views", f"cnn={saved}", "pixels")
    line = ("--data_dir", "digits", "--seed", 1, "--num_labels", 40, "--max_steps", 2, "--num_workers", 0)
    main_job = ("--model_name", "cnn", "--weights", saved, "--image_size", 16)
    for more in (("--cotrain_mode", *views), main_job):
        other = run("--name", "other", *line, *more, cwd=tuned.cwd)
        assert other.code == 2
        assert "fine-tuned on the labels of" in other.err.splitlines()[-1]
        assert not other.folder("other").exists()
    for more in (("--view_report",), ("--cotrain_mode", "--optuna_mode", "--n_trials", 1)):
        folds = run("--name", "folds", *line, "--seed", 0, *more, *views, cwd=tuned.cwd)
        assert folds.code == 2
        assert "labels of" in folds.err.splitlines()[-1]
    named = run("--name", "same", *line, "--seed", 0, "--cotrain_mode", *views, cwd=tuned.cwd)
    assert named.code == 0, named.err
    assert "that folds would hold out" in named.summary("same")["calibration"]["reason"]
    assert "fine-tuned" not in named.err  # the user has done nothing wrong


def test_seeds_that_would_test_on_a_views_labels_are_refused_before_the_first(tuned: Outcome) -> None:
    views = ("--views", f"cnn={tuned.folder() / 'views' / 'cnn.safetensors'}", "pixels")
    for how in (("--cotrain_mode", "--repeat", 2), ("--compare", "--repeat", 2)):
        refused = run(*LINE[:2], *LINE[3:], "--name", "seeds", *views, *how, cwd=tuned.cwd)
        assert refused.code == 2
        assert "fine-tuned on the labels of" in refused.err.splitlines()[-1]
        assert not refused.folder("seeds").exists()


def test_the_view_report_minds_no_test_that_it_does_not_touch(tuned: Outcome, pretrained: Path) -> None:
    views = ("--views", f"cnn={tuned.folder() / 'views' / 'cnn.safetensors'}", "pixels")
    labeled = set(tuned.split()["labeled"])
    for seed in range(1, 30):  # one whose test, but not whose labels, the view has learned of
        options = args.make({"name": "x", "seed": seed, "num_labels": 20})
        dataset = experiment.find_dataset(options.data)
        split = experiment.split_dataset(dataset, options.data, seed)
        mine, tested = ({dataset.paths[row] for row in rows.tolist()} for rows in (split.labeled, split.test))
        if not labeled & mine and labeled & tested:
            break
    line = ("--name", "r", "--view_report", "--data_dir", "digits", "--num_labels", 20, "--seed", seed, *views)
    outcome = run(*line, "--num_workers", 0, cwd=tuned.cwd)
    assert outcome.code == 0, outcome.err


@pytest.mark.slow
def test_inspect_does_not_doubt_labels_by_weights_that_learned_them(tuned: Outcome) -> None:
    saved = tuned.folder() / "views" / "cnn.safetensors"
    line = ("--inspect", "--data_dir", "digits", "--model_name", "cnn", "--weights", saved, "--image_size", 16)
    outcome = run("--name", "look", *line, "--num_workers", 0, cwd=tuned.cwd)
    assert outcome.code == 0, outcome.err
    assert "fine-tuned on these very labels" in outcome.out + outcome.err


def test_a_file_that_does_not_tell_its_labels_is_warned_of(
    tmp_path: Path, tuned: Outcome, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    saved = tuned.folder() / "views" / "cnn.safetensors"
    with safe_open(saved, framework="pt") as file:
        record = json.loads(file.metadata()["view"])
    del record["learned"]
    for text, told in ((json.dumps(record), True), ("not json", False), ("[1]", False), ('{"other": 1}', False)):
        save_file(load_file(saved), tmp_path / "old.safetensors", metadata={"view": text})
        found = weights_module.record_in(str(tmp_path / "old.safetensors"))
        assert ("does not say which labels" in capsys.readouterr().err) == told
        assert (found == record) == told
        assert len(weights_module.learned_in(found)) == 0


@pytest.mark.slow
def test_what_a_loaded_run_knows_of_its_views_labels(tuned: Outcome) -> None:
    """A later run that takes the view has learned its labels too, so that no test of that run counts them."""
    saved = tuned.folder() / "views" / "cnn.safetensors"
    line = (*LINE, "--views", f"cnn={saved}", "pixels", "--num_labels", 20, "--test_percent", 0, "--name", "later")
    later = run(*line, cwd=tuned.cwd)
    assert later.code == 0, later.err
    content = later.checkpoint(name="later")
    for name in ("labels", "seen"):
        assert np.isin(tuned.checkpoint()["labels"].numpy(), content[name].numpy()).all()


def test_only_labeled_images_are_learned_from(
    tuned: Outcome, monkeypatch: pytest.MonkeyPatch, pretrained: Path
) -> None:
    splits = []
    make = prepare.finetuning_trainer

    def look(backbone: Backbone, options: args.Options, context: RunContext) -> Trainer:
        made = make(backbone, options, context)
        splits.append(made.context.split)
        return made

    monkeypatch.setattr(prepare, "finetuning_trainer", look)
    options = args.make({"name": "x", "cotrain_mode": True, "views": [f"cnn={pretrained}", "pixels"], "device": "cpu",
                         "finetune_views": True, "finetune_steps": 1, "num_labels": 20, "num_workers": 0,
                         "cache": False})  # fmt: skip
    dataset = experiment.find_dataset(options.data)
    split = experiment.split_dataset(dataset, options.data, 0)
    make_trainer(options, dataset, split)
    fold = folds_of(dataset, split, 2, 0)[0]
    make_trainer(options, dataset, fold)
    assert [np.array_equal(seen.labeled, part.labeled) for seen, part in zip(splits, (split, fold), strict=True)]
    assert all(len(seen.unlabeled) == len(seen.val) == len(seen.test) == 0 for seen in splits)
    assert not np.isin(splits[1].labeled, fold.val).any()


def test_folds_do_not_share_a_tuned_view(pretrained: Path) -> None:
    options = args.make({"name": "x", "cotrain_mode": True, "views": ["cnn", "pixels"], "num_labels": 20})
    dataset = experiment.find_dataset(options.data)
    split = experiment.split_dataset(dataset, options.data, 0)
    parts = folds_of(dataset, split, 2, 0)
    plain = {views_key(options, part) for part in parts}
    each = {views_key(options.changed(finetune_views=True), part) for part in parts}
    assert (len(plain), len(each)) == (1, 2)


@pytest.mark.slow
def test_a_run_that_goes_on_does_not_tune_again(
    tuned: Outcome, tmp_path: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(Moment("runs.checkpoints:save_checkpoint", 2, "after"), *line(pretrained, *TUNED), cwd=tmp_path)

    def refuse(*_: object) -> Backbone:
        raise AssertionError("tuned again")

    monkeypatch.setattr(prepare, "finetune", refuse)
    outcome = run("--name", "x", "--resume", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert same_run(outcome, tuned)


@pytest.mark.slow
def test_views_without_parameters_are_left_as_they_are(tmp_path: Path) -> None:
    outcome = run(*LINE, "--views", "pixels", "gradients", *TUNED, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "fine-tuning" not in outcome.out
    assert outcome.summary()["finetuned_views"] == {}
    assert not (outcome.folder() / "views").exists()


@pytest.mark.slow
def test_calibration_folds_never_take_the_runs_own_tuned_view(
    tmp_path: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, tune = [], finetuning.finetune

    def count(trainer: Trainer) -> Backbone:
        rows.append(len(trainer.context.split.labeled))
        return tune(trainer)

    monkeypatch.setattr(prepare, "finetune", count)
    more = ("--calibration_folds", 2)
    killed(Moment("runs.run:finish"), *line(pretrained, *TUNED, *more), cwd=tmp_path)
    outcome = run("--name", "x", "--resume", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert rows == [20, 20]


def test_views_of_one_name_and_odd_names_have_files_of_their_own() -> None:
    files = finetuning.view_files(["timm:test_vit.a", "cnn", "cnn-2"])
    assert files["timm:test_vit.a"] == "views/timm_test_vit.a.safetensors"
    assert len(set(files.values())) == 3
