"""The CUDA kernels of slot_attention, in the emulator, against float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.csrc.competitions import WIDTHS, Competition
from tests.csrc.device_cases import EPS, NAN, DeviceCase, assert_near, fuzz

pytestmark = pytest.mark.usefixtures("loaded", "poisoned")


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
    # A last image alone leaves some of the GPU idle, and shares its groups of tokens among blocks.
    alone = given.image(-1 % given.batch).attention(v[-1:], with_attention=False)
    assert torch.equal(alone[0], updates[-1:]) and torch.equal(alone[1], mass[-1:])
    assert alone[2].numel() == 0
    again = given.attention(v, with_attention=False)
    assert torch.equal(again[0], updates) and torch.equal(again[1], mass), "two runs differ"


@partial(fuzz, share=5)
def test_groups_of_several_tiles(case: DeviceCase) -> None:
    given = Competition(case, tokens=case.pick([577, 609, 640]), slots=case.between(1, 5))
    v = case.rows(given.batch, given.tokens, 8)
    updates, mass, attention = assert_attention(given, v)
    alone = given.image(0).attention(v[:1])
    for a, b in zip(alone, (updates, mass, attention), strict=True):
        assert torch.equal(a, b[:1]), "an image alone differs"


@partial(fuzz, share=5)
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
