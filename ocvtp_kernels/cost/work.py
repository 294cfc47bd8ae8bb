"""FLOPs and bytes of `prune`, by formula: what the roofline, budgets and projections are held to.

FLOPs are those of matrix products, two for a multiply-add, on folded weights
(`ocvtp_kernels.pruner.fold`). The constant of a slot's logits counts as one more column of its
query, whichever kernel computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ocvtp_kernels.pruner.config import PrunerConfig

FLOAT32, INT64 = 4, 8  # bytes


@dataclass(frozen=True)
class Work:
    """Matrix FLOPs and the minimum bytes that cross memory."""

    flops: int
    bytes: int

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, calls: int) -> Work:
        """The work of so many calls."""
        return Work(calls * self.flops, calls * self.bytes)


def linear(rows: int, inner: int, columns: int, itemsize: int) -> Work:
    """A Linear with bias: input, weight and output move once."""
    elements = rows * inner + (inner + 1) * columns + rows * columns
    return Work(2 * rows * inner * columns, elements * itemsize)


@dataclass(frozen=True)
class PruneCall:
    """A call of `prune` as the formulas see it.

    Attributes:
        config: widths and iterations.
        batch: B; num_tokens: N; num_slots: K; budget: T.
        final_dim: the width of final tokens.
        itemsize: bytes of an element of tokens, weights and queries; the state is float32.
    """

    config: PrunerConfig
    batch: int
    num_tokens: int
    num_slots: int
    budget: int
    final_dim: int
    itemsize: int

    def steps(self) -> dict[str, Work]:
        """The least that each step costs, all iterations together.

        Each input is read once and each output written once, tensors between steps too. Not counted
        are tile padding, recomputed logits, partial sums, softmax statistics and LayerNorm.
        """
        config, itemsize = self.config, self.itemsize
        dim, hidden, again = config.slot_dim, config.agg_ffn_dim, config.agg_num_iter - 1
        tokens, slots = self.batch * self.num_tokens, self.batch * self.num_slots
        narrow, state, per_slot = slots * dim * itemsize, slots * dim * FLOAT32, slots * FLOAT32
        first, *others = (
            linear(tokens, inner, columns, itemsize)
            for inner, columns in pairwise((config.enc_in_dim, *config.enc_dims))
        )
        query = linear(slots, dim, dim + 1, itemsize) + Work(0, per_slot - slots * itemsize)
        flops = 2 * slots * self.num_tokens * dim
        logits = Work(flops, narrow + per_slot + tokens * dim * itemsize)
        updates = narrow + per_slot  # a slot's sum of values, and its mass
        gates = (2 * (dim + 1) * 3 * dim + 3 * dim) * itemsize
        up, down = linear(slots, dim, hidden, itemsize), linear(slots, hidden, dim, itemsize)
        per_iteration = {
            "slot_attention_fwd": logits + Work(logits.flops, updates),
            "gru": Work(12 * slots * dim * dim, updates + gates + 2 * state),
            "ffn_up": up,
            "ffn_down": down + Work(0, 2 * state - narrow),
            "query": query,
        }
        steps = {"encode_up+query": first + query, "encode_down": sum(others, Work(0, 0))}
        steps |= {name: work.times(again) for name, work in per_iteration.items()}
        if again:
            # Initial slots come in the tokens' dtype.
            steps["gru"] += Work(0, narrow - state)
        steps["argmax"] = logits + Work(0, slots * INT64)
        kept = self.batch * self.budget * (2 * self.final_dim * itemsize + INT64)
        steps["resolve"] = Work(0, slots * INT64 + tokens * FLOAT32 + kept)
        return steps

    def work(self) -> Work:
        """The whole op: the FLOPs of its steps, the bytes of its own inputs and outputs.

        Of the final tokens only the kept rows are read.
        """
        config, dim, hidden = self.config, self.config.slot_dim, self.config.agg_ffn_dim
        weights = sum((i + 1) * o for i, o in pairwise((config.enc_in_dim, *config.enc_dims)))
        weights += (dim + 1) * (dim + 1) + 2 * 3 * dim * (dim + 1) + 3 * dim
        weights += (dim + 1) * hidden + (hidden + 1) * dim
        image = self.num_tokens * config.enc_in_dim + self.num_slots * dim
        elements = weights + self.batch * (image + 2 * self.budget * self.final_dim)
        others = self.batch * (self.num_tokens * FLOAT32 + self.budget * INT64)
        flops = sum(step.flops for step in self.steps().values())
        return Work(flops, elements * self.itemsize + others)
