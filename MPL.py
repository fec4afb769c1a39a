"""From a folder of images with few labels to a tested classifier, by Meta Pseudo Labels: the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 the training broke off, 2 the input is wrong."""
    import args
    from utils import UserError, keep_pages

    try:
        options = args.parse(sys.argv[1:] if arguments is None else arguments)
        if options.run.keep_pages:
            keep_pages()
        # Heavy imports come after the command line is known to be right.
        import experiment
        from train import TrainingFault
    except UserError as error:
        return complain(error, 2)
    try:
        experiment.run(options)
    except UserError as error:
        return complain(error, 2)
    except TrainingFault as error:
        return complain(error, 1)
    except KeyboardInterrupt:
        print("MPL.py: stopped; the same command with --resume goes on", file=sys.stderr)
        return 130
    return 0


def complain(error: Exception, code: int) -> int:
    """One line on what is wrong, even where what the user typed has several; returns the exit code."""
    print("MPL.py:", " ".join(str(error).splitlines()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
