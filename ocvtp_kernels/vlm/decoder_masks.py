"""Attention masks of decoder layers that hold fewer columns than the layers before them.

A column is one token position of a batch of prompts. What transformers made for the whole prompt is
cut to the columns that are left, so that whatever else it says stays true.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ocvtp_kernels.ops.argmax_gather import gather_tokens


def read_attended(mask: Any, input_ids: Tensor) -> Tensor:
    """Which columns of a new prompt are no padding: bool ``[B, L]``.

    Args:
        mask: as a call is given it: None, ``[B, L]``, ``[B, 1, L, keys]``, or by kind of layer.
        input_ids: int64 ``[B, L]``.
    """
    mask = _of_full_layers(mask)
    if mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    require_tensor(mask)
    if mask.ndim == 4:
        # Every token sees itself, but padding sees nothing.
        seen = mask[:, 0].diagonal(dim1=1, dim2=2)
        mask = seen if mask.dtype == torch.bool else seen == 0
    return mask.bool().expand(input_ids.shape)


def cut_mask(
    mask: Tensor | None, columns: Tensor, valid: Tensor, padded: bool, length: int, flash: bool
) -> Tensor | None:
    """The mask of a prompt's layers of fewer columns.

    Args:
        mask: of the whole prompt; None: causal, and nothing else.
        columns: int64 ``[B, W]``, where the columns left stood in the whole prompt.
        valid: bool ``[B, W]``, False on padding.
        padded: whether any of it is padding.
        length: keys that the layers attend to, W or, of a static cache, more.
        flash: whether attention takes masks of two dimensions, where there are any.
    """
    if mask is not None:
        require_tensor(mask)
    if mask is None and not padded:
        return None
    if flash if mask is None else mask.ndim == 2:
        return valid
    width = columns.shape[1]
    if mask is None:
        causal = torch.ones(width, width, dtype=torch.bool, device=valid.device).tril()
        return _widen(causal & valid[:, None, None], length)
    rows = mask.expand(len(columns), -1, -1, -1)
    rows = rows.gather(2, columns[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3]))
    index = columns[:, None, None].expand(-1, rows.shape[1], width, -1)
    return _widen(_close(rows.gather(3, index), valid), length)


def extend_mask(
    mask: Tensor | None,
    valid: Tensor,
    padded: bool,
    whole: int,
    length: int,
    queries: Tensor,
    flash: bool,
) -> Tensor | None:
    """The mask of tokens behind a prompt, at the layers where it has fewer columns.

    Args:
        mask: of the layers that have the whole prompt; None: every token sees all before it.
        valid: bool ``[B, W]``, False on padding among the prompt's columns.
        padded: whether any of it is padding.
        whole: columns of the whole prompt.
        length: keys that the layers attend to, these tokens' and, of a static cache, more.
        queries: ``[B, Q, C]``, the tokens.
        flash: as for `cut_mask`.
    """
    front = valid.repeat_interleave(len(queries) // len(valid), 0)
    if mask is None:
        if not padded:
            return None
        size = (len(front),) if flash else (len(front), 1, queries.shape[1])
        mask = front.new_ones(*size, whole + length - valid.shape[1])
    require_tensor(mask)
    if mask.ndim == 2:
        return torch.cat([front.to(mask.dtype), mask[:, whole:]], 1)
    behind = mask[..., whole:].expand(len(front), -1, -1, -1)
    shape = (*behind.shape[:3], valid.shape[1])
    opened = behind.new_ones(shape) if behind.dtype == torch.bool else behind.new_zeros(shape)
    return _widen(torch.cat([_close(opened, front), behind], 3), length)


def take_positions(embeddings: Tensor, columns: Tensor) -> Tensor:
    """Rows of a rotary embedding ``[..., B or 1, L, d]`` at ``columns`` ``[B, W]``."""
    if embeddings.ndim == 3:
        return gather_tokens(embeddings.expand(len(columns), -1, -1), columns)
    return torch.stack([take_positions(part, columns) for part in embeddings])


def takes_flat_masks(text: Any) -> bool:
    """Whether a language model's attention takes masks ``[B, keys]``, as flash attention does."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask

    kind = text.config._attn_implementation
    known = ALL_MASK_ATTENTION_FUNCTIONS
    return bool(kind in known and known[kind] is flash_attention_mask)


def require_tensor(mask: Any) -> None:
    """Raises NotImplementedError unless a mask is a tensor."""
    if not isinstance(mask, Tensor):
        raise NotImplementedError(
            f"attention_mask: pruning in the decoder works with sdpa, eager and flash attention, "
            f"whose masks are tensors; got {type(mask).__name__}"
        )


def _of_full_layers(mask: Any) -> Any:
    return mask.get("full_attention") if isinstance(mask, dict) else mask


def _close(mask: Tensor, valid: Tensor) -> Tensor:
    """The mask ``[B, H, Q, W]`` with nothing to see where ``valid`` ``[B, W]`` is False."""
    closed = ~valid[:, None, None]
    least = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return mask.masked_fill(closed, least)


def _widen(mask: Tensor, length: int) -> Tensor:
    """With keys nobody sees behind, up to ``length`` of them."""
    missing = length - mask.shape[3]
    if missing <= 0:
        return mask
    least = 0 if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return pad(mask, (0, missing), value=least)
