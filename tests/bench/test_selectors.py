"""The table of selectors: every method gets a row, and nothing wrong gets a time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import run, selectors
from bench.ceilings import Ceilings
from bench.gate import CheckResult
from bench.results import Result
from bench.selectors_inputs import NAMES, PUBLISHED, Job, draw, plan
from bench.timing import StaleReplay, Timing, side_stream
from ocvtp_kernels import backends, ops
from ocvtp_kernels.report.results import read_result
from ocvtp_kernels.selectors.registry import METHODS
from tests.bench.selector_cases import CPU, JOB, ONE, Changed, set_id


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    measure = selectors.measure
    monkeypatch.setattr(
        selectors, "measure", lambda each, **given: measure(each, **{**given, "rounds": (2, 2)})
    )
    monkeypatch.setattr(run, "measure_ceilings", lambda *_: Ceilings(10.0, {"float32": 0.1}))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bench(folder: Path, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    given = ["selectors", "--device", "cpu", "--short", "--output", str(folder), *arguments]
    status = run.main(given)
    rows: list[dict[str, Any]] = json.loads((folder / "selectors.json").read_text("utf-8"))["rows"]
    return status, rows


def test_every_method_gets_a_row_that_the_report_reads(tmp_path: Path) -> None:
    status, rows = bench(tmp_path)
    assert status == 0
    assert set(NAMES) == {"oc-pruner", *METHODS}
    wanted = [(name, batch) for batch in (1, 2) for name in NAMES]
    assert [(row["method"], row["batch"]) for row in rows] == wanted
    for row in rows:
        assert row["gate"]["passed"] and row["p80_s"] >= row["median_s"] >= row["p20_s"] > 0
        assert (row["num_tokens"], row["budget"], row["width"]) == (64, 8, 48)
        assert row["exact"] is True and row["duplicates"] == 0
        assert 0 < row["coverage"] <= 1 and row["graph_median_s"] is None
        is_published = row["method"] in PUBLISHED and row["batch"] == 1
        assert (row["published"] is not None) == (row["loop"] is not None) == is_published
        if is_published:
            assert all(row[part]["median_s"] > 0 for part in ("published", "loop"))
            assert all(row[part]["ours_median_s"] > 0 for part in ("published", "loop"))
    read = read_result(tmp_path / "selectors.json").selectors
    assert len(read) == len(rows) and all(row.times is not None for row in read)


def test_times_are_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    timing = Timing(6.0, 4.0, 8.0, 5, "host")
    monkeypatch.setattr(selectors, "measure", lambda each, **_: dict.fromkeys(each, timing))
    row = selectors.time_job(JOB, CPU, time.monotonic() + 600)[0]
    assert (row.median_s, row.p20_s, row.p80_s, row.rounds) == (3.0, 2.0, 4.0, 5)
    one = selectors.time_job(ONE, CPU, time.monotonic() + 600)[1]
    assert one.published is not None and one.published.median_s == 6.0


def test_what_a_whole_run_times() -> None:
    assert [(j.batch, j.budget) for j in plan("cuda", False)] == [
        (1, 64), (64, 64), (1, 192), (64, 192),
    ]  # fmt: skip
    assert [(j.batch, j.budget) for j in plan("cpu", False)] == [
        (1, 64),
        (4, 64),
        (1, 192),
        (4, 192),
    ]
    assert [(j.batch, j.budget) for j in plan("cuda", True)] == [(1, 64), (64, 64)]
    for job in plan("cuda", False):
        assert (job.num_tokens, job.width) == (576, 1024)


def test_images_depend_on_the_seed_alone() -> None:
    many, single = draw(JOB, 5, CPU), draw(ONE, 5, CPU)
    for name in ("final_tokens", "keys", "cls_attention", "text", "text_tokens", "cls_token"):
        assert torch.equal(getattr(many, name)[:1], getattr(single, name))
        assert not torch.equal(getattr(many, name), getattr(draw(JOB, 6, CPU), name))
    # Nobody can spoil the next one's.
    many.final_tokens.zero_()
    assert draw(JOB, 5, CPU).final_tokens.any()
    assert single.reference_tokens is single.final_tokens


def test_images_are_smooth_with_outlier_channels() -> None:
    tokens = draw(ONE, 5, CPU).final_tokens[0]
    spread = tokens.std(dim=0)
    assert (spread > 4 * spread.median()).sum() >= 3
    grid = tokens.view(8, 8, -1)
    near = torch.cosine_similarity(grid[:, 1:], grid[:, :-1], dim=-1).mean()
    assert near > torch.cosine_similarity(grid[:, 4:], grid[:, :-4], dim=-1).mean() + 0.1


def test_a_wrong_kernel_gets_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(distances: Tensor, first: Tensor | None, budget: int, *rest: Any) -> Tensor:
        order = ops.farthest_select.reference(distances, first, budget, *rest)
        order[:, -1] = order[:, 0]
        return order

    monkeypatch.setitem(backends._kernels["farthest_select"], "cpu", backends.Kernel(wrong))
    status, rows = bench(tmp_path)
    assert status == 1
    for row in rows:
        assert row["gate"]["passed"] == (row["method"] != "divprune")
        assert (row["median_s"] is None) == (row["method"] == "divprune")
    (one, two) = [row for row in rows if row["method"] == "divprune"]
    assert one["gate"]["note"] == "an image keeps a token twice" and one["published"] is None
    assert (one["exact"], one["duplicates"], two["duplicates"]) == (False, 1, 2)
    lines = [s for s in capsys.readouterr().out.splitlines() if s.startswith("divprune")]
    assert len(lines) == 2 and all("refused" in line and " ms" not in line for line in lines)
    assert sum(row.times is None for row in read_result(tmp_path / "selectors.json").selectors) == 2


def test_who_turns_wrong_during_the_timing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = selectors.judge

    def turned(name: str, selector: Any, job: Job, device: torch.device, seed: int) -> Any:
        if seed == selectors.SEEDS[1] and name == "scope":
            selector = Changed(set_id(-1, -1), "scope")
        return honest(name, selector, job, device, seed)

    monkeypatch.setattr(selectors, "judge", turned)
    for row in selectors.time_job(JOB, CPU, time.monotonic() + 600):
        assert (row.median_s is None) == (row.method == "scope")
        if row.method == "scope":
            assert row.gate.note == "after the timing, an image keeps 7 tokens, not 8"


@pytest.mark.parametrize("method, median", [("graph", 1.0), ("events", None)])
def test_only_what_a_graph_took_is_a_time_in_a_graph(method: str, median: float | None) -> None:
    eager, graph = Timing(6.0, 4.0, 8.0, 5, "events"), Timing(2.0, 2.0, 2.0, 5, method)
    timings = {"trim": eager, "trim" + selectors.GRAPH: graph}
    row = selectors._row("trim", JOB, CheckResult(True, "right"), None, timings, (None, None))
    assert (row.median_s, row.graph_median_s) == (3.0, median)
    assert row.gate.note == "right; timed by events"
    assert ("in a graph 1000.000 ms" in selectors.describe(row)) == (median is not None)
    refused = selectors._row("trim", JOB, CheckResult(False, "wrong"), None, timings, (None, None))
    assert refused.median_s is None and refused.graph_median_s is None


def test_what_would_take_too_long_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0

    def slow(*_: Any) -> list[Any]:
        nonlocal now
        now += 3
        return []

    monkeypatch.setattr(selectors, "time_job", slow)
    monkeypatch.setattr(selectors, "time", SimpleNamespace(monotonic=lambda: now))
    result = Result("selectors", "a device", None, Ceilings(10.0))
    assert selectors.run(result, tmp_path, CPU, True, 5.0) == 0
    assert "the last 1 of 2 sizes are left out" in capsys.readouterr().out


def test_a_graph_that_does_not_do_the_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = selectors.measure

    def stale(each: Any, **given: Any) -> Any:
        if "trim" in each:
            raise StaleReplay("trim" + selectors.GRAPH)
        return honest(each, **given)

    monkeypatch.setattr(selectors, "measure", stale)
    rows = {row.method: row for row in selectors.time_job(JOB, CPU, time.monotonic() + 600)}
    assert rows["trim"].median_s is None and "CUDA graph" in rows["trim"].gate.note
    assert rows["divprune"].median_s is not None


def test_memory_that_does_not_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(selectors, "measure", full)
    rows = selectors.time_job(JOB, CPU, time.monotonic() + 600)
    assert {(row.median_s, row.gate.note) for row in rows} == {(None, "out of memory")}


def test_a_deadline_leaves_sizes_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, rows = bench(tmp_path, "--seconds", "0")
    assert status == 0 and rows == []
    assert "the last 2 of 2 sizes are left out" in capsys.readouterr().out


def test_a_deadline_leaves_the_published_loops_out(capsys: pytest.CaptureFixture[str]) -> None:
    rows = selectors.time_job(ONE, CPU, time.monotonic() - 1)
    assert all(row.published is None and row.median_s is not None for row in rows)
    assert "published loops of divprune are left out" in capsys.readouterr().out


@pytest.mark.gpu
def test_small_selectors_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    device = torch.device("cuda")
    with side_stream(device):
        rows = selectors.time_job(JOB, device, time.monotonic() + 600)
    assert all(row.gate.passed for row in rows), [row.gate.note for row in rows]
    assert any(row.graph_median_s is not None for row in rows)
