"""Pruners whose every parameter is random."""

from __future__ import annotations

import torch

from ocvtp_kernels import OCPruner, PrunerConfig


def small_config(**changes: object) -> PrunerConfig:
    """A pruner of odd widths: 12 -> 20 -> 10 channels, 7 slots."""
    values: dict[str, object] = {
        "enc_in_dim": 12,
        "enc_dims": (20, 10),
        "init_num": 7,
        "init_dim": 10,
        "agg_embed_dim": 10,
        "agg_ffn_dim": 22,
        "agg_dropout": 0.0,
    }
    return PrunerConfig(**{**values, **changes})  # type: ignore[arg-type]


def random_pruner(
    config: PrunerConfig | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
) -> OCPruner:
    """A pruner whose every parameter is random: norms and biases too, so nothing folds to zero."""
    pruner = OCPruner(config or small_config())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(pruner.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
            elif ("norm" in name and name.endswith("weight")) or name.endswith("mlp.0.weight"):
                parameter.copy_(1 + 0.3 * noise)
            else:
                parameter.copy_(0.3 * noise)
    return pruner.eval().to(dtype)
