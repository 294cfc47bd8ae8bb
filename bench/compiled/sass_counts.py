"""What the compile report counts in a binary's SASS, and what one instruction costs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from bench.compiled.sass import TENSOR, Instruction, Loop, Program, way_through

COPIES = ("LDGSTS", "UTMALDG", "UBLKCP")
# Operands that a tensor core takes in a cycle: a quarter of the multiprocessor's dense rate.
# Source: NVIDIA A100 and H100 whitepapers, "FP16 FMA operations a clock".
TENSOR_FMAS = {"HMMA": {80: 256, 86: 128, 89: 128, 90: 512, 100: 512, 120: 128}, "HGMMA": {90: 512}}


def tensor_fmas(one: Instruction) -> int:
    """Multiply-adds of one warp's tensor-core instruction; 0 where SASS does not say."""
    wide = re.search(r"\.(\d+)x(\d+)x(\d+)", one.name)
    if wide:
        rows, columns, depth = map(int, wide.groups())
        return rows * columns * depth // 4
    narrow = re.search(r"HMMA\.(\d{2})(\d)(\d{1,2})", one.name)
    if narrow:
        rows, columns, depth = map(int, narrow.groups())
        return rows * columns * depth
    return 0


def tensor_cycles(one: Instruction, arch: int) -> float:
    """Cycles that the instruction takes its tensor core; 0 where SASS does not say.

    Both operands from shared memory take its port too: 64 rows by 16 and its columns by 16 halves,
    at 128 bytes a cycle. Source: the H100's latencies by shape, arXiv 2402.13499.
    """
    fmas = tensor_fmas(one)
    rate = TENSOR_FMAS.get(one.kind, {}).get(arch)
    if not fmas or rate is None:
        return 0.0
    cycles = fmas / rate
    if one.kind == "HGMMA":
        columns = fmas // (16 * 16)
        from_shared = 16 if _both_shared(one) else 0
        cycles = max(cycles, from_shared + columns / 4)
    return cycles


def _both_shared(one: Instruction) -> bool:
    # The operand A from registers stands before the descriptor of B.
    operands = [part.strip() for part in one.operands.split(",")]
    return len(operands) > 1 and operands[1].startswith("gdesc")


SECTOR = 32  # bytes, the least that L2 gives


def bytes_moved(one: Instruction, multiplies: bool = False) -> int:
    """Bytes that a warp's global load or store asks for, masked lanes too.

    Args:
        multiplies: it is of a program that multiplies matrices. Its narrow loads are of vectors
            spread over an accumulator, a row in four lanes and a column in eight: one sector.
    """
    if one.kind not in ("LDG", "STG", "LDGSTS", "LD", "ST", "ATOMG", "RED", "REDG", "ATOM"):
        return 0
    size = re.search(r"\.(128|64|U8|S8|U16|S16)\b", one.name)
    width = {"128": 16, "64": 8, "U8": 1, "S8": 1, "U16": 2, "S16": 2}[size[1]] if size else 4
    return SECTOR if multiplies and one.kind == "LDG" and width < 16 else 32 * width


def groups_ahead(body: Iterable[Instruction]) -> int:
    """Groups of asynchronous copies in flight across the wait of code that issues such copies."""
    body = list(body)
    waits = [
        int(found[1], 16)
        for one in body
        if one.kind == "DEPBAR" and (found := re.search(r"SB0, (0x[0-9a-f]+)", one.operands))
    ]
    return min(waits, default=0) if any(one.kind in COPIES for one in body) else 0


class Counts(NamedTuple):
    """What the report says of a binary, each number a warp's.

    Attributes:
        step: instructions of an iteration of the main loop, or 0 without a loop.
        tensor: tensor-core instructions among them.
        cycles: that these take their tensor core.
        copies: asynchronous copies among them.
        flying: of groups of copies, how many stay in flight across the loop's wait.
        outside: instructions on the way through the kernel outside of the main loop.
    """

    step: int = 0
    tensor: int = 0
    cycles: float = 0.0
    copies: int = 0
    flying: int = 0
    outside: int = 0

    def worst(self, other: Counts) -> Counts:
        """The longer loop, the fewer copies in flight, the more outside."""
        longer = max(self, other)
        return longer._replace(
            flying=min(self.flying, other.flying), outside=max(self.outside, other.outside)
        )


def hot_loop(program: Program) -> Loop | None:
    """The main loop: of the innermost ones that with most products, or else the longest."""

    def products(loop: Loop) -> float:
        body = program.instructions[loop.first : loop.last + 1]
        tensor = sum(tensor_fmas(one) or 1 for one in body if one.kind in TENSOR)
        # Without a tensor core, fewer than any with one.
        return tensor or sum(one.kind == "FFMA" for one in body) / 1e6

    return max(
        program.innermost(),
        key=lambda loop: (products(loop), loop.last - loop.first),
        default=None,
    )


def counts_of(program: Program, arch: int) -> Counts:
    """A binary's counts."""
    loop = hot_loop(program)
    way = way_through(program)
    if loop is None:
        return Counts(outside=len(way))
    way = way_through(program, _with_outer(program, loop))
    body = [program.instructions[n] for n in way if loop.first <= n <= loop.last]
    copies = sum(i.kind in COPIES for i in body)
    return Counts(
        len(body),
        sum(i.kind in TENSOR for i in body),
        sum(tensor_cycles(i, arch) for i in body if i.kind in TENSOR),
        copies,
        groups_ahead(body),
        len(way) - len(body),
    )


def _with_outer(program: Program, loop: Loop) -> list[Loop]:
    return [other for other in program.loops if other == loop or other.has(loop)]
