"""The picture of ``ocvtp prune --method``: what each method keeps of one photo, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ocvtp_kernels.cli.picture import (
    FONT_SIZES,
    GUTTER,
    HEADING,
    INK,
    MARGIN,
    NARROWEST_TEXT,
    PANEL,
    PAPER,
    SMALLEST_CELL,
    SOFT_INK,
    built_in_font,
    fit_text,
    kept_panel,
    oklab_to_rgb,
    palette,
)

COLUMNS = 4  # panels side by side at most
SMALL_PANEL = 392  # px, longest side of a panel where there are several: 16 px of 24 x 24 patches


class Panel(NamedTuple):
    """What one method keeps."""

    heading: str
    note: str  # beside the heading, where there is room
    ids: Sequence[int]  # row-major over the grid


def draw_sheet(
    photo: Image.Image,
    grid: tuple[int, int],
    panels: Sequence[Panel],
    title: str,
    caption: str,
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
    width = columns * max(SMALLEST_CELL, round(scale * photo.width / columns))
    height = rows * max(SMALLEST_CELL, round(scale * photo.height / rows))
    cell = width // columns, height // rows
    large = np.asarray(photo.resize((width, height), Image.Resampling.LANCZOS))
    colours = oklab_to_rgb(palette(len(panels)))

    across = min(COLUMNS, len(panels))
    inner = max(NARROWEST_TEXT, across * (width + GUTTER) - GUTTER)
    large_font, soft_font, font = map(built_in_font, FONT_SIZES)
    text = [(line, large_font, INK) for line in fit_text(title, large_font, inner, 1)]
    text += [(line, soft_font, SOFT_INK) for line in fit_text(caption, soft_font, inner, 3)]
    top = MARGIN + sum(round(1.4 * line_font.size) for _, line_font, _ in text) + GUTTER
    down = ceil(len(panels) / across)
    body = down * (HEADING + height + GUTTER) - GUTTER
    picture = Image.new("RGB", (inner + 2 * MARGIN, top + body + MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    y = MARGIN
    for line, line_font, ink in text:
        draw.text((MARGIN, y + round(0.8 * line_font.size)), line, ink, line_font, anchor="ls")
        y += round(1.4 * line_font.size)
    for index, (panel, colour) in enumerate(zip(panels, colours, strict=True)):
        kept = np.zeros(grid, dtype=bool)
        kept.flat[list(panel.ids)] = True
        frames = np.broadcast_to(colour, (*grid, 3))
        x = MARGIN + index % across * (width + GUTTER)
        y = top + index // across * (HEADING + height + GUTTER)
        heading = "".join(fit_text(panel.heading, font, width, 1))
        draw.text((x, y + 18), heading, INK, font, anchor="ls")
        if font.getlength(panel.heading + panel.note) + GUTTER <= width:
            draw.text((x + width, y + 18), panel.note, SOFT_INK, font, anchor="rs")
        drawn = kept_panel(large, cell, kept, frames)
        picture.paste(Image.fromarray(drawn), (x, y + HEADING))
    return picture
