"""The encoding of ``ocvtp::prune``'s reference beside the module and the formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ocvtp_kernels.ops.prune.reference import encode
from ocvtp_kernels.pruner.modules import MLP
from tests.cases import random_pruner, random_tokens
from tests.ops.raw_calls import EPS, ROWS, B, D, K, N, RawCall


def arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    pruner = random_pruner(dtype=dtype)
    reference_tokens = random_tokens(batch, 34, 12, dtype=dtype)[:, 1:]
    final_tokens = random_tokens(batch, 34, 6, seed=1, dtype=dtype)[:, 1:]
    slots = pruner.sample_slots(batch, 7).detach()
    return reference_tokens, final_tokens, pruner.packed(), slots, None, 7


def picks_arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    reference_tokens, _, weights, slots, _, _ = arguments(batch, dtype)
    return reference_tokens, weights, slots, 2


ARGUMENTS = {"prune": arguments, "prune_picks": picks_arguments}

RAW_CALLS = {
    "layer_norm": RawCall({"x": random_tokens(B, D), "eps": EPS}, {"x": ROWS}),
    "bias_gelu_": RawCall(
        {"x": random_tokens(B, D), "bias": random_tokens(D)},
        {"x": ["rank *", "size 0 *"]},
        measures=("x",),
    ),
    "start": RawCall(
        {
            "tokens": random_tokens(B, N, D),
            "slots": random_tokens(1, K, D, seed=1),
            "weight": random_tokens(D),
            "eps": EPS,
        },
        {"tokens": ["rank *", "size [01] *"], "slots": ["rank *", "size [01] *"]},
        measures=("tokens",),
    ),
    "norm_slots": RawCall(
        {
            "x": random_tokens(B, D),
            "y": random_tokens(B, D),
            "weight": random_tokens(D),
            "eps": EPS,
        },
        measures=("y",),
    ),
}


def by_hand(x: torch.Tensor, mlp: MLP) -> torch.Tensor:
    """Two Linears with LayerNorm and erf GELU written out."""

    def norm(t: torch.Tensor) -> torch.Tensor:
        centred = t - t.mean(-1, keepdim=True)
        assert mlp.norm is not None
        gamma, beta = mlp.norm.parameters()
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gamma + beta

    first, second = mlp.linears
    x = norm(x) if mlp.ln == "pre" else x
    hidden = x @ first.weight.T + first.bias
    x = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))) @ second.weight.T + second.bias
    return norm(x) if mlp.ln == "post" else x


@pytest.mark.parametrize("ln", ["pre", "post", None])
def test_reference_module_and_formula_agree(ln: str | None) -> None:
    mlp = MLP(12, (20, 10), ln, 0.0).double()
    for index, parameter in enumerate(mlp.parameters()):
        parameter.data = random_tokens(*parameter.shape, seed=index, dtype=torch.float64)
    x = random_tokens(2, 9, 12, seed=99, dtype=torch.float64, outliers=True)
    expected = by_hand(x, mlp)
    norm_weight, norm_bias = mlp.norm.parameters() if mlp.norm else (None, None)
    got = encode(
        x,
        [linear.weight for linear in mlp.linears],
        [linear.bias for linear in mlp.linears],
        ln,
        norm_weight,
        norm_bias,
    )
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(mlp(x), expected, rtol=1e-11, atol=1e-11)
