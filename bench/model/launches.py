"""The launches of `prune` on a GPU that is not here, compiled, as the model takes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import triton
from torch import Tensor

from bench.compiled.binaries import StandIn, disassembled
from bench.compiled.launches import PIPELINE, Job
from bench.compiled.sass import Program, read_sass
from bench.compiled.sass_time import Code, code_of
from bench.model.time import Launched, Way
from bench.model.trips import Branch, Nest, branches
from bench.workloads import Workload
from ocvtp_kernels.triton_common.archs import ARCHS, pretend
from ocvtp_kernels.triton_common.launch import Launch, watch


class Call(NamedTuple):
    """The launches of one call, and the bytes of all their tensors."""

    launches: list[Launched]
    footprint: int


def launches_of(load: Workload, arch: int) -> list[Launch]:
    """What one call of `prune` launches."""
    recorded: list[Launch] = []
    with pretend(ARCHS[arch]), watch(recorded.append):
        for launcher in PIPELINE:
            launcher(load)
    return recorded


def step_of(kernel: str, numbers: Mapping[str, Any]) -> str:
    """The step that a launch is: its kernel, and for a Linear what the numbers tell of it."""
    if kernel == "first_kernel":
        return "encode_up+query"
    if kernel != "linear_kernel":
        return kernel.removesuffix("_kernel")
    if numbers["RESIDUAL"]:
        return "ffn_down"
    if numbers["GELU"]:
        return "ffn_up"
    return "encode_down" if numbers["depth"] > numbers["columns"] else "query"


def tensor_bytes(launch: Launch) -> dict[tuple[Any, ...], int]:
    """Bytes of the distinct tensors among its arguments."""
    return {
        (t.untyped_storage()._cdata, t.storage_offset() * t.element_size()): t.numel()
        * t.element_size()
        for t in launch.arguments.values()
        if isinstance(t, Tensor)
    }


def rounds_of(code: Code, branch: Branch, warps: int) -> list[int]:
    """How often each of the code's steps is gone through."""
    given = {True: list(branch.products), False: list(branch.rest)}
    nests: list[list[int]] = []
    for place, (depth, _, _) in enumerate(code.steps):
        if depth == 0:
            nests.append([])
        nests[-1].append(place)
    times = [1] * len(code.steps)
    for nest in nests:
        multiplies = any(code.steps[place][1] for place in nest)
        waiting = given[multiplies]
        levels = 1 + max(code.steps[place][0] for place in nest)
        rounds = list(folded_to(waiting.pop(0) if waiting else (), levels))
        inner = code.steps[nest[-1]][2]
        if branch.moved and inner.bytes and not waiting and not multiplies:
            # What is left over by an unrolled loop stands around it.
            rounds[-1] //= max(1, round(inner.bytes * warps / branch.moved))
        for place in nest:
            for level in range(code.steps[place][0] + 1):
                times[place] *= rounds[level]
    return times


def folded_to(nest: Nest, levels: int) -> Nest:
    """The rounds of so many loops: the compiler may merge the outer ones, or add some."""
    rounds = [1] * (levels - len(nest)) + list(nest)
    while len(rounds) > levels:
        rounds[:2] = [rounds[0] * rounds[1]]
    return tuple(rounds)


def ways_of(program: Program, found: list[Branch], warps: int, arch: int) -> list[Way]:
    """The ways of a launch's programs through its binary."""
    outermost = [loop for loop in program.loops if not loop.depth and program.multiplies(loop)]
    ways = []
    for branch in found:
        mine = outermost[branch.skip : branch.skip + len(branch.products)]
        wanted = [
            loop
            for loop in program.loops
            if not program.multiplies(loop) or any(loop == one or one.has(loop) for one in mine)
        ]
        code = code_of(program, arch, wanted, branch.end, branch.early)
        steps = zip(rounds_of(code, branch, warps), code.steps, strict=True)
        phases = [(1, code.outside), *((times, step[2]) for times, step in steps if times)]
        ways.append(Way(branch.programs, phases))
    return sorted(ways, key=lambda way: -way.programs)


@lru_cache(1024)
def _read(binary: bytes) -> tuple[int, Program]:
    said = disassembled(binary)
    registers = re.search(r"REG:(\d+)", said)
    assert registers is not None
    return int(registers[1]), read_sass(said)


def compiled_call(load: Workload, arch: int) -> Call:
    """A call's launches, compiled; changes the process' driver."""
    triton.runtime.driver.set_active(StandIn(arch))
    found: list[Launched] = []
    everything: dict[Any, int] = {}
    for launch in launches_of(load, arch):
        job = Job(launch, load.dtype)
        compiled = launch.kernel.warmup(grid=launch.grid, **launch.arguments, **launch.options)
        registers, program = _read(compiled.asm["cubin"])
        own = tensor_bytes(launch)
        everything.update(own)
        found.append(
            Launched(
                step_of(launch.kernel.__name__, launch.arguments),
                job.kernel,
                job.tile,
                launch.options["num_warps"],
                registers,
                compiled.metadata.shared,
                bool(launch.options.get("launch_pdl", False)),
                sum(own.values()),
                ways_of(program, branches(launch), launch.options["num_warps"], arch),
            )
        )
    return Call(found, sum(everything.values()))
