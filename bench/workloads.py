"""The workloads of the benchmarks, by device; every benchmark takes them from here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch

BATCHES = (1, 8, 64)
DTYPES = ("bfloat16", "float32", "float16")
# LLaVA-1.5 has one crop of 576 tokens, LLaVA-NeXT five. One slot for each token to keep.
BUDGETS = {576: (64, 128, 192), 2880: (160, 320, 640)}


@dataclass(frozen=True)
class Workload:
    """One size of the pruner, B images of N tokens, K slots, T kept, and the way it is used."""

    batch: int
    num_tokens: int
    num_slots: int
    budget: int
    in_dim: int = 1024
    slot_dim: int = 512
    dtype: str = "float32"
    mode: str = "no_grad"  # how it is used: a name of `bench.modes.MODES`
    threads: int | None = None  # of the CPU; None leaves torch's

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of tokens and weights."""
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def compute_dtype(self) -> str:
        """The dtype of products: that of autocast, where it is on."""
        return "bfloat16" if self.mode == "autocast" else self.dtype

    @property
    def hidden_dim(self) -> int:
        """The width of both hidden layers, encode and FFN: 4 D, as published."""
        return 4 * self.slot_dim

    @property
    def slots(self) -> tuple[int, int, int]:
        """The shape of slots and queries, ``[B, K, D]``."""
        return self.batch, self.num_slots, self.slot_dim

    @property
    def encoded(self) -> tuple[int, int, int]:
        """The shape of encoded tokens, of keys and of values, ``[B, N, D]``."""
        return self.batch, self.num_tokens, self.slot_dim

    @property
    def tokens(self) -> tuple[int, int, int]:
        """The shape of reference and of final tokens, ``[B, N, C]``."""
        return self.batch, self.num_tokens, self.in_dim

    @property
    def scores(self) -> tuple[int, int]:
        """The shape of a score a token, such as importance, ``[B, N]``."""
        return self.batch, self.num_tokens

    @property
    def matrix(self) -> tuple[int, int, int]:
        """The shape of similarities or distances, ``[B, N, N]``."""
        return self.batch, self.num_tokens, self.num_tokens

    def __str__(self) -> str:
        said = (
            f"B={self.batch} N={self.num_tokens} K={self.num_slots} T={self.budget} "
            f"{self.in_dim}->{self.slot_dim} {self.dtype}"
        )
        said += "" if self.mode == "no_grad" else f" {self.mode}"
        return said + ("" if self.threads is None else f" {self.threads} threads")


@dataclass(frozen=True)
class Workloads:
    """Workloads of a run, in order of importance, since a run may have a deadline."""

    prune: tuple[Workload, ...]  # `prune` beside every baseline but torch.compile
    ops: tuple[Workload, ...]  # every other op, forward and backward
    narrow: tuple[Workload, ...] = ()  # `slot_attention` alone, narrow enough for FlashSlice
    compiled: tuple[Workload, ...] = ()  # `prune` beside torch.compile: up to a minute each


def square(batch: int, num_tokens: int, budget: int, dtype: str, slot_dim: int = 512) -> Workload:
    """As many slots as kept tokens."""
    return Workload(batch, num_tokens, budget, budget, slot_dim=slot_dim, dtype=dtype)


HEADLINE = square(1, 576, 64, "float32")

GRID = tuple(
    square(batch, num_tokens, BUDGETS[num_tokens][i], dtype)
    for i, dtype, num_tokens, batch in product(range(3), DTYPES, BUDGETS, BATCHES)
)
CUDA = Workloads(
    GRID,
    (
        *(square(batch, 576, 64, "bfloat16") for batch in BATCHES),
        square(8, 576, 64, "float32"),
        square(8, 576, 64, "float16"),
        square(8, 2880, 320, "bfloat16"),
    ),
    tuple(square(8, n, BUDGETS[n][0], dtype, slot_dim=256) for n in BUDGETS for dtype in DTYPES),
    (
        square(1, 576, 64, "bfloat16"),
        square(64, 576, 64, "bfloat16"),
        HEADLINE,
        square(1, 2880, 160, "bfloat16"),
    ),
)
CUDA_SHORT = Workloads(
    GRID[: 2 * len(BUDGETS) * len(BATCHES)],  # the fewest tokens, in bfloat16 and float32
    (square(8, 576, 64, "bfloat16"),),
    (square(8, 576, 64, "float32", slot_dim=256),),
    CUDA.compiled[:3],
)
CPU = Workloads(
    (
        HEADLINE,
        square(8, 576, 64, "float32"),
        square(1, 576, 192, "float32"),
        square(1, 2880, 160, "float32"),
        square(1, 576, 64, "bfloat16"),
    ),
    (HEADLINE,),
    compiled=(HEADLINE,),
)
CPU_SHORT = Workloads((HEADLINE,), (Workload(2, 96, 16, 16, 64, 32),))


def workloads(device: str, short: bool) -> Workloads:
    """The workloads of a run on a device type, all or the short list."""
    if device == "cuda":
        return CUDA_SHORT if short else CUDA
    return CPU_SHORT if short else CPU
