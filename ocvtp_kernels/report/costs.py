"""Launches, FLOPs and minimum bytes of each stage of `prune` on a GPU, by formula.

Where kernels were counted, `projections.read_counts` takes the place of these formulas.
"""

from __future__ import annotations

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


def splits(size: Size) -> int:
    """Token splits of an image in `compete`: enough for `PROGRAMS` programs."""
    max_splits = ceil(size.num_tokens / SPLIT_TOKENS)
    per_split = CHUNKS * ceil(size.num_slots / ONE_TILE_SLOTS) * size.batch
    return min(max_splits, ceil(PROGRAMS / per_split))


def stage_costs(size: Size) -> list[StageCost]:
    """The stages of a call in order, those of the iterations summed over all of these.

    FLOPs of the encoder: ``2 BN C H + 2 BN H D``. Of an iteration: query ``2 BK D (D + 1)``,
    logits and sums over tokens ``2 BKN D`` each, gates ``12 BK D^2``, FFN ``4 BK D F``. The last
    iteration ends with its logits.
    """
    dim, hidden, tokens, slots = size.slot_dim, size.hidden, size.tokens, size.slots
    again = ITERATIONS - 1
    first_flops, first_bytes = gemm(tokens, size.width, hidden)
    second_flops, second_bytes = gemm(tokens, hidden, dim)
    second_bytes += 2 * FLOAT * tokens  # mean and scale per token, for the LayerNorm
    # With more slots than a tile holds, one more pass writes a logsumexp per token.
    more = int(size.num_slots > ONE_TILE_SLOTS)
    logits = 2.0 * slots * size.num_tokens * dim
    logits_bytes = float(HALF * (tokens + slots) * dim + FLOAT * slots)
    logsumexp = 2 * FLOAT * tokens
    partial_sums = FLOAT * splits(size) * slots * (dim + 1)  # per slot and split
    # The logits again for each D chunk, then the sums over tokens.
    compete_flops = (CHUNKS + 1 + more) * logits
    compete_bytes = (1 + more) * logits_bytes + more * logsumexp + partial_sums
    # Partial sums reduced, both gate GEMMs and the GRU: the gates stay in registers.
    gate_flops, gate_bytes = gemm(slots, 2 * dim, 3 * dim)
    gate_bytes += HALF * (slots * dim - slots * 3 * dim) + partial_sums
    into_flops, into_bytes = gemm(slots, dim, hidden)
    out_flops, out_bytes = gemm(slots, hidden, dim)
    ffn_bytes = into_bytes + out_bytes + HALF * slots * dim  # and the residual
    # Importance, packed maxima, deduplication and padding; kept final tokens read and written.
    last_bytes = (1 + more) * logits_bytes + more * logsumexp + FLOAT * tokens
    last_bytes += 3 * PICK * slots + 2 * HALF * slots * size.width
    return [
        StageCost("encode, first GEMM", 1, first_flops, first_bytes),
        StageCost("encode, second GEMM", 1, second_flops, second_bytes),
        StageCost("query GEMM", 1, *gemm(slots, dim, dim + 1)).times(ITERATIONS),
        StageCost("compete", 1 + more, compete_flops, compete_bytes).times(again),
        StageCost("gate GEMMs and GRU", 1, gate_flops, gate_bytes).times(again),
        StageCost("FFN GEMMs", 2, into_flops + out_flops, ffn_bytes).times(again),
        StageCost("last logits and selection", 1 + more, (1 + more) * logits, last_bytes),
    ]
