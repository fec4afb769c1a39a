"""What a run tells while it goes (screen, metrics.csv, TensorBoard) and the tables that it ends with."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..base.files import write_text
from ..utils import UserError, bars_wanted, say

PLAIN_LINE_SECONDS = 10.0  # between two lines where the output is no terminal


class ProgressBar:
    """A progress bar with losses, accuracy where known and time left; plain lines where the output is no terminal."""

    def __init__(self, total: int, start: int = 0, *, what: str = "training", unit: str = "step") -> None:
        from tqdm import tqdm

        self.total, self.what, self.unit = total, what, unit
        self.began, self.start, self.told = time.monotonic(), start, time.monotonic()
        self.bar = tqdm(total=total, initial=start, desc=what, unit=unit) if bars_wanted() else None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, done: int, means: Mapping[str, float] | None = None) -> None:
        """`done` of the total; `means` are the epoch's measurements so far."""
        text = " ".join(f"{_SHORT[name]} {value:.3g}" for name, value in (means or {}).items() if name in _SHORT)
        now = time.monotonic()
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(done - self.bar.n)
        elif now - self.told > PLAIN_LINE_SECONDS or (done >= self.total > self.start):
            self.told = now
            rate = (done - self.start) / max(now - self.began, 1e-9)
            left = (self.total - done) / max(rate, 1e-9)
            say(f"{self.what}: {self.unit} {done}/{self.total}  {rate:.0f}/s  {left:.0f} s left  {text}".rstrip())


_SHORT = {"supervised_loss": "loss", "uda_loss": "uda", "student_loss": "student", "mask_rate": "mask"}
_SHORT |= {"pseudo_label_accuracy": "pseudo-label accuracy"}


class MetricsLog:
    """metrics.csv: a row an epoch, nothing that hangs on the clock. `rows` are those of a run that goes on."""

    def __init__(self, path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        self.path, self.columns = path, list(columns)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(self.columns)
        text.writelines(self._line(row) for row in rows)
        write_text(path, text.getvalue())

    def add(self, row: Mapping[str, Any]) -> None:
        """Append an epoch's row; after a kill the file is written anew from the checkpoint."""
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(self._line(row))

    def _line(self, row: Mapping[str, Any]) -> str:
        cells = [row.get(name, "") for name in self.columns]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow([f"{c:.6g}" if isinstance(c, float) else c for c in cells])
        return text.getvalue()


class Board:
    """The same curves and pictures for TensorBoard; without `--tensorboard` nothing of it is imported."""

    def __init__(self, folder: Path, wanted: bool) -> None:
        self.writer = _summary_writer(folder / "tensorboard") if wanted else None

    def __enter__(self) -> Board:
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

    return SummaryWriter(str(folder))


def results_table(summary: Mapping[str, Any]) -> str:
    """The screen's one table of results: each model on the test images, and on validation where there is some."""
    wide = max(10, *map(len, ("", *summary["test"], *summary.get("val", {}))))
    head = f"{'model':<{wide}} {'test accuracy':>13}  {'95% interval':>16}  {'macro F1':>8}"
    has_val = bool(summary.get("val"))
    lines = ["", head + ("  val accuracy" if has_val else "")]
    if not summary["test"]:
        lines = [
            f"{name:<{wide}} {100 * r['accuracy']:.2f}% on validation" for name, r in summary.get("val", {}).items()
        ]
    for name, result in summary["test"].items():
        low, high = result["ci95"]
        interval = f"{100 * low:5.1f}% to {100 * high:5.1f}%"
        line = f"{name:<{wide}} {100 * result['accuracy']:>12.2f}%  {interval:>16}  {result['macro_f1']:>8.4f}"
        lines.append(line + (f"  {100 * summary['val'][name]['accuracy']:>11.2f}%" if has_val else ""))
    tested = summary["dataset"]["images"]["test"]
    how = f"tested on {tested} images" if tested else "no image was kept for a test: the accuracy is unknown"
    lines.append(f"learned from {summary['labels_used']} labels; {how}")
    return "\n".join(lines)
