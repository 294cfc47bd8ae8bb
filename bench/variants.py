"""The variants that are timed: ours and the baselines, or the reason why one is skipped."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from bench.cases import Case, Function, Inputs, Outputs, outputs_of
from bench.modes import mode_of
from bench.published import published_prune
from bench.results import OURS
from bench.workloads import Workload
from ocvtp_kernels import backends

BASELINES = ("eager", "published", "compile", "csrc", "flashslice", "colreduce")
# The published code takes one image at a time: above this a call takes seconds.
MAX_PUBLISHED_TOKENS = 64 * 576

Run = Callable[[], Outputs]


@dataclass(frozen=True)
class Variant:
    """A way to compute a case."""

    name: str
    function: Function
    capturable: bool = True
    slow: bool = False  # one call takes tens of milliseconds
    plain: bool = False  # plain PyTorch, whose half-precision error is the budget of the others
    rounds: bool = False  # float32 outputs are rounded to the workload's dtype first

    def bind(self, case: Case, direction: str, inputs: Inputs, grads: Inputs = ()) -> Run:
        """The call that is timed; for the backward pass the forward pass runs here, once."""
        if direction == "forward":
            context, device = mode_of(case.workload.mode).forward, case.device.type

            def forward() -> Outputs:
                with context(device):
                    return outputs_of(self.function(*inputs))

            return forward
        return bind_backward(case, self.function, inputs, grads)


def bind_backward(case: Case, function: Function, inputs: Inputs, grads: Inputs) -> Run:
    """The gradients of `Case.wrt`, given those of the outputs that `Case.carries` names."""
    leaves = [
        tensor.detach().requires_grad_() if i in case.wrt else tensor
        for i, tensor in enumerate(inputs)
    ]
    with mode_of(case.workload.mode).backward(case.device.type):
        outputs = outputs_of(function(*leaves))

    def backward() -> Outputs:
        return torch.autograd.grad(
            [outputs[i] for i in case.carries],
            [leaves[i] for i in case.wrt],
            list(grads),
            retain_graph=True,
        )

    return backward


def draw_grads(case: Case, inputs: Inputs, seed: int) -> Inputs:
    """Random gradients of the outputs that carry one."""
    generator = torch.Generator(case.device).manual_seed(seed)
    outputs = Variant("plain", case.reference).bind(case, "forward", inputs)()
    return tuple(
        torch.randn(outputs[i].shape, generator=generator, device=case.device).to(outputs[i].dtype)
        for i in case.carries
    )


@dataclass(frozen=True)
class Skipped:
    """A variant that is not timed here, and why."""

    name: str
    reason: str


def variants_of(
    case: Case, direction: str, baselines: Collection[str] = ()
) -> tuple[list[Variant], list[Skipped]]:
    """Ours and the baselines of these names; if none is named, all but torch.compile."""
    forward = direction == "forward"
    whole = case.pruner is not None and forward
    plain = _eager(case) if whole else case.reference
    made: dict[str, Callable[[], Variant | Skipped]] = {
        "eager": lambda: Variant(
            "eager", plain, case.capturable, case.slow and not whole, plain=True
        )
    }
    if whole:
        made |= {"published": lambda: _published(case), "compile": lambda: compile_variant(case)}
    if forward and case.device.type == "cuda":
        made["csrc"] = lambda: csrc_variant(case)
    if forward and case.op in THIRD_PARTY:
        name, third_party = THIRD_PARTY[case.op]
        made[name] = lambda: third_party(case.workload, case.device)
    chosen = baselines or [name for name in made if name != "compile"]
    variants = [make() for name, make in made.items() if name in chosen]
    variants.append(Variant(OURS, case.call, case.capturable))
    return (
        [one for one in variants if isinstance(one, Variant)],
        [one for one in variants if isinstance(one, Skipped)],
    )


def _eager(case: Case) -> Function:
    pruner, budget = case.pruner, case.workload.budget
    assert pruner is not None

    def eager(
        reference_tokens: Tensor, final_tokens: Tensor, slots_init: Tensor, scores: Tensor
    ) -> Outputs:
        return pruner(reference_tokens, final_tokens, budget, scores, slots_init)

    return eager


def compile_variant(case: Case) -> Variant | Skipped:
    """The plain module through ``torch.compile``, on CUDA inside its own CUDA graphs.

    The graphs copy their inputs, which is part of the time.
    """
    if case.device.type == "cpu" and shutil.which("g++") is None:
        return Skipped("compile", "torch.compile needs g++ on the CPU, and there is none")
    # Dynamo stops compiling a function after eight shapes, so its cache is cleared.
    torch.compiler.reset()
    mode = "reduce-overhead" if case.device.type == "cuda" else None
    compiled = torch.compile(_eager(case), mode=mode, dynamic=False)

    def run(*inputs: Tensor) -> Outputs:
        # Outputs stay in the graph's memory until the next step begins.
        torch.compiler.cudagraph_mark_step_begin()
        return outputs_of(compiled(*inputs))

    return Variant("compile", run, capturable=False, plain=True)


def _published(case: Case) -> Variant | Skipped:
    load = case.workload
    if load.batch * load.num_tokens > MAX_PUBLISHED_TOKENS:
        return Skipped("published", f"{load.batch} images one after the other take too long")
    assert case.pruner is not None
    pruner = copy.deepcopy(case.pruner).float()

    def run(
        reference_tokens: Tensor, final_tokens: Tensor, slots_init: Tensor, scores: Tensor
    ) -> Outputs:
        return published_prune(
            pruner, reference_tokens, final_tokens, slots_init, scores, load.budget
        )

    return Variant("published", run, capturable=False, slow=True)


def on_backend(case: Case, backend: str, name: str) -> Variant:
    """Our op, forced to one backend."""

    def run(*inputs: Tensor) -> Outputs:
        with backends.use_backend(backend):
            return outputs_of(case.call(*inputs))

    return Variant(name, run)


def csrc_variant(case: Case) -> Variant | Skipped:
    """The CUDA C++ kernels, where the op selects Triton's."""
    reason = backends.unsupported_reason(case.op, "cuda", str(case.device))
    if reason is None and backends.select_backend(case.op, str(case.device)) == "cuda":
        reason = "it is what the op chooses here"
    if reason is not None:
        return Skipped("csrc", f"{case.op}: {reason}")
    return on_backend(case, "cuda", "csrc")


def _kernels_of(name: str, module: str, device: torch.device) -> Any:
    """A third-party module of kernels, or `Skipped`."""
    if device.type != "cuda":
        return Skipped(name, f"{module} runs on CUDA devices only")
    try:
        return import_module(module)
    except ImportError as error:
        return Skipped(name, f"{module} is not installed ({error})")


def flashslice_variant(load: Workload, device: torch.device) -> Variant | Skipped:
    """FlashSlice's fused softmax over slots and weighted sum, divided by the mass."""
    kernels = _kernels_of("flashslice", "flashslice.kernels", device)
    if isinstance(kernels, Skipped):
        return kernels
    reason = kernels.unsupported_dims(load.slot_dim, load.num_slots)
    if reason is not None:
        return Skipped("flashslice", f"FlashSlice refuses: {reason}")
    temperature = torch.full((1,), load.slot_dim**0.5, device=device)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Outputs:
        total, mass = kernels.fused_slice(
            k.unsqueeze(2), v.unsqueeze(2), q.unsqueeze(1), None, temperature
        )
        total, mass = total.squeeze(1), mass.squeeze(1)
        return (total / (mass + 1e-5).unsqueeze(-1)).to(q.dtype), mass.to(q.dtype)

    return Variant("flashslice", run)


def colreduce_variant(_: Workload, device: torch.device) -> Variant | Skipped:
    """flash-colreduce's mean over queries, averaged over heads."""
    kernels = _kernels_of("colreduce", "flash_colreduce", device)
    if isinstance(kernels, Skipped):
        return kernels

    def run(q: Tensor, k: Tensor) -> Outputs:
        return (kernels.flash_colreduce(q, k, reduction="mean").mean(dim=1, dtype=torch.float32),)

    return Variant("colreduce", run, rounds=True)


def colreduce_rows_variant(load: Workload, device: torch.device) -> Variant | Skipped:
    """flash-colreduce's sum over the last rows behind a causal mask, averaged."""
    kernels = _kernels_of("colreduce", "flash_colreduce", device)
    if isinstance(kernels, Skipped):
        return kernels
    if "grouped" in load.mode:
        return Skipped("colreduce", "flash-colreduce takes as many heads of keys as of queries")

    def run(q: Tensor, k: Tensor) -> Outputs:
        sums = kernels.flash_colreduce(q, k, reduction="sum", is_causal=True)
        return (sums.mean(dim=1, dtype=torch.float32) / q.shape[2],)

    return Variant("colreduce", run, rounds=True)


# Third-party kernels, by the op that they compute.
THIRD_PARTY: dict[str, tuple[str, Callable[[Workload, torch.device], Variant | Skipped]]] = {
    "slot_attention": ("flashslice", flashslice_variant),
    "attention_received": ("colreduce", colreduce_variant),
    "attention_from_rows": ("colreduce", colreduce_rows_variant),
}
