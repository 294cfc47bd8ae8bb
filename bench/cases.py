"""Every op as a case: random inputs, the op, its reference, and how outputs are checked."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.pruners import random_pruner
from bench.shapes import Workload
from bench.traffic import HEAD_DIM, HEADS
from ocvtp_kernels import OCPruner, PrunerConfig, ops
from ocvtp_kernels.ops.argmax_gather import gather_tokens, select_ids
from ocvtp_kernels.ops.prune.native.pipeline import prepare
from ocvtp_kernels.ops.slot_attention import reference as slots

Inputs = tuple[Tensor, ...]
Outputs = tuple[Tensor, ...]
Function = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """An op at a workload; functions take the inputs one by one, in any floating dtype."""

    op: str
    workload: Workload
    device: torch.device
    draw: Callable[[torch.Generator], Inputs]
    call: Function  # ours
    reference: Function  # plain PyTorch, in the dtype of its inputs
    kind: str = "floats"  # what the outputs are: "floats", "argmax", "kept" or "exact"
    scores: Function | None = None  # log-attention [B, K, N], where ids are picked by it
    wrt: tuple[int, ...] = ()  # the inputs that have a gradient
    carries: tuple[int, ...] = (0,)  # the outputs that carry it
    pruner: OCPruner | None = None  # the plain module, of `prune`

    def inputs(self, seed: int) -> Inputs:
        """Fresh random inputs, on the device."""
        return self.draw(torch.Generator(self.device).manual_seed(seed))


def outputs_of(result: Any) -> Outputs:
    """What a call returned, as a tuple."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _draw(load: Workload, *shapes: tuple[int, ...], dtype: torch.dtype | None = None) -> Any:
    """Draws normal tensors; weights ``[out, in]`` so that products keep their scale."""

    def draw(generator: torch.Generator) -> Inputs:
        drawn = []
        for shape in shapes:
            values = torch.randn(shape, generator=generator, device=generator.device)
            if len(shape) == 2:
                values *= shape[1] ** -0.5
            drawn.append(values.to(dtype or load.torch_dtype))
        return tuple(drawn)

    return draw


def _sizes(load: Workload) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The shapes of slots and of encoded tokens."""
    return (load.batch, load.num_slots, load.slot_dim), (load.batch, load.num_tokens, load.slot_dim)


def _with_importance(draw: Any, load: Workload) -> Any:
    # float32, as `attention_received` returns it; half precision would tie.
    scores = _draw(load, (load.batch, 1, load.num_tokens), dtype=torch.float32)
    return lambda generator: (*draw(generator), scores(generator)[0].squeeze(1))


def _ops(name: str) -> Any:
    return getattr(torch.ops.ocvtp, name)


def _log_attention(q: Tensor, k: Tensor, *_: Tensor) -> Tensor:
    return slots.log_attention(slots.slot_logits(q, k, None))


def slot_attention(load: Workload, device: torch.device, name: str = "slot_attention") -> Case:
    q, x = _sizes(load)
    scale = load.slot_dim**-0.5
    width = 3 if name.endswith("with_attention") else 2
    return Case(
        name,
        load,
        device,
        _draw(load, q, x, x),
        lambda q, k, v: _ops(name)(q, k, v, scale),
        lambda q, k, v: ops.slot_attention_with_attention.reference(q, k, v, scale)[:width],
        wrt=(0, 1, 2),
        carries=tuple(range(width)),
    )


def gru_cell(load: Workload, device: torch.device) -> Case:
    q, _ = _sizes(load)
    gates = 3 * load.slot_dim
    weights = ((gates, load.slot_dim),) * 2 + ((gates,),) * 2
    return Case(
        "gru_cell",
        load,
        device,
        _draw(load, q, q, *weights),
        _ops("gru_cell"),
        ops.gru_cell.reference,
        wrt=tuple(range(6)),
    )


def slot_attention_step(load: Workload, device: torch.device) -> Case:
    q, x = _sizes(load)
    d, h, gates = load.slot_dim, load.hidden_dim, 3 * load.slot_dim
    weights: list[tuple[int, ...]] = [(d,), (d,), (d, d), (gates, d), (gates, d), (gates,)]
    weights += [(gates,), (d,), (d,), (h, d), (h,), (d, h), (d,)]
    scale = d**-0.5
    return Case(
        "slot_attention_step",
        load,
        device,
        _draw(load, q, x, x, *weights),
        lambda q, k, v, *weights: _ops("slot_attention_step")(q, k, v, list(weights), scale),
        lambda q, k, v, *weights: slots.slot_attention_step(q, k, v, weights, scale)[0],
        wrt=tuple(range(3 + len(weights))),
    )


def slot_argmax(load: Workload, device: torch.device) -> Case:
    return Case(
        "slot_argmax",
        load,
        device,
        _draw(load, *_sizes(load)),
        _ops("slot_argmax"),
        ops.slot_argmax.reference,
        kind="argmax",
        scores=_log_attention,
    )


def resolve_picks(load: Workload, device: torch.device) -> Case:
    peaks = _with_importance(_draw(load, (load.batch, 1, load.num_slots)), load)

    def draw(generator: torch.Generator) -> Inputs:
        size = (load.batch, load.num_slots)
        picks = torch.randint(load.num_tokens, size, generator=generator, device=device)
        peak, scores = peaks(generator)
        return picks, peak.squeeze(1), scores

    return Case(
        "resolve_picks",
        load,
        device,
        draw,
        lambda picks, peak, scores: _ops("resolve_picks")(picks, peak, scores, load.budget),
        lambda picks, peak, scores: ops.resolve_picks.reference(picks, peak, scores, load.budget),
        kind="exact",
    )


def argmax_gather(load: Workload, device: torch.device) -> Case:
    q, x = _sizes(load)
    tokens = (load.batch, load.num_tokens, load.in_dim)
    return Case(
        "argmax_gather",
        load,
        device,
        _with_importance(_draw(load, q, x, tokens), load),
        lambda q, k, tokens, scores: _ops("argmax_gather")(q, k, tokens, scores, load.budget),
        lambda q, k, tokens, scores: ops.argmax_gather.reference(q, k, tokens, scores, load.budget),
        kind="kept",
        scores=_log_attention,
        wrt=(2,),
    )


def merge(load: Workload, device: torch.device) -> Case:
    q, x = _sizes(load)
    tokens = (load.batch, load.num_tokens, load.in_dim)
    return Case(
        "merge",
        load,
        device,
        _draw(load, q, x, tokens),
        _ops("merge"),
        ops.merge.reference,
        wrt=(2,),
    )


def attention_received(load: Workload, device: torch.device) -> Case:
    heads = (load.batch, HEADS, load.num_tokens, HEAD_DIM)
    return Case(
        "attention_received",
        load,
        device,
        _draw(load, heads, heads),
        lambda q, k: _ops("attention_received")(q, k, "meanq"),
        lambda q, k: ops.attention_received.reference(q, k, "meanq"),
    )


def prune(load: Workload, device: torch.device) -> Case:
    """`prune`; the inputs are reference and final tokens, initial slots and importance."""
    config = PrunerConfig(
        enc_in_dim=load.in_dim,
        enc_dims=(load.hidden_dim, load.slot_dim),
        init_num=load.num_slots,
        init_dim=load.slot_dim,
        agg_embed_dim=load.slot_dim,
        agg_ffn_dim=load.hidden_dim,
    )
    plain = random_pruner(config, dtype=load.torch_dtype).to(device).requires_grad_(False)
    weights = prepare(plain.packed())  # as a frozen pruner passes them
    modules = {load.torch_dtype: plain, torch.float64: copy.deepcopy(plain).double()}

    def scores(tokens: Tensor, _final: Tensor, slots_init: Tensor, _: Tensor) -> Tensor:
        module = modules[tokens.dtype]
        encoded = module.encode_project(tokens)
        return slots.log_attention(module.aggregat(encoded, slots_init)[1])

    def reference_prune(*inputs: Tensor) -> Outputs:
        ids = select_ids(scores(*inputs), inputs[3], load.budget)
        return gather_tokens(inputs[1], ids), ids

    q, _ = _sizes(load)
    tokens = (load.batch, load.num_tokens, load.in_dim)
    return Case(
        "prune",
        load,
        device,
        _with_importance(_draw(load, tokens, tokens, q), load),
        lambda reference_tokens, final_tokens, slots_init, importance: _ops("prune")(
            reference_tokens, final_tokens, weights, slots_init, importance, load.budget
        ),
        reference_prune,
        kind="kept",
        scores=scores,
        wrt=(1,),
        pruner=plain,
    )


CASES: dict[str, Callable[[Workload, torch.device], Case]] = {
    "prune": prune,
    "slot_attention": slot_attention,
    "slot_attention_with_attention": partial(slot_attention, name="slot_attention_with_attention"),
    "gru_cell": gru_cell,
    "slot_attention_step": slot_attention_step,
    "slot_argmax": slot_argmax,
    "resolve_picks": resolve_picks,
    "argmax_gather": argmax_gather,
    "merge": merge,
    "attention_received": attention_received,
}
# Every other op has a gradient.
FORWARD_ONLY = ("slot_argmax", "resolve_picks", "attention_received")
