"""A password in `--storage` stands in no file and no message, however the URL is written and whatever goes wrong."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs import Outcome, run
from searches import SHORT, TUNE, parsed, table, tune
from transfermpl import optuna_search
from transfermpl.search import storage as study_storage
from transfermpl.search import worker
from transfermpl.utils import as_command, hidden, keep_secret, typed, without_password

pytestmark = pytest.mark.usefixtures("forked_workers")

# Each holds a password, in which stands `geheim`, and which stands nowhere else.
PLAIN = "postgresql://me:geheim@h/d"
URLS = (
    PLAIN,
    "postgresql://me:geheim@h:5432/d?sslmode=require",
    "postgresql://:geheim@h/d",
    "postgresql+psycopg://me:Geheim@h/d",
    "mysql+pymysql://me:%67eheim%40x@h/d",
    "postgresql://me:x%2Fgeheim%40y@[::1]:5/d",
    "postgresql://me:x@geheim@h/d",
    "postgresql://me:x:geheim:y@h/d",
    "postgresql://me:x/geheim@h/d",
    "postgresql://me:x?geheim#y@h/d",
    "postgresql://me:x geheim@h/d",
    "postgresql://h/d?user=me&password=geheim",
    "postgresql://h/d?passw%6Frd=g%65heim",
    "mysql://h/d?user=me;passwd=geheim&charset=utf8",
    "postgresql://me@h/d?sslpassword=x@geheim",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BUID%3Dme%3BPWD%3Dgeheim",
    "postgresql://me:geheim@[::1/d",
    "postgresql://me:x@h:geheim/d",
    "postgresql://me:geheim/d",
    "postgresql:/me:geheim@h/d",
    "postgresql:me:geheim@h",
    "me:geheim@h/d",
    "//me:geheim@h/d",
    "postgresql%3A%2F%2Fme%3Ageheim%40h%2Fd",
    "postgresql://me%3Ageheim@h/d",
    "postgresql://me%253Ageheim%2540h/d",
    "jdbc:postgresql://h/d?user=me&password=geheim",
    "postgresql://h/d;password=geheim",
    "host=h user=me password=geheim dbname=d",
    "sqlite+pysqlcipher://:geheim@/s.db",
    "sqlite:///me:geheim@h/s.db",
    "sqlite:///s.db?password=geheim",
    " postgresql://me:geheim@h/d",
    "postgresql://me:geheim@h/d\n",
)
# Each takes two whole searches.
every_url = pytest.mark.parametrize(
    "url", [url if url in URLS[:12:11] else pytest.param(url, marks=pytest.mark.slow) for url in URLS]
)
Opens = Callable[[str], None]


def leaks(*outcomes: Outcome, below: Path) -> list[str]:
    """The lines of what was printed, and of every file, that hold the password."""
    texts = [text for outcome in outcomes for text in (outcome.out, outcome.err)]
    texts += [path.read_bytes().decode(errors="replace") for path in below.rglob("*") if path.is_file()]
    return [line for text in texts for line in text.splitlines() if "geheim" in unquote(unquote(line)).lower()]


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> Opens:
    """Sets the database that every URL opens."""
    real = study_storage.open_storage

    def to(path: str) -> None:
        for module in (optuna_search, worker):
            monkeypatch.setattr(module, "open_storage", lambda url, folder: real(f"sqlite:///{path}", folder))

    return to


# --- a search that ends well ------------------------------------------------------------------------------------------


@every_url
def test_no_file_holds_a_password(url: str, easy_objective: None, tmp_path: Path, opens: Opens) -> None:
    opens(f"{tmp_path}/s.db")
    done = tune("--n_trials", 2, "--storage", url, cwd=tmp_path)
    again = tune("--n_trials", 3, "--resume", f"--storage={url}", cwd=tmp_path)
    assert len(table(tmp_path)) == 3
    assert not leaks(done, again, below=tmp_path)
    stored = json.loads((tmp_path / "results" / "t" / "commandline_args.txt").read_text())["storage"]
    assert f"optuna-dashboard {stored}" in again.out


def test_a_password_in_a_config_file_stays_there(easy_objective: None, tmp_path: Path, opens: Opens) -> None:
    config = tmp_path / "given.json"
    config.write_text(json.dumps({"storage": PLAIN, "n_trials": 2}))
    opens(f"{tmp_path}/s.db")
    done = tune("--config", config, cwd=tmp_path)
    trained = run("--name", "x", "--config", "results/t/best_args.json", *SHORT, cwd=tmp_path)
    assert trained.code == 0, trained.err
    again = tune("--resume", "--config", config, cwd=tmp_path)
    config.unlink()
    assert not leaks(done, trained, again, below=tmp_path)


# --- what goes wrong --------------------------------------------------------------------------------------------------


@every_url
def test_a_database_that_can_not_be_opened(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The drivers' own messages, and one that quotes all that there is."""
    outcomes = [tune("--storage", "strange" + url, cwd=tmp_path, code=2)]

    def refuse(given: str, **_: Any) -> None:
        raise ValueError(f"{given!r} is {unquote(given)}, not {given.partition(':')[2]}")

    monkeypatch.setattr(study_storage, "RDBStorage", refuse)
    for words in (["--storage", url], ["--storage=" + url], ["--storage", url, "--resume"]):
        outcomes.append(run(*TUNE, *words, cwd=tmp_path))
        assert outcomes[-1].code == 2
        assert len(outcomes[-1].complaint()) == 1
    assert not leaks(*outcomes, below=tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ("--storag", PLAIN),
        ("--storage", PLAIN, "--seed", PLAIN),
        ("--storage", "sqlite:///s.db", PLAIN),
        ("--storage", PLAIN, "--search", PLAIN),
        ("--config", PLAIN),
        ("--weights", "https://me:geheim@h/w.pth"),
        ("--storage", PLAIN, "--views", "https://me:geheim@h/w.pth"),
    ],
)
def test_a_wrong_command_line_is_not_repeated(words: tuple[str, ...], tmp_path: Path) -> None:
    outcome = tune(*words, cwd=tmp_path, code=2)
    assert len(outcome.complaint()) == 1
    assert not leaks(outcome, below=tmp_path)


def test_a_config_file_with_something_else_in_its_place(tmp_path: Path) -> None:
    config = tmp_path / "c.json"
    for value in ([PLAIN], {"url": PLAIN}):
        config.write_text(json.dumps({"storage": value}))
        outcome = tune("--config", config, cwd=tmp_path, code=2)
        config.unlink()
        assert not leaks(outcome, below=tmp_path)


@pytest.mark.parametrize("kind", [ValueError, optuna.exceptions.StorageInternalError])
def test_a_fault_in_the_middle(kind: type[Exception], tmp_path: Path, opens: Opens, monkeypatch: Any) -> None:
    """Its traceback stands in run.log, with the error that a driver has made of the URL."""
    opens(f"{tmp_path}/s.db")

    def fail(*_: Any) -> None:
        raise kind(f"no connection to {PLAIN}, password geheim") from ValueError(PLAIN)

    monkeypatch.setattr(optuna_search.Supervisor, "run", fail)
    outcome = run(*TUNE, "--storage", PLAIN, cwd=tmp_path)
    assert outcome.code == (2 if kind is optuna.exceptions.StorageInternalError else 1)
    assert len(outcome.complaint()) == 1
    if kind is ValueError:
        assert "Traceback" in (tmp_path / "results" / "t" / "run.log").read_text()
    assert not leaks(outcome, below=tmp_path)


def test_a_traceback_that_was_asked_for(
    tmp_path: Path, opens: Opens, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opens(f"{tmp_path}/s.db")
    monkeypatch.setattr(optuna_search.Supervisor, "run", lambda _: int(PLAIN))
    monkeypatch.setattr("sys.excepthook", None)
    with pytest.raises(ValueError, match="geheim") as raised:
        run(*TUNE, "--storage", PLAIN, "--debug", cwd=tmp_path)
    sys.excepthook(raised.type, raised.value, raised.tb)
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "geheim" not in shown


@pytest.mark.slow
def test_a_trial_and_a_worker_that_fail(tmp_path: Path, opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    opens(f"{tmp_path}/s.db")

    def fail(*_: Any) -> float:
        raise ValueError(f"no connection to {PLAIN}, password geheim")

    monkeypatch.setattr(worker, "accuracy", fail)
    of_trials = tune("--n_trials", 2, "--storage", PLAIN, cwd=tmp_path)
    assert "no connection" in table(tmp_path)[0]["reason"]
    monkeypatch.setattr(worker, "sampler_of", fail)
    of_workers = tune("--n_trials", 4, "--storage", PLAIN, "--resume", cwd=tmp_path, code=1)
    assert not leaks(of_trials, of_workers, below=tmp_path)


@pytest.mark.slow
def test_a_spawned_worker_knows_what_is_secret(tmp_path: Path) -> None:
    job = worker.Job("t", tmp_path, {}, {}, parsed().run, parsed("--storage", PLAIN).search, False, False)
    process = multiprocessing.get_context("spawn").Process(target=worker.work, args=(None, job, 0, 0))
    process.start()
    process.join(100)
    assert process.exitcode == 1
    assert "can't be opened" in (tmp_path / "workers.log").read_text()
    assert not leaks(below=tmp_path)


@pytest.mark.slow
def test_a_search_without_its_password_says_what_is_missing(
    easy_objective: None, tmp_path: Path, opens: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens(f"{tmp_path}/s.db")
    tune("--n_trials", 2, "--storage", PLAIN, cwd=tmp_path)

    def refuse(url: str, **_: Any) -> None:
        raise ValueError("fe_sendauth: no password supplied")

    with monkeypatch.context() as patch:
        patch.setattr(study_storage, "RDBStorage", refuse)
        patch.setattr(optuna_search, "open_storage", study_storage.open_storage)
        outcome = tune("--n_trials", 3, "--resume", cwd=tmp_path, code=2)
    assert "no file keeps a password: give --storage with it" in outcome.err
    tune("--n_trials", 3, "--resume", "--storage", PLAIN, cwd=tmp_path)
    assert len(table(tmp_path)) == 3


# --- one URL ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me@h:5/d?x=1&sslmode=require",
        "postgresql://me%40corp@h/d",
        "postgresql://me@/d?host=/var/run/postgresql",
        "postgresql://h1:5432,h2:5433/d",
        "postgresql://me@[::1]:5432/d",
        "postgresql://%2Fvar%2Frun/d",
        "sqlite:///s.db",
        "sqlite:////data/größe 1/a@b.db?mode=ro",
        "sqlite:///C:/Users/a@b/s.db",
        "sqlite://",
        "nonsense",
        "results/s.db",
    ],
)
def test_a_url_without_a_password_is_shown_as_it_is(url: str) -> None:
    assert without_password(url) == url


def test_an_empty_url_hides_nothing() -> None:
    keep_secret("")
    assert hidden("a line") == "a line"


def test_a_url_with_a_password_keeps_the_rest() -> None:
    assert without_password("postgresql://me:p%40ss@h:5/d?x=1") == "postgresql://me@h:5/d?x=1"
    assert without_password("postgresql://h/d?user=me&password=p&ssl=x") == "postgresql://h/d?user=me&ssl=x"
    assert without_password("postgresql://me:p#q@h/d") == "postgresql://..."


@given(st.text(min_size=6, max_size=12), st.sampled_from(["postgresql://me:{}@h/d", "mysql://h/d?user=me&password={}"]))
def test_no_password_is_shown(password: str, form: str) -> None:
    url = form.format(password)
    shown = without_password(url)
    assert password not in shown or password in form
    assert without_password(shown) == shown
    with as_command(["--storage", url]):
        keep_secret(url)
        assert typed().endswith(" --storage " + typed([shown]).split(maxsplit=1)[1])
        assert password not in hidden(f"can't open {url}") or password in form
