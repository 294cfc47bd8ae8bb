from __future__ import annotations

from contextlib import AbstractContextManager
from unittest import mock

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import use_backend
from ocvtp_kernels.training import AreaWeightedMSE, OCAutoencoder
from tests.cases import assert_within_budget
from tests.training.cases import generator, random_case


def plainly(model: OCAutoencoder) -> AbstractContextManager[object]:
    """Within the block the slot iterations are plain PyTorch."""

    def aggregate(tokens: Tensor, slots_init: Tensor) -> tuple[Tensor, Tensor]:
        slots, logits = model.aggregat(tokens, slots_init)
        return slots, logits.softmax(dim=1)

    return mock.patch.object(model.aggregat, "aggregate", aggregate)


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_backends_agree(backend: str) -> None:
    model, tokens, noise = random_case()
    with use_backend(backend):
        out = model(tokens, noise=noise)
    torch.testing.assert_close(out, model(tokens, noise=noise), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("is_training", [False, True])
def test_half_precision(dtype: torch.dtype, is_training: bool) -> None:
    model, tokens, noise = random_case(batch=4)
    model.train(is_training)
    keywords = {"noise": noise, "visible": model.draw(4, 3, generator()).visible}
    exact = model(tokens, **keywords)
    out = model.to(dtype)(tokens.to(dtype), **keywords)
    with plainly(model):
        plain = model(tokens.to(dtype), **keywords)
    for actual, expected, oracle in zip(out, plain, exact, strict=True):
        assert_within_budget(actual, expected, oracle)


@pytest.mark.parametrize("tokens_dtype", [torch.float32, torch.float16])
def test_autocast_trains_every_parameter(tokens_dtype: torch.dtype) -> None:
    model, tokens, _ = random_case(batch=16)
    model.train()

    def gradients(tokens: Tensor, seed: int, is_autocast: bool = True) -> dict[str, Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            out = model(tokens, generator=generator(seed))
            loss = AreaWeightedMSE()(out.reconstruction, tokens, out.attention)
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    tokens = tokens.to(tokens_dtype)
    errors: dict[str, list[float]] = {name: [0.0, 0.0] for name, _ in model.named_parameters()}
    # Rounding is luck, step by step; over some steps it is not.
    for seed in range(8):
        model.double()
        exact = gradients(tokens.double(), seed, is_autocast=False)
        model.float()
        fused = gradients(tokens, seed)
        with plainly(model):
            plain = gradients(tokens, seed)
        for name, oracle in exact.items():
            for way, gradient in enumerate((fused, plain)):
                errors[name][way] += (gradient[name] - oracle).square().sum().item()
    # Alike for all slots, it cancels in the softmax over them: nothing but rounding.
    assert exact["aggregat.norm_slots_0.bias"].abs().max() < 1e-12
    del errors["aggregat.norm_slots_0.bias"]
    for name, (of_fused, of_plain) in errors.items():
        assert of_fused**0.5 <= 2 * of_plain**0.5, name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("autocast", [torch.float16, torch.bfloat16])
def test_autocast_takes_all_dtypes_or_names_those_of_the_parameters(
    dtype: torch.dtype, autocast: torch.dtype
) -> None:
    model, tokens, noise = random_case()
    model.to(dtype)
    slots = model.initializ.mean + noise.to(dtype)
    for given in DTYPES:
        with torch.autocast("cpu", autocast):
            if {dtype, autocast} == {torch.float16, torch.bfloat16}:
                with pytest.raises(TypeError, match=rf"^reference_tokens: .*{autocast} on a CPU"):
                    model(tokens.to(given), slots_init=slots)
                continue
            out = model(tokens.to(given), slots_init=slots.to(given))
            alone = model.decode(tokens.to(given), out.slots.to(given))
        assert out.reconstruction.isfinite().all()
        assert alone[0].shape == out.reconstruction.shape
