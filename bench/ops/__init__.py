"""How each op is measured: a file for each folder of `ocvtp_kernels.ops`, found by its name.

A file has ``BENCHES``, an `OpBench` by the name of each of the folder's public ops.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules

import torch

from bench import training
from bench.cases import Case, OpBench
from bench.modes import MODES, mode_of
from bench.workloads import Workload
from ocvtp_kernels.cost.work import Work

BENCHES: dict[str, OpBench] = {
    op: bench
    for module in iter_modules(__path__)
    for op, bench in import_module(f"{__name__}.{module.name}").BENCHES.items()
} | training.BENCHES


def case_of(op: str, load: Workload, device: torch.device) -> Case:
    """The case of an op at a workload, called as the workload's mode says.

    Raises:
        ValueError: there is no such mode, or not of this op.
    """
    bench = BENCHES[op]
    if load.mode not in (known := {**MODES, **bench.ways}):
        raise ValueError(f"mode: expected one of {', '.join(known)} for {op}, got {load.mode}")
    case = bench.ways.get(load.mode, bench.case)(load, device)
    return replace(case, call=mode_of(load.mode).ours(case.call))


def work_of(op: str, load: Workload, direction: str) -> Work:
    """The work of an op at a workload, ``direction`` forward or backward."""
    bench = BENCHES[op]
    work = bench.backward_work if direction == "backward" else bench.work
    if work is None:
        raise KeyError(f"{op} has no gradient")
    return work(load)
