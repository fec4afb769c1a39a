"""The page of a run says what came out, what to distrust and how to do it again."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from pages import Page
from runs import FROZEN, MOONS, Outcome, make_data, make_images, run
from transfermpl import args
from transfermpl.base.metrics import confusion_matrix, metrics
from transfermpl.data import Dataset, Split
from transfermpl.runs import distant_images as distant
from transfermpl.runs import page as run_page
from transfermpl.runs import page_warnings
from transfermpl.runs.distant_images import distant_images
from transfermpl.runs.finished_run import FinishedRun
from transfermpl.runs.page import write_run
from transfermpl.utils import program
from transfermpl.visualization import MATRIX_CLASSES


def dataset(count: int, classes: tuple[str, ...], labels: np.ndarray, **named: Any) -> Dataset:
    """Images of one grey each, that come in an array: image i has the grey i % 256."""
    array = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 16, 16, 3))
    paths = tuple(f"folder/{i}.png" for i in range(count))
    return Dataset("data", classes, paths, labels, np.arange(count).astype(np.uint64), ("",) * count, "photos", 16,
                   sources=tuple(range(count)), array=np.ascontiguousarray(array), **named)  # fmt: skip


def finished(
    tested: dict[str, np.ndarray] | None = None,
    *,
    classes: tuple[str, ...] = ("ant", "bee", "cat"),
    options: args.Options | None = None,
    backbone: str = "squeezenet",
    **changes: Any,
) -> FinishedRun:
    """40 test images of classes in turn, answered rightly and surely unless `tested` says otherwise; 30 labeled."""
    labels = np.arange(100) % len(classes)
    right = np.full((40, len(classes)), 0.1 / (len(classes) - 1))
    right[np.arange(40), labels[:40]] = 0.9
    split = Split(np.arange(40, 70), np.arange(40, 100), np.zeros(0, dtype=np.int64), np.arange(40))
    rows = [{"epoch": i, "step": i, "teacher": "teacher", "supervised_loss": 1 / i, "mask_rate": 0.5} for i in (1, 2)]
    options = options or args.make({"name": "x"})
    data, tested = dataset(100, classes, labels), tested or {"student": right}
    command = shlex.join([*program().split(), *options.command_line()])
    asked = (options.mode, options.model, options.cotraining, options.run.seed)
    run = FinishedRun(*asked, command, backbone, data, split, rows, tested)
    return replace(run, **changes)


def summary(run: FinishedRun, **changes: Any) -> dict[str, Any]:
    classes = run.dataset.classes
    results = {
        name: metrics(confusion_matrix(run.labels, predicted.argmax(axis=1), len(classes)), classes)
        for name, predicted in run.tested.items()
    }
    counts = {name: len(rows) for name, rows in vars(run.split).items()}
    return {
        "name": "x", "mode": "mpl", "seed": 0, "labels_used": len(run.split.labeled), "labels_unused": 0, "val": {},
        "dataset": {"images": counts}, "test": results, "best_epoch": {}, "commit": "0123456789abcdef+",
        "seconds": {"total": 12.0, "training": 5.0, "features": 6.0}, "peak_memory_bytes": 10**9,
        "versions": {"python": "3.14"},
    } | changes  # fmt: skip


RECALL = {"asked": 0.95, "promised": 0.96, "threshold": 0.1, "images": 20, "found": 20, "precision": 0.6, "share": 0.3,
          "precision_ci95": [0.5, 0.7]}  # fmt: skip


def page_of(run: FinishedRun, folder: Path, **changes: Any) -> Page:
    return Page(write_run(folder, summary(run, **changes), run))


def part(page: Page, heading: str) -> str:
    """The source of one section."""
    found = re.search(rf"<section[^>]*><h2>{heading}\b.*?</section>", page.source, re.DOTALL)
    assert found, page.headings
    return found[0]


# --- what came out ----------------------------------------------------------------------------------------------------


def test_the_page_of_a_run_begins_with_what_came_out(tmp_path: Path) -> None:
    wrong = np.tile([0.8, 0.1, 0.1], (40, 1))
    run_ = finished({"teacher": wrong, "student": wrong, "ensemble": wrong})
    page = page_of(run_, tmp_path)
    lead = "The models together are right on 35.0% of 40 test images of 3 classes (95% interval 22.1% to 50.5%)"
    assert f"{lead}, having learned from 30 labels and 30 unlabeled images." in page.words
    rows = re.findall(r"<tr>.*?</tr>", part(page, "How good it is"))
    assert [" ".join(Page(row).words.split()[:5]) for row in rows[1:]] == [
        f"{name} 35.0% 22.1% to 50.5%" for name in ("teacher", "student", "ensemble")
    ]
    assert "Labels used: 30." in page.words
    assert (tmp_path / "report.html").stat().st_size < 3e6


def test_the_page_of_a_small_test_begins_with_the_folds(tmp_path: Path) -> None:
    result = {"accuracy": 0.8, "ci95": [0.6, 0.9], "macro_f1": 0.8, "per_class": {}}
    folds = {"folds": 3, "repeats": 2, "images": 30, "models": {"student": result}}
    words = page_of(finished(), tmp_path, cross_validation=folds).words
    assert "The student is right on about 80.0% of images of 3 classes (95% interval 60.0% to 90.0%;" in words
    assert "40 test images say little, so look at the labels: cross-validated on 30 labels, in 3 folds" in words
    run_ = finished()
    untested = replace(run_, tested={}, split=replace(run_.split, test=run_.split.test[:0]))
    words = page_of(untested, tmp_path, cross_validation=folds).words
    assert "right on about 80.0%" in words
    assert "nobody knows" not in words
    assert "nobody knows" in page_of(untested, tmp_path).words


def test_no_image_is_called_unsure_where_all_are_sure(tmp_path: Path) -> None:
    sure = np.eye(3)[np.arange(40) % 3]
    section = part(page_of(finished({"student": sure}), tmp_path), "The least sure images")
    assert "It is sure of each of these images" in section
    section = part(page_of(finished({"student": 0.7 * sure + 0.1}), tmp_path), "The least sure images")
    assert len(shades(section)) == run_page.GALLERY


def test_validation_is_shown_where_there_is_some(tmp_path: Path) -> None:
    run_ = finished()
    run_ = replace(run_, split=replace(run_.split, val=np.array([99])))
    page = page_of(run_, tmp_path, val={"student": {"accuracy": 0.5}}, best_epoch={"student": 7})
    assert "student 100.0%" in page.words
    assert "50.0% 7" in page.words
    assert "validation images among them" in page.words
    assert "epoch kept" not in page_of(finished(), tmp_path).words


def test_a_run_without_a_test_has_a_page(tmp_path: Path) -> None:
    run_ = finished()
    run_ = replace(run_, tested={}, split=replace(run_.split, test=np.zeros(0, dtype=np.int64)))
    page = page_of(run_, tmp_path, test={})
    assert "there was no test" in page.words
    assert not {"Each class", "The surest mistakes"} & set(page.headings)


def test_what_was_run_is_told(tmp_path: Path) -> None:
    options = args.make({"name": "x", "switch_mode": True, "seed": 3})
    words = page_of(finished(options=options), tmp_path, seed=3).words
    expected = [
        "3: ant, bee, cat", "Meta Pseudo Labels with switched roles", "squeezenet, a linear head", "seed 3",
        "2 steps, 2 epochs", "time 12 s, of which 5 s training and 6 s features", "commit 0123456789ab",
    ]  # fmt: skip
    assert [told for told in expected if told not in words] == []


def test_what_was_learned_of_unlabeled_images_is_told(tmp_path: Path) -> None:
    prior = {"ant": 0.2, "bee": 0.5, "cat": 0.3}
    learned = {"class_prior": prior, "views_with_prior": ["squeezenet"]}
    words = Page(part(page_of(finished(), tmp_path, **learned), "What was run")).words
    assert "class prior 50% bee, 30% cat, 20% ant of the unlabeled images" in words
    assert "head prior from the unlabeled images" in words
    plain = Page(part(page_of(finished(), tmp_path), "What was run")).words
    assert not any(name in plain for name in ("class prior", "head prior", "targets"))


@pytest.mark.parametrize(
    ("algorithm", "method", "learned"),
    [
        ("labels_only", "labeled images alone", "30 labels."),
        ("cotraining", "co-training", "30 labels and 30 unlabeled images."),
        ("meta", "Meta Co-Training", "30 labels and 30 unlabeled images."),
    ],
)
def test_co_training_is_named_by_its_algorithm_and_its_views(
    tmp_path: Path, algorithm: str, method: str, learned: str
) -> None:
    views = ("cnn=a.pt", "gradients", "cnn=b.pt")
    options = args.make({"name": "x", "cotrain_mode": True, "views": views, "algorithm": algorithm})
    page = page_of(finished(options=options, backbone="cnn"), tmp_path)
    assert f"having learned from {learned}" in page.words
    told = Page(part(page, "What was run")).words
    assert f"method {method} " in told
    assert "network cnn, gradients, cnn-2, a linear head each" in told


def test_the_command_makes_the_same_options_again(tmp_path: Path) -> None:
    values = {
        "name": "a b",
        "data_dir": "it's; <b>\n&",
        "max_lr": 0.01,
        "flip": False,
        "num_labels": 12,
        "cache": False,
    }
    options = args.make(values)
    page = page_of(finished(options=options), tmp_path)
    code = re.search(r"<code>(.*?)</code>", page.source, re.DOTALL)
    assert code
    words = shlex.split("".join(Page(f"<p>{code[1]}</p>").parts))
    assert words[:2] == ["python", "MPL.py"]
    assert args.parse(words[2:]).flat() == options.flat()


# --- each class, each image -------------------------------------------------------------------------------------------


def test_classes_are_sorted_by_how_hard_they_are(tmp_path: Path) -> None:
    run_ = finished()
    answers = run_.tested["student"].copy()
    bees = np.flatnonzero(run_.labels == 1)
    answers[bees[:5]] = [0.7, 0.2, 0.1]
    answers[np.flatnonzero(run_.labels == 2)[:1]] = [0.7, 0.2, 0.1]
    page = page_of(replace(run_, tested={"student": answers}), tmp_path)
    words = Page(part(page, "Each class")).words
    assert re.findall(r"(ant|bee|cat) (\d+)% of", words) == [("bee", "62"), ("cat", "92"), ("ant", "100")]
    cells = Page(part(page, "Which class is predicted as which")).all("td")
    assert any(cell.get("title") == "5 of 13 bee predicted as ant (38%)" for cell in cells)


def test_many_classes_come_as_their_commonest_confusions(tmp_path: Path) -> None:
    for count, is_matrix in ((MATRIX_CLASSES, True), (MATRIX_CLASSES + 1, False)):
        run_ = finished(classes=tuple(f"class {i}" for i in range(count)))
        answers = run_.tested["student"].copy()
        answers[[0, 1]] = np.roll(answers[0], 4)
        page = page_of(replace(run_, tested={"student": answers}), tmp_path)
        taken = Page(part(page, "Which class is predicted as which"))
        assert ("matrix many" in taken.source) == is_matrix
        assert ("class 0 class 4 1 class 1 class 4 1" in taken.words) != is_matrix


def test_the_page_of_a_thousand_classes_is_small(tmp_path: Path) -> None:
    classes = tuple(f"a species with a long name, number {i}" for i in range(1000))
    labels = np.arange(4000) % 1000
    split = Split(np.arange(2000, 4000), np.arange(2000, 4000), np.zeros(0, dtype=np.int64), np.arange(2000))
    answers = np.random.default_rng(0).dirichlet(np.full(1000, 0.01), 2000)
    run_ = finished({"teacher": answers, "student": answers}, classes=classes, split=split)
    run_ = replace(run_, dataset=dataset(4000, classes, labels))
    errors = {"teacher": {"ece": 0.1, "brier": 0.2}, "student": {"ece": 0.1, "brier": 0.2}}
    page = page_of(run_, tmp_path, calibration={"temperatures": {}, "before": errors})
    assert (tmp_path / "report.html").stat().st_size < 1e6
    assert f"The {run_page.HARDEST} hardest of 1000 classes" in page.words


def shades(source: str) -> list[int]:
    """The greys of the gallery's images: they are the test images' numbers."""
    import base64
    import io

    found = re.findall(r'src="data:image/\w+;base64,([^"]+)"', source)
    return [round(np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))).mean()) for code in found]


def test_the_surest_mistakes_and_the_least_sure_images(tmp_path: Path) -> None:
    run_ = finished()
    answers = run_.tested["student"].copy()
    answers[7] = [0.01, 0.01, 0.98]  # a bee (7 % 3)
    answers[9] = [0.2, 0.7, 0.1]
    answers[12] = [0.4, 0.3, 0.3]  # right, and hardly sure
    other = answers.copy()
    other[7] = [0.1, 0.8, 0.1]
    page = page_of(replace(run_, tested={"a": answers, "b": other, "ensemble": answers}), tmp_path)
    surest = part(page, "The surest mistakes")
    assert shades(surest) == [7, 9]
    words = Page(surest).words
    assert "cat, 98% filed under bee a: cat, 98% b: bee, 80% folder/7.png" in words
    assert "bee, 70% filed under ant folder/9.png" in words
    assert "2 of 2 mistakes" in words
    unsure = part(page, "The least sure images")
    assert shades(unsure) == [12, 9]
    assert "ant, 40% right folder/12.png" in Page(unsure).words


def test_points_have_no_gallery(tmp_path: Path) -> None:
    run_ = finished()
    points = replace(run_.dataset, kind="points", array=np.zeros((100, 2), dtype=np.float32))
    page = page_of(replace(run_, dataset=points), tmp_path)
    assert "Each class" in page.headings
    assert page.all("img") == []


# --- curves -----------------------------------------------------------------------------------------------------------


def test_pseudo_label_quality_is_marked_where_it_needs_hidden_labels(tmp_path: Path) -> None:
    known = [{"epoch": i, "step": i, "mask_rate": 0.1 * i, "pseudo_label_accuracy": 0.2 * i} for i in (1, 2, 3)]
    with_hidden = part(page_of(finished(rows=known), tmp_path), "Pseudo-labels over time")
    assert '<span class="mark">diagnostic</span>' in with_hidden
    assert "pseudo-label accuracy from 20% to 60%" in with_hidden
    assert "needs the hidden labels" in with_hidden
    without = part(page_of(finished(), tmp_path), "Pseudo-labels over time")
    assert "diagnostic" not in without
    assert "hidden" not in without
    assert "Losses" in part(page_of(finished(), tmp_path), "Learning curves")


def test_pictures_of_the_run_are_shown_where_they_are(tmp_path: Path) -> None:
    assert "What the network saw" not in page_of(finished(), tmp_path).headings
    Image.new("RGB", (60, 30)).save(tmp_path / "samples.png")
    points = replace(finished().dataset, kind="points", array=np.zeros((100, 2), dtype=np.float32))
    for run_, turned in ((finished(), "picture"), (finished(dataset=points), "picture drawing")):
        (shown,) = [image for image in page_of(run_, tmp_path).all("img") if "raw" in image["alt"]]
        assert shown["alt"] == "Labeled images raw, weakly and strongly augmented"
        assert shown["class"] == turned  # photographs stay as they are on a dark page


def test_reliability_is_a_chart_and_is_doubted_where_few_images_are_behind_it(tmp_path: Path) -> None:
    run_ = finished()
    errors = {"student": {"ece": 0.25, "brier": 0.5}}
    measured = {"temperatures": {"student": 2.0}, "before": errors, "after": errors}
    few = part(page_of(replace(run_, uncalibrated=run_.tested), tmp_path, calibration=measured), "How far its")
    assert "of 40 images it is mostly noise" in few
    assert "after calibration: 100% at 90%" in few
    assert "before calibration: 100% at 90%" in few
    assert Page(few).all("img") == []
    labels, answers = np.arange(200) % 3, np.tile(run_.tested["student"], (4, 1))[:120]
    split = Split(np.arange(150, 180), np.arange(150, 200), np.zeros(0, dtype=np.int64), np.arange(120))
    more = finished({"student": answers}, dataset=dataset(200, run_.dataset.classes, labels), split=split)
    assert "noise" not in page_of(more, tmp_path, calibration=measured).words


def test_the_errors_of_the_probabilities_stand_beside_each_other(tmp_path: Path) -> None:
    before, after = {"student": {"ece": 0.25, "brier": 0.5}}, {"student": {"ece": 0.125, "brier": 0.375}}
    heads = "model {}calibration error, before calibration error, after Brier score, before Brier score, after"
    both = {"method": "folds", "temperatures": {"student": 1.5}, "before": before, "after": after}
    words = page_of(finished(), tmp_path, calibration=both).words
    assert f"{heads.format('temperature ')} student 1.5 0.25 0.125 0.5 0.375" in words
    alone = page_of(finished(), tmp_path, calibration={"temperatures": {}, "before": before}).words
    assert "model calibration error Brier score student 0.25 0.5" in alone
    for nothing in ({}, None, {"temperatures": {"student": 2.0}}):
        headings = page_of(finished(), tmp_path, calibration=nothing).headings
        assert "How far its probabilities can be trusted" not in headings


# --- what to distrust -------------------------------------------------------------------------------------------------


def warnings_of(run_: FinishedRun, folder: Path) -> str:
    return Page(part(page_of(run_, folder), "Warnings")).words


def test_a_run_without_fault_is_told_so(tmp_path: Path) -> None:
    labels = np.arange(2000) % 2
    answers = np.eye(2)[labels[:1000]] * 0.96 + 0.02
    split = Split(np.arange(1000, 1100), np.arange(1000, 2000), np.zeros(0, dtype=np.int64), np.arange(1000))
    run_ = finished({"student": answers}, dataset=dataset(2000, ("a", "b"), labels), split=split)
    assert warnings_of(run_, tmp_path) == "Warnings Nothing odd was found in the files, the counts and the results."


def test_files_that_were_left_out_are_named(tmp_path: Path) -> None:
    named = {"bad_files": (("<b>.png", "not an image"),), "conflicts": (("a/1.png", "b/1.png", "c/1.png"),)}
    named["duplicates"] = tuple((f"d/{i}.png", "d/x.png") for i in range(30))
    words = warnings_of(finished(dataset=dataset(100, ("ant", "bee", "cat"), np.arange(100) % 3, **named)), tmp_path)
    assert "can't be decoded and were left out (all of them: bad_files.txt): 1." in words
    assert "under more than one class, so that their labels were not used: 1." in words
    assert "copies of others and were left out: 30." in words
    assert "<b>.png not an image a/1.png another class: b/1.png; c/1.png d/0.png copy of d/x.png" in words
    assert f"d/{page_warnings.ODD_FILES}.png" not in words


def test_uneven_and_rare_classes_are_told(tmp_path: Path) -> None:
    run_ = finished()
    labels = run_.dataset.labels.copy()
    labels[40:70], labels[:40] = [0] * 20 + [1] * 8 + [2] * 2, [1] * 20 + [0] * 14 + [2] * 6
    words = warnings_of(replace(run_, dataset=dataset(100, ("ant", "bee", "cat"), labels)), tmp_path)
    assert "The labeled images are unevenly spread (20 of ant, 2 of cat)" in words
    assert "The test images are unevenly spread (20 of bee, 6 of cat)" in words
    assert "Fewer than 5 labels of cat (2)" in words
    assert "uneven" not in warnings_of(finished(), tmp_path)


def test_results_that_mislead_are_told(tmp_path: Path) -> None:
    answers = np.tile([0.8, 0.2, 0.0], (40, 1))
    answers[0] = [0.1, 0.8, 0.1]
    words = warnings_of(finished({"student": answers}), tmp_path)
    assert "interval of the accuracy is 28 points wide" in words
    assert "The student never predicts cat." in words
    assert "The student is overconfident: its mean confidence is 80.0%, its accuracy 32.5%" in words
    humble = finished().tested["student"] * 0.2 + 0.8 / 3
    assert "The student is underconfident: its mean confidence is 44.7%, its accuracy 100.0%" in warnings_of(
        finished({"student": humble}), tmp_path
    )


class Bank(distant.FeatureBank):
    """Features that were computed, and for a view that was not, none."""

    def __init__(self, features: np.ndarray, views: tuple[str, ...]) -> None:
        self.features, self.views = torch.from_numpy(features).float(), views

    def missing(self, wanted: Any) -> int:
        return sum(len(rows) for (view, _), rows in wanted.items() if view not in self.views)

    def rows(self, request: Any) -> torch.Tensor:
        assert request.view in self.views
        return self.features[torch.from_numpy(request.rows)]


def images_far_away(run_: FinishedRun) -> list[distant.DistantImage]:
    return distant_images(run_.source, run_.dataset, run_.split, run_.seed)


def test_images_far_from_every_labeled_one_are_found_and_shown(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    features = np.abs(random.normal(1, 0.2, (100, 20)))
    features[[5, 90], 10:] = 0  # a test image and an unlabeled one
    features[45, 10:] = 0.5  # a labeled one is at no distance from itself
    run_ = finished(source=cast(Any, Bank(features, ("weak", "eval"))))
    far = images_far_away(run_)
    assert [one.row for one in far[:2]] in ([5, 90], [90, 5])
    assert {one.row: one.position for one in far[:2]} == {5: 5, 90: None}
    assert not {one.row for one in far} & set(run_.split.labeled.tolist())
    page = page_of(run_, tmp_path)
    assert f"unusually far from every labeled one: {len(far)}." in page.words
    assert "cat, 90% right folder/5.png" in Page(part(page, "Far from every labeled image")).words
    assert "unlabeled folder/90.png" in Page(part(page, "Far from every labeled image")).words


def test_distances_are_taken_only_of_features_that_are_there(tmp_path: Path) -> None:
    features = np.ones((100, 4))
    features[5] = [1, 0, 0, 0]
    seen = {views: [x.row for x in images_far_away(finished(source=cast(Any, Bank(features, views))))]
            for views in ((), ("eval",), ("weak",), ("weak", "eval"))}  # fmt: skip
    assert seen == {(): [], ("eval",): [], ("weak",): [], ("weak", "eval"): [5]}
    assert images_far_away(finished()) == []
    few = finished(source=cast(Any, Bank(features, ("weak", "eval"))))
    few = replace(few, split=replace(few.split, test=np.arange(10)), tested={"s": few.tested["student"][:10]})
    assert images_far_away(few) == []


def test_a_large_unlabeled_set_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    rows = Bank.rows
    monkeypatch.setattr(Bank, "rows", lambda self, request: (asked.append(len(request.rows)), rows(self, request))[1])
    monkeypatch.setattr(distant, "MOST_UNLABELED", 25)
    monkeypatch.setattr(distant, "MOST_LABELED", 11)
    images_far_away(finished(source=cast(Any, Bank(np.ones((100, 4)), ("weak", "eval")))))
    assert asked == [11, 40, 25]


# --- end to end -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run on files of which one is torn, two are copies and one stands under two classes."""
    cwd = tmp_path_factory.mktemp("folder run")
    data = make_data(cwd / "<b>data</b>", 20)
    (data / "b c" / "torn <i>.png").write_bytes(b"no image")
    first = sorted((data / "b c").iterdir())[0]
    (data / "b c" / "copy.png").write_bytes(first.read_bytes())
    make_images(data / "b c", 1, (1, 2, 3), seed=9, suffix="bmp")
    (data / "日本" / "both.bmp").write_bytes((data / "b c" / "bild 00.bmp").read_bytes())
    line = ("--data_dir", data, *FROZEN, "--num_labels", 6, "--max_steps", 6)
    outcome = run("--name", "x", *line, cwd=cwd)
    assert outcome.code == 0, outcome.err
    return outcome


def test_a_run_leaves_its_page(folder_run: Outcome) -> None:
    page = Page(folder_run.folder() / "report.html")
    accuracy = folder_run.summary()["cross_validation"]["models"]["ensemble"]["accuracy"]
    assert f"right on about {100 * accuracy:.1f}% of" in page.words
    assert page.headings[:3] == ["How good it is", "Warnings", "What was run"]
    assert page.headings[-1] == "Run it again"
    assert "torn <i>.png" in page.words
    assert "b c/copy.png copy of b c/bild 00.png" in page.words
    assert "both.bmp" in page.words
    assert "<b>data</b>" in page.words
    assert len(page.all("img")) >= 12
    assert not page.all("script")


def test_the_page_s_command_makes_the_run_again(folder_run: Outcome) -> None:
    source = (folder_run.folder() / "report.html").read_text(encoding="utf-8")
    code = re.search(r"<code>(.*?)</code>", source, re.DOTALL)
    assert code
    words = shlex.split("".join(Page(f"<p>{code[1]}</p>").parts))[2:]
    again = run(*words, cwd=folder_run.cwd)
    assert again.code == 0, again.err
    assert again.metrics("x-2") == folder_run.metrics("x")
    # And so does that of a run that was broken off and went on.
    before = (folder_run.folder("x-2") / "report.html").read_text(encoding="utf-8")
    assert run("--name", "x-2", "--resume", cwd=folder_run.cwd).code == 0
    after = (folder_run.folder("x-2") / "report.html").read_text(encoding="utf-8")
    assert part(Page(after), "Run it again") == part(Page(before), "Run it again")


def test_an_image_that_is_gone_at_the_end_spoils_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data(tmp_path / "d")
    real = run_page.write_run

    def remove_first(folder: Path, summary: Any, run_: FinishedRun) -> Path:
        for row in run_.split.test.tolist():
            Path(str(run_.dataset.sources[row])).unlink()
        return real(folder, summary, run_)

    monkeypatch.setattr("transfermpl.runs.training.write_run", remove_first)
    line = ("--data_dir", data, *FROZEN, "--num_labels", 6, "--max_steps", 2)
    outcome = run("--name", "x", *line, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "unreadable" in Page(outcome.folder() / "report.html").words


@pytest.mark.parametrize("mode", [(), ("--finetune_mode",), ("--switch_mode",), ("--test_percent", "0%")])
def test_every_way_to_train_ends_with_a_page(tmp_path: Path, mode: tuple[str, ...]) -> None:
    line = MOONS if mode != ("--finetune_mode",) else (*MOONS[:2], "--max_steps", "5")
    outcome = run("--name", "x", *line, *mode, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert Page(outcome.folder() / "report.html").headings[0] == "How good it is"


def test_without_a_test_the_page_shows_what_folds_held_out(tmp_path: Path) -> None:
    make_data(tmp_path / "d", 12)
    line = ("--name", "x", "--data_dir", "d", *FROZEN, "--max_steps", 6, "--num_labels_percent", "100%")
    outcome = run(*line, "--test_percent", 0, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    page = Page(outcome.folder() / "report.html")
    assert {"Each class", "Which class is predicted as which"} <= set(page.headings)
    assert "labeled images, each predicted by trainings without it" in page.words
    assert "test images" not in page.words


def test_no_better_than_guessing_is_told(tmp_path: Path) -> None:
    good = finished()
    bad = finished({"student": np.roll(good.tested["student"], 1, axis=1)})
    assert "always predicting ant would be right on 35.0%" in part(page_of(bad, tmp_path), "Warnings")
    assert "always predicting" not in part(page_of(good, tmp_path), "Warnings")


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ([[19, 0], [1, 0]], ["right on 95.0%; always predicting ok would be right on 95.0%", "never predicts defect"]),
        ([[18, 1], [0, 1]], ["right on 95.0%; always predicting ok would be right on 95.0%"]),
        ([[19, 0], [0, 1]], []),
        ([[20, 0], [0, 0]], []),
    ],
)
def test_an_accuracy_that_misleads_is_told(counts: list[list[int]], says: list[str]) -> None:
    lines = page_warnings.misleading("student", np.array(counts), ("ok", "defect"))
    assert len(lines) == len(says)
    assert all(words in line for words, line in zip(says, lines, strict=True))


def test_an_accuracy_that_was_given_up_for_a_recall_is_told_so() -> None:
    (line,) = page_warnings.misleading("student", np.array([[9, 10], [0, 1]]), ("ok", "defect"), ["defect"])
    assert "price of --recall, which calls many images defect" in line
    assert "--finetune_mode" not in line


def test_where_folds_lead_they_say_what_the_accuracy_hides(tmp_path: Path) -> None:
    never = np.array([[10, 0, 0], [0, 10, 0], [2, 0, 0]])
    assert "never predicts" not in part(page_of(finished(), tmp_path), "Warnings")
    small = finished(folds={"student": never})
    assert "The student never predicts cat." in part(page_of(small, tmp_path), "Warnings")
    assert page_warnings.hidden({}, replace(small, tested={})) == ["The student never predicts cat."]


def test_a_rare_class_and_one_that_was_asked_for_have_a_curve(tmp_path: Path) -> None:
    run_ = finished()
    assert "Found against mistaken" not in page_of(run_, tmp_path).headings
    asked = {"decision": {"balance": {"on": False}, "recall": {"bee": RECALL}}}
    words = Page(part(page_of(run_, tmp_path, **asked), "Found against mistaken")).words
    assert "bee precision, by recall" in words
    assert "13 of 13 images of bee are found (test images); 13 are called bee." in words
    rare = np.concatenate([np.arange(40, 70)[np.arange(40, 70) % 3 < 2], [41 + 1]])
    run_ = replace(run_, split=replace(run_.split, labeled=rare))
    assert "cat precision, by recall" in Page(part(page_of(run_, tmp_path), "Found against mistaken")).words
