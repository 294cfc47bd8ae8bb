from __future__ import annotations

import math

import pytest
import torch

from ocvtp_kernels.ops.prune.reference import encode
from ocvtp_kernels.pruner.modules import MLP
from tests.cases import random_tokens


def by_hand(x: torch.Tensor, mlp: MLP) -> torch.Tensor:
    """Two Linears with LayerNorm and erf GELU written out."""

    def norm(t: torch.Tensor) -> torch.Tensor:
        centred = t - t.mean(-1, keepdim=True)
        assert mlp.norm is not None
        gamma, beta = mlp.norm
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
    norm_weight, norm_bias = mlp.norm or (None, None)
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
