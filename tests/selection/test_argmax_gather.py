from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import use_backend
from ocvtp_kernels.ops.slot_attention.reference import slot_logits
from tests.cases import CPU_WAYS, assert_kept, assert_within_budget, random_tokens, running

EVERY_WAY = pytest.mark.parametrize("way", CPU_WAYS)


def inputs(
    num_slots: int, num_tokens: int, dtype: torch.dtype = torch.float32, outliers: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    q = random_tokens(3, num_slots, 24, dtype=dtype, outliers=outliers)
    k = random_tokens(3, num_tokens, 24, seed=1, dtype=dtype)
    return q, k, random_tokens(3, num_tokens, 5, seed=2, dtype=dtype)


def exact_attention(q: Tensor, k: Tensor) -> Tensor:
    return slot_logits(q.double(), k.double(), None).softmax(dim=1)


@EVERY_WAY
@pytest.mark.parametrize("num_slots", [1, 7, 64, 65, 100])
@pytest.mark.parametrize("num_tokens", [1, 50, 577])
def test_slot_argmax_is_exact_in_float32(way: str, num_slots: int, num_tokens: int) -> None:
    q, k, _ = inputs(num_slots, num_tokens)
    with running(way):
        ids, max_prob = torch.ops.ocvtp.slot_argmax(q, k)
    exact = exact_attention(q, k)
    if num_slots > 1:
        assert torch.equal(ids, exact.argmax(-1))
    else:
        # One slot takes all of every token: all tie, and the lowest id wins.
        assert (ids == 0).all()
    assert_within_budget(max_prob, slot_logits(q, k, None).softmax(dim=1).amax(-1), exact.amax(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("outliers", [False, True])
def test_half_precision_regret(dtype: torch.dtype, outliers: bool) -> None:
    q, k, _ = inputs(64, 577, dtype, outliers)
    ids, _ = torch.ops.ocvtp.slot_argmax(q, k)
    exact = exact_attention(q, k)
    chosen = exact.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    assert (chosen >= (1 - 1e-2) * exact.amax(-1)).all()


@EVERY_WAY
def test_picks_are_told_apart_where_the_attention_rounds_to_one(way: str) -> None:
    # Slot 0 leads by 20 and more, so that its float32 attention is 1 on every token.
    lead = 20 + torch.arange(30.0).roll(11)
    q, k = torch.eye(2)[None], torch.stack([lead, torch.zeros(30)], dim=-1)[None]
    assert (slot_logits(q, k, 1.0).softmax(dim=1)[0, 0] == 1).all()
    with running(way):
        ids, max_prob = torch.ops.ocvtp.slot_argmax(q, k, 1.0)
    assert ids[0].tolist() == [int(lead.argmax()), int(lead.argmin())]
    assert max_prob[0, 0] == 1


@EVERY_WAY
@pytest.mark.parametrize("top_k", [1, 2])
def test_equals_its_parts(way: str, top_k: int) -> None:
    q, k, final_tokens = inputs(7, 33)
    importance = random_tokens(3, 33, seed=5)
    with running(way):
        tokens, ids = torch.ops.ocvtp.argmax_gather(q, k, final_tokens, importance, 16, top_k=top_k)
    exact = exact_attention(q, k)
    max_prob, topk_ids = exact.topk(top_k, dim=-1)
    expected = torch.ops.ocvtp.resolve_picks(topk_ids, max_prob[..., 0], importance, 16)
    assert torch.equal(ids, expected)
    assert torch.equal(tokens, torch.stack([f[i] for f, i in zip(final_tokens, ids, strict=True)]))


@EVERY_WAY
def test_without_importance_the_slots_evidence_pads(way: str) -> None:
    q, k, final_tokens = inputs(5, 33)
    with running(way):
        _, ids = torch.ops.ocvtp.argmax_gather(q, k, final_tokens, None, 20)
    exact = exact_attention(q, k)
    for image in range(3):
        picked = set(exact[image].argmax(-1).tolist())
        token_score = exact[image].amax(0)
        rest = sorted(set(range(33)) - picked, key=lambda n: -float(token_score[n]))
        assert ids[image].tolist() == sorted([*picked, *rest[: 20 - len(picked)]])


@EVERY_WAY
@pytest.mark.parametrize("budget", [1, 2, 33])
def test_equal_slots_still_keep_the_whole_budget(way: str, budget: int) -> None:
    q, k, final_tokens = inputs(7, 33)
    with running(way):
        _, ids = torch.ops.ocvtp.argmax_gather(
            q[:, :1].expand(-1, 7, -1), k, final_tokens, None, budget
        )
    assert_kept(ids, budget, 33)


def test_gradient_reaches_the_kept_rows_only() -> None:
    q, k, final_tokens = inputs(7, 33, torch.float64)
    final_tokens.requires_grad_()
    tokens, ids = torch.ops.ocvtp.argmax_gather(q, k, final_tokens, None, 9)
    tokens.sum().backward()
    assert final_tokens.grad is not None and not ids.requires_grad
    expected = torch.zeros_like(final_tokens)
    for image in range(3):
        expected[image, ids[image]] = 1
    assert torch.equal(final_tokens.grad, expected)


def merged_by_hand(q: Tensor, k: Tensor, final_tokens: Tensor) -> tuple[Tensor, Tensor]:
    attention = exact_attention(q, k)
    merged = torch.zeros(q.shape[0], q.shape[1], final_tokens.shape[2], dtype=torch.float64)
    mass = torch.zeros(q.shape[:2], dtype=torch.float64)
    for image in range(q.shape[0]):
        for token in range(k.shape[1]):
            column = attention[image, :, token]
            owner = int(column.argmax())
            merged[image, owner] += column[owner] * final_tokens[image, token].double()
            mass[image, owner] += column[owner]
    return merged / mass.clamp_min(1e-30)[..., None], mass


@EVERY_WAY
def test_merge_is_the_weighted_mean_of_what_a_slot_owns(way: str) -> None:
    q, k, final_tokens = inputs(40, 33, torch.float64)
    with running(way):
        merged, mass = torch.ops.ocvtp.merge(q, k, final_tokens)
    expected, expected_mass = merged_by_hand(q, k, final_tokens)
    torch.testing.assert_close(merged, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mass, expected_mass, rtol=1e-12, atol=1e-12)
    # More slots than tokens: some own nothing, and say so.
    assert (mass == 0).any() and (merged[mass == 0] == 0).all()


@EVERY_WAY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_merge_error_budget(way: str, dtype: torch.dtype) -> None:
    q, k, final_tokens = inputs(7, 577, dtype)
    with running(way):
        merged, _ = torch.ops.ocvtp.merge(q, k, final_tokens)
    with use_backend("reference"):
        plain, _ = torch.ops.ocvtp.merge(q, k, final_tokens)
    assert_within_budget(merged, plain, merged_by_hand(q, k, final_tokens)[0])


@EVERY_WAY
@pytest.mark.parametrize(
    ("narrow", "wide"), [(torch.float32, torch.float64), (torch.float16, torch.float32)], ids=str
)
def test_merge_takes_final_tokens_of_another_dtype(
    way: str, narrow: torch.dtype, wide: torch.dtype
) -> None:
    for dtype, of_final in ((narrow, wide), (wide, narrow)):
        q, k, _ = inputs(7, 70, dtype)
        # Rows that stand apart, and whose channels do.
        final_tokens = random_tokens(3, 6, 70, seed=2, dtype=of_final).mT[..., 1:]
        with running(way):
            got = torch.ops.ocvtp.merge(q, k, final_tokens)
        with use_backend("reference"):
            plain = torch.ops.ocvtp.merge(q, k, final_tokens)
        assert [x.dtype for x in got] == [of_final, dtype]
        for ours, theirs, exact in zip(got, plain, merged_by_hand(q, k, final_tokens), strict=True):
            assert_within_budget(ours, theirs, exact)


@EVERY_WAY
def test_merge_gives_ties_and_nan_to_the_first_slot(way: str) -> None:
    q, k, final_tokens = inputs(7, 70)
    # Products of whole numbers do not round.
    q, k = q.round(), k.round()
    q[:, 5] = q[:, 3]
    k[0, 20] = 0
    k[1, 40] = torch.nan
    with running(way):
        merged, mass = torch.ops.ocvtp.merge(q, k, final_tokens)
    attention = slot_logits(q, k, None).softmax(dim=1)
    assert (mass[:, 5] == 0).all() and (mass[:, 3] > 0).all()
    owned = attention.argmax(1)[..., None] == torch.arange(7)
    assert owned[0, 20, 0] and owned[1, 40, 0]
    shares = attention.where(owned.mT, 0)
    torch.testing.assert_close(mass, shares.sum(-1), equal_nan=True)
    spoilt = torch.zeros(3, 7, dtype=torch.bool)
    spoilt[1, 0] = True
    assert torch.equal(mass.isnan(), spoilt)
    assert torch.equal(merged.isnan().all(-1), spoilt) and torch.equal(
        merged.isnan().any(-1), spoilt
    )


def test_merge_gradient_in_final() -> None:
    q, k, final_tokens = inputs(4, 9, torch.float64)
    final_tokens.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: torch.ops.ocvtp.merge(q, k, f)[0], final_tokens)
