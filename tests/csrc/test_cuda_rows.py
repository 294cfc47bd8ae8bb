"""The CUDA kernels of rows and of attention received, in the emulator, against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ocvtp_kernels import ops
from ocvtp_kernels.ops.gru_cell import gru_gates
from tests.csrc.device_cases import (
    DTYPES,
    EPS,
    INF,
    NAN,
    OUTLIER,
    DeviceCase,
    around,
    assert_near,
    fuzz,
)

pytestmark = pytest.mark.usefixtures("loaded", "poisoned")
emulated = torch.ops.ocvtp_emulated
# One vector and many, whole and not, and more than a block's threads take at once.
WIDTHS = (1, 7, 8, 33, 64, 129, 264, 512, 1024, 1048, 2048)


def norm_scale(x: Tensor) -> Tensor:
    return 1 / (x.var(-1, keepdim=True, unbiased=False) + EPS).sqrt()


def norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) * norm_scale(x)


def norm_slack(x: Tensor, rounded_sum: bool) -> Tensor:
    """What float32 arithmetic may add to the normalized values of a row.

    A few ulp of the largest, and of an ulp of the mean, which the float32 sum of two already has.
    """
    mean = x.mean(-1, keepdim=True)
    largest = (x - mean).abs().amax(-1, keepdim=True)
    slack = 2**-21 * largest
    return norm_scale(x) * (slack + 2**-23 * (mean.abs() + largest) if rounded_sum else slack)


@fuzz
def test_layer_norm(case: DeviceCase) -> None:
    # Half overflows at the last, and bfloat16 has no two numbers so close.
    mean = case.pick([0.0, 1000.0, 1e6][: 3 if case.dtype == torch.float32 else 2])
    shape = (case.between(1, 3), case.between(1, 3), case.pick(WIDTHS))
    x = case.rows(*shape, mean=mean, outlier=case.pick([0, 50, 100]))
    normed = emulated.layer_norm(x, EPS)
    exact = x.double()
    assert_near(normed, norm(exact), norm_slack(exact, False))
    dense = x.contiguous()
    alone = emulated.layer_norm(dense[-1:], EPS)
    assert torch.equal(alone, emulated.layer_norm(dense, EPS)[-1:]), "an image alone differs"


def assert_statistics(got: Tensor, slots: Tensor, weight: Tensor, slack: Tensor) -> None:
    """Mean, deviation and constant of slots in float64, whose norm has this slack."""
    mean, deviation, constant = got.unbind(-1)
    largest = slots.abs().amax(-1)
    assert_near(mean, slots.mean(-1), 2**-21 * largest)
    assert_near(deviation, 1 / norm_scale(slots).squeeze(-1), 2**-21 * largest)
    size = weight.double().abs() * (slack + 2**-20 * norm(slots).abs())
    assert_near(constant, norm(slots) @ weight.double(), size.sum(-1))


@fuzz
def test_start(case: DeviceCase) -> None:
    width, outlier = case.pick(WIDTHS), case.pick([0, 64])
    tokens = case.rows(case.between(1, 2), case.between(1, 3), width, outlier=outlier)
    slots = case.rows(1, case.between(1, 5), width, mean=case.pick([0.0, 30.0]), outlier=outlier)
    weight = case.rows(width)
    x, normed, statistics = emulated.start(tokens, slots, weight, EPS)
    exact, exact_slots = tokens.double(), slots.double()
    assert_near(x, norm(exact), norm_slack(exact, False))
    slack = norm_slack(exact_slots, False)
    assert_near(normed, norm(exact_slots), slack)
    assert_statistics(statistics, exact_slots, weight, slack)


@fuzz
def test_norm_slots(case: DeviceCase) -> None:
    shape = (case.between(1, 2), case.between(1, 3), case.pick([*WIDTHS, 8192]))
    outlier, mean = case.pick([0, 64]), case.pick([0.0, 300.0])
    x = case.rows(*shape, dtype=torch.float32, mean=mean, outlier=outlier)
    y, weight = case.rows(*shape, outlier=outlier), case.rows(shape[-1])
    total, normed, statistics = emulated.norm_slots(x, y, weight, EPS)
    exact = x.double() + y.double()
    assert total.dtype == torch.float32 and normed.dtype == case.dtype
    assert_near(total, exact, 2**-23 * exact.abs())
    slack = norm_slack(exact, True)
    assert_near(normed, norm(exact), slack)
    assert_statistics(statistics, exact, weight, slack)


@fuzz
def test_bias_gelu(case: DeviceCase) -> None:
    shape = (case.between(1, 2), case.between(1, 3), case.pick(WIDTHS))
    x, bias = case.rows(*shape, deviation=4), case.rows(shape[-1])
    exact = x.double() + bias.double()
    emulated.bias_gelu_(x, bias)
    assert_near(x, F.gelu(exact), 2**-22 * (1 + exact.abs()))
    assert around(x).isnan().all(), "wrote past the rows"


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_rows(dtype: torch.dtype) -> None:
    x = torch.full((3, 40), 7.0, dtype=dtype)
    x[1, 5], x[2, 5] = NAN, INF
    constant, *hidden = emulated.layer_norm(x, EPS)
    assert (constant == 0).all()
    assert all(row.isnan().all() for row in hidden)


@fuzz
def test_gru_gates(case: DeviceCase) -> None:
    kept = case.pick([case.dtype, torch.float32])
    images, rows, width = case.between(1, 2), case.between(1, 5), case.pick([*WIDTHS, 8192])
    states = case.pick([1, images])
    size, shifted, of_normed = case.pick([1.0, 2.0, 8.0]), case.flag(), case.flag()
    x = case.rows(images, rows, 3 * width, deviation=size)
    h_gates = case.rows(states, rows, 3 * width, deviation=size)
    h = case.rows(states, rows, width, dtype=kept, outlier=50 if width > 64 else 0)
    shift, sums, bias = (case.rows(3 * width) for _ in range(3))
    statistics = case.rows(states, rows, 3, dtype=torch.float32)
    # Some so small that eps counts.
    mass = 20 * torch.rand(images, rows, generator=case.random) ** case.pick([1, 8])
    mass[0, 0] = 0
    of_x = (shift, mass) if shifted else (None, None)
    of_h = (statistics, sums, bias) if of_normed else (None, None, None)
    state, normed = emulated.gru_gates(x, h_gates, h, *of_x, *of_h, EPS, True)
    share = (mass / (mass.double() + EPS)).unsqueeze(-1) if shifted else 0
    hidden = h_gates.double()
    if of_normed:
        mean, deviation, _ = statistics.double().split(1, -1)
        hidden = deviation * hidden + mean * sums.double() + bias.double()
        size += hidden.abs().max().item()
    want = gru_gates(x.double() + share * shift.double(), hidden, h.double())
    # A gate's argument of size s is known to s ulp, and slopes are at most 1 but for z (n - h).
    mean = want.mean(-1, keepdim=True)
    largest = (want.abs() + mean.abs()).amax(-1, keepdim=True)
    slack = 2**-22 * (1 + size) * (1 + largest)
    assert state.dtype == torch.float32 and normed.dtype == case.dtype
    assert_near(state, want, slack)
    assert_near(normed, norm(want), 2 * slack * norm_scale(want) * (1 + norm(want).abs()))
    bare, _ = emulated.gru_gates(x, h_gates, h, *of_x, *of_h, EPS, False)
    assert torch.equal(bare, state.to(kept)), "the norm changes the state"
    last = [t if t is None or t.dim() == 1 else t[:, -1:] for t in (x, h_gates, h, *of_x, *of_h)]
    alone, _ = emulated.gru_gates(*last, EPS, True)
    assert torch.equal(alone, state[:, -1:]), "a row alone differs"


@pytest.mark.parametrize("update", [-1e4, 1e4])
@pytest.mark.parametrize("fresh", [-1e4, 1e4])
def test_saturated_gates_are_no_nan(update: float, fresh: float) -> None:
    x = torch.tensor([[[-1e4, update, fresh]]])
    h_gates, h = torch.tensor([[[0.0, 0.0, 3.0]]]), torch.tensor([[[0.25]]])
    state, _ = emulated.gru_gates(x, h_gates, h, *[None] * 5, EPS, False)
    assert state.item() == (0.25 if update > 0 else 1 if fresh > 0 else -1)


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
