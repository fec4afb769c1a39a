"""Names of files and classes that a spreadsheet, a screen or a disk would take for something else: end to end."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from pathlib import Path

import pytest

from runs import FROZEN, Outcome, make_images, run, started
from transfermpl.base.options import folder_name
from transfermpl.base.tables import csv_rows

pytestmark = pytest.mark.skipif(os.name != "posix", reason="no other system has files of such names")

CLASSES = {"=1+1": (200, 60, 50), "-a\nb\t\x1b[2J": (60, 190, 70), "\u202e@gpj.": (60, 70, 210)}
FILES = ("=A1.png", "'=A1.png", "''=A1.png", "@b\nc.png", "-5.png", "\tx.png", "+1\r.png", "\x85\u2028.png")
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  | {21}|$")


def make_odd_names(folder: Path) -> Path:
    for name, colour in CLASSES.items():
        make_images(folder / name, 10, colour)
        for image, odd in zip(sorted((folder / name).iterdir()), FILES, strict=False):
            image.rename(folder / name / odd)
        (folder / name / "=bad\n.png").write_bytes(b"no image" + name.encode())
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    cwd = tmp_path_factory.mktemp("names")
    make_odd_names(cwd / "p")
    return started(cwd, "--data_dir", "p", *FROZEN, "--num_labels", 9, "--max_steps", 4, "--no_cache")


def rows_in(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv_rows(file))


def check_harmless(table: Path) -> None:
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            for cell in row:
                assert not re.match("[=+@\t\r]|-[^0-9i]", cell), cell


def check_plain(text: str) -> None:
    """Nothing in it moves a cursor or turns letters round."""
    assert all(unicodedata.category(sign) not in ("Cc", "Cf", "Zl", "Zp") for line in text.split("\n") for sign in line)


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


def test_the_tables_of_a_run_are_harmless_and_read_back(trained: Outcome) -> None:
    split = rows_in(trained.folder() / "split.csv")
    assert {row[0] for row in split[1:]} == files_below(trained.cwd / "p")
    assert {row[2] for row in split[1:]} - {""} == CLASSES.keys()
    check_harmless(trained.folder() / "split.csv")
    check_harmless(trained.folder() / "metrics.csv")
    lines = (trained.folder() / "bad_files.txt").read_text().splitlines()
    assert len(lines) == 3
    assert all(line.count("\t") == 1 and not line.startswith("=") for line in lines)


def test_what_is_told_stays_in_its_lines(trained: Outcome) -> None:
    check_plain(trained.out + trained.err)
    log = (trained.folder() / "run.log").read_text(encoding="utf-8")
    check_plain(log)
    assert all(TIME.match(line) for line in log.split("\n"))
    table = trained.out.split("\n")[1:6]
    assert len({len(line) for line in table[:4]}) == 1
    assert table[1].startswith("-a\\nb\\t\\x1b[2J ")
    page = (trained.folder() / "report.html").read_text(encoding="utf-8")
    check_plain(page.replace("\t", " "))


@pytest.mark.slow
def test_predictions_become_labels_again(trained: Outcome, tmp_path: Path) -> None:
    cwd = trained.cwd
    line = ("--predict_dir", "p", "--load_path", "x", "--min_probability", 1, "--out", tmp_path / "o.csv")
    outcome = run(*line, "--predict_copy", tmp_path / "sorted", cwd=cwd)
    assert outcome.code == 0, outcome.err
    check_plain(outcome.out + outcome.err)
    predicted, unsure = (rows_in(tmp_path / name)[1:] for name in ("o.csv", "o_unsure.csv"))
    check_harmless(tmp_path / "o.csv")
    check_harmless(tmp_path / "o_unsure.csv")
    assert {row[0] for row in predicted} == files_below(cwd / "p")
    good = {row[0] for row in predicted if not row[-2]}  # the error
    assert {row[0] for row in unsure} == good
    with (tmp_path / "o_unsure.csv").open(encoding="utf-8", newline="") as file:
        head, *cells = csv.reader(file)
    with (tmp_path / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        # As a person would fill it in: the class that was likely.
        csv.writer(file).writerows([head, *([path, likely, likely, *rest] for path, _, likely, *rest in cells)])
    words = ("--data_dir", "p", "--labels_csv", tmp_path / "labels.csv", *FROZEN, "--num_labels", 9, "--max_steps", 4)
    again = run("--name", "again", *words, "--test_percent", 0.1, "--no_cache", cwd=cwd)
    assert again.code == 0, again.err
    split = rows_in(again.folder("again") / "split.csv")[1:]
    assert {row[0] for row in split if row[-1] != "bad"} == good
    assert {row[2] for row in split} <= {*CLASSES, ""}


def test_a_copy_for_each_class_lies_in_a_folder_for_any_disk(trained: Outcome, tmp_path: Path) -> None:
    line = ("--predict_dir", "p", "--load_path", "x", "--out", tmp_path / "o.csv")
    outcome = run(*line, "--predict_copy", tmp_path / "sorted", cwd=trained.cwd)
    assert outcome.code == 0, outcome.err
    assert all(folder_name(folder.name) for folder in (tmp_path / "sorted").iterdir())


@pytest.mark.slow
def test_an_inspection_shows_and_writes_them_harmlessly(trained: Outcome) -> None:
    outcome = run("--name", "look", "--inspect", "--data_dir", "p", "--model_name", "cnn", cwd=trained.cwd)
    assert outcome.code == 0, outcome.err
    check_plain(outcome.out + outcome.err)
    check_harmless(outcome.folder("look") / "inspect.csv")
    assert {row[1] for row in rows_in(outcome.folder("look") / "inspect.csv") if row[0] == "unreadable"} == {
        f"{name}/=bad\n.png" for name in CLASSES
    }


@pytest.mark.slow
def test_a_run_writes_no_name_that_windows_does_not_take(trained: Outcome) -> None:
    views = ("--cotrain_mode", "--views", "timm:test_vit=none", "timm:test_vit=none", "pixels", "--finetune_views")
    words = ("--data_dir", "p", *views, "--finetune_steps", 1, "--num_labels", 9, "--max_steps", 2, "--num_workers", 0)
    outcome = run("--name", "co", *words, "--cache_dir", "cache", cwd=trained.cwd)
    assert outcome.code == 0, outcome.err
    made = [*outcome.folder("co").rglob("*"), *(trained.cwd / "cache").rglob("*")]
    assert "timm_test_vit-2_CM.png" in {path.name for path in made}
    assert "timm_test_vit.safetensors" in {path.name for path in made}
    assert all(folder_name(path.name) == path.name for path in made)
