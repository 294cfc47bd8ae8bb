"""What is read in a binary's SASS: on a listing of a few lines, whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import pytest

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from bench.compiled.sass import Program, read_sass, way_through
from bench.compiled.sass_counts import Counts, bytes_moved, counts_of, tensor_cycles
from bench.compiled.sass_time import BARRIER, LATENCY, code_of

IDLE = "7f"  # waits for nothing and releases nothing


def listing(*lines: str) -> Program:
    """Instructions ``stall waits write text``, as cuobjdump prints them."""
    said = ["\t\tFunction : f"]
    for number, line in enumerate(lines):
        stall, waits, write, text = line.split(" ", 3)
        code = int(stall) | int(write) << 5 | 7 << 8 | int(waits) << 11
        said.append(
            f"        /*{16 * number:04x}*/   {text} ;   /* 0x{0:016x} */\n"
            f"                                  /* 0x{code << 41:016x} */"
        )
    return read_sass("\n".join(said))


# A loop of a copy, its wait and a product, between a branch around it and an exit.
LOOP = (
    "2 0 7 S2R R0, SR_CTAID.X",
    "2 0 7 @P0 BRA 0xa0",
    "1 0 7 LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]",
    "1 0 7 LDGDEPBAR",
    "1 0 7 LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]",
    "1 0 7 LDGDEPBAR",
    "1 0 7 DEPBAR.LE SB0, 0x1",
    "1 0 7 HGMMA.64x64x16.F32.BF16 R4, gdesc[UR8], R4, gsb0",
    "1 0 7 WARPGROUP.DEPBAR.LE gsb0, 0x0",
    "5 0 7 @!P1 BRA 0x40",
    "1 0 7 STG.E.64 desc[UR4][R2.64], R4",
    "1 0 7 EXIT",
    "1 0 7 BRA 0xc0",
)


def test_an_instruction_is_taken_apart() -> None:
    program = listing("9 33 2 @!P3 LDG.E.128 R8, desc[UR4][R2.64]", "1 0 7 EXIT")
    one = program.instructions[0]
    assert one[:4] == ("LDG.E.128", "R8, desc[UR4][R2.64]", "@!P3", 0)
    assert (one.stall, one.waits, one.write, one.read) == (9, 33, 2, 7)
    assert bytes_moved(one) == 32 * 16


def test_a_listing_without_instructions_is_refused() -> None:
    with pytest.raises(ValueError, match="no instructions"):
        read_sass("nothing")


# Two loops, one in the other; and a cold block that jumps back, which is none.
NESTED = ("NOP", "NOP", "FFMA R1, R1, R1, R1", "@P0 BRA 0x20", "@P1 BRA 0x10", "EXIT")
COLD = ("@P0 BRA 0x30", "NOP", "EXIT", "NOP", "BRA 0x10")


@pytest.mark.parametrize(
    ("lines", "loops", "counts"),
    [
        (LOOP, [(4, 9, 0)], Counts(6, tensor=1, cycles=32.0, copies=1, flying=1, outside=6)),
        ([f"1 0 7 {one}" for one in NESTED], [(1, 4, 0), (2, 3, 1)], Counts(step=2, outside=4)),
        ([f"1 0 7 {one}" for one in COLD], [], Counts(outside=3)),
    ],
)
def test_loops_are_found_and_the_inmost_is_counted(
    lines: Sequence[str], loops: list[tuple[int, ...]], counts: Counts
) -> None:
    program = listing(*lines)
    assert [tuple(loop) for loop in program.loops] == loops
    assert counts_of(program, 90) == counts


@pytest.mark.parametrize(
    ("text", "arch", "cycles"),
    [
        ("HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8], R24", 90, 128),
        # Fetching both operands takes longer than a narrow product.
        ("HGMMA.64x16x16.F32.BF16 R24, gdesc[UR8], R24", 90, 20),
        ("HGMMA.64x16x16.F32.BF16 R24, R4, gdesc[UR8], R24", 90, 8),
        ("HMMA.16816.F32.BF16 R4, R8, R12, R4", 80, 8),
        ("HMMA.16816.F32.BF16 R4, R8, R12, R4", 90, 4),
        ("UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8], idesc[UR10]", 100, 0),
    ],
)
def test_cycles_of_a_tensor_core(text: str, arch: int, cycles: float) -> None:
    one = listing(f"1 0 7 {text}", "1 0 7 EXIT").instructions[0]
    assert tensor_cycles(one, arch) == cycles


def test_the_worst_of_two_binaries() -> None:
    one, other = Counts(97, 4, 96.0, 6, 4, 400), Counts(90, 4, 96.0, 6, 2, 500)
    assert one.worst(other) == other.worst(one) == Counts(97, 4, 96.0, 6, 2, 500)


def test_a_wait_for_a_result_is_the_latency_less_what_was_issued() -> None:
    program = listing(
        "2 0 0 LDG.E R8, desc[UR4][R2.64]",
        "4 0 7 NOP",
        "1 1 7 FADD R8, R8, R8",
        "1 0 7 EXIT",
    )
    outside = code_of(program, 90).outside
    assert outside.waits == LATENCY["LDG"] - 6
    assert outside.busy == 8


def test_a_barrier_is_waited_for_together_and_a_shuffle_is_not() -> None:
    program = listing("1 0 7 BAR.SYNC 0x0", "1 0 0 SHFL.BFLY R1, R1", "1 1 7 NOP", "1 0 7 EXIT")
    outside = code_of(program, 90).outside
    assert outside.waits == BARRIER
    assert outside.busy == LATENCY["SHFL"] + 3


def step_waits(ahead: int) -> float:
    """Waits a step with so many groups in flight."""
    lines = [line.replace("SB0, 0x1", f"SB0, {ahead:#x}") for line in LOOP]
    ((depth, multiplies, step),) = code_of(listing(*lines), 90).steps
    assert depth == 0 and multiplies and step.flying == ahead
    return step.waits


def test_more_copies_in_flight_hide_more_of_the_latency() -> None:
    assert step_waits(0) > step_waits(1) > step_waits(3)
    # What is left is the product itself.
    assert step_waits(8) == pytest.approx(32 + 16, abs=2)


BRANCHES = (
    "1 0 7 @P0 BRA 0x50",
    "1 0 7 ATOMG.E.ADD R1, R2, R3",
    "1 0 7 @P1 BRA 0x40",
    "1 0 7 STG.E R1, R2",
    "1 0 7 EXIT",
    "1 0 7 NOP",
    "1 0 7 EXIT",
)


def test_ways_through_a_kernel() -> None:
    program = listing(*BRANCHES)
    assert way_through(program) == [0, 1, 2, 3, 4]
    assert way_through(program, early=True) == [0, 1, 2, 4]
    assert way_through(program, end=1) == [0, 5, 6]
