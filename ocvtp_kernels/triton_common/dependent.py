"""Programmatic dependent launch: a kernel is brought up while the one before it still runs.

`ocvtp_kernels.triton_common.launch.launch` sets ``PDL`` where the GPU has it. Every program of every kernel
waits before it touches memory, so a launch that has ended implies that all before it have.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def wait_for_launches_before(PDL: tl.constexpr):
    """Returns once all launches before this one have ended; first thing in a kernel."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        # The next launch's programs may take room that this one leaves; they wait here as well.
        tl.extra.cuda.gdc_launch_dependents()
