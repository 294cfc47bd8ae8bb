from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.cases import outputs_of
from bench.ceilings import measure_ceilings, tensor_bytes
from bench.gate import fresh
from bench.jobs import jobs
from bench.ops import BENCHES, case_of, work_of
from bench.ops.bipartite_merge import num_merged
from bench.results import Ceilings
from bench.variants import Variant
from bench.workloads import (
    CPU,
    CPU_SHORT,
    CUDA,
    CUDA_SHORT,
    HEADLINE,
    Workload,
    Workloads,
    workloads,
)
from ocvtp_kernels import ops
from ocvtp_kernels.backends import use_backend
from ocvtp_kernels.cost.work import Work

LOAD = Workload(2, 40, 7, 7, 24, 16)
JOBS = [
    (job.op, job.direction)
    for suite in ("prune", "ops")
    for job in jobs(suite, Workloads((LOAD,), (LOAD,)), BENCHES)
    if job.op != "training"  # whose FLOPs torch counts anyway
]


@pytest.mark.parametrize(("op", "direction"), JOBS, ids=["-".join(job) for job in JOBS])
def test_flops_are_those_that_torch_counts(
    monkeypatch: pytest.MonkeyPatch, op: str, direction: str
) -> None:
    case = case_of(op, LOAD, torch.device("cpu"))
    # torch does not look into an op, so the references are counted, without a kept attention.
    backwards = {
        "slot_attention": lambda *args: ops.slot_attention_backward.reference(*args[:11]),
        "gru_cell": ops.gru_cell_backward.reference,
    }
    for folder, counted in backwards.items():
        module = import_module(f"ocvtp_kernels.ops.{folder}")
        monkeypatch.setattr(module, f"{folder}_backward", counted)
    function = case.call if direction == "backward" else case.reference
    if case.pruner is not None and direction == "forward":
        weights = case.pruner.packed()

        def function(reference: Tensor, final: Tensor, slots: Tensor, scores: Tensor) -> Any:
            return ops.prune.reference(reference, final, weights, slots, scores, LOAD.budget)

    # Attention and gates are made anew, as on a GPU: on the CPU our own kernels keep them.
    with use_backend("reference"):
        run = Variant("counted", function).bind(case, direction, *fresh(case, direction, seed=1))
        with FlopCounterMode(display=False) as counter:
            run()
    # The reference multiplies by a matrix that has one number a column, which no kernel has to.
    merged, by_owner = num_merged(LOAD), 2 * math.prod(LOAD.tokens)
    sparse = {"merge": LOAD.budget * by_owner, "scatter_merge": LOAD.budget * by_owner}
    sparse["bipartite_merge"] = merged * by_owner // LOAD.num_tokens * (LOAD.num_tokens - merged)
    beyond = sparse.get(op, 0) if direction == "forward" else 0
    assert work_of(op, LOAD, direction).flops + beyond == counter.get_total_flops()


@pytest.mark.parametrize("op", list(BENCHES))
def test_bytes_cover_inputs_and_outputs(op: str) -> None:
    if op in ("prune", "argmax_gather"):
        pytest.skip("of the final tokens only the kept rows have to be read")
    if op in ("prune_picks", "training"):
        pytest.skip("weights are no inputs of the case: test_published_size counts them")
    case = case_of(op, LOAD, torch.device("cpu"))
    inputs = case.inputs(1)
    outputs = outputs_of(case.call(*inputs))
    assert work_of(op, LOAD, "forward").bytes == tensor_bytes(*inputs, *outputs)


def test_published_size() -> None:
    assert work_of("prune", HEADLINE, "forward").flops == pytest.approx(4.85e9, rel=0.01)
    case = case_of("prune", HEADLINE, torch.device("cpu"))
    assert case.pruner is not None
    reference, _, slots_init, importance = case.inputs(1)
    kept, ids = 64 * 1024 * 4, 64 * 8
    read = tensor_bytes(reference, *case.pruner.packed(), slots_init, importance)
    assert work_of("prune", HEADLINE, "forward").bytes == read + 2 * kept + ids
    picked = 64 * (8 + 4) + 576 * 4
    read -= tensor_bytes(importance)
    assert work_of("prune_picks", HEADLINE, "forward").bytes == read + picked


def test_the_roofline_is_the_larger_time() -> None:
    ceilings = Ceilings(copy_gb_s=100.0, matmul_tflops={"float32": 2.0, "bfloat16": 20.0})
    assert ceilings.roofline_seconds(Work(4 * 10**12, 10**9), "float32") == 2.0
    assert ceilings.roofline_seconds(Work(4 * 10**12, 10**11), "bfloat16") == 1.0
    # Half that is slower than float32 is no ceiling.
    slow = Ceilings(copy_gb_s=100.0, matmul_tflops={"float32": 2.0, "float16": 0.01})
    assert slow.roofline_seconds(Work(4 * 10**12, 10**9), "float16") == 2.0


def test_ceilings_are_measured() -> None:
    ceilings = measure_ceilings(torch.device("cpu"), ("float32",), short=True)
    assert ceilings.copy_gb_s > 0.1
    assert set(ceilings.matmul_tflops) == {"float32"} and ceilings.matmul_tflops["float32"] > 1e-4


def test_the_list_of_workloads() -> None:
    grid = CUDA.prune
    sizes = {(576, 64), (576, 128), (576, 192), (2880, 160), (2880, 320), (2880, 640)}
    assert {(load.num_tokens, load.num_slots) for load in grid} == sizes
    assert {load.batch for load in grid} == {1, 8, 64}
    assert {load.dtype for load in grid} == {"float32", "bfloat16", "float16"}
    assert {(load.in_dim, load.slot_dim) for load in grid} == {(1024, 512)}
    for chosen in (CUDA, CUDA_SHORT, CPU, CPU_SHORT):
        assert len(set(chosen.prune)) == len(chosen.prune)
        assert set(chosen.compiled) <= set(chosen.prune)
        assert all(load.slot_dim <= 256 for load in chosen.narrow)
    assert workloads("cpu", True) is CPU_SHORT and workloads("cuda", False) is CUDA
