"""The time of launches on a GPU that is not here, from their binaries' counts.

A program takes its loops' steps one after another. A step lasts as long as what is busiest: the
schedulers, the tensor cores, the multiprocessor's port to L2, for all programs that it holds; or
the longest chain of one program, whose warps wait together. Programs come in waves. Beside them
stand the bytes through L2 and, where the call's tensors do not fit it, through memory.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any, NamedTuple

from bench.compiled.sass_time import Phase

SCHEDULERS = 4  # of a multiprocessor
REGISTERS, WARPS, PROGRAMS = 65536, 64, 32  # most of a multiprocessor
REGISTER_UNIT, SHARED_UNIT = 256, 1024  # allocated at a time: registers a warp, bytes a program
PORT = 64  # bytes a cycle between a multiprocessor and L2
BOUNDS = ("issue", "tensor", "L2 port", "latency")  # of what a multiprocessor does


class Silicon(NamedTuple):
    """What a GPU is made of.

    Attributes:
        name: as it is sold.
        capability: 90 for sm_90.
        multiprocessors: of the whole GPU.
        ghz: clock under load.
        shared: bytes of shared memory a multiprocessor, 1 KiB a program taken off.
        l2_tb_s: bytes that L2 gives all multiprocessors together.
        l2_mb: its size.
        hbm_tb_s: bytes from memory.
    """

    name: str
    capability: int
    multiprocessors: int
    ghz: float
    shared: int
    l2_tb_s: float
    l2_mb: float
    hbm_tb_s: float


# Sizes: NVIDIA A100 and H100 whitepapers and datasheets. Clocks: H100 SXM at 1.75 of its 1.98 GHz
# boost; A100 at its boost. L2: 5.5 to 7 TB/s on H100 (Chips and Cheese, "Nvidia's H100: Funny L2,
# and Tons of Bandwidth"), and about half on A100; within that range 6.8 fits the estimate of
# `tests/bench/model/calibration.json` best. Memory: nine tenths of the datasheet, as copies reach.
SILICON = {
    one.name: one
    for one in (
        Silicon("A100", 80, 108, 1.41, 164 * 1024, 3.5, 40, 0.9 * 2.039),
        Silicon("H100", 90, 132, 1.75, 228 * 1024, 6.8, 50, 0.9 * 3.35),
        Silicon("H200", 90, 132, 1.75, 228 * 1024, 6.8, 50, 0.9 * 4.8),
    )
}
# Between two nodes of a CUDA graph, and what programmatic dependent launch hides of it.
GAP_S, DEPENDENT_S = 1.3e-6, 1.0e-6
ISSUE = 0.95  # of the schedulers' cycles that busy warps use


class Way(NamedTuple):
    """Programs of a launch that go the same way, each phase with how often it is gone through."""

    programs: int
    phases: list[tuple[int, Phase]]


class Launched(NamedTuple):
    """A launch as the model knows it.

    Attributes:
        name: its step.
        kernel, tile: what was compiled.
        warps: of a program; registers of a thread; shared bytes of a program.
        dependent: a programmatic dependent launch.
        bytes: of its tensors, each once.
        ways: of its programs, the first that of most.
    """

    name: str
    kernel: str
    tile: str
    warps: int
    registers: int
    shared: int
    dependent: bool
    bytes: int
    ways: list[Way]

    @property
    def programs(self) -> int:
        return sum(way.programs for way in self.ways)

    @property
    def flops(self) -> int:
        """Of its tensor cores, two for a multiply-add."""
        return 2 * self.of_all(lambda phase: phase.fmas)

    def of_all(self, number: Callable[[Phase], Any]) -> Any:
        """The sum of a warp's number over all warps of all programs."""
        return sum(
            way.programs * self.warps * times * number(phase)
            for way in self.ways
            for times, phase in way.phases
        )


class Time(NamedTuple):
    """A launch's time and where it goes.

    Attributes:
        seconds: all of it.
        resident: programs on a multiprocessor at once; waves of them.
        bound: what is busiest, in a word.
        l2_bytes: asked of L2.
        tensor: share of the time that tensor cores are busy.
    """

    seconds: float
    resident: int
    waves: float
    bound: str
    l2_bytes: int
    tensor: float


def resident(launched: Launched, gpu: Silicon) -> int:
    """Programs that a multiprocessor holds at once."""
    registers = -(-launched.registers * 32 // REGISTER_UNIT) * REGISTER_UNIT * launched.warps
    shared = (launched.shared // SHARED_UNIT + 2) * SHARED_UNIT
    return max(
        1,
        min(REGISTERS // registers, gpu.shared // shared, WARPS // launched.warps, PROGRAMS),
    )


def phase_cycles(phase: Phase, warps: int, together: int) -> dict[str, float]:
    """Cycles of one step of so many programs on a multiprocessor, by what takes them."""
    # Warps of one scheduler, of all programs and of one.
    all_its, its = together * warps / SCHEDULERS, max(warps / SCHEDULERS, 1)
    issue = phase.instructions / ISSUE
    return {
        "issue": all_its * issue,
        "tensor": all_its * phase.tensor,
        "L2 port": together * warps * phase.bytes / PORT,
        "latency": max(its * issue, phase.busy) + phase.waits,
    }


def program_cycles(way: Way, warps: int, together: int) -> tuple[float, dict[str, float]]:
    """Cycles of so many programs side by side, and how many of these each bound takes."""
    total, bounds = 0.0, dict.fromkeys(BOUNDS, 0.0)
    for times, phase in way.phases:
        cycles = phase_cycles(phase, warps, together)
        bound = max(cycles, key=lambda name: cycles[name])
        total += times * cycles[bound]
        bounds[bound] += times * cycles[bound]
    return total, bounds


def time_of(launched: Launched, gpu: Silicon, footprint: int = 0) -> Time:
    """A launch's time; ``footprint`` is what the whole call's tensors take, in bytes."""
    together = resident(launched, gpu)
    slots = together * gpu.multiprocessors
    full, rest = divmod(launched.programs, slots)
    parts = []  # shares of cycles, and these by bound
    if full:
        for way in launched.ways:
            share = full * way.programs / launched.programs
            parts.append((share, program_cycles(way, launched.warps, together)))
    if rest:
        here = ceil(rest / gpu.multiprocessors)
        ends = [program_cycles(way, launched.warps, here) for way in launched.ways]
        parts.append((1.0, max(ends, key=lambda each: each[0])))
    cycles = sum(share * taken for share, (taken, _) in parts)
    bounds = {name: sum(share * by[name] for share, (_, by) in parts) for name in BOUNDS}
    hertz = gpu.ghz * 1e9
    asked = launched.of_all(lambda phase: phase.bytes)
    crossing = min(launched.bytes, asked) if footprint > gpu.l2_mb * 1e6 else 0
    seconds = {
        max(bounds, key=lambda name: bounds[name]): cycles / hertz,
        "L2": asked / (gpu.l2_tb_s * 1e12),
        "memory": crossing / (gpu.hbm_tb_s * 1e12),
    }
    bound = max(seconds, key=lambda name: seconds[name])
    gap = GAP_S - DEPENDENT_S if launched.dependent else GAP_S
    tensor = launched.of_all(lambda phase: phase.tensor) / SCHEDULERS
    busy = tensor / gpu.multiprocessors / hertz
    return Time(
        gap + seconds[bound],
        together,
        launched.programs / slots,
        bound,
        asked,
        busy / seconds[bound] if seconds[bound] else 0.0,
    )
