"""Every case of corpus.py and corpus_layouts.py: what is used, how it is labeled, what is left out, what is said."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from corpus import GOOD, ODD_FILES, Case
from corpus_layouts import LAYOUTS
from image_folders import table, transform
from runs import FROZEN, Outcome, run
from transfermpl import args, data
from transfermpl.base.folder_walk import is_hidden, is_own
from transfermpl.inspection import pictures
from transfermpl.utils import UserError

pytestmark = pytest.mark.usefixtures("without_heif")  # what is said of HEIC images does not depend on it then

SECONDS = 30  # after which a case is one that hangs


@pytest.fixture(autouse=True)
def _limited() -> Iterator[None]:
    def end(number: int, frame: object) -> None:
        raise TimeoutError(f"over {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def made(case: Case, folder: Path) -> Path:
    root = folder / "d"
    root.mkdir()
    try:
        case.make(root)
    except OSError as error:
        pytest.skip(f"this disk can't hold it: {error}")
    return root


def warnings_of(err: str) -> list[str]:
    return [line.removeprefix("warning: ") for line in err.split("\n") if line.startswith("warning: ")]


def check_said(case: Case, err: str) -> None:
    """Each of the patterns fits a warning of its own, and there is no other line, nor a sign that moves the cursor."""
    said = warnings_of(err)
    assert len(said) == err.count("\n")
    assert all(line.isprintable() for line in said)
    left = list(said)
    for pattern in case.said:
        fits = [line for line in left if re.fullmatch(pattern, line)]
        assert fits, f"no warning fits {pattern!r}: {said}"
        left.remove(fits[0])
    assert not left, f"not expected: {left}"


def parameters(cases: list[Case]) -> list[object]:
    return [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * case.slow) for case in cases]


@pytest.mark.parametrize("case", parameters([*ODD_FILES, *LAYOUTS]))
def test_as_a_user_expects(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = made(case, tmp_path)
    options = args.Data(data_dir=str(root), num_labels_percent=1.0, **case.options)  # type: ignore[arg-type]
    try:
        dataset = data.find_dataset(options)
        split = data.split_dataset(dataset, options, 0)
    except UserError as error:
        refusal = str(error)
    else:
        refusal = ""
        check_dataset(case, dataset, tmp_path, split)
    assert re.fullmatch(case.refused, refusal)
    err = capsys.readouterr().err
    check_said(case, err)
    if not refusal:
        check_accounts(case, dataset, root, err)


def check_dataset(case: Case, dataset: data.Dataset, folder: Path, split: data.Split) -> None:
    names = [*dataset.classes, ""]
    assert dict(zip(dataset.paths, (names[c] for c in dataset.labels), strict=True)) == case.labels
    placed = dict(zip(dataset.paths, dataset.places, strict=True))
    assert case.places == {path: placed[path] for path in case.places}
    reasons = {path: why for path, _, _, why in dataset.left_out} | dict(dataset.bad_files)
    assert reasons.keys() == case.left_out.keys()
    for path, pattern in case.left_out.items():
        assert re.search(pattern, reasons[path])
        assert len(reasons[path]) <= 100
    for row, path in enumerate(dataset.paths):
        pixels = dataset.read(row, transform())
        if case.colour is not None and path == case.odd:
            assert np.abs(pixels[:, 2, 2].numpy().astype(int) - case.colour).max() <= 8, pixels[:, 2, 2]
    data.write_split(folder / "split.csv", dataset, split)
    rows = table(folder / "split.csv")
    assert {row["path"] for row in rows} == {*case.labels, *case.left_out}


def check_accounts(case: Case, dataset: data.Dataset, root: Path, err: str) -> None:
    """Every file that is no hidden one is used, left out by name, or counted in a warning."""
    files = 0
    for folder, names, below in os.walk(root):
        names[:] = [name for name in names if not is_hidden(name)]
        if is_own(folder) or any((Path(folder) / name).is_symlink() for name in names):
            return  # what such folders hold is not counted, or under another name
        files += sum(not is_hidden(name) for name in below)
    left_out = r"(\d+) (HEIC images?|images? lies?|images below|files? (is|are) of no kind)"
    told = [re.match(left_out, line) for line in warnings_of(err)]
    inside = [path for path in (*dataset.paths, *(row[0] for row in dataset.left_out)) if not path.startswith("..")]
    table_itself = "labels_csv" in case.options
    assert files == len(inside) + sum(int(one[1]) for one in told if one) + table_itself


# --- through the commands ---------------------------------------------------------------------------------------------

SHORT = (
    *FROZEN,
    "--num_labels_percent",
    "100%",
    "--unlabeled_batch_size",
    4,
    "--max_steps",
    1,
    "--calibration_folds",
    0,
)


def ran(cwd: Path, *line: object) -> Outcome:
    """A command that ends well or with one line of what to do."""
    outcome = run(*line, cwd=cwd)
    assert outcome.code in (0, 2), outcome.err
    assert "Traceback" not in outcome.err
    assert "unexpected error" not in outcome.err
    assert len(outcome.complaint()) == (outcome.code == 2), outcome.err
    return outcome


def inspected(cwd: Path, *line: object) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_gallery", "draw_sizes"):
            patch.setattr(pictures, name, lambda path, *args, **named: (path.touch(), path)[1])
        return ran(cwd, "--inspect", "--name", "i", "--data_dir", "d", "--weights", "none", "--num_workers", 0, *line)


def check_commands(cases: list[Case], cwd: Path) -> None:
    """One data set of the odd files of many cases: train, inspect and predict name and use them as the cases say."""
    status, counts = {}, 0
    for number, case in enumerate(cases):
        root = cwd / "made" / str(number)
        root.mkdir(parents=True)
        case.make(root)
        for path in GOOD if number else ():
            (root / path).unlink()
        folder = cwd / "d" / "a" / str(number)
        folder.parent.mkdir(parents=True, exist_ok=True)
        (root / "a").rename(folder)
        if not number:
            (root / "b").rename(cwd / "d" / "b")
        odd = f"a/{number}/{case.odd.removeprefix('a/')}"
        if case.odd in case.left_out:
            status[odd] = "bad"
        elif case.odd in case.labels:
            status[odd] = "used"
        elif case.said:
            counts += 1
    outcome = ran(cwd, "--name", "x", "--data_dir", "d", *SHORT)
    assert outcome.code == 0, outcome.err
    rows = {row["path"]: row for row in table(outcome.folder() / "split.csv")}
    for path, what in status.items():
        assert (rows[path]["split"] == "bad") == (what == "bad"), path
        assert rows[path]["label"] == "a"
    assert len(rows) == len(status) + len(GOOD)
    told = [
        int(line.split()[0]) for line in warnings_of(outcome.err) if "of no kind that is read" in line or "HEIC" in line
    ]
    assert sum(told) == counts
    assert inspected(cwd).code == 0
    found = json.loads((outcome.folder("i") / "inspect.json").read_text(encoding="utf-8"))["findings"]
    unreadable = {one["path"] for one in found if one["kind"] == "unreadable"}
    assert unreadable == {path for path, what in status.items() if what == "bad"}
    assert ran(cwd, "--predict_dir", "d", "--load_path", "x", "--out", "p.csv").code == 0
    errors = {row["path"]: row["error"] for row in table(cwd / "p.csv")}
    assert len(errors) == len(status) + counts + len(GOOD)
    for path, what in status.items():
        assert bool(errors[path]) == (what == "bad"), (path, errors[path])


IN_CLASSES = [case for case in ODD_FILES if case.odd.startswith("a/")]


@pytest.mark.slow
def test_all_odd_files_through_the_commands(tmp_path: Path) -> None:
    signal.alarm(600)
    check_commands(IN_CLASSES, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", LAYOUTS, ids=lambda case: case.name)
def test_layouts_through_the_commands(case: Case, tmp_path: Path) -> None:
    """Refused with the line of the case, or learned from, inspected and predicted."""
    signal.alarm(5 * SECONDS)
    made(case, tmp_path)
    options: list[object] = []
    for name, value in case.options.items():
        options += [f"--{name}", *(value if isinstance(value, tuple) else (value,))]
    outcome = ran(tmp_path, "--name", "x", "--data_dir", "d", *options, *SHORT)
    if case.refused:
        assert outcome.code == 2
        assert re.search(case.refused.replace("\\.", ".?"), outcome.complaint()[0])
    if outcome.code == 0:
        rows = {row["path"]: row["label"] for row in table(outcome.folder() / "split.csv")}
        assert rows.items() >= case.labels.items()
    inspected(tmp_path, *options)
    if outcome.code == 0:
        assert ran(tmp_path, "--predict_dir", "d", "--load_path", "x", "--out", "p.csv").code == 0
