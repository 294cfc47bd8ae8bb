"""Random cases shared by the tests: pruners with nothing left at its initial value, and tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels import OCPruner, PrunerConfig

# Where Triton's kernels run: on the GPU, or in Triton's interpreter.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def triton_dtypes() -> list[torch.dtype]:
    """The dtypes that Triton's kernels take; its interpreter has no bfloat16 arithmetic."""
    wide = [torch.float32, torch.float16]
    return [*wide, torch.bfloat16] if DEVICE.type == "cuda" else wide


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


def random_tokens(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, outliers: bool = False
) -> Tensor:
    """Normal tokens; with ``outliers`` a few channels are 80 times the rest, as in real ViTs."""
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if outliers:
        tokens[..., ::5] *= 80
    return tokens.to(dtype)


def assert_kept(ids: Tensor, budget: int, num_tokens: int) -> None:
    """Exactly ``budget`` distinct ascending ids of ``num_tokens`` in every row."""
    assert ids.dtype == torch.int64
    assert ids.shape[-1] == budget
    assert (ids[..., 1:] > ids[..., :-1]).all()
    if ids.numel():
        assert ids.min() >= 0 and ids.max() < num_tokens


def assert_within_budget(actual: Tensor, plain: Tensor, oracle: Tensor, factor: float = 2) -> None:
    """The kernel's error is at most ``factor`` times that of plain PyTorch at its dtype.

    ``oracle`` is float64; the floor is a rounding of the dtype at the oracle's scale.
    """
    scale = oracle.abs().max().item() if oracle.numel() else 0.0
    floor = torch.finfo(plain.dtype).eps * scale
    error = (actual.double() - oracle).abs()
    allowed = factor * (plain.double() - oracle).abs().max() if oracle.numel() else 0.0
    assert actual.dtype == plain.dtype
    assert error.numel() == 0 or error.max() <= allowed + floor
