from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ocvtp_kernels.training import AreaWeightedMSE, OCAutoencoder
from tests.cases import peak_bytes, random_tokens
from tests.training import by_hand
from tests.training.cases import generator, random_autoencoder, random_case, tiny_config


@pytest.mark.parametrize("trunc_bp", [None, "bi-level"])
@pytest.mark.parametrize("num_iter", [1, 2, 3])
@pytest.mark.parametrize("num_slots", [1, 3])
@pytest.mark.parametrize("is_training", [False, True])
def test_values_and_gradients_are_those_of_the_formula(
    trunc_bp: str | None, num_iter: int, num_slots: int, is_training: bool
) -> None:
    config = tiny_config(agg_trunc_bp=trunc_bp, agg_num_iter=num_iter)
    model, tokens, noise = random_case(config, num_slots=num_slots)
    model.train(is_training)
    order, keep = ([3, 0, 4, 1, 2], 2) if is_training else (None, 0)
    visible = None
    if order is not None:
        visible = torch.zeros(2, 5, dtype=torch.bool)
        visible[:, order[:keep]] = True
    out = model(tokens, noise=noise, visible=visible)
    AreaWeightedMSE()(out.reconstruction, tokens, out.attention).backward()

    state = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    slots_init = state["initializ.mean"][0] + noise * state["initializ.logstd"][0].exp()
    images, losses = [], []
    for image, init in zip(tokens, slots_init, strict=True):
        start = None
        if trunc_bp is not None:
            # What the rule says: earlier iterations are constants, but for the start's own change.
            with torch.no_grad():
                start = by_hand.reconstruct(state, config, image, init)[4]
            start = start + init - init.detach()
        one = by_hand.reconstruct(state, config, image, init, order, keep, before_last=start)
        images.append(one[:4])
        losses.append(by_hand.image_loss(one[3], image, one[1]))
    for actual, expected in zip(out, zip(*images, strict=True), strict=True):
        torch.testing.assert_close(actual, torch.stack(expected), rtol=0, atol=1e-11)
    torch.stack(losses).mean().backward()
    for name, parameter in model.named_parameters():
        actual, expected = parameter.grad, state[name].grad
        if name == "decode.mask_token" and not is_training:
            assert actual is None and expected is None
        else:
            torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-11, msg=name)


def test_the_bi_level_gradient_by_finite_differences() -> None:
    model, tokens, noise = random_case()
    config = model.config
    out = model(tokens, noise=noise)
    attention = out.attention.detach()
    loss = AreaWeightedMSE()
    loss(out.reconstruction, tokens, attention).backward()
    state = {name: p.detach().clone() for name, p in model.named_parameters()}

    def initial(values: dict[str, Tensor]) -> Tensor:
        return values["initializ.mean"] + noise * values["initializ.logstd"].exp()

    at_start = initial(state)
    before_last = [
        by_hand.reconstruct(state, config, image, init)[4]
        for image, init in zip(tokens, at_start, strict=True)
    ]

    def value(name: str, step: Tensor) -> float:
        """The loss where a parameter moves and the earlier iterations stay as they were."""
        values = {**state, name: state[name] + step}
        moved = initial(values) - at_start
        images = [
            by_hand.reconstruct(values, config, tokens[i], at_start[i], None, 0, b + moved[i])[3]
            for i, b in enumerate(before_last)
        ]
        return float(loss(torch.stack(images), tokens, attention))

    for seed, (name, parameter) in enumerate(model.named_parameters()):
        if name == "decode.mask_token":
            continue
        direction = random_tokens(*parameter.shape, seed=seed, dtype=torch.float64)
        numeric = (value(name, 1e-5 * direction) - value(name, -1e-5 * direction)) / 2e-5
        assert parameter.grad is not None
        exact = float((parameter.grad * direction).sum())
        assert numeric == pytest.approx(exact, rel=1e-6, abs=1e-8), name


def test_the_whole_gradient_without_truncation() -> None:
    model, tokens, noise = random_case(tiny_config(agg_trunc_bp=None, agg_num_iter=2), batch=1)
    names, values = zip(*model.named_parameters(), strict=True)
    visible = torch.tensor([[True, False, False, True, True]])

    def outputs(tokens: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        keywords = {"noise": noise, "visible": visible}
        state = dict(zip(names, values, strict=True))
        return tuple(torch.func.functional_call(model, state, (tokens,), keywords))

    assert torch.autograd.gradcheck(outputs, (tokens.requires_grad_(), *values), fast_mode=True)


@pytest.mark.parametrize("trunc_bp", [None, "bi-level"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_fused_iterations_are_the_plain_ones(trunc_bp: str | None, dropout: float) -> None:
    model = random_autoencoder(tiny_config(agg_trunc_bp=trunc_bp, agg_dropout=dropout))
    slot_attention = model.aggregat.train()
    tokens, slots = (random_tokens(2, n, 4, seed=n, dtype=torch.float64) for n in (9, 6))
    mask = torch.tensor([[True] * 6, [True, False, True, True, False, True]])
    grads = []
    for way in ("fused", "plain"):
        torch.manual_seed(0)
        inputs = (tokens.clone().requires_grad_(), slots.clone().requires_grad_())
        if way == "fused":
            new, attention = slot_attention.aggregate(*inputs, mask)
        else:
            new, logits = slot_attention(*inputs, mask)
            attention = logits.softmax(dim=1)
        loss = new.square().sum() + attention.square().sum()
        leaves = (*inputs, *slot_attention.parameters())
        grads.append((new, attention, *torch.autograd.grad(loss, leaves)))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-11)


def test_an_image_alone_is_as_in_a_batch() -> None:
    model, tokens, noise = random_case(batch=5)
    together = model(tokens, noise=noise)
    for i in range(5):
        one = slice(i, i + 1)
        for part, whole in zip(model(tokens[one], noise=noise[one]), together, strict=True):
            torch.testing.assert_close(part, whole[one], rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_tokens", [2, 3])
@pytest.mark.parametrize("num_slots", [1, 2, 9])
def test_few_tokens_and_few_slots(num_tokens: int, num_slots: int) -> None:
    model, tokens, _ = random_case(tiny_config(pos_resolut=(num_tokens,)))
    out = model.train()(tokens, num_slots, generator=generator())
    loss = AreaWeightedMSE()(out.reconstruction, tokens, out.attention)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_few_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    model, loss = OCAutoencoder(tiny_config(pos_resolut=(30,))), AreaWeightedMSE()
    tokens = random_tokens(4, 30, 8, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    draws, losses = generator(), []
    for step in range(60):
        out = model(tokens, 1 + step % 3, generator=draws)
        value = loss(out.reconstruction, tokens, out.attention)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_the_fused_iterations_hold_less_memory() -> None:
    config = tiny_config(enc_dims=(6, 64), init_dim=64, agg_embed_dim=64, proj2_in_dim=64)
    slot_attention = OCAutoencoder(config).aggregat
    tokens = random_tokens(2, 300, 64).requires_grad_()
    slots = random_tokens(2, 40, 64, seed=1).requires_grad_()

    def step(is_fused: bool) -> None:
        if is_fused:
            new, attention = slot_attention.aggregate(tokens, slots)
        else:
            new, logits = slot_attention(tokens, slots)
            attention = logits.softmax(dim=1)
        torch.autograd.grad(new.sum(), (tokens, slots, *slot_attention.parameters()))
        del attention

    for is_fused in (True, False):
        step(is_fused)
    assert peak_bytes(lambda: step(True)) < peak_bytes(lambda: step(False))
