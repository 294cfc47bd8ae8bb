from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import machine
from bench import results as records
from bench.results import OURS, ResultError, Results, Times, Versus, read_results
from tests.bench.report.samples import cpu, gpu_rows, op_row, results, times

CPU = torch.device("cpu")
PRUNE = results("prune", [op_row("prune", OURS, 1e-3), op_row("prune", "eager", None)])


@pytest.mark.parametrize("file", cpu(), ids=lambda file: file.suite)
def test_what_is_written_is_read(tmp_path: Path, file: Results) -> None:
    path = file.save(tmp_path / "new")
    assert path == tmp_path / "new" / f"{file.suite}.json" and read_results(path) == file
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_every_device_has_its_suites_in_the_reports_order(tmp_path: Path) -> None:
    for file in reversed(cpu()):
        file.save(tmp_path / "imaginary")
    (tmp_path / "imaginary" / "summary.json").write_text("not JSON", encoding="utf-8")
    assert records.read_all(tmp_path) == {"imaginary": cpu()}


@pytest.mark.parametrize(
    "place, value, message",
    [
        ("schema", 1, ": schema: expected 2, got 1"),
        ("suite", "e2e", ": suite: expected 'prune', got 'e2e'"),
        ("date", "yesterday", ": Invalid isoformat string"),
        ("rows", {}, ": rows: expected a list, got {}"),
        ("rows.0.op", 1, r": rows\[0\].op: expected a text, got 1"),
        ("rows.0.times", None, r": rows\[0\]: times: expected them with a passed gate"),
        ("rows.1.times", PRUNE.rows[0], r": rows\[1\]: times: .* not without, got some \(wrong"),
        ("rows.0.times.p20", 1.0, r": rows\[0\].times: expected 0 < p20 <= median <= p80, got 1.0"),
        ("rows.0.times.p80", float("nan"), r": rows\[0\].times.p80: expected a number, got nan"),
        ("rows.0.times.median", "1", r": rows\[0\].times.median: expected a number, got '1'"),
        ("rows.0.times.method", "clock", r": rows\[0\].times.method: expected one of graph, "),
        ("rows.0.workload.batch", True, r": rows\[0\].workload.batch: expected an integer"),
        ("rows.0.direction", "up", r": rows\[0\].direction: expected one of forward, backward"),
        ("rows.0.gate", {"passed": True}, r": rows\[0\].gate.note: missing"),
        ("ceilings.matmul_tflops.float32", "5", ": ceilings.matmul_tflops.float32: expected a num"),
        ("rows.1", "again", r": rows\[1\]: expected an object, got 'again'"),
    ],
)
def test_a_malformed_file_is_refused_by_name_and_field(
    tmp_path: Path, place: str, value: Any, message: str
) -> None:
    path = PRUNE.save(tmp_path)
    whole = json.loads(path.read_text(encoding="utf-8"))
    *names, last = [int(name) if name.isdigit() else name for name in place.split(".")]
    inner: Any = whole
    for name in names:
        inner = inner[name]
    inner[last] = vars(value.times) if value is PRUNE.rows[0] else value
    path.write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(ResultError, match=f"^{re.escape(str(path))}{message}"):
        read_results(path)


@pytest.mark.parametrize("file", [*cpu(), PRUNE], ids=lambda file: file.suite)
def test_a_repeated_row_and_broken_json_are_refused(tmp_path: Path, file: Results) -> None:
    path = replace(file, rows=[*file.rows, file.rows[0]]).save(tmp_path)
    message = rf"rows\[{len(file.rows)}\]: the same measurement as rows\[0\]"
    with pytest.raises(ResultError, match=message):
        read_results(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ResultError, match="cannot be read"):
        read_results(path)


def test_ratios_spread_and_shares() -> None:
    near = Versus(Times(1.9, 1.8, 2.0, 9), Times(2.0, 1.0, 3.0, 9))
    assert (near.ratio, near.low, near.high) == (0.95, 0.6, 2.0) and near.is_within_spread
    assert not Versus(times(3.0), times(1.0)).is_within_spread
    assert times(4.0).over(4) == times(1.0)
    shares = [PRUNE.share_of_ceiling(row) for row in PRUNE.op_rows()]
    assert shares == [pytest.approx(1.0), None]
    ours = [row for row in records.graph_first(gpu_rows()) if row.is_ours]
    assert [row.key[-1] for row in ours] == ["graph", "graph"]


def test_the_folder_is_named_after_the_device_whose_ceilings_are_read(tmp_path: Path) -> None:
    folder = machine.default_folder(CPU)
    assert folder.parent == machine.RESULTS and re.fullmatch("[a-z0-9-]+", folder.name)
    made = machine.new_results("prune", CPU, PRUNE.ceilings)
    assert machine.read_ceilings(made.save(tmp_path), CPU) == PRUNE.ceilings
    with pytest.raises(ResultError, match="got those of Imaginary accelerator"):
        machine.read_ceilings(PRUNE.save(tmp_path), CPU)
