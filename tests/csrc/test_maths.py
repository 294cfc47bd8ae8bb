"""csrc/common/maths.h over the functions' ranges, in units of epsilon, and special values."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from tests.csrc.shapes import Array, module, on_every_isa, wide
from tests.csrc.special import erfc, sigmoid

pytestmark = pytest.mark.usefixtures("kernels")
STEPS = 100000
LANES = 16
INF, NAN = float("inf"), float("nan")
ORACLES: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp,
    "decay": np.exp,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "gelu": lambda x: x * erfc(-x * np.sqrt(np.longdouble(0.5))) / 2,
}


def ranges(dtype: np.dtype) -> list[tuple[str, float, float, float, float]]:
    """A function, from, to, the minimal size that its errors are relative to, epsilons allowed."""
    single, tiny = dtype == np.float32, float(np.finfo(dtype).tiny)
    # As csrc/common/maths.h has them.
    lowest, smallest, highest = (-104, -87, 88.7) if single else (-745.2, -708, 709.7)
    return [
        ("exp", lowest, highest, tiny, 1.5),
        ("exp", -1, 1, 0, 1.5),
        ("decay", smallest, 0, 0, 1.5),
        ("log1p", 0, 1e-4, tiny, 2.5),
        ("log1p", 0, 4, tiny, 2.5),
        ("log1p", 0, 1e38 if single else 1e300, tiny, 2.5),
        ("tanh", -1e-3, 1e-3, tiny, 3),
        ("tanh", -30, 30, tiny, 3),
        ("sigmoid", -80, 40, 0, 4),
        ("gelu", -1, 9, tiny, 6),
        # The argument's own rounding grows with its square there.
        ("gelu", -9, -1, 0, 80),
        ("gelu", -20, 20, 1, 2),
    ]


def specials(dtype: np.dtype) -> dict[str, dict[float, float]]:
    """What a function gives of a value, exactly."""
    high, tiny = float(np.finfo(dtype).max), float(np.finfo(dtype).tiny)
    return {
        "exp": {0: 1, -INF: 0, INF: INF, -high: 0, high: INF, NAN: NAN},
        "decay": {-INF: 0, 0: 1, NAN: NAN},
        "log1p": {0: 0, tiny: tiny, INF: INF, NAN: NAN, -NAN: NAN},
        "tanh": {0: 0, INF: 1, -INF: -1, NAN: NAN},
        "sigmoid": {0: 0.5, INF: 1, -INF: 0, NAN: NAN},
        "gelu": {0: 0, INF: INF, NAN: NAN},
    }


@pytest.fixture(params=["float32", "float64"])
def floats(request: pytest.FixtureRequest) -> SimpleNamespace:
    dtype = np.dtype(request.param)
    return SimpleNamespace(dtype=dtype, maths=getattr(module(), dtype.name).maths)


def test_errors_stay_within_their_bounds(floats: SimpleNamespace) -> None:
    for name, low, high, floor, allowed in ranges(floats.dtype):
        steps = np.arange(STEPS, dtype=np.longdouble) / STEPS
        x = (low + (np.longdouble(high) - low) * steps).astype(floats.dtype)
        want = ORACLES[name](wide(x))
        unit = np.maximum(np.abs(want), floor) * np.finfo(floats.dtype).eps
        for isa in on_every_isa():
            error = np.abs(floats.maths(name, x) - want)
            # Of a value 0 nothing is allowed.
            worst = (error / np.where(unit == 0, np.finfo(floats.dtype).tiny, unit)).max()
            assert worst <= allowed, f"{isa}: {name} of [{low}, {high}]: {worst}"


def test_special_values_in_a_lane_among_nans(floats: SimpleNamespace) -> None:
    for name, values in specials(floats.dtype).items():
        for value, want in values.items():
            x = np.full(LANES, NAN, floats.dtype)
            x[-1] = value
            for isa in on_every_isa():
                got = floats.maths(name, x)
                assert np.array_equal(got[-1], want, equal_nan=True), f"{isa}: {name}({value})"
                assert np.isnan(got[:-1]).all(), f"{isa}: {name} of NaN"


def test_folds_take_every_lane(floats: SimpleNamespace) -> None:
    lanes = 64 // floats.dtype.itemsize
    x = ((np.arange(lanes) * 5 + 3) % lanes).astype(floats.dtype)
    for isa in on_every_isa():
        assert (floats.maths("sum_lanes", x) == x.sum()).all(), isa
        assert (floats.maths("max_lanes", x) == lanes - 1).all(), isa
