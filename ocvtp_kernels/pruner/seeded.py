"""Random numbers from a seed, as ops, since a compiler cannot trace a generator.

They are internal: no ops of ``torch.ops.ocvtp``, and without backends.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# Noise is drawn in blocks of this many rows, so that more rows never change the first.
BLOCK = 1024

_LIBRARY = torch.library.Library("ocvtp_seeded", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)
_LIBRARY.define("more_noise(Tensor first, int seed, SymInt rows) -> Tensor", tags=_TAGS)
_LIBRARY.define("rank(Tensor like, int seed, SymInt tokens) -> Tensor", tags=_TAGS)


def draw(seed: int, rows: int, width: int) -> Tensor:
    """Standard normal noise: float32 ``[R, width]`` on the CPU, R a multiple of `BLOCK`."""
    # No inference tensors: they are stored, and gradients may pass through them.
    with torch.inference_mode(False), torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        shape = (BLOCK, width)
        blocks = [
            torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
            for _ in range(-(-rows // BLOCK))
        ]
        return torch.cat(blocks)


def noise(first: Tensor, seed: int, rows: int) -> Tensor:
    """The first ``rows`` rows of `draw`, on the device of ``first``: ``[rows, width]``.

    Args:
        first: the first block of them, ``[BLOCK, width]``, on which further rows are cached.
    """
    if rows <= first.shape[0]:
        return first[:rows]
    more: Tensor = torch.ops.ocvtp_seeded.more_noise(first, seed, rows)
    return more


def _more_noise(first: Tensor, seed: int, rows: int) -> Tensor:
    kept: Tensor | None = getattr(first, "more", None)
    if kept is None or kept.shape[0] < rows:
        with torch.inference_mode(False), torch.no_grad():
            kept = draw(seed, rows, first.shape[1]).to(first)
        first.more = kept  # type: ignore[attr-defined]
    # A compiler may write into what an op returns.
    return kept[:rows].clone()


_LIBRARY.impl("more_noise", _more_noise, "CompositeExplicitAutograd")
torch.library.register_fake(
    "ocvtp_seeded::more_noise",
    lambda first, seed, rows: first.new_empty(rows, first.shape[1]),
    lib=_LIBRARY,
)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _rank(seed: int, tokens: int, device: torch.device) -> Tensor:
    # Drawn on the CPU, so that every device keeps the same tokens.
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.randperm(tokens, generator=generator, device="cpu")
    return ranks.to(device, torch.float32)


def rank(like: Tensor, seed: int, tokens: int) -> Tensor:
    """A rank for each token, float32 ``[tokens]``, without ties, on the device of ``like``."""
    ranks: Tensor = torch.ops.ocvtp_seeded.rank(like, seed, tokens)
    return ranks


_LIBRARY.impl(
    "rank",
    lambda like, seed, tokens: _rank(seed, tokens, like.device).clone(),
    "CompositeExplicitAutograd",
)
torch.library.register_fake(
    "ocvtp_seeded::rank",
    lambda like, seed, tokens: like.new_empty(tokens, dtype=torch.float32),
    lib=_LIBRARY,
)
