"""The predicted time of the CUDA C++ kernels.

`csrc_time_calibration.json` has every launch of a prune at commit fa822c4 with the time that an
expert's estimate by hand gives it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.csrc_time import RESOLVE_S, Launch, launches, page, product, rows, tile
from bench.results import ROOT
from bench.workloads import square

CALIBRATION = json.loads(Path(__file__).with_name("csrc_time_calibration.json").read_text())
LOAD = square(1, 576, 64, "float16")


def predicted(launch: dict[str, Any]) -> Launch:
    step = launch["step"]
    if "rows" in launch:
        return rows(step, *launch["rows"])
    if "product" in launch:
        return product(step, *launch["product"])
    if "tile" in launch:
        dim, cycles, waits = launch["tile"]
        return tile(step, dim, cycles, waits=waits)
    return Launch(step, RESOLVE_S)


@pytest.mark.parametrize("launch", CALIBRATION["launches"], ids=lambda launch: launch["step"])
def test_a_launch_takes_what_the_estimate_says(launch: dict[str, Any]) -> None:
    assert predicted(launch).seconds * 1e6 == pytest.approx(launch["us"], rel=0.2)


def test_all_of_them_take_what_the_estimate_says() -> None:
    found = [(launch["launches"], predicted(launch)) for launch in CALIBRATION["launches"]]
    assert sum(count for count, _ in found) == 40
    total = sum(count * one.seconds for count, one in found)
    assert total * 1e6 == pytest.approx(CALIBRATION["estimated_us"], rel=0.05)


def test_a_prune_takes_at_most_200_us_in_26_launches() -> None:
    # tests/ops/prune/test_emulated_cuda.py counts the launches of the op itself.
    found = list(launches(LOAD))
    assert len(found) == 25
    assert sum(launch.seconds for launch in found) <= 200e-6


def test_the_committed_page_is_of_these_numbers() -> None:
    assert (ROOT / "docs" / "native_time.md").read_text(encoding="utf-8") == page(LOAD)
