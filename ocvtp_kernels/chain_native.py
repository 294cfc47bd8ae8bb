"""The whole way on the native kernels, C++ or CUDA C++, with BLAS products between them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ocvtp_kernels.encode.native import encode
from ocvtp_kernels.fold import unpack
from ocvtp_kernels.selection.native import pick, select
from ocvtp_kernels.slots.native import iterate


def prune_native(
    reference: Tensor,
    final: Tensor,
    weights: Sequence[Tensor],
    slots_init: Tensor,
    importance: Tensor | None,
    budget: int,
    top_k: int = 1,
) -> tuple[Tensor, Tensor]:
    """`ocvtp_kernels.chain.prune_reference` with sums and slots in float32 or wider."""
    q, x_hat, constant = _compete(reference, weights, slots_init)
    return select(q, x_hat, constant, 1.0, final, importance, budget, top_k)


def picks_native(
    reference: Tensor, weights: Sequence[Tensor], slots_init: Tensor, top_k: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """`ocvtp_kernels.chain.picks_reference` with sums and slots in float32 or wider."""
    q, x_hat, constant = _compete(reference, weights, slots_init)
    return pick(q, x_hat, constant, 1.0, top_k, evidence=True)


def _compete(
    reference: Tensor, weights: Sequence[Tensor], slots_init: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The last iteration's query ``[B, K, D]``, tokens ``[B, N, D]`` and constant ``[B, K]``."""
    folded = unpack(weights)
    x_hat = encode(reference, folded)
    q, constant = iterate(slots_init, x_hat, folded.slots, folded.num_iter)
    return q, x_hat, constant
