"""``ocvtp::prune`` end to end as on a GPU, its CUDA kernels emulated on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import profile

from ocvtp_kernels import ops
from ocvtp_kernels.ops.gru_cell.native import gru_cell
from ocvtp_kernels.ops.prune.native.encode import EncodeLayers, encode
from ocvtp_kernels.ops.prune.native.pipeline import prepare, prune, prune_picks
from ocvtp_kernels.ops.prune.reference import encode_folded
from ocvtp_kernels.ops.prune.weights import unpack
from ocvtp_kernels.ops.resolve_picks import _native as resolve_picks
from tests.cases import PruneCase, assert_kept, assert_within_budget, random_tokens, small_config
from tests.emulated import emulated_ops, loaded, on_gpu  # noqa: F401

pytestmark = pytest.mark.usefixtures("emulated", "poisoned")

DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
MEDIUM = {"enc_in_dim": 96, "enc_dims": (130, 64), "init_dim": 64, "agg_embed_dim": 64}


def kept(
    case: PruneCase, dtype: torch.dtype, importance: Tensor | None, budget: int, top_k: int = 1
) -> Tensor:
    """The kernels' ids, and their tokens checked."""
    arguments = on_gpu(case.arguments(dtype))
    tokens, ids = prune(*arguments, on_gpu(importance), budget, top_k)
    assert_kept(ids, budget, case.final_tokens.shape[1])
    assert torch.equal(tokens, case.final_tokens.take_along_dim(ids.unsqueeze(-1), 1))
    return ids


@pytest.mark.parametrize("enc_ln", ["pre", "post", None])
@pytest.mark.parametrize("enc_dims", [(10,), (20, 15, 10)])
def test_every_config_keeps_the_references_tokens(
    enc_ln: str | None, enc_dims: tuple[int, ...]
) -> None:
    case = PruneCase(small_config(enc_ln=enc_ln, enc_dims=enc_dims), 2, 33, 7)
    assert torch.equal(kept(case, torch.float32, None, 7), case.oracle(None, 7, 1))


@pytest.mark.parametrize("num_iter", [1, 3])
@pytest.mark.parametrize("top_k", [1, 3])
def test_any_number_of_iterations_and_picks(num_iter: int, top_k: int) -> None:
    case = PruneCase(small_config(agg_num_iter=num_iter), 2, 33, 7)
    assert torch.equal(kept(case, torch.float32, None, 9, top_k), case.oracle(None, 9, top_k))


@pytest.mark.parametrize(
    ("batch", "num_tokens", "num_slots"), [(0, 9, 7), (1, 1, 1), (2, 50, 65), (1, 100, 130)]
)
def test_any_number_of_slots_and_tokens(batch: int, num_tokens: int, num_slots: int) -> None:
    case = PruneCase(small_config(), batch, num_tokens, num_slots)
    budget = min(num_slots, num_tokens)
    importance = random_tokens(batch, num_tokens, seed=3)
    ids = kept(case, torch.float32, importance, budget)
    assert torch.equal(ids, case.oracle(importance, budget, 1))


@DTYPES
def test_no_slot_misses_its_token(dtype: torch.dtype) -> None:
    case = PruneCase(small_config(**MEDIUM), 1, 150, 20)
    importance = random_tokens(1, 150, seed=3)
    ids = kept(case, dtype, importance, 24)
    if dtype == torch.float32:
        assert torch.equal(ids, case.oracle(importance, 24, 1))
    plain = ops.prune.reference(*case.arguments(dtype), importance, 24)[1]
    assert case.regret(ids).max() <= max(1e-2, 2 * case.regret(plain).max())


def test_products_sum_in_float32_whatever_torch_is_set_to(monkeypatch: pytest.MonkeyPatch) -> None:
    case, settings = PruneCase(small_config(), 1, 33, 7), torch.backends.cuda.matmul
    allowed = []
    plain = torch.nn.functional.linear

    def linear(*arguments: Any) -> Tensor:
        allowed.append(settings.allow_fp16_reduced_precision_reduction)
        return plain(*arguments)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    before = settings.allow_fp16_reduced_precision_reduction
    settings.allow_fp16_reduced_precision_reduction = True
    try:
        kept(case, torch.float16, None, 7)
        assert allowed and not any(allowed)
        assert settings.allow_fp16_reduced_precision_reduction
    finally:
        settings.allow_fp16_reduced_precision_reduction = before


@pytest.mark.parametrize("top_k", [1, 2])
def test_picks_are_what_prune_resolves(top_k: int) -> None:
    case = PruneCase(small_config(), 2, 33, 7)
    reference_tokens, final_tokens, weights, slots = on_gpu(case.arguments(torch.float32))
    topk_ids, max_logprob, token_score = prune_picks(reference_tokens, weights, slots, top_k)
    ids = resolve_picks(topk_ids, max_logprob, token_score, 9, None)
    assert torch.equal(
        ids, prune(reference_tokens, final_tokens, weights, slots, None, 9, top_k)[1]
    )


@DTYPES
def test_ids_are_batch_invariant(dtype: torch.dtype) -> None:
    case = PruneCase(small_config(), 4, 70, 7)
    together = kept(case, dtype, None, 12)
    reference_tokens, final_tokens, weights, slots = on_gpu(case.arguments(dtype))
    one = slice(3, 4)
    alone = prune(reference_tokens[one], final_tokens[one], weights, slots[one], None, 12)[1]
    assert torch.equal(alone, together[one])


@DTYPES
@pytest.mark.parametrize("enc_ln", ["pre", "post", None])
def test_encode_keeps_the_error_budget(dtype: torch.dtype, enc_ln: str | None) -> None:
    case = PruneCase(small_config(**MEDIUM, enc_ln=enc_ln), 2, 33, 7)
    reference_tokens, _, weights, _ = case.arguments(dtype)
    exact = encode_folded(reference_tokens.double(), unpack([w.double() for w in weights]))
    plain = encode_folded(reference_tokens, unpack(weights))
    encoded = encode(on_gpu(reference_tokens), EncodeLayers.of(unpack(on_gpu(weights))))
    got = torch.ops.ocvtp_native.layer_norm(encoded, 1e-5)
    assert_within_budget(got, plain, exact)


@DTYPES
def test_the_gru_cell_keeps_the_error_budget(dtype: torch.dtype) -> None:
    shapes: list[Any] = [(2, 7, 9), (2, 7, 5), (15, 9), (15, 5), (15,), (15,)]
    narrow = [random_tokens(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]
    exact = ops.gru_cell.reference(*(tensor.double() for tensor in narrow))
    assert_within_budget(gru_cell(*on_gpu(narrow)), ops.gru_cell.reference(*narrow), exact)


# What aten runs in a prune: one launch on a GPU each, or none.
LAUNCHED = {"aten::mm", "aten::addmm", "aten::copy_", "aten::sum", "aten::addcmul"}
FREE = {"aten::" + name for name in (
    "linear", "matmul", "t", "transpose", "view", "_unsafe_view", "reshape", "_reshape_alias",
    "expand", "expand_as", "slice", "select", "split", "split_with_sizes", "narrow", "as_strided",
    "unsqueeze", "detach", "alias", "empty", "empty_strided", "new_empty", "empty_like",
    "resolve_conj", "resolve_neg", "to", "_to_copy", "contiguous", "clone", "is_nonzero",
)}  # fmt: skip


def launches(call: Callable[[], Any]) -> int:
    """How many kernels a GPU would run."""
    ours = torch.ops.ocvtp_emulator.launches()
    with profile() as events:
        call()
    # What the CPU does inside of one of them, such as copying a bias, is no launch.
    names = [
        event.name
        for event in events.events()
        if event.name.startswith("aten::")
        and not (event.cpu_parent and event.cpu_parent.name in LAUNCHED)
    ]
    assert set(names) <= LAUNCHED | FREE
    return torch.ops.ocvtp_emulator.launches() - ours + sum(name in LAUNCHED for name in names)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_prune_takes_few_launches(dtype: torch.dtype) -> None:
    torch.use_deterministic_algorithms(False)  # which fills new memory
    config = {"enc_in_dim": 64, "enc_dims": (64, 32), "init_dim": 32, "agg_embed_dim": 32}
    case = PruneCase(small_config(**config), 1, 70, 7)
    reference_tokens, final_tokens, weights, slots = on_gpu(case.arguments(dtype))
    kept = on_gpu(slots.contiguous())
    importance = on_gpu(random_tokens(1, 70, seed=3))
    frozen, seeded = prepare(weights), prepare(weights, kept)
    calls = {25: seeded, 26: frozen, 27: weights}
    for expected, given in calls.items():
        arguments = (reference_tokens, final_tokens, given, kept, importance, 7)
        prune(*arguments)
        assert launches(lambda arguments=arguments: prune(*arguments)) == expected
