from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops
from ocvtp_kernels.ops.slot_attention import reference
from tests.cases import (
    CPU_BACKENDS,
    assert_within_budget,
    random_pruner,
    random_tokens,
    running,
    small_config,
    step_weights,
)
from tests.ops.attention_cases import strided_qkv
from tests.ops.raw_calls import PER_SLOT, SCALARS, B, E, K, N, RawCall, queries_keys

# K not a power of two, one slot, one token, more slots than tokens, sizes past every tile.
SHAPES = [(1, 1, 1), (2, 7, 1), (1, 1, 50), (3, 65, 33), (2, 100, 577), (0, 7, 20)]
HALF = [torch.float16, torch.bfloat16]


def inputs(
    shape: tuple[int, int, int], dtype: torch.dtype, outliers: bool = False, width: int = 19
) -> tuple[Tensor, Tensor, Tensor]:
    batch, num_slots, num_tokens = shape
    q = random_tokens(batch, num_slots, 24, dtype=dtype, outliers=outliers)
    k = random_tokens(batch, num_tokens, 24, seed=1, dtype=dtype)
    return q, k, random_tokens(batch, num_tokens, width, seed=2, dtype=dtype, outliers=outliers)


def arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    mask = torch.ones(batch, 7, dtype=torch.bool)
    mask[:, 2] = False
    return *strided_qkv(batch, dtype), 0.3, 1e-5, mask


def backward_arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    shapes = [(batch, 7, 9), (batch, 9, 7), (batch, 7), (batch, 7, 33)]
    updates, grad, mass, attention = (
        random_tokens(*shape, seed=3 + i, dtype=dtype) for i, shape in enumerate(shapes)
    )
    return *arguments(batch, dtype), updates, grad.transpose(1, 2), mass, attention


def step_arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    weights = [w.detach() for w in step_weights(random_pruner(dtype=dtype))]
    q, k, v = strided_qkv(batch, dtype)
    return q, k, torch.cat([v, v[..., :1]], dim=-1), weights, 0.3


ARGUMENTS = {
    "slot_attention": arguments,
    "slot_attention_with_attention": arguments,
    "slot_attention_backward": backward_arguments,
    "slot_attention_step": step_arguments,
}

RAW_CALLS = {
    "slot_attention": RawCall(
        queries_keys(v=random_tokens(B, N, E, seed=3), **PER_SLOT, **SCALARS, with_attention=True),
        {"v": ["size 2 [-+]*", "cpu: size 2 =0"], "constant": ["none"], "slot_mask": ["none"]},
        measures=("q", "k"),
    ),
    "slot_attention_backward": RawCall(
        queries_keys(
            v=random_tokens(B, N, E, seed=3),
            slot_mask=PER_SLOT["slot_mask"],
            **SCALARS,
            updates=random_tokens(B, K, E),
            grad_updates=random_tokens(B, K, E),
            grad_mass=random_tokens(B, K),
            grad_attention=random_tokens(B, K, N),
            attention=random_tokens(B, K, N).softmax(1),
        ),
        {name: ["none"] for name in ("slot_mask", "grad_attention", "attention")},
        measures=("q", "k", "v"),
        cpu_only=True,
    ),
}


def by_hand(q: Tensor, k: Tensor, v: Tensor, scale: float, eps: float) -> tuple[Tensor, ...]:
    """Slot Attention as sums over single numbers, in float64."""
    batch, num_slots, _ = q.shape
    attention = torch.zeros(batch, num_slots, k.shape[1], dtype=torch.float64)
    for b in range(batch):
        for n in range(k.shape[1]):
            logits = [scale * float((q[b, s] * k[b, n]).sum()) for s in range(num_slots)]
            top = max(logits)
            exponentials = [math.exp(logit - top) for logit in logits]
            attention[b, :, n] = torch.tensor(exponentials, dtype=torch.float64) / sum(exponentials)
    mass = attention.sum(-1)
    updates = torch.einsum("bkn,bne->bke", attention, v) / (mass + eps)[..., None]
    return updates, mass, attention


def in_long_double(q: Tensor, k: Tensor, v: Tensor, scale: float) -> list[Tensor]:
    """Slot Attention with more digits than float64, rounded to it: float64's own oracle."""
    wide = [tensor.numpy().astype(np.longdouble) for tensor in (q, k, v)]
    logits = scale * wide[0] @ wide[1].swapaxes(1, 2)
    attention = np.exp(logits - logits.max(1, keepdims=True))
    attention /= attention.sum(1, keepdims=True)
    mass = attention.sum(-1)
    updates = (attention / (mass + 1e-5)[..., None]) @ wide[2]
    return [torch.from_numpy(x.astype(np.float64)) for x in (updates, mass, attention)]


def test_reference_is_the_formula() -> None:
    q, k, v = inputs((2, 5, 9), torch.float64)
    for got, expected in zip(
        ops.slot_attention_with_attention.reference(q, k, v, 0.37, 1e-5),
        by_hand(q, k, v, 0.37, 1e-5),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, 1e-40), (torch.float64, 5e-324)])
def test_a_slot_left_out_stays_0_by_the_least_eps(
    backend: str, dtype: torch.dtype, eps: float
) -> None:
    q, k, v = inputs((2, 5, 9), dtype)
    mask = torch.tensor([[True, False, True, True, False]]).expand(2, -1)
    with running(backend):
        updates, mass = torch.ops.ocvtp.slot_attention(q, k, v, 0.37, eps, mask)
    assert not updates[~mask].any()
    assert not mass[~mask].any()
    assert updates[mask].isfinite().all()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
def test_error_budget(
    backend: str, shape: tuple[int, int, int], outliers: bool, dtype: torch.dtype
) -> None:
    narrow = inputs(shape, dtype, outliers)
    scale = 24**-0.5
    with running(backend):
        got = torch.ops.ocvtp.slot_attention_with_attention(*narrow, scale)
    plain = ops.slot_attention_with_attention.reference(*narrow, scale)
    if dtype == torch.float64 and math.prod(shape) > 0:
        oracle = in_long_double(*narrow, scale)
    else:
        q, k, v = (tensor.double() for tensor in narrow)
        oracle = list(ops.slot_attention_with_attention.reference(q, k, v, scale))
    for actual, rough, exact in zip(got, plain, oracle, strict=True):
        assert_within_budget(actual, rough, exact)


def test_both_variants_agree() -> None:
    q, k, v = inputs((2, 7, 20), torch.float32)
    updates, mass = torch.ops.ocvtp.slot_attention(q, k, v, 0.2)
    also, also_mass, attention = torch.ops.ocvtp.slot_attention_with_attention(q, k, v, 0.2)
    assert torch.equal(updates, also) and torch.equal(mass, also_mass)
    torch.testing.assert_close(attention.sum(1), torch.ones(2, 20))


def test_masked_slots_take_nothing_and_change_nothing() -> None:
    q, k, v = inputs((2, 7, 20), torch.float64)
    live = torch.tensor([0, 1, 4, 6])
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[:, live] = True
    updates, mass, attention = torch.ops.ocvtp.slot_attention_with_attention(
        q, k, v, 0.2, slot_mask=mask
    )
    alone = torch.ops.ocvtp.slot_attention_with_attention(q[:, live], k, v, 0.2)
    for got, expected in zip((updates, mass, attention), alone, strict=True):
        torch.testing.assert_close(got[:, live], expected, rtol=1e-12, atol=1e-14)
        assert (got[~mask] == 0).all()


@pytest.mark.parametrize("batch", [2, 8])
def test_batch_invariant(batch: int) -> None:
    q, k, v = inputs((batch, 7, 33), torch.float32)
    together = torch.ops.ocvtp.slot_attention(q, k, v, 0.2)
    for image in range(batch):
        one = slice(image, image + 1)
        alone = torch.ops.ocvtp.slot_attention(q[one], k[one], v[one], 0.2)
        for a, b in zip(alone, together, strict=True):
            # A BLAS may choose another summation order for one small matrix than for many.
            torch.testing.assert_close(a, b[one], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(masked: bool) -> None:
    q, k, v = (t.requires_grad_() for t in inputs((2, 4, 6), torch.float64, width=3))
    mask = torch.tensor([[True, False, True, True]] * 2) if masked else None

    def all_three(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result: Tensor = torch.ops.ocvtp.slot_attention_with_attention(q, k, v, 0.3, 1e-2, mask)
        return result

    assert torch.autograd.gradcheck(all_three, (q, k, v))
    assert torch.autograd.gradgradcheck(all_three, (q, k, v))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_gradient_error_budget(backend: str, masked: bool, dtype: torch.dtype) -> None:
    narrow = [t.requires_grad_() for t in inputs((2, 13, 150), dtype)]
    wide = [t.detach().double().requires_grad_() for t in narrow]
    plain = [t.detach().clone().requires_grad_() for t in narrow]
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[:, 3] = not masked

    def loss(outputs: tuple[Tensor, ...]) -> Tensor:
        updates, mass, attention = outputs
        return updates.square().sum() + mass.sin().sum() + attention.square().sum()

    with running(backend):
        loss(torch.ops.ocvtp.slot_attention_with_attention(*narrow, 0.2, slot_mask=mask)).backward()
    for q, k, v in (plain, wide):
        loss(ops.slot_attention_with_attention.reference(q, k, v, 0.2, slot_mask=mask)).backward()
    for got, rough, exact in zip(narrow, plain, wide, strict=True):
        assert got.grad is not None and rough.grad is not None and exact.grad is not None
        assert_within_budget(got.grad, rough.grad, exact.grad)


@pytest.mark.parametrize("with_mask", [False, True])
def test_whole_step_equals_the_reference_with_gradients(with_mask: bool) -> None:
    pruner = random_pruner(dtype=torch.float64)
    weights = step_weights(pruner)
    slots = random_tokens(2, 7, 10, dtype=torch.float64).requires_grad_()
    tokens = random_tokens(2, 21, 10, seed=3, dtype=torch.float64).requires_grad_()
    mask = torch.tensor([[True] * 6 + [False]] * 2) if with_mask else None
    leaves = [slots, tokens, *weights]
    got = torch.ops.ocvtp.slot_attention_step(
        slots, tokens, tokens, list(weights), 0.3, slot_mask=mask
    )
    expected, _ = reference.slot_attention_step(slots, tokens, tokens, weights, 0.3, slot_mask=mask)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    probe = random_tokens(2, 7, 10, seed=9, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(got, leaves, probe),
        torch.autograd.grad(expected, leaves, probe),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"k": (2, 20, 23)}, ValueError, "k: expected size 24 in dimension 2"),
        ({"k": (3, 20, 24)}, ValueError, "k: expected size 2 in dimension 0"),
        ({"v": (2, 19, 5)}, ValueError, "v: expected size 20 in dimension 1"),
        ({"q": (7, 24)}, ValueError, r"q: expected shape \[B, K, D\], got \[7, 24\]"),
        ({"k": (2, 0, 24), "v": (2, 0, 5)}, ValueError, "k: expected at least one token"),
        ({"q": (2, 0, 24)}, ValueError, "q: expected at least one slot"),
    ],
)
def test_bad_shapes_are_named(
    change: dict[str, tuple[int, ...]], error: type[Exception], words: str
) -> None:
    shapes = {"q": (2, 7, 24), "k": (2, 20, 24), "v": (2, 20, 5), **change}
    with pytest.raises(error, match=words):
        torch.ops.ocvtp.slot_attention(*(torch.zeros(shapes[name]) for name in "qkv"), 0.2)


def test_bad_dtypes_are_named() -> None:
    q, k, v = inputs((2, 7, 20), torch.float32)
    with pytest.raises(TypeError, match=r"k: expected dtype torch\.float32"):
        torch.ops.ocvtp.slot_attention(q, k.double(), v, 0.2)
    with pytest.raises(TypeError, match="q: expected a floating dtype"):
        torch.ops.ocvtp.slot_attention(q.long(), k, v, 0.2)
    with pytest.raises(TypeError, match="slot_mask"):
        torch.ops.ocvtp.slot_attention(q, k, v, 0.2, slot_mask=torch.ones(2, 7))


def test_bi_level_truncation_changes_gradients_not_values() -> None:
    tokens = random_tokens(1, 15, 12, dtype=torch.float64)
    slots = random_tokens(1, 7, 10, seed=1, dtype=torch.float64).requires_grad_()
    both = []
    for rule in ("bi-level", None):
        pruner = random_pruner(small_config(agg_trunc_bp=rule), dtype=torch.float64)
        final, attention = pruner.attend(tokens, slots)
        (grad,) = torch.autograd.grad(final.sum(), slots)
        both.append((final.detach(), attention.detach(), grad))
    (a, b, c), (d, e, f) = both
    assert torch.equal(a, d) and torch.equal(b, e)
    assert not torch.allclose(c, f)
