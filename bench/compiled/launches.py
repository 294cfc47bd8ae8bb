"""The launches of every Triton kernel and tile on an architecture, for the compile report.

Nothing runs: launchers get tensors without memory, and what they would launch is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

from torch import Tensor

from bench.cases import Launcher
from bench.ops import BENCHES
from bench.workloads import square
from ocvtp_kernels.triton_common.archs import ARCHS, pretend
from ocvtp_kernels.triton_common.launch import Launch, watch

BATCHES = (1, 8, 64)
SIZES = ((576, 64), (576, 128), (576, 192), (2880, 160))  # tokens, slots
# Every function that launches kernels is called by one of these.
LAUNCHERS = tuple(launcher for bench in BENCHES.values() for launcher in bench.launchers)
PIPELINE = BENCHES["prune"].launchers
ATTENTION = BENCHES["slot_attention"].launchers[:1]  # forward


class Job(NamedTuple):
    """A launch of a workload's dtype."""

    launch: Launch
    dtype: str

    @property
    def kernel(self) -> str:
        """The kernel's name without its ending."""
        name: str = self.launch.kernel.__name__
        return name.removesuffix("_kernel")

    @property
    def tile(self) -> str:
        """The constants that are on, in short: ``NORM BLOCK_M 64``."""
        words = []
        for name, value in self.launch.arguments.items():
            # A float32 dot's precision follows from the dtype.
            if name.isupper() and name != "PRECISION" and value is not False:
                words.append(name if value is True else f"{name} {value}")
        return " ".join(words)

    @property
    def decides(self) -> tuple[Any, ...]:
        """What decides the binary: kernel, constants, dtypes and options.

        Triton also tells a number that is 1, or a multiple of 16, from others. That multiplies the
        binaries of a tile but hardly changes them, so the first of each is taken.
        """
        kernel, _, arguments, options = self.launch
        kinds = [
            value.dtype if isinstance(value, Tensor) else value if name.isupper() else type(value)
            for name, value in arguments.items()
        ]
        return kernel.__name__, *kinds, *sorted(options.items())


class Part(NamedTuple):
    """A part of the report: who launches what on which GPU, less what other parts launch too."""

    arch: int
    dtype: str
    launchers: tuple[Launcher, ...] = LAUNCHERS
    less: tuple[Part, ...] = ()
    batches: tuple[int, ...] = BATCHES


# Binaries of the first have the registers, stack and shared memory of the second's.
TWINS = {86: 89}


def plan(archs: Sequence[int], short: bool) -> list[Part]:
    """Half precision on every architecture, and float32 where the code differs most.

    float32 multiplies outside the tensor cores, so its code differs little between GPUs: it is
    compiled for sm_80 and sm_90 alone. The short plan, which the tests run, takes everything on
    sm_90, Slot Attention beside the pipeline on sm_80 and sm_100, whose instructions differ, and
    elsewhere, and in float32 for sm_80, only the pipeline; for sm_86 what sm_89 does not have too;
    and but for sm_90 no batch between one and many.
    """
    short_of = {80: PIPELINE + ATTENTION, 90: LAUNCHERS, 100: PIPELINE + ATTENTION}
    parts = []
    for arch in archs:
        launchers = short_of.get(arch, PIPELINE) if short else LAUNCHERS
        twin = TWINS.get(arch, arch)
        left_out = short and twin != arch and twin in archs
        batches = (BATCHES[0], BATCHES[-1]) if short and arch != 90 else BATCHES
        less = (Part(twin, "bfloat16", PIPELINE, (), batches),) if left_out else ()
        parts.append(Part(arch, "bfloat16", launchers, less, batches))
        if arch == 80 or (arch == 90 and not short):
            single = PIPELINE if short else LAUNCHERS
            parts.append(Part(arch, "float32", single, (), batches))
    return parts


@cache
def launches(part: Part) -> list[Job]:
    """What a part launches, each binary once."""
    found: dict[tuple[Any, ...], Job] = {}
    with pretend(ARCHS[part.arch]):
        for (num_tokens, num_slots), batch in product(SIZES, part.batches):
            load = square(batch, num_tokens, num_slots, part.dtype)
            recorded: list[Launch] = []
            with watch(recorded.append):
                for launcher in part.launchers:
                    launcher(load)
            for one in recorded:
                job = Job(one, part.dtype)
                found.setdefault(job.decides, job)
    compiled = {job.decides for other in part.less for job in launches(other)}
    return [job for decides, job in found.items() if decides not in compiled]
