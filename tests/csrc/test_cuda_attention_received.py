"""The CUDA kernels of attention_received, in the emulator, against float64."""

from __future__ import annotations

import pytest
import torch

from ocvtp_kernels import ops
from tests.csrc.device_cases import NAN, OUTLIER, DeviceCase, fuzz

pytestmark = pytest.mark.usefixtures("loaded", "poisoned")
emulated = torch.ops.ocvtp_emulated


@fuzz
def test_attention_received(case: DeviceCase) -> None:
    images, heads = case.between(1, 2), case.between(1, 3)
    queries, keys = case.pick([1, 5, 20, 64, 65, 70]), case.pick([1, 3, 33, 65, 128, 200])
    width, outlier = case.pick([1, 8, 24, 64, 72, 256]), case.pick([0, 50])
    q, k = (case.rows(images, heads, n, width, outlier=outlier) for n in (queries, keys))
    scale, row = width**-0.5, case.pick([-1, 0, queries - 1])
    got = emulated.attention_received(q, k, row, scale)
    some = q if row < 0 else q[:, :, row : row + 1]
    want = ops.attention_received.reference(some.double(), k.double(), "meanq", scale)
    # A logit is a float32 sum of products of about their size each; p changes by p times its error.
    size = OUTLIER**2 if outlier else 1
    relative = 2**-23 * (8 + width * size * scale * 4)
    assert ((got - want).abs() <= relative * want + 1e-30).all()
    assert torch.equal(emulated.attention_received(q, k, row, scale), got), "two runs differ"
    alone = emulated.attention_received(q[-1:], k[-1:], row, scale)
    assert torch.equal(alone, got[-1:]), "an image alone differs"


@pytest.mark.parametrize("row", [-1, 2])
def test_a_nan_key_spoils_its_image_alone(row: int) -> None:
    generator = torch.Generator().manual_seed(5)
    q, k = (torch.randn(2, 1, n, 16, generator=generator) for n in (3, 70))
    k[0, 0, 40, 0] = NAN
    got = emulated.attention_received(q, k, row, 0.25)
    assert got[0].isnan().all() and not got[1].isnan().any()
