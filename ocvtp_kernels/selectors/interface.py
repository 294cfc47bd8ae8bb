"""The selector interface: what a selector reads, what it returns, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial, wraps
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.utils._pytree import SERIALIZED_TYPE_TO_PYTHON_TYPE, _register_namedtuple

from ocvtp_kernels import checks
from ocvtp_kernels.dtypes import autocast_off
from ocvtp_kernels.ops.argmax_gather import gather_tokens

PLACES = ("tower", "encoder", "projector", "decoder")
# Whose attention in the decoder ranks image tokens: the prompt's last token; or the raters, tokens
# of the text behind the images whose embeddings are closest to those of the image (SparseVLM).
TEXT_ROWS = ("last", "raters")
# The layer that it is taken from: the one before the tokens are dropped, or the one behind.
TEXT_LAYERS = ("before", "behind")

T = TypeVar("T")
Call = TypeVar("Call", bound=Callable[..., Any])


class SelectorInputs(NamedTuple):
    """What a selector decides on: B images of N tokens; None where not requested or not available.

    Prefix tokens (CLS, registers) are left out of every field of N tokens.
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
    text_attention: Tensor | None = None  # [B, N], attention received from text in the decoder
    ids: Tensor | None = None  # int64 [B, N], the tokens' ids in the whole image; None: 0 to N - 1
    relevance: Tensor | None = None  # [B, N], the caller's own score, the larger the better
    text_pivots: Tensor | None = None  # [B, P, C], hidden states of text, P at least 1

    def map_tokens(self, change: Callable[[Tensor], Tensor]) -> SelectorInputs:
        """The same with ``change`` applied to every field of shape ``[B, N, ...]``."""
        fields = {name: getattr(self, name) for name in PER_TOKEN_FIELDS}
        changed: dict[str, Any] = {
            name: change(value) for name, value in fields.items() if value is not None
        }
        return self._replace(**changed)


# The fields of `SelectorInputs` of shape [B, N, ...].
PER_TOKEN_FIELDS = (
    "reference_tokens",
    "final_tokens",
    "importance",
    "valid",
    "cls_attention",
    "shallow_importance",
    "keys",
    "text_tokens",
    "text_attention",
    "ids",
    "relevance",
)


# The shapes of all tensors among the fields.
LAYOUTS = {
    "reference_tokens": "B, N, C",
    "final_tokens": "B, N, C",
    "importance": "B, N",
    "valid": "B, N",
    "cls_attention": "B, N",
    "shallow_importance": "B, N",
    "keys": "B, N, D",
    "cls_token": "B, C",
    "text": "B, E",
    "text_tokens": "B, N, E",
    "text_attention": "B, N",
    "ids": "B, N",
    "relevance": "B, N",
    "text_pivots": "B, P, C",
}


def check_inputs(inputs: SelectorInputs, reads: Collection[str], tokens: str) -> None:
    """Raises ValueError or TypeError unless the fields fit the reference tokens.

    Args:
        reads: the fields that are read, beside the final tokens' rows.
        tokens: what the caller calls the reference tokens.
    """
    reference_tokens = inputs.reference_tokens
    checks.require_rank(tokens, reference_tokens, LAYOUTS["reference_tokens"])
    checks.require_nonempty(tokens, reference_tokens, 1, "token")
    for name, layout in LAYOUTS.items():
        value = getattr(inputs, name)
        if value is None or (name not in reads and name != "final_tokens"):
            continue
        checks.require_rank(name, value, layout)
        if name == "valid":
            if value.dtype != torch.bool:
                raise TypeError(f"valid: expected dtype torch.bool, got {value.dtype}")
        elif name == "ids":
            if value.dtype != torch.int64:
                raise TypeError(f"ids: expected dtype torch.int64, got {value.dtype}")
        elif name in reads:
            checks.require_floating(name, value)
        checks.require_same_device(name, value, tokens, reference_tokens)
        checks.require_size(name, value, 0, reference_tokens.shape[0], tokens)
        if "N" in layout:
            checks.require_size(name, value, 1, reference_tokens.shape[1], tokens)
    if inputs.grid is not None and "grid" in reads:
        _check_grid(inputs.grid, reference_tokens.shape[1])
    if inputs.num_heads is not None and "num_heads" in reads:
        checks.require_at_least("num_heads", inputs.num_heads, 1)


def _check_grid(grid: object, num_tokens: int) -> None:
    if not isinstance(grid, (tuple, list)) or len(grid) != 2:
        raise TypeError(f"grid: expected rows and columns, got {grid!r}")
    for side in grid:
        checks.require_at_least("grid", side, 1)
    if grid[0] * grid[1] != num_tokens:
        raise ValueError(f"grid: expected {num_tokens} cells, got {grid}")


class Selected(NamedTuple):
    """What a selector keeps."""

    ids: Tensor  # int64 [B, T], ascending; -1 last, where a published method falls short
    tokens: Tensor | None = None  # [B, T, C] where rows are merged; None: the rows named by ids
    order: Tensor | None = None  # int64 [B, T], ids in the order picked
    found: Tensor | None = None  # int64 [B], tokens that the method's own rule kept; None: T
    extra: Tensor | None = None  # [B, X, C], tokens that the published code adds
    extra_counted: int = 0  # of them, how many are part of the T: there are as many ids fewer
    groups: Tensor | None = None  # int64 [B, N], the kept token, 0 to T - 1, that each one is in

    def gather(self, final_tokens: Tensor) -> Tensor:
        """The kept tokens ``[B, T, C]``: merged rows, or the rows of ``final_tokens``."""
        return gather_tokens(final_tokens, self.ids) if self.tokens is None else self.tokens


for _type in (SelectorInputs, Selected):
    # So that an exported selector can be saved.
    _register_namedtuple(_type, serialized_type_name=f"ocvtp_kernels.{_type.__name__}")
# Saved programs may hold this name.
SERIALIZED_TYPE_TO_PYTHON_TYPE["ocvtp_kernels.Evidence"] = SelectorInputs

# The second half of a selection. None is enough where the selector reads reference tokens alone.
FinishSelection = Callable[[SelectorInputs | None], Selected]


class Selector(Protocol):
    """A callable that chooses tokens, with any of the attributes of `SelectorAttributes`."""

    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected | Tensor:
        """Keeps ``budget`` valid tokens of each image.

        Returns:
            `Selected`, or its ids alone, int64 ``[B, budget]``, ascending.
        """
        ...


class Stage(NamedTuple):
    """One of the places in a decoder where tokens are dropped."""

    layer: int  # the decoder layer, from 0, before which they are
    count: Callable[[int], int]  # tokens that an image keeps of those that it has there
    selector: Selector  # chooses them, of `SelectorInputs` of the tokens that are there


class SelectorAttributes(Protocol):
    """The optional attributes of a selector. One that is missing counts as the value here.

    Attributes:
        needs: fields of `SelectorInputs` that it cannot do without.
        wants: fields that it reads as well where they are available; ``valid`` too, if it keeps no
            padding.
        place: whose output its final tokens are, one of `PLACES`; of the place "tower", whose
            layers merge tokens, the encoder's.
        exact: whether it always keeps exactly the budget.
        layer: of the place "decoder": the decoder layer, from 0, before which tokens are dropped.
        text_rows: of the place "decoder": whose attention the text attention is, of `TEXT_ROWS`.
        text_layer: of the place "decoder": the layer that it is taken from, of `TEXT_LAYERS`.
        num_text_pivots: of the place "decoder": the most tokens that the field ``text_pivots`` has:
            of the text behind the images those whose keys have the largest L1 norm in the layer
            before; where there is no such text, the prompt's last token.
        final_norm: of the place "decoder": whether final tokens and text pivots are the hidden
            states behind the language model's last norm; it cannot return tokens then.
    """

    needs: frozenset[str] = frozenset({"final_tokens"})
    wants: frozenset[str] = frozenset()
    place: str = "encoder"
    exact: bool = True
    layer: int = 2
    text_rows: str = "last"
    text_layer: str = "before"
    num_text_pivots: int = 4
    final_norm: bool = False

    def stages(self, budget: int, depth: int) -> Sequence[Stage]:
        """Of the place "decoder": where tokens are dropped, in falling numbers.

        A selector without this method drops all but the budget before its ``layer``.

        Args:
            budget: at least 1; an image of no more tokens keeps all of them at every stage.
            depth: decoder layers.

        Raises:
            ValueError: there is no schedule for this budget or depth.
        """
        ...

    def merges(self, budget: int, num_tokens: int, depth: int, num_prefix: int) -> Sequence[int]:
        """Of the place "tower": how many tokens each layer merges, by `ToMe`'s steps.

        Args:
            budget: tokens left behind the last layer.
            num_tokens: of an image, without the prefix.
            depth: layers that make the final tokens.
            num_prefix: tokens in front that never merge.

        Raises:
            ValueError: the budget cannot be reached.
        """
        ...

    def begin(self, reference_tokens: Tensor, budget: int) -> FinishSelection:
        """The part of a selection that reads reference tokens alone, all of them valid.

        A selector without this method runs as a whole when all its inputs are available.

        Args:
            reference_tokens: ``[B, N, C_in]``.
            budget: 1 to N.

        Returns:
            The function that makes the selection of the `SelectorInputs` of the same images.
        """
        ...


def without_autocast(call: Call) -> Call:
    """A selector's ``__call__`` in the dtypes that it chooses: scores in float32 or wider."""

    @wraps(call)
    def run(self: Any, inputs: SelectorInputs, budget: int) -> Any:
        with autocast_off(inputs.reference_tokens.device):
            return call(self, inputs, budget)

    return cast(Call, run)


def needs_of(selector: Selector) -> frozenset[str]:
    """The fields of `SelectorInputs` that a selector cannot do without."""
    return frozenset(getattr(selector, "needs", SelectorAttributes.needs))


def reads_of(selector: Selector) -> frozenset[str]:
    """The fields of `SelectorInputs` that a selector reads."""
    return needs_of(selector) | frozenset(getattr(selector, "wants", SelectorAttributes.wants))


def place_of(selector: Selector) -> str:
    """Whose output a selector's final tokens are, one of `PLACES`.

    Raises:
        ValueError: it names another place.
    """
    place: str = getattr(selector, "place", SelectorAttributes.place)
    checks.require_one_of("place", place, PLACES)
    return place


def stages_of(selector: Selector, budget: int, depth: int) -> tuple[Stage, ...]:
    """Where a selector of the place "decoder" drops tokens, see `SelectorAttributes.stages`.

    Raises:
        ValueError, TypeError: a layer is none of 1 to ``depth - 1``, or they do not rise.
    """
    make = getattr(selector, "stages", None)
    if make is None:
        layer = getattr(selector, "layer", SelectorAttributes.layer)
        stages = (Stage(layer, partial(min, budget), selector),)
    else:
        stages = tuple(make(budget, depth))
    layers = [stage.layer for stage in stages]
    for layer in layers:
        checks.require_int("layer", layer)
        if not 1 <= layer < depth:
            raise ValueError(f"layer: expected 1 to {depth - 1}, got {layer}")
    if not layers or layers != sorted(set(layers)):
        raise ValueError(f"layer: expected rising layers, at least one, got {layers}")
    return stages


def reads_only_reference_tokens(selector: Selector) -> bool:
    """Whether a selector can run as soon as there are reference tokens."""
    return reads_of(selector) <= {"reference_tokens", "valid", "ids"}


def required(value: T | None) -> T:
    """A field that the selector needs, which `run_selector` has checked to be there."""
    assert value is not None
    return value


def start_selector(selector: Selector, reference_tokens: Tensor, budget: int) -> FinishSelection:
    """Does what needs reference tokens alone, all of them valid; otherwise as `run_selector`.

    Args:
        reference_tokens: ``[B, N, C_in]``.
        budget: 1 to N.

    Returns:
        The function that finishes the selection.
    """
    if reads_only_reference_tokens(selector):
        inputs = SelectorInputs(reference_tokens, reference_tokens)
        selected = run_selector(selector, inputs, budget)
        return lambda inputs: selected
    begin = getattr(selector, "begin", None)
    if begin is None:
        return lambda inputs: run_selector(selector, cast(SelectorInputs, inputs), budget)
    checks.require_budget(budget, reference_tokens.shape[1])
    with torch.no_grad():
        finish = begin(reference_tokens, budget)

    def finish_checked(inputs: SelectorInputs | None) -> Selected:
        with torch.no_grad():
            return _check_selected(finish(inputs), reference_tokens.shape[0], budget)

    return finish_checked


def run_selector(selector: Selector, inputs: SelectorInputs, budget: int) -> Selected:
    """Runs a selector without gradients.

    Args:
        inputs: of B images of N tokens.
        budget: 1 to N.

    Raises:
        ValueError, TypeError: the budget is out of range, a field that the selector needs is None,
            one that it reads does not fit the reference tokens, or the selector returned ids of
            another shape than ``[B, budget]`` or dtype than int64. Values are not checked, as that
            would wait for the device.
    """
    reads = reads_of(selector)
    check_inputs(inputs, reads, "reference_tokens")
    if inputs.valid is not None and "valid" not in reads:
        raise ValueError(
            f"valid: not read by {type(selector).__name__}, which would keep padding; "
            "expected the valid tokens of an image alone"
        )
    return run_checked(selector, inputs, budget)


def run_checked(selector: Selector, inputs: SelectorInputs, budget: int) -> Selected:
    """As `run_selector`, of inputs that `check_inputs` has seen."""
    available = {name for name, value in inputs._asdict().items() if value is not None}
    require_available(selector, available)
    checks.require_budget(budget, inputs.reference_tokens.shape[1])
    with torch.no_grad():
        selected = selector(inputs, budget)
    return _check_selected(selected, len(inputs.reference_tokens), budget)


def require_available(selector: Selector, available_fields: Collection[str]) -> None:
    """Raises ValueError, naming the available fields, unless all that the selector needs are."""
    needs = needs_of(selector)
    missing = sorted(needs.difference(available_fields))
    if missing:
        raise ValueError(
            f"{missing[0]}: needed by {type(selector).__name__}, which reads "
            f"{', '.join(sorted(needs))}; there is only {', '.join(sorted(available_fields))}"
        )


def _check_selected(selected: Selected | Tensor, batch: int, budget: int) -> Selected:
    selected = Selected(selected) if isinstance(selected, Tensor) else selected
    ids = selected.ids
    if ids.dtype != torch.int64:
        raise TypeError(f"selector: expected ids of dtype torch.int64, got {ids.dtype}")
    expected = (batch, budget - selected.extra_counted)
    if tuple(ids.shape) != expected:
        raise ValueError(f"selector: expected ids of shape {expected}, got {tuple(ids.shape)}")
    return selected
