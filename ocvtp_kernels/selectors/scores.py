"""Which field of `SelectorInputs` says how much a token counts, where a method takes any."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.selectors.interface import SelectorInputs, required
from ocvtp_kernels.selectors.ranking import widen

SCORES = ("relevance", "importance", "cls_attention")


def needs_of_score(score: str) -> frozenset[str]:
    """What a method of final tokens and a score needs.

    Raises:
        ValueError: there is no such score.
    """
    checks.require_one_of("score", score, SCORES)
    return frozenset({"final_tokens", score})


def read_score(inputs: SelectorInputs, score: str) -> Tensor:
    """One of `SCORES`, ``[B, N]``, float32 or wider."""
    return widen(required(cast("Tensor | None", getattr(inputs, score))))
