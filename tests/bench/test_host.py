"""The bench of host time: what it compares, and that a prepared call stays within its time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from bench.host_driver import Given, difference
from bench.results import read_results
from tests.compiling import on_linux, run_python


class Kernel:
    """As much of a compiled kernel as is compared."""

    name = "kernel"

    class src:
        class fn:
            arg_names = ("x", "out", "count")


KERNEL = Kernel()
X, SCRATCH, OUT, OTHER = (torch.zeros(64) for _ in range(4))


def given(x: object, out: object, count: object = 64, grid: int = 1) -> Given:
    return Given((grid, 1, 1), 0, KERNEL, (1, 1, 0), (x, out, count))  # type: ignore[arg-type]


ORDINARY = [given(X, SCRATCH[4:]), given(SCRATCH, OUT)]
THERE = OTHER.data_ptr()


@pytest.mark.parametrize(
    ("prepared", "sentence"),
    [
        ([given(X.data_ptr(), THERE + 16), given(THERE, OUT.data_ptr())], ""),
        ([given(X.data_ptr(), THERE + 16)], "2 launches and 1"),
        ([given(X.data_ptr(), THERE + 16, 65), given(THERE, OUT.data_ptr())], "count is 64 and 65"),
        ([given(X.data_ptr(), THERE + 16, True), given(THERE, OUT.data_ptr())], "count is 64"),
        ([given(X.data_ptr(), THERE + 16, 64, 2), given(THERE, OUT.data_ptr())], "launch 0"),
        ([given(X.data_ptr() + 16, THERE + 16), given(THERE, OUT.data_ptr())], "x is"),
        ([given(X.data_ptr(), THERE), given(THERE, OUT.data_ptr())], "x is"),
        ([given(X.data_ptr(), THERE + 20), given(THERE + 4, OUT.data_ptr())], "out is"),
        ([given(X.data_ptr(), THERE + 16), given(THERE, OUT.data_ptr() + 16)], "out is"),
        (
            [given(X.data_ptr(), X.data_ptr() + 32), given(X.data_ptr() + 16, OUT.data_ptr())],
            "overlaps",
        ),
    ],
)
def test_what_differs_is_said(prepared: list[Given], sentence: str) -> None:
    said = difference(ORDINARY, prepared, [X], [(OUT, OUT)])
    assert sentence in said and bool(said) == bool(sentence)


@pytest.mark.slow
@pytest.mark.compile
@on_linux
def test_a_prepared_call_stays_within_its_time(tmp_path: Path) -> None:
    run_python(
        tmp_path, "-m", "bench", "run", "--suite", "host", "--short", "--output", str(tmp_path)
    )
    rows = {row.variant: row.times for row in read_results(tmp_path / "host.json").op_rows()}
    prepared, ordinary = rows["prepared"], rows["ordinary"]
    assert prepared is not None and ordinary is not None and rows["op"] is not None
    assert 6 * prepared.median < ordinary.median
