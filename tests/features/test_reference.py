"""How far an image is from those that were learned from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from transfermpl.features.reference import reference_of


def test_images_like_the_reference_are_spread_evenly_and_others_are_far() -> None:
    random = np.random.default_rng(0)
    middle = np.concatenate([np.ones(8), np.zeros(8)])

    def drawn(count: int) -> torch.Tensor:
        return torch.from_numpy(middle + 0.3 * random.normal(size=(count, 16)))

    reference = reference_of(drawn(1000))
    assert reference is not None
    assert (reference.farther_than(drawn(1000)) > 0.95).mean() == pytest.approx(0.05, abs=0.02)
    strangers = torch.from_numpy(middle[::-1].copy() + 0.3 * random.normal(size=(50, 16)))
    assert (reference.farther_than(strangers) == 1).all()
    assert (reference.farther_than(reference.features.float()) < 0.01).all()


def test_one_image_has_no_other() -> None:
    assert reference_of(torch.ones(1, 4)) is None
