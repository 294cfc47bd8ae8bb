from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.least import least_of, least_total, step_of
from bench.ops.prune import stages
from bench.workloads import Workload, square
from ocvtp_kernels.report.costs import Size
from ocvtp_kernels.report.projections import read_counts

pytest.importorskip("triton", reason="Triton is not installed")
static_cost: Any = pytest.importorskip("bench.static_cost")
interpreted = pytest.mark.skipif(
    not static_cost.interpreting(), reason="Triton compiles here: TRITON_INTERPRET is not 1"
)

HEADLINE = square(1, 576, 64, "float16")
SMALL = Workload(2, 40, 7, 7, 24, 16, "float16")
MANY_SLOTS = Workload(1, 40, 130, 20, 24, 16, "float16")
FIRST, LAST = ["start", "encode_up+query", "encode_down", "layer_norm"], ["argmax", "resolve"]
ITERATION = ["slot_attention_fwd", "gru", "layer_norm", "ffn_up", "ffn_down", "layer_norm", "query"]


@pytest.mark.parametrize("load", [HEADLINE, SMALL, MANY_SLOTS], ids=str)
def test_the_least_flops_are_those_of_the_folded_way(load: Workload) -> None:
    # The constant of q' is no column of a product: a row's dot, three times.
    constants = 3 * 2 * load.batch * load.num_slots * load.slot_dim
    products = sum(work.flops for work in stages(load).values())
    assert least_total(load).flops == products - constants


def test_the_least_bytes_are_inputs_and_outputs() -> None:
    def tensors(*shapes: tuple[int, ...], size: int = 2) -> int:
        return sum(size * torch.Size(shape).numel() for shape in shapes)

    least, (b, n, k, d, h) = least_of(SMALL), (2, 40, 7, 16, 64)
    slots, per_slot = tensors((b, k, d)), tensors((b, k), size=4)
    wide = tensors((b, k, d), size=4)
    up = tensors((b, n, 24), (h, 24), (h,), (b, n, h), (b, k, d), (d, d), (d,), (b, k, d))
    assert least["encode_up+query"].bytes == up
    attention = tensors((b, k, d), (b, n, d), (b, k, d)) + 2 * per_slot
    assert least["slot_attention_fwd"].bytes == 2 * attention
    gates = tensors((3 * d, d), (3 * d, d), (3 * d,), (3 * d,), (3 * d,))
    # Initial slots are narrow, later ones float32.
    assert least["gru"].bytes == 2 * (slots + per_slot + gates + wide) + slots + wide
    chosen = tensors((b, 7, 24), (b, 7, 24)) + tensors((b, k), (b, 7), size=8)
    assert least["resolve"].bytes == chosen + tensors((b, n), size=4)


@pytest.mark.interpreter
@interpreted
@pytest.mark.parametrize("load", [SMALL, MANY_SLOTS], ids=str)
def test_counts_do_not_depend_on_products(load: Workload) -> None:
    counts = static_cost.count_launches(load)
    assert counts == static_cost.count_launches(load, multiply=True)
    many = ["softmax_stats"] if load is MANY_SLOTS else []
    expected = [*FIRST, *2 * [*many, *ITERATION], *many, *LAST]
    assert [step_of(count.kernel, count.numbers) for count in counts] == expected


@pytest.fixture(scope="module")
def headline() -> Any:
    return static_cost.steps_of(static_cost.count_launches(HEADLINE))


@pytest.mark.slow
@pytest.mark.interpreter
@interpreted
def test_the_pipeline_keeps_to_its_budget_and_rules(headline: Any) -> None:
    assert static_cost.beyond_budget(HEADLINE, headline) == []
    assert static_cost.broken_rules(HEADLINE, static_cost.total_of(headline).costs()) == []


@pytest.mark.slow
@pytest.mark.interpreter
@interpreted
def test_no_step_does_less_than_the_least(headline: Any) -> None:
    least = least_of(HEADLINE)
    needed = [step for step in headline if step.name not in ("start", "layer_norm")]
    assert [step.name for step in needed] == list(least)
    for step in needed:
        assert step.flops >= least[step.name].flops
        assert step.bytes >= least[step.name].bytes
        assert step.loaded + step.stored >= step.bytes


@pytest.mark.parametrize("load", static_cost.LOADS, ids=str)
def test_the_rules_hold_for_every_budget(load: Workload) -> None:
    assert static_cost.broken_rules(load, static_cost.read_budget()[load]["all"]) == []


def test_more_than_the_budget_is_said(tmp_path: Path) -> None:
    step = static_cost.Step("gru", "gru_kernel", 2, 4, 100, 10, 90, 1000)
    budget = tmp_path / "budget.json"
    budget.write_text(static_cost.budget_text({HEADLINE: [step]}), encoding="utf-8")
    assert static_cost.beyond_budget(HEADLINE, [step], budget) == []
    assert static_cost.beyond_budget(HEADLINE, [step._replace(flops=999)], budget) == []
    place = "B=1 N=576 K=64 T=64 1024->512 float16"
    assert static_cost.beyond_budget(HEADLINE, [step._replace(bytes=91)], budget) == [
        f"{place}: gru: 91 bytes, the budget has 90",
        f"{place}: all: 91 bytes, the budget has 90",
    ]
    other = static_cost.beyond_budget(HEADLINE, [step._replace(name="new")], budget)
    assert other[0] == f"{place}: new: 2 launches, the budget has no such step"
    assert static_cost.beyond_budget(square(2, 576, 64, "float16"), [step], budget) == [
        "B=2 N=576 K=64 T=64 1024->512 float16: no budget in budget.json"
    ]


def test_broken_rules_are_said() -> None:
    least = least_total(HEADLINE)
    costs = {"launches": 20, "flops": least.flops, "bytes": least.bytes}
    assert static_cost.broken_rules(HEADLINE, costs) == []
    broken = static_cost.broken_rules(
        HEADLINE, {"launches": 21, "flops": 2 * least.flops, "bytes": 2 * least.bytes}
    )
    assert [sentence.split()[7] for sentence in broken] == ["flops,", "bytes,", "launches,"]
    many = square(1, 576, 192, "float16")
    needed = least_total(many)
    costs = {"launches": 23, "flops": needed.flops, "bytes": needed.bytes}
    assert static_cost.broken_rules(many, costs) == []


def test_the_counts_are_what_projections_take(tmp_path: Path) -> None:
    step = static_cost.Step("gru", "gru_kernel", 2, 4, 100, 10, 90, 1000)
    path = tmp_path / "counts.json"
    path.write_text(static_cost.counts_text({HEADLINE: [step]}), encoding="utf-8")
    assert json.loads(path.read_text())["workloads"][0]["kernels"][0]["kernel"] == "gru"
    ((size, (cost,)),) = read_counts(path).items()
    assert size == Size(1, 576, 64)
    assert (cost.launches, cost.flops, cost.bytes, cost.source) == (2, 1000, 90, "counted")


def test_the_committed_counts_are_the_budget() -> None:
    counts = read_counts(static_cost.BUDGET.with_name("counts.json"))
    for load, steps in static_cost.read_budget().items():
        found = counts[Size(load.batch, load.num_tokens, load.num_slots)]
        assert {cost.kernel: cost.bytes for cost in found} == {
            name: step["bytes"] for name, step in steps.items() if name != "all"
        }


def test_the_page_names_every_step() -> None:
    step = static_cost.Step("gru", "gru_kernel", 2, 4, 10**8, 10**7, 9 * 10**7, 10**9)
    extra = static_cost.Step(
        "softmax_stats", "softmax_stats_kernel", 1, 9, 10**6, 10**6, 10**6, 10**9
    )
    text = static_cost.page({HEADLINE: [step, extra]})
    assert "| softmax_stats | softmax_stats_kernel | 1 | 9 | 1.00 | 1.00 | 1.00 | 0 | — |" in text
    assert "| gru | gru_kernel | 2 | 4 | 100 | 10.0 | 90.0 | " in text


@pytest.mark.slow
@pytest.mark.interpreter
@interpreted
def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(static_cost, "LOADS", (SMALL,))
    page, counts = tmp_path / "page.md", tmp_path / "counts.json"
    arguments = ["--output", str(page), "--counts", str(counts), "--jobs", "1"]
    # This workload has no budget, and its tiles are mostly padding.
    assert static_cost.main(arguments) == 1
    said = capsys.readouterr()
    assert said.out.split() == [str(page), str(counts)]
    assert "no budget in static_cost.json" in said.err and " flops, " in said.err
    assert f"| {SMALL} | 20 |" in page.read_text(encoding="utf-8")
    assert sum(cost.launches for cost in read_counts(counts)[Size(2, 40, 7)]) == 20
