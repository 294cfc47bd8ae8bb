"""The op of the importance stage."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.dtypes import accumulate_dtype
from ocvtp_kernels.native import if_built
from ocvtp_kernels.ops.attention_received import native, reference
from ocvtp_kernels.ops.attention_received import plain as cpu
from ocvtp_kernels.ops.registry import define, lazy


def _check(q: Tensor, k: Tensor, mode: str, scale: float | None = None) -> None:
    checks.require_rank("q", q, "B, H, M, d")
    checks.require_rank("k", k, "B, H, N, d")
    checks.require_floating("q", q)
    checks.require_same_kind("k", k, "q", q)
    for dim in (0, 1, 3):
        checks.require_size("k", k, dim, q.shape[dim], "q")
    checks.require_some("q", q, 1, "head")
    checks.require_some("q", q, 2, "query")
    checks.require_some("k", k, 2, "token")
    if mode not in reference.MODES:
        raise ValueError(f"mode: expected one of {reference.MODES}, got {mode!r}")


def _fake(q: Tensor, k: Tensor, mode: str, scale: float | None = None) -> Tensor:
    shape = (k.shape[0], k.shape[2])
    return torch.empty(shape, dtype=accumulate_dtype(q.dtype), device=q.device)


define(
    "attention_received(Tensor q, Tensor k, str mode, float? scale=None) -> Tensor",
    check=_check,
    fake=_fake,
    kernels={
        "reference": reference.attention_received,
        "cpu": if_built(native.attention_received, cpu.attention_received),
        "triton": lazy("ops.attention_received.triton", "attention_received"),
        "cuda": native.attention_received,
    },
)
