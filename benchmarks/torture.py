"""Whether a kill loses anything: runs of every mode are killed at random moments, go on, and must end as if untouched.

    python benchmarks/torture.py [--kills 66] [--seed 0] [--modes NAME ...] [--keep DIR]

Of each mode one untouched run is the reference. Then again and again a run is begun and ended once to three times by
SIGKILL, SIGTERM or SIGINT to its process group, at moments drawn over the whole time of the reference; each time it goes
on by `--resume`, or by the same command where there is nothing to go on from. Counted are:

- kills: signals that reached a run before its end,
- lost: what was finished at a kill (steps in a checkpoint, methods of a comparison, trials, blocks of features) and is gone
  or changed later, and runs that can't be gone on with,
- stuck: what has not ended in ten times the time of the reference and two minutes more,
- different: results that are not the reference's, byte for byte in tables, bit for bit in weights
  (benchmarks/same_results.py; pages and pictures must be there), and wrong exit codes. Of a search with two workers,
  whose trials depend on the clock: not n_trials trials, or the same one twice,
- left over: files and folders that the reference has not left, processes, shared memory.

Exits with 1 unless all but the kills are 0. About 15 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from same_results import CLOCK, LIBRARIES, Report, compare_folders, draw_nothing

ROOT = Path(__file__).resolve().parents[1]
CHAIN = 3  # kills of one run at most
IN_IMPORTS = 0.15  # the share of the kills before a run says its first word
FIRST_SIGNAL = 0.5  # seconds, before which Python itself is starting and no program can answer a signal
N_TRIALS = 20
MOONS = "--name x --data_dir moons --unlabeled_batch_size 30 --max_steps 120"
VIEWS = "--name x --data_dir digits --cotrain_mode --views pixels gradients --unlabeled_batch_size 250 --max_steps 30"
BANK = (
    "--name x --data_dir ../images --model_name cnn --unfreeze head --image_size 16 --num_labels 60 --num_workers 2"
    " --unlabeled_batch_size 120 --max_steps 40 --augmentation_draws 4"
)
COMPARE = "--name x --data_dir moons --unlabeled_batch_size 200 --max_steps 24 --compare --repeat 2"
SEARCH = (
    f"--name x --data_dir moons --unlabeled_batch_size 100 --max_steps 40 --optuna_mode --n_trials {N_TRIALS} --folds 2"
    " --search_workers 2 --pruner none"
)


@dataclass(frozen=True)
class Mode:
    """A command line, what ends it, whether it goes on by --resume, and whether libraries are loaded before it begins.

    Loading takes longer than what most of these runs do. A process that is forked with them saves a checkpoint after
    every epoch, instead of by the clock, so that there is something to lose; draws no pictures; and forks its workers.
    """

    line: str
    signal: int = signal.SIGKILL
    resumes: bool = True
    loaded: bool = True


MODES = {
    "MPL": Mode(MOONS),
    "switched": Mode(f"{MOONS} --switch_mode"),
    "finetune": Mode("--name x --data_dir moons --finetune_mode --max_steps 120"),
    "co-training": Mode(VIEWS),
    "bank": Mode(BANK),
    "compare": Mode(COMPARE),
    "search": Mode(SEARCH),
    "predict": Mode("--predict_dir ../unknown --load_path a", resumes=False),
    "MPL, SIGTERM": Mode(MOONS, signal.SIGTERM, loaded=False),
    "bank, SIGINT": Mode(BANK, signal.SIGINT),
    "search, SIGTERM": Mode(SEARCH, signal.SIGTERM, loaded=False),
}


@dataclass
class Outcome:
    """What came of the kills of a mode, and in a few words what was wrong."""

    kills: int = 0
    wrong: Counter[str] = field(default_factory=Counter)

    def note(self, kind: str, what: str) -> None:
        self.wrong[kind] += 1
        print(f"{kind}: {what}", flush=True)


KINDS = ("lost", "stuck", "different", "left over")


# --- processes --------------------------------------------------------------------------------------------------------


@dataclass
class Running:
    """A process in a session of its own, with what it says."""

    number: int
    screen: Path
    began: float = field(default_factory=time.monotonic)
    code: int | None = None

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def ended_before(self, moment: float) -> bool:
        """Wait until that many seconds after the start, or for its end if that is sooner."""
        while self.code is None:
            ended, status = os.waitpid(self.number, os.WNOHANG)
            if ended:
                self.code = os.waitstatus_to_exitcode(status)
            elif self.seconds() >= moment:
                return False
            else:
                time.sleep(0.002)
        return True

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.number, number)

    def first_word(self, limit: float) -> float:
        """The seconds until it says something or ends."""
        while not self.screen.stat().st_size and not self.ended_before(self.seconds()) and self.seconds() < limit:
            time.sleep(0.002)
        return self.seconds()

    def last_line(self) -> str:
        return self.screen.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2][:200]


def start(mode: Mode, line: str, folder: Path) -> Running:
    """`python MPL.py` with this line, as a process of its own."""
    (folder / "tmp").mkdir(exist_ok=True)
    screen = folder.with_name(f"{folder.name}.txt")
    handle = os.open(screen, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    process = os.fork()
    if process:
        os.close(handle)
        return Running(process, screen)
    code = 70
    try:
        os.setsid()
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.chdir(folder)
        os.environ["TMPDIR"], tempfile.tempdir = str(folder / "tmp"), None
        words = [*shlex.split(line), "--device", "cpu"]
        if not mode.loaded:
            os.execv(sys.executable, [sys.executable, str(ROOT / "MPL.py"), *words])
        code = main_of_loaded(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main_of_loaded(words: list[str]) -> int:
    """What MPL.py does, as `Mode` says."""
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    from transfermpl import MPL, train
    from transfermpl.search import supervisor

    train.CHECKPOINT_SECONDS, supervisor.START = -1.0, "fork"
    draw_nothing()
    sys.argv = [str(ROOT / "MPL.py"), *words]
    return MPL.main()


def processes_of(sessions: Sequence[int]) -> list[int]:
    """The processes that still run in these sessions."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, _, _, session, *_ = path.read_text().rpartition(")")[2].split()
            if int(session) in sessions and state not in "ZX":
                found.append(int(path.parent.name))
    return found


def remaining(sessions: Sequence[int], seconds: float = 10.0) -> list[int]:
    """The processes of these sessions that are still there after some seconds."""
    limit = time.monotonic() + seconds
    while (left := processes_of(sessions)) and time.monotonic() < limit:
        time.sleep(0.05)
    return left


def shared_memory() -> set[str]:
    """What lies in shared memory and no process has mapped."""
    names = {path.name for path in Path("/dev/shm").iterdir()} if Path("/dev/shm").is_dir() else set()
    for path in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            names -= set(re.findall(r"/dev/shm/(\S+)", path.read_text(errors="replace")))
    return names


# --- what a run leaves ------------------------------------------------------------------------------------------------


def trials_in(journal: Path) -> list[Any]:
    """All trials of a journal, read from a copy."""
    from transfermpl.search.storage import open_journal

    with tempfile.TemporaryDirectory() as place:
        copy = Path(shutil.copy(journal, place))
        storage = open_journal(copy)
        studies = storage.get_all_studies()
        return storage.get_all_trials(studies[0]._study_id) if studies else []


def finished_in(folder: Path) -> dict[str, Any]:
    """What is finished in a folder of runs, by a name each. Raises an error where it can't be read."""
    import torch

    found: dict[str, Any] = {}
    run = folder / "results" / "x"
    if (run / "checkpoints" / "last.pt").is_file():
        found["step"] = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["step"]
    if (run / "journal.json").is_file():
        for method, seeds in json.loads((run / "journal.json").read_text(encoding="utf-8")).items():
            found |= {f"{method}, seed {seed}": done for seed, done in seeds.items()}
    if (run / "study.journal").is_file():
        done = (trial for trial in trials_in(run / "study.journal") if trial.state.name in ("COMPLETE", "PRUNED"))
        found |= {f"trial {trial.number}": (trial.value, trial.params) for trial in done}
    for block in folder.glob("cache/*/*/[!.]*.block"):
        found[block.relative_to(folder).as_posix()] = block.read_bytes()
    return found


def lost_between(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What was finished and is so no more; a step may have grown."""
    lost = [name for name, value in before.items() if name != "step" and after.get(name) != value]
    return lost + ["step"] * (after.get("step", 0) < before.get("step", 0))


def tree(folder: Path) -> set[str]:
    """All files and folders below, but for the names of blocks of features, which depend on what was missing."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.match("*/.*") or path.suffix != ".block"
    }


def compare(mode: Mode, reference: Path, folder: Path, outcome: Outcome) -> None:
    """Note where the results are not the reference's."""
    if not mode.resumes:
        compare_predictions(reference, folder, outcome)
    elif "--optuna_mode" in mode.line:
        check_trials(folder / "results" / "x", outcome)
    else:
        report = Report()
        runs = reference / "results" / "x", folder / "results" / "x"
        compare_folders(*runs, report, folder.name, passed=CLOCK | {"command"})
        if report.differences:
            outcome.note("different", f"{folder}: {len(report.differences)} differences")


def compare_predictions(reference: Path, folder: Path, outcome: Outcome) -> None:
    """A kill at the very end has left a whole table; the next one lies beside it."""
    expected = (reference / "results" / "a" / "predictions.csv").read_bytes()
    tables = sorted((folder / "results" / "a").glob("predictions*.csv"))
    if not tables or any(table.read_bytes() != expected for table in tables):
        outcome.note("different", f"{folder}: {[table.name for table in tables]}")


def check_trials(run: Path, outcome: Outcome) -> None:
    """Of a search: as many trials as were asked for, none twice, and the table holds what the journal does."""
    trials = trials_in(run / "study.journal")
    done = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    values = {json.dumps(trial.params, sort_keys=True) for trial in done}
    if len(done) != N_TRIALS or len(values) != N_TRIALS:
        outcome.note("different", f"{run}: {len(done)} trials, {len(values)} different ones")
    with (run / "trials.csv").open(encoding="utf-8", newline="") as file:
        rows = [(int(row["number"]), row["state"], row["value"]) for row in csv.DictReader(file)]
    if rows != [(t.number, t.state.name.lower(), "" if t.value is None else str(t.value)) for t in trials]:
        outcome.note("different", f"{run}: trials.csv does not hold the trials")


# --- killing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """The untouched run of a mode: where it ran, and the seconds until its first word and its end."""

    folder: Path
    first_word: float
    seconds: float

    @property
    def limit(self) -> float:
        return 120 + 10 * self.seconds

    def moment(self, random: np.random.Generator, number: int) -> float:
        """When to kill, in seconds from the start."""
        first = 0.0 if number == signal.SIGKILL else FIRST_SIGNAL
        if random.random() < IN_IMPORTS and first < self.first_word:
            return random.uniform(first, self.first_word)
        return random.uniform(self.first_word, self.seconds)


def untouched(mode: Mode, folder: Path) -> Reference:
    running = start(mode, mode.line, folder)
    first = running.first_word(600)
    if not running.ended_before(1200) or running.code:
        running.send(signal.SIGKILL)
        sys.exit(f"the untouched run of {folder} failed: {running.last_line()}")
    return Reference(folder, first, running.seconds())


def next_line(mode: Mode, folder: Path) -> str:
    """How a killed run goes on."""
    resumable = mode.resumes and (folder / "results" / "x" / "commandline_args.txt").is_file()
    return "--name x --resume" if resumable else mode.line


def one_run(
    mode: Mode, reference: Reference, folder: Path, kills: int, random: np.random.Generator, outcome: Outcome
) -> None:
    """Kill a run up to so often, then let it go on to its end, and note what is wrong."""
    sessions: list[int] = []
    before: dict[str, Any] = {}
    shared = shared_memory()
    for left in range(kills, -1, -1):
        running = start(mode, next_line(mode, folder), folder)
        sessions.append(running.number)
        ended = running.ended_before(reference.moment(random, mode.signal) if left else reference.limit)
        if not ended and left:
            outcome.kills += 1
            running.send(mode.signal)
            ended = running.ended_before(running.seconds() + reference.limit)
        if not ended:
            outcome.note("stuck", f"{folder}: {running.last_line()}")
            running.send(signal.SIGKILL)
            running.ended_before(float("inf"))
            break
        if strays := remaining(sessions):
            outcome.note("left over", f"{folder}: processes {strays}")
            running.send(signal.SIGKILL)
        note_code(mode, running, outcome)
        before = check_kept(folder, before, outcome)
        if running.code == 0:
            compare(mode, reference.folder, folder, outcome)
            check_left(reference.folder, folder, shared, outcome)
        if running.code in (0, 1, 2):
            break


def note_code(mode: Mode, running: Running, outcome: Outcome) -> None:
    """Note an end that is neither that of a finished run nor of the signal."""
    if running.code in (1, 2):
        outcome.note("lost", f"{running.screen}: can't be gone on with: {running.last_line()}")
    elif running.code not in (0, -mode.signal, 128 + mode.signal):
        outcome.note("different", f"{running.screen}: ended with code {running.code}: {running.last_line()}")


def check_kept(folder: Path, before: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    """Note what was finished before and is so no more; returns what is finished now."""
    try:
        after = finished_in(folder)
    except Exception as error:
        outcome.note("lost", f"{folder}: can't be read: {type(error).__name__}: {error}")
        return before
    for name in lost_between(before, after):
        outcome.note("lost", f"{folder}: {name}")
    return after


def check_left(reference: Path, folder: Path, shared: set[str], outcome: Outcome) -> None:
    """Note what the untouched run has not left."""
    extra = tree(folder) - tree(reference)
    extra -= {
        path for path in extra if re.fullmatch(r"results/a/predictions-\d+\.csv", path)
    }  # see compare_predictions
    if extra:
        outcome.note("left over", f"{folder}: {sorted(extra)[:5]}")
    if memory := shared_memory() - shared:
        outcome.note("left over", f"{folder}: shared memory {sorted(memory)[:5]}")


def torture(name: str, kills: int, seed: int, place: Path) -> Outcome:
    """Kill runs of one mode, until so many kills have reached one."""
    mode, outcome = MODES[name], Outcome()
    random = np.random.default_rng([seed, list(MODES).index(name)])
    label = re.sub(r"\W+", "-", name)
    reference = untouched(mode, new_folder(mode, place / f"{label}-untouched", place))
    number = 0
    while outcome.kills < kills and number < 3 * kills:
        number += 1
        folder = new_folder(mode, place / f"{label}-{number}", place)
        wanted = min(int(random.integers(1, CHAIN + 1)), kills - outcome.kills)
        one_run(mode, reference, folder, wanted, random, outcome)
    return outcome


# --- what they run on -------------------------------------------------------------------------------------------------


def new_folder(mode: Mode, folder: Path, place: Path) -> Path:
    """An empty folder, or with the run that is predicted by."""
    folder.mkdir()
    if not mode.resumes:
        shutil.copytree(place / "model" / "results", folder / "results")
    return folder


def make_material(place: Path, names: Sequence[str]) -> None:
    """Images to learn from and to predict, and for the latter a run."""
    from PIL import Image

    random = np.random.default_rng(0)
    for folder, count in (("images", 900), ("unknown", 3000)):
        for number in range(count):
            colour = np.eye(3)[number % 3] * 60 + 90
            pixels = (colour + random.normal(0, 50, (24, 28, 3))).clip(0, 255).astype(np.uint8)
            path = place / folder / f"class{number % 3}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    if any(not MODES[name].resumes for name in names):
        (place / "model").mkdir()
        untouched(Mode(BANK.replace("--name x", "--name a")), place / "model")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=66, help="over all modes, as many of each")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="NAME", help=", ".join(MODES))
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new folder for all that the runs leave")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    for library in LIBRARIES:
        importlib.import_module(library)
    outcomes: dict[str, Outcome] = {}
    with contextlib.ExitStack() as stack:
        place = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place.mkdir(parents=True, exist_ok=given.keep is None)
        place = place.resolve()
        make_material(place, given.modes)
        for name in given.modes:
            began = time.monotonic()
            outcomes[name] = torture(name, -(-given.kills // len(given.modes)), given.seed, place)
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(f"{'mode':<16}{'kills':>10}" + "".join(f"{kind:>10}" for kind in KINDS))
    for name, outcome in outcomes.items():
        print(f"{name:<16}{outcome.kills:>10}" + "".join(f"{outcome.wrong[kind]:>10}" for kind in KINDS))
    wrong = sum((outcome.wrong for outcome in outcomes.values()), Counter())
    total = sum(outcome.kills for outcome in outcomes.values())
    print(f"{'all':<16}{total:>10}" + "".join(f"{wrong[kind]:>10}" for kind in KINDS))
    return int(wrong.total() > 0)


if __name__ == "__main__":
    sys.exit(main())
