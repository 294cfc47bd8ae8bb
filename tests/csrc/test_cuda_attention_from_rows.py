"""The CUDA kernels of attention_from_rows, in the emulator, against float64."""

from __future__ import annotations

import pytest
import torch

from ocvtp_kernels import ops
from tests.csrc.device_cases import INF, NAN, OUTLIER, DeviceCase, fuzz

pytestmark = pytest.mark.usefixtures("loaded", "poisoned")
emulated = torch.ops.ocvtp_emulated


@fuzz
def test_attention_from_rows(case: DeviceCase) -> None:
    images, heads = case.between(1, 2), case.between(1, 3)
    queries, keys = case.pick([1, 5, 20, 64, 65, 70]), case.pick([1, 3, 33, 65, 128, 200])
    width, outlier = case.pick([1, 8, 24, 64, 72, 256]), case.pick([0, 50])
    q, k = (case.rows(images, heads, n, width, outlier=outlier) for n in (queries, keys))
    last = valid = None
    if case.flag():
        last = torch.randint(-1, keys + 2, (images, queries), generator=case.random)
        if case.flag():
            # A row that counts sees a key.
            valid = torch.rand(images, keys, generator=case.random) < 0.7
            last = last.where(last >= valid.int().argmax(1, keepdim=True), -1)
            last = last.where(valid.any(1, keepdim=True), -1)
            k.masked_fill_(~valid[:, None, :, None], case.pick([NAN, INF]))
    scale = width**-0.5
    got = emulated.attention_from_rows(q, k, last, valid, scale)
    want = ops.attention_from_rows.reference(q.double(), k.double(), last, valid, scale=scale)
    # A logit is a float32 sum of products of about their size each; p changes by p times its error.
    size = OUTLIER**2 if outlier else 1
    relative = 2**-23 * (8 + width * size * scale * 4)
    assert ((got - want).abs() <= relative * want + 1e-30).all()
    assert torch.equal(emulated.attention_from_rows(q, k, last, valid, scale), got), "runs differ"
    alone = (None if each is None else each[-1:] for each in (q, k, last, valid))
    assert torch.equal(emulated.attention_from_rows(*alone, scale), got[-1:]), (
        "an image alone differs"
    )


@pytest.mark.parametrize("queries", [1, 20])
def test_a_nan_key_spoils_its_image_alone(queries: int) -> None:
    generator = torch.Generator().manual_seed(5)
    q, k = (torch.randn(2, 1, n, 16, generator=generator) for n in (queries, 70))
    k[0, 0, 40, 0] = NAN
    got = emulated.attention_from_rows(q, k, None, None, 0.25)
    assert got[0].isnan().all() and not got[1].isnan().any()


@pytest.mark.parametrize("queries", [3, 20])
def test_nan_of_a_row_stays_with_the_keys_that_it_sees(queries: int) -> None:
    generator = torch.Generator().manual_seed(5)
    q, k = (torch.randn(1, 1, n, 16, generator=generator) for n in (queries, 150))
    q[0, 0, 1] = NAN
    last = torch.full((1, queries), 100)
    last[0, 1] = 30
    valid = torch.arange(150)[None] != 7
    got = emulated.attention_from_rows(q, k, last, valid, 0.25)[0]
    sees = valid[0] & (torch.arange(150) <= 30)
    assert got[sees].isnan().all() and not got[~sees].isnan().any() and got[7] == 0
