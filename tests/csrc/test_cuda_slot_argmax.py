"""The CUDA kernels of slot_argmax, in the emulator, against float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from ocvtp_kernels.ops.slot_attention import reference as slots
from tests.csrc.device_cases import DTYPES, INF, NAN, DeviceCase, fuzz
from tests.csrc.slot_logits_cases import SlotLogitsCase

pytestmark = pytest.mark.usefixtures("loaded", "poisoned")
ops = torch.ops.ocvtp_emulated


@fuzz
def test_slot_argmax(case: DeviceCase) -> None:
    """The picks score highest, best first and distinct, but for what rounding may confuse."""
    given = SlotLogitsCase(case)
    top_k = case.between(1, min(3, given.tokens))
    picks, peak, token_score = outputs = given.argmax(top_k)
    logits, error = given.logits(masked=False)
    scores = slots.log_attention(logits)
    ranked = scores.sort(-1, descending=True).values[..., :top_k]
    slack = 2 * error + 2**-22 * ranked.abs()
    assert ((peak - ranked[..., 0]).abs() <= slack[..., 0]).all()
    assert (picks.sort(-1).values.diff(dim=-1) > 0).all(), "a slot picks a token twice"
    assert (scores.gather(-1, picks) >= ranked - 2 * slack).all()
    largest = scores.amax(1)
    assert ((token_score - largest).abs() <= 2 * error[..., 0] + 2**-22 * largest.abs()).all()
    last = given.image(-1 % given.batch).argmax(top_k)
    for alone, again, got in zip(last, given.argmax(top_k), outputs, strict=True):
        assert torch.equal(alone, got[-1:]), "an image alone differs"
        assert torch.equal(again, got), "two runs differ"


@partial(fuzz, part=5)
def test_ties_go_to_the_lowest_id(case: DeviceCase) -> None:
    """Every token three times; outliers would make other scores equal too, 0."""
    given = SlotLogitsCase(case, tokens=96, slots=case.pick([9, 140]), outliers=False)
    given.k[:, 32:] = given.k[:, :32].repeat(1, 2, 1)
    picks, _, _ = given.argmax(5)
    first, fourth = picks[..., :1], picks[..., 3:4]
    assert (first < 32).all() and (fourth < 32).all()
    assert torch.equal(picks[..., :3], first + torch.tensor([0, 32, 64]))
    assert torch.equal(picks[..., 3:], fourth + torch.tensor([0, 32]))


@partial(fuzz, part=5)
def test_a_nan_token_wins_nothing(case: DeviceCase) -> None:
    """Where all are NaN the lowest ids do, at -inf."""
    given = SlotLogitsCase(case, tokens=6, slots=case.pick([9, 140]))
    best = given.argmax(1)[0][0, 0, 0]
    given.k[:, best, 0] = NAN
    picks, _, token_score = given.argmax(6)
    assert (picks[..., 5] == best).all() and token_score[:, best].isnan().all()
    given.k[..., 0] = NAN
    picks, peak, _ = given.argmax(2)
    assert (picks == torch.arange(2)).all() and (peak == -INF).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_attention_tells_winners_apart_whose_attention_is_1(dtype: torch.dtype) -> None:
    token = torch.arange(40)
    lead = token * 7 % 40
    k = torch.zeros(1, 40, 8)
    k[0, token, token % 4] = 8 + 0.25 * lead
    q = 8 * torch.eye(4, 8).unsqueeze(0)
    picks, peak, _ = ops.slot_argmax(q.to(dtype), k.to(dtype), None, 8**-0.5, 1, False)
    want = torch.stack([token[slot::4][lead[slot::4].argmax()] for slot in range(4)])
    assert torch.equal(picks[0, :, 0], want) and (peak < 0).all()
