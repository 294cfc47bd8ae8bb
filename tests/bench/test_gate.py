"""The gate lets right variants through and finds out wrong, lazy and half-done ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.cases import Case, Outputs, outputs_of
from bench.gate import check_variant, time_gated
from bench.jobs import jobs
from bench.ops import BENCHES, case_of
from bench.results import CheckResult, Times
from bench.timing import StaleReplay
from bench.variants import Run, Variant, variants_of
from bench.workloads import Workload, Workloads

TINY = Workload(2, 40, 7, 7, 24, 16)
CPU = torch.device("cpu")
JOBS = [
    (job.op, job.direction)
    for suite in ("prune", "ops")
    for job in jobs(suite, Workloads((TINY,), (TINY,)), BENCHES)
]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
WITH_GRADIENT = sorted(op for op, bench in BENCHES.items() if bench.backward_work)
IDS = ["-".join(job) for job in JOBS]


def tiny_case(op: str, dtype: str = "float32") -> Case:
    return case_of(op, Workload(2, 40, 7, 7, 24, 16, dtype), CPU)


def check_of(op: str, function: Any, direction: str = "forward") -> CheckResult:
    return check_variant(tiny_case(op), Variant("tried", function), direction, seed=1)


def test_every_op_is_judged() -> None:
    assert {op for op, _ in JOBS} == set(BENCHES)
    assert {op for op, direction in JOBS if direction == "backward"} == set(WITH_GRADIENT)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("op", "direction"), JOBS, ids=IDS)
def test_right_variants_pass(op: str, direction: str, dtype: str) -> None:
    case = tiny_case(op, dtype)
    variants, _ = variants_of(case, direction)
    assert {"eager"} < {variant.name for variant in variants}
    for variant in variants:
        check = check_variant(case, variant, direction, seed=3)
        assert check.passed, f"{variant.name}: {check.note}"


@pytest.mark.parametrize(("op", "direction"), JOBS, ids=IDS)
def test_a_slightly_wrong_variant_is_refused(op: str, direction: str) -> None:
    case = tiny_case(op)

    def wrong(*inputs: Tensor) -> Outputs:
        first, *rest = outputs_of(case.call(*inputs))
        # One id too high, or a thousandth too much.
        return first + 1 if not first.is_floating_point() else first * 1.001, *rest

    assert not check_variant(case, Variant("wrong", wrong), direction, seed=1).passed


class Remembers:
    """Computes once for each key, and returns that ever after."""

    def __init__(self, function: Any, key: Callable[..., Any], copy: bool) -> None:
        self.function, self.key, self.copy = function, key, copy
        self.known: dict[Any, Outputs] = {}

    def __call__(self, *inputs: Tensor) -> Outputs:
        key = self.key(*inputs)
        if key not in self.known:
            self.known[key] = outputs_of(self.function(*inputs))
            if not self.copy:
                return self.known[key]
        found = self.known[key]
        return tuple(output.clone() for output in found) if self.copy else found


@pytest.mark.parametrize("copy", [False, True], ids=["the same memory", "a copy"])
@pytest.mark.parametrize(
    "key", [lambda *_: 0, lambda first, *_: first.data_ptr()], ids=["always", "by address"]
)
@pytest.mark.parametrize("op", list(BENCHES))
def test_whoever_skips_the_work_is_caught(op: str, key: Callable[..., Any], copy: bool) -> None:
    lazy = Remembers(tiny_case(op).call, key, copy)
    assert not check_of(op, lazy).passed


@pytest.mark.parametrize("op", WITH_GRADIENT)
def test_a_backward_that_skips_the_work_is_caught(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = tiny_case(op)
    honest = Variant.bind

    def lazy(self: Variant, *arguments: Any) -> Run:
        run = honest(self, *arguments)
        known: list[Outputs] = []

        def remember() -> Outputs:
            if not known:
                known.append(tuple(output.clone() for output in run()))
            return tuple(output.clone() for output in known[0])

        return remember

    monkeypatch.setattr(Variant, "bind", lazy)
    assert not check_variant(case, Variant("lazy", case.call), "backward", seed=1).passed


def test_a_part_left_unwritten_is_caught() -> None:
    memory: list[Tensor] = []

    def partial(q: Tensor, k: Tensor, v: Tensor) -> Outputs:
        updates, mass = torch.ops.ocvtp.slot_attention(q, k, v, TINY.slot_dim**-0.5)
        if not memory:
            memory.append(updates.clone())
            return memory[0], mass
        memory[0][:, :-1] = updates[:, :-1]
        return memory[0], mass

    assert not check_of("slot_attention", partial).passed


def test_nan_is_refused() -> None:
    def nan(*inputs: Tensor) -> Tensor:
        return torch.ops.ocvtp.gru_cell(*inputs) * torch.nan

    assert not check_of("gru_cell", nan).passed


def test_an_error_fails_the_check() -> None:
    def broken(*_: Tensor) -> Tensor:
        raise RuntimeError("no kernel image is available")

    check = check_of("gru_cell", broken)
    assert check == CheckResult(False, "it fails: RuntimeError: no kernel image is available")


@pytest.mark.parametrize("wrong", ["order", "padding", "rows", "slot"])
def test_wrong_picks_are_refused(wrong: str) -> None:
    case = case_of("argmax_gather", Workload(2, 40, 4, 9, 24, 16), CPU)

    def picks(q: Tensor, k: Tensor, final: Tensor, importance: Tensor) -> Outputs:
        tokens, ids = case.call(q, k, final, -importance if wrong == "padding" else importance)
        if wrong == "order":
            return tokens.flip(1), ids.flip(1)
        if wrong == "rows":
            return tokens.roll(1, dims=1), ids
        if wrong == "slot":
            # A slot's best token gives way to one that was not kept.
            best = torch.ops.ocvtp.slot_argmax(q, k)[0][:, :1]
            others = torch.ones_like(importance).scatter(1, ids, 0.0).argmax(1, keepdim=True)
            ids = torch.where(ids == best, others, ids).sort(dim=1).values
            tokens = final.gather(1, ids.unsqueeze(-1).expand_as(tokens))
        return tokens, ids

    assert check_variant(case, Variant("right", case.call), "forward", seed=1).passed
    assert not check_variant(case, Variant("wrong", picks), "forward", seed=1).passed


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("op", "direction"), JOBS, ids=IDS)
def test_ops_pass_on_cuda(op: str, direction: str) -> None:
    case = case_of(op, TINY, torch.device("cuda"))
    check = check_variant(case, Variant("ocvtp", case.call), direction, seed=1)
    assert check.passed, check.note


@pytest.mark.gpu
@needs_gpu
def test_small_prune_on_cuda() -> None:
    case = case_of("prune", TINY, torch.device("cuda"))
    outputs = case.call(*case.inputs(1))
    assert torch.equal(outputs[1], case.reference(*case.inputs(1))[1])


def test_what_is_wrong_before_or_after_it_is_timed_or_while_it_is_gets_no_time() -> None:
    timed: list[list[str]] = []

    def check(name: str, after: bool) -> CheckResult:
        return CheckResult(name != "wrong" and not (after and name == "lazy"), "a note")

    def measure(names: list[str]) -> dict[str, Times]:
        timed.append(names)
        if "stale" in names:
            raise StaleReplay("stale")
        if "large" in names:
            raise torch.OutOfMemoryError
        return dict.fromkeys(names, Times(1.0, 1.0, 1.0, 1))

    checks, times = time_gated(("right", "wrong", "lazy", "stale"), check, measure)
    assert timed == [["right", "lazy", "stale"], ["right", "lazy"]] and list(times) == timed[1]
    assert {name: one.note for name, one in checks.items() if not one.passed} == {
        "wrong": "a note",
        "lazy": "after the timing, a note",
        "stale": "its CUDA graph does not compute the outputs anew",
    }
    checks, times = time_gated(("right", "large", "wrong"), check, measure)
    notes = [one.note for one in checks.values() if not one.passed]
    assert notes == [*2 * ["out of memory while taking turns"], "a note"] and not times
