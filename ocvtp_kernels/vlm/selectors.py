"""Which tokens of an image to keep, decided on what a vision tower tells about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.pruner import OCPruner


class Evidence(NamedTuple):
    """What a selector decides on."""

    reference_tokens: Tensor  # [B, N, C_in]
    final_tokens: Tensor  # [B, N, C]
    importance: Tensor | None = None  # [B, N], attention received; None: not asked for, not known
    valid: Tensor | None = None  # bool [B, N]; False: padding, never kept; None: all are valid


# The rest of a choice: ids int64 [B, T]. None is enough where a selector `chooses_early`.
Finish = Callable[[Evidence | None], Tensor]


class Selector(Protocol):
    """Anything that chooses tokens.

    A selector with an attribute ``needs_final_tokens = False`` may be asked before there are final
    tokens, and then finds the reference tokens in their place. One with a method
    ``begin(reference_tokens, budget)`` does there what needs no more than that, and returns the
    function of the evidence that makes the ids (see `begin`).
    """

    @property
    def needs_importance(self) -> bool:
        """Whether the evidence must hold importance, where the tower can tell it."""
        ...

    def __call__(self, evidence: Evidence, budget: int) -> Tensor:
        """Ids int64 ``[B, budget]``, ascending and distinct, of valid tokens."""
        ...


class PrunerSelector:
    """The object-centric pruner as a selector.

    Args:
        pruner: casts nothing itself, so reference tokens are cast to the dtype of its parameters.
        importance: whether attention received fills the gap when two slots pick one token;
            without it the slots' own attention does, and the tower's last layer can be computed
            for the kept tokens alone.
    """

    needs_final_tokens = False

    def __init__(self, pruner: OCPruner, importance: bool = True) -> None:
        if not isinstance(pruner, OCPruner):
            raise TypeError(f"pruner: expected an OCPruner, got {type(pruner).__name__}")
        self.pruner = pruner
        self.needs_importance = importance

    def __call__(self, evidence: Evidence, budget: int) -> Tensor:
        """Ids int64 ``[B, budget]``; with ``valid``, image by image, waiting for the device.

        Raises:
            ValueError, TypeError: as `OCPruner.forward`.
        """
        if evidence.valid is None:
            return self._select(evidence.reference_tokens, evidence.importance, budget)
        # Padding must not compete for slots, so it is taken out before, not masked after.
        chosen = []
        for image, valid in enumerate(evidence.valid):
            places = valid.nonzero().flatten()
            importance = evidence.importance
            ids = self._select(
                evidence.reference_tokens[image : image + 1, places],
                None if importance is None else importance[image : image + 1, places],
                budget,
            )
            chosen.append(places[ids])
        return torch.cat(chosen)

    def begin(self, reference_tokens: Tensor, budget: int) -> Finish:
        """All but filling the gaps, which waits for importance; every token is valid."""
        checks.require_budget(budget, reference_tokens.shape[1])
        picks, peak, own = self.pruner.pick(self._cast(reference_tokens), budget)

        def finish(evidence: Evidence | None) -> Tensor:
            importance = None if evidence is None else evidence.importance
            padding = own if importance is None else importance
            return cast(Tensor, torch.ops.ocvtp.resolve_picks(picks, peak, padding, budget))

        return finish

    def _cast(self, reference_tokens: Tensor) -> Tensor:
        return reference_tokens.to(self.pruner.initializ.mean.dtype)

    def _select(self, reference_tokens: Tensor, importance: Tensor | None, budget: int) -> Tensor:
        tokens = self._cast(reference_tokens)
        # Only ids are wanted: one channel is all that the pruner has to gather.
        return cast(Tensor, self.pruner(tokens, tokens[..., :1], budget, importance).ids)


class RandomSelector:
    """Keeps tokens at random, the baseline every selector must beat.

    The choice depends on the seed and the number of tokens alone, so an image keeps the same
    tokens on every call, alone or in a batch.
    """

    needs_importance = False
    needs_final_tokens = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._scores: dict[tuple[int, torch.device], Tensor] = {}

    def __call__(self, evidence: Evidence, budget: int) -> Tensor:
        """Ids int64 ``[B, budget]``; each image must have that many valid tokens.

        Raises:
            ValueError: the budget is not within 1 to N.
        """
        batch, num_tokens, _ = evidence.reference_tokens.shape
        checks.require_budget(budget, num_tokens)
        scores = self._draw(num_tokens, evidence.reference_tokens.device).expand(batch, -1)
        if evidence.valid is not None:
            scores = scores.masked_fill(~evidence.valid, -1.0)
        return scores.topk(budget, dim=1).indices.sort(dim=1).values

    def _draw(self, num_tokens: int, device: torch.device) -> Tensor:
        key = (num_tokens, device)
        if key not in self._scores:
            # Drawn on the CPU, so that every device keeps the same tokens; ranks have no ties.
            generator = torch.Generator().manual_seed(self.seed)
            ranks = torch.randperm(num_tokens, generator=generator)
            self._scores[key] = ranks.to(device, torch.float32)
        return self._scores[key]


def as_selector(pruner: Any) -> Selector:
    """A selector as it is; an `OCPruner` as a `PrunerSelector` with importance.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(pruner, OCPruner):
        return PrunerSelector(pruner)
    if not callable(pruner) or not hasattr(pruner, "needs_importance"):
        raise TypeError(
            "pruner: expected an OCPruner or a selector (a callable with an attribute "
            f"needs_importance), got {type(pruner).__name__}"
        )
    return cast(Selector, pruner)


def require_width(selector: Selector, width: int) -> None:
    """Raises ValueError if the selector is a pruner made for tokens of another width."""
    if isinstance(selector, PrunerSelector) and selector.pruner.config.enc_in_dim != width:
        raise ValueError(
            f"pruner: expected enc_in_dim {width} to match the vision tower, "
            f"got {selector.pruner.config.enc_in_dim}"
        )


def chooses_early(selector: Selector) -> bool:
    """Whether the selector needs reference tokens alone."""
    return not selector.needs_importance and not getattr(selector, "needs_final_tokens", True)


def begin(selector: Selector, reference_tokens: Tensor, budget: int) -> Finish:
    """Starts a choice as soon as there are reference tokens, all of them valid; as `select`."""
    if chooses_early(selector):
        ids = select(selector, Evidence(reference_tokens, reference_tokens), budget)
        return lambda evidence: ids
    start = getattr(selector, "begin", None)
    if start is None:
        return lambda evidence: select(selector, cast(Evidence, evidence), budget)
    with torch.no_grad():
        finish = start(reference_tokens, budget)

    def rest(evidence: Evidence | None) -> Tensor:
        with torch.no_grad():
            return _checked(finish(evidence), len(reference_tokens), budget)

    return rest


def select(selector: Selector, evidence: Evidence, budget: int) -> Tensor:
    """Asks a selector, without gradients, and checks the form of its answer.

    Raises:
        ValueError, TypeError: ids of another shape or dtype came back. Values are not looked at,
            which would wait for the device.
    """
    with torch.no_grad():
        ids = selector(evidence, budget)
    return _checked(ids, len(evidence.reference_tokens), budget)


def _checked(ids: Tensor, batch: int, budget: int) -> Tensor:
    if ids.dtype != torch.int64:
        raise TypeError(f"selector: expected ids of dtype torch.int64, got {ids.dtype}")
    if tuple(ids.shape) != (batch, budget):
        raise ValueError(
            f"selector: expected ids of shape {(batch, budget)}, got {tuple(ids.shape)}"
        )
    return ids
