"""The attention that keys receive from some rows of queries."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.dtypes import acc_dtype, product_dtype
from ocvtp_kernels.native import upcast
from ocvtp_kernels.ops.registry import op

HALF = (torch.float16, torch.bfloat16)
SMALL_MAP = 1 << 18  # elements of maps that are not worth a call for each

# Of q [B, G, R, d], k [B, G, L, d], last [B, R] or None, valid [B, L] or None, and scale: [B, L].
# `last` is given where `valid` is, and is -1 in rows that see no key.
Kernel = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, float], Tensor]
Run = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, float | None], Tensor]


def _check(
    q: Tensor, k: Tensor, last: Tensor | None, valid: Tensor | None, ids: Tensor | None
) -> None:
    checks.require_rank("q", q, "B, H, M, d")
    checks.require_rank("k", k, "B, G, L, d")
    checks.require_floating("q", q)
    checks.require_same_dtype_device("k", k, "q", q)
    for dim in (0, 3):
        checks.require_size("k", k, dim, q.shape[dim], "q")
    for dim, thing in ((1, "head"), (2, "query"), (3, "channel")):
        checks.require_nonempty("q", q, dim, thing)
    for dim, thing in ((1, "head"), (2, "key")):
        checks.require_nonempty("k", k, dim, thing)
    if q.shape[1] % k.shape[1]:
        raise ValueError(
            f"k: expected heads that q's {q.shape[1]} are a multiple of, got shape {list(k.shape)}"
        )
    _check_beside_q("last", last, "B, M", torch.int64, q)
    _check_beside_q("valid", valid, "B, L", torch.bool, q)
    _check_beside_q("ids", ids, "B, N", torch.int64, q)
    if last is not None:
        checks.require_size("last", last, 1, q.shape[2], "q")
    if valid is not None:
        checks.require_size("valid", valid, 1, k.shape[2], "k")


def _check_beside_q(
    name: str, tensor: Tensor | None, layout: str, dtype: torch.dtype, q: Tensor
) -> None:
    if tensor is None:
        return
    checks.require_rank(name, tensor, layout)
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {tensor.dtype}")
    checks.require_same_device(name, tensor, "q", q)
    checks.require_size(name, tensor, 0, q.shape[0], "q")


def of_folded_rows(kernel: Kernel) -> Run:
    """The op by a kernel that takes as many heads of queries as of keys.

    The result is a mean over heads and rows, so the heads that share keys become rows of one.
    """

    def run(
        q: Tensor,
        k: Tensor,
        last: Tensor | None,
        valid: Tensor | None,
        ids: Tensor | None,
        scale: float | None,
    ) -> Tensor:
        batch, heads, rows, depth = q.shape
        key_heads = k.shape[1]
        if valid is not None:
            # The first and the final valid key; where there is none the first lies behind.
            so_far = valid.cumsum(1)
            first = (so_far == 0).sum(1, keepdim=True)
            final = (so_far < so_far[:, -1:]).sum(1, keepdim=True).expand(batch, rows)
            last = final if last is None else torch.minimum(last, final)
            last = last.where(last >= first, -1)
        if heads > key_heads:
            q = q.reshape(batch, key_heads, heads // key_heads * rows, depth)
            last = None if last is None else last.repeat(1, heads // key_heads)
        received = kernel(q, k, last, valid, float(depth**-0.5 if scale is None else scale))
        return _of_ids(received, ids)

    return run


def num_counted(q: Tensor, last: Tensor | None) -> Tensor | int:
    """The rows of an image that count, at least 1: one number, or int64 ``[B]``."""
    return q.shape[2] if last is None else (last >= 0).sum(1).clamp(min=1)


@of_folded_rows
def _native(
    q: Tensor, k: Tensor, last: Tensor | None, valid: Tensor | None, scale: float
) -> Tensor:
    """No ``[B, G, R, L]`` in memory."""
    # The CPU kernels read half precision as it is.
    q, k = (x if x.is_cpu and x.dtype in HALF else upcast(x) for x in (q, k))
    received: Tensor = torch.ops.ocvtp_native.attention_from_rows(q, k, last, valid, scale)
    return received


@of_folded_rows
def _plain(q: Tensor, k: Tensor, last: Tensor | None, valid: Tensor | None, scale: float) -> Tensor:
    """No more than one large map of a head in memory."""
    batch, heads, num_rows, _ = q.shape
    num_keys = k.shape[2]
    # A single row's map is small, and no copy of all keys is worth a wider product.
    dtype = product_dtype(q.dtype, q.device) if num_rows > 1 else q.dtype
    rows = min(num_rows, max(1, SMALL_MAP // max(1, batch * num_keys)))
    heads_at_once = max(1, SMALL_MAP // max(1, batch * rows * num_keys))
    # A float32 sum of a thousand parts would lose more bits than the parts have lost.
    total = q.new_zeros((batch, num_keys), dtype=torch.float64)
    for some_q, some_k in zip(q.split(heads_at_once, 1), k.split(heads_at_once, 1), strict=True):
        some_k = some_k.to(dtype)
        for first in range(0, num_rows, rows):
            row = slice(first, first + rows)
            sees = _sees(None if last is None else last[:, row], valid, num_keys)
            attention = _attention(some_q[:, :, row].to(dtype), some_k, sees, scale)
            total += attention.sum((1, 2))
    counted = num_counted(q, last)
    counted = counted if isinstance(counted, int) else counted[:, None]
    return (total / (heads * counted)).to(acc_dtype(q.dtype))


def _sees(last: Tensor | None, valid: Tensor | None, num_keys: int) -> Tensor | None:
    """Whether a row attends to a key: ``[B, 1, M, L]``, of size 1 where all are alike, or None."""
    sees = None if valid is None else valid[:, None, None]
    if last is None:
        return sees
    up_to_last = torch.arange(num_keys, device=last.device) <= last[:, None, :, None]
    return up_to_last if sees is None else up_to_last & sees


def _attention(q: Tensor, k: Tensor, sees: Tensor | None, scale: float) -> Tensor:
    """The map of queries by keys, in float32 or wider whatever the product is in."""
    logits = torch.matmul(q, k.mT).to(acc_dtype(q.dtype)).mul_(scale)
    if sees is None:
        return logits.softmax(-1)
    hidden = ~sees
    # Twice: a row that sees no key, or NaN, is NaN to its softmax everywhere.
    return logits.masked_fill_(hidden, -math.inf).softmax(-1).masked_fill_(hidden, 0)


def _of_ids(received: Tensor, ids: Tensor | None) -> Tensor:
    if ids is None:
        return received
    outside = (ids < 0) | (ids >= received.shape[1])
    return received.gather(1, ids.masked_fill(outside, 0)).masked_fill_(outside, 0)


@op(
    check=_check,
    fake=lambda q, k, ids: k.new_empty(
        (k.shape[0], k.shape[2] if ids is None else ids.shape[1]), dtype=acc_dtype(q.dtype)
    ),
    cpu=_native,
    plain=_plain,
    cuda=_native,
    triton="triton",
)
def attention_from_rows(
    q: Tensor,
    k: Tensor,
    last: Tensor | None = None,
    valid: Tensor | None = None,
    ids: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The attention that keys receive from some rows of queries, averaged over heads and rows.

    ``P = softmax over the keys that a row attends to of (scale * q k^T)``, then the mean over heads
    and over the rows that count. A row that attends to no key counts for nothing, and where no row
    of an image counts all is zero. FastV reads it of a prompt's last token, PyramidDrop and
    SparseVLM of tokens of the text.
    Source: arXiv 2403.06764, 2410.17247, 2410.04417.

    Args:
        q: ``[B, H, M, d]`` the rows of queries, after their rotary embedding, any floating dtype.
        k: ``[B, G, L, d]`` all keys, likewise. H is a multiple of G: head h of the queries reads
            head ``h // (H / G)`` of the keys.
        last: int64 ``[B, M]``, the last key that a row attends to, its own under a causal mask; -1
            for a row that counts for nothing. None if every row attends to all keys.
        valid: bool ``[B, L]``, false at keys that no row attends to, such as padding. What they
            hold, NaN too, changes nothing. None if all are valid.
        ids: int64 ``[B, N]``, 0 to L - 1, the keys whose attention is returned; anything else, such
            as -1, gets 0. None for all keys.
        scale: factor of the logits; d^-0.5 if None.

    Returns:
        ``[B, N]``, or ``[B, L]``, float32 or wider.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit; the message names
            it.
    """
    heads, depth = q.shape[1], q.shape[3]
    if heads > k.shape[1]:
        k = k.repeat_interleave(heads // k.shape[1], 1)
    sees = _sees(last, valid, k.shape[2])
    attention = _attention(q, k, sees, depth**-0.5 if scale is None else scale)
    if sees is None:
        return _of_ids(attention.mean((1, 2)), ids)
    counted = sees.any(-1).expand(-1, -1, q.shape[2]).sum((1, 2)).clamp(min=1)
    return _of_ids(attention.sum((1, 2)) / (heads * counted[:, None]), ids)
