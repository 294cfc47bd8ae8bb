"""What an op's file in `bench.ops` is made of: a case of the op, its work, its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bench.workloads import Workload
from ocvtp_kernels import OCPruner
from ocvtp_kernels.cost.work import Work
from ocvtp_kernels.ops.slot_attention import reference as slots
from ocvtp_kernels.selectors.similarity import cosine

Inputs = tuple[Tensor, ...]
Outputs = tuple[Tensor, ...]
Function = Callable[..., Any]
Draw = Callable[[torch.Generator], Inputs]
Launcher = Callable[[Workload], None]

COMMON = 1.75  # of what the tokens of an image share, beside 1 of what is a token's own
STEPS = 1024  # of similarity: sums of so coarse numbers are exact in float32


@dataclass(frozen=True)
class Case:
    """An op at a workload; functions take the inputs one by one, in any floating dtype."""

    op: str
    workload: Workload
    device: torch.device
    draw: Draw
    call: Function  # ours
    reference: Function  # plain PyTorch, in the dtype of its inputs
    kind: str = "floats"  # what the outputs are: "floats", "argmax", "kept" or "exact"
    scores: Function | None = None  # log-attention [B, K, N], where ids are picked by it
    wrt: tuple[int, ...] = ()  # the inputs that have a gradient
    carries: tuple[int, ...] = (0,)  # the outputs that carry it
    pruner: OCPruner | None = None  # the plain module, of `prune`
    slow: bool = False  # a call of the reference takes tens of milliseconds
    capturable: bool = True  # in a CUDA graph

    def inputs(self, seed: int) -> Inputs:
        """Fresh random inputs, on the device."""
        return self.draw(torch.Generator(self.device).manual_seed(seed))


MakeCase = Callable[[Workload, torch.device], Case]


@dataclass(frozen=True)
class OpBench:
    """How an op is measured.

    Attributes:
        case: the op at a workload, on a device.
        work: of the forward pass.
        backward_work: of the backward pass; None where the op has no gradient.
        launchers: each calls Triton's launchers with tensors without memory, for the compile
            report: the tiles that the workload selects, and every constant that changes the code.
        ways: other ways to call ours, by the name that a workload's mode has.
        max_tokens: of a batch; with more the reference would take seconds.
        usual_tokens: of an image, where nobody names a number; any number if None.
    """

    case: MakeCase
    work: Callable[[Workload], Work]
    backward_work: Callable[[Workload], Work] | None = None
    launchers: tuple[Launcher, ...] = ()
    ways: Mapping[str, MakeCase] = field(default_factory=dict)
    max_tokens: int | None = None
    usual_tokens: int | None = None

    def usual(self, load: Workload) -> Workload:
        """The workload with no more tokens than usual."""
        return replace(load, num_tokens=min(load.num_tokens, self.usual_tokens or load.num_tokens))

    def takes(self, load: Workload) -> bool:
        """Whether the op is timed at a workload."""
        return self.max_tokens is None or load.batch * load.num_tokens <= self.max_tokens


def outputs_of(result: Any) -> Outputs:
    """What a call returned, as a tuple."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def normal(load: Workload, *shapes: tuple[int, ...], dtype: torch.dtype | None = None) -> Draw:
    """Draws normal tensors; weights ``[out, in]`` so that products keep their scale.

    Args:
        load: whose dtype they have unless told.
    """

    def draw(generator: torch.Generator) -> Inputs:
        drawn = []
        for shape in shapes:
            values = torch.randn(shape, generator=generator, device=generator.device)
            if len(shape) == 2:
                values *= shape[1] ** -0.5
            drawn.append(values.to(dtype or load.torch_dtype))
        return tuple(drawn)

    return draw


def joined(*draws: Draw) -> Draw:
    """What each of these draws, one after the other."""
    return lambda generator: tuple(tensor for draw in draws for tensor in draw(generator))


def importance(load: Workload) -> Draw:
    """Draws a score a token ``[B, N]``, in float32, as `attention_received` returns it.

    In half precision scores would tie.
    """
    batch, num_tokens = load.scores
    draw = normal(load, (batch, 1, num_tokens), dtype=torch.float32)  # not drawn as a weight
    return lambda generator: (draw(generator)[0].squeeze(1),)


def similarity(load: Workload) -> Draw:
    """Draws the cosines of random tokens ``[B, N, N]``, float32, rounded to steps of 1/1024.

    No sum of them rounds, so that a selection by sums and comparisons has one right answer.
    """

    def draw(generator: torch.Generator) -> Inputs:
        options: dict[str, Any] = {"generator": generator, "device": generator.device}
        tokens = torch.randn(load.tokens, **options)
        tokens += COMMON * torch.randn(load.batch, 1, load.in_dim, **options)
        return (cosine(tokens).mul_(STEPS).round_().div_(STEPS),)

    return draw


def log_attention(q: Tensor, k: Tensor, *_: Tensor) -> Tensor:
    """What a slot's tokens are picked by, ``[B, K, N]``."""
    return slots.log_attention(slots.slot_logits(q, k, None))


def empty(load: Workload, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor without memory, in the workload's dtype unless told."""
    return torch.empty(shape, dtype=dtype or load.torch_dtype, device="meta")


def empty_scores(load: Workload) -> Tensor:
    """A score a token ``[B, N]`` without memory."""
    return empty(load, *load.scores, dtype=torch.float32)


def empty_matrix(load: Workload) -> Tensor:
    """Similarities or distances ``[B, N, N]`` without memory."""
    return empty(load, *load.matrix, dtype=torch.float32)
