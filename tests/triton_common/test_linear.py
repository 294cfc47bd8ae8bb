"""The Linear and LayerNorm kernels: every combination of their parts, within the error budget."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.cases import DEVICE, assert_within_budget, random_tokens, to_device, triton_dtypes

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.pruner.fold import centred
from ocvtp_kernels.triton_common.archs import ARCHS, GpuArch
from ocvtp_kernels.triton_common.layer_norm import LN_EPS, LayerNorm, layer_norm
from ocvtp_kernels.triton_common.linear import Linear, Statistics, linear
from ocvtp_kernels.triton_common.linear_tiles import linear_tile, norm_tile

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]


def plain(x: Tensor, w: Tensor, b: Tensor, norm: bool, gelu: bool) -> Tensor:
    y = F.linear(F.layer_norm(x, x.shape[-1:]) if norm else x, w, b)
    return F.gelu(y) if gelu else y


def statistics(x: Tensor, weight: Tensor) -> Statistics:
    """What `ocvtp_kernels.ops.prune.triton.start` computes of both."""
    double = x.double()
    rstd = (double.var(dim=-1, correction=0) + LN_EPS).rsqrt()
    every = double.mean(dim=-1), rstd, weight.double().mean(dim=-1)
    return Statistics(*(one.float().contiguous().to(DEVICE) for one in every))


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
    after = statistics(x, weight) if norm else None
    linear(Linear(to_device(x), weight.to(DEVICE), bias.to(DEVICE), out, after, gelu))
    assert_within_budget(
        out.cpu(),
        plain(x, weight, bias, norm, gelu),
        plain(x.double(), weight.double(), bias.double(), norm, gelu),
    )


@pytest.mark.parametrize("dtype", triton_dtypes()[1:])
@pytest.mark.parametrize("offset", [0.0, 30.0, 1000.0])
def test_a_norm_after_the_product_takes_rows_far_from_zero(
    offset: float, dtype: torch.dtype
) -> None:
    x = (random_tokens(1, 40, 96, outliers=True) + offset).to(dtype)
    weight = centred(random_tokens(33, 96, seed=1, dtype=torch.float64)).to(dtype)
    bias = random_tokens(33, seed=2, dtype=dtype)
    out = torch.empty(1, 40, 33, dtype=dtype, device=DEVICE)
    after = statistics(x, weight)
    linear(Linear(x.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE), out, after))
    oracle = plain(x.double(), weight.double(), bias.double(), True, False)
    assert_within_budget(out.cpu(), plain(x, weight, bias, True, False), oracle)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 10.0, 100.0])
def test_the_norm_after_the_product_is_within_the_budget_in_every_half_precision(
    offset: float, dtype: torch.dtype
) -> None:
    # The kernel's arithmetic in plain PyTorch: bfloat16 has none in Triton's interpreter.
    x = (random_tokens(1, 200, 1024, outliers=True) + offset).to(dtype)
    weight = centred(random_tokens(300, 1024, seed=1, dtype=torch.float64) / 32).to(dtype)
    bias = random_tokens(300, seed=2, dtype=dtype)
    mean, rstd, weight_mean = (one.cpu() for one in statistics(x, weight))
    product = x.float() @ weight.float().T - mean[..., None] * (weight_mean * 1024)
    y = (product * rstd[..., None] + bias.float()).to(dtype)
    oracle = plain(x.double(), weight.double(), bias.double(), True, False)
    assert_within_budget(y, plain(x, weight, bias, True, False), oracle)


@pytest.mark.parametrize("dtype", triton_dtypes())
def test_a_residual(dtype: torch.dtype) -> None:
    x, weight = random_tokens(2, 7, 20, dtype=dtype), random_tokens(34, 20, seed=1, dtype=dtype)
    bias, residual = random_tokens(34, seed=2, dtype=dtype), random_tokens(2, 7, 34, seed=3)
    out = torch.empty(2, 7, 34, device=DEVICE)
    job = Linear(x.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE), out)
    linear(job._replace(residual=residual.to(DEVICE)))
    oracle = F.linear(x.double(), weight.double(), bias.double())
    assert_within_budget(out.cpu(), F.linear(x, weight, bias).float() + residual, oracle + residual)


@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize("offset", [0.0, 30.0, 1000.0])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (37, 130), (5, 2500)])
def test_a_layer_norm(rows: int, width: int, offset: float, dtype: torch.dtype) -> None:
    x = (random_tokens(2, rows, width, outliers=True) + offset).to(dtype)
    out = torch.empty(2, rows, width, dtype=dtype, device=DEVICE)
    layer_norm(LayerNorm(x.to(DEVICE), out))
    oracle = F.layer_norm(x.double(), (width,))
    assert_within_budget(out.cpu(), F.layer_norm(x, (width,)), oracle)
    gain, shift = random_tokens(width, seed=1, dtype=dtype), random_tokens(width, seed=2).to(dtype)
    there = x.to(DEVICE, copy=True)
    layer_norm(LayerNorm(there, there, affine=(gain.to(DEVICE), shift.to(DEVICE))))
    oracle = F.layer_norm(x.double(), (width,), gain.double(), shift.double())
    assert_within_budget(there.cpu(), F.layer_norm(x, (width,), gain, shift), oracle)


@pytest.mark.parametrize("dtype", triton_dtypes())
def test_a_layer_norm_with_a_copy_and_an_extra_column(dtype: torch.dtype) -> None:
    x, weight = random_tokens(2, 7, 20), random_tokens(20, seed=1, dtype=dtype)
    bias = random_tokens(1, seed=2, dtype=dtype)
    out, copy = (torch.empty(2, 7, 20, dtype=dtype, device=DEVICE) for _ in range(2))
    extra = torch.empty(2, 7, device=DEVICE)
    column = weight.to(DEVICE), bias.to(DEVICE), extra
    layer_norm(LayerNorm(x.to(DEVICE), out, copy=copy, extra_column=column))
    oracle = F.layer_norm(x.double(), (20,))
    assert_within_budget(out.cpu(), F.layer_norm(x, (20,)).to(dtype), oracle)
    assert torch.equal(copy.cpu(), x.to(dtype))
    normed = F.layer_norm(x, (20,)).to(dtype)
    plainly = F.linear(normed, weight.unsqueeze(0), bias).squeeze(-1).float()
    assert_within_budget(extra.cpu(), plainly, oracle @ weight.double() + bias.double())


@pytest.mark.parametrize("arch", ARCHS.values(), ids=lambda arch: f"sm_{arch.capability}")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tiles_are_batch_invariant(arch: GpuArch, dtype: torch.dtype) -> None:
    tiles = [
        linear_tile(arch, dtype, rows, columns)
        for rows in (1, 64, 160, 576, 8 * 576, 64 * 576)
        for columns in (512, 2048)
    ]
    assert len({tile.block_k for tile in tiles}) == 1
    if arch.capability in (90, 100) and dtype == torch.bfloat16:
        # One matrix instruction for all: smaller tiles would take an older one.
        assert all(tile.block_m >= 64 for tile in tiles)


def test_a_row_of_the_layer_norm_stays_in_one_warp_as_long_as_it_can() -> None:
    assert [norm_tile(width).num_warps for width in (1, 512, 1024, 2048, 4096, 5000)] == [
        *(1, 1, 1, 1),
        *(2, 4),
    ]
