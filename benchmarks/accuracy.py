"""The evidence: every method and every cheap rival, on clean and dirty sets, several backbones and label budgets.

    python benchmarks/accuracy.py --folder evidence                          # all of it: about a night on 2 cores
    python benchmarks/accuracy.py --folder evidence --only flowers5-60 hymenoptera --backbones squeezenet1_1
    python benchmarks/accuracy.py --folder evidence --table --into docs/results.md --plot docs/accuracy.png

A cell is a data set with a label budget and a backbone. All methods of a cell see the same splits, one a seed, and have the
default options; the test images are used once a run. What is finished stands in `FOLDER/<cell>/journal.json` and is not done
again, so a killed run goes on by the same command, and two processes share the work by `--only`. `--table` trains nothing:
it prints what is there, and with `--into` puts it between two marks of a Markdown file.

Dirty sets are made of the photographs: `foreign` has 30% images of none of its classes among the unlabeled, `unequal` has classes of
500, 300, 175, 100 and 50 images, in `mislabeled` a tenth of the labels is wrong. "Best cheap rival" is the best of
scikit-learn's rows of that cell, chosen on the test images themselves, which flatters it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from transfermpl.utils import keep_pages

keep_pages()

import matplotlib as mpl
import numpy as np

from transfermpl import args
from transfermpl.base.files import read_json
from transfermpl.base.metrics import paired_difference
from transfermpl.comparison.baselines import BASELINES, baselines_of
from transfermpl.comparison.compare import JOURNAL, measure
from transfermpl.comparison.methods import BASE, METHODS, Method
from transfermpl.comparison.task import Task, prepared
from transfermpl.comparison.verdict import finals
from transfermpl.data import find_dataset, split_dataset
from transfermpl.utils import generator

PRIOR = "labels only, head prior"  # that is with what the unlabeled images tell before training
_LABELS, *_REST = (method for method in METHODS if method.start is None)
OURS = (_LABELS, Method(PRIOR, "", {"mpl_weight": 0.0, "lambda_u": 0.0}), *_REST)
DEFAULT = "MPL"
BACKBONES = ("squeezenet1_1", "mobilenet_v2", "lite0")
MARKS = ("<!-- accuracy.py: from here -->", "<!-- accuracy.py: to here -->")
WRONG = 0.1  # of the labels of `mislabeled`
SIZES = (500, 300, 175, 100, 50)  # of the classes of `unequal`
KNOWN, FOREIGN = 225, 385  # images a class, and of other things, of `foreign`: 30% of the unlabeled ones


@dataclass(frozen=True)
class Cell:
    """A data set, how many of its labels are used, and a backbone (none: the network of a built-in set)."""

    data: str
    budget: str
    backbone: str = ""
    seeds: int = 5

    @property
    def name(self) -> str:
        return "-".join(part for part in (self.data, self.budget.rstrip("%") + "p" * ("%" in self.budget)) if part)

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.backbone}" if self.backbone else self.name


def cells() -> Iterator[Cell]:
    """All of the table, in its order."""
    yield Cell("moons", "6", seeds=10)
    yield from (Cell("digits", budget) for budget in ("1%", "3%", "10%"))
    for backbone in BACKBONES:
        yield from (Cell("flowers5", budget, backbone) for budget in ("5", "1%", "3%", "10%"))
        yield from (Cell("hymenoptera", budget, backbone, seeds=20) for budget in ("2", "3%", "10%"))
        yield from (Cell(dirty, "60", backbone) for dirty in ("unequal", "foreign", "mislabeled"))


# --- the data ---------------------------------------------------------------------------------------------------------


class Mislabeled(Task):
    """A task of which a tenth of the labels are wrong, each seed others; what is tested is right."""

    def of_seed(self, seed: int) -> Task:
        task = super().of_seed(seed)
        labels, random = task.dataset.labels.copy(), generator(seed, "wrong labels")
        rows = random.permutation(task.split.labeled)[: round(WRONG * len(task.split.labeled))]
        labels[rows] = (labels[rows] + random.integers(1, len(task.dataset.classes), len(rows))) % len(
            task.dataset.classes
        )
        return replace(task, dataset=replace(task.dataset, labels=labels))


def folder_of(data: str, photographs: Path, made: Path) -> str:
    """The folder of a set's images, made of links where the set is a dirty one."""
    flowers = sorted(p for p in (photographs / "flowers5").iterdir() if p.is_dir())
    if data == "unequal":
        for kind, count in zip(flowers, SIZES, strict=True):
            link(sorted(kind.iterdir())[:count], made / data / kind.name)
    elif data == "foreign":
        for kind in flowers:
            link(sorted(kind.iterdir())[:KNOWN], made / data / kind.name)
        link(sorted((photographs / "hymenoptera").glob("**/*.jpg"))[:FOREIGN], made / data / "unlabeled")
    elif data == "mislabeled":
        return str(photographs / "flowers5")
    else:
        return data if data in ("digits", "moons") else str(photographs / data)
    return str(made / data)


def link(files: Sequence[Path], folder: Path) -> None:
    """Links to the files, named by their folders too."""
    folder.mkdir(parents=True)
    for file in files:
        (folder / f"{file.parent.name}-{file.name}").symlink_to(file.resolve())


def task_of(cell: Cell, given: argparse.Namespace, made: Path) -> Task:
    """The cell's task, of the first seed."""
    data = folder_of(cell.data, given.photographs, made)
    line = ["--name", "accuracy", "--data_dir", data, "--cache_dir", str(given.folder / "cache"), *given.arguments]
    line += ["--num_labels_percent" if "%" in cell.budget else "--num_labels", cell.budget]
    if cell.backbone:
        weights = given.weights / f"{cell.backbone}.safetensors"
        line += ["--model_name", cell.backbone, *(["--weights", str(weights)] if weights.exists() else [])]
    options = args.parse(line)
    dataset = find_dataset(options.data)
    split = split_dataset(dataset, options.data, options.run.seed)
    return (Mislabeled if cell.data == "mislabeled" else Task)(options, dataset, split)


def train(cell: Cell, given: argparse.Namespace) -> None:
    """Measure what the cell's journal does not have yet."""
    with tempfile.TemporaryDirectory() as made:
        task = task_of(cell, given, Path(made))
        steps, folder = prepared(task).total_steps, given.folder / cell.folder
        folder.mkdir(parents=True, exist_ok=True)
        names = [*(method.name for method in OURS), *baselines_of(task)]
        measure(task, given.seeds or range(cell.seeds), folder, steps=steps, methods=OURS, names=names)


# --- the table --------------------------------------------------------------------------------------------------------

Accuracies = Mapping[str, list[float]]  # of each method, what one would use of it, over the seeds


def read(cell: Cell, given: argparse.Namespace) -> tuple[list[int], Accuracies] | None:
    """The seeds that every method has finished, and its accuracies there; None where there are not two."""
    path = given.folder / cell.folder / "journal.json"
    if not path.exists():
        return None
    done = read_json(path, JOURNAL, advice="it is not of this benchmark")
    seeds = [int(seed) for seed in done[BASE] if all(seed in of for of in done.values())]
    results = {method: {seed: of[str(seed)]["test"] for seed in seeds} for method, of in done.items()}
    if PRIOR in results:  # the teacher, which learns the labels alone; its student learns more
        results[PRIOR] = {seed: {"teacher": found["teacher"]} for seed, found in results[PRIOR].items()}
    return (seeds, finals(results)) if len(seeds) > 1 else None


def rival(found: Accuracies) -> str:
    """The best of scikit-learn's rows."""
    return max((name for name in found if name in BASELINES), key=lambda name: float(np.mean(found[name])))


def difference(found: Accuracies, one: str, other: str) -> str:
    mean, (low, high) = paired_difference(found[one], found[other])
    return f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def table(rows: Sequence[tuple[Cell, list[int], Accuracies]]) -> str:
    """A Markdown table of all cells."""
    ours = [method.name for method in OURS]
    steps = ((PRIOR, BASE), ("UDA", PRIOR), (DEFAULT, "UDA"), (DEFAULT, BASE))  # the first three come to the fourth
    head = ["data, labels, backbone", "seeds", *ours, "best cheap rival"]
    head += [*(f"{one} over {other}" for one, other in steps), f"{DEFAULT} over the rival"]
    lines = [head, ["---"] * len(head)]
    for cell, seeds, found in rows:
        best = rival(found)
        line = [", ".join(part for part in (cell.data, cell.budget, cell.backbone) if part), str(len(seeds))]
        line += [f"{100 * np.mean(found[name]):.1f}" for name in ours]
        line += [f"{100 * np.mean(found[best]):.1f} {best}"]
        lines.append(line + [difference(found, *pair) for pair in (*steps, (DEFAULT, best))])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def insert(path: Path, text: str) -> None:
    """Put the text between the two marks of a file. Raises ValueError where they are not there."""
    before, _, rest = path.read_text().partition(MARKS[0])
    _, found, after = rest.partition(MARKS[1])
    if not found:
        raise ValueError(f"{path} lacks the lines {MARKS[0]} and {MARKS[1]}")
    path.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}")


def draw(path: Path, rows: Sequence[tuple[Cell, list[int], Accuracies]]) -> None:
    """Accuracy against the number of labels, with 95% intervals of the means, a panel a clean set and backbone."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels: dict[str, list[tuple[Cell, Accuracies]]] = {}
    for cell, _, found in rows:
        if cell.data in ("digits", "flowers5", "hymenoptera"):
            panels.setdefault(f"{cell.data} {cell.backbone}".strip(), []).append((cell, found))
    figure, axes = plt.subplots(
        -(-len(panels) // 3), 3, figsize=(11, 3.2 * -(-len(panels) // 3)), squeeze=False, layout="constrained"
    )
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    for ax, (title, points) in zip(axes.flat, panels.items(), strict=False):
        for number, name in enumerate((BASE, "best cheap rival", "UDA", DEFAULT)):
            every = [100 * np.array(found[rival(found) if name == "best cheap rival" else name]) for _, found in points]
            means = np.array([accuracies.mean() for accuracies in every])
            ends = [paired_difference(accuracies, 0 * accuracies)[1] for accuracies in every]
            places = np.arange(len(points)) + 0.08 * (number - 1.5)
            ax.errorbar(
                places, means, np.abs(np.array(ends).T - means), label=name, marker="o", markersize=4, capsize=2
            )
        ax.set_xticks(range(len(points)), [cell.budget for cell, _ in points])
        ax.set(title=title, xlabel="labels", ylabel="test accuracy, %")
        ax.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the journals and the feature banks")
    parser.add_argument("--photographs", type=Path, default=Path("../shared/data"))
    parser.add_argument("--weights", type=Path, default=Path("../shared/weights"))
    parser.add_argument("--only", nargs="+", default=[""], help="cells whose names begin so, like flowers5-1p")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=BACKBONES)
    parser.add_argument("--seeds", type=int, nargs="+", help="by default 5, 10 or 20 a cell, from 0")
    parser.add_argument("--table", action="store_true", help="print what is there, train nothing")
    parser.add_argument("--into", type=Path, help="put the table into this file")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("arguments", nargs="*", help="after --: options of MPL.py")
    given = parser.parse_args()
    backbones = ("", *given.backbones)
    chosen = [c for c in cells() if c.backbone in backbones and c.name.startswith(tuple(given.only))]
    for cell in chosen if not given.table else []:
        train(cell, given)
    rows = [(cell, *found) for cell in chosen if (found := read(cell, given)) is not None]
    print(table(rows))
    if given.into is not None:
        insert(given.into, table(rows))
    if given.plot is not None:
        draw(given.plot, rows)


if __name__ == "__main__":
    main()
