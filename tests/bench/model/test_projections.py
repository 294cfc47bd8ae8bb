from __future__ import annotations

from importlib.util import find_spec

import pytest

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from bench.compiled.budget import Budget, Group
from bench.model.projections import GPUS, projections_page
from bench.model.report import LOADS
from bench.ops.prune import steps
from bench.results import OURS
from ocvtp_kernels.cost.work import Work
from tests.bench.report.samples import GPU, op_row, results


def test_a_floor_is_never_below_either_ceiling() -> None:
    for load in LOADS:
        works = steps(load).values()
        for gpu in GPUS:
            floor = gpu.floor_s(works) * 1.001
            assert all(floor >= seconds for seconds in gpu.seconds(sum(works, Work(0, 0))))


def test_model_floor_and_measurement_stand_side_by_side() -> None:
    step = {"launches": 2, "us": 10.0, "waves": 0.55, "l2_mb": 12.5, "bound": "latency"}
    rows = {"gru": step, "query": step, "all": {"launches": 4, "us": 20.0, "l2_mb": 25.0}}
    budget = Budget(
        {f"{gpu} B 8 N 576 K 64": Group("Triton 3.9", rows) for gpu in ("A100", "H100")}
    )

    row = op_row("prune", OURS, 25e-6, batch=8, num_tokens=576, num_slots=64, dtype="bfloat16")
    measured = {"one": [results("prune", [row], GPU)]}
    lines = projections_page(budget, measured).splitlines()
    (of_gpu,) = (line for line in lines if line.startswith("| H100 | B 8, N 576, K 64 |"))
    assert of_gpu.startswith("| H100 | B 8, N 576, K 64 | 20.0 µs | 2.50 µs | ")
    assert of_gpu.endswith("| 25.0 µs (22.5 to 27.5), bfloat16, timed by host |")
    # V100 runs no Triton, and has the floor alone.
    assert all("| — | — | — |" in line for line in lines if line.startswith("| V100 | B"))
    (gru,) = (line for line in lines if line.startswith("| gru | 2 |"))
    assert gru.count("10.0 µs") == 2 and "| 0.55 | 12.5 | latency |" in gru
    (whole,) = (line for line in lines if line.startswith("| all | 4 |"))
    assert whole.count("20.0 µs") == 2


def test_projections_are_labelled_as_such() -> None:
    text = projections_page(Budget({}), {})
    assert text.count("not measured") == len(GPUS) * len(LOADS)
    assert "**Every time and share on this page is a projection**" in text
    assert "No GPU has run it" in text
