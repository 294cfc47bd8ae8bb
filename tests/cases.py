"""Random cases shared by the tests: pruners with nothing left at its initial value, and tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.pruners import random_pruner as random_pruner
from bench.pruners import small_config as small_config
from ocvtp_kernels import OCPruner, PrunerConfig, native, ops, use_backend
from ocvtp_kernels.ops.prune.reference import attention_logits
from ocvtp_kernels.ops.slot_attention.reference import StepWeights
from ocvtp_kernels.pruner import fold

# Where Triton's kernels run: on the GPU, or in Triton's interpreter.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def triton_dtypes() -> list[torch.dtype]:
    """The dtypes that Triton's kernels take; its interpreter has no bfloat16 arithmetic."""
    wide = [torch.float32, torch.float16]
    return wide if DEVICE.type == "cpu" else [*wide, torch.bfloat16]


def to_device(
    tensor: Tensor, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """``tensor.to(...)`` that keeps strides and offset, as of slices and expanded tensors.

    Args:
        device: `DEVICE` unless given.
        dtype: the tensor's unless given.
    """
    size = tensor.untyped_storage().nbytes() // tensor.itemsize
    memory = tensor.as_strided((size,), (1,), 0).to(device or DEVICE, dtype or tensor.dtype)
    return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


# How ops run on the CPU: by the oracle, as where no compiler was found, and on native kernels.
ISAS = ("portable", "avx2", "avx512")
CPU_BACKENDS = ("reference", "plain", *ISAS)


@contextmanager
def running(backend: str) -> Iterator[None]:
    """Within the block ops on CPU tensors run on one of `CPU_BACKENDS`; skips what is not here."""
    if backend == "reference":
        with use_backend(backend):
            yield
    elif backend == "plain":
        with mock.patch.object(native, "missing_reason", lambda _: "not built"):
            yield
    else:
        with use_backend("cpu"), instructions(backend):
            yield


@contextmanager
def instructions(isa: str) -> Iterator[None]:
    """Within the block the native CPU kernels use this instruction set."""
    reason = native.missing_reason("cpu")
    if reason is not None:
        pytest.skip(reason)
    before = torch.ops.ocvtp_native.isa("")
    try:
        torch.ops.ocvtp_native.isa(isa)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        yield
    finally:
        torch.ops.ocvtp_native.isa(before)


@pytest.fixture(params=ISAS)
def every_isa(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test runs on each instruction set of the native CPU kernels."""
    with instructions(request.param):
        yield


def step_weights(pruner: OCPruner) -> StepWeights:
    """The weights of one slot iteration of a pruner, its parameters themselves."""
    return fold.step_weights(pruner.config, pruner.aggregat, pruner.initializ.mean)


def outputs(result: Any) -> tuple[Tensor, ...]:
    """An op's outputs as a tuple."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes that a call on the CPU holds at once of what torch's allocator gives it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    assert seen.profiler is not None
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(held, default=0)


class PruneCase:
    """A pruner and tokens for it, in float64, for ``ocvtp::prune``."""

    def __init__(
        self, config: PrunerConfig, batch: int, num_tokens: int, num_slots: int, seed: int = 0
    ) -> None:
        self.pruner = random_pruner(config, seed).double()
        shape = (batch, num_tokens + 1, config.enc_in_dim)
        self.reference_tokens = random_tokens(
            *shape, seed=seed, dtype=torch.float64, outliers=True
        )[:, 1:]
        self.final_tokens = random_tokens(batch, num_tokens + 1, 6, seed=seed + 1)[:, 1:]
        self.slots = self.pruner.sample_slots(batch, num_slots).detach()
        self.weights = self.pruner.packed()

    def arguments(
        self, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """The first four arguments of the op, in this dtype."""
        return (
            to_device(self.reference_tokens, device, dtype),
            to_device(self.final_tokens, device),
            [to_device(weight, device, dtype) for weight in self.weights],
            to_device(self.slots, device, dtype),
        )

    def oracle(self, importance: Tensor | None, budget: int, top_k: int) -> Tensor:
        """The reference's ids in float64."""
        return ops.prune.reference(
            self.reference_tokens,
            self.final_tokens,
            self.weights,
            self.slots,
            importance,
            budget,
            top_k,
        )[1]

    def assert_picks_make_the_ids(
        self, backend: str, dtype: torch.dtype, budget: int, top_k: int, device: str = "cpu"
    ) -> None:
        """``prune_picks``, then ``resolve_picks``, keeps what ``prune`` does."""
        reference_tokens, final_tokens, weights, slots = self.arguments(dtype, device)
        scores = random_tokens(*reference_tokens.shape[:2], seed=9).to(device)
        ops = torch.ops.ocvtp
        with use_backend(backend):
            topk_ids, max_logprob, token_score = ops.prune_picks(
                reference_tokens, weights, slots, top_k
            )
            for importance in (None, scores):
                padding = token_score if importance is None else importance
                ids = ops.resolve_picks(topk_ids, max_logprob, padding, budget)
                whole = ops.prune(
                    reference_tokens, final_tokens, weights, slots, importance, budget, top_k
                )
                assert torch.equal(ids, whole[1])

    def regret(self, ids: Tensor) -> Tensor:
        """By how much less than a slot's largest attention it finds among the kept: ``[B, K]``."""
        logits = attention_logits(self.reference_tokens, self.weights, self.slots)
        attention = logits.softmax(dim=1)
        among = ids.unsqueeze(1).expand(-1, attention.shape[1], -1)
        return 1 - attention.gather(-1, among).amax(-1) / attention.amax(-1)


def random_tokens(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, outliers: bool = False
) -> Tensor:
    """Normal tokens; with ``outliers`` a few channels are 80 times the rest, as in real ViTs."""
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if outliers:
        tokens[..., ::5] *= 80
    return tokens.to(dtype)


def assert_kept(ids: Tensor, budget: int, num_tokens: int) -> None:
    """Exactly ``budget`` distinct ascending ids of ``num_tokens`` in every row."""
    assert ids.dtype == torch.int64
    assert ids.shape[-1] == budget
    assert (ids[..., 1:] > ids[..., :-1]).all()
    if ids.numel():
        assert ids.min() >= 0 and ids.max() < num_tokens


def assert_within_budget(actual: Tensor, plain: Tensor, oracle: Tensor, factor: float = 2) -> None:
    """The kernel's error is at most ``factor`` times that of plain PyTorch at its dtype.

    ``oracle`` is float64; the floor is a rounding of the dtype at the oracle's scale.
    """
    scale = oracle.abs().max().item() if oracle.numel() else 0.0
    floor = torch.finfo(plain.dtype).eps * scale
    error = (actual.double() - oracle).abs()
    allowed = factor * (plain.double() - oracle).abs().max() if oracle.numel() else 0.0
    assert actual.dtype == plain.dtype
    assert error.numel() == 0 or error.max() <= allowed + floor
