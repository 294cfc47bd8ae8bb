"""Units of patches, of which some models make one token before the language model reads them."""

from __future__ import annotations

from torch import Tensor

from ocvtp_kernels.selectors.interface import SelectorInputs


def average_units(tokens: Tensor, merge: int) -> Tensor:
    """The mean of the patches of each unit: ``[B, N, ...]`` to ``[B, N / merge^2, ...]``."""
    return _to_grid(tokens, merge).mean((2, 4)).flatten(1, 2)


def join_units(tokens: Tensor, merge: int) -> Tensor:
    """The patches of each unit side by side, ``[B, N, C]`` to ``[B, N / merge^2, merge^2 * C]``.

    Units, and patches within a unit, are row by row, as pixel shuffle joins them.
    """
    units = _to_grid(tokens, merge).transpose(2, 3)
    return units.reshape(len(tokens), -1, merge**2 * tokens.shape[2])


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


def _to_grid(tokens: Tensor, merge: int) -> Tensor:
    """Square grids of patches ``[B, N, ...]`` as ``[B, rows, merge, columns, merge, ...]``."""
    side = int(tokens.shape[1] ** 0.5) // merge
    return tokens.reshape(len(tokens), side, merge, side, merge, *tokens.shape[2:])
