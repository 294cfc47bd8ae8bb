"""What is drawn from a seed, as an op: a compiler cannot trace a generator, and need not.

The op is a helper of this package, without backends, and not one of ``torch.ops.ocvtp``.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Noise is drawn in blocks of this many rows, so that more rows never change the first.
BLOCK = 1024

_LIBRARY = torch.library.Library("ocvtp_seeded", "DEF")
_LIBRARY.define(
    "more_noise(Tensor first, int seed, SymInt rows) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def draw(seed: int, rows: int, width: int) -> Tensor:
    """Standard normal noise, always alike: float32 ``[R, width]``, R whole blocks, on the CPU."""
    # Of the normal kind in every mode: it is kept, and may meet a gradient.
    with torch.inference_mode(False), torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        shape = (BLOCK, width)
        blocks = [
            torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
            for _ in range(-(-rows // BLOCK))
        ]
        return torch.cat(blocks)


def noise(first: Tensor, seed: int, rows: int) -> Tensor:
    """The first ``rows`` rows that `draw` draws, where ``first`` is: ``[rows, width]``.

    Args:
        first: the first block of them, ``[BLOCK, width]``. It keeps those that come after.
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
