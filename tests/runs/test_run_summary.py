"""The table of a run's results."""

from __future__ import annotations

from transfermpl.runs.run_summary import results_table

RESULT = {
    "accuracy": 0.8125, "ci95": [0.7, 0.9], "balanced_accuracy": 0.625, "macro_f1": 0.5,
    "per_class": {"a": 0.75, "b": None, "c": 0.5},
}  # fmt: skip
SUMMARY = {
    "test": {"teacher": RESULT, "student": RESULT | {"accuracy": 1.0}},
    "val": {},
    "labels_used": 12,
    "dataset": {"images": {"test": 16}},
}


def test_the_table_of_results() -> None:
    lines = results_table(SUMMARY).splitlines()
    assert "81.25%" in lines[2]
    assert "70.0% to  90.0%" in lines[2]
    assert "100.00%" in lines[3]
    assert lines[-1] == "learned from 12 labels; tested on 16 images"
    assert "val accuracy" not in lines[1]
    assert "balanced" in lines[1]
    assert "62.50%" in lines[2]
    assert max(map(len, lines)) <= 80
    validated = results_table(SUMMARY | {"val": SUMMARY["test"]})
    assert "val accuracy" in validated
    assert validated.splitlines()[2].rstrip().endswith("81.25%")


def test_where_nothing_was_kept_for_a_test_the_table_says_so() -> None:
    untested = SUMMARY | {"test": {}, "dataset": {"images": {"test": 0}}}
    assert "no image was kept for a test" in results_table(untested).splitlines()[-1]


def test_without_a_test_the_accuracy_on_validation_is_shown() -> None:
    untested = SUMMARY | {"val": SUMMARY["test"], "test": {}, "dataset": {"images": {"test": 0}}}
    assert results_table(untested).splitlines()[:2] == [
        "teacher  81.25% on validation",
        "student  100.00% on validation",
    ]


def test_the_classes_that_are_found_least_stand_below_the_table() -> None:
    assert "found by the student: 50% of c, 75% of a" in results_table(SUMMARY).splitlines()
    many = RESULT | {"per_class": {f"k{i}": i / 10 for i in range(10)}}
    line = "found by the student, the hardest of 10 classes: 0% of k0, 10% of k1, 20% of k2, 30% of k3, 40% of k4"
    assert line in results_table(SUMMARY | {"test": {"student": many}}).splitlines()


def test_where_the_test_is_small_the_accuracy_on_folds_comes_first() -> None:
    folds = {"folds": 3, "repeats": 2, "images": 40, "models": {name: RESULT for name in SUMMARY["test"]}}
    lines = results_table(SUMMARY | {"cross_validation": folds}).splitlines()
    assert lines[1].split()[:2] == ["model", "cross-validated"]
    assert lines[3].split()[1] == "81.25%"
    assert "100.00%" in lines[3]
    how = "cross-validated on 40 labels, in 3 folds, 2 times"
    assert lines[-1] == f"learned from 12 labels; {how}; tested on 16 images, which say less"
    untested = {"test": {}, "dataset": {"images": {"test": 0}}, "cross_validation": folds | {"repeats": 1}}
    lines = results_table(SUMMARY | untested).splitlines()
    assert lines[2].split() == ["teacher", "81.25%", "70.0%", "to", "90.0%", "62.50%"]
    assert lines[-1].endswith("in 3 folds; no image was kept for a test")
