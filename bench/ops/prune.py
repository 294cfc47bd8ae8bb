"""`prune` beside the plain pruner, and its half `prune_picks` beside its reference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bench.cases import (
    Case,
    Function,
    Inputs,
    MakeCase,
    OpBench,
    Outputs,
    empty,
    empty_scores,
    importance,
    joined,
    normal,
)
from bench.ops.argmax_gather import scatter_work
from bench.pruners import random_pruner
from bench.workloads import Workload
from ocvtp_kernels import OCPruner, PrunerConfig, ops
from ocvtp_kernels.cost.work import FLOAT32, INT64, PruneCall, Work
from ocvtp_kernels.ops.argmax_gather import gather_tokens, select_ids
from ocvtp_kernels.ops.prune import reference
from ocvtp_kernels.ops.prune.native.pipeline import prepare
from ocvtp_kernels.ops.slot_attention.reference import log_attention
from ocvtp_kernels.selectors.interface import SelectorInputs
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector


def config_of(load: Workload) -> PrunerConfig:
    """The pruner's widths."""
    return PrunerConfig(
        enc_in_dim=load.in_dim,
        enc_dims=(load.hidden_dim, load.slot_dim),
        init_num=load.num_slots,
        init_dim=load.slot_dim,
        agg_embed_dim=load.slot_dim,
        agg_ffn_dim=load.hidden_dim,
    )


def pruner_of(load: Workload, device: torch.device) -> OCPruner:
    """A pruner of the workload's sizes, its weights random."""
    pruner = random_pruner(config_of(load), dtype=load.torch_dtype)
    return pruner.to(device).requires_grad_(False)


def case(load: Workload, device: torch.device) -> Case:
    """The inputs are reference and final tokens, initial slots and importance."""
    plain = pruner_of(load, device)
    weights = prepare(plain.packed())  # as a frozen pruner passes them
    modules = {load.torch_dtype: plain, torch.float64: copy.deepcopy(plain).double()}

    def scores(tokens: Tensor, _final: Tensor, slots_init: Tensor, _: Tensor) -> Tensor:
        module = modules[tokens.dtype]
        encoded = module.encode_project(tokens)
        return log_attention(module.aggregat(encoded, slots_init)[1])

    def reference_prune(*inputs: Tensor) -> Outputs:
        ids = select_ids(scores(*inputs), inputs[3], load.budget)
        return gather_tokens(inputs[1], ids), ids

    return Case(
        "prune",
        load,
        device,
        joined(normal(load, load.tokens, load.tokens, load.slots), importance(load)),
        lambda reference_tokens, final_tokens, slots_init, importance: ops.prune(
            reference_tokens, final_tokens, weights, slots_init, importance, load.budget
        ),
        reference_prune,
        kind="kept",
        scores=scores,
        wrt=(1,),
        pruner=plain,
    )


def called(make: Callable[[OCPruner], Function]) -> MakeCase:
    """The case with another way to call ours, made of the plain pruner."""

    def make_case(load: Workload, device: torch.device) -> Case:
        usual = case(load, device)
        assert usual.pruner is not None
        call = make(usual.pruner)

        def prune(
            reference_tokens: Tensor, final_tokens: Tensor, slots_init: Tensor, scores: Tensor
        ) -> Any:
            return call(reference_tokens, final_tokens, load.budget, scores, slots_init)

        return replace(usual, call=prune)

    return make_case


def attached_case(load: Workload, device: torch.device) -> Case:
    """A pruner that nobody froze, as `attach` takes it: it draws its initial slots itself."""
    usual = case(load, device)
    assert usual.pruner is not None
    selector = PrunerSelector(usual.pruner)
    own = usual.pruner.sample_slots(load.batch, load.num_slots)

    def draw(generator: torch.Generator) -> Inputs:
        reference_tokens, final_tokens, _, scores = usual.draw(generator)
        return reference_tokens, final_tokens, own.clone(), scores

    def call(reference_tokens: Tensor, final_tokens: Tensor, _: Tensor, scores: Tensor) -> Outputs:
        inputs = SelectorInputs(reference_tokens, final_tokens, importance=scores)
        kept = selector(inputs, load.budget)
        return kept.gather(final_tokens), kept.ids

    return replace(usual, draw=draw, call=call)


def frozen_in_inference_mode(pruner: OCPruner) -> OCPruner:
    with torch.inference_mode():
        return copy.deepcopy(pruner).freeze()


def loaded_in_inference_mode(pruner: OCPruner) -> OCPruner:
    other = copy.deepcopy(pruner).freeze()
    with torch.inference_mode():
        other.load_state_dict(pruner.state_dict())
    return other


def moved_in_inference_mode(pruner: OCPruner) -> OCPruner:
    other = copy.deepcopy(pruner).freeze().double()
    with torch.inference_mode():
        return other.to(pruner.initializ.mean.dtype)


def of_views(pruner: OCPruner) -> Function:
    held = prepare(pruner.packed())
    return of_weights(lambda: [weight.view_as(weight) for weight in held])


def of_packed(pruner: OCPruner) -> Function:
    return of_weights(pruner.packed)


def of_weights(weights: Callable[[], Sequence[Tensor]]) -> Function:
    def run(
        reference_tokens: Tensor, final_tokens: Tensor, budget: int, scores: Tensor, slots: Tensor
    ) -> Any:
        return ops.prune(reference_tokens, final_tokens, list(weights()), slots, scores, budget)

    return run


WAYS = {
    "attached": attached_case,
    "frozen_in_inference_mode": called(frozen_in_inference_mode),
    "loaded_in_inference_mode": called(loaded_in_inference_mode),
    "moved_in_inference_mode": called(moved_in_inference_mode),
    "views": called(of_views),
    "packed": called(of_packed),
}


def picks_case(load: Workload, device: torch.device) -> Case:
    """The inputs are reference tokens and initial slots; the ids are ``[B, K]``."""
    packed = pruner_of(load, device).packed()
    weights = prepare(packed)
    folded: dict[torch.dtype, Sequence[Tensor]] = {
        load.torch_dtype: packed,
        torch.float64: [weight.double() for weight in packed],
    }

    def one_each(topk_ids: Tensor, max_logprob: Tensor, token_score: Tensor) -> Outputs:
        return topk_ids.squeeze(-1), max_logprob, token_score

    return Case(
        "prune_picks",
        load,
        device,
        normal(load, load.tokens, load.slots),
        lambda tokens, slots: one_each(*ops.prune_picks(tokens, weights, slots)),
        lambda tokens, slots: one_each(
            *ops.prune_picks.reference(tokens, folded[tokens.dtype], slots)
        ),
        kind="argmax",
        scores=lambda tokens, slots: reference.log_attention_of(
            tokens, folded[tokens.dtype], slots
        ),
    )


def call_of(load: Workload, budget: int) -> PruneCall:
    """The call that the formulas take."""
    sizes = (load.batch, load.num_tokens, load.num_slots, budget)
    return PruneCall(config_of(load), *sizes, load.in_dim, load.torch_dtype.itemsize)


def steps(load: Workload) -> dict[str, Work]:
    """The least that each step of `prune` costs."""
    return call_of(load, load.budget).steps()


def work(load: Workload) -> Work:
    return call_of(load, load.budget).work()


def picks_work(load: Workload) -> Work:
    """A prune that keeps nothing; the scores it writes are as large as importance."""
    written = load.batch * load.num_slots * (INT64 + FLOAT32)
    return call_of(load, 0).work() + Work(0, written)


@cache
def published_weights(dtype: torch.dtype) -> list[Tensor]:
    """The published pruner's packed weights, without memory."""
    with torch.device("meta"):
        return [weight.to(dtype) for weight in OCPruner(PrunerConfig()).packed()]


def launches(load: Workload) -> None:
    from ocvtp_kernels.ops.prune.triton import pipeline

    pipeline.prune(
        empty(load, *load.tokens),
        empty(load, *load.tokens),
        published_weights(load.torch_dtype),
        empty(load, *load.slots),
        empty_scores(load),
        load.budget,
    )


def picks_launches(load: Workload) -> None:
    from ocvtp_kernels.ops.prune.triton import pipeline

    weights = published_weights(load.torch_dtype)
    pipeline.prune_picks(empty(load, *load.tokens), weights, empty(load, *load.slots))


BENCHES = {
    "prune": OpBench(case, work, scatter_work, (launches,), WAYS),
    "prune_picks": OpBench(picks_case, picks_work, launchers=(picks_launches,)),
}
