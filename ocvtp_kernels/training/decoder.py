"""The decoder that the pruner is trained with: tokens from slots and from a few other tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocvtp_kernels import checks
from ocvtp_kernels.pruner.config import PrunerConfig
from ocvtp_kernels.pruner.pruner import for_layers

# The keys that are the width of a token.
TOKEN_WIDTHS = (
    *("enc_in_dim", "proj1_in_dim", "proj1_out_dim", "proj1_norm_dim", "proj2_out_dim"),
    *("proj2_norm_dim", "pos_embed_dim", "dec_dim", "transformer_d_model"),
)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}
# Half of the images show this many tokens, so that the slots must carry nearly everything.
FEW_VISIBLE = 24
# Deviation of the mask token and the positions at the start, as masked autoencoders have it.
INITIAL_DEVIATION = 0.02


class Projection(nn.Module):
    """A Linear and a LayerNorm, under the authors' names."""

    def __init__(self, in_dim: int, out_dim: int, bias: bool) -> None:
        super().__init__()
        self.project = nn.Linear(in_dim, out_dim, bias=bias)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[..., in_dim]`` -> ``[..., out_dim]``."""
        output: Tensor = self.norm(self.project(tokens))
        return output


class Positions(nn.Module):
    """A learned embedding of each token's position, under the authors' name ``_pe``."""

    def __init__(self, resolution: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self._pe = nn.Parameter(torch.empty(1, *resolution, dim))
        nn.init.trunc_normal_(self._pe, std=INITIAL_DEVIATION)

    def forward(self) -> Tensor:
        """``[1, N, dim]``."""
        return self._pe.flatten(1, -2)


class DecoderLayer(nn.Module):
    """One layer of a Transformer decoder: self-attention, attention to memory, feed-forward.

    Computes as `torch.nn.TransformerDecoderLayer`, whose parameter names it has; unlike that one
    it returns the attention to memory on request.
    """

    def __init__(self, config: PrunerConfig, *, is_first: bool) -> None:
        super().__init__()
        dim, heads = config.transformer_d_model, config.transformer_nhead
        rate, bias = config.transformer_dropout, config.transformer_bias
        self.norm_first = config.transformer_norm_first
        self.activation = ACTIVATIONS[config.transformer_activation]
        self.self_attn = nn.MultiheadAttention(dim, heads, rate, bias=bias, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(dim, heads, rate, bias=bias, batch_first=True)
        self.linear1 = nn.Linear(dim, config.transformer_feedforward, bias=bias)
        self.linear2 = nn.Linear(config.transformer_feedforward, dim, bias=bias)
        # The decoder's norm0 takes the place of the first.
        self.norm1 = nn.Identity() if is_first else nn.LayerNorm(dim, bias=bias)
        self.norm2 = nn.LayerNorm(dim, bias=bias)
        self.norm3 = nn.LayerNorm(dim, bias=bias)
        self.dropout = nn.Dropout(rate)

    def forward(
        self, tokens: Tensor, memory: Tensor, need_attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """``[B, N, C]``, ``[B, K, C]`` -> ``[B, N, C]``, attention ``[B, N, K]`` over heads."""

        def to_memory(x: Tensor) -> tuple[Tensor, Tensor | None]:
            return self.multihead_attn(x, memory, memory, need_weights=need_attention)

        x = tokens
        if self.norm_first:
            x = x + self.dropout(self._attend_to_itself(self.norm1(x)))
            seen, attention = to_memory(self.norm2(x))
            x = x + self.dropout(seen)
            return x + self.dropout(self._feed_forward(self.norm3(x))), attention
        x = self.norm1(x + self.dropout(self._attend_to_itself(x)))
        seen, attention = to_memory(x)
        x = self.norm2(x + self.dropout(seen))
        return self.norm3(x + self.dropout(self._feed_forward(x))), attention

    def _attend_to_itself(self, x: Tensor) -> Tensor:
        output: Tensor = self.self_attn(x, x, x, need_weights=False)[0]
        return output

    def _feed_forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.linear2(self.dropout(self.activation(self.linear1(x))))
        return output


class Backbone(nn.Module):
    """The decoder's layers."""

    def __init__(self, config: PrunerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(config, is_first=depth == 0) for depth in range(config.backbone_nlayer)
        )

    def forward(self, tokens: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, N, C]``, ``[B, K, C]`` -> ``[B, N, C]``, the last layer's attention."""
        *layers, last = self.layers
        for layer in layers:
            tokens, _ = layer(tokens, memory)
        tokens, attention = last(tokens, memory, need_attention=True)
        return tokens, attention


class RandomDecoder(nn.Module):
    """The random auto-regressive Transformer decoder of arXiv 2511.20439.

    Tokens are projected, the hidden ones replaced by the mask token, positions added; the
    Transformer then reconstructs all tokens, with the slots as memory.

    The source permutes each image's tokens, with their positions, shows the first of them, and
    undoes the permutation at the end. No layer knows an order of tokens, so this only chooses
    which tokens are shown; here they are chosen and nothing is moved (see `draw_visible`).

    Args:
        config: the keys ``pos_*``, ``proj1_*``, ``proj2_*``, ``transformer_*`` and ``backbone_*``.

    Raises:
        ValueError: the decoder's widths do not fit one another or the pruner's.
    """

    def __init__(self, config: PrunerConfig) -> None:
        super().__init__()
        _check_config(config)
        dim = config.transformer_d_model
        self.num_tokens = math.prod(config.pos_resolut)
        self.dim, self.slot_dim = dim, config.proj2_in_dim
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.mask_token, std=INITIAL_DEVIATION)
        self.posit_embed = Positions(config.pos_resolut, dim)
        self.project1 = Projection(config.proj1_in_dim, dim, config.proj1_bias)
        self.project2 = Projection(config.proj2_in_dim, dim, config.proj2_bias)
        self.norm0 = nn.LayerNorm(dim, bias=config.transformer_bias)
        self.backbone = Backbone(config)

    def forward(
        self, tokens: Tensor, slots: Tensor, visible: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Reconstructs the tokens.

        Args:
            tokens: ``[B, N, C_in]``, the dtype of the parameters (any under autocast).
            slots: ``[B, K, D]``.
            visible: bool ``[B, N]``, False hides a token; all are visible if None.

        Returns:
            the reconstruction ``[B, N, C_in]`` and the last layer's attention to the slots,
            mean over heads, ``[B, K, N]``: its sum over slots is 1 (but for dropout).

        Raises:
            ValueError, TypeError: an argument does not fit; the message names it.
        """
        self._check(tokens, slots, visible)
        tokens = for_layers("tokens", tokens, self.mask_token)
        slots = for_layers("slots", slots, self.mask_token)
        query = self.project1(tokens)
        if visible is not None:
            query = torch.where(visible.unsqueeze(-1), query, self.mask_token)
        query = self.norm0(query + self.posit_embed())
        reconstruction, attention = self.backbone(query, self.project2(slots))
        return reconstruction, attention.transpose(1, 2)

    def _check(self, tokens: Tensor, slots: Tensor, visible: Tensor | None) -> None:
        checks.require_rank("tokens", tokens, "B, N, C")
        checks.require_size("tokens", tokens, 1, self.num_tokens, "pos_resolut")
        checks.require_size("tokens", tokens, 2, self.dim, "proj1_in_dim")
        checks.require_rank("slots", slots, "B, K, D")
        checks.require_size("slots", slots, 0, tokens.shape[0], "tokens")
        checks.require_nonempty("slots", slots, 1, "slot")
        checks.require_size("slots", slots, 2, self.slot_dim, "proj2_in_dim")
        if visible is None:
            return
        if visible.dtype != torch.bool:
            raise TypeError(f"visible: expected dtype torch.bool, got {visible.dtype}")
        checks.require_same_device("visible", visible, "tokens", tokens)
        checks.require_shape("visible", visible, tokens.shape[:2])


def draw_visible(batch: int, num_tokens: int, generator: torch.Generator | None = None) -> Tensor:
    """Which tokens each image shows to the decoder in training: bool ``[batch, num_tokens]``, CPU.

    The first ``keep`` of a random permutation, with ``keep`` uniform in 0 to N - 2 with
    probability one half and else 24, or N - 1 where there are no 25 tokens: one token at least
    is hidden. Drawn per image.

    Args:
        batch: B, the images.
        num_tokens: N, at least 2.
        generator: on the CPU, so that every device sees the same; torch's own if None.

    Raises:
        ValueError: ``num_tokens`` is less than 2.
    """
    if num_tokens < 2:
        raise ValueError(f"num_tokens: expected at least 2 to hide one of, got {num_tokens}")
    # float64, whose draws do not tie.
    options: dict[str, Any] = {"generator": generator, "device": "cpu"}
    scores = torch.rand(batch, num_tokens, dtype=torch.float64, **options)
    rank = scores.argsort(dim=1).argsort(dim=1)
    uniform = torch.randint(num_tokens - 1, (batch, 1), **options)
    is_uniform = torch.rand(batch, 1, dtype=torch.float32, **options) < 0.5
    keep = torch.where(is_uniform, uniform, min(FEW_VISIBLE, num_tokens - 1))
    return rank < keep


def _check_config(config: PrunerConfig) -> None:
    # The last layer's rows are the reconstruction, so its width is the tokens'.
    if len({getattr(config, name) for name in TOKEN_WIDTHS}) != 1:
        given = ", ".join(f"{name}={getattr(config, name)}" for name in TOKEN_WIDTHS)
        raise ValueError(f"config: expected one token width in the decoder, got {given}")
    if config.proj2_in_dim != config.slot_dim:
        raise ValueError(
            f"proj2_in_dim: expected the slot width {config.slot_dim}, got {config.proj2_in_dim}"
        )
    if config.transformer_d_model % config.transformer_nhead:
        raise ValueError(
            f"transformer_nhead: expected a divisor of transformer_d_model "
            f"{config.transformer_d_model}, got {config.transformer_nhead}"
        )
    activation = config.transformer_activation
    checks.require_one_of("transformer_activation", activation, tuple(ACTIVATIONS))
    if not config.transformer_batch_first:
        raise ValueError("transformer_batch_first: expected true, as tokens are [B, N, C]")
