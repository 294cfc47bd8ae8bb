"""The memory of one call of the pipeline: one allocation, of a size that shapes fix.

It is taken anew at every call: a buffer kept between calls would be shared by streams and by CUDA
graphs, whereas torch's allocator reuses memory where that is safe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.ops.prune.weights import Folded
from ocvtp_kernels.ops.slot_attention.triton.forward import SplitPlan, SplitWorkspace
from ocvtp_kernels.triton_common.linear import Statistics
from ocvtp_kernels.triton_common.recorder import ALIGNMENT

Sizes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class Workspace(NamedTuple):
    """Everything that is written between the inputs and the outputs.

    Attributes:
        encoded: ``[B, N, width]``, the output of each encode Linear.
        statistics: for a LayerNorm of the tokens after the first product.
        normed_tokens: ``[B, N, C]``, for one before it; at most one of the two is there.
        q: ``[B, K, D]``; constant: float32 ``[B, K]``, added to a slot's logits.
        normed_slots: ``[B, K, D]``, LayerNorm of the slots, or of the state.
        updates: ``[B, K, D]``; mass: float32 ``[B, K]``.
        state: float32 ``[B, K, D]``, the slots between GRU and FFN.
        hidden: ``[B, K, F]``, between the FFN's Linears.
        slots: float32 ``[B, K, D]``; h: the same in the tokens' dtype, for the GRU's GEMM.
        split: of slot attention.
    """

    encoded: Sequence[Tensor]
    statistics: Statistics | None
    normed_tokens: Tensor | None
    q: Tensor
    constant: Tensor
    normed_slots: Tensor
    updates: Tensor
    mass: Tensor
    state: Tensor
    hidden: Tensor
    slots: Tensor
    h: Tensor
    split: SplitWorkspace


def norm_after_product(folded: Folded, dtype: torch.dtype) -> bool | None:
    """Whether the tokens' LayerNorm comes after the first product; None if there is none.

    In float32 the product would round off what a row far from zero has besides its mean; half
    precision is summed in float32, which has digits to spare.
    """
    return dtype != torch.float32 if folded.ln == "pre" else None


def split_workspace(
    lasting: Sizes, phases: Sequence[Sizes], device: torch.device
) -> dict[str, Tensor]:
    """Tensors of these shapes and dtypes, in one allocation.

    Args:
        lasting: tensors that live throughout.
        phases: tensors that live in one phase alone; all phases share the same memory.
    """
    offsets: dict[str, int] = {}

    def place(sizes: Sizes, end: int) -> int:
        for name, (shape, dtype) in sizes.items():
            offsets[name] = end
            end += -(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        return end

    first = place(lasting, 0)
    total = max([first, *(place(sizes, first) for sizes in phases)])
    memory = torch.empty(total, dtype=torch.uint8, device=device)
    every = {name: size for sizes in (lasting, *phases) for name, size in sizes.items()}
    return {
        name: memory[offsets[name] :][: prod(shape) * dtype.itemsize].view(dtype).view(shape)
        for name, (shape, dtype) in every.items()
    }


def new_workspace(tokens: Tensor, slots: Tensor, folded: Folded, split: SplitPlan) -> Workspace:
    """The workspace of one call on tokens ``[B, N, C]`` and slots ``[B, K, D]``."""
    batch, num_tokens, width = tokens.shape
    num_slots, dim = slots.shape[1:]
    dtype, acc_dtype = tokens.dtype, torch.float32
    by_token, by_slot = (batch, num_tokens), (batch, num_slots)
    vectors = (*by_slot, dim)
    after = norm_after_product(folded, dtype)
    partial_acc, partial_mass, semaphore = split.workspace_sizes()
    encoded = {
        f"encoded_{layer}": ((*by_token, weight.shape[0]), dtype)
        for layer, weight in enumerate(folded.encode_weights)
    }
    last = f"encoded_{len(encoded) - 1}"
    lasting: Sizes = {
        last: encoded[last],
        "q": (vectors, dtype),
        "constant": (by_slot, acc_dtype),
        "normed_slots": (vectors, dtype),
        "semaphore": ((semaphore or 1,), torch.int32),
    }
    statistics: Sizes = {
        "mean": (by_token, acc_dtype),
        "rstd": (by_token, acc_dtype),
        "weight_mean": ((folded.encode_weights[0].shape[0],), acc_dtype),
    }
    encoding: Sizes = {
        **{name: size for name, size in encoded.items() if name != last},
        **(statistics if after else {}),
        **({"normed_tokens": ((*by_token, width), dtype)} if after is False else {}),
    }
    iterating: Sizes = {
        "updates": (vectors, dtype),
        "mass": (by_slot, acc_dtype),
        "state": (vectors, acc_dtype),
        "hidden": ((*by_slot, folded.slots.ffn_w1.shape[0]), dtype),
        "slots": (vectors, acc_dtype),
        **({} if dtype == acc_dtype else {"h": (vectors, dtype)}),
        **({"softmax_stats": ((*by_token, 2), acc_dtype)} if split.softmax_stats else {}),
        **({"partial_acc": ((partial_acc,), acc_dtype)} if partial_acc else {}),
        **({"partial_mass": ((partial_mass,), acc_dtype)} if partial_acc else {}),
    }
    tensors = split_workspace(lasting, (encoding, iterating), tokens.device)
    return Workspace(
        encoded=[tensors.pop(name) for name in encoded],
        statistics=Statistics(*(tensors.pop(name) for name in statistics)) if after else None,
        normed_tokens=tensors.pop("normed_tokens", None),
        h=tensors.pop("h", tensors["slots"]),
        split=SplitWorkspace(
            tensors.pop("semaphore"),
            *(tensors.pop(name, None) for name in SplitWorkspace._fields[1:]),
        ),
        **tensors,
    )
