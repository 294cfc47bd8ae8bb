"""Arithmetic that Triton lacks, beside torch's in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cases import DEVICE

pytest.importorskip("triton", reason="triton is not installed")

import triton
import triton.language as tl

from ocvtp_kernels.triton_common import maths
from ocvtp_kernels.triton_common.packed_argmax import pack_argmax, unpack_score, unpack_token

pytestmark = pytest.mark.interpreter


@triton.jit
def apply_kernel(x, out, count, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    live = index < count
    value = tl.load(x + index, mask=live, other=0.0)
    if FUNCTION == 0:
        result = maths.log1p(value)
    elif FUNCTION == 1:
        result = maths.tanh(value)
    elif FUNCTION == 2:
        result = maths.gelu(value)
    elif FUNCTION == 3:
        result = maths.ordered(value)
    elif FUNCTION == 4:
        result = unpack_token(pack_argmax(value, index))
    elif FUNCTION == 5:
        result = unpack_score(pack_argmax(value, index))
    else:
        result = maths.gelu_half(value)
    tl.store(out + index, result, mask=live)


def apply(x: Tensor, function: int, dtype: torch.dtype) -> Any:
    out = torch.empty(x.shape, dtype=dtype, device=DEVICE)
    block = triton.next_power_of_2(x.numel())
    apply_kernel[(1,)](x.to(DEVICE), out, x.numel(), FUNCTION=function, BLOCK=block)
    return out.cpu()


NUMBERS = torch.cat([torch.logspace(-12, 2, 500), torch.tensor([0.0, 0.01, 0.0099999, 127.0])])


@pytest.mark.parametrize(
    ("function", "exact", "signs"),
    [
        (0, torch.log1p, (1,)),
        (1, torch.tanh, (1, -1)),
        (2, torch.nn.functional.gelu, (1, -1)),
    ],
)
def test_functions_are_exact_to_rounding(
    function: int, exact: Callable[[Tensor], Tensor], signs: tuple[int, ...]
) -> None:
    for sign in signs:
        x = sign * NUMBERS
        error = (apply(x, function, torch.float32).double() - exact(x.double())).abs()
        # log1p relative to itself: an attention of almost 1 is told by its tiny logarithm.
        scale = exact(x.double()).abs() if function == 0 else x.double().abs().clamp_min(1.0)
        assert (error <= 4 * torch.finfo(torch.float32).eps * scale).all()


def test_gelu_for_half_precision_is_as_near_as_it_says() -> None:
    x = torch.cat([torch.linspace(-12, 12, 20001), torch.tensor([-6e4, 6e4])])
    error = (apply(x, 6, torch.float32).double() - torch.nn.functional.gelu(x.double())).abs()
    assert (error <= (5e-5 + 2e-7 * x.double().abs())).all()
    nan, inf = torch.tensor([float("nan"), -float("inf")]), torch.tensor([float("inf")])
    assert apply(nan, 6, torch.float32).isnan().all() and apply(inf, 6, torch.float32) == inf


def test_ordered_orders_as_numbers_do_with_nan_last() -> None:
    inf = float("inf")
    x = torch.tensor([-inf, -3e38, -1.5, -1e-45, -0.0, 0.0, 1e-45, 1.5, 3e38, inf, float("nan")])
    order = apply(x, 3, torch.int64)
    assert (order[1:4] > order[:3]).all() and (order[6:10] > order[5:9]).all()
    assert order[4] == order[5] and order[3] < order[4]
    assert order[10] == order[0]
    assert order.min() >= 0 and order.max() < 2**32


def test_a_packed_argmax_unpacks() -> None:
    x = torch.cat([NUMBERS, -NUMBERS])
    assert torch.equal(apply(x, 4, torch.int64), torch.arange(x.numel()))
    assert torch.equal(apply(x, 5, torch.float32), x + 0.0)
