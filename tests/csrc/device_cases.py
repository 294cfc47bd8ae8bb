"""Random cases of the CUDA ops, whose kernels run in the emulator, and what rounding may do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

Choice = TypeVar("Choice")
NAN, INF = math.nan, math.inf
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EPS = 1e-5
# Of rows: one vector and many, whole and not, and more than a block's threads take at once.
ROW_WIDTHS = (1, 7, 8, 33, 64, 129, 264, 512, 1024, 1048, 2048)
OUTLIER = 80  # so much larger than the rest are some channels of real ViTs


class DeviceCase:
    """What is drawn for one case: sizes, and tensors that NaN surrounds in memory."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self.dtype = self.pick(DTYPES)
        self.random = torch.Generator().manual_seed(self.between(0, 2**32 - 1))

    def pick(self, choices: Sequence[Choice]) -> Choice:
        return self._data.draw(st.sampled_from(choices))

    def between(self, low: int, high: int) -> int:
        return self._data.draw(st.integers(low, high))

    def flag(self) -> bool:
        return self.pick([False, True])

    def numbers(
        self, *shape: int, mean: float = 0, deviation: float = 1, outlier: int = 0
    ) -> Tensor:
        """Normal numbers in float64; every ``outlier``-th channel is `OUTLIER` times the rest."""
        x = deviation * torch.randn(shape, generator=self.random, dtype=torch.float64)
        if outlier:
            x[..., outlier - 1 :: outlier] *= OUTLIER
        return mean + x

    def rows(self, *shape: int, dtype: torch.dtype | None = None, **numbers: Any) -> Tensor:
        """Such rows in a dtype, apart from each other: by whole 16 bytes, or not, or not at all."""
        x = self.numbers(*shape, **numbers).to(dtype or self.dtype)
        before, after = self.pick([(0, 0), (8, 8), (16, 8), (1, 2), (3, 0)])
        return F.pad(x, (before, after), value=NAN).narrow(-1, before, shape[-1])


def around(x: Tensor) -> Tensor:
    """What surrounds the rows of `DeviceCase` in memory."""
    assert x._base is not None
    own = torch.zeros(x._base.numel(), dtype=torch.bool)
    own.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(True)
    return x._base.flatten()[~own]


def assert_near(got: Tensor, want: Tensor, slack: Tensor | float) -> None:
    """Within one rounding to its dtype and ``slack`` of float32's; NaN only where wanted."""
    x, rounding = got.double(), 1.001 * torch.finfo(got.dtype).eps / 2
    # A subnormal half rounds by 2^-25, however small.
    subnormal = 2**-25 if got.itemsize == 2 else 0
    holds = (x - want).abs() <= rounding * want.abs() + subnormal + slack
    holds = torch.where(want.isnan(), x.isnan(), holds)
    assert holds.all(), f"got {x[~holds]}, expected {want[~holds]}, at {(~holds).nonzero()}"


def norm_scale(x: Tensor) -> Tensor:
    return 1 / (x.var(-1, keepdim=True, unbiased=False) + EPS).sqrt()


def norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) * norm_scale(x)


def fuzz(test: Callable[[DeviceCase], None], part: int = 1) -> Callable[[], None]:
    """The test on a twentieth of the cases that ``--shapes`` says: the emulator is slow.

    ``part``: of a test that is slower still, a part of them.
    """
    profile = settings.get_profile("device")
    few = settings(profile, max_examples=-(-profile.max_examples // part))
    return few(given(st.builds(DeviceCase, st.data()))(test))
