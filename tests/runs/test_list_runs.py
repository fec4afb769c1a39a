"""`--list_runs`: a line for whatever a command made, in whatever state it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runs import ROOT, run


def made(folder: Path, options: object, **files: object) -> None:
    folder.mkdir(parents=True)
    for name, content in {"commandline_args.txt": options, **files}.items():
        path = folder / (f"{name}.json" if "." not in name else name)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        os.utime(path, (1_000_000_000 + 60 * len(list(folder.parent.iterdir())),) * 2)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    results = tmp_path / "results"
    test = {"teacher": {"accuracy": 0.5, "ci95": [0.4, 0.6]}, "ensemble": {"accuracy": 0.912, "ci95": [0.85, 0.95]}}
    done = {"labels_used": 40, "test": test, "val": {}}
    made(results / "first", {"data_dir": "a b", "finetune_mode": True}, summary=done)
    made(results / "no test", {"data_dir": "d"}, summary={"test": {}, "val": {"student": {"accuracy": 0.25}}})
    folds = {"folds": 3, "models": {"student": {"accuracy": 0.75, "ci95": [0.5, 0.9]}}}
    made(results / "small", {"data_dir": "d"}, summary=done | {"cross_validation": folds})
    over_seeds = {"student": {"accuracy": 0.5, "ci95": [0.25, 0.75]}}
    made(results / "many", {"data_dir": "d", "repeat": 2}, summary=done | {"cross_validation": over_seeds})
    made(results / "look", {"data_dir": "d", "inspect": True}, inspect={"files": 3})
    made(results / "killed", {"data_dir": "d", "switch_mode": True})
    made(results / "torn", {"data_dir": "d"}, summary='{"test": ')
    made(results / "odd", {"data_dir": "d"}, summary={"test": {"ensemble": {"accuracy": "high"}}})
    made(results / "gone", "[")
    made(results / "mine", {})
    (results / "mine" / "commandline_args.txt").rename(results / "mine" / "thesis.tex")
    (results / "file").touch()
    return tmp_path


def test_every_run_is_listed_the_newest_first_and_broken_ones_as_such(place: Path) -> None:
    outcome = run("--list_runs", cwd=place)
    assert (outcome.code, outcome.err) == (0, "")
    head, *lines = outcome.out.splitlines()
    assert head.split() == ["name", "date", "mode", "data", "labels", "accuracy", "(95%", "interval)", "folder"]
    names = [line.rpartition("results/")[2] for line in lines]
    assert names == ["gone", "odd", "torn", "killed", "look", "many", "small", "no test", "first"]
    of = dict(zip(names, (" ".join(line.split()) for line in lines), strict=True))
    assert "75.0% (50.0% to 90.0%) cross-validated" in of["small"]
    assert "50.0% (25.0% to 75.0%) cross-validated" in of["many"]
    assert "2001-09-09" in of["first"]
    assert "finetune a b 40 91.2% (85.0% to 95.0%) results/first" in of["first"]
    assert "mpl d 25.0% on validation" in of["no test"]
    assert "inspect d results/look" in of["look"]
    assert "switch d unfinished" in of["killed"]
    assert "damaged: summary.json" in of["torn"]
    assert "damaged: summary.json" in of["odd"]
    assert "damaged: commandline_args.txt" in of["gone"]


def test_without_any_run_it_says_how_to_train_one(tmp_path: Path) -> None:
    outcome = run("--list_runs", cwd=tmp_path)
    assert outcome.code == 0
    assert "there is no run in results/ yet" in outcome.out


def test_nothing_heavy_is_loaded(place: Path) -> None:
    code = (
        "import os, sys\nfrom transfermpl import MPL\nos.chdir(sys.argv[1])\nassert MPL.main(['--list_runs']) == 0\n"
        "assert not {'torch', 'sklearn', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(place)], cwd=ROOT, check=True, timeout=60)
