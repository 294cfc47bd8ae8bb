from __future__ import annotations

import copy
import itertools
import os
import shutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ocvtp_kernels as ocvtp
from ocvtp_kernels.dtypes import product_dtype
from tests.cases import assert_kept, random_pruner, random_tokens, small_config

FROZEN = pytest.mark.parametrize("frozen", [False, True], ids=["plain", "frozen"])
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


class Casts(TorchDispatchMode):
    """Counts the matrices that are cast."""

    of_matrices = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.of_matrices += func is torch.ops.aten._to_copy.default and args[0].dim() == 2
        return func(*args, **(kwargs or {}))


def make(frozen: bool, dtype: torch.dtype = torch.float32) -> ocvtp.OCPruner:
    pruner = random_pruner(dtype=dtype)
    return pruner.freeze() if frozen else pruner


@FROZEN
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize(("num_tokens", "budget"), [(1, 1), (50, 1), (50, 7), (50, 49), (50, 50)])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("with_importance", [False, True])
def test_keeps_exactly_the_budget(
    frozen: bool,
    dtype: torch.dtype,
    batch: int,
    num_tokens: int,
    budget: int,
    top_k: int,
    with_importance: bool,
) -> None:
    top_k = min(top_k, num_tokens)
    # A view that skips the CLS row, as real callers pass it.
    hidden = random_tokens(batch, num_tokens + 1, 12, dtype=dtype)[:, 1:]
    importance = random_tokens(batch, num_tokens, seed=5) if with_importance else None
    out = make(frozen, dtype)(hidden, hidden, budget, importance, top_k=top_k)
    assert out.tokens.shape == (batch, budget, 12) and out.tokens.dtype == dtype
    assert out.ids.shape == (batch, budget)
    assert_kept(out.ids, budget, num_tokens)
    for image in range(batch):
        assert torch.equal(out.tokens[image], hidden[image, out.ids[image]])


@FROZEN
@pytest.mark.parametrize("budget", [1, 7, 20, 50])
@pytest.mark.parametrize("top_k", [1, 2])
def test_equal_slots_still_keep_the_whole_budget(frozen: bool, budget: int, top_k: int) -> None:
    tokens = random_tokens(2, 50, 12)
    slots = random_tokens(2, 1, 10).expand(-1, 9, -1)
    out = make(frozen)(tokens, tokens, budget, slots_init=slots, top_k=top_k)
    assert_kept(out.ids, budget, 50)


@FROZEN
def test_equal_tokens_still_keep_the_whole_budget(frozen: bool) -> None:
    tokens = random_tokens(1, 1, 12).expand(2, 50, -1)
    assert_kept(make(frozen)(tokens, tokens, budget=7).ids, 7, 50)


@FROZEN
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_invariant_and_repeatable(frozen: bool, dtype: torch.dtype) -> None:
    pruner = make(frozen, dtype)
    tokens, final = random_tokens(5, 60, 12, dtype=dtype), random_tokens(5, 60, 4, seed=1)
    together = pruner(tokens, final, budget=9)
    again = pruner(tokens, final, budget=9)
    assert torch.equal(together.ids, again.ids) and torch.equal(together.tokens, again.tokens)
    for image in range(5):
        alone = pruner(tokens[image : image + 1], final[image : image + 1], budget=9)
        assert torch.equal(alone.ids[0], together.ids[image])
        assert torch.equal(alone.tokens[0], together.tokens[image])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_frozen_half_precision_regret(dtype: torch.dtype) -> None:
    pruner = random_pruner(dtype=dtype)
    tokens = random_tokens(2, 60, 12, dtype=dtype)
    slots = pruner.sample_slots(2, 7)
    exact = copy.deepcopy(pruner).double()
    _, attention = exact.attend(tokens.double(), slots.double())
    ids = copy.deepcopy(pruner).freeze()(tokens, tokens, budget=7, slots_init=slots).ids
    # Half weights move the attention itself, so a slot's loss is bounded against its peak.
    kept = attention.gather(-1, ids.unsqueeze(1).expand(-1, 7, -1)).amax(-1)
    assert (kept >= 0.9 * attention.amax(-1)).all()


@FROZEN
def test_the_op_is_the_frozen_forward(frozen: bool) -> None:
    pruner = make(frozen)
    tokens, final = random_tokens(2, 40, 12), random_tokens(2, 40, 3, seed=1)
    importance = random_tokens(2, 40, seed=2)
    slots = pruner.sample_slots(2, 9).detach()
    kept, ids = torch.ops.ocvtp.prune(tokens, final, pruner.packed(), slots, importance, 9)
    out = pruner(tokens, final, budget=9, importance=importance)
    assert torch.equal(out.ids, ids) and torch.equal(out.tokens, kept)


@FROZEN
@pytest.mark.parametrize(("budget", "top_k"), [(7, 1), (3, 1), (11, 2)])
def test_picks_are_what_forward_resolves(frozen: bool, budget: int, top_k: int) -> None:
    pruner = make(frozen)
    tokens = random_tokens(3, 33, 12)
    num_slots = max(1, budget // top_k)
    picks = pruner.pick(tokens, num_slots, top_k=top_k)
    assert picks.picks.shape == (3, num_slots, top_k)
    for importance in (None, random_tokens(3, 33, seed=5)):
        padding = picks.token_score if importance is None else importance
        ids = torch.ops.ocvtp.resolve_picks(picks.picks, picks.peak, padding, budget)
        expected = pruner(tokens, tokens, budget, importance, top_k=top_k).ids
        assert torch.equal(ids, expected)


def test_pick_names_what_does_not_fit() -> None:
    pruner = make(True)
    with pytest.raises(ValueError, match="top_k: expected 1 to 5"):
        pruner.pick(random_tokens(1, 5, 12), top_k=6)
    with pytest.raises(ValueError, match="enc_in_dim"):
        pruner.pick(random_tokens(1, 5, 13))


@FROZEN
@pytest.mark.parametrize("top_k", [1, 2])
def test_importance_fills_the_gap(frozen: bool, top_k: int) -> None:
    pruner = make(frozen, torch.float64)
    tokens, importance = random_tokens(3, 40, 12, dtype=torch.float64), random_tokens(3, 40, seed=4)
    slots = random_tokens(3, 5, 10, dtype=torch.float64)
    out = pruner(tokens, tokens, 15, importance, slots_init=slots, top_k=top_k)
    _, attention = pruner.attend(tokens, slots)
    for image in range(3):
        picked = set(attention[image].topk(top_k).indices.flatten().tolist())
        rest = sorted(set(range(40)) - picked, key=lambda n: -float(importance[image, n]))
        assert out.ids[image].tolist() == sorted([*picked, *rest[: 15 - len(picked)]])


def test_the_default_noise_is_fixed_and_fresh_noise_is_not() -> None:
    config = small_config()
    first, second = (ocvtp.OCPruner(config, noise_seed=3) for _ in range(2))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.sample_slots(2, 7), second.sample_slots(2, 7))
    assert torch.equal(first.sample_slots(1, 2000)[:, :7], first.sample_slots(1, 7))
    other = ocvtp.OCPruner(config, noise_seed=4)
    other.load_state_dict(first.state_dict())
    assert not torch.equal(first.sample_slots(1, 7), other.sample_slots(1, 7))
    fresh = ocvtp.OCPruner(config, noise_seed=None)
    assert not torch.equal(fresh.sample_slots(1, 7), fresh.sample_slots(1, 7))
    assert not torch.equal(*fresh.sample_slots(2, 7))


def test_the_noise_is_standard_normal() -> None:
    pruner = ocvtp.OCPruner(small_config())
    with torch.no_grad():
        pruner.initializ.mean.zero_()
        pruner.initializ.logstd.zero_()
    noise = pruner.sample_slots(1, 1000).detach()
    assert abs(float(noise.mean())) < 0.03 and abs(float(noise.std()) - 1) < 0.03


@FROZEN
def test_random_padding_is_seeded_and_alike_for_every_image(frozen: bool) -> None:
    pruner = make(frozen)
    tokens = random_tokens(1, 50, 12).expand(3, -1, -1)
    slots = random_tokens(1, 1, 10).expand(3, 5, -1)
    out = pruner(tokens, tokens, budget=20, slots_init=slots, padding="random")
    again = pruner(tokens, tokens, budget=20, slots_init=slots, padding="random")
    assert_kept(out.ids, 20, 50)
    assert torch.equal(out.ids, again.ids)
    assert torch.equal(out.ids[0], out.ids[2])
    padded = pruner(tokens, tokens, budget=20, slots_init=slots)
    assert not torch.equal(out.ids, padded.ids)


@FROZEN
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_give_defined_ids_and_spoil_no_neighbour(frozen: bool, bad: float) -> None:
    pruner = make(frozen)
    tokens = random_tokens(3, 40, 12)
    clean = pruner(tokens, tokens, budget=9)
    spoilt = tokens.clone()
    spoilt[1, 17, 3] = bad
    out = pruner(spoilt, tokens, budget=9)
    assert_kept(out.ids, 9, 40)
    assert torch.equal(out.ids[[0, 2]], clean.ids[[0, 2]])
    out = pruner(torch.full_like(tokens, bad), tokens, budget=9)
    assert out.ids.tolist() == [list(range(9))] * 3
    importance = torch.zeros(3, 40)
    importance[:, 20:28] = 1
    out = pruner(torch.full_like(tokens, bad), tokens, budget=9, importance=importance)
    assert out.ids.tolist() == [[0, *range(20, 28)]] * 3
    out = pruner(tokens, tokens, budget=40, importance=torch.full((3, 40), bad))
    assert_kept(out.ids, 40, 40)


def test_freezing_follows_what_happens_to_the_pruner() -> None:
    tokens = random_tokens(2, 40, 12)
    pruner = random_pruner().freeze()
    assert pruner.frozen and not any(p.requires_grad for p in pruner.parameters())
    other = random_pruner(seed=1)
    pruner.load_state_dict(other.state_dict())
    assert torch.equal(pruner(tokens, tokens).ids, other(tokens, tokens).ids)
    double = tokens.double()
    assert torch.equal(pruner.double()(double, double).ids, other.double()(double, double).ids)
    twin = copy.deepcopy(pruner)
    assert twin.frozen and torch.equal(twin(double, double).ids, pruner(double, double).ids)
    assert not pruner.unfreeze().frozen
    assert all(p.requires_grad for p in pruner.parameters())


@FROZEN
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_made_on_meta_and_given_its_weights_later(frozen: bool, dtype: torch.dtype) -> None:
    whole = make(frozen, dtype)
    with torch.device("meta"):
        pruner = ocvtp.OCPruner(small_config())
    tokens = random_tokens(2, 40, 12, dtype=dtype)
    there = tokens.to("meta", torch.float32)
    assert pruner(there, there, 5).ids.shape == (2, 5)
    pruner.load_state_dict(whole.state_dict(), assign=True)
    pruner = pruner.freeze() if frozen else pruner.eval()
    assert torch.equal(pruner(tokens, tokens).ids, whole(tokens, tokens).ids)


def test_attend_is_differentiable_in_every_parameter() -> None:
    pruner = random_pruner().train()
    slots, attention = pruner.attend(random_tokens(2, 30, 12), num_slots=5)
    assert slots.shape == (2, 5, 10) and attention.shape == (2, 5, 30)
    torch.testing.assert_close(attention.sum(1), torch.ones(2, 30))
    (slots.square().sum() + attention.square().sum()).backward()
    for name, parameter in pruner.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


# Inductor builds C++, and cannot where the path to torch has a space.
INDUCTOR = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None or " " in torch.__file__,
    reason="Inductor needs a C++ compiler and a path to torch without spaces",
)


@pytest.mark.parametrize(
    ("frozen", "backend"),
    [
        pytest.param(False, "aot_eager", marks=pytest.mark.slow),
        (True, "aot_eager"),
        pytest.param(True, "inductor", marks=[INDUCTOR, pytest.mark.slow]),
    ],
)
def test_compiles_whole_with_dynamic_batch_and_tokens(frozen: bool, backend: str) -> None:
    torch._dynamo.reset()
    pruner = make(frozen)
    compiled = torch.compile(pruner, fullgraph=True, dynamic=True, backend=backend)
    for batch, num_tokens in [(2, 40), (3, 57), (4, 33)]:
        tokens = random_tokens(batch, num_tokens, 12)
        with torch.no_grad():
            got, expected = compiled(tokens, tokens, budget=9), pruner(tokens, tokens, budget=9)
        assert torch.equal(got.ids, expected.ids)


@FROZEN
def test_autocast_takes_tokens_of_another_dtype(frozen: bool) -> None:
    pruner = make(frozen)
    tokens = random_tokens(2, 40, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = pruner(tokens.bfloat16(), tokens.bfloat16(), budget=9)
    assert_kept(out.ids, 9, 40)
    assert out.tokens.dtype == torch.bfloat16
    if frozen:
        # In what the CPU multiplies of it.
        dtype = product_dtype(torch.bfloat16, torch.device("cpu"))
        rounded = tokens.bfloat16().to(dtype)
        weights = ocvtp.prepare([weight.to(dtype) for weight in pruner.packed()])
        slots = pruner.sample_slots(2, 9).to(dtype)
        kept = torch.ops.ocvtp.prune(rounded, rounded, weights, slots, None, 9)
        assert torch.equal(out.ids, kept[1])


@FROZEN
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("enc_ln", ["pre", "post", None])
def test_autocast_takes_all_dtypes_or_names_those_of_the_parameters(
    frozen: bool, autocast: torch.dtype, dtype: torch.dtype, enc_ln: str | None
) -> None:
    pruner = random_pruner(small_config(enc_ln=enc_ln), dtype=dtype)
    pruner = pruner.freeze() if frozen else pruner
    are_two_halves = {dtype, autocast} == {torch.float16, torch.bfloat16}
    for given, initial in itertools.product(DTYPES, (None, *DTYPES)):
        tokens = random_tokens(2, 40, 12, dtype=given)
        slots = None if initial is None else random_tokens(2, 9, 10, dtype=initial)
        with torch.autocast("cpu", dtype=autocast):
            if are_two_halves and not frozen:
                with pytest.raises(TypeError, match=rf"^reference_tokens: .*{autocast} on a CPU"):
                    pruner(tokens, tokens, 9, slots_init=slots)
                continue
            kept = pruner(tokens, tokens, 9, slots_init=slots)
            picks = pruner.pick(tokens, slots_init=slots)
            assert picks.token_score.shape == (2, 40)
        assert_kept(kept.ids, 9, 40)
        assert kept.tokens.dtype == given


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_folds_the_weights_that_are_folded_without(
    autocast: torch.dtype, dtype: torch.dtype
) -> None:
    pruner, other, third = (random_pruner(small_config(), dtype=dtype) for _ in range(3))
    expected = pruner.packed()
    with torch.autocast("cpu", dtype=autocast):
        folded = [other.packed(), third.freeze().packed()]
    for weights in folded:
        for got, want in zip(weights, expected, strict=True):
            assert got.dtype == dtype
            assert torch.equal(got, want)
    assert torch.equal(third.sample_slots(2, 9), pruner.freeze().sample_slots(2, 9))


def test_autocast_casts_the_weights_of_a_frozen_pruner_once() -> None:
    pruner = make(True)
    tokens = random_tokens(2, 40, 12)

    def run() -> int:
        with Casts() as casts, torch.autocast("cpu", dtype=torch.bfloat16):
            pruner(tokens, tokens, budget=9)
        return casts.of_matrices

    first, second = run(), run()
    expected = 0 if product_dtype(torch.bfloat16, torch.device("cpu")) == torch.float32 else 6
    assert (first, second) == (expected, 0)
