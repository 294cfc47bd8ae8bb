"""The predicted time of ``ocvtp::prune`` on the CUDA C++ kernels, launch by launch.

    python -m bench.csrc_time --output docs/native_time.md

A V100 replaying one CUDA graph: one image, float16, a frozen pruner with a seed and at most 64
slots. No SASS of sm_70 can be read any more, so nothing here is counted in binaries: a launch
costs a fixed time, what its bytes take, and, where it multiplies, a chain of dependent steps. The
numbers are fitted to an estimate of every launch by hand, which its author gives 40 % either way
(``tests/bench/csrc_time_calibration.json``).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import NamedTuple

from bench.results import ROOT
from bench.workloads import Workload, square
from ocvtp_kernels.files import atomic_write

GPU = "V100"
GHZ = 1.38
LAUNCH_S = 2.5e-6  # of a kernel that does next to nothing, in a graph
BYTES_S = 1.18e12  # between multiprocessors and L2, as row kernels reach
# A BLAS product: what it takes before and after its depth, a channel of depth, the rest, and rows
# that do not start at multiples of 16 bytes.
PRODUCT_S, DEPTH_S, FLOPS_S, UNALIGNED_S = 5.9e-6, 1.16e-9, 75e12, 2e-6
TOKENS, DEPTH = 32, 64  # of a tile, and of a step of its products
GROUPS = 18  # most that tokens are cut into
# Of a tile's cycles: a step of q k^T; waiting for the memory of a step that was not on its way
# before the last began; the softmax over slots by 16 warps; the values, their weighted sum and its
# way out; the argmax instead; what is before and after.
STEP, WAIT, SOFTMAX, VALUES, ARGMAX, ENDS = 430, 250, 900, 1200, 1100, 1000
TILE_S = 0.43e-6  # and what a launch of tiles takes besides
RESOLVE_S = 9.0e-6  # memory and barriers in turn: estimated as a whole
HALF, FLOAT = 2, 4


class Launch(NamedTuple):
    """One kernel."""

    step: str
    seconds: float


def product(step: str, rows: int, depth: int, columns: int) -> Launch:
    """A BLAS product ``[rows, depth] x [depth, columns]``."""
    flops = 2 * rows * depth * columns
    unaligned = UNALIGNED_S if columns * HALF % 16 else 0
    return Launch(step, PRODUCT_S + DEPTH_S * depth + flops / FLOPS_S + unaligned)


def rows(step: str, count: int, *bytes_each: int) -> Launch:
    """A kernel that reads and writes ``count`` rows of so many bytes."""
    return Launch(step, LAUNCH_S + count * sum(bytes_each) / BYTES_S)


def tile(step: str, dim: int, cycles: int, tiles: int = 1, waits: int = 1) -> Launch:
    """A kernel that takes ``tiles`` tiles of logits, one after another, and so often waits."""
    each = ceil(dim / DEPTH) * STEP + waits * WAIT + cycles + ENDS
    return Launch(step, TILE_S + tiles * each / GHZ * 1e-9)


def launches(load: Workload, iterations: int = 3) -> Iterator[Launch]:
    """Every launch of a prune, in order."""
    tokens, slots, dim, hidden = load.num_tokens, load.num_slots, load.slot_dim, load.hidden_dim
    width, state = HALF * dim, FLOAT * dim
    yield rows("norm of reference tokens", tokens, 2 * HALF * load.in_dim)
    yield product("encode, up", tokens, load.in_dim, hidden)
    yield rows("bias and GELU", tokens, 2 * HALF * hidden)
    yield product("encode, down", tokens, hidden, dim)
    yield rows("norm of tokens", tokens, 2 * width)
    tiles = ceil(tokens / TOKENS)
    in_group = ceil(tiles / GROUPS)
    for iteration in range(1, iterations):
        yield tile("compete", dim, SOFTMAX + VALUES, in_group)
        yield rows("mean", slots, ceil(tiles / in_group) * state, width)
        yield product("gates", slots, dim, 3 * dim)
        yield rows("GRU", slots, 6 * width, 2 * state, width)
        yield product("FFN, up", slots, dim, hidden)
        yield rows("bias and GELU", slots, 2 * HALF * hidden)
        yield product("FFN, down", slots, hidden, dim)
        yield rows("norm of slots", slots, 2 * state, 2 * width)
        last = iteration + 1 == iterations
        yield product("query" if last else "hidden and query", slots, dim, dim if last else 4 * dim)
    yield tile("argmax", dim, ARGMAX)
    yield Launch("resolve and gather", RESOLVE_S)


def page(load: Workload) -> str:
    """The prediction in Markdown."""
    found = list(launches(load))
    total = sum(launch.seconds for launch in found)
    lines = [
        "# Predicted time of the CUDA C++ kernels",
        "",
        f"A projection, not a measurement: {GPU}, B {load.batch}, N {load.num_tokens}, "
        f"K {load.num_slots}, D {load.slot_dim},",
        "float16, a frozen pruner with a seed, replayed as one CUDA graph. Numbers are fitted to",
        "an estimate by hand that its author gives 40 % either way.",
        "",
        f"**{total * 1e6:.0f} µs in {len(found)} launches.**",
        "",
        "| step | launches | µs |",
        "| --- | --- | --- |",
    ]
    for step in dict.fromkeys(launch.step for launch in found):
        seconds = [launch.seconds for launch in found if launch.step == step]
        lines.append(f"| {step} | {len(seconds)} | {sum(seconds) * 1e6:.1f} |")
    lines += [
        "",
        "This page is generated by `python -m bench.csrc_time --output docs/native_time.md`.",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.csrc_time", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "native_time.md")
    given = parser.parse_args(arguments)
    text = page(square(1, 576, 64, "float16"))
    atomic_write(given.output, text)


if __name__ == "__main__":
    main()
