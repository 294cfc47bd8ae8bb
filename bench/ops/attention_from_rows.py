"""`attention_from_rows` beside eager attention, with the heads of a 7B decoder, causal.

Of the last row (FastV), of forty rows of text (SparseVLM), or of all; with as many heads of keys
as of queries, or a quarter.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bench.cases import Case, OpBench, empty, joined, normal
from bench.workloads import Workload
from ocvtp_kernels import ops
from ocvtp_kernels.cost.work import FLOAT32, Work

HEADS, HEAD_DIM = 32, 128


class Way(NamedTuple):
    """A way to call it: rows at the end of the keys, all if None, and heads of keys."""

    rows: int | None = 1
    key_heads: int = HEADS

    def num_rows(self, load: Workload) -> int:
        return min(self.rows or load.num_tokens, load.num_tokens)


WAYS = {
    "raters": Way(40),
    "all_rows": Way(None),
    "grouped": Way(1, 8),
    "grouped_raters": Way(40, 8),
    "grouped_all_rows": Way(None, 8),
}


def eager(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """What a decoder with eager attention computes of these rows, and the mean of it."""
    batch, heads, length, dim = k.shape
    if heads < q.shape[1]:
        shared = q.shape[1] // heads
        k = k[:, :, None].expand(batch, heads, shared, length, dim).reshape(batch, -1, length, dim)
    logits = torch.matmul(q, k.mT) * dim**-0.5 + mask.to(q.dtype)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return logits.softmax(-1, dtype=wide).mean((1, 2))


def case_of(way: Way, load: Workload, device: torch.device) -> Case:
    rows, keys = way.num_rows(load), load.num_tokens
    last = torch.arange(keys - rows, keys, device=device)
    mask = torch.zeros(rows, keys, device=device)
    mask.masked_fill_(torch.arange(keys, device=device) > last[:, None], float("-inf"))
    last = last.expand(load.batch, rows)
    q = normal(load, (load.batch, rows, HEADS, HEAD_DIM))
    k = normal(load, (load.batch, keys, way.key_heads, HEAD_DIM))

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        # As projections leave them.
        return tuple(each.transpose(1, 2) for each in joined(q, k)(generator))

    return Case(
        "attention_from_rows",
        load,
        device,
        draw,
        lambda q, k: ops.attention_from_rows(q, k, last),
        lambda q, k: eager(q, k, mask),
    )


def work(load: Workload) -> Work:
    """Of the way that the workload's mode names; a row multiplies the keys up to its own."""
    way = WAYS.get(load.mode, Way())
    rows, keys = way.num_rows(load), load.num_tokens
    pairs = rows * keys - rows * (rows - 1) // 2
    read = load.batch * (rows * HEADS + keys * way.key_heads) * HEAD_DIM * load.torch_dtype.itemsize
    return Work(2 * load.batch * HEADS * HEAD_DIM * pairs, read + load.batch * keys * FLOAT32)


def launches(load: Workload) -> None:
    from ocvtp_kernels.ops.attention_from_rows.triton import attention_from_rows

    # A vision tower's, and a decoder's behind both masks or one.
    tower = empty(load, load.batch, 16, load.num_tokens + 1, 64)
    for q in (tower, tower[:, :, :1]):
        attention_from_rows(q, tower, None, None, None, None)
    k = empty(load, load.batch, 8, load.num_tokens, HEAD_DIM)
    valid = empty(load, load.batch, load.num_tokens, dtype=torch.bool)
    for rows, mask in ((1, valid), (40, None)):
        q = empty(load, load.batch, HEADS, rows, HEAD_DIM)
        last = empty(load, load.batch, rows, dtype=torch.int64)
        attention_from_rows(q, k, last, mask, None, None)


BENCHES = {
    "attention_from_rows": OpBench(
        partial(case_of, Way()),
        work,
        launchers=(launches,),
        ways={name: partial(case_of, way) for name, way in WAYS.items()},
    )
}
