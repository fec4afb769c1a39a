"""Outliers, on features with a planted one."""

from __future__ import annotations

import numpy as np
import torch

from transfermpl.features.nearest import nearest
from transfermpl.inspection.outliers import outlier_scores


def test_what_lies_far_from_all_others_is_an_outlier() -> None:
    random = np.random.default_rng(0)
    rows = np.concatenate([random.normal(0, 0.3, (200, 8)) + 1, random.normal(0, 0.3, (200, 8)) + np.arange(8)])
    rows[17] = [-3, 2, -3, 2, -3, 2, -3, 2]
    far = outlier_scores(nearest(torch.from_numpy(rows), 10))
    assert far.argmax() == 17
    assert far[17] > 5
    assert abs(float(np.median(far))) < 1e-9
    assert outlier_scores(nearest(torch.from_numpy(rows[:1]), 10)).tolist() == [0]
