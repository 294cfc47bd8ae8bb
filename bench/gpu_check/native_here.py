"""Whether the native objects load for a device, and know the GPU: status 0, or 1 and why not.

``python -m bench.gpu_check.native_here cuda|cpu``. Status 2 where there is no such device; of a GPU
it tells the compute capability, ``chip 9.0``.
"""

from __future__ import annotations

import sys

import torch

from ocvtp_kernels import native
from ocvtp_kernels.triton_common.archs import capability_of

NO_DEVICE = 2


def main(device: str) -> int:
    """Prints the result; returns the exit status."""
    reason, info, arch = native.missing_reason(device), native.build_info(), ""
    if device == "cuda":
        if not torch.cuda.is_available():
            print(f"torch {torch.__version__} sees no GPU")
            return NO_DEVICE
        capability = capability_of(torch.cuda.current_device())
        arch = f"{capability // 10}.{capability % 10}"  # as CMake names it
        print(f"chip {arch}")
    if isinstance(info, str):
        reason = reason or info
    elif arch and arch not in info.cuda_architectures:
        reason = reason or f"built for {', '.join(info.cuda_architectures)}, this is {arch}"
    print(reason or "here")
    return int(reason is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
