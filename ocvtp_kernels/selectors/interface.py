"""What a selector is told of an image, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

from ocvtp_kernels import checks
from ocvtp_kernels.ops.argmax_gather import gather_tokens

PLACES = ("encoder", "projector", "decoder")


class Evidence(NamedTuple):
    """What a selector decides on; None where it was not asked for, or is not known.

    Prefix tokens (CLS, registers) are left out of everything of N tokens.
    """

    reference_tokens: Tensor  # [B, N, C_in], of an early layer of the vision encoder
    final_tokens: Tensor  # [B, N, C], what is kept
    importance: Tensor | None = None  # [B, N], attention received, mean over all queries
    valid: Tensor | None = None  # bool [B, N]; False: padding, never kept; None: all are valid
    cls_attention: Tensor | None = None  # [B, N], attention received from the CLS query
    shallow_importance: Tensor | None = None  # [B, N], importance at an early layer
    keys: Tensor | None = None  # [B, N, D], of the layer that makes the final tokens
    cls_token: Tensor | None = None  # [B, C], the final CLS token
    num_heads: int | None = None  # that the D channels of the keys are divided among
    grid: tuple[int, int] | None = None  # rows and columns, row by row; N = rows * columns
    text: Tensor | None = None  # [B, E], the embedding of the question
    text_tokens: Tensor | None = None  # [B, N, E], the tokens in the text's space

    def each(self, change: Callable[[Tensor], Tensor]) -> Evidence:
        """The same with ``change`` made to everything that has a row a token."""
        there = {name: getattr(self, name) for name in BY_TOKEN}
        changed: dict[str, Any] = {
            name: change(value) for name, value in there.items() if value is not None
        }
        return self._replace(**changed)


# The fields of `Evidence` of shape [B, N, ...].
BY_TOKEN = (
    "reference_tokens",
    "final_tokens",
    "importance",
    "valid",
    "cls_attention",
    "shallow_importance",
    "keys",
    "text_tokens",
)


class Selected(NamedTuple):
    """What a selector keeps."""

    ids: Tensor  # int64 [B, T], ascending; -1 last, where a published method falls short
    tokens: Tensor | None = None  # [B, T, C] where rows are merged; None: the rows named by ids
    order: Tensor | None = None  # int64 [B, T], ids in the order picked
    found: Tensor | None = None  # int64 [B], tokens that the method's own rule found; None: T
    extra: Tensor | None = None  # [B, X, C], tokens that the published code adds
    extra_counted: int = 0  # of them, how many are part of the T: there are as many ids fewer

    def gather(self, final_tokens: Tensor) -> Tensor:
        """The kept tokens ``[B, T, C]``: merged rows, or the rows of ``final_tokens``."""
        return gather_tokens(final_tokens, self.ids) if self.tokens is None else self.tokens


for _kind in (Evidence, Selected):
    # So that an exported selector can be saved.
    _register_namedtuple(_kind, serialized_type_name=f"ocvtp_kernels.{_kind.__name__}")

# The rest of a choice. None is enough where a selector `chooses_early`.
Finish = Callable[[Evidence | None], Selected]


class Selector(Protocol):
    """Anything that chooses tokens.

    Attributes that are missing count as ``needs = {"final_tokens"}``, ``wants = {}``,
    ``place = "encoder"`` and ``exact = True``. A selector with a method
    ``begin(reference_tokens, budget)`` does there what needs no more than that, and returns the
    function of the evidence that does the rest (see `begin`).

    Attributes:
        needs: frozenset of the fields of `Evidence` that it cannot do without.
        wants: frozenset of those that it also reads where there are any.
        place: whose output its final tokens are, one of `PLACES`.
        exact: whether it always keeps exactly the budget.
    """

    def __call__(self, evidence: Evidence, budget: int) -> Selected | Tensor:
        """Keeps ``budget`` valid tokens of each image; ids alone are enough of an answer."""
        ...


def needs_of(selector: Selector) -> frozenset[str]:
    """The fields of `Evidence` that a selector cannot do without."""
    return frozenset(getattr(selector, "needs", {"final_tokens"}))


def reads_of(selector: Selector) -> frozenset[str]:
    """The fields of `Evidence` that a selector reads."""
    return needs_of(selector) | frozenset(getattr(selector, "wants", ()))


def place_of(selector: Selector) -> str:
    """Where a selector stands, one of `PLACES`.

    Raises:
        ValueError: it names another place.
    """
    place: str = getattr(selector, "place", "encoder")
    if place not in PLACES:
        raise ValueError(f"place: expected one of {', '.join(PLACES)}, got {place!r}")
    return place


def is_exact(selector: Selector) -> bool:
    """Whether a selector always keeps exactly the budget."""
    return bool(getattr(selector, "exact", True))


def chooses_early(selector: Selector) -> bool:
    """Whether a selector needs reference tokens alone."""
    return reads_of(selector) <= {"reference_tokens"}


def begin(selector: Selector, reference_tokens: Tensor, budget: int) -> Finish:
    """Starts a choice as soon as there are reference tokens, all of them valid; as `ask`."""
    if chooses_early(selector):
        selected = ask(selector, Evidence(reference_tokens, reference_tokens), budget)
        return lambda evidence: selected
    start = getattr(selector, "begin", None)
    if start is None:
        return lambda evidence: ask(selector, cast(Evidence, evidence), budget)
    with torch.no_grad():
        finish = start(reference_tokens, budget)

    def rest(evidence: Evidence | None) -> Selected:
        with torch.no_grad():
            return _checked(finish(evidence), len(reference_tokens), budget)

    return rest


def ask(selector: Selector, evidence: Evidence, budget: int) -> Selected:
    """Asks a selector, without gradients, and checks the form of its answer.

    Raises:
        ValueError: the budget is not within 1 to N, the evidence lacks what the selector needs, or
            ids of another shape came back.
        TypeError: ids of another dtype came back. Values are not looked at, which would wait for
            the device.
    """
    there = {name for name, value in evidence._asdict().items() if value is not None}
    require_known(selector, there)
    checks.require_budget(budget, evidence.reference_tokens.shape[1])
    with torch.no_grad():
        selected = selector(evidence, budget)
    return _checked(selected, len(evidence.reference_tokens), budget)


def require_known(selector: Selector, known: Collection[str]) -> None:
    """Raises ValueError, listing what there is, unless the selector's needs are among ``known``."""
    needs = needs_of(selector)
    missing = sorted(needs.difference(known))
    if missing:
        raise ValueError(
            f"{missing[0]}: needed by {type(selector).__name__}, which reads "
            f"{', '.join(sorted(needs))}; there is only {', '.join(sorted(known))}"
        )


def _checked(answer: Selected | Tensor, batch: int, budget: int) -> Selected:
    selected = Selected(answer) if isinstance(answer, Tensor) else answer
    ids = selected.ids
    if ids.dtype != torch.int64:
        raise TypeError(f"selector: expected ids of dtype torch.int64, got {ids.dtype}")
    expected = (batch, budget - selected.extra_counted)
    if tuple(ids.shape) != expected:
        raise ValueError(f"selector: expected ids of shape {expected}, got {tuple(ids.shape)}")
    return selected
