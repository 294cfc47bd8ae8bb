"""The picture of ``ocvtp prune --method``: what each method keeps of one photo, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
from PIL import Image

from ocvtp_kernels.cli.picture import (
    GUTTER,
    HEADING,
    MARGIN,
    MIN_CELL,
    PANEL,
    kept_panel,
    oklab_to_rgb,
    palette,
    paste_panel,
    start_picture,
)

COLUMNS = 4  # panels side by side at most
SMALL_PANEL = 392  # px, longest side of a panel where there are several: 16 px of 24 x 24 patches


class Panel(NamedTuple):
    """What one method keeps."""

    heading: str
    note: str  # beside the heading, where there is room
    ids: Sequence[int]  # row-major over the grid


def draw_sheet(
    photo: Image.Image, grid: tuple[int, int], panels: Sequence[Panel], title: str, caption: str
) -> Image.Image:
    """A picture with a panel a method: kept patches bright, in frames of the method's colour.

    Args:
        photo: RGB, as the encoder saw it.
        grid: rows and columns of its patches.
        panels: at least one.
        title, caption: cut to one line and to three.

    Raises:
        ValueError: there is no panel, or an id is outside the grid.
    """
    if not panels:
        raise ValueError("panels: expected at least one")
    rows, columns = grid
    for panel in panels:
        outside = [token for token in panel.ids if not 0 <= token < rows * columns]
        if outside:
            raise ValueError(
                f"ids: expected 0 to {rows * columns - 1} (the grid), got {outside[0]}"
            )
    scale = (PANEL if len(panels) == 1 else SMALL_PANEL) / max(photo.size)
    width = columns * max(MIN_CELL, round(scale * photo.width / columns))
    height = rows * max(MIN_CELL, round(scale * photo.height / rows))
    cell = width // columns, height // rows
    large = np.asarray(photo.resize((width, height), Image.Resampling.LANCZOS))
    colours = oklab_to_rgb(palette(len(panels)))

    across = min(COLUMNS, len(panels))
    body = ceil(len(panels) / across) * (HEADING + height + GUTTER) - GUTTER
    picture, top = start_picture(across * (width + GUTTER) - GUTTER, body, title, caption)
    for index, (panel, colour) in enumerate(zip(panels, colours, strict=True)):
        kept = np.zeros(grid, dtype=bool)
        kept.flat[list(panel.ids)] = True
        frames = np.broadcast_to(colour, (*grid, 3))
        x = MARGIN + index % across * (width + GUTTER)
        y = top + index // across * (HEADING + height + GUTTER)
        drawn = kept_panel(large, cell, kept, frames)
        paste_panel(picture, (x, y), panel.heading, panel.note, drawn)
    return picture
