"""Checks that several ops share, and what bounds the GPU selections."""

from __future__ import annotations

from torch import Tensor

from ocvtp_kernels import checks

MAX_TOKENS = 16384  # of an image, on a GPU: in the registers of one program
MAX_RANKS = 2**30  # top_k * num_tokens stays below, on a GPU
MAX_PICKS = 65535  # of an image, on the cuda backend: a pick's index is 16 bits


def check_queries_and_keys(q: Tensor, k: Tensor) -> None:
    """Queries ``[B, K, D]`` and keys ``[B, N, D]``, at least one slot and one token."""
    checks.require_rank("q", q, "B, K, D")
    checks.require_rank("k", k, "B, N, D")
    checks.require_floating("q", q)
    checks.require_same_dtype_device("k", k, "q", q)
    checks.require_size("k", k, 0, q.shape[0], "q")
    checks.require_size("k", k, 2, q.shape[2], "q")
    checks.require_nonempty("q", q, 1, "slot")
    checks.require_nonempty("k", k, 1, "token")


def check_by_token(name: str, scores: Tensor, other_name: str, other: Tensor) -> None:
    """Floating scores ``[B, N]`` beside ``other`` ``[B, N, ...]``."""
    checks.require_rank(name, scores, "B, N")
    checks.require_floating(name, scores)
    checks.require_same_device(name, scores, other_name, other)
    checks.require_size(name, scores, 0, other.shape[0], other_name)
    checks.require_size(name, scores, 1, other.shape[1], other_name)


def check_final_tokens(final_tokens: Tensor, other_name: str, other: Tensor) -> None:
    """``[B, N, C]`` of any dtype, since rows are only copied, beside ``other`` ``[B, N, ...]``."""
    checks.require_rank("final_tokens", final_tokens, "B, N, C")
    checks.require_same_device("final_tokens", final_tokens, other_name, other)
    checks.require_size("final_tokens", final_tokens, 0, other.shape[0], other_name)
    checks.require_size("final_tokens", final_tokens, 1, other.shape[1], other_name)


def check_importance(importance: Tensor | None, other_name: str, other: Tensor) -> None:
    """As `check_by_token`, where importance is given."""
    if importance is not None:
        check_by_token("importance", importance, other_name, other)


def no_channels(q: Tensor, values: Tensor) -> str | None:
    """Why GPU kernels do not take rows without a channel, or None."""
    if min(q.shape[2], values.shape[2]) > 0:
        return None
    return f"the GPU kernels take at least one channel, not {q.shape[2]} and {values.shape[2]}"


def too_many_tokens(num_tokens: int, top_k: int) -> str | None:
    """Why the GPU selections cannot hold as many tokens, or None."""
    if num_tokens > MAX_TOKENS:
        return f"the GPU selection holds at most {MAX_TOKENS} tokens an image, not {num_tokens}"
    if num_tokens * top_k >= MAX_RANKS:
        return f"the GPU selection ranks fewer than 2^30 picks, not {num_tokens * top_k}"
    return None


def too_many_picks(num_tokens: int, num_slots: int, top_k: int) -> str | None:
    """As `too_many_tokens`, for the cuda backend, which also bounds the picks."""
    if num_slots * top_k > MAX_PICKS:
        picks = num_slots * top_k
        return f"the cuda selection takes at most {MAX_PICKS} picks an image, not {picks}"
    return too_many_tokens(num_tokens, top_k)
