"""``ocvtp::prune`` on a GPU at its real size: regret, batches, graphs, streams, memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import OCPruner, PrunerConfig, backends, ops, use_backend
from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.ops.prune.reference import attention_logits
from tests.cases import assert_kept, random_pruner, random_tokens, to_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])


@pytest.fixture(params=backends.GPU_KERNELS)
def either(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test runs on Triton's kernels, then on CUDA C++'s."""
    reason = backends.unsupported_reason("prune", request.param, "cuda")
    if reason is not None:
        pytest.skip(reason)
    with use_backend(request.param):
        yield


EITHER = pytest.mark.usefixtures("either")


@pytest.fixture(scope="module")
def pruner() -> OCPruner:
    return random_pruner(PrunerConfig()).double()


class Inputs:
    """Arguments of one call, at the published widths, in float64 on the CPU."""

    def __init__(self, pruner: OCPruner, batch: int, num_tokens: int, num_slots: int) -> None:
        shape = (batch, num_tokens + 1, 1024)
        self.reference_tokens = random_tokens(*shape, dtype=torch.float64, outliers=True)[:, 1:]
        self.final_tokens = random_tokens(batch, num_tokens + 1, 64, seed=1)[:, 1:]
        self.weights = pruner.packed()
        self.slots = pruner.sample_slots(1, num_slots).detach().expand(batch, -1, -1)
        self.importance = random_tokens(batch, num_tokens, seed=2)
        self.budget = min(num_slots, num_tokens)

    def on_gpu(self, dtype: torch.dtype) -> list[Any]:
        """As the op takes them."""
        return [
            to_device(self.reference_tokens, "cuda", dtype),
            to_device(self.final_tokens, "cuda", dtype),
            [weight.to(dtype).cuda() for weight in self.weights],
            to_device(self.slots, "cuda", dtype),
            self.importance.cuda(),
            self.budget,
        ]

    def image(self, index: int) -> Inputs:
        """One of its images alone."""
        alone = copy.copy(self)
        for name in ("reference_tokens", "final_tokens", "slots", "importance"):
            setattr(alone, name, getattr(self, name)[index : index + 1])
        return alone

    def allowed(self, arguments: list[Any], dtype: torch.dtype) -> float:
        """The most regret: none in float32, else twice that of plain PyTorch, or a hundredth."""
        if dtype == torch.float32:
            return 1e-6
        plain = ops.prune.reference(*arguments)[1].cpu()
        return max(1e-2, 2 * self.regret(plain).max().item())

    def regret(self, ids: Tensor) -> Tensor:
        """The share of each slot's largest attention that the kept tokens miss."""
        logits = attention_logits(self.reference_tokens, self.weights, self.slots)
        attention = logits.softmax(dim=1)
        kept = attention.gather(-1, ids.unsqueeze(1).expand(-1, attention.shape[1], -1))
        return 1 - kept.amax(-1) / attention.amax(-1)


def prune(arguments: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.ops.ocvtp.prune(*arguments)  # type: ignore[no-any-return]


@EITHER
@DTYPES
@pytest.mark.parametrize(("num_tokens", "num_slots"), [(576, 64), (577, 100), (2880, 160)])
def test_no_slot_misses_its_token(
    pruner: OCPruner, num_tokens: int, num_slots: int, dtype: torch.dtype
) -> None:
    inputs = Inputs(pruner, 2, num_tokens, num_slots)
    arguments = inputs.on_gpu(dtype)
    tokens, ids = prune(arguments)
    assert_kept(ids.cpu(), inputs.budget, num_tokens)
    assert torch.equal(tokens, gather_tokens(arguments[1], ids))
    assert inputs.regret(ids.cpu()).max() <= inputs.allowed(arguments, dtype)


@EITHER
@DTYPES
@pytest.mark.parametrize("num_slots", [64, 160])
def test_ids_are_batch_invariant(pruner: OCPruner, num_slots: int, dtype: torch.dtype) -> None:
    batch = 64
    inputs = Inputs(pruner, batch, 576, num_slots)
    arguments = inputs.on_gpu(dtype)
    together = prune(arguments)[1]
    for image in (0, batch - 1):
        one = [a[image : image + 1] if isinstance(a, Tensor) else a for a in arguments]
        alone = prune(one)[1]
        if backends.override() == "triton":
            assert torch.equal(alone, together[image : image + 1])
        else:
            # A BLAS sums a matrix of other height in another order.
            regret = inputs.image(image).regret(alone.cpu())
            assert regret.max() <= inputs.image(image).allowed(one, dtype)


@DTYPES
@pytest.mark.parametrize(("num_tokens", "num_slots"), [(576, 64), (577, 100), (2880, 160)])
def test_the_cuda_kernels_are_batch_invariant(
    num_tokens: int, num_slots: int, dtype: torch.dtype
) -> None:
    reason = backends.unsupported_reason("prune", "cuda", "cuda")
    if reason is not None:
        pytest.skip(reason)
    batch, dim = 64, 512
    q = to_device(random_tokens(batch, num_slots, dim), "cuda", dtype)
    x = to_device(random_tokens(batch, num_tokens, dim, seed=1), "cuda", dtype)
    constant = random_tokens(batch, num_slots, seed=2).cuda()

    def outputs(images: slice) -> list[Tensor]:
        native = torch.ops.ocvtp_native
        own, tokens, added = q[images], x[images], constant[images]
        return [
            *native.slot_attention(own, tokens, tokens, added, None, dim**-0.5, 1e-5, True),
            *native.slot_argmax(own, tokens, added, dim**-0.5, 1, True),
            native.layer_norm(tokens, 1e-5),
        ]

    together = outputs(slice(None))
    for image in (0, batch - 1):
        one = slice(image, image + 1)
        for alone, expected in zip(outputs(one), together, strict=True):
            assert torch.equal(alone, expected[one])


@EITHER
@DTYPES
def test_a_captured_call_replays_on_other_images(pruner: OCPruner, dtype: torch.dtype) -> None:
    arguments = Inputs(pruner, 2, 576, 64).on_gpu(dtype)
    for _ in range(2):
        prune(arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens, ids = prune(arguments)
    arguments[0].copy_(arguments[0].flip(0).clone())
    arguments[1].copy_(arguments[1].flip(0).clone())
    tokens.fill_(float("nan"))
    ids.fill_(-1)
    graph.replay()
    expected = prune(arguments)
    assert torch.equal(tokens, expected[0]) and torch.equal(ids, expected[1])


@EITHER
def test_two_streams_do_not_share_a_workspace(pruner: OCPruner) -> None:
    first, second = (Inputs(pruner, 1, 576, 64).on_gpu(torch.bfloat16) for _ in range(2))
    second[0] = second[0].flip(1).contiguous()
    expected = [prune(arguments)[1] for arguments in (first, second)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    for _ in range(20):
        found = []
        for stream, arguments in zip(streams, (first, second), strict=True):
            with torch.cuda.stream(stream):
                found.append(prune(arguments)[1])
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_peak_memory_excludes_the_attention(pruner: OCPruner) -> None:
    arguments = Inputs(pruner, 1, 2880, 640).on_gpu(torch.bfloat16)
    prune(arguments)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    prune(arguments)
    torch.cuda.synchronize()
    scratch = torch.cuda.max_memory_allocated() - before
    # Encoded tokens, partial sums and slots between two steps, but no matrix of slots by tokens
    # besides, not in half precision either.
    encoded = 2880 * (2048 + 512) * 2
    partial = 9 * 640 * 512 * 4
    slots = 640 * (512 * (2 + 2 + 4 + 4) + 2048 * 2)
    assert scratch < encoded + partial + slots + 640 * 2880 * 2


@EITHER
@DTYPES
@pytest.mark.parametrize("top_k", [1, 2])
def test_picks_are_what_prune_resolves(pruner: OCPruner, dtype: torch.dtype, top_k: int) -> None:
    reference_tokens, final_tokens, weights, slots, importance, budget = Inputs(
        pruner, 2, 577, 64
    ).on_gpu(dtype)
    ops = torch.ops.ocvtp
    topk_ids, max_logprob, token_score = ops.prune_picks(reference_tokens, weights, slots, top_k)
    for scores in (None, importance):
        padding = token_score if scores is None else scores
        ids = ops.resolve_picks(topk_ids, max_logprob, padding, budget)
        whole = ops.prune(reference_tokens, final_tokens, weights, slots, scores, budget, top_k)
        assert torch.equal(ids, whole[1])
