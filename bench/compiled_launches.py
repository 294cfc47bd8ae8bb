"""The launches of every Triton kernel and tile on an architecture, for the compile report.

Nothing runs: launchers get tensors without memory, and what they would launch is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.shapes import Workload, square
from bench.traffic import HEAD_DIM, HEADS
from ocvtp_kernels import OCPruner, PrunerConfig
from ocvtp_kernels.ops.argmax_gather.triton import argmax_gather
from ocvtp_kernels.ops.attention_received.triton import attention_received
from ocvtp_kernels.ops.centrifugal_select.triton import centrifugal_select
from ocvtp_kernels.ops.dpp_select.triton import dpp_select
from ocvtp_kernels.ops.facility_select.triton import facility_select
from ocvtp_kernels.ops.farthest_select.triton import farthest_select
from ocvtp_kernels.ops.gru_cell.triton import gru_cell, gru_cell_backward
from ocvtp_kernels.ops.match_select.triton import match_select
from ocvtp_kernels.ops.merge.triton import merge
from ocvtp_kernels.ops.pivot_select.triton import pivot_select
from ocvtp_kernels.ops.prune.triton import pipeline
from ocvtp_kernels.ops.resolve_picks.triton import resolve_picks
from ocvtp_kernels.ops.scatter_merge.triton import scatter_merge
from ocvtp_kernels.ops.slot_argmax.triton import slot_argmax
from ocvtp_kernels.ops.slot_attention.triton.backward import slot_attention_backward
from ocvtp_kernels.ops.slot_attention.triton.forward import (
    slot_attention,
    slot_attention_with_attention,
)
from ocvtp_kernels.triton_common.archs import ARCHS, pretend
from ocvtp_kernels.triton_common.launch import Launch, watch

BATCHES = (1, 8, 64)
SIZES = ((576, 64), (576, 128), (576, 192), (2880, 160))  # tokens, slots
Launcher = Callable[[Workload], None]


def empty(load: Workload, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor without memory, in the workload's dtype unless told."""
    return torch.empty(shape, dtype=dtype or load.torch_dtype, device="meta")


def slots_and_tokens(load: Workload) -> tuple[Tensor, Tensor]:
    """Queries ``[B, K, D]`` and keys ``[B, N, D]``."""
    batch, dim = load.batch, load.slot_dim
    return empty(load, batch, load.num_slots, dim), empty(load, batch, load.num_tokens, dim)


def tokens(load: Workload) -> Tensor:
    """Reference or final tokens ``[B, N, C]``."""
    return empty(load, load.batch, load.num_tokens, load.in_dim)


def scores(load: Workload) -> Tensor:
    """Importance ``[B, N]``."""
    return empty(load, load.batch, load.num_tokens, dtype=torch.float32)


@cache
def weights(dtype: torch.dtype) -> list[Tensor]:
    """The published pruner's packed weights."""
    with torch.device("meta"):
        return [weight.to(dtype) for weight in OCPruner(PrunerConfig()).packed()]


def prune(load: Workload) -> None:
    pipeline.prune(
        tokens(load),
        tokens(load),
        weights(load.torch_dtype),
        slots_and_tokens(load)[0],
        scores(load),
        load.budget,
    )


def picks(load: Workload) -> None:
    pipeline.prune_picks(tokens(load), weights(load.torch_dtype), slots_and_tokens(load)[0])


def attend(load: Workload) -> None:
    q, k = slots_and_tokens(load)
    mask = empty(load, load.batch, load.num_slots, dtype=torch.bool)
    slot_attention(q, k, k, 1.0)
    slot_attention_with_attention(q, k, k, 1.0, slot_mask=mask)


def attend_backward(load: Workload) -> None:
    q, k = slots_and_tokens(load)
    mass, given = empty(load, *q.shape[:2]), empty(load, *q.shape[:2], load.num_tokens)
    mask = empty(load, load.batch, load.num_slots, dtype=torch.bool)
    slot_attention_backward(q, k, k, 1.0, 1e-5, None, q, q, mass, None, mass)
    slot_attention_backward(q, k, k, 1.0, 1e-5, mask, q, q, mass, given)


def gru(load: Workload) -> None:
    slots, dim = slots_and_tokens(load)[0], load.slot_dim
    matrix, bias = empty(load, 3 * dim, dim), empty(load, 3 * dim)
    gru_cell(slots, slots, matrix, matrix, bias, bias)
    gru_cell_backward(slots, slots, matrix, matrix, bias, bias, slots)


def argmax(load: Workload) -> None:
    slot_argmax(*slots_and_tokens(load))


def resolve(load: Workload) -> None:
    topk_ids = empty(load, load.batch, load.num_slots, dtype=torch.int64)
    max_logprob = empty(load, load.batch, load.num_slots)
    resolve_picks(topk_ids, max_logprob, scores(load), load.budget)


def gather(load: Workload) -> None:
    for top_k, importance in ((1, scores(load)), (2, None)):
        argmax_gather(*slots_and_tokens(load), tokens(load), importance, load.budget, top_k=top_k)


def receive(load: Workload) -> None:
    q = empty(load, load.batch, HEADS, load.num_tokens + 1, HEAD_DIM)
    for mode in ("meanq", "cls"):
        attention_received(q, q, mode)


def merge_slots(load: Workload) -> None:
    merge(*slots_and_tokens(load), tokens(load))


def square_matrix(load: Workload) -> Tensor:
    """Similarities or distances ``[B, N, N]``."""
    return empty(load, load.batch, load.num_tokens, load.num_tokens, dtype=torch.float32)


def greedy(load: Workload) -> None:
    matrix, weight = square_matrix(load), scores(load)
    farthest_select(matrix, None, load.budget)
    farthest_select(matrix, empty(load, load.batch, dtype=torch.int64), load.budget, False)
    pivot_select(tokens(load), 4)
    dpp_select(matrix, weight, load.budget)
    facility_select(matrix, weight, load.budget)


def match(load: Workload) -> None:
    ranked = empty(load, load.batch, load.num_tokens - 7, dtype=torch.int64)
    match_select(square_matrix(load), ranked, load.budget)


def expand(load: Workload) -> None:
    pivots = empty(load, load.batch, 4, dtype=torch.int64)
    for pad in (True, False):
        centrifugal_select(
            square_matrix(load), pivots, 24, load.num_tokens // 24, load.budget, pad=pad
        )


def merge_assigned(load: Workload) -> None:
    assignment = empty(load, load.batch, load.num_tokens, dtype=torch.int64)
    scatter_merge(tokens(load), assignment, scores(load), load.budget)


# These have no matrix products and one tile for all architectures.
ALIKE: tuple[Launcher, ...] = (greedy, match, expand, merge_assigned)
# Every function that launches kernels is called by one of these.
LAUNCHERS: tuple[Launcher, ...] = (
    prune,
    picks,
    attend,
    attend_backward,
    gru,
    argmax,
    resolve,
    gather,
    receive,
    merge_slots,
    *ALIKE,
)


class Job(NamedTuple):
    """A launch of a workload's dtype."""

    launch: Launch
    dtype: str

    @property
    def kernel(self) -> str:
        """The kernel's name without its ending."""
        name: str = self.launch.kernel.__name__
        return name.removesuffix("_kernel")

    @property
    def tile(self) -> str:
        """The constants that are on, in short: ``NORM BLOCK_M 64``."""
        words = []
        for name, value in self.launch.arguments.items():
            # A float32 dot's precision follows from the dtype.
            if name.isupper() and name != "PRECISION" and value is not False:
                words.append(name if value is True else f"{name} {value}")
        return " ".join(words)

    @property
    def decides(self) -> tuple[Any, ...]:
        """What decides the binary: kernel, constants, dtypes and options.

        Triton also tells a number that is 1, or a multiple of 16, from others. That multiplies the
        binaries of a tile but hardly changes them, so the first of each is taken.
        """
        kernel, _, arguments, options = self.launch
        kinds = [
            value.dtype if isinstance(value, Tensor) else value if name.isupper() else type(value)
            for name, value in arguments.items()
        ]
        return kernel.__name__, *kinds, *sorted(options.items())


class Part(NamedTuple):
    """A part of the report: who launches what on which GPU, less what other parts launch too."""

    arch: int
    dtype: str
    launchers: tuple[Launcher, ...] = LAUNCHERS
    less: tuple[Part, ...] = ()
    batches: tuple[int, ...] = BATCHES


# Binaries of the first have the registers, stack and shared memory of the second's.
TWINS = {86: 89}


def plan(archs: Sequence[int], short: bool) -> list[Part]:
    """Half precision on every architecture, and float32 where the code differs most.

    float32 multiplies outside the tensor cores, so its code differs little between GPUs: it is
    compiled for sm_80 and sm_90 alone. The short plan, which the tests run, takes everything on
    sm_90, Slot Attention beside the chain on sm_80 and sm_100, whose instructions differ, and
    elsewhere, and in float32 for sm_80, only the chain; for sm_86 what sm_89 does not have too; and
    but for sm_90 no batch between one and many.
    """
    short_of = {80: (prune, attend), 90: LAUNCHERS, 100: (prune, attend)}
    parts = []
    for arch in archs:
        launchers = short_of.get(arch, (prune,)) if short else LAUNCHERS
        twin = TWINS.get(arch, arch)
        left_out = short and twin != arch and twin in archs
        batches = (BATCHES[0], BATCHES[-1]) if short and arch != 90 else BATCHES
        less = (Part(twin, "bfloat16", (prune,), (), batches),) if left_out else ()
        parts.append(Part(arch, "bfloat16", launchers, less, batches))
        if arch == 80 or (arch == 90 and not short):
            single = (prune,) if short else LAUNCHERS
            parts.append(Part(arch, "float32", single, (), batches))
    return parts


@cache
def launches(part: Part) -> list[Job]:
    """What a part launches, each binary once."""
    found: dict[tuple[Any, ...], Job] = {}
    with pretend(ARCHS[part.arch]):
        for (num_tokens, num_slots), batch in product(SIZES, part.batches):
            load = square(batch, num_tokens, num_slots, part.dtype)
            recorded: list[Launch] = []
            with watch(recorded.append):
                for launcher in part.launchers:
                    launcher(load)
            for one in recorded:
                job = Job(one, part.dtype)
                found.setdefault(job.decides, job)
    compiled = {job.decides for other in part.less for job in launches(other)}
    return [job for decides, job in found.items() if decides not in compiled]
