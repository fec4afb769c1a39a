"""The package as others use it: imported, called from Python, and installed as a wheel beside files named like ours."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import transfermpl
from draw_house import ROOT, modules
from runs import MOONS, make_data, no_pictures
from transfermpl import UserError

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
QUIET = {**os.environ, "OMP_NUM_THREADS": "1"}


def python(code: str, cwd: Path, **named: object) -> str:
    """What a program prints that is to succeed."""
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=cwd, env=QUIET, capture_output=True, text=True, timeout=300, **named)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- what can be imported ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_importing_the_package_loads_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, transfermpl\n"
        "assert sorted(transfermpl.__all__) == [n for n in dir(transfermpl) if n in transfermpl.__all__]\n"
        "assert 'train' in dir(transfermpl) and callable(transfermpl.UserError)\n"
        "print([name for name in ('torch', 'optuna', 'PIL', 'transfermpl.train') if name in sys.modules])\n"
        "from transfermpl import load_classifier, train\n"
        "print(callable(train), callable(load_classifier), 'torch' in sys.modules)\n"
    )
    assert python(code, tmp_path) == "[]\nTrue True True\n"
    bare = "import sys, transfermpl; print('numpy' in sys.modules, len(transfermpl.__version__) > 2)"
    assert python(bare, tmp_path) == "False True\n"


def test_every_public_name_is_there_and_no_other() -> None:
    for name in transfermpl.__all__:
        assert getattr(transfermpl, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'teach'"):
        getattr(transfermpl, "teach")  # noqa: B009
    with pytest.raises(ImportError, match="teach"):
        exec("from transfermpl import teach")


def test_train_is_a_function_and_the_module_of_that_name() -> None:
    """Python gives the module to the package's attribute, whenever somebody imports it."""
    module = importlib.import_module("transfermpl.train")
    assert transfermpl.train is module
    assert module.TrainingFault is transfermpl.TrainingFault
    with pytest.raises(UserError, match="--name"):
        transfermpl.train(name="")


def test_the_version_has_one_place() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    assert "version" not in PROJECT["project"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", transfermpl.__version__)


def test_all_folders_of_the_package_are_packed() -> None:
    folders = {f"transfermpl.{name}" for name, path in modules().items() if path.parent != ROOT and "." not in name}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == {"transfermpl", *folders}


# --- train() ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"treshold": 0.5}, "no option --treshold; did you mean --threshold?"),
        ({"threshold": 1.5}, "--threshold 1.5 is out of range"),
        ({"max_steps": "many"}, "--max_steps takes a whole number"),
        ({"switch_mode": "yes"}, "--switch_mode is on or off"),
        ({"switch_mode": True, "finetune_mode": True}, "exclude each other"),
        ({"cotrain_mode": True}, "--cotrain_mode needs --views"),
        ({"data_dir": "absent"}, "no folder absent"),
        ({"device": "abacus"}, "--device abacus is not available"),
        ({"name": "a/b"}, "plain folder name"),
        ({"config": "c.json"}, "--config is of the command line"),
        ({"optuna_mode": True}, "--optuna_mode is a command of its own"),
        ({"inspect": True}, "--inspect is a command of its own"),
        ({"repeat": 2}, "--repeat is a command of its own"),
    ],
)
def test_options_are_checked_as_on_the_command_line(options: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(says)) as raised:
        transfermpl.train(**{"name": "x", "max_steps": 4, **options})
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_and_another_starts_from_it_without_its_data_being_named(tmp_path: Path) -> None:
    few = {"max_steps": 4, "unlabeled_batch_size": 200, "device": "cpu"}
    with no_pictures():
        first = transfermpl.train("moons", name="x", **few)
        again = transfermpl.train(name="x", resume=True)
        tuned = transfermpl.train(name="y", finetune_mode=True, load_path="x", max_steps=2, device="cpu")
    assert again.summary == first.summary
    assert tuned.summary["dataset"]["path"] == "moons"


@pytest.mark.parametrize("stored", ["compare", "inspect", "optuna_mode"])
def test_what_goes_on_must_be_a_run(stored: str, tmp_path: Path) -> None:
    (tmp_path / "results" / "x").mkdir(parents=True)
    (tmp_path / "results" / "x" / "commandline_args.txt").write_text(f'{{"name": "x", "{stored}": true}}')
    with pytest.raises(UserError, match=f"--{stored} is a command of its own"):
        transfermpl.train(name="x", resume=True)


SILENT = """
import os, sys, transfermpl
assert sys.stderr.isatty() and sys.stdout.isatty()
run = transfermpl.train("moons", name="x", unlabeled_batch_size=200, max_steps=12, device="cpu")
assert run.summary["name"] == run.folder.name == "x", run
assert run.summary["command"] == "{command} --name x --device cpu --data_dir moons --max_steps 12 " \\
    "--unlabeled_batch_size 200", run.summary["command"]
assert (run.folder / "summary.json").is_file() and run.folder.is_absolute()
try:
    run.classifier
except transfermpl.UserError as error:
    assert "points" in str(error)
print("---", flush=True)
again = transfermpl.train("moons", name="x", finetune_mode=True, max_steps=4, verbose=True)
assert again.folder.name == "x-2" and again.summary["mode"] == "finetune"
os._exit(3)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals")
def test_nothing_is_printed_unless_asked_not_even_a_bar(tmp_path: Path) -> None:
    import fcntl
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # a bar needs a width
    command = transfermpl.utils.program().split()[-1]
    line = [sys.executable, "-c", SILENT.replace("{command}", command)]
    process = subprocess.Popen(line, cwd=tmp_path, env=QUIET, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # what Linux says at the end of such a stream
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    before, _, asked = shown.decode().partition("---\r\n")
    assert before == ""
    assert asked.startswith("data set moons\r\n")
    assert "training |" in asked
    assert "results: results/x-2\r\n" in asked
    assert process.wait() == 3
    log = (tmp_path / "results" / "x" / "run.log").read_text(encoding="utf-8")
    assert "training: step 12/12" in log
    assert "results: results/x" in log


@pytest.mark.slow
def test_views_are_trained_together_and_a_classifier_is_loaded(tmp_path: Path) -> None:
    make_data(tmp_path / "p")
    few = {"num_labels": 9, "max_steps": 4, "num_workers": 0, "device": "cpu", "head_prior": "none"}
    with no_pictures():
        run = transfermpl.train(tmp_path / "p", name="c", cotrain_mode=True, views=["pixels", "gradients"], **few)
    assert run.summary["mode"] == "cotrain"
    assert run.classifier is run.classifier
    assert run.classifier(sorted((tmp_path / "p").glob("*/*.png"))[:2]).shape == (2, 3)
    with pytest.raises(AttributeError):
        run.summary = {}  # type: ignore[misc]


@pytest.mark.slow
def test_the_page_about_python_says_what_is_true(tmp_path: Path) -> None:
    make_data(tmp_path / "photos")
    shutil.copytree(tmp_path / "photos" / "b c", tmp_path / "new")
    for number, path in enumerate(sorted((tmp_path / "new").iterdir()), start=1):
        path.rename(tmp_path / "new" / f"{number}.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(code.strip().splitlines()) <= 11
    small = 'num_labels=9, model_name="cnn", image_size=16, max_steps=4, device="cpu"'
    (tmp_path / "page.py").write_text(code.replace("num_labels=50", small), encoding="utf-8")
    done = subprocess.run([sys.executable, "page.py"], env=QUIET, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    accuracy, classes, index = done.stdout.splitlines()
    assert accuracy.endswith(str(Path("results") / "flowers"))
    assert classes == "('b c', 'ähre', '日本')"
    assert index in ("[0]", "[1]", "[2]")


# --- the wheel --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of this checkout, built without the network."""
    # Looked for, not imported: pip, once imported, keeps setuptools from being imported after it (Python < 3.12).
    if not all(importlib.util.find_spec(needed) for needed in ("pip", "setuptools")):
        pytest.skip("pip and setuptools are needed")
    copy, out = tmp_path_factory.mktemp("source") / "any-name", tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "results", "cache", "datasets", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignored)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(out))
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(copy)], check=True, timeout=300)
    (built,) = out.iterdir()
    return built


class Bare:
    """An environment of its own in which the wheel is installed, and nothing else of ours.

    The libraries are those that the tests run with; a checkout that is installed there is not seen.
    """

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder, symlinks=True)
        self.bin = folder / "bin"
        places = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "libraries.pth").write_text("\n".join(places) + "\n")
        pip = (sys.executable, "-m", "pip", "--python", str(self.bin / "python"))
        install = ("install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", str(wheel))
        subprocess.run([*pip, *install], check=True, timeout=300)

    def run(self, *line: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        """A program of this environment."""
        words = [str(self.bin / str(line[0])), *map(str, line[1:])]
        env = {name: value for name, value in QUIET.items() if name != "PYTHONPATH"}
        return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Bare:
    return Bare(tmp_path_factory.mktemp("bare") / "venv", wheel)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder of somebody else's program, whose files have the names of ours."""
    for name in ("utils", "data", "args"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('the wrong {name}.py')\n")
    return tmp_path


def ended_well(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (about,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    inside = {name for name in names if ".dist-info/" not in name}
    expected = {f"transfermpl/{path.relative_to(ROOT).as_posix()}" for path in modules().values()}
    pages = [*ROOT.glob("reports/*.j2"), *ROOT.glob("reports/*.css")]
    assert inside == expected | {f"transfermpl/{path.relative_to(ROOT).as_posix()}" for path in pages}
    assert f"Version: {transfermpl.__version__}" in about
    assert "Requires-Python: >=3.11" in about
    assert "License-Expression: MIT" in about
    assert any(name.endswith("LICENSE") for name in names)


@pytest.mark.slow
def test_the_command_in_a_bare_environment(bare: Bare, hostile: Path) -> None:
    assert ended_well(bare.run("transfermpl", "--version", cwd=hostile)) == f"transfermpl {transfermpl.__version__}\n"
    assert ended_well(bare.run("transfermpl", "--help", cwd=hostile)).startswith("usage: transfermpl ")
    where = ended_well(bare.run("python", "-c", "import transfermpl; print(transfermpl.__file__)", cwd=hostile))
    assert Path(where.strip()).is_relative_to(bare.bin.parent)
    wrong = bare.run("transfermpl", "--name", "x", "--data_dir", "absent", cwd=hostile)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("transfermpl: there is no folder absent")
    line = ("--name", "x", "--max_steps", 20, "--num_labels", 20, "--device", "cpu")
    assert "results: results/x\n" in ended_well(bare.run("transfermpl", *line, cwd=hostile))
    assert (hostile / "results" / "x" / "summary.json").is_file()


LIBRARY = """
import multiprocessing, sys

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    from transfermpl import load_classifier, train

    run = train("p", name="x", num_labels=9, model_name="cnn", image_size=16, max_steps=20, num_workers=1, device="cpu")
    print(run.classifier(["p/b c/bild 00.png"]).shape, load_classifier("x", device="cpu").classes)
"""

SEARCH = """
import sys

from transfermpl import MPL
from transfermpl.search import supervisor

if __name__ == "__main__":
    supervisor.START = sys.argv.pop(1)
    sys.exit(MPL.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_the_library_in_a_bare_environment(bare: Bare, hostile: Path, start: str) -> None:
    make_data(hostile / "p")
    (hostile / "program.py").write_text(LIBRARY)
    out = ended_well(bare.run("python", "program.py", start, cwd=hostile))
    assert out == "(1, 3) ('b c', 'ähre', '日本')\n"


@pytest.mark.slow
@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_a_search_in_a_bare_environment(bare: Bare, hostile: Path, start: str) -> None:
    (hostile / "program.py").write_text(SEARCH)
    program = ("transfermpl",) if start == "spawn" else ("python", "program.py", start)
    line = ("--name", "s", *MOONS, "--optuna_mode", "--n_trials", 4, "--search_workers", 2, "--device", "cpu")
    assert ended_well(bare.run(*program, *line, cwd=hostile)).endswith("results: results/s\n")
    trials = (hostile / "results" / "s" / "trials.csv").read_text(encoding="utf-8").splitlines()
    assert sum(",complete," in line for line in trials) == 4
