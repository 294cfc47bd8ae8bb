"""Programmatic dependent launch: a kernel starts up while the one before it still runs.

`ocvtp_kernels.triton_common.launch.launch` sets ``PDL`` where the GPU supports it. Every program of
every kernel waits before it accesses memory, so when a launch has ended, so have all before it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def wait_for_launches_before(PDL: tl.constexpr):
    """Returns once all launches before this one have ended; a kernel's first statement."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        # The next launch's programs may start where registers are free; they wait here as well.
        tl.extra.cuda.gdc_launch_dependents()
