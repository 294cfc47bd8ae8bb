"""The object-centric pruner as a selector."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ocvtp_kernels.pruner.modules import MLP, SlotAttention, SlotPrior
from ocvtp_kernels.pruner.pruner import OCPruner
from ocvtp_kernels.selectors.interface import FinishSelection, Selected, Selector, SelectorInputs

# The exact types of the modules that a pruner is made of.
PARTS = (
    *(MLP, SlotPrior, SlotAttention),
    *(nn.Sequential, nn.Linear, nn.LayerNorm, nn.GELU, nn.Dropout, nn.GRUCell),
)


class PrunerSelector:
    """The object-centric pruner of arXiv 2511.20439.

    Runs the pruner itself while it is frozen, else a frozen copy of it, in ``eval``. The copy is
    made here, and again whenever the pruner is moved, cast, loaded or unfrozen; it does not follow
    other changes. The pruner stays unchanged. A pruner whose ``forward`` or ``pick``, submodules,
    or hooks on submodules are not `OCPruner`'s own runs as it is.

    Args:
        pruner: reference tokens are cast to the dtype of its parameters.
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
        self._active, self._changes = pruner, -1
        self._active_pruner()
        self.wants = frozenset({"valid", "ids"} | ({"importance"} if importance else set()))

    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """Ids int64 ``[B, budget]``; with ``valid``, image by image, waiting for the device.

        A place mean counts by the tokens' ``ids``, where they are not all of an image.

        Raises:
            ValueError, TypeError: as `OCPruner.forward`.
        """
        valid = inputs.valid
        if valid is None:
            return Selected(self._select(inputs, budget))
        # Padding is taken out before, since slots must not compete for it.
        if inputs.ids is None:
            every = torch.arange(valid.shape[1], device=valid.device)
            inputs = inputs._replace(ids=every.expand(valid.shape))
        ids = []
        for image, of_image in enumerate(valid):
            index = of_image.nonzero().flatten()
            cut = partial(_take_tokens, image, index)
            ids.append(index[self._select(inputs.map_tokens(cut), budget)])
        return Selected(torch.cat(ids))

    def begin(self, reference_tokens: Tensor, budget: int) -> FinishSelection:
        """All but filling the gaps, which needs the importance; every token is valid."""
        pruner = self._active_pruner()
        picks, peak, token_score = pruner.pick(_cast(reference_tokens, pruner), budget)

        def finish(inputs: SelectorInputs | None) -> Selected:
            importance = None if inputs is None else inputs.importance
            padding = token_score if importance is None else importance
            return Selected(torch.ops.ocvtp.resolve_picks(picks, peak, padding, budget))

        return finish

    def _select(self, inputs: SelectorInputs, budget: int) -> Tensor:
        pruner = self._active_pruner()
        tokens = _cast(inputs.reference_tokens, pruner)
        given: dict[str, Any] = {}
        if inputs.ids is not None and pruner.config.enc_place_mean:
            given["places"] = inputs.ids
        # Only the ids are used, so the pruner gathers one channel.
        ids: Tensor = pruner(tokens, tokens[..., :1], budget, inputs.importance, **given).ids
        return ids

    def _active_pruner(self) -> OCPruner:
        pruner = self.pruner
        if self._changes != pruner.changes:
            self._active = pruner if pruner.frozen else _frozen(pruner)
            self._changes = pruner.changes
        return self._active


def _take_tokens(image: int, index: Tensor, field: Tensor) -> Tensor:
    """Some tokens of one image, of a field ``[B, N, ...]``."""
    return field[image : image + 1, index]


def _cast(reference_tokens: Tensor, pruner: OCPruner) -> Tensor:
    return reference_tokens.to(pruner.initializ.mean.dtype)


def _frozen(pruner: OCPruner) -> OCPruner:
    """A frozen copy, or the pruner as it is where code or layers are not `OCPruner`'s own."""
    for name in ("forward", "pick"):
        if name in vars(pruner) or getattr(type(pruner), name) is not getattr(OCPruner, name):
            return pruner
    for part in pruner.modules():
        is_own = type(part) in PARTS and not part._forward_hooks and not part._forward_pre_hooks
        if part is not pruner and not is_own:
            return pruner
    try:
        return pruner.frozen_copy()
    except ValueError:  # a layer with other settings, such as another GELU
        return pruner


def as_selector(pruner: Any) -> Selector:
    """A selector as it is; an `OCPruner` as a `PrunerSelector` with importance.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(pruner, OCPruner):
        return PrunerSelector(pruner)
    # Every module is callable, but one without `needs` is no selector.
    if not callable(pruner) or (isinstance(pruner, nn.Module) and not hasattr(pruner, "needs")):
        raise TypeError(f"pruner: expected an OCPruner or a selector, got {type(pruner).__name__}")
    return cast(Selector, pruner)


def require_fit(selector: Selector, width: int, *, one_size: bool) -> None:
    """Raises ValueError if the selector is a pruner made for other tokens.

    Args:
        width: channels of the reference tokens.
        one_size: whether every image has as many of them, which a place mean takes.
    """
    if not isinstance(selector, PrunerSelector):
        return
    config = selector.pruner.config
    if config.enc_in_dim != width:
        raise ValueError(
            f"pruner: expected enc_in_dim {width} to match the vision tower, "
            f"got {config.enc_in_dim}"
        )
    if config.enc_place_mean and not one_size:
        raise ValueError(
            f"pruner: expected one without a place mean, as images of this model differ in their "
            f"numbers of tokens, got a place mean of {config.num_places} tokens (enc_place_mean)"
        )
