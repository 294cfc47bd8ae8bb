"""Units of patches, of which some models make one token before the language model reads them."""

from __future__ import annotations

from torch import Tensor

from ocvtp_kernels.selectors.interface import SelectorInputs


def to_units(tokens: Tensor, merge: int) -> Tensor:
    """Square grids of patches ``[B, N, ...]`` as units ``[B, N / merge^2, merge^2, ...]``.

    Units, and patches within a unit, are row by row: pixel shuffle joins them in this order.
    """
    side = int(tokens.shape[1] ** 0.5)
    grid = tokens.unflatten(1, (side // merge, merge, side // merge, merge))
    return grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def average_units(tokens: Tensor, merge: int) -> Tensor:
    """The mean of the patches of each unit: ``[B, N, ...]`` to ``[B, N / merge^2, ...]``."""
    return to_units(tokens, merge).mean(2)


def join_units(tokens: Tensor, merge: int) -> Tensor:
    """The patches of each unit side by side, ``[B, N, C]`` to ``[B, N / merge^2, merge^2 * C]``."""
    return to_units(tokens, merge).flatten(2)


def as_units(inputs: SelectorInputs, merge: int, joins: bool) -> SelectorInputs:
    """What a tower gives of patches, of units: the mean of theirs, or final tokens side by side.

    Args:
        inputs: of square grids of patches.
        merge: height and width of a unit, in patches.
        joins: whether the projector takes the patches of a unit side by side, or else their mean.
    """
    units = inputs.map_tokens(lambda tokens: average_units(tokens, merge))
    if joins:
        units = units._replace(final_tokens=join_units(inputs.final_tokens, merge))
    if inputs.grid is not None:
        rows, columns = inputs.grid
        units = units._replace(grid=(rows // merge, columns // merge))
    return units
