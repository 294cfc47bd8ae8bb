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
_LIBRARY.define("noise(Tensor like, int seed, SymInt count) -> Tensor", tags=_TAGS)
_LIBRARY.define("rank(Tensor like, int seed, SymInt tokens) -> Tensor", tags=_TAGS)


def draw(seed: int, rows: int, width: int) -> Tensor:
    """Standard normal noise: float32 ``[R, width]`` on the CPU, R a multiple of `BLOCK`."""
    # No inference tensors: they are stored, and gradients may pass through them.
    with torch.inference_mode(False), torch.no_grad():
        generator = torch.Generator("cpu").manual_seed(seed)
        shape = (BLOCK, width)
        blocks = [
            torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
            for _ in range(-(-rows // BLOCK))
        ]
        return torch.cat(blocks)


# What captured CUDA graphs read whenever they are replayed.
_CAPTURED: dict[int, Tensor] = {}


def _copied(drawn: Tensor, count: int) -> Tensor:
    """The first numbers of a cached tensor; copied, as a compiler may write into them."""
    if _is_captured(drawn.device):
        _CAPTURED[id(drawn)] = drawn
    return drawn.view(-1)[:count].clone()


def _is_captured(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _drawn(seed: int, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # Drawn for each dtype, not cast, so that a cast to half and back loses nothing.
    return draw(seed, rows, width).to(device, dtype)


def noise(like: Tensor, seed: int, count: int) -> Tensor:
    """The first ``count`` numbers of `draw`, row by row: ``[count]``.

    Args:
        like: a tensor ``[..., width]`` of their dtype and device.
    """
    drawn: Tensor = torch.ops.ocvtp_seeded.noise(like.detach(), seed, count)
    return drawn


def _noise(like: Tensor, seed: int, count: int) -> Tensor:
    width = like.shape[-1]
    rows = -(-count // (BLOCK * width)) * BLOCK
    return _copied(_drawn(seed, rows, width, like.dtype, like.device), count)


_LIBRARY.impl("noise", _noise, "CompositeExplicitAutograd")
torch.library.register_fake(
    "ocvtp_seeded::noise",
    lambda like, seed, count: like.new_empty(count),
    lib=_LIBRARY,
)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _rank(seed: int, tokens: int, device: torch.device) -> Tensor:
    # Drawn on the CPU, so that every device keeps the same tokens.
    generator = torch.Generator("cpu").manual_seed(seed)
    ranks = torch.randperm(tokens, generator=generator, device="cpu")
    return ranks.to(device, torch.float32)


def rank(like: Tensor, seed: int, tokens: int) -> Tensor:
    """A rank for each token, float32 ``[tokens]``, without ties, on the device of ``like``."""
    ranks: Tensor = torch.ops.ocvtp_seeded.rank(like, seed, tokens)
    return ranks


_LIBRARY.impl(
    "rank",
    lambda like, seed, tokens: _copied(_rank(seed, tokens, like.device), tokens),
    "CompositeExplicitAutograd",
)
torch.library.register_fake(
    "ocvtp_seeded::rank",
    lambda like, seed, tokens: like.new_empty(tokens, dtype=torch.float32),
    lib=_LIBRARY,
)
