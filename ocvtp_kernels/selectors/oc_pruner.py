"""The object-centric pruner as a selector."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ocvtp_kernels import checks
from ocvtp_kernels.pruner.modules import MLP, SlotAttention, SlotPrior
from ocvtp_kernels.pruner.pruner import OCPruner
from ocvtp_kernels.selectors.interface import Evidence, Finish, Selected, Selector, place_of

# Of which a pruner is made, and no subclass.
PARTS = (
    *(MLP, SlotPrior, SlotAttention),
    *(nn.Sequential, nn.Linear, nn.LayerNorm, nn.GELU, nn.Dropout, nn.GRUCell),
)


class PrunerSelector:
    """The object-centric pruner of arXiv 2511.20439.

    What runs is frozen: the pruner while it is, else a frozen copy of it, in ``eval``. The copy is
    taken here, and anew where the pruner is moved, cast, loaded or unfrozen; other changes of it
    are not seen. The pruner itself is left as it is. One with a ``forward`` or ``pick``, parts, or
    hooks on parts, that are not `OCPruner`'s own runs as it is.

    Args:
        pruner: casts nothing itself, so reference tokens are cast to the dtype of its parameters.
        importance: whether attention received fills the gap when two slots pick one token;
            without it the slots' own attention does, and the tower's last layer can be computed
            for the kept tokens alone.
    """

    place = "encoder"
    needs = frozenset({"reference_tokens"})

    def __init__(self, pruner: OCPruner, importance: bool = True) -> None:
        if not isinstance(pruner, OCPruner):
            raise TypeError(f"pruner: expected an OCPruner, got {type(pruner).__name__}")
        self.pruner = pruner
        self._copy, self._changes = pruner, -1
        self._running()
        self.wants = frozenset({"importance"} if importance else ())

    def __call__(self, evidence: Evidence, budget: int) -> Selected:
        """Ids int64 ``[B, budget]``; with ``valid``, image by image, waiting for the device.

        Raises:
            ValueError, TypeError: as `OCPruner.forward`.
        """
        if evidence.valid is None:
            return Selected(self._select(evidence.reference_tokens, evidence.importance, budget))
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
        return Selected(torch.cat(chosen))

    def begin(self, reference_tokens: Tensor, budget: int) -> Finish:
        """All but filling the gaps, which waits for importance; every token is valid."""
        checks.require_budget(budget, reference_tokens.shape[1])
        pruner = self._running()
        picks, peak, own = pruner.pick(_cast(reference_tokens, pruner), budget)

        def finish(evidence: Evidence | None) -> Selected:
            importance = None if evidence is None else evidence.importance
            padding = own if importance is None else importance
            return Selected(torch.ops.ocvtp.resolve_picks(picks, peak, padding, budget))

        return finish

    def _select(self, reference_tokens: Tensor, importance: Tensor | None, budget: int) -> Tensor:
        pruner = self._running()
        tokens = _cast(reference_tokens, pruner)
        # Only ids are wanted: one channel is all that the pruner has to gather.
        ids: Tensor = pruner(tokens, tokens[..., :1], budget, importance).ids
        return ids

    def _running(self) -> OCPruner:
        pruner = self.pruner
        if self._changes != pruner.changes:
            runs = pruner.frozen or not _is_ordinary(pruner)
            self._copy = pruner if runs else pruner.frozen_copy()
            self._changes = pruner.changes
        return self._copy


def _cast(reference_tokens: Tensor, pruner: OCPruner) -> Tensor:
    return reference_tokens.to(pruner.initializ.mean.dtype)


def _is_ordinary(pruner: OCPruner) -> bool:
    """Whether a pruner computes, frozen, all that it does when it is not."""
    for name in ("forward", "pick"):
        if name in vars(pruner) or getattr(type(pruner), name) is not getattr(OCPruner, name):
            return False
    return all(
        type(part) in PARTS and not part._forward_hooks and not part._forward_pre_hooks
        for part in pruner.modules()
        if part is not pruner
    )


def as_selector(pruner: Any) -> Selector:
    """A selector as it is; an `OCPruner` as a `PrunerSelector` with importance.

    Raises:
        TypeError: it is neither.
        ValueError: a selector names a place that there is not.
    """
    if isinstance(pruner, OCPruner):
        return PrunerSelector(pruner)
    # Any other module can be called too, and would fail only where it is asked.
    if not callable(pruner) or (isinstance(pruner, nn.Module) and not hasattr(pruner, "needs")):
        raise TypeError(f"pruner: expected an OCPruner or a selector, got {type(pruner).__name__}")
    selector = cast(Selector, pruner)
    place_of(selector)
    return selector


def require_width(selector: Selector, width: int) -> None:
    """Raises ValueError if the selector is a pruner made for tokens of another width."""
    if isinstance(selector, PrunerSelector) and selector.pruner.config.enc_in_dim != width:
        raise ValueError(
            f"pruner: expected enc_in_dim {width} to match the vision tower, "
            f"got {selector.pruner.config.enc_in_dim}"
        )
