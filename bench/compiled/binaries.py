"""The compiled binary of each launch: registers, stack, shared memory, instructions.

No GPU is needed: Triton compiles for the architecture that a stand-in driver reports.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.errors import TritonError

from bench.compiled.launches import Part, launches
from bench.compiled.sass import read_sass
from bench.compiled.sass_counts import Counts, counts_of
from bench.compiled.sums import sums_of

WORKERS = 2
# An instruction that multiplies matrices, by how it reads in PTX; the older, the weaker.
INSTRUCTIONS = {"mma.sync": "mma.sync", "wgmma": "wgmma.mma_async", "tcgen05": "tcgen05.mma"}
STRENGTH = ("none", *INSTRUCTIONS)


class Row(NamedTuple):
    """A kernel's tile on an architecture, the worst of the binaries it compiles to."""

    arch: int
    kernel: str
    tile: str
    dtype: str
    warps: int
    stages: int | None  # None where the kernel has no loop to overlap
    registers: int = 0  # a thread
    stack: int = 0  # bytes a thread
    shared: int = 0  # bytes a program
    instruction: str = "none"  # the weakest of `INSTRUCTIONS` in any binary
    counts: Counts = Counts()  # of its instructions
    orders: frozenset[tuple[str, ...]] = frozenset()  # of its sums, one of each binary
    failure: str = ""  # why it does not compile

    def numbers(self) -> dict[str, float | str]:
        """What the budget records."""
        names = ("registers", "stack", "shared", "instruction")
        numbers = {name: getattr(self, name) for name in names}
        counts = self.counts._asdict()
        return numbers | (counts if counts["step"] else {"outside": counts["outside"]})

    @property
    def key(self) -> str:
        """Unique among the rows of its arch."""
        stages = "" if self.stages is None else f", {self.stages} stages"
        return f"{self.kernel} {self.tile}, {self.dtype}, {self.warps} warps{stages}"


class StandIn:
    """Triton's driver for a GPU that is not there, of this compute capability."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        # Triton caches binaries by device, so each architecture is a device.
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_launch(part: Part, index: int) -> Row:
    """Compiles one launch; changes the process' driver, so only for a process of its own."""
    # Launches cannot be pickled, so the process builds them again.
    job = launches(part)[index]
    triton.runtime.driver.set_active(StandIn(part.arch))
    kernel, grid, arguments, options = job.launch
    row = Row(
        part.arch,
        job.kernel,
        job.tile,
        job.dtype,
        options["num_warps"],
        options.get("num_stages"),
    )
    try:
        compiled = kernel.warmup(grid=grid, **arguments, **options)
    except TritonError as error:
        return row._replace(failure=str(error).strip().splitlines()[-1])
    text = disassembled(compiled.asm["cubin"])
    registers, stack = usage(text)
    ptx = compiled.asm["ptx"]
    if options.get("launch_pdl") and not waits_first(ptx):
        return row._replace(failure="it touches memory before the launch before it has ended")
    return row._replace(
        registers=registers,
        stack=stack,
        shared=compiled.metadata.shared,
        instruction=weakest(name for name, text in INSTRUCTIONS.items() if text in ptx),
        counts=counts_of(read_sass(text), part.arch),
        orders=frozenset([sums_of(compiled.asm["ttgir"])]),
    )


def waits_first(ptx: str) -> bool:
    """Whether a programmatic dependent launch waits before it touches memory."""
    before, waits, _ = ptx.partition("griddepcontrol.wait")
    return bool(waits) and not re.search(r"\b(ld\.global|st\.global|cp\.async|atom|red)\b", before)


def disassembled(binary: bytes) -> str:
    """Cuobjdump's output for a binary: resource usage and SASS."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(binary)
        command = [triton.knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def usage(text: str) -> tuple[int, int]:
    """Registers and stack bytes of a thread."""
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage says no registers: {text[:200]!r}")
    number, stack, local = map(int, found.groups())
    return number, max(stack, local)


def weakest(names: Iterable[str]) -> str:
    """The weakest of these `INSTRUCTIONS`, "none" of none."""
    return min(names, key=STRENGTH.index, default="none")


def worst(one: Row, other: Row) -> Row:
    """One row of two binaries of the same tile."""
    return one._replace(
        registers=max(one.registers, other.registers),
        stack=max(one.stack, other.stack),
        shared=max(one.shared, other.shared),
        instruction=weakest((one.instruction, other.instruction)),
        counts=one.counts.worst(other.counts),
        orders=one.orders | other.orders,
        failure=one.failure or other.failure,
    )


def compile_all(parts: Iterable[Part]) -> list[Row]:
    """A row for every kernel and tile of these parts, compiled in `WORKERS` processes."""
    tasks = [(part, i) for part in parts for i in range(len(launches(part)))]
    found: dict[str, Row] = {}
    # A forked process would share torch's threads.
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        for row in pool.map(compile_launch, *zip(*tasks, strict=True), chunksize=4):
            key = f"{row.arch} {row.key}"
            found[key] = worst(found[key], row) if key in found else row
    return list(found.values())
