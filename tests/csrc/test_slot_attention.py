"""The kernels of slot_attention and its gradient on the CPU, against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.csrc.shapes import (
    EPS,
    ISAS,
    Case,
    any_shape,
    fuzz,
    is_alike,
    module,
    of_half_bits,
    on_every_isa,
    token_blocks,
    wide,
)

pytestmark = pytest.mark.usefixtures("kernels")


@fuzz
def test_slot_softmax(case: Case) -> None:
    case.may_be_of_bfloat16()
    batch, slots, tokens = shape = any_shape(case)
    scale, masked = case.normal(), case.chance(50)
    x = case.stored(case.numbers(*shape, deviation=50 if case.chance(20) else 3))
    constant = case.numbers(batch, slots) if case.chance(50) else None
    unmasked = case.random.random((batch, slots)) < (0.7 if masked else 1)
    unmasked[:, 0] = True
    mask = case.exact(unmasked, np.bool_) if masked else None
    room = module().softmax_scratch(slots)
    scratch = case.unwritten(room) if case.kind == "bfloat16" else None
    for (weights,) in case.run(
        "slot_softmax",
        batch * token_blocks(tokens),
        [x],
        lambda x: (x, constant, mask, slots, tokens, scale, scratch),
    ):
        shift = np.zeros((batch, slots, 1)) if constant is None else wide(constant)[..., None]
        logits = wide(case.seen(x)) * case.rounded(scale) + shift
        size = np.maximum(1, (np.abs(logits) + np.abs(shift)).max(1, keepdims=True))
        logits = np.where(unmasked[..., None], logits, -np.inf)
        want = np.exp(logits - logits.max(1, keepdims=True))
        want /= want.sum(1, keepdims=True)
        allowed = (8 * case.eps * (size + 4) + case.lost) * want + 8 * case.tiny
        case.assert_near(case.seen(weights), want, allowed)


@fuzz
def test_slot_softmax_backward(case: Case) -> None:
    case.may_be_of_bfloat16()
    batch, slots, tokens = shape = any_shape(case)
    scale = case.normal()
    attention, grad = case.stored(case.numbers(*shape)), case.stored(case.numbers(*shape))
    given = case.stored(case.numbers(*shape)) if case.chance(50) else None
    delta, mass = case.numbers(batch, slots), case.numbers(batch, slots)
    for (got,) in case.run(
        "slot_softmax_backward",
        batch * token_blocks(tokens),
        [grad],
        lambda grad: (attention, delta, mass, given, slots, tokens, scale, grad),
    ):
        extra = np.zeros(shape) if given is None else wide(case.seen(given))
        terms = [wide(case.seen(grad)), -wide(delta)[..., None], wide(mass)[..., None], extra]
        whole = sum(terms[1:], terms[0])
        parts = sum(map(np.abs, terms[1:]), np.abs(terms[0]))
        weights = wide(case.seen(attention))
        shared = (weights * whole).sum(1, keepdims=True)
        size = ((1 + np.abs(weights)) * parts).sum(1, keepdims=True)
        factor = case.rounded(scale) * weights
        want = factor * (whole - shared)
        allowed = 16 * case.eps * size * np.abs(factor) + case.lost * np.abs(want)
        case.assert_near(case.seen(got), want, allowed)


@fuzz
def test_slot_mass(case: Case) -> None:
    case.may_be_of_bfloat16()
    rows, width = case.size(20), case.size(140)
    x = case.stored(case.numbers(rows, width))
    for (mass,) in case.run(
        "slot_mass", rows, [case.unwritten(rows)], lambda mass: (x, width, mass)
    ):
        terms = wide(case.seen(x))
        case.assert_near(mass, terms.sum(1), 16 * case.eps * np.abs(terms).sum(1))


@fuzz
def test_per_mass(case: Case) -> None:
    case.may_be_of_bfloat16()
    rows, width, with_dot = case.size(20), case.size(140), case.chance(50)
    x, y = (case.stored(case.numbers(rows, width)) for _ in range(2))
    mass = case.positive(rows)
    out = [case.stored(case.unwritten(rows, width)), case.unwritten(rows)][: 1 + with_dot]
    for scaled, *dot in case.run(
        "per_mass",
        rows,
        out,
        lambda scaled, dot=None: (x, y if with_dot else None, mass, width, EPS, scaled, dot),
    ):
        want = wide(case.seen(x)) / (wide(mass) + case.rounded(EPS))[:, None]
        case.assert_near(case.seen(scaled), want, (4 * case.eps + case.lost) * np.abs(want))
        for sums in dot:
            terms = want * case.seen(y)
            case.assert_near(sums, terms.sum(1), 32 * case.eps * np.abs(terms).sum(1))


def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    """All bfloat16 values, by factors that give ties, subnormal values and infinities."""
    x = np.arange(2**16, dtype=np.uint16)
    numbers = torch.from_numpy(x).view(torch.bfloat16).float()
    # Divisors 1, 2/3, 2 to 16, and some that leave all bits.
    for mass in (0, -1 / 3, 1, 3, 7, 15, 0.1, -0.99):
        sums = torch.tensor(mass) + 1
        want = (numbers / sums).bfloat16().float().numpy()
        for isa in on_every_isa((*ISAS, "avx512_bf16")):
            out = np.zeros_like(x)
            struct = (x, None, np.float32([mass]), len(x), 1.0, out, None)
            module().bfloat16.per_mass(struct, 0, 1)
            assert is_alike(of_half_bits(out, "bfloat16"), want), (isa, mass)
