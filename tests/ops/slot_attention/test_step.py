"""A whole iteration and its gradients: of the ops, and on the CPU with attention and gates kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import use_backend
from ocvtp_kernels.ops.slot_attention import reference
from ocvtp_kernels.ops.slot_attention.reference import StepWeights
from ocvtp_kernels.ops.slot_attention.step import iterate
from tests.cases import CPU_BACKENDS, assert_within_budget, random_tokens, running

DIM, HIDDEN = 6, 10
SHAPES = StepWeights(
    *[(DIM,), (DIM,), (DIM, DIM), (3 * DIM, DIM), (3 * DIM, DIM), (3 * DIM,), (3 * DIM,)],
    *[(DIM,), (DIM,), (HIDDEN, DIM), (HIDDEN,), (DIM, HIDDEN), (DIM,)],
)
NAMES = ("slots", "k", "v", *StepWeights._fields)


def inputs(
    dtype: torch.dtype, batch: int = 2, slots: int = 5, tokens: int = 11, seed: int = 0
) -> list[Tensor]:
    """Slots, keys, values and the weights, with gradients to come."""
    shapes = [(batch, slots, DIM), (batch, tokens, DIM), (batch, tokens, DIM), *SHAPES]
    drawn = [0.6 * random_tokens(*s, seed=seed + i, dtype=dtype) for i, s in enumerate(shapes)]
    return [tensor.requires_grad_() for tensor in drawn]


def both(slots: Tensor, k: Tensor, v: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    out, attention = iterate(slots, k, v, StepWeights(*weights), 0.4, need_attention=True)
    assert attention is not None
    return out, attention


def plain(slots: Tensor, k: Tensor, v: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    out, logits = reference.slot_attention_step(slots, k, v, weights, 0.4)
    return out, logits.softmax(dim=1)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("batch", [1, 2])
def test_every_gradient_keeps_the_error_budget(backend: str, batch: int) -> None:
    probes = [random_tokens(batch, 5, n, seed=n, dtype=torch.float64) for n in (DIM, 11)]

    def gradients(step: object, dtype: torch.dtype) -> list[Tensor]:
        assert callable(step)
        found = []
        # Of one draw a gradient's rounding is luck.
        for seed in range(0, 800, 100):
            given = inputs(torch.float32, batch, seed=seed)
            leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in given]
            outer = [probe.to(dtype) for probe in probes]
            found.append(torch.autograd.grad(step(*leaves), leaves, outer))
        return [torch.stack(draws) for draws in zip(*found, strict=True)]

    with running(backend):
        got = gradients(both, torch.float32)
    rough, exact = gradients(plain, torch.float32), gradients(plain, torch.float64)
    for name, *gradient in zip(NAMES, got, rough, exact, strict=True):
        if name == "norm_q_bias":
            # It shifts all queries alike, and so no attention: its gradient is rounding alone.
            assert all(one.abs().max() < 1e-6 for one in gradient)
        else:
            assert_within_budget(*gradient)


def test_gradcheck() -> None:
    leaves = inputs(torch.float64, batch=1, slots=3, tokens=4)
    assert torch.autograd.gradcheck(both, leaves)
    assert torch.autograd.gradgradcheck(both, leaves)


@pytest.mark.parametrize("only", [0, 1])
def test_one_output_may_have_a_gradient_alone(only: int) -> None:
    leaves = inputs(torch.float64)
    found, expected = (
        torch.autograd.grad(step(*leaves)[only].square().sum(), leaves, allow_unused=True)
        for step in (both, plain)
    )
    for got, wanted, leaf in zip(found, expected, leaves, strict=True):
        zeros = torch.zeros_like(leaf)
        torch.testing.assert_close(
            zeros if got is None else got, zeros if wanted is None else wanted
        )


def test_a_masked_slot_gets_no_attention_and_gives_no_gradient() -> None:
    slots, k, _, *weights = inputs(torch.float64)
    mask = torch.tensor([[True, False, True, True, True], [True] * 5])
    out, attention = iterate(
        slots, k, k, StepWeights(*weights), 0.4, slot_mask=mask, need_attention=True
    )
    assert attention is not None and (attention[0, 1] == 0).all()
    oracle, logits = reference.slot_attention_step(slots, k, k, weights, 0.4, slot_mask=mask)
    leaves = (slots, k, *weights)
    found = torch.autograd.grad((out, attention), leaves, (out, attention))
    wanted = torch.autograd.grad(
        (oracle, logits.softmax(dim=1)), leaves, (oracle, logits.softmax(dim=1))
    )
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, expected)


def test_the_forced_reference_is_run_where_a_gradient_is_to_come() -> None:
    leaves = inputs(torch.float32)
    with use_backend("reference"):
        out, _ = both(*leaves)
    names, todo = set(), [out.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node.name() not in names:
            names.add(node.name())
            todo += [parent for parent, _ in node.next_functions]
    assert not any(name.startswith(("_Competition", "_Gru")) for name in names)


def test_two_runs_have_the_same_bits() -> None:
    leaves = inputs(torch.float32)
    first, second = (
        torch.autograd.grad([out.sum() for out in both(*leaves)], leaves) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
