"""Ways to use `prune`, each beside the plain module used alike; see `bench.settings`."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from bench.cases import Outputs, outputs_of
from bench.gate import FACTOR, REGRET, CheckResult
from bench.pruners import random_pruner
from bench.timing import Call
from ocvtp_kernels import OCPruner, PrunerConfig, native, prepare
from ocvtp_kernels.selectors.interface import SelectorInputs
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector

HALF = torch.bfloat16


class Pair(NamedTuple):
    """Ours and plain PyTorch, used alike."""

    ours: Call
    plain: Call
    check: Callable[[], CheckResult]


def pruning(
    ours: Callable[..., Outputs],
    dtype: torch.dtype,
    *,
    sizes: tuple[int, int, int],
    config: PrunerConfig | None = None,
    mode: Callable[[], contextlib.AbstractContextManager[Any]] = torch.no_grad,
) -> Pair:
    """`prune` as ``ours`` does it, called with a pruner that is not frozen, tokens and importance.

    Kept tokens hold as much of each slot's largest attention as the plain module's do.
    """
    batch, num_tokens, num_slots = sizes
    config = PrunerConfig() if config is None else config
    pruner = random_pruner(config, dtype=dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(batch, num_tokens, config.enc_in_dim, generator=generator).to(dtype)
    scores = torch.rand(batch, num_tokens, generator=generator)
    budget = min(num_slots, num_tokens)
    call = ours(pruner)

    def within(function: Callable[..., Any]) -> Call:
        def run() -> Any:
            with mode():
                return function(tokens, tokens, budget, scores, num_slots=num_slots)

        return run

    def check() -> CheckResult:
        slots_init = pruner.sample_slots(batch, num_slots).double()
        _, attention = copy.deepcopy(pruner).double().attend(tokens.double(), slots_init)
        regrets = []
        for run in (within(call), within(pruner)):
            ids = run()[1]
            if ids.shape != (batch, budget) or bool((ids.diff(dim=1) <= 0).any()):
                return CheckResult(False, f"expected {budget} distinct ascending ids")
            among = attention.gather(2, ids.unsqueeze(1).expand(-1, num_slots, -1)).amax(dim=2)
            regrets.append((1 - among / attention.amax(dim=2)).max().item())
        passed = regrets[0] <= max(REGRET, FACTOR * regrets[1]) or budget < num_slots
        return CheckResult(passed, f"regret {regrets[0]:.2g}, the plain module's {regrets[1]:.2g}")

    return Pair(within(call), within(pruner), check)


def frozen(pruner: OCPruner) -> OCPruner:
    return copy.deepcopy(pruner).freeze()


def frozen_in_inference_mode(pruner: OCPruner) -> OCPruner:
    with torch.inference_mode():
        return copy.deepcopy(pruner).freeze()


def loaded_in_inference_mode(pruner: OCPruner) -> OCPruner:
    other = frozen(pruner)
    with torch.inference_mode():
        other.load_state_dict(pruner.state_dict())
    return other


def moved_in_inference_mode(pruner: OCPruner) -> OCPruner:
    other = frozen(pruner).double()
    with torch.inference_mode():
        return other.to(pruner.initializ.mean.dtype)


def without_native_kernels(pruner: OCPruner) -> Callable[..., Any]:
    plain = frozen(pruner)

    def run(*args: Any, **options: Any) -> Any:
        with (
            mock.patch.object(native, "missing_reason", lambda device: "left out"),
            mock.patch.object(native, "_warn_once", lambda: None),
        ):
            return plain(*args, **options)

    return run


def attached(pruner: OCPruner) -> Callable[..., Any]:
    selector = PrunerSelector(pruner)

    def run(tokens: Tensor, final: Tensor, budget: int, scores: Tensor, num_slots: int) -> Outputs:
        kept = selector(SelectorInputs(tokens, final, importance=scores), budget)
        return kept.gather(final), kept.ids

    return run


def of_weights(weights: Callable[[], Sequence[Tensor]], pruner: OCPruner) -> Callable[..., Any]:
    def run(tokens: Tensor, final: Tensor, budget: int, scores: Tensor, num_slots: int) -> Outputs:
        slots_init = pruner.sample_slots(len(tokens), num_slots)
        return outputs_of(
            torch.ops.ocvtp.prune(tokens, final, list(weights()), slots_init, scores, budget)
        )

    return run


def of_views(pruner: OCPruner) -> Callable[..., Any]:
    held = prepare(pruner.packed())
    return of_weights(lambda: [weight.view_as(weight) for weight in held], pruner)


def of_packed(pruner: OCPruner) -> Callable[..., Any]:
    return of_weights(pruner.packed, pruner)


def autocast() -> contextlib.AbstractContextManager[Any]:
    stack = contextlib.ExitStack()
    stack.enter_context(torch.no_grad())
    stack.enter_context(torch.autocast("cpu", dtype=HALF))
    return stack
