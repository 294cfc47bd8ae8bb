"""Every op on small inputs on one GPU backend, for compute-sanitizer.

``python -m bench.gpu_check.every_op triton|cuda``. Without pytest, whose collection takes longer
under a sanitizer than the calls.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

from ocvtp_kernels import backends
from tests.ops.cases import ARGUMENTS, op
from tests.ops.test_every_op import map_tensors

DTYPES = (torch.float32, torch.bfloat16)
BATCHES = (1, 3)


def calls() -> Iterator[tuple[str, torch.dtype, int]]:
    """Op, dtype and batch of every call."""
    return ((name, dtype, b) for name in ARGUMENTS for dtype in DTYPES for b in BATCHES)


def main(backend: str) -> int:
    """Runs the calls; returns the exit status, 1 where none ran."""
    ran = 0
    for name, dtype, batch in calls():
        arguments = map_tensors(lambda t: t.to("cuda"), ARGUMENTS[name](batch=batch, dtype=dtype))
        if backends.unsupported_by_call(name, backend, arguments) is None:
            with backends.use_backend(backend):
                op(name)(*arguments)
            ran += 1
    torch.cuda.synchronize()
    print(f"{ran} calls on {backend}")
    return 0 if ran else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
