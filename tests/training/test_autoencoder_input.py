"""What the autoencoder says of arguments that do not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ocvtp_kernels.training import OCAutoencoder
from tests.cases import random_tokens
from tests.training.cases import tiny_config

TOKENS, SLOTS = random_tokens(2, 5, 8), random_tokens(2, 3, 4)


@pytest.mark.parametrize(
    ("message", "tokens", "keywords"),
    [
        ("reference_tokens: expected shape", TOKENS[0], {}),
        ("reference_tokens: .* pos_resolut", TOKENS[:, 1:], {}),
        ("reference_tokens: .* enc_in_dim", TOKENS[..., 1:], {}),
        ("num_slots: expected at least 1, got 0", TOKENS, {"num_slots": 0}),
        ("slots_init: expected shape", TOKENS, {"slots_init": SLOTS[0]}),
        ("slots_init: .* to match reference_tokens", TOKENS, {"slots_init": SLOTS[:1]}),
        ("slots_init: .* init_dim", TOKENS, {"slots_init": SLOTS[..., 1:]}),
        ("slots_init: .* slot", TOKENS, {"slots_init": SLOTS[:, :0]}),
        ("slots_init: .* num_slots", TOKENS, {"slots_init": SLOTS, "num_slots": 4}),
        ("noise: expected shape", TOKENS, {"noise": SLOTS[0]}),
        ("noise: .* to match reference_tokens", TOKENS, {"noise": SLOTS[:1]}),
        ("noise: .* init_dim", TOKENS, {"noise": SLOTS[..., 1:]}),
        ("noise: .* slot", TOKENS, {"noise": SLOTS[:, :0]}),
        ("noise: .* num_slots", TOKENS, {"noise": SLOTS, "num_slots": 4}),
        ("noise: expected None", TOKENS, {"noise": SLOTS, "slots_init": SLOTS}),
        ("visible: expected shape", TOKENS, {"visible": torch.ones(2, 4, dtype=torch.bool)}),
    ],
)
def test_bad_values(message: str, tokens: Tensor, keywords: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        OCAutoencoder(tiny_config())(tokens, **keywords)


@pytest.mark.parametrize(
    ("name", "tokens", "keywords"),
    [
        ("reference_tokens", TOKENS.long(), {}),
        ("reference_tokens", TOKENS.half(), {}),
        ("num_slots", TOKENS, {"num_slots": 2.5}),
        ("slots_init", TOKENS, {"slots_init": SLOTS.double()}),
        ("slots_init", TOKENS, {"slots_init": SLOTS.long()}),
        ("noise", TOKENS, {"noise": SLOTS.long()}),
        ("visible", TOKENS, {"visible": torch.ones(2, 5)}),
    ],
)
def test_bad_dtypes(name: str, tokens: Tensor, keywords: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=f"^{name}: expected"):
        OCAutoencoder(tiny_config())(tokens, **keywords)


def test_tokens_elsewhere() -> None:
    with pytest.raises(ValueError, match=r"^reference_tokens: expected device cpu"):
        OCAutoencoder(tiny_config())(TOKENS.to("meta"))


def test_one_token_cannot_be_trained_on() -> None:
    model = OCAutoencoder(tiny_config(pos_resolut=(1,)))
    with pytest.raises(ValueError, match=r"^num_tokens: expected at least 2"):
        model(TOKENS[:, :1])
    assert model.eval()(TOKENS[:, :1]).reconstruction.shape == (2, 1, 8)


def test_a_config_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"config: .*dec_dim=7"):
        OCAutoencoder(tiny_config(dec_dim=7))
