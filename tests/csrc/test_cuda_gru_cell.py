"""The CUDA kernel of the gates of the GRU, in the emulator, against float64."""

from __future__ import annotations

import pytest
import torch

from ocvtp_kernels.ops.gru_cell import gru_gates
from tests.csrc.device_cases import EPS, ROW_WIDTHS, DeviceCase, assert_near, fuzz, norm, norm_scale

pytestmark = pytest.mark.usefixtures("loaded", "poisoned")
ops = torch.ops.ocvtp_emulated


@fuzz
def test_gru_gates(case: DeviceCase) -> None:
    kept = case.pick([case.dtype, torch.float32])
    images, rows, width = case.between(1, 2), case.between(1, 5), case.pick([*ROW_WIDTHS, 8192])
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
    state, normed = ops.gru_gates(x, h_gates, h, *of_x, *of_h, EPS, True)
    factor = (mass / (mass.double() + EPS)).unsqueeze(-1) if shifted else 0
    hidden = h_gates.double()
    if of_normed:
        mean, deviation, _ = statistics.double().split(1, -1)
        hidden = deviation * hidden + mean * sums.double() + bias.double()
        size += hidden.abs().max().item()
    want = gru_gates(x.double() + factor * shift.double(), hidden, h.double())
    # A gate's argument of size s is known to s ulp, and slopes are at most 1 but for z (n - h).
    mean = want.mean(-1, keepdim=True)
    largest = (want.abs() + mean.abs()).amax(-1, keepdim=True)
    slack = 2**-22 * (1 + size) * (1 + largest)
    assert state.dtype == torch.float32 and normed.dtype == case.dtype
    assert_near(state, want, slack)
    assert_near(normed, norm(want), 2 * slack * norm_scale(want) * (1 + norm(want).abs()))
    bare, _ = ops.gru_gates(x, h_gates, h, *of_x, *of_h, EPS, False)
    assert torch.equal(bare, state.to(kept)), "the norm changes the state"
    last = [t if t is None or t.dim() == 1 else t[:, -1:] for t in (x, h_gates, h, *of_x, *of_h)]
    alone, _ = ops.gru_gates(*last, EPS, True)
    assert torch.equal(alone, state[:, -1:]), "a row alone differs"


@pytest.mark.parametrize("update", [-1e4, 1e4])
@pytest.mark.parametrize("fresh", [-1e4, 1e4])
def test_saturated_gates_are_no_nan(update: float, fresh: float) -> None:
    x = torch.tensor([[[-1e4, update, fresh]]])
    h_gates, h = torch.tensor([[[0.0, 0.0, 3.0]]]), torch.tensor([[[0.25]]])
    state, _ = ops.gru_gates(x, h_gates, h, *[None] * 5, EPS, False)
    assert state.item() == (0.25 if update > 0 else 1 if fresh > 0 else -1)
