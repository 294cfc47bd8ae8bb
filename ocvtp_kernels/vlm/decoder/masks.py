"""Attention masks of decoder layers that hold fewer columns than the layers before them.

A column is one token position of a batch of prompts. The masks that transformers made for the whole
prompt are cut to the kept columns.
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
        mask: as a call is given it: None, ``[B, L]``, ``[B, 1, L, keys]``, or by layer type.
        input_ids: int64 ``[B, L]``.
    """
    mask = mask.get("full_attention") if isinstance(mask, dict) else mask
    if mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    require_tensor(mask)
    if mask.ndim == 4:
        # Every token attends to itself, padding to nothing.
        itself = mask[:, 0].diagonal(dim1=1, dim2=2)
        mask = itself if mask.dtype == torch.bool else itself == 0
    return mask.bool().expand(input_ids.shape)


def cut_mask(
    mask: Tensor | None, columns: Tensor, valid: Tensor, padded: bool, length: int, flash: bool
) -> Tensor | None:
    """The mask of a prompt's layers of fewer columns.

    Args:
        mask: of the whole prompt; None: causal, and nothing else.
        columns: int64 ``[B, W]``, index of the kept columns in the whole prompt.
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
        return _pad_keys(causal & valid[:, None, None], length)
    rows = mask.expand(len(columns), -1, -1, -1)
    rows = rows.gather(2, columns[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3]))
    index = columns[:, None, None].expand(-1, rows.shape[1], width, -1)
    return _pad_keys(_close(rows.gather(3, index), valid), length)


def extend_mask(
    mask: Tensor | None,
    valid: Tensor,
    padded: bool,
    prompt_length: int,
    length: int,
    queries: Tensor,
    flash: bool,
) -> Tensor | None:
    """The mask of tokens behind a prompt, at the layers where it has fewer columns.

    Args:
        mask: of the layers that have the whole prompt; None: every token attends to all before it.
        valid: bool ``[B, W]``, False on padding among the prompt's columns.
        padded: whether any of it is padding.
        prompt_length: columns of the whole prompt.
        length: keys that the layers attend to, these tokens' and, of a static cache, more.
        queries: ``[B, Q, C]``, the tokens.
        flash: as for `cut_mask`.
    """
    front = valid.repeat_interleave(len(queries) // len(valid), 0)
    if mask is None:
        if not padded:
            return None
        size = (len(front),) if flash else (len(front), 1, queries.shape[1])
        mask = front.new_ones(*size, prompt_length + length - valid.shape[1])
    require_tensor(mask)
    if mask.ndim == 2:
        return torch.cat([front.to(mask.dtype), mask[:, prompt_length:]], 1)
    behind = mask[..., prompt_length:].expand(len(front), -1, -1, -1)
    shape = (*behind.shape[:3], valid.shape[1])
    opened = behind.new_ones(shape) if behind.dtype == torch.bool else behind.new_zeros(shape)
    return _pad_keys(torch.cat([_close(opened, front), behind], 3), length)


def take_positions(embeddings: Tensor, columns: Tensor) -> Tensor:
    """Rows of a rotary embedding ``[..., B or 1, L, d]`` at ``columns`` ``[B, W]``."""
    if embeddings.ndim == 3:
        return gather_tokens(embeddings.expand(len(columns), -1, -1), columns)
    return torch.stack([take_positions(part, columns) for part in embeddings])


def takes_flat_masks(text: Any) -> bool:
    """Whether a language model's attention takes masks ``[B, keys]``, as flash attention does."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask

    name, masks = text.config._attn_implementation, ALL_MASK_ATTENTION_FUNCTIONS
    return bool(name in masks and masks[name] is flash_attention_mask)


def require_tensor(mask: Any) -> None:
    """Raises NotImplementedError unless a mask is a tensor."""
    if not isinstance(mask, Tensor):
        raise NotImplementedError(
            f"attention_mask: pruning in the decoder works with sdpa, eager and flash attention, "
            f"whose masks are tensors; got {type(mask).__name__}"
        )


def _close(mask: Tensor, valid: Tensor) -> Tensor:
    """The mask ``[B, H, Q, W]``, closed where ``valid`` ``[B, W]`` is False."""
    return mask.masked_fill(~valid[:, None, None], _closed_value(mask))


def _pad_keys(mask: Tensor, length: int) -> Tensor:
    """The mask with closed keys added at the end, up to ``length`` keys."""
    missing = length - mask.shape[3]
    if missing <= 0:
        return mask
    return pad(mask, (0, missing), value=_closed_value(mask))


def _closed_value(mask: Tensor) -> float:
    return 0 if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
