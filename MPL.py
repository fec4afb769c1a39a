"""From a folder of images with few labels to a tested classifier, by Meta Pseudo Labels: the command line."""

from __future__ import annotations

import atexit
import errno
import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def _register_package() -> None:
    """Make this folder the package `transfermpl`, so that `python MPL.py` works where nothing is installed.

    Spawned workers run this file first, and so find the package too.
    """
    folder = Path(__file__).resolve().parent
    spec = importlib.util.spec_from_file_location(
        "transfermpl", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["transfermpl"] = package
    spec.loader.exec_module(package)
    # Python puts a script's folder first: a library that imports a `utils` of its own would get ours.
    if sys.path and Path(sys.path[0] or ".").resolve() == folder:
        del sys.path[0]


if __name__ in ("__main__", "__mp_main__"):
    _register_package()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code.

    0 done, 1 it broke off, 2 the input is wrong, 3 files could not be read (--strict), 130 Ctrl-C, 143 SIGTERM.
    """
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)  # at its end Python looks through all modules for garbage, two seconds with torch's
    os.environ["MPLBACKEND"] = "agg"  # pictures go into files, whatever a notebook that starts us has set
    try:
        from transfermpl.utils import as_command, on_screen, terminable

        words = sys.argv[1:] if arguments is None else arguments
        with on_screen(), as_command(words), terminable():
            return _main(words)
    except KeyboardInterrupt as stop:
        from transfermpl.utils import Terminated, complain, on_screen

        with on_screen():
            complain(str(stop) or "stopped")
        return 143 if isinstance(stop, Terminated) else 130


def _main(words: Sequence[str]) -> int:
    from transfermpl import args
    from transfermpl.utils import OneLineError, UserError, complain, hide_in_tracebacks, keep_pages

    options: Any = None
    try:
        options = args.parse(words)
        if options.mode.list_runs:  # at once, as --help
            _list_runs(options)
            return 0
        if options.run.keep_pages:
            keep_pages()
        # Heavy imports come after the command line is known to be right.
        from transfermpl.runs.prepare import check_available
        from transfermpl.runs.run_folder import check_overwrite

        check_overwrite(options.flat())
        command = command_of(options)
        check_available(options.run, options.model, options.mode, options.cotraining)
        return command(options) or 0
    except UserError as error:
        complain(one_line(error))
        return 2
    except OneLineError as error:  # a fault of the training
        complain(one_line(error))
        return 1
    except Exception as error:
        if options is not None and options.run.debug:
            hide_in_tracebacks()
            raise
        complain(advice_for(error) or unexpected(error))
        return 1


def command_of(options: Any) -> Callable[[Any], int | None]:
    """The function that does what the options ask for; a run is trained when they ask for nothing else."""
    if options.run.resume:  # the stored options say which command it is
        from transfermpl.runs.resume import resumed_options
        from transfermpl.utils import UserError

        options = resumed_options(options)
        if options.mode.inspect or options.mode.view_report:
            raise UserError(f"{options.run.name} is a report, which is made in one go; leave out --resume")
    asked = (command for name, command in COMMANDS.items() if getattr(options.mode, name))
    return next(asked, _train if (options.study.repeat or 1) == 1 else _repeat)


# The commands: each loads only what it needs, and gets of the options what it reads.


def _train(options: Any) -> None:
    from transfermpl.runs.next_command import after_training
    from transfermpl.runs.run import run

    after_training(run(options))


def _repeat(options: Any) -> None:
    from transfermpl.comparison.repeat import repeat
    from transfermpl.comparison.task import task_of
    from transfermpl.runs.next_command import after_training

    after_training(repeat(task_of(options)))


def _compare(options: Any) -> None:
    from transfermpl.comparison.compare import compare
    from transfermpl.comparison.task import task_of

    compare(task_of(options))


def _report_views(options: Any) -> None:
    from transfermpl.comparison.task import task_of
    from transfermpl.comparison.view_report import report

    options.warn_of_unused("view_report")
    report(task_of(options))


def _inspect(options: Any) -> None:
    from transfermpl.args import read_by
    from transfermpl.inspection.inspection import inspect
    from transfermpl.runs.next_command import after_inspection

    options.warn_of_unused("inspect", also_defaults=False)
    left = {name: None for name in options.flat() if name == "name" or name not in read_by("train")}
    found = inspect(options)
    after_inspection(found["name"], options.changed(**left).command_line())


def _search(options: Any) -> None:
    from transfermpl.optuna_search import search

    search(options)


def _test(options: Any) -> None:
    from transfermpl.args import read_by
    from transfermpl.deploy.test_run import test

    options.warn_of_unused("test", but="it takes the options of the run that it tests")
    test(options.mode, options.given_values(read_by("test")))


def _predict(options: Any) -> int:
    from transfermpl.args import read_by
    from transfermpl.deploy.predict import predict
    from transfermpl.runs.next_command import after_prediction

    options.warn_of_unused("predict")
    settings = options.given_values(read_by("predict", group="run"))
    found = predict(options.mode, options.use, settings, overwrite=options.run.overwrite)
    if found["out"] and not found["unsure_out"] and not found["thresholds"]:
        after_prediction(options.mode.predict_dir, options.mode.load_path)
    return 3 if options.use.strict and found["bad"] else 0


def _explain(options: Any) -> None:
    from transfermpl.args import read_by
    from transfermpl.deploy.explain import explain

    options.warn_of_unused("explain")
    explain(options.mode, options.given_values(read_by("explain", group="run")))


def _export(options: Any) -> None:
    from transfermpl.args import read_by
    from transfermpl.deploy.export import export

    options.warn_of_unused("export")
    settings = options.given_values(read_by("export", group="run"))
    check_with = options.data.data_dir if "data_dir" in options.given else None
    export(options.mode, options.use, settings, check_with=check_with, overwrite=options.run.overwrite)


def _list_views(options: Any) -> None:
    from transfermpl.backbones.registry import list_views

    list_views()


def _list_runs(options: Any) -> None:
    from transfermpl.runs.list_runs import list_runs

    list_runs()


# By the option that asks for it.
COMMANDS: dict[str, Callable[[Any], int | None]] = {
    "test_mode": _test,
    "predict_dir": _predict,
    "explain": _explain,
    "export": _export,
    "inspect": _inspect,
    "compare": _compare,
    "optuna_mode": _search,
    "list_views": _list_views,
    "list_runs": _list_runs,
    "view_report": _report_views,
}


def one_line(error: Exception) -> str:
    """What is wrong in one line, even where what the user typed has several."""
    return " ".join(str(error).splitlines())


def unexpected(error: Exception) -> str:
    """A fault of the program, in one line."""
    from transfermpl.utils import traceback_in

    log = traceback_in()
    where = "--debug shows where" if log is None else f"{log} says where"
    return f"an unexpected error, please report it: {type(error).__name__}: {one_line(error)[:200]}; {where}"


def advice_for(error: Exception) -> str | None:
    """What to do when the machine has no more room or a file can't be used, in one line; None for any other fault."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error.filename or 'results'}); make room, then --resume goes on from the last state"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; mend that and start again, a training with --resume"
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        return "the memory is too small; lower --batch_size and --unlabeled_batch_size, or raise --grad_accumulation"
    return None


if __name__ == "__main__":
    sys.exit(main())
