"""One method over several seeds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from runs import MOONS, Moment, killed, run, started
from transfermpl import args
from transfermpl.utils import UserError

SHORT = (*MOONS, "--max_lr", 0.01)


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
        left = {path.name for path in folder.iterdir()} | {"written.txt"}  # one list is kept for all seeds
        assert left == {path.name for path in single.folder(f"s{seed}").iterdir()}
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
        Moment("algorithms.algorithm:mpl_step", 5),
        pytest.param(Moment("comparison.task:carry_out", 1, "after"), marks=pytest.mark.slow),
        pytest.param(Moment("comparison.repeat:over_seeds"), marks=pytest.mark.slow),
    ],
)
def test_a_killed_repetition_goes_on(tmp_path: Path, moment: Moment) -> None:
    line = (*SHORT, "--repeat", 2)
    (tmp_path / "whole").mkdir()
    whole = started(tmp_path / "whole", *line)
    killed(moment, "--name", "x", *line, cwd=tmp_path)
    finished = moment.function != "algorithms.algorithm:mpl_step"
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
