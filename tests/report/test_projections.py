from __future__ import annotations

import json
from pathlib import Path

import pytest

from ocvtp_kernels.report import costs
from ocvtp_kernels.report.fields import ResultError
from ocvtp_kernels.report.modelled import read_model
from ocvtp_kernels.report.projections import (
    GPUS,
    SIZES,
    projected_s,
    projections_page,
    read_counts,
)
from ocvtp_kernels.report.results import read_results
from tests.report.samples import content, micro_row, write


def test_the_stages_cost_what_the_folded_algebra_costs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = costs.Size(1, 576, 64)
    n, k, c, h, d = 576, 64, 1024, 2048, 512
    step = 2 * k * d * (d + 1) + 4 * k * n * d + 12 * k * d * d + 4 * k * d * h
    exact = 2 * n * (c * h + h * d) + 2 * step + 2 * k * d * (d + 1) + 2 * k * n * d
    again = 2 * 2 * k * n * d  # the second D chunk's logits, twice
    stages = costs.stage_costs(size)
    assert sum(cost.flops for cost in stages) == exact + again
    monkeypatch.setattr(costs, "CHUNKS", 1)
    assert sum(cost.flops for cost in costs.stage_costs(size)) == exact
    assert exact == pytest.approx(4.85e9, rel=2e-3)


def test_more_slots_than_a_tile_take_one_more_pass() -> None:
    inside, beyond = (
        {cost.kernel: cost.launches for cost in costs.stage_costs(costs.Size(8, 576, num_slots))}
        for num_slots in (128, 129)
    )
    for stage, more in (("compete", 2), ("last logits and selection", 1)):
        assert beyond[stage] == inside[stage] + more


def test_a_floor_is_never_below_either_ceiling() -> None:
    for size in SIZES:
        stages = costs.stage_costs(size)
        for gpu in GPUS:
            time = projected_s(stages, gpu)
            assert time >= sum(cost.flops for cost in stages) / gpu.tflops / 1e12 * 0.999
            assert time >= sum(cost.bytes for cost in stages) / gpu.gb_s / 1e9 * 0.999


def test_counted_costs_replace_formulas_and_measurements_stand_beside(tmp_path: Path) -> None:
    counted = {
        "schema": 1,
        "workloads": [
            {
                "batch": 1,
                "num_tokens": 576,
                "num_slots": 64,
                "kernels": [{"kernel": "all_in_one", "launches": 1, "flops": 1e9, "bytes": 1e6}],
            }
        ],
    }
    path = tmp_path / "counts.json"
    path.write_text(json.dumps(counted), encoding="utf-8")
    rows = [micro_row("prune", "prune", 5e-4, workload={"dtype": "bfloat16"})]
    write(tmp_path, content("micro", rows, device="Imaginary A100"))
    text = projections_page(read_results(tmp_path), read_counts(path))
    assert "| all_in_one | 1 | 1.00 | 1.00 |" in text and "GFLOP (counted)" in text
    measured = [line for line in text.splitlines() if "500 µs (450 to 550), bfloat16" in line]
    assert len(measured) == 1 and measured[0].startswith("| A100 | B 1, N 576, K 64 |")
    assert "GFLOP (formula)" in text

    del counted["workloads"][0]["kernels"][0]["bytes"]  # type: ignore[index]
    path.write_text(json.dumps(counted), encoding="utf-8")
    with pytest.raises(ResultError, match=r"workloads\[0\].kernels\[0\].bytes: missing"):
        read_counts(path)


def test_the_model_stands_beside_the_floor(tmp_path: Path) -> None:
    step = {"launches": 2, "us": 10.0, "waves": 0.55, "l2_mb": 12.5, "bound": "latency"}
    tables = {f"{gpu} B 8 N 576 K 64": {"gru": step, "query": step} for gpu in ("A100", "H100")}
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"schema": 1, "triton": "3.9", "tables": tables}), encoding="utf-8")
    text = projections_page({}, {}, read_model(path))
    lines = text.splitlines()
    (of_gpu,) = (line for line in lines if line.startswith("| H100 | B 8, N 576, K 64 |"))
    assert of_gpu.startswith("| H100 | B 8, N 576, K 64 | 20.0 µs | 2.50 µs | ")
    # V100 runs no Triton, and has the floor alone.
    assert all("| — | — |" in line for line in lines if line.startswith("| V100 | B"))
    assert "| gru | 2 | 10.0 µs | 10.0 µs | 0.55 | 12.5 | latency |" in lines
    assert "| all | 4 | 20.0 µs | 20.0 µs |  |  |  |" in lines
    assert "No GPU has run it" in text

    path.write_text(json.dumps({"schema": 1, "tables": {"H100": {}}}), encoding="utf-8")
    with pytest.raises(ResultError, match="expected a table named such as"):
        read_model(path)
