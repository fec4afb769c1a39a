"""One MPL step of a whole network against the sum of its irreducible passes, timed alone in the same run.

    python benchmarks/step_time.py                 # CPU: wrn28_2 at 32 px and resnet18 at 224 px
    python benchmarks/step_time.py --device cuda   # bf16 and torch.compile

The passes: teacher, labeled and strong in one forward with backward, weak without; student, unlabeled forward with
backward, two labeled losses without; two optimizer steps. Step and passes are timed in turn, round by round; the ratio
is that of the medians. Target: at most 1.10 on a CPU, 1.05 on a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

from transfermpl.utils import keep_pages

keep_pages()

import torch
import torch.nn.functional as F

from transfermpl import args
from transfermpl.backbones.library import build_backbone
from transfermpl.learning.batches import Batch
from transfermpl.learning.learner import Learner
from transfermpl.models import Network, batch_norms_without_updates, build_head
from transfermpl.train import StepConfig, mpl_step

CASES = {"wrn28_2": (32, 64, 64), "resnet18": (224, 8, 8)}  # pixels, labeled, unlabeled images a step on the CPU
CLASSES = 10


def learner(model: str, side: int, device: torch.device, compiled: bool, seed: int) -> Learner:
    options = args.Model(model_name=model, weights="none", image_size=side)
    backbone = build_backbone(options, native_size=side, points=False, seed=seed, default_name=model)
    head = build_head(backbone.num_features, CLASSES, seed_key=(seed,))
    network = Network(backbone, head).to(device).to(memory_format=torch.channels_last).train()
    if compiled:
        network.compile()
    return Learner(str(seed), network, args.Learning(), classes=CLASSES, start=0, total=10_000)


def irreducible(
    teacher: Learner, student: Learner, batch: Batch, config: StepConfig
) -> dict[str, Callable[[], object]]:
    """Each pass alone; backward passes leave gradients for the optimizer steps."""
    both, unlabeled = torch.cat([batch.labeled, batch.strong]), batch.strong
    labels = torch.zeros(len(both), dtype=torch.long, device=both.device)

    def learn(network: torch.nn.Module, images: torch.Tensor) -> None:
        F.cross_entropy(config.logits(network, images), labels[: len(images)]).backward()

    def look(network: torch.nn.Module, images: torch.Tensor, precise: bool) -> None:
        with torch.no_grad(), batch_norms_without_updates(network):
            network(images) if precise else config.logits(network, images)

    return {
        "teacher, labeled and strong": partial(learn, teacher.network, both),
        "teacher, weak": partial(look, teacher.network, batch.weak, False),
        "student, strong": partial(learn, student.network, unlabeled),
        "labeled loss before": partial(look, student.network, batch.labeled, True),
        "labeled loss after": partial(look, student.network, batch.labeled, True),
        "update of the teacher": teacher.update,
        "update of the student": student.update,
    }


def timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(model: str, device: torch.device, rounds: int, scale: int) -> None:
    side, labeled, unlabeled = CASES[model]
    labeled, unlabeled = labeled * scale, unlabeled * scale
    gpu = device.type == "cuda"
    config = StepConfig(args.Learning(), precision=torch.bfloat16 if gpu else torch.float32)
    teacher, student = (learner(model, side, device, gpu, seed) for seed in (0, 1))
    images = torch.rand(labeled + 2 * unlabeled, 3, side, side, device=device)
    parts = [x.contiguous(memory_format=torch.channels_last) for x in images.split([labeled, unlabeled, unlabeled])]
    batch = Batch(parts[0], torch.arange(labeled, device=device) % CLASSES, parts[1], parts[2])
    passes = irreducible(teacher, student, batch, config)
    steps, sums = [], {name: [] for name in passes}
    for number in range(rounds + 3):
        # Step 1 of every 20 measures the ratio of gradients with a second backward pass; the others are the rule.
        step = timed(partial(mpl_step, (teacher, student), batch, 1, config), device)
        alone = {name: timed(work, device) for name, work in passes.items()}
        if number >= 3:
            steps.append(step)
            for name, seconds in alone.items():
                sums[name].append(seconds)
    total = sum(statistics.median(seconds) for seconds in sums.values())
    whole = statistics.median(steps)
    print(f"\n{model} at {side} px, {labeled} labeled and {unlabeled} unlabeled images, {device}, n = {rounds}")
    for name, seconds in sums.items():
        print(f"  {name:<28} {1000 * statistics.median(seconds):9.2f} ms")
    print(f"  {'sum of the passes':<28} {1000 * total:9.2f} ms")
    print(f"  {'mpl_step':<28} {1000 * whole:9.2f} ms   ratio {whole / total:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--scale", type=int, default=1, help="times the images a step; 8 suits a GPU")
    given = parser.parse_args()
    for model in CASES:
        measure(model, torch.device(given.device), given.rounds, given.scale)


if __name__ == "__main__":
    main()
