"""Each channel's variance over the tokens of an image."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.dtypes import acc_dtype
from ocvtp_kernels.native import upcast
from ocvtp_kernels.ops.registry import Upcast, op


def _check(tokens: Tensor) -> None:
    checks.require_rank("tokens", tokens, "B, N, C")
    checks.require_floating("tokens", tokens)
    checks.require_nonempty("tokens", tokens, 1, "token")


def _fake(tokens: Tensor) -> Tensor:
    batch, _, width = tokens.shape
    return tokens.new_empty((batch, width), dtype=acc_dtype(tokens.dtype))


def _native(tokens: Tensor) -> Tensor:
    """Without a copy of the tokens."""
    if tokens.dtype == torch.float64:
        # There no wider sum makes equal what torch has equal, and ties are to fall as its do.
        return tokens.var(dim=1)
    variance: Tensor = torch.ops.ocvtp_native.channel_variance(upcast(tokens))
    return variance


# On a GPU torch's own reduction, which is as fast as memory.
@op(check=_check, fake=_fake, cpu=_native, reference=Upcast())
def channel_variance(tokens: Tensor) -> Tensor:
    """Each channel's unbiased variance over the tokens of an image.

    ``var_c = sum_n (x_nc - mean_c)^2 / (N - 1)``. Source: ``torch.var``.

    Args:
        tokens: ``[B, N, C]``, any floating dtype.

    Returns:
        ``[B, C]`` in float32 or wider; NaN of a single token.

    Raises:
        ValueError, TypeError: the tokens' shape or dtype does not fit; the message says how.
    """
    return tokens.var(dim=1)
