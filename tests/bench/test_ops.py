"""Every op's folder has a file in `bench.ops`, whose cases pass the gate."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest
import torch
from torch import Tensor

from bench import ops as benches
from bench.cases import Outputs
from bench.gate import check_variant
from bench.ops import BENCHES, case_of
from bench.variants import Variant
from bench.workloads import Workload
from ocvtp_kernels import ops

TINY = Workload(2, 40, 7, 7, 24, 16)
CPU = torch.device("cpu")
FOLDERS = [module.name for module in iter_modules(ops.__path__) if module.ispkg]
# What autograd calls is timed as the backward pass of what it differentiates.
BACKWARD = {"slot_attention_backward", "gru_cell_backward"}


def test_every_op_has_a_bench() -> None:
    assert {module.name for module in iter_modules(benches.__path__)} == set(FOLDERS)
    assert set(BENCHES) == set(ops.__all__) - BACKWARD | {"training"}


def test_every_folder_with_triton_kernels_has_launches() -> None:
    for folder in FOLDERS:
        path = Path(ops.__file__).parent / folder
        has_kernels = (path / "triton.py").exists() or (path / "triton").is_dir()
        found = import_module(f"bench.ops.{folder}").BENCHES.values()
        assert any(bench.launchers for bench in found) == has_kernels, folder


@pytest.mark.parametrize("op", BENCHES)
def test_inputs_follow_from_the_seed(op: str) -> None:
    case = case_of(op, TINY, CPU)
    assert case.op == op and case.workload == TINY
    first, again, other = (case.inputs(seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_a_wrong_second_output_is_refused() -> None:
    case = case_of("centrifugal_select", TINY, CPU)

    def wrong(*inputs: Tensor) -> Outputs:
        order, count, *rest = case.call(*inputs)
        return order, count + 1, *rest

    assert not check_variant(case, Variant("wrong", wrong), "forward", seed=5).passed
