"""The inputs of the selector benchmark: random images, and the selectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ops.prune import pruner_of
from bench.selectors import published
from bench.workloads import Workload
from ocvtp_kernels.selectors.interface import Selected, Selector, SelectorInputs
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from ocvtp_kernels.selectors.registry import METHODS, make_selector
from ocvtp_kernels.selectors.similarity import cosine
from ocvtp_kernels.selectors.vlm_pruner import EPS, VLMPruner, screen_channels

OC_PRUNER = "oc-pruner"
NAMES = (OC_PRUNER, *METHODS)
PUBLISHED = ("vlm-pruner", "divprune")
T = TypeVar("T", SelectorInputs, Selected)

OBJECTS = 6  # smooth features vary over a grid of so many cells a side
DETAIL = 0.5  # what a token differs by from its neighbours, beside 1 of what it shares with them
OUTLIERS, OUTLIER_SCALE = 4, 12.0  # channels far larger than the rest, as CLIP's are
SINKS, SINK_LOGIT = 8, 4.0  # tokens that draw attention from everywhere
TEXT_PIVOTS = 4  # DART's, as published


@dataclass(frozen=True)
class Job:
    """Images of ``side * side`` tokens; sizes are CLIP-L's at 336 pixels."""

    batch: int
    budget: int
    side: int = 24
    width: int = 1024  # of tokens and keys
    heads: int = 16
    text_width: int = 768
    slot_dim: int = 512

    @property
    def num_tokens(self) -> int:
        """Tokens of an image."""
        return self.side**2

    def __str__(self) -> str:
        return f"B={self.batch} N={self.num_tokens} T={self.budget}"


def plan(device: str, short: bool) -> list[Job]:
    """What a run times, the most important first, since a run may have a deadline."""
    if short and device == "cpu":
        return [Job(batch, 8, 8, 48, 4, 24, 32) for batch in (1, 2)]
    batches, budgets = (1, 64 if device == "cuda" else 4), (64,) if short else (64, 192)
    return [Job(batch, budget) for budget in budgets for batch in batches]


def draw(job: Job, seed: int, device: torch.device) -> SelectorInputs:
    """A batch of images, float32; the images of a small batch are the first of a large one."""
    # All methods use the same few draws, which do not depend on the budget.
    return copy_of(_drawn(replace(job, budget=1), seed, device))


@lru_cache(maxsize=8)
def _drawn(job: Job, seed: int, device: torch.device) -> SelectorInputs:
    images = [_image(job, seed * 1000 + index) for index in range(job.batch)]
    stacked = {name: torch.stack([one[name] for one in images]).to(device) for name in images[0]}
    return SelectorInputs(
        reference_tokens=stacked["final_tokens"],
        grid=(job.side, job.side),
        num_heads=job.heads,
        **stacked,
    )


def _image(job: Job, seed: int) -> dict[str, Tensor]:
    # Drawn on the CPU, so that every device has the same images.
    generator = torch.Generator().manual_seed(seed)
    tokens = _smooth(job, job.width, generator)
    loud = torch.randperm(job.width, generator=generator)[:OUTLIERS]
    tokens[:, loud] *= OUTLIER_SCALE
    return {
        "final_tokens": tokens,
        "keys": _smooth(job, job.width, generator),
        "cls_attention": _attention(job, generator),
        "importance": _attention(job, generator),
        "shallow_importance": _attention(job, generator),
        "cls_token": torch.randn(job.width, generator=generator),
        "text": torch.randn(job.text_width, generator=generator),
        "text_tokens": _smooth(job, job.text_width, generator),
        "text_attention": _attention(job, generator),
        "text_pivots": torch.randn(TEXT_PIVOTS, job.width, generator=generator),
    }


def _smooth(job: Job, channels: int, generator: torch.Generator) -> Tensor:
    """Features smooth over neighbours, plus a common mean, plus noise: ``[N, channels]``."""
    coarse = torch.randn(1, channels, OBJECTS, OBJECTS, generator=generator)
    fine = F.interpolate(coarse, (job.side, job.side), mode="bicubic", align_corners=False)
    mean = torch.randn(channels, generator=generator)
    detail = DETAIL * torch.randn(job.num_tokens, channels, generator=generator)
    return fine.flatten(2)[0].T + mean + detail


def _attention(job: Job, generator: torch.Generator) -> Tensor:
    """Attention received, of sum 1: smooth, and far more of it at a few sinks: ``[N]``."""
    logits = _smooth(job, 1, generator)[:, 0]
    sinks = torch.randperm(job.num_tokens, generator=generator)[:SINKS]
    logits[sinks] += SINK_LOGIT
    return logits.softmax(0)


def selector_of(name: str, job: Job, device: torch.device) -> Selector:
    """A method at its defaults, or the OC-pruner, its weights random and folded."""
    if name != OC_PRUNER:
        return make_selector(name)
    load = Workload(1, job.num_tokens, job.budget, job.budget, job.width, job.slot_dim)
    return PrunerSelector(pruner_of(load, device).freeze())


def run_published(
    name: str, inputs: SelectorInputs, budget: int
) -> tuple[list[int], Tensor | None]:
    """The published loops of one of `PUBLISHED` on the only image: ids ascending, merged rows."""
    (tokens,) = inputs.final_tokens
    if name == "divprune":
        return sorted(published.divprune(tokens, budget)), None
    assert name == "vlm-pruner" and inputs.keys is not None and inputs.grid is not None
    return published.vlm_pruner(tokens, inputs.keys[0], inputs.grid, budget)


def loops_of(
    name: str, inputs: SelectorInputs, budget: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Our greedy loop of one of `PUBLISHED` on the only image, and the published one.

    Both are given the matrix that they read, which whole methods make first.
    """
    tokens, ops = inputs.final_tokens, torch.ops.ocvtp
    if name == "divprune":
        distances = 1 - cosine(tokens)
        return (
            partial(ops.farthest_select, distances, None, budget),
            partial(published.farthest, distances[0], budget),
        )
    assert name == "vlm-pruner" and inputs.keys is not None and inputs.grid is not None
    method = VLMPruner()
    similarity = cosine(screen_channels(tokens, method.channels), EPS)
    pivots = ops.pivot_select(inputs.keys, min(method.pivots, budget))
    first: list[int] = pivots[0].tolist()
    return (
        partial(ops.centrifugal_select, similarity, pivots, *inputs.grid, budget),
        lambda: published.Expansion(similarity[0], inputs.grid).run(first, budget),
    )


def tensors_in(values: SelectorInputs | Selected) -> dict[str, Tensor]:
    """The tensors by name; two names may share one."""
    return {name: v for name, v in values._asdict().items() if isinstance(v, Tensor)}


def map_tensors(change: Callable[[Tensor], Tensor], values: T) -> T:
    """The same with every tensor changed."""
    changed: dict[str, Any] = {name: change(v) for name, v in tensors_in(values).items()}
    return values._replace(**changed)


def copy_of(inputs: SelectorInputs) -> SelectorInputs:
    """The same values in memory of its own."""
    copied = map_tensors(Tensor.clone, inputs)
    return copied._replace(reference_tokens=copied.final_tokens)
