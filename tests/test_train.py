"""The formulas, in float64 on tiny nets; roles, schedules, checkpoints."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from transfermpl import train
from transfermpl.args import Learning
from transfermpl.learning.batches import Batch
from transfermpl.learning.checkpoint import load_checkpoint, save_checkpoint
from transfermpl.learning.learner import Learner, one_cycle
from transfermpl.train import (
    Hooks,
    Progress,
    Schedule,
    StepConfig,
    TrainingFault,
    consistency_loss,
    fit,
    mpl_step,
    progress_state,
    restore_progress,
    supervised_step,
    warmup_step,
)
from transfermpl.utils import UserError

CLASSES, IMAGES, WIDTH = 3, 2, 4
PLAIN = Learning(
    max_lr=0.05,
    weight_decay=0.0,
    lambda_u=0.0,
    mpl_weight=1.0,
    threshold=0.0,
    optimizer="SGD",
)
OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.05),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.05, weight_decay=0.1),
}


def tiny(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()


def learner(seed: int, learning: Learning = PLAIN, name: str = "x", optimizer: str | None = None) -> Learner:
    made = Learner(name, tiny(seed), learning, classes=CLASSES, start=0, total=100)
    if optimizer is not None:
        made.optimizer = OPTIMIZERS[optimizer]([{"params": made.parameters, "lr_scale": 1.0}])
        warm_up(made)
    return made


def warm_up(made: Learner) -> None:
    """A few updates, so that momentum and second moments are not empty."""
    for seed in range(3):
        torch.manual_seed(100 + seed)
        made.network(torch.randn(4, WIDTH).double()).square().mean().backward()
        made.update()


def batch(labeled: int = 4, unlabeled: int = IMAGES) -> Batch:
    torch.manual_seed(7)
    x = torch.randn(labeled + 2 * unlabeled, WIDTH).double()
    labels = torch.arange(labeled) % CLASSES
    x_l, weak, strong = x.split([labeled, unlabeled, unlabeled])
    return Batch(x_l, labels, weak, strong, torch.arange(unlabeled) % CLASSES)


def copy_of(made: Learner, optimizer: str | None) -> Learner:
    other = learner(0, made.learning, made.name, optimizer)
    other.load_state_dict(copy.deepcopy(made.state_dict()))  # torch's optimizers share loaded buffers
    return other


def student_losses(student: Learner, given: Batch, optimizer: str) -> dict[tuple[int, ...], torch.Tensor]:
    """L_l(theta'(y)) for every labeling y of the unlabeled images."""
    losses = {}
    for labels in itertools.product(range(CLASSES), repeat=IMAGES):
        trained = copy_of(student, optimizer)
        F.cross_entropy(trained.network(given.strong), torch.tensor(labels)).backward()
        trained.update()
        losses[labels] = F.cross_entropy(trained.network(given.labeled), given.labels).detach()
    return losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_expected_feedback_gradient_is_the_exact_one(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enumerating all labels: sum P(y) h(y) sum_b grad CE(y_b, q_b) = grad of sum P(y) L_l(theta'(y)), by autograd."""
    teacher, student, given = learner(1), learner(2, optimizer=optimizer), batch()
    losses = student_losses(student, given, optimizer)
    log_q = teacher.network(given.strong).log_softmax(dim=1)
    expected_loss = sum(
        log_q[torch.arange(IMAGES), torch.tensor(labels)].sum().exp() * loss for labels, loss in losses.items()
    )
    exact = torch.autograd.grad(expected_loss, teacher.parameters)

    monkeypatch.setattr(train, "scale_feedback", lambda gain, moments: gain)
    total = [torch.zeros_like(p) for p in teacher.parameters]
    for labels in losses:
        # The step itself runs, with its labels replaced by each labeling in turn, as if it had been drawn.
        drawn = torch.tensor(labels)
        monkeypatch.setattr(train, "pseudo_labels", lambda target, drawn=drawn: drawn)
        probability = log_q[torch.arange(IMAGES), drawn].sum().exp().detach()
        gradient = feedback_gradient(teacher, student, given, PLAIN, optimizer)
        for sum_, g in zip(total, gradient, strict=True):
            sum_ += probability * IMAGES * g  # the step's CE is a mean over the images, the theorem's a sum
    for ours, theirs in zip(total, exact, strict=True):
        # difference() is old minus new, so descending h * CE descends the expected new loss.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def feedback_gradient(
    teacher: Learner, student: Learner, given: Batch, learning: Learning, optimizer: str | None = None
) -> list[torch.Tensor]:
    """What `mpl_step` puts into the teacher's .grad beyond the supervised gradient."""
    gradients = []
    for weight in (1.0, 0.0):
        taught, pupil = copy_of(teacher, None), copy_of(student, optimizer)
        kept: list[torch.Tensor] = []
        taught.update = lambda taught=taught, kept=kept: kept.extend(p.grad.clone() for p in taught.parameters)  # type: ignore[method-assign]
        mpl_step((taught, pupil), given, 1, StepConfig(replace(learning, mpl_weight=weight)))
        gradients.append(kept)
    return [with_feedback - without for with_feedback, without in zip(*gradients, strict=True)]


def test_sign_of_the_feedback() -> None:
    """A label that helped the student becomes likelier for the teacher, one that hurt it less likely."""
    given = batch(labeled=3, unlabeled=1)
    given = replace(given, strong=given.labeled[:1], weak=given.labeled[:1], labels=torch.zeros(3, dtype=torch.long))
    for label, helps in ((0, True), (1, False)):
        teacher, student = learner(1), learner(2)
        before = teacher.network(given.strong).log_softmax(dim=1)[0, label].item()
        forced = partial(_forced_labels, label=label)
        measured = _with_labels(forced, teacher, student, given)
        assert (float(measured["feedback_h"]) > 0) == helps
        gradient = feedback_only_change(teacher, student, given, forced)
        assert (gradient > before) == helps


def _forced_labels(target, label):  # type: ignore[no-untyped-def]
    return torch.full((len(target),), label)


def _with_labels(forced, teacher, student, given, learning=PLAIN):  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "pseudo_labels", forced)
        return mpl_step((copy_of(teacher, None), copy_of(student, None)), given, 1, StepConfig(learning))


def feedback_only_change(teacher: Learner, student: Learner, given: Batch, forced) -> float:  # type: ignore[no-untyped-def]
    """The label's log-likelihood after an update by the feedback alone."""
    label = int(forced(given.strong)[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "pseudo_labels", forced)
        gradient = feedback_gradient(teacher, student, given, PLAIN)
    moved = copy_of(teacher, None)
    with torch.no_grad():
        for parameter, g in zip(moved.parameters, gradient, strict=True):
            parameter -= 0.1 * g / max(float(g.norm()), 1e-12)
    return moved.network(given.strong).log_softmax(dim=1)[0, label].item()


def test_consistency_is_a_mean_over_all_images_with_masked_ones_counted() -> None:
    target, strong = torch.eye(3), torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    loss = consistency_loss(target, strong, torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(loss, -strong.log_softmax(dim=1)[0, 0] / 3)


def test_target_has_no_gradient_and_temperature_sharpens() -> None:
    teacher = learner(1)
    weak = teacher.network(batch().weak)
    cold, mask = train.confident_target(weak, teacher, replace(PLAIN, temperature=0.1, threshold=0.9))
    warm, _ = train.confident_target(weak, teacher, replace(PLAIN, temperature=10.0))
    with torch.no_grad():
        assert (cold.amax(dim=1) > warm.amax(dim=1)).all()
    torch.testing.assert_close(mask, (cold.amax(dim=1) >= 0.9).float())


def test_both_exams_use_the_same_labeled_batch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = train.labeled_loss

    def spy(student, given, step, config):  # type: ignore[no-untyped-def]
        hook = student.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            return original(student, given, step, config)
        finally:
            hook.remove()

    monkeypatch.setattr(train, "labeled_loss", spy)
    given = batch()
    mpl_step((learner(1), learner(2)), given, 1, StepConfig(PLAIN))
    assert len(seen) == 2
    assert all(torch.equal(x, given.labeled) for x in seen)


def test_exams_draw_the_same_dropout_and_leave_batch_norms_alone() -> None:
    network = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, CLASSES)).double()
    student = Learner("s", network, PLAIN, classes=CLASSES, start=0, total=10)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    first, second = (train.labeled_loss(student, batch(), 3, StepConfig(PLAIN)) for _ in range(2))
    assert first.equal(second)
    assert not first.equal(train.labeled_loss(student, batch(), 4, StepConfig(PLAIN)))
    assert all(v.equal(before[k]) for k, v in network.state_dict().items())


def test_one_target_is_learned_by_teacher_and_student_and_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The aligned prediction on the weak image: its confidence is the mask of all three, its argmax the label."""
    learning, given = replace(PLAIN, distribution_alignment=1.0), batch(unlabeled=8)
    teacher, same = learner(1, learning), learner(1, learning)
    teacher.class_prior = same.class_prior = torch.tensor([0.2, 0.2, 0.6])
    target, _ = train.confident_target(same.network(given.weak).detach(), same, learning)
    assert not target.argmax(dim=1).equal(teacher.network(given.strong).argmax(dim=1))
    learning = replace(learning, threshold=float(target.amax(dim=1).median()))
    mask = (target.amax(dim=1) >= learning.threshold).float()
    assert 0 < float(mask.mean()) < 1
    used, learned = [], []
    judge, follow = train.masked_cross_entropy, train.consistency_loss
    monkeypatch.setattr(train, "masked_cross_entropy", lambda z, *rest: used.append(rest) or judge(z, *rest))
    monkeypatch.setattr(train, "consistency_loss", lambda *given: learned.append(given) or follow(*given))
    mpl_step((teacher, learner(2, learning)), given, 1, StepConfig(learning))
    assert len(used) == 2
    assert used[0][0] is used[1][0]
    assert used[0][0].equal(target.argmax(dim=1))
    assert all(x.equal(mask) for x in (used[0][1], used[1][1], learned[0][2]))
    torch.testing.assert_close(learned[0][0], target)


def test_accumulated_micro_batches_equal_the_whole_batch() -> None:
    """One student step and ONE h for the whole batch, whatever it is cut into."""
    results = []
    for parts in (1, 2, 3):
        learning = replace(PLAIN, grad_accumulation=parts, lambda_u=0.5, mpl_weight=2.0)
        teacher, student = learner(1, learning), learner(2, learning)
        # Step 0 is one at which the gradients are taken apart also for a single part.
        measured = mpl_step((teacher, student), batch(labeled=7, unlabeled=5), 1, StepConfig(learning))
        results.append(([*teacher.parameters, *student.parameters], measured))
    for parameters, measured in results[1:]:
        for ours, whole in zip(parameters, results[0][0], strict=True):
            torch.testing.assert_close(ours, whole, rtol=0, atol=1e-12)
        for name in ("supervised_loss", "uda_loss", "student_loss", "feedback_loss", "feedback_h", "agreement"):
            torch.testing.assert_close(measured[name].double(), results[0][1][name].double(), rtol=0, atol=1e-7)


def test_gradients_apart_give_the_update_of_one_backward_pass() -> None:
    updates = []
    for step in (0, 1):  # at step 0 the ratio is measured
        teacher, student = learner(1), learner(2)
        measured = mpl_step((teacher, student), batch(), step, StepConfig(replace(PLAIN, uda_steps=0)))
        updates.append(teacher.parameters)
        assert ("feedback_ratio" in measured) == (step == 0)
    for apart, together in zip(*updates, strict=True):
        torch.testing.assert_close(apart, together, rtol=0, atol=1e-12)


def test_without_feedback_the_teacher_learns_as_in_the_warm_up() -> None:
    learning = replace(PLAIN, mpl_weight=0.0, lambda_u=0.5)
    alone, teacher = learner(1, learning), learner(1, learning)
    warmup_step((alone, learner(2)), batch(), 1, StepConfig(learning))
    mpl_step((teacher, learner(2, learning)), batch(), 1, StepConfig(learning))
    assert all(a.equal(b) for a, b in zip(alone.parameters, teacher.parameters, strict=True))


def test_hidden_labels_change_nothing_but_the_diagnostics() -> None:
    outcomes = []
    for shift in (0, 1):
        given = batch()
        assert given.hidden is not None
        given = replace(given, hidden=(given.hidden + shift) % CLASSES)
        teacher, student = learner(1), learner(2)
        measured = mpl_step((teacher, student), given, 1, StepConfig(PLAIN))
        measured.pop("pseudo_label_accuracy")
        outcomes.append((measured, [*teacher.parameters, *student.parameters]))
    assert all(outcomes[0][0][name].equal(outcomes[1][0][name]) for name in outcomes[0][0])
    assert all(a.equal(b) for a, b in zip(outcomes[0][1], outcomes[1][1], strict=True))


def test_scaled_feedback_keeps_its_sign_and_becomes_visible() -> None:
    moments = torch.zeros(2)
    scaled = [float(train.scale_feedback(torch.tensor(h), moments)) for h in (1e-4, -2e-4, 3e-4)]
    assert scaled[0] == pytest.approx(1.0)
    assert [x > 0 for x in scaled] == [True, False, True]


def test_what_measures_the_gain_can_be_given() -> None:
    asked: list[tuple[object, ...]] = []

    def gain_of(*given: object) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(given)
        gain, _ = train.student_gain(*given)  # type: ignore[arg-type]
        return gain, torch.zeros_like(gain)

    outcomes = []
    for learning, given in ((PLAIN, gain_of), (replace(PLAIN, mpl_weight=0.0), None)):
        teacher, student = learner(1, learning), learner(2, learning)
        mpl_step((teacher, student), batch(), 1, StepConfig(learning), given)
        outcomes.append([p.detach() for x in (teacher, student) for p in x.parameters])
    assert len(asked) == 1
    for ours, without in zip(*outcomes, strict=True):  # a factor of 0 is a feedback that is turned off
        torch.testing.assert_close(ours, without, rtol=0, atol=1e-12)


def test_masked_student_labels_are_not_learned_and_not_judged() -> None:
    learning = replace(PLAIN, threshold=1.0)
    student, teacher = learner(2, learning), learner(1, learning)
    before = [p.clone() for p in student.parameters]
    measured = mpl_step((teacher, student), batch(), 1, StepConfig(learning))
    assert float(measured["mask_rate"]) == 0
    assert float(measured["feedback_loss"]) == 0
    assert all(a.equal(b) for a, b in zip(before, student.parameters, strict=True))


def test_alignment_lifts_the_rare_class() -> None:
    made = learner(1)
    probabilities = torch.tensor([[0.8, 0.15, 0.05], [0.7, 0.2, 0.1]])
    aligned = train.align(probabilities, made, 1.0)
    assert aligned.sum(dim=1) == pytest.approx([1.0, 1.0])
    assert (aligned[:, 2] > probabilities[:, 2]).all()


def test_alignment_leads_to_the_shares_that_the_learner_knows() -> None:
    made = learner(1)
    made.class_prior = torch.tensor([0.7, 0.2, 0.1])
    predicted = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.1, 0.6, 0.3]])
    made.marginal.copy_(predicted.mean(dim=0))
    for strength, expected in ((1.0, made.class_prior), (0.0, torch.full((3,), 1 / 3))):
        unsure = train.align(torch.full((1, 3), 1 / 3) if not strength else made.marginal[None].clone(), made, strength)
        assert unsure[0] == pytest.approx(expected, abs=1e-6)
    # A class that is nowhere is predicted nowhere.
    made.class_prior = torch.tensor([0.5, 0.5, 0.0])
    assert (train.align(predicted, made, 1.0)[:, 2] == 0).all()


def test_alignment_begins_with_the_first_predictions_whenever_they_come() -> None:
    late, fresh = learner(1), learner(1)
    late.step = 7  # of a warm-up that predicts nothing
    first, second = torch.tensor([[0.8, 0.15, 0.05]]), torch.tensor([[0.1, 0.2, 0.7]])
    assert train.align(first, late, 1.0).equal(train.align(first, fresh, 1.0))
    assert late.marginal.equal(first[0])
    train.align(second, late, 1.0)
    assert late.marginal.equal(first[0].lerp(second[0], 0.05))


def test_label_smoothing_reaches_the_supervised_loss() -> None:
    losses = []
    for smoothing in (0.0, 0.2):
        learning = replace(PLAIN, label_smoothing=smoothing)
        losses.append(
            float(supervised_step([learner(1, learning)], batch(), 0, StepConfig(learning))["supervised_loss"])
        )
    assert losses[0] != losses[1]


# --- learners and the loop --------------------------------------------------------------------------------------------


def test_one_cycle_is_that_of_torch() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=1001)
    for step in range(1000):
        # torch puts the peak at step 0.3 * total - 1 and counts to total - 1: one step beside ours.
        assert one_cycle(step / 1000) == pytest.approx(scheduler.get_last_lr()[0], abs=0.02)
        optimizer.step()
        scheduler.step()
    assert one_cycle(0.3) == 1.0
    assert one_cycle(0) == pytest.approx(1 / 25)


def test_roles_switch_every_epoch_after_the_warm_up() -> None:
    schedule = Schedule(steps_per_epoch=5, total_steps=30, warmup_steps=10, switch=True)
    pair = [learner(1, name="model_1"), learner(2, name="model_2")]
    teachers = [schedule.roles(step, pair)[0].name for step in range(0, 30, 5)]
    assert teachers == ["model_1", "model_1", "model_1", "model_2", "model_1", "model_2"]
    plain = Schedule(steps_per_epoch=5, total_steps=30, warmup_steps=10)
    assert {plain.roles(step, pair)[0].name for step in range(30)} == {"model_1"}


def test_each_learner_keeps_its_own_optimizer_and_cycle_in_switch_mode() -> None:
    pair = [learner(1, name="model_1"), learner(2, name="model_2")]
    pair[1].start = 4
    schedule = Schedule(steps_per_epoch=2, total_steps=12, warmup_steps=4, switch=True)
    config = StepConfig(PLAIN)
    steps = (partial(warmup_step, config=config), partial(mpl_step, config=config))
    progress = Progress()
    rates = []
    fit(
        pair, lambda step: batch(), steps, schedule, progress, Hooks(after_epoch=lambda row: rates.append(row) or False)
    )
    assert pair[0].optimizer is not pair[1].optimizer
    assert (pair[0].step, pair[1].step) == (12, 8)
    assert rates[0]["learning_rate_model_2"] == PLAIN.max_lr * one_cycle(0)  # not yet begun
    # Both cycles end with the run.
    assert rates[-1]["learning_rate_model_1"] == PLAIN.max_lr * one_cycle(12 / 100)
    assert [row["teacher"] for row in rates] == ["model_1", "model_1", "model_1", "model_2", "model_1", "model_2"]


def run_fit(progress: Progress, pair: list[Learner], learning: Learning, until: int, total: int = 12) -> list[dict]:
    schedule = Schedule(steps_per_epoch=3, total_steps=total, warmup_steps=3)
    config = StepConfig(learning, seed=5)
    steps = (partial(warmup_step, config=config), partial(mpl_step, config=config))
    fit(pair, lambda step: batch(), steps, schedule, progress, Hooks(after_epoch=lambda row: row["step"] >= until))
    return progress.rows


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_a_restored_run_goes_on_bit_for_bit(optimizer: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    learning = replace(
        PLAIN, optimizer=optimizer, ema=0.9, lambda_u=0.3, distribution_alignment=1.0, weight_decay=0.1,
    )  # fmt: skip
    whole = [learner(1, learning, "teacher"), learner(2, learning, "student")]
    rows = run_fit(Progress(), whole, learning, until=99)
    first = [learner(1, learning, "teacher"), learner(2, learning, "student")]
    progress = Progress()
    run_fit(progress, first, learning, until=6)
    save_checkpoint(tmp_path / "last.pt", {"format": 1, **progress_state(progress, first)})
    second = [learner(3, learning, "teacher"), learner(4, learning, "student")]
    restored = restore_progress(load_checkpoint(tmp_path / "last.pt"), second)
    assert restored.step == 6
    assert run_fit(restored, second, learning, until=99) == rows
    for a, b in zip(whole, second, strict=True):
        assert all(x.equal(y) for x, y in zip(a.parameters, b.parameters, strict=True))
        assert all(a.evaluation_state()[k].equal(v) for k, v in b.evaluation_state().items())


def test_a_loss_that_is_not_finite_stops_and_names_its_part() -> None:
    bad = batch()
    bad.labeled[0, 0] = float("nan")
    saves = []
    with pytest.raises(TrainingFault, match="supervised_loss"):
        fit(
            [learner(1, name="teacher")],
            lambda step: bad if step > 3 else batch(),
            (partial(supervised_step, config=StepConfig(PLAIN)),) * 2,
            Schedule(steps_per_epoch=2, total_steps=10),
            Progress(),
            Hooks(save=lambda: saves.append(1)),
        )
    assert not saves


def test_the_average_is_for_evaluation_only() -> None:
    made = learner(1, replace(PLAIN, ema=0.5))
    learned_before = [p.clone() for p in made.parameters]
    warm_up(made)
    learned = [p.clone() for p in made.parameters]
    with made.evaluated() as network:
        assert not all(a.equal(b) for a, b in zip(network.parameters(), learned, strict=True))
    assert all(a.equal(b) for a, b in zip(made.parameters, learned, strict=True))
    assert not all(a.equal(b) for a, b in zip(learned_before, learned, strict=True))


def test_clipping_bounds_the_gradient() -> None:
    made = learner(1, replace(PLAIN, grad_clip=1e-3))
    made.optimizer = torch.optim.SGD(made.optimizer.param_groups, lr=1.0)
    made.learning_rate = lambda: 1.0  # type: ignore[method-assign]
    for group in made.optimizer.param_groups:
        group |= {"momentum": 0.0, "nesterov": False}
    before = [p.clone() for p in made.parameters]
    (1e6 * made.network(batch().labeled).square().mean()).backward()
    made.update()
    change = torch.cat([(a - b).detach().flatten() for a, b in zip(before, made.parameters, strict=True)])
    assert float(change.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_the_best_epoch_is_kept_by_its_own_models_metric() -> None:
    progress = Progress()
    teacher, student = learner(1, name="teacher"), learner(2, name="student")
    for epoch, (of_teacher, of_student) in enumerate([(0.5, 0.1), (0.4, 0.9), (0.6, 0.2)], start=1):
        train.keep_best(progress, teacher, epoch, of_teacher)
        train.keep_best(progress, student, epoch, of_student)
    assert progress.best["teacher"]["epoch"] == 3
    assert progress.best["student"]["epoch"] == 2


def test_a_foreign_or_damaged_checkpoint_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.pt").write_bytes(b"not a checkpoint")
    torch.save({"weights": 1}, tmp_path / "b.pt")
    torch.save(Evil(), tmp_path / "c.pt")
    for name in "abc":
        with pytest.raises(UserError, match="checkpoint"):
            load_checkpoint(tmp_path / f"{name}.pt")
    assert not (tmp_path / "touched").exists()


class Evil:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (open, ("touched", "w"))
