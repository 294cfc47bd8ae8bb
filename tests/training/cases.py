"""Small autoencoders, random tokens for them, and generators."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels import PrunerConfig
from ocvtp_kernels.training import OCAutoencoder
from tests.cases import random_tokens


def tiny_config(**changes: object) -> PrunerConfig:
    """A pruner and a decoder of a few channels: 5 tokens of 8, 3 slots of 4, 2 layers, 2 heads."""
    values: dict[str, object] = {
        "enc_in_dim": 8,
        "enc_dims": (6, 4),
        "init_num": 3,
        "init_dim": 4,
        "agg_embed_dim": 4,
        "agg_ffn_dim": 7,
        "agg_dropout": 0.0,
        "pos_resolut": (5,),
        "proj2_in_dim": 4,
        "transformer_nhead": 2,
        "transformer_feedforward": 10,
        "backbone_nlayer": 2,
    }
    names = ("pos_embed_dim", "proj1_in_dim", "proj1_out_dim", "proj1_norm_dim", "proj2_out_dim")
    names += ("proj2_norm_dim", "transformer_d_model", "dec_dim")
    return PrunerConfig(**{**values, **dict.fromkeys(names, 8), **changes})  # type: ignore[arg-type]


def random_autoencoder(config: PrunerConfig | None = None, seed: int = 0) -> OCAutoencoder:
    """In float64 and evaluation mode, every parameter random, so that nothing cancels."""
    model = OCAutoencoder(config or tiny_config(), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_gain = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_gain else 0.6 * noise)
    return model.eval()


def random_case(
    config: PrunerConfig | None = None, batch: int = 2, num_slots: int = 3
) -> tuple[OCAutoencoder, Tensor, Tensor]:
    """An autoencoder in evaluation mode, tokens and noise, in float64."""
    model = random_autoencoder(config)
    tokens = random_tokens(batch, model.decode.num_tokens, 8, dtype=torch.float64)
    return model, tokens, random_tokens(batch, num_slots, 4, seed=1, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
