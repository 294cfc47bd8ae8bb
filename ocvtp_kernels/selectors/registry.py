"""Every selector by name, and `select`, which runs one."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.selectors.apet import ApET
from ocvtp_kernels.selectors.at_random import RandomSelector
from ocvtp_kernels.selectors.cdpruner import CDPruner
from ocvtp_kernels.selectors.dart import DART
from ocvtp_kernels.selectors.divprune import DivPrune
from ocvtp_kernels.selectors.fastv import FastV
from ocvtp_kernels.selectors.hiprune import HiPrune
from ocvtp_kernels.selectors.holov import HoloV
from ocvtp_kernels.selectors.id_selection import IDSelection
from ocvtp_kernels.selectors.idpruner import IDPruner
from ocvtp_kernels.selectors.interface import (
    Selected,
    Selector,
    SelectorInputs,
    check_inputs,
    reads_of,
    run_checked,
)
from ocvtp_kernels.selectors.oc_progressive import OCProgressive
from ocvtp_kernels.selectors.prumerge import PruMerge
from ocvtp_kernels.selectors.pyramiddrop import PyramidDrop
from ocvtp_kernels.selectors.scope import SCOPE
from ocvtp_kernels.selectors.sparsevlm import SparseVLM
from ocvtp_kernels.selectors.tome import ToMe
from ocvtp_kernels.selectors.trim import TRIM
from ocvtp_kernels.selectors.visionzip import VisionZip
from ocvtp_kernels.selectors.vispruner import FasterVLM, VisPruner
from ocvtp_kernels.selectors.vlm_pruner import VLMPruner

METHODS: dict[str, Callable[..., Selector]] = {
    "vlm-pruner": VLMPruner,
    "divprune": DivPrune,
    "visionzip": VisionZip,
    "hiprune": HiPrune,
    "vispruner": VisPruner,
    "fastervlm": FasterVLM,
    "cdpruner": CDPruner,
    "scope": SCOPE,
    "prumerge": PruMerge,
    "prumerge+": functools.partial(PruMerge, spatial=True),
    "trim": TRIM,
    "tome": ToMe,
    "idpruner": IDPruner,
    "id-selection": IDSelection,
    "holov": HoloV,
    "apet": ApET,
    "fastv": FastV,
    "dart": DART,
    "pyramiddrop": PyramidDrop,
    "sparsevlm": SparseVLM,
    "random": RandomSelector,
}
PRUNER = "oc-pruner"  # the trained pruner, beside `METHODS`, in settings that name a method
_MADE: dict[str, Callable[..., Selector]] = METHODS | {"oc-progressive": OCProgressive}
# Read at import, as a compiler cannot trace it.
_OPTIONS = {
    method: sorted(inspect.signature(make).parameters.keys() - getattr(make, "keywords", {}).keys())
    for method, make in _MADE.items()
}


def check_choice(method: Any, pruner: Any, prefix: str = "") -> None:
    """Raises unless a setting's method is one, and has a pruner's file just where it is `PRUNER`.

    Args:
        method: of the setting.
        pruner: name of the file, or None.
        prefix: before the names "method" and "pruner" in errors.

    Raises:
        ValueError, TypeError: it is not so.
    """
    checks.require_one_of(f"{prefix}method", method, (PRUNER, *METHODS))
    if pruner is not None and not isinstance(pruner, str):
        raise TypeError(f"{prefix}pruner: expected the name of a file, got {pruner!r}")
    if (pruner is not None) != (method == PRUNER):
        expected = "a file" if method == PRUNER else "none"
        raise ValueError(
            f"{prefix}pruner: expected {expected} with the method {method!r}, got {pruner!r}"
        )


def make_selector(method: str, **options: Any) -> Selector:
    """Makes a selector by its name, for `select` and `attach`.

    Args:
        method: one of `METHODS`; or "oc-progressive", which is not training-free: its option
            ``pruner`` is an `OCPruner`.
        options: its own; see its class.

    Raises:
        ValueError: there is no such method; the message lists what there is.
        TypeError: it has no such option; the message lists what it has.
    """
    if not isinstance(method, str) or method not in _MADE:
        raise ValueError(f"method: expected one of {', '.join(_MADE)}, got {method!r}")
    unknown = sorted(options.keys() - set(_OPTIONS[method]))
    if unknown:
        available = ", ".join(_OPTIONS[method]) or "none"
        raise TypeError(f"{unknown[0]}: {method} takes no such option; it has: {available}")
    return _MADE[method](**options)


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
    text_attention: Tensor | None = None,
    relevance: Tensor | None = None,
    text_pivots: Tensor | None = None,
    **options: Any,
) -> Selected:
    """Keeps ``budget`` tokens of each image by a training-free method.

    Args:
        tokens: ``[B, N, C]``, the reference tokens and the final tokens.
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
        text_attention: ``[B, N]``, attention received from text in the decoder.
        relevance: ``[B, N]``, a score of your own, the larger the better, read by methods whose
            option ``score`` is "relevance".
        text_pivots: ``[B, P, C]``, as wide as ``tokens``: text that tokens are to differ from.
        options: the method's own, ``as_published`` where its published code has a quirk.

    Returns:
        ids int64 ``[B, T]`` ascending, tokens ``[B, T, C]``, and where the method has them the
        order picked, the count that its own rule kept, and extra tokens.

    Raises:
        ValueError: an unknown method or a missing input, listing what there is; or an argument
            does not fit.
        TypeError: an unknown option, or an argument of the wrong type.
    """
    checks.require_rank("tokens", tokens, "B, N, C")
    checks.require_floating("tokens", tokens)
    checks.require_nonempty("tokens", tokens, 1, "token")
    selector = make_selector(method, **options)
    if text is not None and text_tokens is None:
        checks.require_rank("text", text, "B, E")
        text_tokens = tokens if text.shape[1] == tokens.shape[2] else None
    inputs = SelectorInputs(
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
        text_attention=text_attention,
        relevance=relevance,
        text_pivots=text_pivots,
    )
    check_inputs(inputs, SelectorInputs._fields, "tokens")
    selected = run_checked(selector, inputs, budget)
    # Not by _replace, which torch 2.11 cannot compile where its result is returned.
    return Selected(**selected._asdict() | {"tokens": selected.gather(tokens)})


def _square(num_tokens: int, selector: Selector) -> tuple[int, int] | None:
    if not torch.compiler.is_compiling():
        side = math.isqrt(num_tokens)
    elif "grid" in reads_of(selector):
        # isqrt cannot be traced where the number of tokens varies; this is exact for squares.
        side = int(num_tokens**0.5)
    else:
        # A graph that tests whether N is a square is compiled again where the result changes.
        return None
    return (side, side) if side * side == num_tokens else None
