"""How each op is measured: a file for each folder of `ocvtp_kernels.ops`, found by its name.

A file has ``BENCHES``, an `OpBench` by the name of each of the folder's public ops.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

import torch

from bench.cases import Case, OpBench
from bench.shapes import Workload
from ocvtp_kernels.cost.work import Work

BENCHES: dict[str, OpBench] = {
    op: bench
    for module in iter_modules(__path__)
    for op, bench in import_module(f"{__name__}.{module.name}").BENCHES.items()
}


def case_of(op: str, load: Workload, device: torch.device) -> Case:
    """The case of an op at a workload."""
    return BENCHES[op].case(load, device)


def work_of(op: str, load: Workload, direction: str) -> Work:
    """The work of an op at a workload, ``direction`` forward or backward."""
    bench = BENCHES[op]
    work = bench.backward_work if direction == "backward" else bench.work
    if work is None:
        raise KeyError(f"{op} has no gradient")
    return work(load)
