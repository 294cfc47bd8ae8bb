from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ocvtp_kernels import OCPruner, PrunerConfig
from ocvtp_kernels.training import OCAutoencoder
from tests.training.cases import random_case, tiny_config

# Names and shapes of the authors' whole state dict, at the widths of `tiny_config`.
LAYER = {
    "self_attn.in_proj_weight": (24, 8),
    "self_attn.out_proj.weight": (8, 8),
    "multihead_attn.in_proj_weight": (24, 8),
    "multihead_attn.out_proj.weight": (8, 8),
    "linear1.weight": (10, 8),
    "linear2.weight": (8, 10),
    "norm2.weight": (8,),
    "norm3.weight": (8,),
}
STATE = {
    "encode_project.mlp.0.weight": (8,),
    "encode_project.mlp.0.bias": (8,),
    "encode_project.mlp.1.weight": (6, 8),
    "encode_project.mlp.1.bias": (6,),
    "encode_project.mlp.4.weight": (4, 6),
    "encode_project.mlp.4.bias": (4,),
    "initializ.mean": (1, 1, 4),
    "initializ.logstd": (1, 1, 4),
    "aggregat.norm_in.weight": (4,),
    "aggregat.norm_in.bias": (4,),
    "aggregat.proj_q.weight": (4, 4),
    "aggregat.proj_k.weight": (4, 4),
    "aggregat.proj_v.weight": (4, 4),
    "aggregat.norm_slots_0.weight": (4,),
    "aggregat.norm_slots_0.bias": (4,),
    "aggregat.gru.weight_ih": (12, 4),
    "aggregat.gru.weight_hh": (12, 4),
    "aggregat.gru.bias_ih": (12,),
    "aggregat.gru.bias_hh": (12,),
    "aggregat.norm_slots_1.weight": (4,),
    "aggregat.norm_slots_1.bias": (4,),
    "aggregat.ffn.mlp.0.weight": (7, 4),
    "aggregat.ffn.mlp.0.bias": (7,),
    "aggregat.ffn.mlp.3.weight": (4, 7),
    "aggregat.ffn.mlp.3.bias": (4,),
    "decode.mask_token": (1, 1, 8),
    "decode.posit_embed._pe": (1, 5, 8),
    "decode.project1.project.weight": (8, 8),
    "decode.project1.norm.weight": (8,),
    "decode.project1.norm.bias": (8,),
    "decode.project2.project.weight": (8, 4),
    "decode.project2.norm.weight": (8,),
    "decode.project2.norm.bias": (8,),
    "decode.norm0.weight": (8,),
    **{f"decode.backbone.layers.0.{name}": shape for name, shape in LAYER.items()},
    **{f"decode.backbone.layers.1.{name}": shape for name, shape in LAYER.items()},
    "decode.backbone.layers.1.norm1.weight": (8,),
}


def test_the_state_dict_is_the_authors() -> None:
    state = OCAutoencoder(tiny_config()).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == STATE


def test_the_published_config_has_the_published_size() -> None:
    with torch.device("meta"):
        model = OCAutoencoder(PrunerConfig())
    counts = {
        is_decoder: sum(
            p.numel() for n, p in model.named_parameters() if n.startswith("decode.") == is_decoder
        )
        for is_decoder in (True, False)
    }
    assert round(counts[False] / 1e6, 1) == 7.6
    # Per layer 8 C^2 for both attentions and 8 C^2 for the feed-forward.
    assert counts[True] == pytest.approx(4 * 16 * 1024**2 + 1.5 * 1024**2 + 576 * 1024, rel=1e-3)


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_authors_file_loads_strictly(wrapped: bool, tmp_path: Path) -> None:
    model, tokens, noise = random_case()
    state = model.state_dict()
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "weights.pth")
    loaded = torch.load(tmp_path / "weights.pth", weights_only=True)
    other = OCAutoencoder(tiny_config(), dtype=torch.float64).eval()
    other.load_state_dict(loaded["state_dict"] if wrapped else loaded, strict=True)
    assert all(map(torch.equal, model(tokens, noise=noise), other(tokens, noise=noise)))
    # The pruner's half alone is read from the same file.
    OCPruner.from_checkpoint(tmp_path / "weights.pth", tiny_config())


@pytest.mark.parametrize("name", ["decode.mask_token", "aggregat.gru.bias_hh"])
def test_missing_and_unexpected_names_are_refused(name: str) -> None:
    model, _, _ = random_case()
    state = model.state_dict()
    with pytest.raises(RuntimeError, match="Unexpected"):
        model.load_state_dict({**state, "decode.backbone.layers.0.norm1.weight": torch.ones(8)})
    del state[name]
    with pytest.raises(RuntimeError, match=name):
        model.load_state_dict(state)


def test_its_pruner_is_a_copy() -> None:
    model, tokens, _ = random_case()
    before = torch.get_rng_state()
    pruner = model.pruner(noise_seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert not pruner.training and pruner.initializ.noise_seed == 3
    slots = pruner.sample_slots(2, 3)
    with torch.no_grad():
        expected = model(tokens, slots_init=slots)
        actual = pruner.attend(tokens, slots)
        torch.testing.assert_close(actual, expected[:2], rtol=0, atol=1e-12)
        model.initializ.mean.zero_()
    assert not torch.equal(pruner.initializ.mean, model.initializ.mean)


def test_its_file_is_a_pruner_too(tmp_path: Path) -> None:
    model, tokens, _ = random_case()
    model.float().save_checkpoint(tmp_path / "model.safetensors")
    pruner = OCPruner.from_checkpoint(tmp_path / "model.safetensors")
    assert pruner.config == model.config
    ids = pruner(tokens.float(), tokens, 2).ids
    assert torch.equal(ids, model.pruner()(tokens.float(), tokens, 2).ids)
