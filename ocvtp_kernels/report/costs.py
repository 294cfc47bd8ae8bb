"""Launches, FLOPs and minimum bytes of each stage of `prune` on a GPU, by formula.

Where kernels were counted, `projections.read_counts` takes the place of these formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from ocvtp_kernels.report.fields import Amount, Text

HALF, FLOAT, PICK = 2, 4, 8  # bytes: an element, an accumulator, a packed (score, id)
ITERATIONS = 3
ONE_TILE_SLOTS = 128  # with more, the logsumexp over slots takes a pass of its own
CHUNKS = 2  # D chunks of 256; each recomputes the logits
SPLIT_TOKENS = 32  # minimum tokens of a split
PROGRAMS = 132  # tokens are split until a launch has this many programs


@dataclass(frozen=True)
class Size:
    """A workload: images, tokens, slots, and the pruner's widths."""

    batch: int
    num_tokens: int
    num_slots: int
    width: int = 1024  # C, of reference and final tokens
    hidden: int = 2048  # of the encode MLP and of the FFN
    slot_dim: int = 512  # D

    @property
    def text(self) -> str:
        """In the project's letters."""
        return f"B {self.batch}, N {self.num_tokens}, K {self.num_slots}"

    @property
    def tokens(self) -> int:
        """Tokens of the whole batch."""
        return self.batch * self.num_tokens

    @property
    def slots(self) -> int:
        """Slots of the whole batch."""
        return self.batch * self.num_slots


@dataclass(frozen=True)
class StageCost:
    """Launches, FLOPs and minimum bytes of a stage; ``source`` is "formula" or "counted"."""

    kernel: Text  # or the stage that the formula is of
    launches: int
    flops: Amount
    bytes: Amount
    source: str = "formula"

    def times(self, calls: int) -> StageCost:
        """Of so many calls."""
        return StageCost(self.kernel, calls * self.launches, calls * self.flops, calls * self.bytes)


def gemm(rows: int, inner: int, columns: int) -> tuple[float, float]:
    """FLOPs and half-precision bytes of ``[rows, inner] x [inner, columns]``, all three moved."""
    elements = rows * inner + inner * columns + rows * columns
    return 2.0 * rows * inner * columns, float(HALF * elements)


def encode_hidden(size: Size) -> StageCost:
    """LayerNorm, Linear and GELU: ``2 BN C H`` FLOPs."""
    return StageCost("encode, first GEMM", 1, *gemm(size.tokens, size.width, size.hidden))


def encode_output(size: Size) -> StageCost:
    """Linear and LayerNorm statistics: ``2 BN H D`` FLOPs; mean and scale per token written."""
    flops, moved = gemm(size.tokens, size.hidden, size.slot_dim)
    return StageCost("encode, second GEMM", 1, flops, moved + 2 * FLOAT * size.tokens)


def query(size: Size) -> StageCost:
    """LayerNorm, folded query and per-slot constant: ``2 BK D (D + 1)`` FLOPs an iteration."""
    cost = gemm(size.slots, size.slot_dim, size.slot_dim + 1)
    return StageCost("query GEMM", 1, *cost).times(ITERATIONS)


def splits(size: Size) -> int:
    """Token splits of an image in `compete`: enough for `PROGRAMS` programs."""
    max_splits = ceil(size.num_tokens / SPLIT_TOKENS)
    per_split = CHUNKS * ceil(size.num_slots / ONE_TILE_SLOTS) * size.batch
    return min(max_splits, ceil(PROGRAMS / per_split))


def logit_pass(size: Size) -> tuple[float, float]:
    """All logits once: ``2 BKN D`` FLOPs; x^ and the queries read."""
    flops = 2.0 * size.slots * size.num_tokens * size.slot_dim
    return flops, float(HALF * (size.tokens + size.slots) * size.slot_dim + FLOAT * size.slots)


def compete(size: Size) -> StageCost:
    """Softmax over slots and sums over tokens, in all iterations but the last.

    Logits once per D chunk and ``2 BKN D`` FLOPs for the sums; one float32 partial sum of D + 1
    elements per slot and split. Beyond `ONE_TILE_SLOTS`, a pass more writes a logsumexp per token.
    """
    logits, read = logit_pass(size)
    flops = CHUNKS * logits + logits
    moved = read + FLOAT * splits(size) * size.slots * (size.slot_dim + 1)
    launches = 1
    if size.num_slots > ONE_TILE_SLOTS:
        flops, moved, launches = flops + logits, moved + read + 2 * FLOAT * size.tokens, 2
    return StageCost("compete", launches, flops, moved).times(ITERATIONS - 1)


def update_gates(size: Size) -> StageCost:
    """Partial sums reduced, both gate GEMMs and the GRU: ``12 BK D^2`` FLOPs an iteration."""
    flops, moved = gemm(size.slots, 2 * size.slot_dim, 3 * size.slot_dim)
    # The gates stay in registers; only the new slots are written.
    moved += HALF * (size.slots * size.slot_dim - size.slots * 3 * size.slot_dim)
    moved += FLOAT * splits(size) * size.slots * (size.slot_dim + 1)
    return StageCost("gate GEMMs and GRU", 1, flops, moved).times(ITERATIONS - 1)


def update_ffn(size: Size) -> StageCost:
    """LayerNorm, Linear, GELU, Linear and the residual: ``4 BK D F`` FLOPs an iteration."""
    into, read = gemm(size.slots, size.slot_dim, size.hidden)
    out, written = gemm(size.slots, size.hidden, size.slot_dim)
    residual = HALF * size.slots * size.slot_dim
    cost = StageCost("FFN GEMMs", 2, into + out, read + written + residual)
    return cost.times(ITERATIONS - 1)


def last_iteration(size: Size) -> StageCost:
    """Last logits, the argmax per slot, then deduplication, padding, sorting and gather.

    ``2 BKN D`` FLOPs (twice that beyond `ONE_TILE_SLOTS`); importance, packed maxima, and the kept
    final tokens read and written.
    """
    flops, moved = logit_pass(size)
    launches = 1
    if size.num_slots > ONE_TILE_SLOTS:
        flops, moved, launches = 2 * flops, 2 * moved + 2 * FLOAT * size.tokens, 2
    moved += FLOAT * size.tokens + 2 * PICK * size.slots + PICK * size.slots
    moved += 2 * HALF * size.slots * size.width
    return StageCost("last logits and selection", launches, flops, moved)


STAGES: tuple[Callable[[Size], StageCost], ...] = (
    encode_hidden,
    encode_output,
    query,
    compete,
    update_gates,
    update_ffn,
    last_iteration,
)
