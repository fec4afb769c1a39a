"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from transfermpl import MPL, args
from transfermpl.backbones.library import build_backbone
from transfermpl.base.files import read_json
from transfermpl.data import find_dataset, split_dataset
from transfermpl.features.bank import FeatureBank
from transfermpl.features.sources import ImageRequest
from transfermpl.learning.batches import Batch
from transfermpl.learning.learner import Learner
from transfermpl.models import Network, build_head
from transfermpl.runs.evaluation import measure
from transfermpl.runs.prepare import fill_banks, make_trainer
from transfermpl.runs.trainer import Trainer
from transfermpl.train import Progress, StepConfig, mpl_step
from transfermpl.utils import choose_precision

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
CUDA = torch.device("cuda")


def training(tmp_path: Path, *words: str) -> Trainer:
    options = args.parse(["--name", "x", "--device", "cuda", "--cache_dir", str(tmp_path / "cache"), *words])
    dataset = find_dataset(options.data)
    return make_trainer(options, dataset, split_dataset(dataset, options.data, 0))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_never_waits_for_the_device(compiled: bool) -> None:
    """bf16, channels last, feedback and alignment; torch itself watches for synchronisation."""
    learning = args.Learning(distribution_alignment=1.0, threshold=0.1, grad_clip=1.0)
    learners = []
    for seed in (0, 1):
        backbone = build_backbone(
            args.Model(model_name="wrn28_2"), native_size=32, points=False, seed=seed, default_name=""
        )
        network = Network(backbone, build_head(backbone.num_features, 10, seed_key=(seed,)))
        network = network.to(CUDA).to(memory_format=torch.channels_last).train()
        if compiled:
            network.compile()
        learners.append(Learner(str(seed), network, learning, classes=10, start=0, total=100))
    images = torch.rand(48, 3, 32, 32, device=CUDA).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(16, device=CUDA) % 10
    batch = Batch(images[:16], labels, images[16:32], images[32:], labels)
    rules = StepConfig(learning, precision=choose_precision("auto", CUDA))
    for step in range(3):
        mpl_step(learners, batch, step, rules)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3, 6):
            measured = mpl_step(learners, batch, step, rules)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(bool(torch.isfinite(value)) for value in measured.values())


def test_the_bank_lies_in_device_memory(tmp_path: Path) -> None:
    made = training(tmp_path, "--data_dir", "fake", "--model_name", "cnn", "--unfreeze", "head", "--max_steps", "4")
    fill_banks(made)
    assert isinstance(made.views.banks[0], FeatureBank)
    rows = made.context.split.labeled
    direct = torch.cat(list(made.views.banks[0].frozen.inputs(rows)))
    stored = made.views.banks[0].rows(ImageRequest(rows, np.zeros(len(rows), dtype=np.int64), "eval"))
    assert stored.is_cuda
    torch.testing.assert_close(stored, direct, rtol=1e-2, atol=1e-2)  # bf16 passes, float16 rows
    assert made.views.banks[0].table(("eval", 0)).resident is not None
    assert made.views.banks[0].table(("eval", 0)).resident.is_cuda  # type: ignore[union-attr]
    made.learn(Progress())
    assert made.learners[0].along[0].v.is_cuda
    assert set(made.predictions(rows)) == {"teacher", "student", "ensemble"}


def test_whole_networks_learn_on_the_gpu(tmp_path: Path) -> None:
    made = training(tmp_path, "--data_dir", "fake", "--max_steps", "30", "--grad_accumulation", "2", "--ema", "0.9")
    progress = Progress()
    made.learn(progress)
    rows, data = made.context.split.test, made.context.data
    accuracy = measure(made.predictions(rows), data.labels[rows], data.classes)["ensemble"]["accuracy"]
    assert 0 <= accuracy <= 1
    assert progress.step == 30


def test_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert MPL.main(["--name", "gpu", "--device", "cuda", "--max_steps", "20"]) == 0
    summary = read_json(tmp_path / "results" / "gpu" / "summary.json")
    assert summary["peak_memory_bytes"] > 0
    assert MPL.main(["--test_mode", "--load_best", "--load_path", "gpu", "--device", "cpu"]) == 0
