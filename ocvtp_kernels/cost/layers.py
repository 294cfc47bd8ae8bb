"""What a model costs where a method drops or merges image tokens between its layers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from ocvtp_kernels import checks
from ocvtp_kernels.cost.flops import TEXT_TOKENS, kv_cache_bytes, paper_prefill, prefill
from ocvtp_kernels.cost.models import LanguageModel, VisionTower
from ocvtp_kernels.selectors.interface import SelectorAttributes, Stage, place_of, stages_of
from ocvtp_kernels.selectors.registry import METHODS, PRUNER, make_selector

PROGRESSIVE = "oc-progressive"
NAMES = (PRUNER, PROGRESSIVE, *METHODS)


def stages_by_name(method: str, budget: int, depth: int) -> tuple[Stage, ...]:
    """Where a method drops tokens in the language model; nowhere if it does so before.

    Args:
        method: one of `NAMES`, at its defaults.
        budget, depth: as of `stages_of`.

    Raises:
        ValueError: there is no such method, or it has no schedule for this budget or depth.
    """
    checks.require_one_of("method", method, NAMES)
    if method == PRUNER:
        return ()
    # Its counts are PyramidDrop's, and need no pruner.
    selector = make_selector("pyramiddrop" if method == PROGRESSIVE else method)
    return stages_of(selector, budget, depth) if place_of(selector) == "decoder" else ()


def merges_by_name(method: str, budget: int, tower: VisionTower) -> tuple[int, ...]:
    """How many tokens a method merges in each layer of a tower; none if it does not.

    Args:
        method: one of `NAMES`, at its defaults.
        budget: T; a tower of no more tokens is left alone.
        tower: the last of its layers is not read, as LLaVA has it.

    Raises:
        ValueError: the method does not merge in such a tower, or cannot reach the budget.
    """
    checks.require_one_of("method", method, NAMES)
    if method not in METHODS or budget >= tower.vision_tokens:
        return ()
    selector = make_selector(method)
    if place_of(selector) != "tower":
        return ()
    if tower.window is not None or tower.crops > 1:
        raise ValueError(
            f"method: {method} merges tokens in a CLIP or SigLIP of images of one size"
        )
    merges = cast(SelectorAttributes, selector).merges
    return tuple(merges(budget, tower.vision_tokens, tower.layers - 1, tower.class_tokens))


def tokens_by_layer(
    stages: Sequence[Stage], num_tokens: int, budget: int, depth: int
) -> tuple[int, ...]:
    """The tokens of an image that each decoder layer reads.

    Args:
        stages: in the language model; if none, it is handed the budget.
        num_tokens: N; an image of at most the budget is left alone.
        budget: T, at least 1.
        depth: decoder layers.
    """
    left = num_tokens if stages else min(budget, num_tokens)
    counts = {stage.layer: stage.count for stage in stages if num_tokens > budget}
    by_layer = []
    for layer in range(depth):
        left = min(left, counts[layer](left)) if layer in counts else left
        by_layer.append(left)
    return tuple(by_layer)


@dataclass(frozen=True)
class LanguageCost:
    """Cost of a prefill in the decoder layers alone.

    Attributes:
        tokens_by_layer: of the image.
        mean_tokens: over layers.
        paper, language: `paper_prefill` and `prefill`, each layer by its own tokens.
        kv_bytes: keys and values of all layers, those of the text among them, in fp16.
        equal_budget: the most tokens that all layers can read for no more FLOPs of `prefill`.
    """

    tokens_by_layer: tuple[int, ...]
    mean_tokens: float
    paper: int
    language: int
    kv_bytes: int
    equal_budget: int


def language_cost(
    language: LanguageModel, by_layer: Sequence[int], text_tokens: int = TEXT_TOKENS
) -> LanguageCost:
    """The cost of decoder layers that read different numbers of tokens.

    Args:
        language: the decoder.
        by_layer: tokens of the image, by layer; see `tokens_by_layer`.
        text_tokens: tokens beside the image's.

    Raises:
        ValueError: there are not as many numbers as layers.
    """
    if len(by_layer) != language.layers:
        raise ValueError(f"by_layer: expected {language.layers} numbers, got {len(by_layer)}")
    layer, sequences = replace(language, layers=1), [count + text_tokens for count in by_layer]
    flops = sum(prefill(layer, sequence) for sequence in sequences)
    costs_more = bisect_right(
        range(max(by_layer) + 1), flops, key=lambda count: prefill(language, count + text_tokens)
    )
    return LanguageCost(
        tokens_by_layer=tuple(by_layer),
        mean_tokens=sum(by_layer) / len(by_layer),
        paper=sum(paper_prefill(layer, sequence) for sequence in sequences),
        language=flops,
        kv_bytes=sum(kv_cache_bytes(layer, sequence) for sequence in sequences),
        equal_budget=costs_more - 1,
    )
