from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops
from tests.cases import CPU_BACKENDS, assert_within_budget, random_tokens, running
from tests.ops.raw_calls import EPS, B, D, K, RawCall


def inputs(*lead: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> list[Tensor]:
    shapes = [(*lead, 9), (*lead, 5), (15, 9), (15, 5), (15,), (15,)]
    return [scale * random_tokens(*s, seed=i, dtype=dtype) for i, s in enumerate(shapes)]


def arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    return tuple(inputs(batch, 7, dtype=dtype))


def backward_arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    grad = random_tokens(batch, 5, 7, seed=6, dtype=dtype).transpose(1, 2)
    return *arguments(batch, dtype), grad


ARGUMENTS = {"gru_cell": arguments, "gru_cell_backward": backward_arguments}

RAW_CALLS = {
    "gru_gates": RawCall(
        {
            "x_gates": random_tokens(B, K, 3 * D),
            "h_gates": random_tokens(B, K, 3 * D),
            "h": random_tokens(B, K, D),
            "shift": random_tokens(3 * D),
            "mass": torch.rand(B, K),
            "statistics": random_tokens(B, K, 3).abs(),
            "sums": random_tokens(3 * D),
            "bias": random_tokens(3 * D),
            "eps": EPS,
            "with_norm": True,
        },
        measures=("x_gates", "h"),
    ),
}


def test_equals_torch_gru_cell() -> None:
    x, h, *weights = inputs(2, 7, dtype=torch.float64)
    cell = torch.nn.GRUCell(9, 5, dtype=torch.float64)
    cell.load_state_dict(
        dict(zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), weights, strict=True))
    )
    expected = cell(x.reshape(14, 9), h.reshape(14, 5)).reshape(2, 7, 5)
    torch.testing.assert_close(
        torch.ops.ocvtp.gru_cell(x, h, *weights), expected, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("lead", [(1,), (13,), (2, 7), (0,), ()])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_error_budget(
    backend: str, lead: tuple[int, ...], scale: float, dtype: torch.dtype
) -> None:
    narrow = inputs(*lead, dtype=dtype, scale=scale)
    with running(backend):
        got = torch.ops.ocvtp.gru_cell(*narrow)
    wide = [tensor.double() for tensor in narrow]
    assert_within_budget(got, ops.gru_cell.reference(*narrow), ops.gru_cell.reference(*wide))


@pytest.mark.parametrize("lead", [(3,), (2, 4)])
def test_gradcheck(lead: tuple[int, ...]) -> None:
    leaves = [t.requires_grad_() for t in inputs(*lead, dtype=torch.float64, scale=0.5)]
    assert torch.autograd.gradcheck(torch.ops.ocvtp.gru_cell, leaves)
    assert torch.autograd.gradgradcheck(torch.ops.ocvtp.gru_cell, leaves)


def test_bad_input_is_named() -> None:
    x, h, w_ih, w_hh, b_ih, b_hh = inputs(4)
    gru_cell = torch.ops.ocvtp.gru_cell
    with pytest.raises(ValueError, match="x, h: expected"):
        gru_cell(x[:3], h, w_ih, w_hh, b_ih, b_hh)
    with pytest.raises(ValueError, match=r"x, h: expected .+, got \[\] and \[5\]"):
        gru_cell(x[0, 0], h[0], w_ih, w_hh, b_ih, b_hh)
    with pytest.raises(ValueError, match=r"w_ih: expected shape \[15, ."):
        gru_cell(x, h, w_ih[:14], w_hh, b_ih, b_hh)
    with pytest.raises(ValueError, match=r"w_hh: expected shape \[15, 5\]"):
        gru_cell(x, h, w_ih, w_ih, b_ih, b_hh)
    with pytest.raises(TypeError, match="b_hh: expected dtype"):
        gru_cell(x, h, w_ih, w_hh, b_ih, b_hh.double())
