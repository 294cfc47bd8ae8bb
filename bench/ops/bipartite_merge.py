"""`bipartite_merge` beside its reference, as ToMe calls it in a layer of a vision tower."""

from __future__ import annotations

import torch

from bench.cases import Case, Inputs, OpBench, empty, empty_scores, normal
from bench.workloads import Workload
from ocvtp_kernels import ops
from ocvtp_kernels.cost.work import FLOAT32, INT64, Work
from ocvtp_kernels.ops.bipartite_merge import first_places, side_tokens

DEPTH = 64  # of a head's keys
PREFIX = 1  # CLS


def num_merged(load: Workload) -> int:
    """22 of 576, as of a tower whose 24 layers leave one token in twelve."""
    return load.num_tokens // 26


def case(load: Workload, device: torch.device) -> Case:
    """The assignment is left out of what is held against the reference: it is no float."""
    batch, num_tokens, _ = load.tokens
    merged = num_merged(load)
    draw_tokens = normal(load, load.tokens, (batch, num_tokens, DEPTH))

    def draw(generator: torch.Generator) -> Inputs:
        sizes = torch.randint(1, 9, load.scores, generator=generator, device=generator.device)
        return *draw_tokens(generator), sizes.to(torch.float32)

    return Case(
        "bipartite_merge",
        load,
        device,
        draw,
        lambda tokens, keys, sizes: ops.bipartite_merge(tokens, keys, sizes, merged, PREFIX)[:2],
        lambda tokens, keys, sizes: ops.bipartite_merge.reference(
            tokens, keys, sizes, merged, PREFIX
        )[:2],
        wrt=(0,),
    )


def work(load: Workload) -> Work:
    b, n, c = load.tokens
    num_a, num_b = (side_tokens(n, first) for first in first_places(PREFIX))
    left, itemsize = n - num_merged(load), load.torch_dtype.itemsize
    elements = (n + left) * c + n * DEPTH
    return Work(2 * b * num_a * num_b * DEPTH, b * (elements * itemsize + (n + left) * FLOAT32))


def backward_work(load: Workload) -> Work:
    """Each token has its share of the gradient of its row."""
    b, n, c = load.tokens
    left = n - num_merged(load)
    return Work(0, b * ((n + left) * (c * load.torch_dtype.itemsize + FLOAT32) + n * INT64))


def launches(load: Workload) -> None:
    from ocvtp_kernels.ops.bipartite_merge.triton import bipartite_merge

    tokens, keys = empty(load, *load.tokens), empty(load, *load.scores, DEPTH)
    bipartite_merge(tokens, keys, empty_scores(load), num_merged(load), PREFIX)


BENCHES = {"bipartite_merge": OpBench(case, work, backward_work, (launches,))}
