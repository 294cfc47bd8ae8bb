"""The GRU's gradients on the CPU: computed again, and from gates that were kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops
from ocvtp_kernels.ops.gru_cell import kept_gates as gru_cpu
from tests.cases import (
    CPU_BACKENDS,
    assert_within_budget,
    peak_bytes,
    random_pruner,
    random_tokens,
    running,
    small_config,
    step_weights,
)
from tests.ops.gru_cell.test_gru_cell import inputs


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("lead", [(13,), (2, 7), ()])
@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_error_budget(
    backend: str, lead: tuple[int, ...], scale: float, dtype: torch.dtype
) -> None:
    narrow = inputs(*lead, dtype=dtype, scale=scale)
    grad = random_tokens(*lead, 5, seed=9, dtype=dtype)

    def gradients(kind: torch.dtype, ours: bool) -> tuple[Tensor, ...]:
        leaves = [tensor.to(kind).requires_grad_() for tensor in narrow]
        cell = torch.ops.ocvtp.gru_cell if ours else ops.gru_cell.reference
        return torch.autograd.grad(cell(*leaves), leaves, grad.to(kind))

    with running(backend):
        got = gradients(dtype, True)
    plain, oracle = gradients(dtype, False), gradients(torch.float64, False)
    for one, rough, exact in zip(got, plain, oracle, strict=True):
        assert_within_budget(one, rough, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_beside_the_gates(dtype: torch.dtype) -> None:
    rows = inputs(7, dtype=dtype, scale=3.0)
    state, gates = gru_cpu.forward_rows(*rows)
    oracle = ops.gru_cell.reference(*(tensor.double() for tensor in rows))
    assert_within_budget(state, ops.gru_cell.reference(*rows), oracle)
    assert gates.shape == (7, 20)


def test_no_rows_have_no_gradient() -> None:
    leaves = [t.requires_grad_() for t in inputs(0, 7)]
    for gradient, leaf in zip(
        torch.autograd.grad(torch.ops.ocvtp.gru_cell(*leaves).sum(), leaves), leaves, strict=True
    ):
        assert gradient.shape == leaf.shape and (gradient == 0).all()


def test_bad_gradients_are_named() -> None:
    given = inputs(4)
    backward = torch.ops.ocvtp.gru_cell_backward
    with pytest.raises(ValueError, match=r"grad: expected shape \[4, 5\], got \[3, 5\]"):
        backward(*given, torch.zeros(3, 5))
    with pytest.raises(TypeError, match="grad: expected dtype"):
        backward(*given, torch.zeros(4, 5).double())


def test_training_holds_less_at_once_than_autograd_through_the_plain_module() -> None:
    config = small_config(
        agg_embed_dim=64, init_dim=64, enc_dims=(20, 64), agg_ffn_dim=64, agg_trunc_bp=None
    )
    pruner = random_pruner(config)
    module = pruner.aggregat
    tokens, slots = random_tokens(4, 100, 64), random_tokens(4, 32, 64, seed=1)

    def plain() -> None:
        out, _ = module(tokens, slots)
        out.sum().backward()

    def ours() -> None:
        x = module.norm_in(tokens)
        k, v = module.proj_k(x), module.proj_v(x)
        weights, state = step_weights(pruner), slots
        for _ in range(module.num_iter):
            state = torch.ops.ocvtp.slot_attention_step(state, k, v, list(weights), 0.125)
        state.sum().backward()

    peaks = []
    for call in (plain, ours):
        module.zero_grad(set_to_none=True)
        call()
        module.zero_grad(set_to_none=True)
        peaks.append(peak_bytes(call))
    assert peaks[1] < peaks[0]
