"""The package as a library: `train(...)` is one run of the command line, without its screen."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import args
from ..args import Mode, Study
from ..runs.run_folder import RESULTS, check_overwrite
from ..utils import UserError, as_command, keep_pages, on_screen

if TYPE_CHECKING:
    from .classifier import Classifier


@dataclass(frozen=True)
class Run:
    """A finished run. `summary` is what its summary.json holds, `folder` is where all lies that it left."""

    folder: Path
    summary: dict[str, Any]

    @cached_property
    def classifier(self) -> Classifier:
        """The tested models, ready for new images; loaded when it is first asked for. Raises UserError for points."""
        from .classifier import load_classifier

        return load_classifier(self.folder)


def train(data_dir: str | Path | None = None, *, name: str, verbose: bool = False, **options: Any) -> Run:
    """Train on a folder of images, test, and leave all in `results/<name>/` (or `<name>-2`, ... where that is taken).

    Args:
        data_dir: a folder of images in one of the layouts, or the name of a built-in set; without one, the digits of
            scikit-learn, or the data of the run that `load_path` or `resume` names
        name: of the run
        verbose: show on the screen what the command line would show; otherwise nothing is printed, warnings go to the
            logger `transfermpl`, and `run.log` in the run's folder has both
        options: every option of a training, by its name on the command line: `num_labels=50`, `finetune_mode=True`,
            `views=["dinov2", "clip"]`

    Raises:
        UserError: an option or the data is wrong; the message says what to do
        TrainingFault: the training broke off; `resume=True` goes on after its last checkpoint
    """
    if options.get("config") is not None:
        raise UserError("--config is of the command line; read the file, and give its values as options")
    given = {} if data_dir is None else {"data_dir": data_dir}
    values = {**given, "name": name, **options}  # paths may be given as such
    settings = args.make({key: str(value) if isinstance(value, Path) else value for key, value in values.items()})
    if settings.run.resume:
        from ..runs.resume import resumed_options

        stored = resumed_options(settings)  # says what it is that goes on
        _check_is_run(stored.mode, stored.study)
    _check_is_run(settings.mode, settings.study)
    with on_screen() if verbose else contextlib.nullcontext(), as_command(settings.command_line()):
        if settings.run.keep_pages:
            keep_pages()
        from ..runs.prepare import check_available
        from ..runs.run import run

        check_overwrite(settings.flat())
        check_available(settings.run, settings.model, settings.mode, settings.cotraining)
        summary = run(settings)
    return Run((RESULTS / summary["name"]).absolute(), summary)


def _check_is_run(mode: Mode, study: Study) -> None:
    """Raises UserError for what is another command than the training of one run."""
    command = next((command for command in args.COMMANDS if getattr(mode, command)), None)
    if command is None and (study.repeat or 1) > 1:
        command = "repeat"
    if command is not None:
        raise UserError(f"--{command} is a command of its own, and train() is one run; use the command line for it")
