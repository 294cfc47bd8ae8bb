"""The CUDA kernels from picks to ids to rows, in the emulator: exactly those of the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops
from ocvtp_kernels.ops.argmax_gather import gather_tokens
from tests.csrc.device_cases import DTYPES, INF, NAN, DeviceCase, fuzz

pytestmark = pytest.mark.usefixtures("loaded", "poisoned")
emulated = torch.ops.ocvtp_emulated

SCORES = (*DTYPES, torch.float64)
# Few values, so that ties are common; both zeros; what a half rounds to 0.
FEW = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0)
ODD = (NAN, -INF, INF, -5e-8, 5e-8, 1.0)


def scores(case: DeviceCase, kind: str, *shape: int) -> Tensor:
    """Of a dtype of their own, NaN around the rows."""
    dtype, size = case.pick(SCORES), (*shape[:-1], shape[-1] + 3)
    draw = torch.randint(0, 50, size, generator=case.random)
    x = {
        "normal": lambda: case.numbers(*size),
        "few": lambda: torch.tensor(FEW, dtype=torch.float64)[draw % 6],
        "odd": lambda: torch.tensor(ODD, dtype=torch.float64)[draw % 6],
        # Apart by less than a float32 can hold.
        "close": lambda: 1 + draw * 2.0**-52,
        "equal": lambda: torch.full(size, 0.25),
    }[kind]()
    x[..., -3:] = NAN
    return x.to(dtype)[..., :-3]


def picks_of(case: DeviceCase, shape: tuple[int, int, int], tokens: int, crowd: int) -> Tensor:
    """Distinct picks of each slot among the last ``crowd`` tokens, so that slots collide."""
    batch, num_slots, top_k = shape
    order = torch.rand(batch, num_slots, max(top_k, crowd), generator=case.random)
    return tokens - 1 - order.argsort(-1)[..., :top_k]


def assert_resolves(case: DeviceCase, sizes: tuple[int, int, int, int, int]) -> None:
    tokens, num_slots, top_k, budget, crowd = sizes
    batch, kind = case.between(1, 3), case.pick(["normal", "few", "odd", "close", "equal"])
    picks = picks_of(case, (batch, num_slots, top_k), tokens, crowd)
    peak = scores(case, kind, batch, num_slots)
    importance = scores(case, kind, batch, tokens) if case.flag() else None
    got = emulated.resolve_picks(picks, peak, importance, budget, tokens)
    assert torch.equal(got, ops.resolve_picks.reference(picks, peak, importance, budget, tokens))
    last = (picks[-1:], peak[-1:], None if importance is None else importance[-1:])
    alone = emulated.resolve_picks(*last, budget, tokens)
    assert torch.equal(alone, got[-1:]), "an image alone differs"


@fuzz
def test_resolve_picks(case: DeviceCase) -> None:
    tokens = case.pick([1, 2, 7, 50, 60, 200, 577, 1100])
    num_slots, top_k = case.pick([1, 3, 16, 40, 64, 70]), case.between(1, min(3, tokens))
    budget = case.between(1, tokens)
    assert_resolves(case, (tokens, num_slots, top_k, budget, case.between(1, tokens)))


@pytest.mark.parametrize(
    "sizes", [(16384, 640, 3, 640, 16384), (16384, 64, 1, 16384, 100)], ids=["picks", "padding"]
)
@pytest.mark.parametrize("scores_in", SCORES)
def test_the_most_that_it_takes(sizes: tuple[int, ...], scores_in: torch.dtype) -> None:
    tokens, num_slots, top_k, budget, crowd = sizes
    generator = torch.Generator().manual_seed(11)
    picks = tokens - 1 - torch.randint(0, crowd, (1, num_slots, top_k), generator=generator)
    peak = torch.tensor(FEW)[torch.randint(0, 6, (1, num_slots), generator=generator)]
    importance = torch.randn(1, tokens, generator=generator, dtype=torch.float64).to(scores_in)
    final = torch.randn(1, tokens, 3, generator=generator)
    want = ops.resolve_picks.reference(picks, peak, importance, budget, tokens)
    kept, ids = emulated.resolve_gather(picks, peak, importance, final, budget)
    assert torch.equal(ids, want) and torch.equal(kept, gather_tokens(final, want))


@fuzz
def test_rows_of_any_bytes(case: DeviceCase) -> None:
    """At any alignment, copied by one block or by several."""
    batch, tokens, budget = case.between(1, 3), 90, case.between(1, 90)
    row_bytes = case.pick([1, 7, 12, 16, 40, 1026, 2048, 4112])
    units = [dtype for dtype in (torch.uint8, *SCORES) if row_bytes % dtype.itemsize == 0]
    dtype = case.pick(units)
    before, after = case.pick([(0, 0), (16, 16), (0, 1), (1, 0), (2, 2), (4, 4), (8, 8)])
    width = row_bytes // dtype.itemsize
    memory = torch.randint(
        0, 100, (batch, tokens + 1, before + width + after), generator=case.random
    ).to(dtype)
    final = memory[:, :-1, before : before + width]
    picks = picks_of(case, (batch, 30, 1), tokens, 25)
    peak, importance = scores(case, "normal", batch, 30), scores(case, "few", batch, tokens)
    want = ops.resolve_picks.reference(picks, peak, importance, budget, tokens)
    kept, ids = emulated.resolve_gather(picks, peak, importance, final, budget)
    assert torch.equal(ids, want) and torch.equal(kept, gather_tokens(final, want))
