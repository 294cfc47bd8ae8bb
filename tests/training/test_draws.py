from __future__ import annotations

import pytest
import torch

from ocvtp_kernels import OCPruner
from ocvtp_kernels.training import OCAutoencoder
from tests.cases import random_tokens
from tests.training.cases import generator, random_case, tiny_config


@pytest.mark.parametrize("num_slots", [None, 1, 6])
def test_a_step_is_what_its_generator_draws(num_slots: int | None) -> None:
    model, tokens, _ = random_case(batch=4)
    model.train()
    before = torch.get_rng_state()
    first, second = (model(tokens, num_slots, generator=generator(7)) for _ in range(2))
    drawn = model(tokens, num_slots, **model.draw(4, num_slots, generator(7))._asdict())
    assert torch.equal(before, torch.get_rng_state())
    for other in (second, drawn):
        assert all(map(torch.equal, first, other))
    other = model(tokens, num_slots, generator=generator(8))
    assert not torch.equal(first.slots, other.slots)
    assert first.attention.shape == (4, num_slots or 3, 5)


def test_without_a_generator_torch_own_draws() -> None:
    model, tokens, _ = random_case()
    model.train()
    outs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outs.append(model(tokens))
    assert all(map(torch.equal, outs[0], outs[1]))
    assert not torch.equal(outs[0].reconstruction, outs[2].reconstruction)


def test_the_masks_do_not_depend_on_the_slots() -> None:
    model, tokens, noise = random_case()
    masks = [model.draw(2, num_slots, generator(2)).visible for num_slots in (1, 9)]
    assert torch.equal(*masks)
    model.train()
    slots = model.initializ.mean + noise * model.initializ.logstd.exp()
    given = model(tokens, slots_init=slots, generator=generator(2))
    expected = model(tokens, noise=noise, visible=masks[0])
    assert all(map(torch.equal, given, expected))


def test_processes_may_share_a_batch() -> None:
    model, tokens, _ = random_case(batch=6)
    model.train()
    draws = model.draw(6, 3, generator())
    together = model(tokens, 3, **draws._asdict())
    for rank in range(2):
        own = slice(rank, None, 2)
        share = model(tokens[own], 3, noise=draws.noise[own], visible=draws.visible[own])
        for part, whole in zip(share, together, strict=True):
            torch.testing.assert_close(part, whole[own], rtol=0, atol=1e-12)


def test_evaluation_hides_nothing_and_keeps_its_noise() -> None:
    config, tokens = tiny_config(), random_tokens(3, 5, 8)
    seeded = OCAutoencoder(config, noise_seed=4).eval()
    out = seeded(tokens)
    again = seeded(tokens, visible=torch.ones(3, 5, dtype=torch.bool))
    assert all(map(torch.equal, out, again))
    alone = seeded(tokens[1:2])
    for part, whole in zip(alone, out, strict=True):
        torch.testing.assert_close(part, whole[1:2], rtol=0, atol=1e-6)
    sampled = OCPruner(config, noise_seed=4)
    sampled.load_state_dict(seeded.pruner().state_dict())
    same = seeded(tokens, slots_init=sampled.sample_slots(3, 3))
    assert all(map(torch.equal, out, same))
    # Training starts from fresh noise all the same, image by image.
    slots = seeded.train()(tokens[:1].expand(3, -1, -1), generator=generator()).slots
    assert (slots[0] - slots[1]).abs().max() > 0.01
    unseeded = OCAutoencoder(config).eval()
    assert not torch.equal(unseeded(tokens).slots, unseeded(tokens).slots)
    first, second = (unseeded(tokens, generator=generator(1)) for _ in range(2))
    assert all(map(torch.equal, first, second))
