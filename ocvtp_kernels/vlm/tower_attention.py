"""Attention received and keys of one encoder layer, from the outputs of its projections.

Works with every attention implementation; no attention map is materialised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_QUERY_AND_KEY = (("q_proj", "k_proj"), ("query", "key"))


class LayerAttention:
    """Queries and keys of a layer, once it has run within `captured`.

    Args:
        layer: the encoder layer.
        paths: where its module with the projections may be.
        num_heads: heads that the channels are divided among.

    Raises:
        ValueError: no projections of queries and keys were found.
    """

    def __init__(self, layer: nn.Module, paths: Sequence[str], num_heads: int) -> None:
        self.num_heads = num_heads
        self._projections = _find_projections(layer, paths)
        self._outputs: dict[str, Tensor] = {}

    @contextmanager
    def captured(self) -> Iterator[None]:
        """Within the block, the outputs of the layer's projections are stored."""
        with ExitStack() as stack:
            for key, projection in zip("qk", self._projections, strict=True):

                def store(_module: nn.Module, _args: Any, output: Tensor, key: str = key) -> None:
                    self._outputs[key] = output

                stack.callback(projection.register_forward_hook(store).remove)
            yield

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
    return tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _find_projections(layer: nn.Module, paths: Sequence[str]) -> tuple[nn.Module, nn.Module]:
    for path in paths:
        for names in _QUERY_AND_KEY:
            try:
                q, k = (layer.get_submodule(f"{path}.{name}") for name in names)
            except AttributeError:
                continue
            return q, k
    raise ValueError(f"{type(layer).__name__}: no projections of queries and keys were found")
