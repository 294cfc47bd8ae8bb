"""A pruner with a place mean is one without, on tokens that the mean is taken off."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ocvtp_kernels import OCPruner, PrunerConfig
from ocvtp_kernels.cli.report import prune_encoded
from ocvtp_kernels.ops.prune.reference import attention_logits
from ocvtp_kernels.ops.slot_attention.reference import log_attention
from ocvtp_kernels.pruner.checkpoint import PLACE_MEAN
from ocvtp_kernels.selectors.interface import SelectorInputs
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from ocvtp_kernels.vlm.encoder import Encoded
from tests.cases import random_pruner, random_tokens, small_config

N, WIDTH, BUDGET = 40, 12, 7
TOKENS = random_tokens(3, N, WIDTH)
MEAN = 2 * random_tokens(1, N, WIDTH, seed=5)[0]
FROZEN = pytest.mark.parametrize("frozen", [False, True], ids=["plain", "frozen"])


def config(**changes: object) -> PrunerConfig:
    return small_config(enc_place_mean=True, pos_resolut=(N,), **changes)


def make(frozen: bool = False, dtype: torch.dtype = torch.float32) -> OCPruner:
    pruner = random_pruner(config())
    assert pruner.place_mean is not None
    pruner.place_mean.copy_(MEAN)
    pruner.to(dtype)
    return pruner.freeze() if frozen else pruner


def plain(frozen: bool = False, dtype: torch.dtype = torch.float32) -> OCPruner:
    pruner = random_pruner(dtype=dtype)
    return pruner.freeze() if frozen else pruner


@FROZEN
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_it_is_taken_off_the_reference_tokens_alone(frozen: bool, dtype: torch.dtype) -> None:
    pruner, other = make(frozen, dtype), plain(frozen, dtype)
    tokens, final = TOKENS.to(dtype), random_tokens(3, N, 5)
    less = tokens - MEAN.to(dtype)
    importance = random_tokens(3, N, 1)[..., 0]
    for options in ({}, {"importance": importance}, {"padding": "random", "num_slots": 2}):
        got = pruner(tokens, final, BUDGET, **options)
        assert all(map(torch.equal, got, other(less, final, BUDGET, **options)))
    assert all(map(torch.equal, pruner.pick(tokens), other.pick(less)))
    assert all(map(torch.equal, pruner.attend(tokens), other.attend(less)))
    assert not torch.equal(pruner(tokens, final, BUDGET).ids, other(tokens, final, BUDGET).ids)
    # Folded weights have none of it.
    assert all(map(torch.equal, pruner.packed(), other.packed()))


def test_without_one_nothing_is_there() -> None:
    pruner = random_pruner()
    assert pruner.place_mean is None and PLACE_MEAN not in pruner.state_dict()
    assert "enc_place_mean" not in json.loads(pruner.config.to_json())
    assert OCPruner(config()).place_mean.abs().sum() == 0  # type: ignore[union-attr]


@FROZEN
@pytest.mark.parametrize("count", [1, N - 1, N + 1])
def test_other_numbers_of_tokens_are_refused(frozen: bool, count: int) -> None:
    pruner, tokens = make(frozen), random_tokens(1, count, WIDTH)
    for call in (lambda: pruner(tokens, tokens, 1), lambda: pruner.pick(tokens)):
        with pytest.raises(ValueError, match=f"^reference_tokens: .*size {N} .*the place mean"):
            call()
    with pytest.raises(ValueError, match="the place mean"):
        pruner.attend(tokens)


@FROZEN
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_autocast_takes_tokens_of_any_dtype(frozen: bool, dtype: torch.dtype) -> None:
    pruner, other = make(frozen), plain(frozen)
    with torch.autocast("cpu", torch.bfloat16):
        got = pruner(TOKENS.to(dtype), TOKENS, BUDGET)
        want = other(TOKENS.to(dtype) - MEAN, TOKENS, BUDGET)
    assert torch.equal(got.ids, want.ids)


def through_a_file(pruner: OCPruner, path: Path) -> OCPruner:
    pruner.save_checkpoint(path / "pruner.safetensors")
    return OCPruner.from_checkpoint(path / "pruner.safetensors")


def through_bare_weights(pruner: OCPruner, path: Path) -> OCPruner:
    wrapped = {f"module.pruner.{name}": value for name, value in pruner.state_dict().items()}
    torch.save({**wrapped, "module.head.weight": torch.zeros(1)}, path / "weights.pth")
    return OCPruner.from_checkpoint(path / "weights.pth")


def through_its_state(pruner: OCPruner, assign: bool) -> OCPruner:
    other = OCPruner(config()).eval()
    nn.ModuleDict({"a": other}).load_state_dict(
        nn.ModuleDict({"a": pruner}).state_dict(), assign=assign
    )
    return other


def from_meta(pruner: OCPruner) -> OCPruner:
    with torch.device("meta"):
        other = OCPruner(config()).freeze()
    other.load_state_dict(pruner.state_dict(), assign=True)
    return other


COPIES: dict[str, Callable[[OCPruner, Path], OCPruner]] = {
    "deepcopy": lambda pruner, _: copy.deepcopy(pruner),
    "pickle": lambda pruner, _: pickle.loads(pickle.dumps(pruner)),
    "frozen copy": lambda pruner, _: pruner.frozen_copy(),
    "file": through_a_file,
    "bare weights": through_bare_weights,
    "state": lambda pruner, _: through_its_state(pruner, assign=False),
    "assigned": lambda pruner, _: through_its_state(pruner, assign=True),
    "meta": lambda pruner, _: from_meta(pruner),
    "cast": lambda pruner, _: pruner.double().float(),
    "unfrozen": lambda pruner, _: pruner.freeze().unfreeze(),
}


@FROZEN
@pytest.mark.parametrize("copied", COPIES)
def test_copies_have_it(copied: str, frozen: bool, tmp_path: Path) -> None:
    want = make()(TOKENS, TOKENS, BUDGET)
    pruner = COPIES[copied](make(frozen), tmp_path)
    assert torch.equal(pruner(TOKENS, TOKENS, BUDGET).ids, want.ids)
    assert torch.equal(pruner.state_dict()[PLACE_MEAN], MEAN)
    assert pruner.config.enc_place_mean and pruner.config.num_places == N


def test_a_frozen_pruner_follows_what_is_loaded() -> None:
    pruner = OCPruner(config()).freeze()
    pruner.load_state_dict(make().state_dict())
    assert torch.equal(pruner(TOKENS, TOKENS, BUDGET).ids, make()(TOKENS, TOKENS, BUDGET).ids)
    selector = PrunerSelector(OCPruner(config()).eval())
    selector.pruner.load_state_dict(make().state_dict())
    inputs = SelectorInputs(TOKENS, TOKENS)
    want = make()(TOKENS, TOKENS, BUDGET).ids
    assert torch.equal(selector(inputs, BUDGET).ids, want)
    assert selector._active is not selector.pruner and selector._active.frozen
    assert torch.equal(selector.begin(TOKENS, BUDGET)(None).ids, want)


def test_files_and_configs_that_disagree_are_refused(tmp_path: Path) -> None:
    make().save_checkpoint(tmp_path / "with.safetensors")
    random_pruner().save_checkpoint(tmp_path / "without.safetensors")
    assert load_file(tmp_path / "with.safetensors")[PLACE_MEAN].dtype == torch.float32
    for name, given, words in (
        ("with", small_config(), "unexpected place_mean"),
        ("without", config(), "missing place_mean"),
        ("with", small_config(enc_place_mean=True), "place_mean has shape"),
    ):
        with pytest.raises(ValueError, match=words):
            OCPruner.from_checkpoint(tmp_path / f"{name}.safetensors", given)
    with pytest.raises(ValueError, match=r"^enc_place_mean: expected true or false, got 1"):
        small_config(enc_place_mean=1)


@FROZEN
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_tokens_made_in_every_mode_are_taken(frozen: bool, mode: Any) -> None:
    pruner = make(frozen)
    with mode():
        tokens = TOKENS.clone()
        pruner.float()
    assert torch.equal(pruner(tokens, tokens, BUDGET).ids, make()(TOKENS, TOKENS, BUDGET).ids)
    slots, _ = pruner.attend(tokens)
    if not frozen:
        slots.square().sum().backward()
        assert pruner.aggregat.proj_q.weight.grad is not None


class Pruning(nn.Module):
    def __init__(self, pruner: OCPruner) -> None:
        super().__init__()
        self.pruner = pruner

    def forward(self, tokens: Tensor) -> Tensor:
        ids: Tensor = self.pruner(tokens, tokens, BUDGET).ids
        return ids


@pytest.mark.parametrize(
    "frozen", [pytest.param(False, marks=pytest.mark.slow), True], ids=["plain", "frozen"]
)
def test_it_is_exported_for_any_batch(frozen: bool) -> None:
    module = Pruning(make(frozen).requires_grad_(False))
    sizes = ({0: torch.export.Dim("batch", min=2, max=9)},)
    program = torch.export.export(module, (TOKENS,), dynamic_shapes=sizes)
    tokens = random_tokens(5, N, WIDTH, seed=8)
    assert torch.equal(program.module()(tokens), module(tokens))


def test_a_photo_s_report_shows_the_slots_that_chose() -> None:
    pruner = make(frozen=True)
    encoded = Encoded(None, SelectorInputs(TOKENS[:1], TOKENS[:1]), (5, 8))  # type: ignore[arg-type]
    report = prune_encoded(pruner, encoded, BUDGET, "importance")
    logits = attention_logits(TOKENS[:1] - MEAN, pruner.packed(), pruner.sample_slots(1, BUDGET))
    assert torch.equal(report.log_attention, log_attention(logits)[0])
    assert set(report.log_attention.argmax(dim=1).tolist()) <= set(report.ids)
