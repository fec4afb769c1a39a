"""MPL.py as a user meets it: a process of its own, its exit codes, and one line for every wrong input."""

from __future__ import annotations

import ast
import io
import json
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch

from runs import COLOURS, FROZEN, MOONS, ROOT, Outcome, end, make_data, make_images, run, same_run, snapshot, start

SHORT = ("--max_steps", "4", "--warmup_epoch_num", "0")

# --- real processes ---------------------------------------------------------------------------------------------------


def test_every_command_is_found_where_the_file_is_run_as_a_script() -> None:
    """As `python MPL.py` does: it is in no package then, so its imports name the package."""
    tree = ast.parse((ROOT / "MPL.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if (node.module or "").startswith("transfermpl.")]
    assert len(ours) > 8
    assert all(node.level == 0 for node in imports)
    assert all(hasattr(import_module(node.module or ""), alias.name) for node in ours for alias in node.names)


@pytest.mark.slow
def test_a_process_without_a_display_never_loads_pyplot(tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['MPL.py', '--name', 'x', '--data_dir', 'moons', '--max_steps', '4', '--show_images']\n"
        f"try:\n    runpy.run_path({str(ROOT / 'MPL.py')!r}, run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        "assert 'matplotlib' in sys.modules\n"
        "print('PYPLOT', 'matplotlib.pyplot' in sys.modules, 'tkinter' in sys.modules)\n"
    )
    # As `env -i` would start it: nothing is set at all.
    process = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r})\n{code}"],
        {},
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, tmp_path / "out", os.O_WRONLY | os.O_CREAT, 0o644)],
    )
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert "PYPLOT False False" in (tmp_path / "out").read_text()
    assert (tmp_path / "results" / "x" / "graphs.png").stat().st_size > 1000
    assert (tmp_path / "results" / "x" / "samples.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_folder_in_a_process_of_its_own(tmp_path: Path) -> None:
    make_data(tmp_path / "meine bilder" / "größe")
    line = ("--name", "größe 1", "--data_dir", "meine bilder/größe", *FROZEN[:-1], "1", "--num_labels", "6", *SHORT)
    outcome = end(start(*line, cwd=tmp_path), tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.complaint() == []
    assert set(outcome.summary("größe 1")["test"]["ensemble"]["per_class"]) == set(COLOURS)
    assert outcome.summary("größe 1")["command"].startswith("MPL.py --name 'größe 1'")
    assert "\r" not in outcome.out + outcome.err  # no progress bar where there is no terminal


@pytest.mark.slow
def test_a_process_killed_from_outside_is_resumed_by_another(tmp_path: Path) -> None:
    line = ("--name", "x", "--data_dir", "moons", "--unlabeled_batch_size", "20", "--max_steps", "600")
    process = start(*line, "--device", "cpu", cwd=tmp_path, saves_often=True)
    metrics = tmp_path / "results" / "x" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") > 4):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    assert not (tmp_path / "results" / "x" / "summary.json").exists()
    resumed = run("--name", "x", "--resume", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    assert "going on after epoch" in resumed.out
    (tmp_path / "alone").mkdir()
    alone = run(*line, cwd=tmp_path / "alone")
    assert same_run(alone, resumed)


@pytest.mark.slow
def test_wrong_input_ends_a_process_with_code_2_and_one_line(tmp_path: Path) -> None:
    outcome = end(start("--name", "x", "--data_dir", "absent", cwd=tmp_path), tmp_path)
    assert outcome.code == 2
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 1
    assert outcome.err.startswith("MPL.py: there is no folder absent; ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_defaults_on_digits_in_a_process(tmp_path: Path) -> None:
    outcome = end(start("--name", "x", cwd=tmp_path), tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.summary()["test"]["ensemble"]["accuracy"] > 0.9
    baseline = end(start("--name", "base", "--finetune_mode", cwd=tmp_path), tmp_path)
    better = outcome.summary()["test"]["ensemble"]["accuracy"]
    assert better > baseline.summary("base")["test"]["student"]["accuracy"]


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the folder that the run really has."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for name in ("x", "x-2"):
        monkeypatch.setattr("transfermpl.runs.trainer.fit", interrupted)
        outcome = run("--name", "x", "--data_dir", "moons", cwd=tmp_path)
        assert outcome.code == 130
        assert f"stopped; --name {name} --resume goes on" in outcome.err


@pytest.mark.parametrize(
    ("where", "words", "says"),
    [
        ("transfermpl.runs.training.fill_banks", (), "stopped; --name x --resume goes on"),
        ("transfermpl.runs.run.finish", (), "stopped; --name x --resume goes on"),
        ("transfermpl.comparison.repeat.one_of", ("--repeat", 2), "stopped; --name x --resume goes on"),
        ("transfermpl.comparison.compare.measure", ("--compare",), "stopped; --name x --resume goes on"),
        ("transfermpl.runs.run.prepare", (), "stopped"),
        ("transfermpl.args.parse", (), "stopped"),
    ],
)
def test_ctrl_c_is_one_line_wherever_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, words: tuple[object, ...], says: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted)
    outcome = run("--name", "x", *MOONS, *words, cwd=tmp_path)
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1] == f"MPL.py: {says}"


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), RuntimeError("CUDA out of memory. Tried")])
def test_no_more_room_is_one_line(fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr("transfermpl.runs.trainer.fit", broken)
    outcome = run("--name", "x", "--data_dir", "moons", cwd=tmp_path)
    assert outcome.code == 1
    assert len(outcome.complaint()) == 1


# --- wrong input ------------------------------------------------------------------------------------------------------


class Place:
    """A working directory with a finished run `kept` and with data sets that are wrong in all ways."""

    def __init__(self, root: Path) -> None:
        self.root = root
        kept = run("--name", "kept", *MOONS, cwd=root)
        assert kept.code == 0
        make_data(root / "good")
        run("--name", "photos", "--data_dir", "good", *FROZEN, "--num_labels", 6, "--no_cache", *SHORT, cwd=root)
        make_images(root / "one class" / "only", 8, (200, 0, 0))
        (root / "no images" / "a").mkdir(parents=True)
        (root / "empty").mkdir()
        for name in ("a", "b"):
            make_images(root / "same" / name, 4, (9, 9, 9))
            make_images(root / "other classes" / name, 8, COLOURS["b c"] if name == "a" else COLOURS["日本"], seed=5)
            (root / "broken" / name).mkdir(parents=True)
            (root / "broken" / name / "x.png").write_bytes(b"nothing")
            make_images(root / "unlabeled" / "unlabeled", 4, (9, 99, 9))
            make_images(root / "no train" / "test" / name, 4, (9, 99, 9))
        (root / "t.csv").write_text("a,b\nc,d\n")
        (root / "missing.csv").write_text("path,label\nnothing.png,a\n")
        (root / "c.json").write_text('{"treshold": 1}')
        (root / "file").write_text("a file")
        (root / "bad.pt").write_bytes(b"no checkpoint")
        (root / "empty.pth").write_bytes(b"")
        torch.save({"net.0.weight": torch.zeros(3)}, root / "other.pth")
        (root / "results" / "precious").mkdir()
        (root / "results" / "precious" / "thesis.tex").write_text("mine")
        (root / "results" / "report").mkdir()
        (root / "results" / "report" / "commandline_args.txt").write_text('{"name": "report", "inspect": true}')


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("wrong"))


PHOTOS = ("--data_dir", "good", "--num_workers", "0", "--num_labels", "6")
TUNE = ("--finetune_mode", "--load_path", "kept")
# (what is typed, what the one line says: what is wrong, and what to do)
WRONG: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    # the data
    (("--data_dir", "absent"), ("no folder absent", "give a folder")),
    (("--data_dir", "goood"), ("no folder goood", "did you mean good?")),
    (("--data_dir", "cifar"), ("no folder cifar", "did you mean cifar10?")),
    (("--data_dir", "/nowhere/ü b"), ("no folder /nowhere/ü b",)),
    (("--data_dir", "file"), ("is a file", "give a folder")),
    (("--data_dir", "empty"), ("no images in empty", "the layouts are")),
    (("--data_dir", "no images"), ("no images in no images", "the layouts are")),
    (("--data_dir", "one class"), ("at least two classes", "only")),
    (("--data_dir", "same"), ("at least two classes",)),
    (("--data_dir", "broken"), ("none of the image files",)),
    (("--data_dir", "unlabeled"), ("unlabeled", "layouts")),
    (("--data_dir", "no train"), ("no train", "layouts")),
    (("--data_dir", "line\nbreak"), ("no folder",)),
    (("--data_dir", ""), ("--data_dir is empty", "leave it out")),
    (("--data_dir", "cifar10", "--data_root", "absent"), ("cifar10 is not under absent", "--download")),
    (("--data_dir", "good", "--labels_csv", "absent.csv"), ("no table absent.csv",)),
    (("--data_dir", "good", "--labels_csv", "t.csv"), ("must start with the line path,label",)),
    (("--data_dir", "good", "--labels_csv", "missing.csv"), ("there is no file", "nothing.png")),
    (("--labels_csv", "t.csv"), ("needs a folder",)),
    # the labels
    (("--num_labels", "0"), ("--num_labels 0", "at least 1")),
    (("--num_labels_percent", "0"), ("0 labels", "--num_labels 10")),
    (("--num_labels", "9"), ("too few", "--num_labels 10")),
    (("--num_labels", "1439"), ("too many", "1438 are there")),
    (("--num_labels_percent", "3"), ("3%",)),
    (("--num_labels", "1"), ("too few", "10 classes")),
    (("--num_labels_percent", "100%", "--no_include_labeled"), ("--no_include_labeled",)),
    (("--num_labels", "50", "--num_labels_percent", "10%"), ("exclude each other",)),
    (("--patience", "3"), ("at least 10 validation images a class", "--val_percent")),
    (("--patience", "3", "--val_percent", "1%"), ("at least 10 validation images a class", "--val_percent")),
    # the network
    (("--model_name", "resnet19"), ("resnet19 is unknown", "did you mean")),
    (("--model_name", "timm:resnet10"), ("timm:resnet10 is unknown", "did you mean")),
    (("--model_name", "x" * 300), ("is unknown", "choose")),
    ((*PHOTOS, "--model_name", "cnn", "--weights", "absent.pth"), ("no such file",)),
    ((*PHOTOS, "--model_name", "cnn", "--weights", "file"), ("must be a .pth",)),
    ((*PHOTOS, "--model_name", "cnn", "--weights", "empty.pth"), ("refused", "give a state dict")),
    ((*PHOTOS, "--model_name", "cnn", "--weights", "bad.pt"), ("refused", "give a state dict")),
    ((*PHOTOS, "--model_name", "cnn", "--weights", "other.pth"), ("does not fit cnn", "missing", "net.0.weight")),
    ((*PHOTOS, "--model_name", "alexnet", "--weights", "none", "--image_size", "16"), ("16 px", "--image_size")),
    (("--model_name", "cnn", "--unfreeze", "99"), ("--unfreeze 99", "stages")),
    (("--data_dir", "moons", "--model_name", "cnn"), ("needs images", "--model_name mlp")),
    # the learning and the run
    (("--warmup_epoch_num", "50", "--max_steps", "10"), ("leaves none", "--warmup_epoch_num")),
    (("--threshold", "1.5"), ("out of range", "at most 1")),
    (("--max_lr", "0"), ("out of range", "above 0")),
    (("--optimizer", "Adam"), ("choose from AdamW, SGD",)),
    (("--treshold", "0.5"), ("did you mean --threshold?",)),
    (("--config", "c.json"), ("did you mean --threshold?",)),
    (("--config", "absent.toml"), ("can't be read",)),
    (("--max_steps", "5", "--num_epochs", "5"), ("exclude each other",)),
    (("--finetune_mode", "--switch_mode"), ("exclude each other",)),
    (("--test_mode", "--load_path", "kept"), ("exclude each other",)),
    (("--finetune_mode", "--load_best"), ("needs --load_path",)),
    (("--load_path", "kept"), ("needs --finetune_mode or --test_mode",)),
    (("--device", "abacus"), ("--device abacus is not available", "--device cpu")),
    (("--device", "meta"), ("--device meta is not available", "--device cpu")),
    # what is loaded
    (("--finetune_mode", "--load_path", "absent"), ("no such run",)),
    (("--finetune_mode", "--load_path", "bad.pt"), ("can't be read as a checkpoint", "best.pt")),
    (("--finetune_mode", "--load_path", "other.pth"), ("is not a checkpoint of this program",)),
    ((*TUNE, "--data_dir", "digits"), ("knows 2 classes and digits has 10", "give the data")),
    ((*TUNE, "--data_dir", "other classes"), ("differ in", "give the data")),
    ((*TUNE, "--seed", "3"), ("training images of the loaded run", "leave out --seed")),
    ((*TUNE, "--model_name", "cnn"), ("--model_name mlp", "leave out --model_name")),
    # what can be told before a folder, which may be large, is read
    (("--data_dir", "absent", "--device", "abacus"), ("--device abacus is not available",)),
    (("--data_dir", "absent", "--model_name", "resnet5"), ("--model_name resnet5 is unknown",)),
    (("--data_dir", "absent", "--weights", "absent.pth"), ("--weights absent.pth: there is no such file",)),
    (("--data_dir", "absent", "--cotrain_mode", "--views", "cnn", "resnet5"), ("--views resnet5 is unknown",)),
    # where things are put
    ((*PHOTOS, *FROZEN, "--cache_dir", "file"), ("feature bank", "--cache_dir")),
]


@pytest.mark.parametrize(("line", "says"), WRONG, ids=lambda v: " ".join(v)[:60])
def test_wrong_input_is_one_line_and_touches_nothing(
    place: Place, line: tuple[str, ...], says: tuple[str, ...]
) -> None:
    before = snapshot(place.root)
    outcome = run("--name", "kept", "--overwrite", *line, *(SHORT if not {*SHORT} & {*line} else ()), cwd=place.root)
    check_refused(outcome, says)
    assert snapshot(place.root) == before


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("--test_mode",), ("--test_mode needs --load_path",)),
        (("--test_mode", "--load_path", "absent"), ("no such run", "results/")),
        (("--test_mode", "--load_path", "kept", "--switch_mode"), ("exclude each other",)),
        (("--test_mode", "--load_path", "kept", "--resume"), ("exclude each other",)),
        (("--test_mode", "--load_path", "kept", "--data_dir", "digits"), ("does not know", "trained on 0, 1")),
        (("--test_mode", "--load_path", "photos", "--data_dir", "other classes"), ("does not know: a, b",)),
        (("--test_mode", "--load_path", "precious"), ("no such run",)),
        (("--name", "precious", "--overwrite", "--data_dir", "moons"), ("does not look like a run", "another --name")),
        (("--name", "absent", "--resume"), ("no run to resume in results/absent", "leave out --resume")),
        (("--name", "precious", "--resume"), ("no run to resume",)),
        (("--name", "report", "--resume"), ("report is a report", "leave out --resume")),
        (("--name", "a/b"), ("plain folder name",)),
        (("--name", "timm:x"), ("plain folder name",)),
        (("--name", "a\tb"), ("plain folder name",)),
        (("--name", "exp."), ("on Windows; add a word",)),
        (("--name", "Con"), ("on Windows; add a word",)),
        (("--name", "lpt1.x"), ("on Windows; add a word",)),
        (("--name", "n" * 300, "--data_dir", "moons"), ("can't make the run folder", "another --name")),
        ((), ("--name is missing",)),
    ],
    ids=lambda v: " ".join(v)[:60],
)
def test_wrong_modes_and_names(place: Place, line: tuple[str, ...], says: tuple[str, ...]) -> None:
    before = snapshot(place.root)
    check_refused(run(*line, cwd=place.root), says)
    assert snapshot(place.root) == before


def test_a_name_of_bytes_that_are_no_text_is_refused(tmp_path: Path) -> None:
    check_refused(run("--name", "a\udcff", *MOONS, cwd=tmp_path), ("must be text in UTF-8",))
    os.mkfifo(tmp_path / "pipe.json")
    check_refused(run("--name", "x", "--config", "pipe.json", *MOONS, cwd=tmp_path), ("not a file",))
    (tmp_path / "results").symlink_to("a disk that is not mounted")
    check_refused(run("--name", "x", *MOONS, cwd=tmp_path), ("a link to a place that is not there",))


def check_refused(outcome: Outcome, says: tuple[str, ...]) -> None:
    assert outcome.code == 2, outcome.err
    assert len(outcome.complaint()) == 1, outcome.err
    message = outcome.complaint()[0]
    assert message.startswith("MPL.py: ")
    for words in says:
        assert words in message
    assert "Traceback" not in outcome.err


def test_a_run_whose_records_are_damaged_is_named(tmp_path: Path) -> None:
    run("--name", "x", *MOONS, cwd=tmp_path)
    folder = tmp_path / "results" / "x"
    for name, content in (("commandline_args.txt", "{"), ("split.csv", "what\n1\n"), ("checkpoints/last.pt", "broken")):
        good = (folder / name).read_bytes()
        (folder / name).write_text(content)
        outcome = run("--name", "x", "--resume", cwd=tmp_path)
        check_refused(outcome, ())
        assert name.split("/")[-1] in outcome.err
        (folder / name).write_bytes(good)
    (folder / "checkpoints" / "best.pt").unlink()
    (folder / "checkpoints" / "last.pt").unlink()
    check_refused(run("--test_mode", "--load_path", "x", cwd=tmp_path), ("has no best.pt yet", "--resume"))


def test_a_checkpoint_that_is_not_whole_is_refused_when_loaded(tmp_path: Path) -> None:
    run("--name", "x", *MOONS, cwd=tmp_path)
    path = tmp_path / "results" / "x" / "checkpoints" / "best.pt"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[-1000:]):
        path.write_bytes(damaged)
        outcome = run("--test_mode", "--load_path", "x", "--data_dir", "moons", cwd=tmp_path)
        check_refused(outcome, ("can't be read as a checkpoint",))
    torch.save({**torch.load(io.BytesIO(whole), weights_only=True), "options": {"treshold": 1}}, path)
    check_refused(run("--test_mode", "--load_path", "x", cwd=tmp_path), ("of another version", "--treshold"))


def test_a_finished_run_can_be_described_from_its_files_alone(place: Place) -> None:
    folder = place.root / "results" / "photos"
    record = json.loads((folder / "commandline_args.txt").read_text(encoding="utf-8"))
    assert record["data_dir"] == "good"
    assert record["num_labels"] == 6
    assert not {"resume", "overwrite", "config"} & set(record)


def test_what_a_command_does_not_use_is_not_checked(tmp_path: Path) -> None:
    assert run("--list_views", "--device", "abacus", cwd=tmp_path).code == 0
    (tmp_path / "x.jpg").touch()
    outcome = run("--predict_dir", ".", "--load_path", "absent", "--weights", "gone.pth", cwd=tmp_path)
    check_refused(outcome, ("no such run",))
