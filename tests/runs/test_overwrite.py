"""--overwrite removes what a command wrote, and never anything of the user's."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest

from runs import FROZEN, MOONS, Outcome, end, make_data, run, snapshot, start, started
from transfermpl.base import written_files
from transfermpl.base.files import claimed, write_text
from transfermpl.runs import run_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set and a run `x` on it."""
    root = tmp_path_factory.mktemp("made")
    make_data(root / "d")
    started(root, *LINE)
    return root


LINE = ("--data_dir", "d", "--num_labels", 6, "--max_steps", 3, *FROZEN)


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "p")
    return tmp_path / "p"


def overwrite(place: Path, *more: object) -> Outcome:
    return run("--name", "x", *LINE, "--overwrite", *more, cwd=place)


@pytest.mark.parametrize("how", ["--overwrite", "--resume"])
def test_a_folder_that_another_command_writes_into_is_left_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(run_folder, "CLAIM_SECONDS", 0.1)
    before = snapshot(place / "results")
    with claimed(place / "results" / ".x.lock", wait=False):
        outcome = run("--name", "x", *(LINE if how == "--overwrite" else ()), how, cwd=place)
    assert outcome.code == 2
    (line,) = outcome.complaint()
    assert line.endswith("another command writes into results/x now; wait for its end, or give another --name")
    assert snapshot(place / "results") == before


@pytest.mark.slow
def test_of_two_that_overwrite_at_once_one_is_refused(place: Path) -> None:
    long = ("--name", "x", *MOONS, "--max_steps", 20_000, "--overwrite")
    both = [start(*long, cwd=place) for _ in range(2)]
    while all(process.poll() is None for process in both):
        time.sleep(0.1)
    (refused, other) = sorted(both, key=lambda process: process.poll() is None)
    assert refused.wait() == 2
    other.send_signal(signal.SIGTERM)
    outcome = end(other, place)
    assert outcome.code == 143
    assert "--resume goes on" in outcome.err
    assert not list((place / "results").glob(".*.lock"))


def test_all_that_a_run_leaves_is_in_its_list(place: Path) -> None:
    folder = place / "results" / "x"
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(written_files.written_in(folder)) == left - {"written.txt"}


@pytest.mark.parametrize(
    "line",
    [
        ("--repeat", 2),
        pytest.param(("--compare", "--repeat", 1), marks=pytest.mark.slow),
        pytest.param(("--tensorboard",), marks=pytest.mark.slow),
        pytest.param(("--inspect", "--model_name", "cnn"), marks=pytest.mark.slow),
    ],
    ids=lambda line: line[0],
)
def test_every_command_is_replaced_whole(tmp_path: Path, line: tuple[object, ...]) -> None:
    data = ("--data_dir", "d") if "--inspect" in line else MOONS
    make_data(tmp_path / "d")
    for more in ((), ("--overwrite",)):
        outcome = started(tmp_path, *data, *line, *more)
        assert "keeps" not in outcome.err
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["x"]


def test_what_no_run_wrote_stays(place: Path) -> None:
    folder = place / "results" / "x"
    (folder / "notes.md").write_text("mine")
    (folder / "sorted" / "a").mkdir(parents=True)
    (folder / "sorted" / "a" / "1.png").write_bytes(b"copied")
    (folder / "checkpoints" / "mine.pt").write_bytes(b"mine")
    outcome = overwrite(place)
    assert outcome.code == 0, outcome.err
    assert "keeps 3 files that no run wrote: checkpoints/mine.pt, notes.md, sorted/a/1.png" in outcome.err
    assert outcome.folder().name == "x"
    assert (folder / "notes.md").read_text() == "mine"
    assert (folder / "sorted" / "a" / "1.png").read_bytes() == b"copied"
    assert (folder / "checkpoints" / "best.pt").is_file()


def test_what_is_hidden_stays_too_and_the_run_keeps_its_name(place: Path) -> None:
    """A file that a walk does not see keeps the folder from being removed."""
    hidden = place / "results" / "x" / ".DS_Store"
    hidden.write_bytes(b"of a Mac")
    outcome = overwrite(place)
    assert outcome.code == 0, outcome.err
    assert hidden.read_bytes() == b"of a Mac"
    assert [path.name for path in (place / "results").iterdir()] == ["x"]


def test_a_table_that_a_person_has_edited_is_not_removed(place: Path) -> None:
    table = place / "results" / "x" / "split.csv"
    table.write_text(table.read_text() + "new.png,,cat,labeled\n")
    before = snapshot(place)
    outcome = overwrite(place)
    assert outcome.code == 2
    assert "results/x/split.csv was edited since it was written; move it elsewhere" in outcome.err
    assert snapshot(place) == before


def test_predictions_and_labels_filled_into_them_stay(place: Path) -> None:
    line = ("--predict_dir", "d", "--load_path", "x", "--min_probability", 1)
    assert run(*line, cwd=place).code == 0
    folder = place / "results" / "x"
    table = folder / "predictions_unsure.csv"
    table.write_text(table.read_text().replace(",,", ",cat,"))
    outcome = run(*line, "--overwrite", cwd=place)
    assert outcome.code == 2
    assert "predictions_unsure.csv is no earlier output of this command" in outcome.err
    assert overwrite(place).code == 0
    assert ",cat," in table.read_text()
    assert (folder / "predictions.csv").is_file()


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("data_dir", "results/x/photos"),
        ("data_dir", "results/x"),
        ("labels_csv", "results/x/split.csv"),
        ("config", "results/x/commandline_args.txt"),
        ("weights", "results/x/checkpoints/best.pt"),
    ],
)
def test_what_the_command_reads_is_not_removed(place: Path, option: str, given: str) -> None:
    make_data(place / "results" / "x" / "photos")
    before = snapshot(place)
    outcome = overwrite(place, f"--{option}", given)
    assert outcome.code == 2
    assert f"--{option} {given} lies in " in outcome.err
    assert snapshot(place) == before


def test_views_and_a_loaded_run_are_not_removed_either(place: Path) -> None:
    before = snapshot(place)
    views = ("--cotrain_mode", "--views", "pixels", "cnn=results/x/checkpoints/best.pt")
    outcome = run("--name", "x", "--data_dir", "d", *views, "--overwrite", cwd=place)
    assert "--views results/x/checkpoints/best.pt lies in " in outcome.err
    outcome = run("--name", "x", "--finetune_mode", "--load_path", "results/x", "--overwrite", cwd=place)
    assert outcome.code == 2
    assert snapshot(place) == before


@pytest.mark.parametrize("kind", ["onnx", "torch_export"])
def test_out_replaces_only_what_is_of_its_kind(place: Path, kind: str) -> None:
    if kind == "onnx":
        pytest.importorskip("onnx")
    for target in ("results/x/checkpoints/best.pt", "results/x/split.csv", "d"):
        before = snapshot(place)
        for line in (("--export", kind), ("--predict_dir", "d")):
            outcome = run(*line, "--load_path", "x", "--out", target, "--overwrite", cwd=place)
            assert outcome.code == 2, target
            assert "--out" in outcome.err
        assert snapshot(place) == before


def test_a_list_names_only_what_lies_below(tmp_path: Path) -> None:
    written_files.begin_list(tmp_path)
    write_text(tmp_path / "a" / "b.csv", "1")
    (tmp_path / "written.txt").open("a").write("- ../other.txt\n- /etc/passwd\n- \n")
    assert set(written_files.written_in(tmp_path)) == {"a/b.csv"}
