"""slot_argmax on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from tests.csrc.shapes import Array, Case, Divide, any_shape, fuzz, token_blocks, wide

pytestmark = pytest.mark.usefixtures("kernels")


def log_attention(logits: Array) -> Array:
    """As ocvtp_kernels/ops/slot_attention has it."""
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
        token_score = case.unwritten(batch, tokens) if with_evidence else None
        outputs = (top, rest, best, token_score, picks, peak)
        struct = (case.exact(x), constant, slots, tokens, top_k, scale, *outputs)
        divide_blocks(lambda begin, end: case.kernels.slot_scores(struct, begin, end))
        divide_rows(lambda begin, end: case.kernels.slot_best(struct, begin, end))
        return [picks, peak] if token_score is None else [picks, peak, token_score]

    by_blocks = case.results(blocks, lambda divide: body(divide, lambda part: part(0, rows)))
    by_rows = case.results(rows, lambda divide: body(lambda part: part(0, blocks), divide))
    for (picks, peak, *token_score), (again, *_) in zip(by_blocks, by_rows, strict=True):
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
        for highest in token_score:
            case.assert_near(highest, scores.max(1), 16 * case.eps * size)
