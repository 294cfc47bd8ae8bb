from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.ceilings import Ceilings
from bench.gate import CheckResult
from bench.results import EndToEnd, Result, Row, default_folder, device_name, row
from bench.shapes import HEADLINE
from bench.timing import Timing
from ocvtp_kernels.cost.work import Work
from ocvtp_kernels.report.fields import Times
from ocvtp_kernels.report.results import read_result

CPU = torch.device("cpu")
CEILINGS = Ceilings(100.0, {"float32": 2.0})
TIMING = Timing(0.5, 0.4, 0.6, 7, "host")
PASSED, REFUSED = CheckResult(True, "ids exact"), CheckResult(False, "ids out of range")
WORK = Work(10**12, 10**9)


def a_row(check: CheckResult, timing: Timing | None) -> Row:
    return row("prune", "ours", "forward", HEADLINE, WORK, CEILINGS, check, timing)


def test_rates() -> None:
    one = a_row(PASSED, TIMING)
    assert (one.tflops, one.gb_s, one.share_of_ceiling) == (2.0, 2.0, 1.0)


def test_a_refused_variant_has_no_time() -> None:
    one = a_row(REFUSED, None)
    assert {one.median_s, one.p20_s, one.p80_s, one.tflops, one.gb_s} == {None}
    assert one.gate == REFUSED
    with pytest.raises(ValueError, match="a refused variant gets no time"):
        a_row(REFUSED, TIMING)


def test_the_file(tmp_path: Path) -> None:
    result = Result("micro", device_name(CPU), None, CEILINGS)
    result.rows = [a_row(PASSED, TIMING), a_row(REFUSED, None)]
    path = result.save(tmp_path / "new")
    assert path == tmp_path / "new" / "micro.json"
    assert [file.name for file in path.parent.iterdir()] == ["micro.json"]
    read = json.loads(path.read_text(encoding="utf-8"))
    assert {name: read[name] for name in ("schema", "kind", "driver")} == {
        "schema": 1,
        "kind": "micro",
        "driver": None,
    }
    assert set(read) - {"schema", "kind", "driver"} == {
        "device",
        "versions",
        "commit",
        "date",
        "ceilings",
        "rows",
    }
    assert set(read["versions"]) == {"torch", "triton", "transformers", "python", "ocvtp-kernels"}
    assert read["ceilings"] == {"copy_gb_s": 100.0, "matmul_tflops": {"float32": 2.0}}
    assert set(read["rows"][0]) == {
        "op",
        "variant",
        "direction",
        "workload",
        "median_s",
        "p20_s",
        "p80_s",
        "rounds",
        "flops",
        "bytes",
        "tflops",
        "gb_s",
        "share_of_ceiling",
        "gate",
        "method",
    }
    assert read["rows"][0]["workload"]["num_tokens"] == 576
    assert read["rows"][1]["median_s"] is None
    assert read["rows"][1]["gate"] == {"passed": False, "note": "ids out of range"}


def test_end_to_end_rows_are_read_by_the_report(tmp_path: Path) -> None:
    parts = {"encoder": 0.1, "pruner": 0.0, "projector": 0.2, "prefill": 0.3}
    times = (parts, 0.7, 0.6, 0.8, 5, 20.0, 1024, -0.01, "")
    one = EndToEnd("tiny", "eager", "ocvtp", 1, 8, 64, *times)
    result = Result("e2e", "a device", "1.2", CEILINGS)
    result.rows = [one]
    (read,) = read_result(result.save(tmp_path)).e2e
    assert read.times is not None and read.times.stages == parts
    assert read.times.ttft == Times(0.7, 0.6, 0.8, 5)
    assert (read.selector, read.batch, read.budget, read.num_tokens) == ("ocvtp", 1, 8, 64)
    assert (read.times.decode_tokens_per_s, read.times.cache_bytes) == (20.0, 1024)
    assert read.times.pruner_added_s == -0.01


def test_the_folder_is_named_after_the_device() -> None:
    folder = default_folder(CPU)
    assert folder.parent.name == "results"
    assert folder.name and folder.name.strip("abcdefghijklmnopqrstuvwxyz0123456789-") == ""
