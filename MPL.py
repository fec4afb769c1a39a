"""From a folder of images with few labels to a tested classifier, by Meta Pseudo Labels: the command line."""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

# What does the work, by the option that asks for it; a run is trained when none does.
COMMANDS = {
    "test_mode": "experiment.test",
    "predict_dir": "predict.predict",
    "export": "predict.export",
    "inspect": "audit.inspect",
    "compare": "compare.compare",
    "optuna_mode": "optuna_search.search",
    "list_views": "views.list_views",
    "view_report": "view_report.report",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 0 done, 1 the training broke off, 2 the input is wrong, 130 Ctrl-C."""
    try:
        return _main(arguments)
    except KeyboardInterrupt as stop:
        print("MPL.py:", str(stop) or "stopped", file=sys.stderr)
        return 130


def _main(arguments: Sequence[str] | None) -> int:
    import args
    from utils import UserError, keep_pages

    try:
        options = args.parse(sys.argv[1:] if arguments is None else arguments)
        if options.run.keep_pages:
            keep_pages()
        # Heavy imports come after the command line is known to be right.
        from foundation import check_available
        from train import TrainingFault

        command = command_of(options)
        check_available(options)
    except UserError as error:
        return complain(error, 2)
    try:
        command(options)
    except UserError as error:
        return complain(error, 2)
    except TrainingFault as error:
        return complain(error, 1)
    except (MemoryError, RuntimeError, OSError) as error:
        advice = advice_for(error)
        if advice is None:
            raise
        print(f"MPL.py: {advice}", file=sys.stderr)
        return 1
    return 0


def command_of(options: Any) -> Callable[[Any], Any]:
    """The function that does what the options ask for."""
    if options.run.resume:  # what is to go on says itself what it is
        import loading

        options = loading.resumed_options(options)
    asked = (path for option, path in COMMANDS.items() if getattr(options.mode, option))
    one = "experiment.run" if (options.study.repeat or 1) == 1 else "compare.repeat"
    module, _, function = next(asked, one).partition(".")
    return getattr(importlib.import_module(module), function)


def complain(error: Exception, code: int) -> int:
    """One line on what is wrong, even where what the user typed has several; returns the exit code."""
    print("MPL.py:", " ".join(str(error).splitlines()), file=sys.stderr)
    return code


def advice_for(error: Exception) -> str | None:
    """What to do when the machine has no more room, in one line; None for any other fault."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error.filename or 'results'}); make room, then --resume goes on from the last state"
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        return "the memory is too small; lower --batch_size and --unlabeled_batch_size, or raise --grad_accumulation"
    return None


if __name__ == "__main__":
    sys.exit(main())
