"""A binary's SASS: its instructions, its loops, and the way that a warp takes through them.

Control codes (stall counts and scoreboards) stand in the upper half of each encoded instruction.
Source: Jia et al., "Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking", 2018,
section 2.1; the layout has stayed since.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

LINE = re.compile(
    r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s*/\* 0x[0-9a-f]{16} \*/\s*/\* 0x([0-9a-f]{16})"
)
GUARD = re.compile(r"(@!?U?P\w+)\s+(.*)")
TARGET = re.compile(r"\b0x([0-9a-f]+)$")
TENSOR = ("HGMMA", "HMMA", "IGMMA", "QGMMA", "IMMA", "QMMA", "OMMA", "UTCHMMA", "UTCQMMA")


class Instruction(NamedTuple):
    """One instruction and its control code.

    Attributes:
        name: with its modifiers, ``LDGSTS.E.BYPASS.128``.
        operands: as text.
        guard: the predicate before it, or "".
        address: in the function.
        stall: cycles until the warp may issue the next one.
        write: scoreboard that its result releases, 7 for none.
        read: scoreboard that its operands' reading releases, 7 for none.
        waits: scoreboards that it waits for, a bit each.
    """

    name: str
    operands: str
    guard: str
    address: int
    stall: int
    write: int
    read: int
    waits: int

    @property
    def kind(self) -> str:
        """The name without modifiers."""
        return self.name.split(".", 1)[0]

    @property
    def target(self) -> int | None:
        """Where it may jump to; divergent slow paths and calls are left out."""
        if self.kind != "BRA" or self.name.startswith("BRA.DIV"):
            return None
        found = TARGET.search(self.operands)
        return int(found[1], 16) if found else None

    @property
    def leaves(self) -> bool:
        """Whether the next instruction is never reached from here."""
        if self.guard:
            return False
        if self.kind in ("EXIT", "RET", "BRX", "JMP"):
            return True
        return self.target is not None and "," not in self.operands


class Loop(NamedTuple):
    """A loop: instructions ``first`` to ``last``, and how many loops stand around it."""

    first: int
    last: int
    depth: int

    def has(self, other: Loop) -> bool:
        """Whether ``other`` stands in this one."""
        return self != other and self.first <= other.first and other.last <= self.last


class Program(NamedTuple):
    """A function's instructions and loops, these by address, an outer one before its inner ones."""

    instructions: list[Instruction]
    loops: list[Loop]

    def innermost(self) -> list[Loop]:
        """Loops without a loop in them."""
        return [loop for loop in self.loops if not any(loop.has(other) for other in self.loops)]

    def multiplies(self, loop: Loop) -> int:
        """Tensor-core instructions of a loop."""
        return sum(i.kind in TENSOR for i in self.instructions[loop.first : loop.last + 1])


def read_sass(said: str) -> Program:
    """The first function that ``cuobjdump -sass`` prints."""
    parts = said.split("Function : ")
    listing = parts[1] if len(parts) > 1 else said
    instructions = [_instruction(*found) for found in LINE.findall(listing)]
    if not instructions:
        raise ValueError(f"cuobjdump -sass says no instructions: {said[:200]!r}")
    return Program(instructions, find_loops(instructions))


def _instruction(address: str, text: str, upper: str) -> Instruction:
    guarded = GUARD.match(text)
    guard, text = (guarded[1], guarded[2]) if guarded else ("", text)
    name, _, operands = text.partition(" ")
    code = int(upper, 16) >> 41
    return Instruction(
        name,
        operands.strip(),
        "" if guard in ("@PT", "@UPT") else guard,
        int(address, 16),
        code & 15,
        code >> 5 & 7,
        code >> 8 & 7,
        code >> 11 & 63,
    )


def blocks_of(instructions: Sequence[Instruction]) -> tuple[list[int], list[list[int]]]:
    """First instructions of basic blocks, and each block's next blocks."""
    place = {one.address: number for number, one in enumerate(instructions)}
    starts = {0}
    for number, one in enumerate(instructions):
        if one.target is not None or one.leaves:
            starts.add(number + 1)
        if one.target in place:
            starts.add(place[one.target])
    firsts = sorted(start for start in starts if start < len(instructions))
    following = []
    for block, _ in enumerate(firsts):
        end = firsts[block + 1] if block + 1 < len(firsts) else len(instructions)
        last = instructions[end - 1]
        after = [] if last.leaves or end == len(instructions) else [block + 1]
        if last.target in place:
            after.append(bisect_right(firsts, place[last.target]) - 1)
        following.append(after)
    return firsts, following


def find_loops(instructions: Sequence[Instruction]) -> list[Loop]:
    """Loops by address: where a branch goes back to a block that every way to it has passed."""
    firsts, following = blocks_of(instructions)
    passed = _dominators(following)
    ends: dict[int, int] = {}
    for block, after in enumerate(following):
        for head in after:
            if head in passed[block] and block in passed and (head != block or len(after) > 1):
                end = firsts[block + 1] if block + 1 < len(firsts) else len(instructions)
                ends[head] = max(ends.get(head, 0), end - 1)
    spans = sorted((firsts[head], -end) for head, end in ends.items())
    return [
        Loop(first, -end, sum(f <= first and e <= end for f, e in spans) - 1)
        for first, end in spans
    ]


def _dominators(following: Sequence[Collection[int]]) -> dict[int, set[int]]:
    """Of each block that is reached, the blocks on every way to it, itself too."""
    before: dict[int, list[int]] = {}
    reached, queue = {0}, [0]
    while queue:
        block = queue.pop()
        for after in following[block]:
            before.setdefault(after, []).append(block)
            if after not in reached:
                reached.add(after)
                queue.append(after)
    passed = {block: {0} if block == 0 else set(reached) for block in sorted(reached)}
    changed = True
    while changed:
        changed = False
        for block in passed:
            if block:
                now = {block}.union(set.intersection(*(passed[b] for b in before[block])))
                changed |= now != passed[block]
                passed[block] = now
    return {b: passed[b] for b in passed} | {
        b: set() for b in range(len(following)) if b not in passed
    }


def way_through(
    program: Program,
    wanted: Iterable[Loop] | None = None,
    end: int | None = None,
    early: bool = False,
) -> list[int]:
    """Instructions on the longest way from entry to exit that passes ``wanted`` loops.

    Every loop on it is passed once; slow paths that call a function are avoided.

    Args:
        program: the function.
        wanted: all loops if not given; others with products are avoided.
        end: which exit, by address; any if not given.
        early: leave on the shortest way once an atomic has told of the program's arrival.
    """
    instructions = program.instructions
    firsts, following = blocks_of(instructions)
    ends = [*firsts[1:], len(instructions)]
    chosen = program.loops if wanted is None else list(wanted)
    unwanted = {loop.first for loop in program.innermost() if program.multiplies(loop)}
    bonus = {first: -(10**6) for first in unwanted}
    bonus |= {loop.first: 10**6 for loop in chosen if loop.first in unwanted}
    exits = [b for b, last in enumerate(ends) if instructions[last - 1].kind == "EXIT"]
    exits = [block for block in exits if not following[block]]
    # A loop may end the function, and leave it from its middle.
    anywhere = [
        block
        for block, last in enumerate(ends)
        if instructions[last - 1].kind != "RET" and not any(a > block for a in following[block])
    ]
    asked = anywhere if end is None else exits[min(end, len(exits) - 1) :][:1]
    longest: list[tuple[int, int] | None] = [None] * len(firsts)
    shortest: list[tuple[int, int] | None] = [None] * len(firsts)
    for block in reversed(range(len(firsts))):
        body = instructions[firsts[block] : ends[block]]
        calls = any(i.kind == "CALL" for i in body)
        weight = (0 if calls else len(body)) + bonus.get(firsts[block], 0)
        after = [a for a in following[block] if a > block]
        here = [(0, -1)] if block in asked else []
        much = here + [(found[0], a) for a in after if (found := longest[a]) is not None]
        little = here + [(found[0], a) for a in after if (found := shortest[a]) is not None]
        if early and any(i.kind == "ATOMG" for i in body) and little:
            much = [min(little)]
        if much:
            value, then = max(much)
            longest[block] = (value + weight, then)
        if little:
            value, then = min(little)
            shortest[block] = (value + len(body), then)
    way: list[int] = []
    block, table = 0, longest
    while block >= 0:
        body = instructions[firsts[block] : ends[block]]
        way += range(firsts[block], ends[block])
        if early and any(i.kind == "ATOMG" for i in body):
            table = shortest
        found = table[block]
        if found is None:
            break
        block = found[1]
    return way
