"""How long one warp takes through a binary by itself: its control codes played back.

A warp issues in order. An instruction takes its stall count; one of unknown latency releases a
scoreboard that later ones wait for; copies and matrix products are waited for by group. What a
warp waits for others on the multiprocessor is not known here: see `bench.model.time`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from bench.compiled.sass import TENSOR, Instruction, Loop, Program, way_through
from bench.compiled.sass_counts import COPIES, bytes_moved, groups_ahead, tensor_cycles, tensor_fmas

# Cycles to the result, caches hit in L2. Sources: arXiv 2402.13499 (L1 41, shared 29, L2 263,
# memory 479 on H100; 38, 29, 262, 466 on A100); arXiv 1804.06826 for shuffles, special functions
# and conversions; the others by analogy. A barrier's is that of warps that arrive together.
FAR = ("LDG", "LD", "LDGSTS", "ATOMG", "ATOM", "UBLKCP", "UTMALDG")
LATENCY = {
    **dict.fromkeys(FAR, 263),
    **dict.fromkeys(("LDS", "LDSM", "ATOMS", "S2R", "S2UR", "CS2R"), 29),
    **dict.fromkeys(("SHFL", "REDUX", "LDC", "ULDC", "R2UR", "VOTEU"), 22),
    **dict.fromkeys(("MUFU", "I2F", "F2I", "F2F", "POPC", "FLO", "I2FP", "FRND"), 20),
}
BARRIER = 22
FENCE = 500  # MEMBAR to the GPU's scope: a round to L2 behind the warp's stores
TENSOR_LATENCY = 16  # from the last cycle of a product's tensor core to its result
READ = 12  # to the release of source registers
ROUNDS, MORE = 10, 2  # of a loop: past what is loaded ahead, and the steps that are measured


@dataclasses.dataclass(frozen=True)
class Phase:
    """A loop's step, or what is outside of all loops: one warp's numbers, inner loops left out.

    Attributes:
        instructions: issued.
        busy: cycles of its stall counts and of short waits, which other warps may fill.
        waits: cycles that all warps of a program wait together: for L2, products and barriers.
        tensor: cycles of its tensor core.
        bytes: through the multiprocessor's port to L2.
        copies: asynchronous copies.
        flying: groups of copies in flight across the step's wait.
        fmas: multiply-adds of its tensor core.
    """

    instructions: int
    busy: float
    waits: float
    tensor: float
    bytes: int
    copies: int = 0
    flying: int = 0
    fmas: int = 0

    def numbers(self) -> tuple[float, ...]:
        """In the order of the attributes."""
        return dataclasses.astuple(self)


class Code(NamedTuple):
    """A way through a binary: its loops' steps by address, each with its depth, and the rest."""

    steps: list[tuple[int, bool, Phase]]  # depth of nesting; whether products stand in the loop
    outside: Phase


class _Warp:
    def __init__(self, arch: int) -> None:
        self.arch = arch
        self.time = self.waited = 0.0
        self.boards = [0.0] * 8
        self.far = [False] * 8
        self.copying = 0.0
        self.copied: list[float] = []
        self.tensor_free = 0.0
        self.products: list[float] = []

    def issue(self, one: Instruction) -> None:
        for board in range(6):
            if one.waits >> board & 1:
                self._until(self.boards[board], self.far[board])
        kind = one.kind
        if kind == "DEPBAR":
            self._wait(self.copied, one.operands)
        elif one.name.startswith("WARPGROUP.DEPBAR"):
            self._wait(self.products, one.operands)
        elif kind == "LDGDEPBAR":
            self.copied.append(self.copying)
        elif kind == "BAR":
            self._until(self.time + BARRIER, True)
        elif kind == "MEMBAR" and "GPU" in one.name:
            self._until(self.time + FENCE, True)
        done = self.time + LATENCY.get(kind, READ)
        if kind in TENSOR:
            self.tensor_free = max(self.tensor_free, self.time) + tensor_cycles(one, self.arch)
            done = self.tensor_free + TENSOR_LATENCY
            if "gsb0" in one.operands:
                self.products.append(done)
        elif kind in COPIES:
            self.copying = max(self.copying, done)
        if one.write < 6:
            # A board is released by the last of its instructions.
            if done >= self.boards[one.write]:
                self.far[one.write] = kind in FAR
            self.boards[one.write] = max(self.boards[one.write], done)
        if one.read < 6:
            self.boards[one.read] = max(self.boards[one.read], self.time + READ)
        self.time += max(one.stall, 1)

    def _wait(self, groups: list[float], operands: str) -> None:
        found = re.search(r"(?:SB0|gsb0), (0x[0-9a-f]+)", operands)
        if found:
            left = int(found[1], 16)
            self._until(max(groups[:-left] if left else groups, default=0.0), True)

    def _until(self, time: float, together: bool) -> None:
        if time > self.time:
            self.waited += (time - self.time) * together
            self.time = time


def cycles_alone(
    program: Program, way: Sequence[int], rounds: dict[Loop, int], arch: int
) -> np.ndarray:
    """Cycles of one warp on this way, each loop taken so many rounds; and those of its waits."""
    warp = _Warp(arch)
    _play(warp, program, list(way), [loop for loop in program.loops if loop in rounds], rounds)
    return np.array((warp.time, warp.waited))


def _play(
    warp: _Warp,
    program: Program,
    way: list[int],
    loops: list[Loop],
    rounds: dict[Loop, int],
) -> None:
    at = 0
    while at < len(way):
        number = way[at]
        loop = next((one for one in loops if one.first == number), None)
        if loop is None:
            warp.issue(program.instructions[number])
            at += 1
            continue
        end = at
        while end < len(way) and way[end] <= loop.last:
            end += 1
        inner = [one for one in loops if loop.has(one)]
        for _ in range(rounds[loop]):
            _play(warp, program, way[at:end], inner, rounds)
        at = end


def code_of(
    program: Program,
    arch: int,
    wanted: Iterable[Loop] | None = None,
    end: int | None = None,
    early: bool = False,
) -> Code:
    """A way of `way_through`, measured step by step."""
    way = way_through(program, wanted, end, early)
    on_way = set(way)
    loops = [loop for loop in program.loops if loop.first in on_way]
    # Only the innermost loops have copies in flight from step to step.
    rounds = {loop: 2 if any(map(loop.has, loops)) else ROUNDS for loop in loops}
    whole = cycles_alone(program, way, rounds, arch)
    total: dict[Loop, np.ndarray] = {}
    for loop in loops:
        around = prod(rounds[other] for other in loops if other.has(loop))
        longer = cycles_alone(program, way, {**rounds, loop: rounds[loop] + MORE}, arch)
        total[loop] = (longer - whole) / MORE / around
    steps, spent = [], np.zeros(2)
    for loop in loops:
        inner = [one for one in loops if loop.has(one)]
        direct = [one for one in inner if one.depth == loop.depth + 1]
        alone = total[loop] - sum((rounds[one] * total[one] for one in direct), np.zeros(2))
        body = [n for n in way if loop.first <= n <= loop.last and not _inside(n, inner)]
        multiplies = program.multiplies(loop) > 0
        copies = any(i.kind in COPIES for i in _body(program, way, loop))
        steps.append((loop.depth, multiplies, _phase(program, body, alone, arch, inner and copies)))
        if loop.depth == 0:
            spent += rounds[loop] * total[loop]
    rest = [n for n in way if not _inside(n, loops)]
    copies = any(step.copies for _, _, step in steps)
    return Code(steps, _phase(program, rest, whole - spent, arch, copies))


def _inside(number: int, loops: Iterable[Loop]) -> bool:
    return any(loop.first <= number <= loop.last for loop in loops)


def _body(program: Program, way: Iterable[int], loop: Loop) -> list[Instruction]:
    return [program.instructions[n] for n in way if loop.first <= n <= loop.last]


def _phase(
    program: Program, numbers: Sequence[int], alone: np.ndarray, arch: int, ahead: object
) -> Phase:
    """``ahead``: copies here are of a loop's first steps, and counted there."""
    body = [program.instructions[n] for n in numbers]
    copies = sum(one.kind in COPIES for one in body)
    cycles, together = alone
    multiplies = any(one.kind in TENSOR for one in program.instructions)
    return Phase(
        len(body),
        round(float(max(cycles - together, len(body))), 1),
        round(float(max(together, 0.0)), 1),
        sum(tensor_cycles(one, arch) for one in body if one.kind in TENSOR),
        sum(bytes_moved(one, multiplies) for one in body if not (ahead and one.kind in COPIES)),
        copies,
        groups_ahead(body),
        sum(tensor_fmas(one) for one in body if one.kind in TENSOR),
    )
