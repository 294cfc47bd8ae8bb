"""Whether slots are of use: what a validation tells beside its loss."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.training.log import read_rows

HEADER = ("epoch", "K", "loss", "loss_without_slots", "distinct", "empty", "spread")
# Of K; with fewer distinct picks than that the budget is filled by other rules.
FEW_DISTINCT = 0.5


class Health(NamedTuple):
    """Means over the validation images at one K; epochs are counted from 1."""

    epoch: int
    num_slots: int
    loss: float
    loss_without_slots: float  # the decoder's memory zeroed
    distinct: float  # tokens that slots attend to most, each counted once, over K
    empty: float  # slots that no token attends to most, over K
    spread: float  # see `slot_figures`

    def line(self) -> str:
        """As CSV; nine digits identify a float32."""
        return ",".join(map(str, self[:2])) + "".join(f",{v:.9g}" for v in self[2:]) + "\n"

    def cells(self) -> tuple[str, ...]:
        """To read, without the epoch."""
        losses = (f"{self.loss:.4g}", f"{self.loss_without_slots:.4g}")
        return (str(self.num_slots), *losses, *(f"{value:.2f}" for value in self[4:]))

    def __str__(self) -> str:
        count, loss, zeroed, distinct, empty, spread = self.cells()
        return (
            f"epoch {self.epoch} · K {count} · loss {loss} (slots zeroed {zeroed})"
            f" · distinct {distinct} · empty {empty} · spread {spread}"
        )


@torch.no_grad()
def slot_figures(attention: Tensor, grid: tuple[int, int]) -> Tensor:
    """Distinct picks over K, empty slots over K, and the slots' spread: float64 ``[B, 3]``.

    A slot picks the token that it attends to most, and a token belongs to the slot with the largest
    attention; ties go to the lowest index. The spread is the share of the variance of the tokens'
    places that lies within slots, ``1 - sum_k |sum_n A_kn p_n|^2 / m_k / sum_n |p_n|^2`` with
    ``m_k = sum_n A_kn`` and p the places, centred: 1 where slots do not depend on the place, about
    1 / K where they are K compact patches of one size.

    Args:
        attention: ``[B, K, N]``, sums to 1 over slots.
        grid: rows and columns, N together, at least 2.
    """
    num_slots = attention.shape[1]
    attention = attention.double()
    picks = attention.argmax(dim=2).sort(dim=1).values
    distinct = 1 + (picks.diff(dim=1) > 0).double().sum(dim=1)
    slot = torch.arange(num_slots, device=attention.device).view(1, -1, 1)
    owns = (attention.argmax(dim=1, keepdim=True) == slot).any(dim=2)
    sides = [torch.arange(side, dtype=torch.float64, device=attention.device) for side in grid]
    places = torch.cartesian_prod(*sides)
    places = places - places.mean(dim=0)
    mass = attention.sum(dim=2).clamp(min=torch.finfo(torch.float64).tiny)
    between = ((attention @ places).square().sum(dim=2) / mass).sum(dim=1)
    empty = 1 - owns.double().mean(dim=1)
    return torch.stack([distinct / num_slots, empty, 1 - between / places.square().sum()], dim=1)


def read_health(path: Path) -> list[Health]:
    """The rows of a ``health.csv``.

    Raises:
        ValueError: the file has other columns, or is damaged.
    """
    return read_rows(path, HEADER, _parse)


def _parse(cells: list[str]) -> Health:
    epoch, count, *figures = cells
    loss, zeroed, distinct, empty, spread = map(float, figures)
    return Health(int(epoch), int(count), loss, zeroed, distinct, empty, spread)
