"""The table of selectors: every method gets a row, and nothing wrong gets a time."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.jobs import LAUNCHED
from bench.results import Method, SelectorRow, Times, read_results
from bench.selectors import run
from bench.selectors.inputs import NAMES, PUBLISHED, Job, draw, plan
from bench.timing import side_stream
from ocvtp_kernels import backends, ops
from ocvtp_kernels.selectors.registry import METHODS
from tests.bench.selectors.cases import JOB, ONE, Changed, set_id
from tests.bench.suites import CPU, quick, run_suite

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def two_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "measure", quick)


def bench(folder: Path, seconds: float = 600) -> tuple[int, list[SelectorRow]]:
    return run_suite(run.run, "selectors", folder, seconds)


def time_job(job: Job = JOB, seconds: float = 600) -> dict[str, SelectorRow]:
    return {row.method: row for row in run.time_job(job, CPU, time.monotonic() + seconds)}


def test_every_method_gets_a_row_that_can_be_read_again(tmp_path: Path) -> None:
    refused, rows = bench(tmp_path)
    assert refused == 0 and read_results(tmp_path / "selectors.json").rows == rows
    assert set(NAMES) == {"oc-pruner", *METHODS}
    assert [(row.method, row.batch) for row in rows] == [(n, b) for b in (1, 2) for n in NAMES]
    for row in rows:
        assert row.gate.passed and row.times is not None and row.graph is None
        assert row.size == (64, 8, 48, "float32")
        assert row.quality is not None and row.quality.exact and row.quality.duplicates == 0
        assert 0 < row.quality.coverage <= 1
        is_published = row.method in PUBLISHED and row.batch == 1
        assert (row.published is not None) == (row.loop is not None) == is_published


def test_what_a_whole_run_times() -> None:
    sizes = {"cuda": [(1, 64), (64, 64), (1, 192), (64, 192)]}
    sizes["cpu"] = [(1, 64), (4, 64), (1, 192), (4, 192)]
    for device, wanted in sizes.items():
        assert [(job.batch, job.budget) for job in plan(device, False)] == wanted
    assert [(job.batch, job.budget) for job in plan("cuda", True)] == [(1, 64), (64, 64)]
    assert {(job.num_tokens, job.width) for job in plan("cuda", False)} == {(576, 1024)}


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


@pytest.mark.parametrize("method", ["graph", "events"])
def test_times_are_per_image_and_of_a_graph_only_where_there_was_one(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager, graph = Times(6.0, 4.0, 8.0, 5, "events"), Times(2.0, 2.0, 2.0, 5, method)

    def fixed(each: Any, **_: Any) -> dict[str, Times]:
        return dict.fromkeys(each, graph) | {name + LAUNCHED: eager for name in each}

    monkeypatch.setattr(run, "measure", fixed)
    row = time_job()["trim"]
    assert row.times == Times(3.0, 2.0, 4.0, 5, "events")
    assert row.graph == (Times(1.0, 1.0, 1.0, 5, "graph") if method == "graph" else None)
    one = time_job(ONE)["divprune"]
    assert one.published is not None and one.published.theirs.median == 2.0


def test_a_wrong_kernel_gets_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(distances: Tensor, first: Tensor | None, budget: int, *rest: Any) -> Tensor:
        order = ops.farthest_select.reference(distances, first, budget, *rest)
        order[:, -1] = order[:, 0]
        return order

    monkeypatch.setitem(backends._kernels["farthest_select"], "cpu", backends.Kernel(wrong))
    refused, rows = bench(tmp_path)
    by_distance = ("divprune", "apet")
    assert refused == 4 and read_results(tmp_path / "selectors.json").rows == rows
    for row in rows:
        assert row.gate.passed == (row.times is not None) == (row.method not in by_distance)
    one, two = (row for row in rows if row.method == "divprune")
    assert one.gate.note == "an image keeps a token twice" and one.published is None
    assert one.quality is not None and two.quality is not None and not one.quality.exact
    assert (one.quality.duplicates, two.quality.duplicates) == (1, 2)
    said = capsys.readouterr().out
    assert said.count("| divprune | refused |") == 2
    assert said.count("divprune refused: an image keeps a token twice") == 2


def test_who_is_wrong_after_the_timing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = run.check_selector

    def turned(name: str, selector: Any, *rest: Any) -> Any:
        is_after = rest[-1] == run.SEEDS[1] and name == "scope"
        return honest(name, Changed(set_id(-1, -1), name) if is_after else selector, *rest)

    monkeypatch.setattr(run, "check_selector", turned)
    refused = {row.method: row.gate.note for row in time_job().values() if row.times is None}
    assert refused == {"scope": "after the timing, an image keeps 7 tokens, not 8"}


def test_what_would_take_too_long_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(tmp_path, seconds=-1) == (0, [])
    assert "the last 2 of 2 sizes are left out" in capsys.readouterr().out
    begin = now = time.monotonic()

    def slow(*_: Any) -> list[Any]:
        nonlocal now
        now += 3
        return []

    monkeypatch.setattr(run, "time_job", slow)
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: now))
    assert bench(tmp_path, seconds=5) == (0, []) and now == begin + 3
    assert "the last 1 of 2 sizes are left out" in capsys.readouterr().out


def test_a_deadline_leaves_the_published_loops_out(capsys: pytest.CaptureFixture[str]) -> None:
    rows = time_job(ONE, seconds=-1).values()
    assert all(row.published is None and row.times is not None for row in rows)
    assert "published loops of divprune are left out" in capsys.readouterr().out


@pytest.mark.gpu
def test_small_selectors_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    device = torch.device("cuda")
    with side_stream(device):
        rows = run.time_job(JOB, device, time.monotonic() + 600)
    assert all(row.gate.passed for row in rows), [row.gate.note for row in rows]
    assert any(row.graph is not None for row in rows)
