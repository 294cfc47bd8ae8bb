"""Every selector by its name, and `select`: one call for any of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.selectors.at_random import RandomSelector
from ocvtp_kernels.selectors.cdpruner import CDPruner
from ocvtp_kernels.selectors.divprune import DivPrune
from ocvtp_kernels.selectors.hiprune import HiPrune
from ocvtp_kernels.selectors.interface import Evidence, Selected, Selector, ask, reads_of
from ocvtp_kernels.selectors.prumerge import PruMerge
from ocvtp_kernels.selectors.scope import SCOPE
from ocvtp_kernels.selectors.trim import TRIM
from ocvtp_kernels.selectors.visionzip import VisionZip
from ocvtp_kernels.selectors.vispruner import FasterVLM, VisPruner
from ocvtp_kernels.selectors.vlm_pruner import VLMPruner


class _Method(NamedTuple):
    """How a selector is made."""

    maker: Callable[..., Selector]
    options: tuple[str, ...]
    fixed: dict[str, Any]


def _method(maker: Callable[..., Selector], **fixed: Any) -> _Method:
    # Signatures are read once: a compiler cannot trace that.
    options = inspect.signature(maker).parameters.keys() - fixed.keys()
    return _Method(maker, tuple(sorted(options)), fixed)


METHODS = {
    "vlm-pruner": _method(VLMPruner),
    "divprune": _method(DivPrune),
    "visionzip": _method(VisionZip),
    "hiprune": _method(HiPrune),
    "vispruner": _method(VisPruner),
    "fastervlm": _method(FasterVLM),
    "cdpruner": _method(CDPruner),
    "scope": _method(SCOPE),
    "prumerge": _method(PruMerge),
    "prumerge+": _method(PruMerge, spatial=True),
    "trim": _method(TRIM),
    "random": _method(RandomSelector),
}


def make_selector(method: str, **options: Any) -> Selector:
    """The selector of a name.

    Args:
        method: one of `METHODS`.
        options: its own; see its class.

    Raises:
        ValueError: there is no such method; the message lists what there is.
        TypeError: it has no such option; the message lists what it has.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    maker, known, fixed = METHODS[method]
    unknown = sorted(options.keys() - set(known))
    if unknown:
        there = ", ".join(known) or "none"
        raise TypeError(f"{unknown[0]}: {method} takes no such option; it has: {there}")
    return maker(**fixed, **options)


def select(
    tokens: Tensor,
    budget: int = 64,
    method: str = "divprune",
    *,
    keys: Tensor | None = None,
    cls_attention: Tensor | None = None,
    importance: Tensor | None = None,
    shallow_importance: Tensor | None = None,
    grid: tuple[int, int] | None = None,
    text: Tensor | None = None,
    text_tokens: Tensor | None = None,
    cls_token: Tensor | None = None,
    **options: Any,
) -> Selected:
    """Keeps ``budget`` tokens of each image by a training-free method.

    Args:
        tokens: ``[B, N, C]``, what is kept and, unless said, decided on.
        budget: T, 1 to N.
        method: one of `METHODS`; each class says what it reads.
        keys: ``[B, N, D]`` of an attention layer, its heads side by side.
        cls_attention: ``[B, N]``, attention received from the CLS query, mean or sum over heads.
        importance: ``[B, N]``, attention received, mean over all queries, at a deep layer.
        shallow_importance: the same at a shallow layer.
        grid: rows and columns of the tokens; a square if None and N is one.
        text: ``[B, E]``, the embedding of the question.
        text_tokens: ``[B, N, E]``, the tokens in the text's space; ``tokens`` if None and as wide.
        cls_token: ``[B, C]``.
        options: the method's own, ``as_published`` where its published code has a quirk.

    Returns:
        ids int64 ``[B, T]`` ascending, tokens ``[B, T, C]``, and where the method has them the
        order picked, the count that its own rule kept, and extra tokens.

    Raises:
        ValueError: an unknown method or a missing input, listing what there is; or an argument
            does not fit.
        TypeError: an unknown option, or an argument of the wrong kind.
    """
    checks.require_rank("tokens", tokens, "B, N, C")
    checks.require_floating("tokens", tokens)
    checks.require_nonempty("tokens", tokens, 1, "token")
    selector = make_selector(method, **options)
    if text is not None and text_tokens is None and text.shape[-1] == tokens.shape[2]:
        text_tokens = tokens
    evidence = Evidence(
        tokens,
        tokens,
        importance=importance,
        cls_attention=cls_attention,
        shallow_importance=shallow_importance,
        keys=keys,
        cls_token=cls_token,
        grid=_square(tokens.shape[1], selector) if grid is None else grid,
        text=text,
        text_tokens=text_tokens,
    )
    _check(evidence)
    selected = ask(selector, evidence, budget)
    # Not by _replace, which torch 2.11 cannot compile where its result is returned.
    return Selected(**selected._asdict() | {"tokens": selected.gather(tokens)})


def _square(num_tokens: int, selector: Selector) -> tuple[int, int] | None:
    if not torch.compiler.is_compiling():
        side = math.isqrt(num_tokens)
    elif "grid" in reads_of(selector):
        # Traced where the number of tokens varies, which isqrt is not; exact for squares.
        side = int(num_tokens**0.5)
    else:
        # A graph that asks whether N is a square is made anew where the answer changes.
        return None
    return (side, side) if side * side == num_tokens else None


def _check(evidence: Evidence) -> None:
    """Raises ValueError or TypeError unless everything stands beside the tokens."""
    tokens = evidence.final_tokens
    layouts = {
        "importance": "B, N",
        "cls_attention": "B, N",
        "shallow_importance": "B, N",
        "keys": "B, N, D",
        "text_tokens": "B, N, E",
        "cls_token": "B, C",
        "text": "B, E",
    }
    for name, layout in layouts.items():
        given = getattr(evidence, name)
        if given is None:
            continue
        checks.require_rank(name, given, layout)
        checks.require_floating(name, given)
        checks.require_same_device(name, given, "tokens", tokens)
        checks.require_size(name, given, 0, tokens.shape[0], "tokens")
        if "N" in layout:
            checks.require_size(name, given, 1, tokens.shape[1], "tokens")
    if evidence.grid is not None and math.prod(evidence.grid) != tokens.shape[1]:
        raise ValueError(f"grid: expected {tokens.shape[1]} cells, got {evidence.grid}")
