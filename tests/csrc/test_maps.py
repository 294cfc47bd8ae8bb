"""The CPU kernels of maps of slots by tokens, those of slots and of selection."""

from __future__ import annotations

import numpy as np
import pytest

from tests.csrc.shapes import Array, Case, Divide, fuzz, is_alike, module, token_blocks, wide

pytestmark = pytest.mark.usefixtures("kernels")


def any_shape(case: Case) -> tuple[int, int, int]:
    return case.between(1, 3), case.size(40), case.size(140)


@fuzz
def test_slot_softmax(case: Case) -> None:
    case.may_be_of_bfloat16()
    batch, slots, tokens = shape = any_shape(case)
    scale, masked = case.normal(), case.chance(50)
    x = case.stored(case.numbers(*shape, deviation=50 if case.chance(20) else 3))
    constant = case.numbers(batch, slots) if case.chance(50) else None
    live = case.random.random((batch, slots)) < (0.7 if masked else 1)
    live[:, 0] = True
    mask = case.exact(live, np.bool_) if masked else None
    room = module().softmax_scratch(slots)
    scratch = case.unwritten(room) if case.kind == "bfloat16" else None
    for (shares,) in case.run(
        "slot_softmax",
        batch * token_blocks(tokens),
        [x],
        lambda x: (x, constant, mask, slots, tokens, scale, scratch),
    ):
        shift = np.zeros((batch, slots, 1)) if constant is None else wide(constant)[..., None]
        logits = wide(case.seen(x)) * case.rounded(scale) + shift
        size = np.maximum(1, (np.abs(logits) + np.abs(shift)).max(1, keepdims=True))
        logits = np.where(live[..., None], logits, -np.inf)
        want = np.exp(logits - logits.max(1, keepdims=True))
        want /= want.sum(1, keepdims=True)
        allowed = (8 * case.eps * (size + 4) + case.lost) * want + 8 * case.tiny
        case.assert_near(case.seen(shares), want, allowed)


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
        shares = wide(case.seen(attention))
        shared = (shares * whole).sum(1, keepdims=True)
        size = ((1 + np.abs(shares)) * parts).sum(1, keepdims=True)
        factor = case.rounded(scale) * shares
        want = factor * (whole - shared)
        allowed = 16 * case.eps * size * np.abs(factor) + case.lost * np.abs(want)
        case.assert_near(case.seen(got), want, allowed)


@fuzz
def test_slot_owners(case: Case) -> None:
    batch, slots, tokens = shape = any_shape(case)
    # Whole numbers: many ties, which go to the first.
    attention = case.numbers(*shape, whole=case.chance(60))
    for share, owner in case.run(
        "slot_owners",
        batch * token_blocks(tokens),
        [case.unwritten(batch, tokens), case.ids(batch, tokens)],
        lambda share, owner: (attention, slots, tokens, share, owner),
    ):
        # NumPy's first maximum is a NaN where there is one, as PyTorch's.
        want = attention.argmax(1)
        assert (owner == want).all()
        assert is_alike(share, np.take_along_axis(attention, want[:, None], 1)[:, 0])


def log_attention(logits: Array) -> Array:
    """As ocvtp_kernels/ops/slot_attention/reference.py has it."""
    shifted = logits - logits.max(1, keepdims=True)
    others = np.exp(shifted)
    np.put_along_axis(others, logits.argmax(1, keepdims=True), 0, 1)
    return shifted - np.log1p(others.sum(1, keepdims=True))


@fuzz
def test_slot_argmax(case: Case) -> None:
    batch, slots, tokens = shape = any_shape(case)
    top_k = 1 if case.chance(60) else case.between(1, min(tokens, 4))
    scale, with_evidence = case.normal(), case.chance(50)
    constant = case.numbers(batch, slots) if case.chance(50) else None
    # Some tokens are copies of earlier ones: an earlier one must win.
    original = np.arange(tokens)
    for n in range(1, tokens):
        if case.chance(40):
            original[n] = original[case.between(0, n - 1)]
    x = case.exact(case.numbers(*shape, deviation=2)[..., original])
    blocks, rows = batch * token_blocks(tokens), batch * slots

    def body(divide_blocks: Divide, divide_rows: Divide) -> list[Array]:
        top, rest = case.unwritten(batch, tokens), case.unwritten(batch, tokens)
        best = case.unwritten(rows, token_blocks(tokens)) if top_k == 1 else None
        picks, peak = case.ids(batch, slots, top_k), case.unwritten(batch, slots)
        evidence = case.unwritten(batch, tokens) if with_evidence else None
        outputs = (top, rest, best, evidence, picks, peak)
        struct = (case.exact(x), constant, slots, tokens, top_k, scale, *outputs)
        divide_blocks(lambda begin, end: case.kernels.slot_scores(struct, begin, end))
        divide_rows(lambda begin, end: case.kernels.slot_best(struct, begin, end))
        return [picks, peak] if evidence is None else [picks, peak, evidence]

    by_blocks = case.results(blocks, lambda divide: body(divide, lambda part: part(0, rows)))
    by_rows = case.results(rows, lambda divide: body(lambda part: part(0, blocks), divide))
    for (picks, peak, *evidence), (again, *_) in zip(by_blocks, by_rows, strict=True):
        assert (picks == again).all() and (picks >= 0).all() and (picks < tokens).all()
        assert (np.diff(np.sort(picks)) > 0).all(), "a slot picks a token twice"
        assert (original[picks[..., 0]] == picks[..., 0]).all(), "a later copy won"
        if case.spoilt:
            continue
        shift = np.zeros((batch, slots, 1)) if constant is None else wide(constant)[..., None]
        logits = wide(x) * case.rounded(scale) + shift
        size = np.maximum(8, (np.abs(logits) + np.abs(shift)).max((1, 2)))[:, None]
        scores = log_attention(logits)
        ranked = -np.sort(-scores)[..., :top_k]
        case.assert_near(peak, ranked[..., 0], 16 * case.eps * size)
        picked = np.take_along_axis(scores, picks, 2)
        case.assert_near(picked, ranked, 32 * case.eps * size[..., None])
        for of_tokens in evidence:
            case.assert_near(of_tokens, scores.max(1), 16 * case.eps * size)
