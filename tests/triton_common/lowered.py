"""Lowers every Triton kernel to Triton's own IR where sizes are 1; prints those that fail.

Triton passes a number that is 1 as a constant, which is no tensor in the kernel. No GPU is needed,
and nothing is compiled further. It stays in its own process, whose driver it replaces.
"""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.nvidia.compiler import CUDABackend

from bench.compiled.binaries import StandIn
from bench.ops import BENCHES
from bench.workloads import Workload
from ocvtp_kernels.triton_common.archs import ARCHS, pretend
from ocvtp_kernels.triton_common.launch import Launch, watch

ARCH = 90
SIZES = (
    {"batch": 1, "num_tokens": 1, "num_slots": 1, "budget": 1, "in_dim": 1, "slot_dim": 1},
    {"batch": 1, "num_tokens": 1, "num_slots": 130, "budget": 1, "in_dim": 16, "slot_dim": 16},
    {"batch": 1, "num_tokens": 576, "num_slots": 1, "budget": 1, "in_dim": 1024, "slot_dim": 512},
)
add_stages = CUDABackend.add_stages


def only_ttir(self: CUDABackend, stages: dict[str, Any], *args: Any, **kwargs: Any) -> None:
    add_stages(self, stages, *args, **kwargs)
    for stage in set(stages) - {"ttir"}:
        del stages[stage]
    missing = {"name": "none", "shared": 0, "tmem_size": 0, "num_warps": 4}
    stages["cubin"] = lambda _, metadata: metadata.update(missing | metadata) or b"none"


def main() -> None:
    CUDABackend.add_stages = only_ttir
    triton.runtime.driver.set_active(StandIn(ARCH))
    kernels, failed = set(), set()
    for op, bench in BENCHES.items():
        for sizes in SIZES:
            for dtype in ("bfloat16", "float32"):
                recorded: list[Launch] = []
                with pretend(ARCHS[ARCH]), watch(recorded.append):
                    for launcher in bench.launchers:
                        launcher(Workload(dtype=dtype, **sizes))
                for kernel, grid, arguments, options in recorded:
                    kernels.add(kernel.__name__)
                    try:
                        kernel.warmup(grid=grid, **arguments, **options)
                    except Exception as error:
                        last = str(error).strip().splitlines()[-1]
                        failed.add(f"{kernel.__name__} of {op}, {dtype}, {sizes}: {last}")
    print("\n".join(sorted(failed)))
    print(f"{len(kernels)} kernels, {len(failed)} failures")


if __name__ == "__main__":
    main()
