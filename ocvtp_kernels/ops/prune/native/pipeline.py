"""The pipeline on the native kernels, C++ or CUDA C++, with BLAS products between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.blas import float32_sums
from ocvtp_kernels.ops.argmax_gather.native import select
from ocvtp_kernels.ops.prune.native.encode import EncodeLayers, encode
from ocvtp_kernels.ops.prune.native.slots import SlotLayers, iterate
from ocvtp_kernels.ops.prune.weights import Folded, Kept, kept_with, unpack


class Layers(NamedTuple):
    """A list of folded weights as the native kernels read it."""

    num_iter: int
    encode: EncodeLayers
    slots: SlotLayers

    @classmethod
    def of(cls, folded: Folded) -> Layers:
        """Of folded weights, in the dtypes to compute in on their device."""
        return cls(folded.num_iter, EncodeLayers.of(folded), SlotLayers.of(folded.slots))


@torch.no_grad()
def prepare(weights: Sequence[Tensor], slots_init: Tensor | None = None) -> list[Tensor]:
    """A list of folded weights for ``ocvtp::prune``, with what it makes of them once.

    That are packs of the matrices on the CPU and, with initial slots, the product that the first
    iteration begins with. They hang on the first tensor of the list returned and go with it. For
    weights and slots that stay as they are: later edits may or may not be seen.

    Args:
        weights: what `OCPruner.packed` gives, shared with the list returned.
        slots_init: ``[1, K, D]`` in their dtype; calls whose slots are the first K or fewer of
            these, in this memory, skip that product.

    Raises:
        ValueError, TypeError: the list is no list of folded weights, or the slots do not fit it;
            the message names which.
    """
    if not isinstance(weights, (list, tuple)):
        raise TypeError(f"weights: expected a list, got {type(weights).__name__}")
    for place, weight in enumerate(weights):
        checks.require_tensor(f"weights[{place}]", weight)
    folded = unpack(weights)
    if slots_init is not None:
        checks.require_rank("slots_init", slots_init, "1, K, D")
        checks.require_same_dtype_device("slots_init", slots_init, "weights", weights[0])
        checks.require_size("slots_init", slots_init, 0, 1, "slots that all images share")
        checks.require_size("slots_init", slots_init, 2, folded.slots.dim, "weights")
    layers = Layers.of(folded)
    encode, slots = layers.encode.packed(), layers.slots.packed()
    # Rows that share memory are no rows of the dense slots that `Start.of` compares with.
    if slots_init is not None and slots_init.stride()[1:] == (folded.slots.dim, 1):
        slots = slots.starting_from(slots_init)
    layers = layers._replace(encode=encode, slots=slots)
    kept = Kept(tuple(weights[1:]), folded, layers, weights[0].device, {})
    return kept.go_with(weights[0].new_empty(weights[0].shape))


@torch.inference_mode(False)
@torch.no_grad()
def prepared_in(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """A list of folded weights in another dtype: cast and prepared once, if it is prepared."""
    if not weights or weights[0].dtype == dtype:
        return list(weights)
    kept = kept_with(weights)
    if kept is None:
        return [weight.to(dtype) for weight in weights]
    if dtype not in kept.casts:
        kept.casts[dtype] = prepare([weight.to(dtype) for weight in weights])
    return kept.casts[dtype]


def prune(
    reference_tokens: Tensor,
    final_tokens: Tensor,
    weights: Sequence[Tensor],
    slots_init: Tensor,
    importance: Tensor | None,
    budget: int,
    top_k: int = 1,
) -> tuple[Tensor, Tensor]:
    """`ocvtp_kernels.ops.prune` with sums and slots in float32 or wider."""
    logits = _last_logits(reference_tokens, weights, slots_init)
    return select(*logits, 1.0, final_tokens, importance, budget, top_k)


def prune_picks(
    reference_tokens: Tensor, weights: Sequence[Tensor], slots_init: Tensor, top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`ocvtp_kernels.ops.prune_picks` with sums and slots in float32 or wider."""
    logits = _last_logits(reference_tokens, weights, slots_init)
    topk_ids, max_logprob, token_score = torch.ops.ocvtp_native.slot_argmax(
        *logits, 1.0, top_k, True
    )
    return topk_ids, max_logprob, token_score


def _last_logits(
    reference_tokens: Tensor, weights: Sequence[Tensor], slots_init: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The last iteration's query ``[B, K, D]``, tokens ``[B, N, D]`` and constant ``[B, K]``."""
    kept = kept_with(weights)
    layers: Layers = Layers.of(unpack(weights)) if kept is None else kept.layers
    with float32_sums(reference_tokens.device):
        tokens = encode(reference_tokens, layers.encode)
        return iterate(slots_init, tokens, layers.slots, layers.num_iter)
