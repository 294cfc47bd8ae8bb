"""The slot attention kernels beside the reference, within the error budget, over awkward shapes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops
from tests.cases import DEVICE, assert_within_budget, random_tokens, to_device, triton_dtypes

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.slot_attention.tiles import slot_attention_fwd_tile
from ocvtp_kernels.ops.slot_attention.triton import forward as kernels
from ocvtp_kernels.triton_common.archs import ARCHS

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

SLOTS = (1, 7, 64, 65, 100, 128, 160, 192)

TOKENS = (1, 50, 576, 577)


def case(
    batch: int, num_slots: int, num_tokens: int, dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    q = random_tokens(batch, num_slots, dim, dtype=dtype)
    k = random_tokens(batch, num_tokens + 1, dim, seed=1, dtype=dtype)[:, 1:]
    v = random_tokens(batch, 33, num_tokens, seed=2, dtype=dtype, outliers=True).transpose(1, 2)
    return q, k, v


def check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> None:
    scale = 2 * q.shape[-1] ** -0.5
    on_device = [to_device(t) for t in (q, k, v)]
    got = kernels.slot_attention_with_attention(
        *on_device, scale, 1e-5, None if mask is None else mask.to(DEVICE)
    )
    plain = ops.slot_attention_with_attention.reference(q, k, v, scale, 1e-5, mask)
    oracle = ops.slot_attention_with_attention.reference(
        q.double(), k.double(), v.double(), scale, 1e-5, mask
    )
    for one, other, exact in zip(got, plain, oracle, strict=True):
        assert_within_budget(one.cpu(), other, exact)


@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize(("num_slots", "num_tokens"), [*product(SLOTS, TOKENS)])
def test_narrow_slots(num_slots: int, num_tokens: int, dtype: torch.dtype) -> None:
    check(*case(1, num_slots, num_tokens, 64, dtype))


@pytest.mark.parametrize(("num_slots", "num_tokens"), [*product(SLOTS, TOKENS)])
def test_slots_of_full_width(num_slots: int, num_tokens: int) -> None:
    check(*case(1, num_slots, num_tokens, 512, torch.float16))


@pytest.mark.parametrize("dim", [1, 5, 100, 512, 1024])
def test_float32_of_any_width(dim: int) -> None:
    check(*case(2, 7, 70, dim, torch.float32))


@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize("num_slots", [7, 70, 150])
def test_masked_slots_take_no_part(num_slots: int, dtype: torch.dtype) -> None:
    mask = torch.ones(2, num_slots, dtype=torch.bool)
    mask[0, ::2] = False
    # A whole block of slots may be masked, and all but one.
    mask[1, :-1] = False
    check(*case(2, num_slots, 90, 16, dtype), mask)


@pytest.mark.parametrize("num_slots", [7, 150])
def test_large_logits_neither_overflow_nor_vanish(num_slots: int) -> None:
    # Of many images: where logits are large, one image's worst error is a matter of luck.
    q, k, v = case(8, num_slots, 50, 16, torch.float32)
    check(q * 30, k, v)


@pytest.mark.parametrize("num_slots", [7, 150])
def test_nan_is_not_hidden(num_slots: int) -> None:
    q, k, v = (to_device(t) for t in case(1, num_slots, 50, 16, torch.float32))
    k[0, 20, 3] = float("nan")
    updates, mass = kernels.slot_attention(q, k, v, 0.3)
    assert updates.isnan().all() and mass.isnan().all()


def test_split_and_unsplit_give_the_same_bits() -> None:
    q, k, v = (to_device(t) for t in case(1, 7, 300, 16, torch.float16))
    args = kernels.SlotAttentionArgs(q, k.contiguous(), 0.3)
    v = v.contiguous()
    tile = slot_attention_fwd_tile(ARCHS[80], q.dtype, 1, 7, 300, v.shape[2])
    results = []
    for whole in (False, True):
        split = kernels.SplitPlan.of(tile, whole, (1, 7, 300, v.shape[2]))
        assert (split.num_splits == 1) == whole and split.num_groups > 1
        updates = torch.empty(1, 7, v.shape[2], dtype=q.dtype, device=DEVICE)
        mass = torch.empty(1, 7, device=DEVICE)
        space = kernels.new_split_workspace(split, 1, 300, q.device)
        kernels.slot_attention_fwd(args, v, 1e-5, updates, mass, split, space)
        assert whole or not space.semaphore.any()
        results.append((updates, mass))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("arch", ARCHS.values(), ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_slots", [64, 128, 320])
def test_tiles_are_batch_invariant(arch: object, dtype: torch.dtype, num_slots: int) -> None:
    tiles = {
        (tile.block_tokens, tile.block_k)
        for tile in (
            slot_attention_fwd_tile(arch, dtype, batch, num_slots, 576, 512)  # type: ignore[arg-type]
            for batch in (1, 8, 64, 512)
        )
    }
    assert len(tiles) == 1
