"""The Linear kernel: every combination of its parts, within the error budget."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.cases import DEVICE, assert_within_budget, random_tokens, to_device, triton_dtypes

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.fold import centred
from ocvtp_kernels.gpu.chips import CHIPS, Chip
from ocvtp_kernels.linear.tiles import linear_tile
from ocvtp_kernels.linear.triton_forward import Linear, linear

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]


def plain(x: Tensor, w: Tensor, b: Tensor, norm: bool, gelu: bool) -> Tensor:
    y = F.linear(F.layer_norm(x, x.shape[-1:]) if norm else x, w, b)
    return F.gelu(y) if gelu else y


@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(
    ("batch", "rows", "depth", "columns"), [(1, 1, 5, 3), (2, 37, 130, 75), (3, 64, 64, 65)]
)
def test_a_linear(
    batch: int, rows: int, depth: int, columns: int, norm: bool, gelu: bool, dtype: torch.dtype
) -> None:
    x = random_tokens(batch, rows + 1, depth, dtype=dtype, outliers=True)[:, 1:]
    weight = centred(random_tokens(columns, depth, seed=1, dtype=torch.float64)).to(dtype)
    bias = random_tokens(columns, seed=2, dtype=dtype)
    out = torch.empty(batch, rows, columns, dtype=dtype, device=DEVICE)
    linear(Linear(to_device(x), weight.to(DEVICE), bias.to(DEVICE), out, norm=norm, gelu=gelu))
    assert_within_budget(
        out.cpu(),
        plain(x, weight, bias, norm, gelu),
        plain(x.double(), weight.double(), bias.double(), norm, gelu),
    )


@pytest.mark.parametrize("offset", [0.0, 30.0, 1000.0])
def test_rows_far_from_zero_do_not_cancel(offset: float) -> None:
    x = random_tokens(1, 40, 96) + offset
    weight, bias = centred(random_tokens(33, 96, seed=1)), random_tokens(33, seed=2)
    out = torch.empty(1, 40, 33, device=DEVICE)
    linear(Linear(x.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE), out, norm=True))
    oracle = plain(x.double(), centred(weight.double()), bias.double(), True, False)
    assert_within_budget(out.cpu(), plain(x, weight, bias, True, False), oracle)


@pytest.mark.parametrize("dtype", triton_dtypes())
def test_residual_and_tail(dtype: torch.dtype) -> None:
    x, weight = random_tokens(2, 7, 20, dtype=dtype), random_tokens(34, 20, seed=1, dtype=dtype)
    bias, residual = random_tokens(34, seed=2, dtype=dtype), random_tokens(2, 7, 34, seed=3)
    out = torch.empty(2, 7, 34, device=DEVICE)
    job = Linear(x.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE), out)
    linear(job._replace(residual=residual.to(DEVICE)))
    oracle = F.linear(x.double(), weight.double(), bias.double())
    assert_within_budget(out.cpu(), F.linear(x, weight, bias).float() + residual, oracle + residual)

    out, tail = torch.empty(2, 7, 33, device=DEVICE), torch.empty(2, 7, device=DEVICE)
    linear(job._replace(out=out, tail=tail))
    both = torch.cat([out, tail.unsqueeze(-1)], dim=-1).cpu()
    assert_within_budget(both, F.linear(x, weight, bias).float(), oracle)


def test_slots_in_float32_meet_weights_in_half() -> None:
    x, weight = random_tokens(1, 16, 20), random_tokens(8, 20, seed=1, dtype=torch.float16)
    bias = random_tokens(8, seed=2, dtype=torch.float16)
    out = torch.empty(1, 16, 8, device=DEVICE)
    linear(Linear(x.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE), out))
    plain_out = F.linear(x.half(), weight, bias).float()
    oracle = F.linear(x.double(), weight.double(), bias.double())
    assert_within_budget(out.cpu(), plain_out, oracle)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: f"sm_{chip.capability}")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_order_of_sums_is_the_same_for_every_batch(chip: Chip, dtype: torch.dtype) -> None:
    tiles = [
        tile
        for rows in (1, 64, 576, 64 * 576)
        for columns in (512, 2048)
        for tile in (
            linear_tile(chip, dtype, rows, columns, plain=False),
            linear_tile(chip, dtype, rows, columns, plain=True),
        )
    ]
    assert len({tile.depth for tile in tiles}) == 1
    if chip.capability in (90, 100) and dtype == torch.bfloat16:
        # One matrix instruction for all: smaller tiles would take an older one.
        assert all(tile.rows >= 64 for tile in tiles)
