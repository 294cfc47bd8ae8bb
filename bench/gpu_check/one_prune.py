"""One call of `prune` for Nsight Compute, and reading its table of the call's kernels.

``python -m bench.gpu_check.one_prune INDEX``: two calls to warm up, then the one that is profiled.
"""

from __future__ import annotations

import csv
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

SIZES = ((1, 576, 64), (64, 576, 64), (1, 2880, 160))  # images, tokens, slots and tokens kept
# Durations in ns; the rest are percentages of the peak sustained.
METRICS = {
    "ns": "gpu__time_duration.sum",
    "sm": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "memory": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
}


def name(index: int) -> str:
    """A workload in words."""
    batch, tokens, slots = SIZES[index]
    return f"B {batch}, N {tokens}, K {slots}, bfloat16"


def read(path: Path) -> list[dict[str, Any]]:
    """Each kernel of the call in order, with its `METRICS`; empty where ncu reports none."""
    # ncu prints messages before the table.
    _, header, table = path.read_text(encoding="utf-8").partition('"ID"')
    kernels: dict[str, dict[str, Any]] = {}
    names = {metric: short for short, metric in METRICS.items()}
    for row in csv.DictReader((header + table).splitlines()):
        kernel = kernels.setdefault(row["ID"], {"kernel": row["Kernel Name"].partition("(")[0]})
        with suppress(KeyError, ValueError):
            kernel[names[row["Metric Name"]]] = float(row["Metric Value"].replace(",", ""))
    return [kernel for kernel in kernels.values() if "ns" in kernel]


def main(index: int) -> int:
    """Runs the call; returns the exit status."""
    import torch

    from bench.ops import case_of
    from bench.workloads import square

    with torch.no_grad():
        case = case_of("prune", square(*SIZES[index], "bfloat16"), torch.device("cuda"))
        inputs = case.inputs(1)
        for _ in range(2):
            case.call(*inputs)
        torch.cuda.synchronize()
        profiler: Any = torch.cuda.cudart()
        profiler.cudaProfilerStart()
        case.call(*inputs)
        torch.cuda.synchronize()
        profiler.cudaProfilerStop()
    print(name(index))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
