"""Co-training and Meta Co-Training: the formulas in float64 on tiny nets, and runs end to end."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_train as single
import torch
import torch.nn.functional as F
from PIL import Image
from test_train import PLAIN, WIDTH

from runs import Moment, Outcome, killed, make_data, run, same, same_run
from transfermpl import args, train
from transfermpl.algorithms import cotraining_steps
from transfermpl.algorithms.cotraining_steps import STEPS, meta_step
from transfermpl.args import Learning
from transfermpl.data import find_dataset, folds_of, split_dataset
from transfermpl.learning.batches import Batch
from transfermpl.learning.learner import Learner
from transfermpl.runs import calibration, unlabeled
from transfermpl.runs import run as experiment
from transfermpl.runs.prepare import fill_banks, make_trainer
from transfermpl.runs.trainer import Trainer
from transfermpl.train import Hooks, Progress, StepConfig


def views_of(count: int, learning: Learning = PLAIN, optimizer: str | None = None) -> list[Learner]:
    return [single.learner(seed, learning, f"view_{seed}", optimizer) for seed in range(count)]


def batches_of(count: int, labeled: int = 4, unlabeled: int = single.IMAGES) -> list[Batch]:
    """The same images seen `count` ways: other features, the same labels."""
    given = single.batch(labeled, unlabeled)
    turned = []
    for seed in range(count):
        torch.manual_seed(50 + seed)
        turn = torch.randn(WIDTH, WIDTH).double()
        turned.append(replace(given, labeled=given.labeled @ turn, weak=given.weak @ turn, strong=given.strong @ turn))
    return turned


def second_gradients(
    learners: Sequence[Learner], views: Sequence[Batch], learning: Learning, optimizer: str | None = None
) -> tuple[list[list[torch.Tensor]], dict[str, torch.Tensor], list[Learner]]:
    """What lies in `.grad` at the second update of each view, the measurements, and the learners at theta'."""
    copies = [single.copy_of(learner, optimizer) for learner in learners]
    kept: list[list[torch.Tensor]] = [[] for _ in copies]
    for copy, own in zip(copies, kept, strict=True):
        updates = iter([copy.update, lambda copy=copy, own=own: own.extend(p.grad.clone() for p in copy.parameters)])
        copy.update = lambda updates=updates: next(updates)()  # type: ignore[method-assign]
    measured = meta_step(copies, views, 1, StepConfig(learning))
    assert all(kept)
    return kept, measured, copies


def feedback_gradients(
    learners: Sequence[Learner], views: Sequence[Batch], learning: Learning, optimizer: str | None = None
) -> list[list[torch.Tensor]]:
    """The part of each view's second gradient that the others' gains bring."""
    on, off = (
        second_gradients(learners, views, replace(learning, mpl_weight=w), optimizer)[0]
        for w in (learning.mpl_weight, 0.0)
    )
    return [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(on, off, strict=True)]


# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "classes", "optimizer"),
    [
        (2, 3, "sgd"),
        pytest.param(2, 3, "momentum", marks=pytest.mark.slow),
        pytest.param(2, 3, "adamw", marks=pytest.mark.slow),
        pytest.param(3, 2, "adamw", marks=pytest.mark.slow),
    ],
)
def test_expected_feedback_gradient_is_the_exact_one(
    count: int, classes: int, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Enumerating all labels of all views: the mean of what the step adds to view j's gradient is the gradient of
    sum over i != j of sum P(y_i) L_l,i(theta_i'(y_i)), taken by autograd through a_i."""
    monkeypatch.setattr(single, "CLASSES", classes)
    for module in (train, cotraining_steps):
        monkeypatch.setattr(module, "scale_feedback", lambda gain, moments: gain)
    learners, views, images = views_of(count, optimizer=optimizer), batches_of(count), torch.arange(single.IMAGES)
    losses = [single.student_losses(x, given, optimizer) for x, given in zip(learners, views, strict=True)]
    own = [x.network(given.strong).softmax(dim=1) for x, given in zip(learners, views, strict=True)]
    others = [sum(p for j, p in enumerate(own) if j != i) / (count - 1) for i in range(count)]
    chances = [{y: a[images, torch.tensor(y)].prod() for y in losses[0]} for a in others]
    expected = sum(chances[i][y] * loss for i in range(count) for y, loss in losses[i].items())
    exact = torch.autograd.grad(expected, [p for x in learners for p in x.parameters])

    totals = [torch.zeros_like(p) for x in learners for p in x.parameters]
    for joint in itertools.product(losses[0], repeat=count):
        gradients = []
        for weight in (1.0, 0.0):
            # The step itself runs, with its labels replaced by each labeling in turn, as if they had been drawn.
            drawn = iter(joint)
            monkeypatch.setattr(cotraining_steps, "pseudo_labels", lambda a, drawn=drawn: torch.tensor(next(drawn)))
            kept, _, _ = second_gradients(learners, views, replace(PLAIN, mpl_weight=weight), optimizer)
            gradients.append([g for rows in kept for g in rows])
        chance = torch.stack([chances[i][y] for i, y in enumerate(joint)]).prod().detach()
        for total, on, off in zip(totals, *gradients, strict=True):
            total += chance * single.IMAGES * (on - off)  # the step's loss is a mean over images, the theorem's a sum
    for ours, theirs in zip(totals, exact, strict=True):
        assert theirs.abs().max() > 1e-6
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_supervised_gradient_reaches_the_update(parts: int) -> None:
    """Without feedback and consistency the second gradient is that of the labeled images at theta', no more."""
    learning, views = replace(PLAIN, mpl_weight=0.0, grad_accumulation=parts), batches_of(2)
    learners = views_of(2, learning)
    kept, measured, moved = second_gradients(learners, views, learning)
    for own, learner, before, given in zip(kept, moved, learners, views, strict=True):
        assert not any(p.equal(old) for p, old in zip(learner.parameters, before.parameters, strict=True))
        loss = F.cross_entropy(learner.network(given.labeled), given.labels)
        assert float(measured[f"supervised_loss_{learner.name}"]) == pytest.approx(float(loss.detach()))
        for ours, theirs in zip(own, torch.autograd.grad(loss, learner.parameters), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_the_consistency_gradient_is_taken_before_the_weights_move() -> None:
    learning, views = replace(PLAIN, mpl_weight=0.0, lambda_u=0.7, uda_steps=0), batches_of(2)
    learners = views_of(2, learning)
    with_, without = (second_gradients(learners, views, replace(learning, lambda_u=weight))[0] for weight in (0.7, 0.0))
    for on, off, learner, given in zip(with_, without, learners, views, strict=True):
        target = learner.network(given.weak).detach().div(learning.temperature).softmax(dim=1)
        loss = -0.7 * (target * learner.network(given.strong).log_softmax(dim=1)).sum(dim=1).mean()
        for a, b, theirs in zip(on, off, torch.autograd.grad(loss, learner.parameters), strict=True):
            torch.testing.assert_close(a - b, theirs, rtol=0, atol=1e-12)


def test_a_view_learns_what_the_others_say() -> None:
    """The first update is one by CE(y_i, z_i), y_i the likeliest class under the mean of the others' weak targets."""
    learners, views = views_of(3), batches_of(3)
    _, _, moved = second_gradients(learners, views, PLAIN)
    own = [x.network(given.weak).softmax(dim=1) for x, given in zip(learners, views, strict=True)]
    for i, (learner, given, ours) in enumerate(zip(learners, views, moved, strict=True)):
        labels = sum(p for j, p in enumerate(own) if j != i).argmax(dim=1)
        student = single.copy_of(learner, None)
        F.cross_entropy(student.network(given.strong), labels).backward()
        student.update()
        for a, b in zip(ours.parameters, student.parameters, strict=True):
            torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [2, 3])
def test_accumulated_micro_batches_equal_the_whole_batch(count: int) -> None:
    """Two updates a view and ONE h an update for the whole batch, whatever it is cut into."""
    results = []
    for parts in (1, 2, 3):
        learning = replace(PLAIN, grad_accumulation=parts, lambda_u=0.5, mpl_weight=2.0)
        learners = views_of(count, learning)
        measured = meta_step(learners, batches_of(count, labeled=7, unlabeled=5), 1, StepConfig(learning))
        assert [learner.step for learner in learners] == [2] * count
        assert all(float(x.moments[1]) > 0 for x in learners)
        results.append(([p for x in learners for p in x.parameters], measured))
    for parameters, measured in results[1:]:
        for ours, whole in zip(parameters, results[0][0], strict=True):
            torch.testing.assert_close(ours, whole, rtol=0, atol=1e-9)
        for name, whole in results[0][1].items():
            torch.testing.assert_close(measured[name].double(), whole.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_one_gain_an_update(precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    scaled: list[float] = []
    original = train.scale_feedback
    for module in (train, cotraining_steps):
        monkeypatch.setattr(
            module, "scale_feedback", lambda gain, *rest: scaled.append(float(gain)) or original(gain, *rest)
        )
    learning = replace(PLAIN, grad_accumulation=3)
    learners = views_of(2, learning)
    if precision == torch.bfloat16:
        for learner in learners:
            learner.network.float()
    views = [as_float(given) if precision == torch.bfloat16 else given for given in batches_of(2, 7, 5)]
    measured = meta_step(learners, views, 1, StepConfig(learning, precision=precision))
    assert scaled == [float(measured[f"feedback_h_{learner.name}"]) for learner in learners]


def as_float(given: Batch) -> Batch:
    return Batch(given.labeled.float(), given.labels, given.weak.float(), given.strong.float(), given.hidden)


@pytest.mark.parametrize("name", ["cotraining", "labels_only"])
def test_the_other_algorithms_accumulate_too(name: str) -> None:
    results = []
    for parts in (1, 3):
        learning = replace(PLAIN, grad_accumulation=parts)
        learners = views_of(2, learning)
        measured = STEPS[name](learners, batches_of(2, labeled=7, unlabeled=5), 1, StepConfig(learning))
        assert set(measured) == set(cotraining_steps.measured(name, [x.name for x in learners]))
        results.append([*(p for x in learners for p in x.parameters), *(v.double() for v in measured.values())])
    for whole, cut in zip(*results, strict=True):
        torch.testing.assert_close(cut, whole, rtol=0, atol=1e-6)


def test_a_view_learns_only_labels_that_the_others_are_sure_of() -> None:
    learners, views = views_of(2), batches_of(2, unlabeled=6)
    sure = [x.network(given.weak).detach().softmax(dim=1) for x, given in zip(learners, views, strict=True)]
    threshold = float(torch.cat([p.amax(dim=1) for p in sure]).median())
    learning = replace(PLAIN, threshold=threshold)
    _, _, moved = second_gradients(learners, views, learning)
    for i, (learner, given, ours) in enumerate(zip(learners, views, moved, strict=True)):
        mask = (sure[1 - i].amax(dim=1) >= threshold).double()
        assert 0 < mask.sum() < 6
        per_image = F.cross_entropy(learner.network(given.strong), sure[1 - i].argmax(dim=1), reduction="none")
        expected = single.copy_of(learner, None)
        for p, g in zip(
            expected.parameters, torch.autograd.grad((mask * per_image).mean(), learner.parameters), strict=True
        ):
            p.grad = g
        expected.update()
        for a, b in zip(ours.parameters, expected.parameters, strict=True):
            torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=1e-10)


def test_cotraining_is_the_same_step_without_feedback() -> None:
    results = []
    for step, weight in ((STEPS["cotraining"], 2.0), (meta_step, 0.0), (meta_step, 2.0)):
        learning = replace(PLAIN, mpl_weight=weight, lambda_u=0.5)
        learners = views_of(2, learning)
        step(learners, batches_of(2), 1, StepConfig(learning))
        results.append([p.detach() for x in learners for p in x.parameters])
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


@pytest.mark.parametrize("name", ["cotraining", "meta"])
def test_the_consistency_loss_is_raised_from_the_end_of_the_warm_up(name: str) -> None:
    """Before it, views learn from labels alone: counted from the start, nothing would be left of the ramp."""
    learning = replace(PLAIN, lambda_u=1.0, uda_steps=80)
    weights = []
    for step in (100, 139, 179, 400):
        learners = views_of(2, learning)
        moved = []
        for lambda_u in (0.0, 1.0):
            ours = [single.copy_of(x, None) for x in learners]
            config = StepConfig(replace(learning, lambda_u=lambda_u, mpl_weight=0.0), warmup_steps=100)
            STEPS[name](ours, batches_of(2), step, config)
            moved.append(torch.cat([p.detach().flatten() for p in ours[0].parameters]))
        weights.append(float((moved[1] - moved[0]).norm()))
    assert [w / weights[-1] for w in weights] == pytest.approx([1 / 80, 0.5, 1.0, 1.0], rel=0.01)


@pytest.mark.parametrize("count", [2, 3])
def test_learned_and_judged_labels_are_one_tensor(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    learned, judged = [], []
    learn, judge = cotraining_steps.masked_cross_entropy, cotraining_steps.masked_negative_log
    monkeypatch.setattr(
        cotraining_steps, "masked_cross_entropy", lambda z, y, mask: learned.append(y) or learn(z, y, mask)
    )
    monkeypatch.setattr(
        cotraining_steps, "masked_negative_log", lambda a, y, mask: judged.append(y) or judge(a, y, mask)
    )
    meta_step(views_of(count), batches_of(count), 1, StepConfig(PLAIN))
    assert len(learned) == len(judged) == count
    assert all(a is b for a, b in zip(learned, judged, strict=True))
    assert len({id(y) for y in learned}) == count


@pytest.mark.parametrize("parts", [1, 2])
def test_both_exams_use_the_same_labeled_batch(parts: int) -> None:
    """h_i is L_l,i(theta_i) - L_l,i(theta_i') on the step's labeled batch, plain and in full."""
    learning = replace(PLAIN, label_smoothing=0.2, grad_accumulation=parts)
    learners, views = views_of(2, learning), batches_of(2, labeled=7, unlabeled=5)
    _, measured, moved = second_gradients(learners, views, learning)
    for before, after, given in zip(learners, moved, views, strict=True):
        old, new = (F.cross_entropy(x.network(given.labeled), given.labels).detach() for x in (before, after))
        torch.testing.assert_close(measured[f"feedback_h_{before.name}"], old - new, rtol=0, atol=1e-12)
        smooth = F.cross_entropy(after.network(given.labeled), given.labels, label_smoothing=0.2).detach()
        assert float(measured[f"supervised_loss_{before.name}"]) == pytest.approx(float(smooth))


def test_both_exams_draw_the_same_dropout() -> None:
    """With a rate of 0 the update changes nothing, so the gain is 0 exactly, dropout or not."""
    learning = replace(PLAIN, max_lr=1e-300)
    learners = views_of(2, learning)
    for learner in learners:
        learner.network.append(torch.nn.Dropout(0.5))
    measured = meta_step(learners, batches_of(2), 1, StepConfig(learning))
    assert [float(measured[f"feedback_h_{learner.name}"]) for learner in learners] == [0.0, 0.0]


def test_exams_leave_batch_norms_alone() -> None:
    """A step writes running statistics as often as it learns: once by the strong images, once by the labeled ones."""
    learners = []
    for seed in range(2):
        torch.manual_seed(seed)
        layers = (torch.nn.Linear(WIDTH, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, single.CLASSES))
        network = torch.nn.Sequential(*layers).double()
        learners.append(Learner(f"view_{seed}", network, PLAIN, classes=single.CLASSES, start=0, total=10))
    meta_step(learners, batches_of(2, unlabeled=4), 1, StepConfig(PLAIN))
    assert [int(learner.network[1].num_batches_tracked) for learner in learners] == [2, 2]


@pytest.mark.parametrize("parts", [1, 3])
def test_clipping_is_of_the_whole_unscaled_gradient(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once an update, of the gradient summed over micro-batches; the gain is that of the clipped update."""
    learning = replace(PLAIN, grad_clip=0.01, grad_accumulation=parts, mpl_weight=5.0)
    learners, views = views_of(2, learning), batches_of(2, labeled=7, unlabeled=5)
    before: list[list[torch.Tensor]] = []
    clip = torch.nn.utils.clip_grad_norm_

    def spy(parameters: list[torch.Tensor], limit: float) -> torch.Tensor:
        before.append([p.grad.clone() for p in parameters if p.grad is not None])
        norm = clip(parameters, limit)
        after = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        assert float(after.norm()) == pytest.approx(0.01, rel=1e-3)
        return norm

    loose = replace(learning, grad_clip=0.0, grad_accumulation=1)
    labels = [x.network(given.weak).argmax(dim=1) for x, given in zip(learners, views, strict=True)]
    exact = [
        torch.autograd.grad(F.cross_entropy(x.network(given.strong), labels[1 - i]), x.parameters)
        for i, (x, given) in enumerate(zip(learners, views, strict=True))
    ]
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    measured = meta_step([single.copy_of(x, None) for x in learners], views, 1, StepConfig(learning))
    assert len(before) == 4
    for ours, theirs in zip(before[:2], exact, strict=True):
        assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(ours, theirs, strict=True))
    free = meta_step(views_of(2, loose), views, 1, StepConfig(loose))
    names = [f"feedback_h_{x.name}" for x in learners]
    assert all(abs(float(measured[name])) < abs(float(free[name])) for name in names)


def test_the_gain_of_a_view_never_weighs_its_own_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong labels for view 0 change h_0: the feedback of view 1 follows it, that of view 0 stays the same."""
    monkeypatch.setattr(cotraining_steps, "scale_feedback", lambda gain, moments: gain)
    learners, views = views_of(2), batches_of(2)
    misled = [replace(views[0], labels=(views[0].labels + 1) % single.CLASSES), views[1]]
    gains = [second_gradients(learners, given, PLAIN)[1]["feedback_h_view_0"] for given in (views, misled)]
    assert gains[0] != gains[1]
    right, wrong = (feedback_gradients(learners, given, PLAIN) for given in (views, misled))
    for a, b in zip(right[0], wrong[0], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)
    for a, b in zip(right[1], wrong[1], strict=True):
        torch.testing.assert_close(a * gains[1] / gains[0], b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", STEPS)
def test_hidden_labels_change_nothing_but_the_diagnostics(name: str) -> None:
    outcomes = []
    for shift in (0, 1):
        views = [replace(given, hidden=(given.hidden + shift) % single.CLASSES) for given in batches_of(2)]
        learners = views_of(2)
        measured = STEPS[name](learners, views, 1, StepConfig(PLAIN))
        told = {k: v for k, v in measured.items() if not k.startswith("pseudo_label_accuracy")}
        assert (len(told) < len(measured)) == (name != "labels_only")
        outcomes.append((told, [p for x in learners for p in x.parameters]))
    assert same(*(told for told, _ in outcomes))
    assert same(*([p.detach() for p in weights] for _, weights in outcomes))


def test_unsure_labels_are_not_learned_and_not_judged() -> None:
    learning = replace(PLAIN, threshold=1.0)
    learners, views = views_of(2, learning), batches_of(2)
    kept, measured, moved = second_gradients(learners, views, learning)
    assert float(measured["student_mask_rate"]) == 0
    assert all(
        p.equal(old) for x, y in zip(moved, learners, strict=True)
        for p, old in zip(x.parameters, y.parameters, strict=True)
    )  # fmt: skip
    assert not any(g.any() for rows in feedback_gradients(learners, views, learning) for g in rows)
    assert any(g.any() for rows in kept for g in rows)


@pytest.mark.parametrize("count", [2, 3])
def test_a_views_own_weights_are_no_part_of_its_feedback(count: int) -> None:
    learners = views_of(count)
    told = cotraining_steps.exchange(learners, batches_of(count), StepConfig(PLAIN))
    for i, loss in enumerate(told.feedback):
        parameters = [learner.parameters[0] for learner in learners]
        reached = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        assert [j for j, gradient in enumerate(reached) if gradient is None] == [i]


def test_calibration_reaches_what_the_views_tell_each_other() -> None:
    """A view at temperature tau speaks by softmax(z / tau)."""
    learners, views = views_of(3), batches_of(3)
    told = []
    for tau in (1.0, 50.0):
        learners[0].temperature.fill_(tau)
        told.append(cotraining_steps.exchange(learners, views, StepConfig(PLAIN)))
    changes = [float((a - b).detach().abs()) for a, b in zip(told[0].feedback, told[1].feedback, strict=True)]
    assert changes[0] < 1e-12  # what view 0 learns comes from the others
    assert min(changes[1:]) > 1e-3


# --- runs -------------------------------------------------------------------------------------------------------------

VIEWS = ("--cotrain_mode", "--views", "pixels", "gradients")
QUICK = ("--num_labels", 6, "--unlabeled_batch_size", 15, "--max_steps", 8, "--num_workers", 0, "--warmup_epoch_num", 1)
# Views that are as wide as these have pixels take seven of a short run's eight seconds for their prior.
QUICK += ("--head_prior", "none")
SURE = ("--threshold", "0.35", "--max_lr", "0.01", "--augmentation_draws", 2)


class Lab:
    """Co-trained runs named `x` on one small data set and one bank, each started once."""

    def __init__(self, root: Path) -> None:
        self.root, self.done = root, {}  # type: Path, dict[tuple[str, ...], Outcome]
        self.data = make_data(root / "bilder")

    def line(self, *arguments: object, views: tuple[str, ...] = VIEWS) -> tuple[object, ...]:
        bank = ("--cache_dir", self.root / "bank", "--calibration_folds", 0)
        return "--name", "x", *views, "--data_dir", self.data, *QUICK, *SURE, *bank, *arguments

    def run(self, *arguments: object, views: tuple[str, ...] = VIEWS) -> Outcome:
        key = (*views, *map(str, arguments))
        if key not in self.done:
            cwd = self.root / f"run{len(self.done)}"
            cwd.mkdir()
            self.done[key] = outcome = run(*self.line(*arguments, views=views), cwd=cwd)
            assert outcome.code == 0, outcome.err
        return self.done[key]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("cotraining"))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["meta", "cotraining"])
def test_a_run_leaves_the_usual_files(algorithm: str, tmp_path: Path) -> None:
    line = ("--name", "x", *VIEWS, "--data_dir", "digits", "--algorithm", algorithm, "--augmentation_draws", 1)
    outcome = run(*line, "--max_steps", 12, "--unlabeled_batch_size", 500, "--warmup_epoch_num", 1, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    names = ["pixels", "gradients", "ensemble"]
    files = ["metrics.csv", "graphs.png", "summary.json", "report.html", "split.csv", "commandline_args.txt"]
    files += ["checkpoints/best.pt", "checkpoints/last.pt", *(f"{name}_CM.png" for name in names)]
    assert [name for name in files if not (outcome.folder() / name).is_file()] == []
    summary = outcome.summary()
    assert summary["mode"] == "cotrain"
    assert list(summary["test"]) == names
    assert min(result["accuracy"] for result in summary["test"].values()) > 0.3
    assert set(outcome.checkpoint()["models"]) == set(names[:2])
    measured = cotraining_steps.measured(algorithm, names[:2])
    assert all(outcome.rows()[-1][name] for name in measured)
    assert outcome.rows()[0]["student_mask_rate"] == ""  # of the warm-up


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(lab: Lab, tmp_path: Path) -> None:
    more = ("--ema", 0.9, "--head_prior", "unlabeled")
    whole, line = lab.run(*more), lab.line(*more)
    killed(Moment("runs.training:save_last", 2, "after"), *line, cwd=tmp_path)
    assert not (tmp_path / "results" / "x" / "summary.json").exists()
    again = run("--name", "x", "--resume", cwd=tmp_path)
    assert again.code == 0, again.err
    assert "going on after epoch 2" in again.out
    assert same_run(whole, again)


@pytest.mark.slow
def test_a_co_trained_run_is_tested_and_applied(lab: Lab, tmp_path: Path) -> None:
    trained = lab.run()
    tested = run("--test_mode", "--load_path", trained.folder(), cwd=tmp_path)
    assert tested.code == 0, tested.err
    again = json.loads((trained.folder() / "test_summary.json").read_text(encoding="utf-8"))
    for name, result in trained.summary()["test"].items():
        assert again["test"][name]["accuracy"] == result["accuracy"]
    predicted = run(
        "--predict_dir", lab.data, "--load_path", trained.folder(), "--out", tmp_path / "p.csv", cwd=tmp_path
    )
    assert predicted.code == 0, predicted.err
    assert len((tmp_path / "p.csv").read_text(encoding="utf-8").splitlines()) == 1 + 36


@pytest.mark.slow
def test_wrong_labels_in_the_pool_change_nothing_but_the_diagnostics(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = lab.run()
    split_dataset = experiment.split_dataset

    def misled(dataset: Any, *rest: Any) -> Any:
        split = split_dataset(dataset, *rest)
        pool = np.setdiff1d(split.unlabeled, split.labeled)
        dataset.labels[pool] = (dataset.labels[pool] + 1) % len(dataset.classes)
        return split

    monkeypatch.setattr(experiment, "split_dataset", misled)
    wrong = run(*lab.line(), cwd=tmp_path)
    assert wrong.code == 0, wrong.err
    rows = [
        [{k: v for k, v in row.items() if not k.startswith("pseudo_label_accuracy")} for row in outcome.rows()]
        for outcome in (right, wrong)
    ]
    assert rows[0] == rows[1]
    assert right.metrics() != wrong.metrics()
    assert same(right.checkpoint()["models"], wrong.checkpoint()["models"])
    assert right.summary()["test"] == wrong.summary()["test"]


CHANGES: dict[str, list[object]] = {
    "algorithm": ["cotraining"],
    "mpl_weight": [3],
    "threshold": [0.7],
    "temperature": [2],
    "lambda_u": [0.1],
    "uda_steps": [20],
    "distribution_alignment": [0],
    "label_smoothing": [0.2],
    "grad_clip": [0.01],
    "grad_accumulation": [2],
    "optimizer": ["SGD"],
    "weight_decay": [5],
    "batch_size": [4],
    "max_lr": [0.02],
    "seed": [3],
    "warmup_epoch_num": [0],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_an_option_changes_what_the_views_learn(lab: Lab, name: str) -> None:
    changed = lab.run(f"--{name}", *CHANGES[name])
    assert changed.metrics() != lab.run().metrics()
    assert not same(changed.checkpoint()["models"], lab.run().checkpoint()["models"])


@pytest.mark.slow
def test_the_average_of_weights_is_what_is_tested(lab: Lab) -> None:
    # Without a warm-up there is no calibration, which would look at the average too.
    base, averaged = (lab.run("--warmup_epoch_num", 0, *more) for more in ((), ("--ema", 0.9)))
    assert averaged.metrics() == base.metrics()
    assert not same(averaged.checkpoint()["models"], base.checkpoint()["models"])


@pytest.mark.parametrize("algorithm", STEPS)
def test_three_views(lab: Lab, algorithm: str) -> None:
    """The third by the name of a backbone from scratch: a frozen random one is a view too."""
    views = ("--cotrain_mode", "--views", "pixels", "gradients", "cnn=none")
    outcome = lab.run("--algorithm", algorithm, views=views)
    assert list(outcome.summary()["test"]) == ["pixels", "gradients", "cnn", "ensemble"]


def test_views_see_the_same_images_at_sizes_of_their_own(lab: Lab) -> None:
    stored = lab.run().checkpoint()["views"]
    sizes = {name: view["record"]["transform"]["size"] for name, view in stored.items()}
    assert sizes["pixels"] != sizes["gradients"]


def test_two_views_of_one_name(lab: Lab) -> None:
    outcome = lab.run(views=("--cotrain_mode", "--views", "pixels", "pixels"))
    assert list(outcome.summary()["test"]) == ["pixels", "pixels-2", "ensemble"]
    assert (outcome.folder() / "pixels-2_CM.png").is_file()


@pytest.mark.parametrize(
    ("views", "told"),
    [
        (("pixels",), "--views"),
        (("pixels", "gradient"), "did you mean gradients"),
        (("pixels", "no_such_net"), "no_such_net"),
        (("pixels", "squeezenet1_1=nowhere.safetensors"), "nowhere.safetensors"),
        ((), "--views"),
    ],
)
def test_views_that_will_not_do_are_told_in_one_line(
    lab: Lab, tmp_path: Path, views: tuple[str, ...], told: str
) -> None:
    named = ("--views", *views) if views else ()
    outcome = run(*lab.line(views=("--cotrain_mode", *named)), cwd=tmp_path)
    assert outcome.code == 2
    assert len(outcome.complaint()) == 1
    assert told in outcome.complaint()[0]
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_a_view_with_constant_features(tmp_path: Path) -> None:
    """Pictures of one colour each have no gradients: that view says nothing, the other one learns all the same."""
    random = np.random.default_rng(0)
    for name, colour in {"a": (210, 60, 50), "b": (60, 190, 70), "c": (60, 70, 210)}.items():
        (tmp_path / "d" / name).mkdir(parents=True)
        for index in range(10):
            tone = np.clip(np.array(colour) + random.integers(-30, 30, 3), 0, 255).astype(np.uint8)
            Image.new("RGB", (20, 20), tuple(tone.tolist())).save(tmp_path / "d" / name / f"{index}.png")
    for algorithm in STEPS:
        line = ("--name", algorithm, *VIEWS, "--data_dir", "d", "--algorithm", algorithm, *QUICK, *SURE)
        outcome = run(*line, "--max_steps", 20, cwd=tmp_path)
        assert outcome.code == 0, outcome.err
        assert outcome.summary(algorithm)["test"]["pixels"]["accuracy"] > 0.6


@pytest.mark.parametrize("algorithm", STEPS)
def test_a_class_missing_from_a_batch(lab: Lab, algorithm: str) -> None:
    outcome = lab.run("--algorithm", algorithm, "--batch_size", 2)
    assert {float(row["step"]) for row in outcome.rows()} >= {8.0}
    assert set(outcome.summary()["test"]) == {"pixels", "gradients", "ensemble"}


# --- calibration within a training ------------------------------------------------------------------------------------


def training_of(cwd: Path, *arguments: object, **changes: Any) -> Trainer:
    """A training on digits that is not begun; `changes` are those of its split."""
    line = ("--name", "x", *VIEWS, "--data_dir", "digits", "--augmentation_draws", 1, "--cache_dir", cwd / "bank")
    options = args.parse([str(word) for word in (*line, "--num_workers", 0, *arguments)])
    dataset = find_dataset(options.data)
    return make_trainer(options, dataset, split_dataset(dataset, options.data, 0))


def learn(trainer: Trainer, *, validated: bool = True) -> None:
    """The whole training, with what is calibrated after its warm-up."""
    hooks = Hooks(after_warmup=calibration.after_warmup(trainer, validated=validated))
    trainer.learn(Progress(), hooks, validated=validated)


@pytest.mark.slow
def test_what_a_fold_holds_out_moves_nothing_that_it_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SMALLEST_TEMPERATURE", 0.0)
    given = training_of(tmp_path, "--num_labels", 180, "--max_steps", 8, "--unlabeled_batch_size", 500)
    fold = folds_of(given.context.data, given.context.split, 3, 0)[0]
    assert len(fold.val) >= calibration.ENOUGH_TO_FIT
    predicted = []
    for shift in (0, 1):
        labels = given.context.data.labels.copy()
        labels[fold.val] = (labels[fold.val] + shift) % 10
        training = make_trainer(given.options, replace(given.context.data, labels=labels), fold)
        fill_banks(training)
        learn(training, validated=False)
        assert any(float(x.temperature) != 1 for x in training.learners)
        predicted.append(training.predictions(fold.val)["ensemble"])
    np.testing.assert_array_equal(*predicted)


@pytest.mark.slow
def test_tau_is_fitted_at_the_end_of_a_warm_up_that_ends_within_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "view_temperatures", lambda trainer, validated: {"pixels": 2.0})
    training = training_of(tmp_path, "--num_labels", 40, "--max_steps", 40)
    assert training.schedule.warmup_steps % training.schedule.steps_per_epoch
    fill_banks(training)
    learn(training)
    assert [float(learner.temperature) for learner in training.learners] == [2.0, 1.0]


@pytest.mark.slow
def test_tau_makes_no_view_surer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = {"pixels": 0.5, "gradients": 2.0}
    monkeypatch.setattr(calibration, "fit_temperatures", lambda predictions, labels: fitted)
    training = training_of(tmp_path, "--num_labels", 40, "--max_steps", 8, "--unlabeled_batch_size", 500)
    fill_banks(training)
    learn(training)
    assert [float(learner.temperature) for learner in training.learners] == [1.0, 2.0]


@pytest.mark.slow
def test_the_folds_of_a_calibration_have_the_tau_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = training_of(tmp_path, "--num_labels", 40, "--max_steps", 8, "--unlabeled_batch_size", 500)
    for learner, tau in zip(training.learners, (2.0, 1.5), strict=True):
        learner.calibrate(tau)
    made, real = [], Trainer.learn
    monkeypatch.setattr(Trainer, "learn", lambda self, *a, **k: made.append(self) or real(self, *a, **k))
    calibration.cross_fitted(training, 2)
    assert [[float(x.temperature) for x in fold.learners] for fold in made] == [[2.0, 1.5]] * 2


@pytest.mark.slow
def test_all_folds_have_the_prior_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that end with the warm-up, and see fewer draws: tau is that of the heads that will speak."""
    fits, real = [], unlabeled.fit_axes
    monkeypatch.setattr(unlabeled, "fit_axes", lambda views: fits.append(views) or real(views))
    line = ("--num_labels", 40, "--max_steps", 20, "--unlabeled_batch_size", 500, "--augmentation_draws", 4)
    training = training_of(tmp_path, *line)
    assert training.sampler.wanted(training.schedule.warmup_steps).keys() < training.sampler.wanted(20).keys()
    fill_banks(training)
    learn(training)
    calibration.held_out(training)
    assert len(fits) == len(training.views) == 2


def test_a_co_trained_run_is_not_fine_tuned_as_if_it_were_a_student(lab: Lab, tmp_path: Path) -> None:
    outcome = lab.run()
    line = lab.line("--finetune_mode", "--load_path", outcome.folder().resolve(), views=())
    refused = run(*line[2:], "--name", "y", cwd=tmp_path)
    assert refused.code == 2
    assert "pixels, gradients" in refused.err
