"""``ocvtp::prune`` on Triton kernels, end to end: the reference's ids, launches fixed by shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops, use_backend
from ocvtp_kernels.ops.argmax_gather import gather_tokens
from tests.cases import (
    DEVICE,
    PruneCase,
    assert_kept,
    random_pruner,
    random_tokens,
    small_config,
    triton_dtypes,
)

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.prune.triton.pipeline import prune
from ocvtp_kernels.triton_common.archs import ARCHS, GpuArch, arch_of, pretend
from ocvtp_kernels.triton_common.launch import Launch, watch

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

FULL = {"enc_in_dim": 1024, "enc_dims": (2048, 512), "init_dim": 512, "agg_embed_dim": 512}
MEDIUM = {"enc_in_dim": 96, "enc_dims": (130, 64), "init_dim": 64, "agg_embed_dim": 64}


class Case(PruneCase):
    """A case for the kernels."""

    def ids(self, dtype: torch.dtype, importance: Tensor | None, budget: int, top_k: int) -> Tensor:
        """The kernels' ids, and their tokens checked."""
        scores = None if importance is None else importance.to(DEVICE)
        tokens, ids = prune(*self.arguments(dtype, DEVICE), scores, budget, top_k)
        assert_kept(ids.cpu(), budget, self.final_tokens.shape[1])
        assert torch.equal(tokens.cpu(), gather_tokens(self.final_tokens, ids.cpu()))
        return ids.cpu()


@pytest.mark.parametrize("enc_ln", ["pre", "post", None])
@pytest.mark.parametrize("enc_dims", [(10,), (20, 10), (20, 15, 10)])
def test_every_config_keeps_the_references_tokens(
    enc_ln: str | None, enc_dims: tuple[int, ...]
) -> None:
    case = Case(small_config(enc_ln=enc_ln, enc_dims=enc_dims), 2, 33, 7)
    assert torch.equal(case.ids(torch.float32, None, 7, 1), case.oracle(None, 7, 1))


@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize(
    ("num_slots", "budget", "top_k"),
    [(7, 7, 1), (7, 3, 1), (4, 9, 3), pytest.param(150, 20, 1, marks=pytest.mark.slow)],
)
def test_picks_are_what_prune_resolves(
    dtype: torch.dtype, num_slots: int, budget: int, top_k: int
) -> None:
    case = Case(small_config(), 2, 33, num_slots)
    case.assert_picks_make_the_ids("triton", dtype, budget, top_k, DEVICE)


@pytest.mark.parametrize("num_iter", [1, 2, 5])
def test_any_number_of_iterations(num_iter: int) -> None:
    case = Case(small_config(agg_num_iter=num_iter), 2, 33, 7)
    assert torch.equal(case.ids(torch.float32, None, 9, 1), case.oracle(None, 9, 1))


SLOTS = (1, 7, 64, 65, 100, 128, 160, 192)
SMALL = [(num_slots, num_tokens) for num_slots in SLOTS for num_tokens in (1, 50)]
LARGE = [*zip(SLOTS, 4 * (576, 577), strict=True)]


def few_programs() -> GpuArch:
    """What there is, with the largest tiles: the interpreter then runs few programs."""
    return arch_of(DEVICE)._replace(multiprocessors=1)


@pytest.mark.parametrize(
    ("num_slots", "num_tokens"),
    [*SMALL, *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in LARGE)],
)
def test_narrow_slots(num_slots: int, num_tokens: int) -> None:
    case = Case(small_config(**MEDIUM, agg_ffn_dim=100), 1, num_tokens, num_slots)
    budget = min(num_slots, num_tokens)
    importance = random_tokens(1, num_tokens, seed=3)
    with pretend(few_programs()):
        ids = case.ids(torch.float32, importance, budget, 1)
    assert torch.equal(ids, case.oracle(importance, budget, 1))


@pytest.mark.slow
def test_slots_of_full_width_lose_no_attention_in_half() -> None:
    case = Case(small_config(**FULL, agg_ffn_dim=2048), 1, 576, 64)
    importance = random_tokens(1, 576, seed=3)
    for dtype in triton_dtypes()[1:]:
        with pretend(few_programs()):
            kept = case.ids(dtype, importance, 64, 1)
        plain = ops.prune.reference(*case.arguments(dtype), importance, 64)[1]
        assert case.regret(kept).max() <= max(1e-2, 2 * case.regret(plain).max())


@pytest.mark.parametrize("dtype", triton_dtypes())
def test_ids_are_batch_invariant(dtype: torch.dtype) -> None:
    case = Case(small_config(), 5, 90, 7)
    together = case.ids(dtype, None, 12, 1)
    arguments = case.arguments(dtype, DEVICE)
    for image in range(5):
        one = [a if isinstance(a, list) else a[image : image + 1] for a in arguments]  # type: ignore[index]
        alone = prune(*one, None, 12)[1]  # type: ignore[arg-type]
        assert torch.equal(alone.cpu(), together[image : image + 1])


@pytest.mark.parametrize("dtype", triton_dtypes())
def test_two_runs_are_bitwise_equal(dtype: torch.dtype) -> None:
    case = Case(small_config(), 2, 90, 130)
    assert torch.equal(case.ids(dtype, None, 12, 2), case.ids(dtype, None, 12, 2))


def launches(
    batch: int, num_tokens: int, num_slots: int, dtype: torch.dtype = torch.float32, **config: Any
) -> list[Launch]:
    pruner = random_pruner(small_config(**config))
    seen: list[Launch] = []
    width, dim = pruner.config.enc_in_dim, pruner.config.init_dim
    shapes = ((batch, num_tokens, width), (batch, num_tokens, 6), (batch, num_slots, dim))
    reference_tokens, final_tokens, slots = (
        torch.empty(shape, dtype=dtype, device="meta") for shape in shapes
    )
    weights = [weight.to("meta", dtype) for weight in pruner.packed()]
    with watch(seen.append), pretend(ARCHS[90]):
        prune(
            reference_tokens,
            final_tokens,
            weights,
            slots,
            final_tokens[..., 0],
            min(num_slots, num_tokens),
        )
    return seen


@pytest.mark.parametrize("num_slots", [1, 64, 128])
@pytest.mark.parametrize("batch", [1, 64])
def test_the_number_of_launches(batch: int, num_slots: int) -> None:
    assert len(launches(batch, 576, num_slots, torch.bfloat16)) == 20
    # In float32 the tokens' LayerNorm is one of its own.
    assert len(launches(batch, 576, num_slots)) == 21


def test_the_phases_share_memory() -> None:
    found = launches(1, 2880, 640, torch.bfloat16, agg_ffn_dim=2048, **FULL)
    memory = {
        value.untyped_storage()._cdata: value.untyped_storage().nbytes()
        for launch in found
        for name, value in launch.arguments.items()
        if isinstance(value, Tensor) and name not in ("weight", "tokens", "final", "importance")
    }
    encoded, partial = 2880 * (2048 + 512) * 2, 9 * 640 * 512 * 4
    # The partial sums lie where the hidden layer of the encoding was.
    assert partial < max(memory.values()) < encoded + partial


def test_no_workspace_is_as_large_as_the_attention() -> None:
    for launch in launches(1, 2880, 640):
        for value in launch.arguments.values():
            if isinstance(value, Tensor) and value.dtype == torch.float32:
                assert value.numel() < 2880 * 640


def test_an_empty_batch_launches_nothing() -> None:
    assert launches(0, 576, 64) == []


def test_the_op_runs_it() -> None:
    case = Case(small_config(), 2, 33, 7)
    arguments = case.arguments(torch.float32, DEVICE)
    with use_backend("triton"):
        got = torch.ops.ocvtp.prune(*arguments, None, 7)
    expected = prune(*arguments, None, 7)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
