from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ocvtp_kernels.training import AreaWeightedMSE
from tests.cases import random_tokens
from tests.training.by_hand import image_loss

SHAPES = [(1, 1, 1, 1), (2, 3, 7, 5), (3, 9, 4, 2), (1, 1, 6, 3), (2, 40, 1, 1)]


def inputs(
    batch: int, num_slots: int, num_tokens: int, channels: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    logits = 2 * random_tokens(batch, num_slots, num_tokens, seed=2, dtype=torch.float64)
    return (
        random_tokens(batch, num_tokens, channels, dtype=dtype),
        random_tokens(batch, num_tokens, channels, seed=1, dtype=dtype),
        logits.softmax(dim=1).to(dtype),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm_mode", ["mean1", "sum1", "none"])
@pytest.mark.parametrize("reduce_channel", ["mean", "sum"])
@pytest.mark.parametrize(("power_p", "cap_w"), [(0.5, 10.0), (0, 10), (1.0, math.inf), (2.5, 0.7)])
def test_every_option_is_the_formula(
    shape: tuple[int, int, int, int],
    norm_mode: str,
    reduce_channel: str,
    power_p: float,
    cap_w: float,
) -> None:
    reconstruction, target, attention = inputs(*shape)
    expected = torch.stack(
        [
            image_loss(*image, power_p, cap_w, norm_mode, reduce_channel)
            for image in zip(reconstruction, target, attention, strict=True)
        ]
    )
    for reduction, value in {
        "none": expected,
        "mean": expected.mean(),
        "sum": expected.sum(),
    }.items():
        loss = AreaWeightedMSE(power_p, cap_w, norm_mode, reduce_channel, reduction)
        actual = loss(reconstruction, target, attention)
        torch.testing.assert_close(actual, value, rtol=1e-12, atol=0)


def test_defaults_are_the_published_ones() -> None:
    arguments = inputs(2, 3, 7, 5)
    published = AreaWeightedMSE(0.5, 10.0, "mean1", "mean", "mean")
    assert torch.equal(AreaWeightedMSE()(*arguments), published(*arguments))


def test_small_slots_weigh_more_and_ties_go_to_the_lowest() -> None:
    # Token 0 ties between both slots; slot 0 owns it and two more, slot 1 owns one.
    attention = torch.tensor([[[0.5, 1, 1, 0], [0.5, 0, 0, 1]]], dtype=torch.float64)
    alpha = AreaWeightedMSE(power_p=1, norm_mode="none").token_weights(attention)[0]
    torch.testing.assert_close(alpha, torch.tensor([8 / 3, 4 / 3, 4 / 3, 4]).double())


def test_an_empty_slot_is_capped() -> None:
    attention = torch.tensor([[[0.6] * 4, [0.4] * 4]], dtype=torch.float64)
    alpha = AreaWeightedMSE(norm_mode="none").token_weights(attention)
    torch.testing.assert_close(alpha, torch.full((1, 4), 0.6 + 0.4 * 10).double())


def leaving(empty: int) -> torch.Tensor:
    """Attention ``[1, K, 4]`` of one slot that owns all tokens and some that own none."""
    left = torch.tensor([0.4, 0.1, 0.01, 0.2], dtype=torch.float64)
    return torch.stack([1 - left, *[left / empty] * empty]).unsqueeze(0)


@pytest.mark.parametrize("norm_mode", ["mean1", "sum1"])
def test_normalised_weights_leave_all_to_empty_slots(norm_mode: str) -> None:
    left = torch.tensor([[0.4, 0.1, 0.01, 0.2]], dtype=torch.float64)
    alpha = AreaWeightedMSE(norm_mode=norm_mode).token_weights(leaving(1))
    weight = 2 if norm_mode == "mean1" else 1
    torch.testing.assert_close(alpha, weight * left, rtol=0, atol=1e-3)
    # It is not the cap that brings this about, nor prevents it.
    uncapped = AreaWeightedMSE(norm_mode=norm_mode, cap_w=math.inf)
    assert torch.equal(uncapped.token_weights(leaving(1)), alpha)


def test_the_cap_cuts_the_normalised_weights() -> None:
    # With the published options, an empty slot of K weighs K before the cap.
    attention = torch.cat([leaving(1) / 40] + [leaving(1)[:, :1] / 40] * 38, dim=1)
    attention = attention / attention.sum(dim=1, keepdim=True)
    areas = torch.zeros(40)
    areas[attention[0].argmax(dim=0)] += 1
    empty = attention[0, areas == 0].sum(dim=0)
    share = 40 / int((areas == 0).sum())
    alpha = AreaWeightedMSE().token_weights(attention)[0]
    torch.testing.assert_close(alpha, min(share, 10) * empty, rtol=0, atol=1e-3)


def test_power_zero_is_the_mean_squared_error() -> None:
    reconstruction, target, attention = inputs(2, 3, 7, 5)
    plain = torch.nn.functional.mse_loss(reconstruction, target)
    torch.testing.assert_close(AreaWeightedMSE(0)(reconstruction, target, attention), plain)


def test_gradients() -> None:
    reconstruction, target, attention = inputs(2, 3, 4, 2)
    tensors = (reconstruction.requires_grad_(), target.requires_grad_())
    loss = AreaWeightedMSE(reduction="none")
    assert torch.autograd.gradcheck(lambda *t: loss(*t, attention), tensors)
    attention.requires_grad_()
    assert torch.autograd.grad(loss(*tensors, attention).sum(), attention, allow_unused=True) == (
        None,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("is_autocast", [False, True])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype, is_autocast: bool) -> None:
    reconstruction, target, attention = inputs(2, 3, 7, 5, dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        loss = AreaWeightedMSE()(reconstruction, target, attention)
    exact = AreaWeightedMSE()(reconstruction.double(), target.double(), attention.double())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)


def test_dtypes_may_differ() -> None:
    reconstruction, target, attention = inputs(2, 3, 7, 5, torch.float32)
    loss = AreaWeightedMSE()
    mixed = loss(reconstruction, target.half(), attention.bfloat16())
    same = loss(reconstruction, target.half().float(), attention.bfloat16().float())
    assert torch.equal(mixed, same)


def test_an_image_alone_has_the_loss_it_has_in_a_batch() -> None:
    arguments = inputs(4, 3, 7, 5)
    loss = AreaWeightedMSE(reduction="none")
    alone = [loss(*(t[i : i + 1] for t in arguments)) for i in range(4)]
    torch.testing.assert_close(loss(*arguments), torch.cat(alone), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("power_p", -0.5),
        ("power_p", math.nan),
        ("power_p", math.inf),
        ("power_p", True),
        ("cap_w", 0),
        ("cap_w", math.nan),
        ("cap_w", "10"),
        ("norm_mode", "mean"),
        ("norm_mode", None),
        ("reduce_channel", "none"),
        ("reduction", "max"),
    ],
)
def test_bad_options_are_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        AreaWeightedMSE(**{name: value})  # type: ignore[arg-type]


def test_bad_tensors_are_named() -> None:
    reconstruction, target, attention = inputs(2, 3, 7, 5)
    wrong = {
        "reconstruction": (reconstruction[0], target, attention),
        "target": (reconstruction, target[:1], attention),
        "attention": (reconstruction, target, attention[:, :, :1]),
    }
    for name, arguments in wrong.items():
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            AreaWeightedMSE()(*arguments)
    for name, arguments in {
        "attention: .* slot": (reconstruction, target, attention[:, :0]),
        "attention: .* dimension 0": (reconstruction, target, attention[:1]),
        "reconstruction: .* token": (reconstruction[:, :0], target[:, :0], attention[:, :, :0]),
    }.items():
        with pytest.raises(ValueError, match=f"^{name}"):
            AreaWeightedMSE()(*arguments)
    for name, arguments in {
        "target": (reconstruction, target.long(), attention),
        "attention": (reconstruction, target, attention > 0),
    }.items():
        with pytest.raises(TypeError, match=f"^{name}: expected"):
            AreaWeightedMSE()(*arguments)
