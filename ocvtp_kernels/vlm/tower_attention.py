"""Attention received and keys of one encoder layer, from the outputs of its projections.

Works with every attention implementation; no attention map is materialised.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ocvtp_kernels.vlm.intercept import Intercepts

# Norms of queries and keys come first, as they follow the projections.
_QUERY_AND_KEY = (("q_norm", "k_norm"), ("q_proj", "k_proj"), ("query", "key"))


class LayerAttention:
    """Queries and keys of a layer, once it has run while ``intercepts`` are active.

    Args:
        intercepts: of the call.
        layer: the encoder layer.
        paths: where its module with the projections may be.
        num_heads: heads that the channels are divided among.

    Raises:
        ValueError: no projections of queries and keys were found.
    """

    def __init__(
        self, intercepts: Intercepts, layer: nn.Module, paths: Sequence[str], num_heads: int
    ) -> None:
        self.num_heads = num_heads
        self._outputs: dict[str, Tensor] = {}
        for key, projection in zip("qk", _find_projections(layer, paths), strict=True):
            intercepts.watch(projection, functools.partial(self._outputs.__setitem__, key))

    def received(self, mode: str) -> Tensor:
        """Attention received, ``[B, N]`` with prefix tokens: see ``ocvtp::attention_received``."""
        q, k = (split_heads(self._outputs[key], self.num_heads) for key in "qk")
        received: Tensor = torch.ops.ocvtp.attention_received(q, k, mode)
        return received

    @property
    def keys(self) -> Tensor:
        """Keys ``[B, N, D]`` with prefix tokens, heads side by side."""
        return self._outputs["k"]


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """``[B, N, H * d]`` to ``[B, H, N, d]``."""
    return tokens.view(*tokens.shape[:2], num_heads, -1).transpose(1, 2)


def _find_projections(layer: nn.Module, paths: Sequence[str]) -> tuple[nn.Module, nn.Module]:
    for path in paths:
        for names in _QUERY_AND_KEY:
            try:
                q, k = (layer.get_submodule(f"{path}.{name}") for name in names)
            except AttributeError:
                continue
            return q, k
    raise ValueError(f"{type(layer).__name__}: no projections of queries and keys were found")
