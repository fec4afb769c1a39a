"""The measurements of a training as it goes: metrics.csv, TensorBoard, and the few that stand beside the bar."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..base.files import write_text
from ..base.progress import ProgressBar
from ..base.tables import csv_text
from ..base.written_files import note
from ..utils import UserError

# Which measurements stand beside the progress bar, and under which names: as many as leave room for it in 80 columns.
BESIDE_BAR = {"supervised_loss": "loss", "student_loss": "student", "mask_rate": "mask"}


def shown_by(bar: ProgressBar) -> Callable[[int, Mapping[str, float]], None]:
    """What shows a number of steps and the epoch's means so far beside this bar (`train.Hooks.show`)."""

    def show(step: int, means: Mapping[str, float]) -> None:
        shown = []
        for name, short in BESIDE_BAR.items():  # of several views their mean
            each = [value for key, value in means.items() if key == name or key.startswith(f"{name}_")]
            shown += [f"{short} {np.mean(each):.2g}"] if each else []
        bar.show(step, " ".join(shown))

    return show


class MetricsLog:
    """metrics.csv: a row an epoch, nothing that depends on the clock."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, list(columns)

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the file with these rows, which a run that is resumed has already."""
        note(self.path, grows=True)
        write_text(self.path, csv_text([self.columns, *map(self._cells, rows)]))

    def add(self, row: Mapping[str, Any]) -> None:
        """Append an epoch's row; after a kill the file is written again from the checkpoint."""
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(csv_text([self._cells(row)]))

    def _cells(self, row: Mapping[str, Any]) -> list[object]:
        cells = [row.get(name, "") for name in self.columns]
        return [f"{cell:.6g}" if isinstance(cell, float) else cell for cell in cells]


class TensorBoardLog:
    """The same curves and pictures for TensorBoard; without `--tensorboard` nothing of it is imported."""

    def __init__(self, folder: Path, wanted: bool) -> None:
        self.writer = _summary_writer(folder / "tensorboard") if wanted else None

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """An epoch's row, at its step."""
        if self.writer is None:
            return
        for name, value in row.items():
            if name not in ("epoch", "step") and isinstance(value, (int, float)):
                self.writer.add_scalar(name, value, row["step"])

    def picture(self, name: str, path: Path, step: int) -> None:
        """A picture that was drawn into a file, under a name of its own."""
        if self.writer is None:
            return
        from PIL import Image

        with Image.open(path) as image:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is still held back."""
        if self.writer is not None:
            self.writer.close()


def require_tensorboard() -> None:
    """Raises UserError when `--tensorboard` is asked for and the package is missing."""
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError("--tensorboard needs a package that is missing: pip install tensorboard") from error


def _summary_writer(folder: Path) -> Any:
    require_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    for file in folder.iterdir():
        note(file, grows=True)
    return writer
