"""The CUDA kernels of the competition, in the emulator, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ocvtp_kernels.slots import reference as slots
from tests.csrc.device_cases import DTYPES, EPS, INF, NAN, DeviceCase, assert_near, fuzz

pytestmark = pytest.mark.usefixtures("loaded", "poisoned")
ops = torch.ops.ocvtp_emulated

# Slots within a tile, a tile of them, two tiles, and more than a tile holds.
SLOTS = (1, 7, 16, 64, 65, 128, 130, 200)
TOKENS = (1, 31, 32, 33, 50, 100, 200)
WIDTHS = (8, 9, 24, 61, 64, 72, 136)


class Competition:
    """Random slots and tokens, their logits in float64, and the most that these may be off by."""

    def __init__(
        self, case: DeviceCase, tokens: int = 0, slots: int = 0, outliers: bool = True
    ) -> None:
        self.batch, self.slots = case.between(1, 2), slots or case.pick(SLOTS)
        self.tokens, depth = tokens or case.pick(TOKENS), case.pick(WIDTHS)
        self.outlier = case.pick([0, 24, 36]) if outliers else 0
        self.q = case.rows(self.batch, self.slots, depth, outlier=self.outlier)
        self.k = case.rows(self.batch, self.tokens, depth, outlier=self.outlier)
        self.scale = depth**-0.5
        # A column of a wider tensor, NaN beside it.
        columns = case.rows(self.batch, self.slots, 3, dtype=torch.float32)
        columns[..., ::2] = NAN
        self.constant = columns[..., 1] if case.flag() else None
        self.mask = None
        if case.flag():
            self.mask = torch.rand(self.batch, self.slots, generator=case.random) < 2 / 3
            self.mask[:, self.slots // 2] = True

    def logits(self, masked: bool) -> tuple[Tensor, Tensor]:
        """``[B, K, N]``, and for each image the error of float32 sums ``[B, 1, 1]``."""
        constant = torch.zeros(1, 1) if self.constant is None else self.constant.double()
        added = constant.unsqueeze(-1)
        q, k = self.q.double(), self.k.double()
        exact = slots.slot_logits(q, k, self.scale) + added
        sizes = slots.slot_logits(q.abs(), k.abs(), self.scale) + added.abs()
        if masked and self.mask is not None:
            exact = exact.masked_fill(~self.mask.unsqueeze(-1), -INF)
            sizes = sizes.masked_fill(~self.mask.unsqueeze(-1), 0)
        # Sums of random signs lose far less than a rounding of each product.
        return exact, sizes.amax((1, 2), keepdim=True) * 2**-22 + 2**-21

    def argmax(self, top_k: int, evidence: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        return ops.slot_argmax(self.q, self.k, self.constant, self.scale, top_k, evidence)

    def image(self, index: int) -> Competition:
        """One image alone."""
        alone = object.__new__(Competition)
        alone.__dict__ = dict(self.__dict__)
        for name in ("q", "k", "constant", "mask"):
            tensor = getattr(self, name)
            setattr(alone, name, None if tensor is None else tensor[index : index + 1])
        return alone

    def attention(self, v: Tensor, with_attention: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        given = (self.q, self.k, v, self.constant, self.mask, self.scale, EPS)
        return ops.slot_attention(*given, with_attention)


def assert_attention(case: Competition, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    updates, mass, attention = got = case.attention(v)
    logits, error = case.logits(masked=True)
    shares = logits.softmax(1)
    assert_near(attention, shares, shares * 2 * error + 1e-37)
    want = shares.sum(-1)
    assert_near(mass, want, want * (2 * error[..., 0] + 2**-20) + 1e-30)
    # A weight is rounded on its way to the product; half's last step is 2^-25 / 2^14.
    rounding = torch.finfo(v.dtype).eps / 2
    slack = shares * (4 * error + rounding + 2**-20) + (2**-39 if v.itemsize == 2 else 0)
    total = (want + EPS).unsqueeze(-1)
    assert_near(updates, shares @ v.double() / total, slack @ v.double().abs() / total + 1e-30)
    return got


@fuzz
def test_slot_attention(case: DeviceCase) -> None:
    given = Competition(case)
    v = case.rows(given.batch, given.tokens, case.pick([*WIDTHS, 264]), outlier=given.outlier)
    updates, mass, _ = assert_attention(given, v)
    # A last image alone leaves some of the chip idle, and shares its groups of tokens among blocks.
    alone = given.image(-1 % given.batch).attention(v[-1:], with_attention=False)
    assert torch.equal(alone[0], updates[-1:]) and torch.equal(alone[1], mass[-1:])
    assert alone[2].numel() == 0
    again = given.attention(v, with_attention=False)
    assert torch.equal(again[0], updates) and torch.equal(again[1], mass), "two runs differ"


@fuzz
def test_groups_of_several_tiles(case: DeviceCase) -> None:
    given = Competition(case, tokens=1200, slots=case.between(1, 5))
    v = case.rows(given.batch, 1200, 8)
    updates, mass, attention = assert_attention(given, v)
    alone = given.image(0).attention(v[:1])
    for a, b in zip(alone, (updates, mass, attention), strict=True):
        assert torch.equal(a, b[:1]), "an image alone differs"


@fuzz
def test_nan_among_keys_and_masked_slots(case: DeviceCase) -> None:
    """One spoils its token's shares, as a softmax does; that of a masked slot spoils nothing."""
    given = Competition(case, slots=case.pick([7, 70, 140]))
    v = case.rows(given.batch, given.tokens, 8)
    given.mask = torch.ones(given.batch, given.slots, dtype=torch.bool)
    given.mask[:, 3] = False
    clean = given.attention(v)
    given.q[:, 3, 0] = NAN
    for a, b in zip(given.attention(v), clean, strict=True):
        assert torch.equal(a, b)
    token = case.between(0, given.tokens - 1)
    given.k[0, token, 0] = NAN
    updates, mass, attention = given.attention(v)
    spoilt = attention.isnan()
    live = given.mask[0]
    assert spoilt[0, live, token].all() and spoilt.sum() == spoilt[0, :, token].sum()
    assert mass[0, live].isnan().all() and updates[0, live].isnan().all()
    assert not mass[1:].isnan().any() and not updates[1:].isnan().any()


@fuzz
def test_slot_argmax(case: DeviceCase) -> None:
    """The picks score highest, best first and distinct, but for what rounding may confuse."""
    given = Competition(case)
    top_k = case.between(1, min(3, given.tokens))
    picks, peak, evidence = given.argmax(top_k)
    logits, error = given.logits(masked=False)
    scores = slots.log_attention(logits)
    ranked = scores.sort(-1, descending=True).values[..., :top_k]
    slack = 2 * error + 2**-22 * ranked.abs()
    assert ((peak - ranked[..., 0]).abs() <= slack[..., 0]).all()
    assert (picks.sort(-1).values.diff(dim=-1) > 0).all(), "a slot picks a token twice"
    assert (scores.gather(-1, picks) >= ranked - 2 * slack).all()
    largest = scores.amax(1)
    assert ((evidence - largest).abs() <= 2 * error[..., 0] + 2**-22 * largest.abs()).all()
    last = given.image(-1 % given.batch).argmax(top_k)
    for alone, again, got in zip(last, given.argmax(top_k), (picks, peak, evidence), strict=True):
        assert torch.equal(alone, got[-1:]), "an image alone differs"
        assert torch.equal(again, got), "two runs differ"


@fuzz
def test_ties_go_to_the_lowest_id(case: DeviceCase) -> None:
    """Every token three times; outliers would make other scores equal too, 0."""
    given = Competition(case, tokens=96, slots=case.pick([9, 140]), outliers=False)
    given.k[:, 32:] = given.k[:, :32].repeat(1, 2, 1)
    picks, _, _ = given.argmax(5)
    first, fourth = picks[..., :1], picks[..., 3:4]
    assert (first < 32).all() and (fourth < 32).all()
    assert torch.equal(picks[..., :3], first + torch.tensor([0, 32, 64]))
    assert torch.equal(picks[..., 3:], fourth + torch.tensor([0, 32]))


@fuzz
def test_a_nan_token_wins_nothing(case: DeviceCase) -> None:
    """Where all are NaN the lowest ids do, at -inf."""
    given = Competition(case, tokens=6, slots=case.pick([9, 140]))
    best = given.argmax(1)[0][0, 0, 0]
    given.k[:, best, 0] = NAN
    picks, _, evidence = given.argmax(6)
    assert (picks[..., 5] == best).all() and evidence[:, best].isnan().all()
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
