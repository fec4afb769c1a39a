"""A step of Meta Co-Training against the sum of its irreducible passes, and a pass over 1.28 million images of features.

    python benchmarks/cotraining_speed.py                            # steps, two views, on the CPU
    python benchmarks/cotraining_speed.py --device cuda --rounds 100
    python benchmarks/cotraining_speed.py --stream DIR --steps 300   # 5.2 GB of made features under DIR, then removed
    python benchmarks/cotraining_speed.py --stream DIR --images 320_000   # another size, for the memory

Steps: 2 views of 1,024 features, 4,096 unlabeled and 4,096 labeled images a step. The passes of a view:
one weak forward without a graph, one forward and two backwards on the strong batch, one labeled forward, one labeled
forward with backward, two optimizer steps. The consistency term needs one more backward, which the second table counts. Step and passes are timed in turn, round by round; the ratio is that of the medians. Target: 1.15.

Stream: both views' features, float16, in the blocks of a feature bank, read in a new random order each pass; memory
must not grow with the number of images. On a GPU that has room for them the features live there.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from transfermpl.utils import keep_pages

keep_pages()

import numpy as np
import torch
import torch.nn.functional as F

from transfermpl import args
from transfermpl.algorithms.cotraining_steps import ViewBatches, meta_step
from transfermpl.features import bank as features
from transfermpl.features import blocks
from transfermpl.features.sources import ImageRequest
from transfermpl.learning.batches import Batch, Batches, BatchSampler
from transfermpl.learning.learner import Learner
from transfermpl.models import batch_norms_without_updates, build_head
from transfermpl.train import StepConfig

VIEWS, WIDTH, BATCH, CLASSES = 2, 1024, 4096, 10


def learners_on(device: torch.device, learning: args.Learning) -> list[Learner]:
    heads = [build_head(WIDTH, CLASSES, seed_key=(view,)).to(device).train() for view in range(VIEWS)]
    return [
        Learner(f"view_{view}", head, learning, classes=CLASSES, start=0, total=100_000)
        for view, head in enumerate(heads)
    ]


def batches_on(device: torch.device, batch: int) -> list[Batch]:
    labels = torch.arange(batch, device=device) % CLASSES
    made = [torch.randn(3, batch, WIDTH, device=device) for _ in range(VIEWS)]
    return [Batch(labeled, labels, weak, strong) for labeled, weak, strong in made]


class Passes:
    """The irreducible passes of one view, each to be timed alone."""

    def __init__(self, learner: Learner, batch: Batch, *, consistency: bool) -> None:
        self.learner, self.batch, self.consistency = learner, batch, consistency
        self.loss = torch.zeros(())

    def named(self) -> dict[str, Callable[[], object]]:
        network, batch = self.learner.network, self.batch
        assert batch.strong is not None
        backwards = 3 if self.consistency else 2
        passes: dict[str, Callable[[], object]] = {"unlabeled forward": partial(self.forward, batch.strong)}
        for number in range(backwards):
            last = number + 1 == backwards
            passes[f"unlabeled backward {number + 1}"] = partial(self.backward, keep=not last)
        passes["labeled forward"] = partial(self.look, batch.labeled)
        passes["optimizer step 1"] = self.update
        passes["labeled forward with backward"] = partial(self.learn, network, batch.labeled)
        passes["optimizer step 2"] = self.update
        passes["weak forward"] = partial(self.look, batch.weak)
        return passes

    def forward(self, features: torch.Tensor) -> None:
        self.loss = F.cross_entropy(self.learner.network(features), self.batch.labels)

    def backward(self, *, keep: bool) -> None:
        """Into empty gradients, as each of the step's is; the last ones stay for the optimizer."""
        for parameter in self.learner.parameters:
            parameter.grad = None
        self.loss.backward(retain_graph=keep)

    def look(self, features: torch.Tensor) -> None:
        with torch.no_grad(), batch_norms_without_updates(self.learner.network):
            F.cross_entropy(self.learner.network(features), self.batch.labels)

    def learn(self, network: torch.nn.Module, features: torch.Tensor) -> None:
        F.cross_entropy(network(features), self.batch.labels).backward()

    def update(self) -> None:
        self.learner.optimizer.step()
        self.learner.optimizer.zero_grad(set_to_none=True)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds; on a CPU those of this process, all threads together, so that others on the machine matter little."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - began


def measure(device: torch.device, rounds: int, batch: int, *, consistency: bool) -> None:
    """Time the step and its passes, and print both."""
    learning = args.Learning() if consistency else args.Learning(lambda_u=0.0)
    config = StepConfig(learning)
    learners, views = learners_on(device, learning), batches_on(device, batch)
    alone = learners_on(device, learning)
    passes = [Passes(*row, consistency=consistency).named() for row in zip(alone, views, strict=True)]
    steps: list[float] = []
    sums: dict[str, list[float]] = {name: [] for name in passes[0]}
    for number in range(rounds + 2):
        step = timed(partial(meta_step, learners, views, 1000 + number, config), device)
        taken = {name: sum(timed(own[name], device) for own in passes) for name in passes[0]}
        if number >= 2:
            steps.append(step)
            for name, seconds in taken.items():
                sums[name].append(seconds)
    total, whole = sum(map(statistics.median, sums.values())), statistics.median(steps)
    with_ = "with the consistency term" if consistency else "--lambda_u 0"
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    print(f"\n{VIEWS} views, batch {batch}, {with_}, {device}{threads}, n = {rounds}, load {os.getloadavg()[0]:.1f}")
    for name, seconds in sums.items():
        print(f"  {name:<32} {1000 * statistics.median(seconds):9.2f} ms")
    print(f"  {'sum of the passes':<32} {1000 * total:9.2f} ms")
    ratio = f"ratio {whole / total:.3f}, {1 / whole:.2f} steps/s"
    print(f"  {'meta_step':<32} {1000 * whole:9.2f} ms   {ratio}")


# --- a pass over many images ------------------------------------------------------------------------------------------


class MadeBank:
    """What `features.Table` needs of a feature bank: made features in its blocks, `weak` and `strong` the same ones."""

    def __init__(self, folder: Path, images: int, device: torch.device) -> None:
        self.folder, self.device, self.width, self.dtype = folder, device, WIDTH, np.dtype("float16")
        self.hashes = np.arange(images, dtype=np.uint64)
        self._make(folder / "weak-000")
        self.table = features.Table(self, ("weak", 0))  # type: ignore[arg-type]

    def _make(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        made = np.random.default_rng(0).standard_normal((2 * blocks.BLOCK_ROWS, WIDTH)).astype(self.dtype)
        for number, start in enumerate(range(0, len(self.hashes), blocks.BLOCK_ROWS)):
            hashes, shift = self.hashes[start : start + blocks.BLOCK_ROWS], number % blocks.BLOCK_ROWS
            block = made[shift : shift + len(hashes)]
            digest = hashlib.blake2b(hashes.tobytes(), digest_size=32)
            digest.update(block.data)
            header = blocks.HEADER.pack(blocks.MAGIC, len(hashes), WIDTH, digest.digest())
            (folder / f"{number:06d}.block").write_bytes(header + hashes.tobytes() + block.tobytes())

    def stream(self, requests: Callable[[int], Sequence[ImageRequest]], start: int) -> Iterator[list[torch.Tensor]]:
        """See `batches.Source`."""
        for step in itertools.count(start):
            labeled, unlabeled, _ = requests(step)
            rows = self.table.rows(unlabeled.rows)
            yield [self.table.rows(labeled.rows), rows, rows]


def stream(folder: Path, device: torch.device, images: int, steps: int) -> None:
    """Write the blocks, read them as a run does, and say how long it takes and how much memory; remove them."""
    folder = folder / "made"
    try:
        if device.type == "cpu":
            features.IN_MEMORY_SHARE = 0.0  # from disk, whatever memory this machine has
        banks = [MadeBank(folder / f"view_{view}", images, device) for view in range(VIEWS)]
        opened = memory()
        labels = np.arange(images) % CLASSES
        sampler = BatchSampler(np.arange(BATCH), np.arange(images), BATCH, BATCH, seed=0, draws=1)
        views = ViewBatches([Batches(sampler, bank, labels, device) for bank in banks])  # type: ignore[arg-type]
        for step in range(3):  # on a GPU: the features come to the device
            views(step)
        begun = memory()  # the batches of a step and of the one before are there, whatever the number of images
        began = time.perf_counter()
        for step in range(3, steps + 3):
            views(step)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - began) / steps
        read = memory()
    finally:
        shutil.rmtree(folder)
    whole = seconds * sampler.steps_per_epoch
    print(f"\n{images:,} images x {VIEWS} views, {VIEWS * images * WIDTH * 2 / 1e9:.1f} GB, {device}")
    print(f"  {1000 * seconds:.1f} ms to read a step of {BATCH} + {BATCH} images ({steps} steps): {whole:.1f} s a pass")
    print(
        f"  resident memory, peak: {opened:.0f} MB when opened, {begun:.0f} MB after 3 steps, {read:.0f} MB at the end, "
        f"load {os.getloadavg()[0]:.1f}"
    )


def memory() -> float:
    """MB of this process at their highest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--stream", type=Path, metavar="DIR")
    parser.add_argument("--images", type=int, default=1_280_000)
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    device = torch.device(given.device)
    if given.stream is not None:
        stream(given.stream, device, given.images, given.steps)
        return
    for consistency in (False, True):
        measure(device, given.rounds, given.batch, consistency=consistency)


if __name__ == "__main__":
    main()
