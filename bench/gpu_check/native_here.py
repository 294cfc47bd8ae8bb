"""Whether the native objects load for a device, and know its chip: status 0, or 1 and why not.

``python -m bench.gpu_check.native_here cuda|cpu``.
"""

from __future__ import annotations

import sys

import torch

from ocvtp_kernels import native
from ocvtp_kernels.gpu.chips import capability_of


def why_not(device: str) -> str | None:
    """The sentence why not, or None."""
    reason = native.why_not(device)
    info = native.build_info()
    if reason is not None or isinstance(info, str):
        return reason or str(info)
    if device == "cuda":
        capability = capability_of(torch.cuda.current_device())
        chip = f"{capability // 10}.{capability % 10}"
        if chip not in info.cuda_architectures:
            return f"built for {', '.join(info.cuda_architectures)}, this is {chip}"
    return None


if __name__ == "__main__":
    said = why_not(sys.argv[1])
    print(said or "here")
    sys.exit(said is not None)
