"""Ways to use the ops, each beside its reference used alike; see `bench.settings`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.cases import Outputs, outputs_of
from bench.gate import FACTOR, CheckResult
from bench.pruners import random_pruner
from bench.settings_prune import HALF, Pair
from bench.timing import Call, tensors_of
from ocvtp_kernels import PrunerConfig, ops, prepare
from ocvtp_kernels.ops.slot_argmax import slot_topk
from ocvtp_kernels.ops.slot_attention import reference as slots
from ocvtp_kernels.training.autoencoder import OCAutoencoder

OPS = torch.ops.ocvtp
TINY = PrunerConfig(
    enc_in_dim=64, enc_dims=(64, 32), init_num=4, init_dim=32, agg_embed_dim=32, agg_ffn_dim=64
)


def floats(ours: Callable[[], Outputs], plain: Callable[[], Outputs], exact: Call) -> Pair:
    """A pair with float outputs, checked against the error budget."""

    def check() -> CheckResult:
        for got, near, truth in zip(ours(), plain(), tensors_of(exact()), strict=True):
            scale = truth.abs().max().item()
            error, allowed = ((value.double() - truth).abs().max().item() for value in (got, near))
            if error > FACTOR * allowed + torch.finfo(near.dtype).eps * scale:
                return CheckResult(False, f"error {error:.3g}, plain PyTorch's {allowed:.3g}")
        return CheckResult(True, "within the error budget")

    return Pair(ours, plain, check)


def slot_attention_inputs(batch: int, dtype: torch.dtype) -> list[Tensor]:
    shapes = [(batch, 64, 512), (batch, 576, 512), (batch, 576, 512)]
    return [draw(*shape, seed=i).to(dtype).requires_grad_() for i, shape in enumerate(shapes)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slot_attention(backward: bool) -> Pair:
    """`slot_attention` in bfloat16, 12 images."""
    inputs, scale, grad = slot_attention_inputs(12, HALF), 512**-0.5, draw(12, 64, 512, seed=9)

    def bound(op: Callable[..., Any], given: Sequence[Tensor]) -> Callable[[], Outputs]:
        if not backward:
            return torch.no_grad()(lambda: tuple(op(*given, scale)[:2]))
        updates = op(*given, scale)[0]
        asked = grad.to(updates.dtype)
        return lambda: torch.autograd.grad(updates, given, asked, retain_graph=True)

    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    return floats(
        bound(OPS.slot_attention, inputs),
        bound(ops.slot_attention_with_attention.reference, inputs),
        bound(ops.slot_attention_with_attention.reference, wide),
    )


def iteration(dtype: torch.dtype, is_autocast: bool) -> Pair:
    """`slot_attention_step` and its gradients, 12 images."""
    inputs, scale, grad = slot_attention_inputs(12, dtype), 512**-0.5, draw(12, 64, 512, seed=9)
    pruner = random_pruner(PrunerConfig(), dtype=dtype)
    weights = [w.detach().requires_grad_() for w in pruner.aggregat.step_weights()]

    def plain(q: Tensor, k: Tensor, v: Tensor, w: Sequence[Tensor], scale: float) -> Tensor:
        return slots.slot_attention_step(q, k, v, w, scale)[0]

    def bound(op: Callable[..., Tensor], exact: bool = False) -> Callable[[], Outputs]:
        change = (lambda t: t.detach().double().requires_grad_()) if exact else (lambda t: t)
        qkv, ws = [change(t) for t in inputs], [change(t) for t in weights]

        def run() -> Outputs:
            with torch.autocast("cpu", dtype=HALF, enabled=is_autocast and not exact):
                out = op(*qkv, ws, scale)
            return torch.autograd.grad(out, [*qkv, *ws], grad.to(out.dtype))

        return run

    return floats(bound(OPS.slot_attention_step), bound(plain), bound(plain, exact=True))


def training(dtype: torch.dtype, is_autocast: bool) -> Pair:
    """Forward and backward of the autoencoder, 4 images; plain: without the fused ops."""
    model = OCAutoencoder(PrunerConfig(agg_dropout=0.0, enc_dropout=0.0), dtype=dtype).eval()
    plain_slots = model.aggregat.forward
    tokens = draw(4, 576, 1024).to(dtype)
    draws = model.draw(4, 64, torch.Generator().manual_seed(0))

    def step(is_plain: bool, to: torch.dtype = dtype) -> Outputs:
        def aggregate(encoded: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
            found, logits = plain_slots(encoded, first)
            return found, logits.softmax(dim=1)

        patch = mock.patch.object(model.aggregat, "aggregate", aggregate)
        with (
            patch if is_plain else contextlib.nullcontext(),
            torch.autocast("cpu", dtype=HALF, enabled=is_autocast and to == dtype),
        ):
            out = model(tokens.to(to), noise=draws.noise.to(to), visible=draws.visible)
        loss = (out.reconstruction.to(to) - tokens.to(to)).square().mean()
        return (loss, *torch.autograd.grad(loss, list(model.aggregat.parameters())))

    def exact() -> Outputs:
        model.double()
        try:
            return step(True, torch.float64)
        finally:
            model.to(dtype)

    return floats(lambda: step(False), lambda: step(True), exact)


def received(mode: str, dtype: torch.dtype, heads: int, num_tokens: int, width: int) -> Pair:
    """`attention_received` of one image."""
    q, k = (draw(1, heads, num_tokens, width, seed=i).to(dtype) for i in range(2))
    reference = ops.attention_received.reference
    return floats(
        lambda: (OPS.attention_received(q, k, mode),),
        lambda: (reference(q, k, mode),),
        lambda: (reference(q.double(), k.double(), mode),),
    )


def small(op: str, plain: Callable[..., Any], *inputs: Any) -> Pair:
    """A float op at a size where host overhead dominates."""
    wide = [x.double() if isinstance(x, Tensor) else x for x in inputs]
    ours = getattr(OPS, op)
    count = len(tensors_of(ours(*inputs)))
    return floats(
        torch.no_grad()(lambda: tuple(tensors_of(ours(*inputs)))),
        torch.no_grad()(lambda: tuple(tensors_of(plain(*inputs))[:count])),
        lambda: tuple(tensors_of(plain(*wide))[:count]),
    )


def small_picks() -> Pair:
    """`prune_picks` of a prepared list beside the plain module's half."""
    pruner = random_pruner(TINY).requires_grad_(False)
    tokens, weights = draw(1, 16, 64), prepare(pruner.packed())
    slots_init = pruner.sample_slots(1, 4).contiguous()

    @torch.no_grad()
    def ours() -> Outputs:
        return outputs_of(OPS.prune_picks(tokens, weights, slots_init))

    @torch.no_grad()
    def plain() -> Outputs:
        _, logits = pruner.aggregat(pruner.encode_project(tokens), slots_init)
        scores = slots.log_attention(logits)
        return *slot_topk(scores, 1), scores.amax(dim=1)

    def check() -> CheckResult:
        return CheckResult(torch.equal(ours()[0], plain()[0]), "ids exact")

    return Pair(ours, plain, check)
