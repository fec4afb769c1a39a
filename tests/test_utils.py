"""Keyed randomness, devices and precision."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfermpl import utils
from transfermpl.utils import UserError, choose_device, choose_precision, counter_uniform, generator, key

# --- randomness -------------------------------------------------------------------------------------------------------


def test_keys_are_the_same_on_every_machine_and_in_every_version() -> None:
    # Written down once: another value would give other splits and orders for the same seed.
    assert key(0, "split") == 3692668185207323792
    assert generator(0, "split").integers(0, 1000, 4).tolist() == [138, 381, 198, 586]
    uniform = counter_uniform(np.array([1, 2**63], dtype=np.uint64), np.array([0, 5]), 3, "weak")
    in_whole_numbers = [[0.617509723, 0.231072545, 0.381288469], [0.863843501, 0.144028187, 0.524264097]]
    assert uniform == pytest.approx(np.array(in_whole_numbers), abs=1e-7)


PARTS = st.lists(st.integers() | st.text(max_size=5), max_size=4)


@given(PARTS, PARTS)
def test_other_parts_make_another_key(a: list[object], b: list[object]) -> None:
    assert 0 <= key(*a) < 2**63
    if [str(x) for x in a] != [str(x) for x in b] and not any("\x1f" in str(x) for x in a + b) and a and b:
        assert key(*a) != key(*b)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 999)), min_size=1, max_size=8), st.integers(1, 30))
def test_a_row_of_numbers_does_not_depend_on_the_others(rows: list[tuple[int, int]], count: int) -> None:
    keys = np.array([k for k, _ in rows], dtype=np.uint64)
    draws = np.array([d for _, d in rows])
    whole = counter_uniform(keys, draws, count, "strong")
    assert whole.dtype == np.float32
    assert (whole >= 0).all()
    assert (whole < 1).all()
    for i in range(len(rows)):
        assert (counter_uniform(keys[i : i + 1], draws[i : i + 1], count, "strong")[0] == whole[i]).all()
    assert (counter_uniform(keys, draws, count + 1, "strong")[:, :count] == whole).all()


def test_the_numbers_are_uniform_and_independent() -> None:
    keys = np.arange(20000, dtype=np.uint64)  # the worst keys there are
    for purpose in ("weak", "strong"):
        uniform = counter_uniform(keys, np.zeros(20000, dtype=np.int64), 4, purpose)
        assert uniform.mean(axis=0) == pytest.approx(np.full(4, 0.5), abs=0.015)
        counts = np.stack([np.histogram(column, 20, (0, 1))[0] for column in uniform.T])
        assert np.abs(counts - 1000).max() < 160
        assert np.abs(np.corrcoef(uniform.T) - np.eye(4)).max() < 0.03
    first = counter_uniform(keys, np.zeros(20000, dtype=np.int64), 1, "weak")[:, 0]
    for other in (
        counter_uniform(keys, np.ones(20000, dtype=np.int64), 1, "weak")[:, 0],
        counter_uniform(keys, np.zeros(20000, dtype=np.int64), 1, "strong")[:, 0],
        counter_uniform(keys + np.uint64(1), np.zeros(20000, dtype=np.int64), 1, "weak")[:, 0],
    ):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.03


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["meta", "abacus", "", "hpu", "privateuseone", "cuda:99", "cpu:-1", "xpu"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="use --device auto or --device cpu"):
        choose_device(name)


def test_the_device_and_the_precision_that_are_there() -> None:
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    assert choose_precision("auto", cpu) is torch.float32
    assert choose_precision("bf16", cpu) is torch.bfloat16
    assert choose_precision("fp32", cpu) is torch.float32
    assert choose_precision("fp32", cpu, frozen=True) is torch.float32
    assert utils.peak_memory_bytes(cpu) > 1e7


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "avx512_f": True}, torch.float32),
        ({}, torch.float32),
        (None, torch.float32),  # a torch that does not say
    ],
)
def test_a_frozen_backbone_takes_bfloat16_on_a_cpu_that_multiplies_in_it(
    found: dict[str, bool] | None, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    if found is not None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu, frozen=True) is expected
    assert choose_precision("auto", cpu) is torch.float32
    assert choose_precision("auto", torch.device("mps"), frozen=True) is torch.float32


def test_keeping_pages_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    def no_libc(name: str) -> object:
        raise OSError(name)

    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    monkeypatch.setattr(ctypes, "CDLL", no_libc)
    utils.keep_pages()
    monkeypatch.setattr(sys, "platform", "darwin")
    utils.keep_pages()
