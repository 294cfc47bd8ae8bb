"""Tokens that merge between the layers of a tower, ToMe's way (arXiv 2210.09461)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ocvtp_kernels.selectors.similarity import mean_over_heads
from ocvtp_kernels.selectors.tome import MergedTokens
from ocvtp_kernels.vlm.intercept import Forward, Intercepts, is_changed

# Implementations of attention that add a mask of sizes to the logits.
_ADDS_MASK = ("sdpa", "eager")


class TowerMerging:
    """The merging of one call's tokens.

    Attributes:
        tokens: of the call, from the first layer on.

    Args:
        num_heads: of the tower's attention.
        num_prefix: tokens in front that never merge.
    """

    tokens: MergedTokens

    def __init__(self, num_heads: int, num_prefix: int) -> None:
        self._num_heads, self._num_prefix = num_heads, num_prefix

    def forward(self, layer: Any, num_merged: int, is_first: bool) -> Forward:
        """A layer's forward in which ``num_merged`` tokens merge between attention and MLP.

        Args:
            layer: of CLIP or SigLIP.
            num_merged: at least 0.
            is_first: whether it is the tower's first layer.
        """

        def run(
            original: Forward,
            hidden_states: Tensor,
            attention_mask: Tensor | None = None,
            **kwargs: Any,
        ) -> Any:
            if is_first:
                batch, num_tokens, _ = hidden_states.shape
                self.tokens = MergedTokens(batch, num_tokens, hidden_states.device)
            mask = self._add_sizes(attention_mask, hidden_states)
            if num_merged == 0:
                return original(hidden_states, mask, **kwargs)
            keys: list[Tensor] = []
            taps = Intercepts()
            taps.watch(layer.self_attn.k_proj, keys.append)
            normed = layer.layer_norm1(hidden_states)
            with taps.active():
                mixed, _ = layer.self_attn(normed, attention_mask=mask, **kwargs)
            hidden_states = self.tokens.merge(
                hidden_states + mixed,
                mean_over_heads(keys[0].detach(), self._num_heads),
                num_merged,
                self._num_prefix,
            )
            return hidden_states + layer.mlp(layer.layer_norm2(hidden_states))

        return run

    def _add_sizes(self, mask: Tensor | None, hidden_states: Tensor) -> Tensor | None:
        """The mask of proportional attention: ``[B, 1, 1, n]``, log(size)."""
        if self.tokens.sizes is None:
            return mask
        sizes = self.tokens.sizes.log().to(hidden_states.dtype)[:, None, None]
        return sizes if mask is None else mask + sizes


def require_mergeable(config: Any, layers: list[nn.Module]) -> None:
    """Raises ValueError unless tokens can merge in these layers of a CLIP or SigLIP."""
    attention = config._attn_implementation
    if attention not in _ADDS_MASK:
        raise ValueError(
            f"model: sizes of merged tokens are added to attention logits, which {attention!r} "
            f"does not; expected attn_implementation {' or '.join(map(repr, _ADDS_MASK))}"
        )
    for layer in layers:
        if is_changed(layer, hooks=False):
            raise ValueError(
                f"model: tokens merge inside {type(layer).__name__}, whose forward was changed, "
                'as by offloading; expected it as released, or place="encoder"'
            )
        if layer.training and getattr(layer, "gradient_checkpointing", False):
            raise ValueError(
                "model: tokens merge once, and gradient checkpointing runs the tower's layers "
                "again; expected a tower in eval mode or without it"
            )
