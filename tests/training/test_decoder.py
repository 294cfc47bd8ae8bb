from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from ocvtp_kernels import PrunerConfig
from ocvtp_kernels.training import RandomDecoder
from ocvtp_kernels.training.decoder import draw_visible
from tests.cases import random_tokens
from tests.training import by_hand
from tests.training.cases import random_autoencoder, tiny_config

ORDERS = [[0, 1, 2, 3, 4], [3, 0, 4, 1, 2], [4, 3, 2, 1, 0]]


def case(
    config: PrunerConfig | None = None, batch: int = 2, num_slots: int = 3
) -> tuple[RandomDecoder, Tensor, Tensor]:
    decoder = random_autoencoder(config).decode
    tokens = random_tokens(batch, decoder.num_tokens, 8, dtype=torch.float64)
    return decoder, tokens, random_tokens(batch, num_slots, 4, seed=1, dtype=torch.float64)


def by_hand_all(
    decoder: RandomDecoder, tokens: Tensor, slots: Tensor, order: list[int] | None, keep: int
) -> tuple[Tensor, Tensor]:
    state = {f"decode.{name}": value for name, value in decoder.state_dict().items()}
    images = [
        by_hand.decode(state, tiny_config(), image, list(own), order, keep)
        for image, own in zip(tokens, slots, strict=True)
    ]
    return torch.stack([i[0] for i in images]), torch.stack([i[1] for i in images])


@pytest.mark.parametrize("num_slots", [1, 3, 8])
def test_evaluation_is_the_formula(num_slots: int) -> None:
    decoder, tokens, slots = case(num_slots=num_slots)
    expected = by_hand_all(decoder, tokens, slots, None, 0)
    torch.testing.assert_close(decoder(tokens, slots), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("keep", [0, 1, 3, 4, 5])
def test_showing_tokens_is_permuting_and_keeping_the_first(order: list[int], keep: int) -> None:
    decoder, tokens, slots = case()
    visible = torch.zeros(2, 5, dtype=torch.bool)
    visible[:, order[:keep]] = True
    expected = by_hand_all(decoder, tokens, slots, order, keep)
    torch.testing.assert_close(decoder(tokens, slots, visible), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_layers_are_those_of_torch(norm_first: bool, activation: str, bias: bool) -> None:
    config = tiny_config(
        transformer_norm_first=norm_first,
        transformer_activation=activation,
        transformer_bias=bias,
        backbone_nlayer=3,
    )
    decoder, tokens, slots = case(config)
    layers = [
        nn.TransformerDecoderLayer(
            8, 2, 10, 0.0, activation, batch_first=True, norm_first=norm_first, bias=bias
        )
        for _ in range(3)
    ]
    layers[0].norm1 = nn.Identity()  # type: ignore[assignment]
    theirs = nn.ModuleList(layers).double().eval()
    theirs.load_state_dict(decoder.backbone.layers.state_dict(), strict=True)
    x = decoder.norm0(decoder.project1(tokens) + decoder.posit_embed._pe)
    for layer in theirs:
        x = layer(x, decoder.project2(slots))
    torch.testing.assert_close(decoder(tokens, slots)[0], x, rtol=0, atol=1e-12)


def test_attention_is_shared_among_slots() -> None:
    decoder, tokens, slots = case(num_slots=6)
    attention = decoder(tokens, slots)[1]
    assert attention.shape == (2, 6, 5)
    torch.testing.assert_close(attention.sum(1), torch.ones(2, 5, dtype=torch.float64))


def test_what_is_hidden_is_not_seen() -> None:
    decoder, tokens, slots = case()
    visible = torch.tensor([[True, False, True, False, False]] * 2)
    out = decoder(tokens, slots, visible)
    other = torch.where(visible.unsqueeze(-1), tokens, 9.0)
    assert all(map(torch.equal, out, decoder(other, slots, visible)))
    other = torch.where(visible.unsqueeze(-1), tokens + torch.arange(8), tokens)
    assert not torch.equal(out[0], decoder(other, slots, visible)[0])


def test_an_image_alone_is_as_in_a_batch() -> None:
    decoder, tokens, slots = case(batch=4)
    visible = draw_visible(4, 5, torch.Generator().manual_seed(0))
    together = decoder(tokens, slots, visible)
    for i in range(4):
        one = slice(i, i + 1)
        alone = decoder(tokens[one], slots[one], visible[one])
        torch.testing.assert_close(alone, tuple(t[one] for t in together), rtol=0, atol=1e-13)


def test_positions_may_be_a_grid() -> None:
    line, tokens, slots = case(tiny_config(pos_resolut=(6,)))
    grid, _, _ = case(tiny_config(pos_resolut=(2, 3)))
    state = line.state_dict()
    assert grid.posit_embed._pe.shape == (1, 2, 3, 8)
    grid.load_state_dict({**state, "posit_embed._pe": state["posit_embed._pe"].view(1, 2, 3, 8)})
    assert all(map(torch.equal, line(tokens, slots), grid(tokens, slots)))


def test_gradients() -> None:
    decoder, tokens, slots = case(batch=1)
    visible = torch.tensor([[True, False, False, True, False]])
    tensors = (tokens.requires_grad_(), slots.requires_grad_())
    assert torch.autograd.gradcheck(lambda t, s: decoder(t, s, visible), tensors)


def test_layers_start_apart() -> None:
    decoder = RandomDecoder(tiny_config())
    for a, b in itertools.pairwise(decoder.backbone.layers):
        assert not torch.equal(a.linear1.weight, b.linear1.weight)


def test_how_many_tokens_are_shown() -> None:
    images, num_tokens = 20000, 40
    visible = draw_visible(images, num_tokens, torch.Generator().manual_seed(0))
    assert visible.shape == (images, num_tokens) and visible.dtype == torch.bool
    counts = visible.sum(1).bincount(minlength=num_tokens + 1) / images
    # One of 0 ... 38 with probability 1/2, else 24; deviations are of about 0.0008 and 0.0035.
    expected = torch.full((num_tokens + 1,), 0.5 / 39)
    expected[39:] = 0
    assert counts[39:].sum() == 0
    assert (counts - expected)[torch.arange(41) != 24].abs().max() < 0.004
    assert abs(float(counts[24]) - 0.5 - 0.5 / 39) < 0.015
    # All places alike: shown with probability (19 + 24) / 2 / 40.
    assert (visible.float().mean(0) - 43 / 80).abs().max() < 0.02


def test_a_single_image_shows_any_of_its_tokens() -> None:
    draws = torch.Generator().manual_seed(3)
    shown = torch.cat([draw_visible(1, 8, draws) for _ in range(600)]).float().mean(0)
    # With probability one half 3 of 8 in the mean, else 7.
    assert (shown - 5 / 8).abs().max() < 0.08


def test_neighbours_are_shown_independently() -> None:
    visible = draw_visible(4000, 30, torch.Generator().manual_seed(1))
    few = visible[visible.sum(1) == 24].double()
    # Of 24 out of 30, both of two places: 24 * 23 / (30 * 29).
    together = few.T @ few / len(few)
    off = ~torch.eye(30, dtype=torch.bool)
    assert (together[off] - 24 * 23 / (30 * 29)).abs().max() < 0.06


@pytest.mark.parametrize("num_tokens", [2, 3, 24, 25])
def test_one_token_at_least_is_hidden(num_tokens: int) -> None:
    counts = draw_visible(3000, num_tokens, torch.Generator().manual_seed(2)).sum(1)
    assert counts.max() == num_tokens - 1
    assert counts.min() == 0
    # N - 1 stands in for 24; the uniform draw never reaches it.
    assert 0.46 < (counts == num_tokens - 1).float().mean() < 0.54


def test_one_generator_draws_alike_and_alone() -> None:
    before = torch.get_rng_state()
    first, second = (draw_visible(6, 30, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, draw_visible(6, 30, torch.Generator().manual_seed(6)))
    assert draw_visible(0, 30).shape == (0, 30)


def test_nothing_can_be_hidden_of_one_token() -> None:
    with pytest.raises(ValueError, match=r"^num_tokens: expected at least 2"):
        draw_visible(3, 1)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config: .*proj1_out_dim=16", {"proj1_out_dim": 16}),
        ("config: .*dec_dim=9", {"dec_dim": 9}),
        ("config: .*enc_in_dim=12", {"enc_in_dim": 12}),
        ("proj2_in_dim: expected the slot width 4, got 5", {"proj2_in_dim": 5}),
        ("transformer_nhead: expected a divisor", {"transformer_nhead": 3}),
        ("transformer_activation: expected one of", {"transformer_activation": "tanh"}),
        ("transformer_batch_first: expected true", {"transformer_batch_first": False}),
    ],
)
def test_bad_configs_are_named(name: str, changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"^{name}"):
        RandomDecoder(tiny_config(**changes))


def test_bad_tensors_are_named() -> None:
    decoder, tokens, slots = case()
    visible = torch.ones(2, 5, dtype=torch.bool)
    for name, arguments in {
        "tokens: expected shape": (tokens[0], slots),
        "tokens: .* pos_resolut": (tokens[:, 1:], slots),
        "tokens: .* proj1_in_dim": (tokens[..., 1:], slots),
        "slots: .* to match tokens": (tokens, slots[:1]),
        "slots: .* slot": (tokens, slots[:, :0]),
        "slots: .* proj2_in_dim": (tokens, slots[..., 1:]),
        "visible: expected shape": (tokens, slots, visible[:, 1:]),
    }.items():
        with pytest.raises(ValueError, match=f"^{name}"):
            decoder(*arguments)
    with pytest.raises(TypeError, match=r"^visible: expected dtype torch.bool"):
        decoder(tokens, slots, visible.int())
