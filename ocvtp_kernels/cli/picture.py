"""The overlay picture of ``ocvtp prune``: the kept tokens, and the region of each slot.

Two panels of one photo, side by side (one above the other for panoramas): the kept patches bright
and framed in their slot's colour, and the slots' segmentation in the same colours.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from math import ceil
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Cell = tuple[int, int]  # px, width and height of a patch in the picture
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer[Any]]
Mask = npt.NDArray[np.bool_]

PANEL = 672  # px, longest side of a panel: 28 px per patch on a 24 x 24 grid
MARGIN, GUTTER, HEADING = 48, 32, 32  # px, around the picture, between and above the panels
MIN_CELL = 4  # px, below which a frame hides its patch
PANORAMA = 1.6  # width : height above which the panels stand one above the other
MIN_TEXT_WIDTH = 480  # px, so that text fits over tall, thin photos
PAPER, INK, SOFT_INK = (17, 18, 21), (240, 240, 236), (154, 157, 164)
FONT_SIZES = 38, 24, 22  # px: title, caption, headings of the panels
LOOKALIKES = {"\u00d7": "x", "\u2212": "-"}  # times and minus, which the built-in font lacks

# 5 x 4 combinations, in an order in which hues that nearly meet differ in at least one of the two.
LIGHTNESS = np.array([0.77, 0.66, 0.85, 0.71, 0.81])
CHROMA, STRENGTH = 0.14, np.array([1, 0.6, 0.87, 0.73])
SPARE = 48  # colours beyond the number of slots, so that the last slot has a choice too
# Bjorn Ottosson's OKLab: linear sRGB -> cones -> cube root -> L, a, b; greys come out as greys.
CONES = np.array([[0.4122, 0.5363, 0.0515], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
LAB = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])
CONES_BACK, LAB_BACK = np.linalg.inv(CONES), np.linalg.inv(LAB)


def rgb_to_oklab(rgb: Bytes) -> Floats:
    """Convert sRGB bytes [..., 3] to OKLab [..., 3] (L in 0..1, a and b about -0.4..0.4)."""
    level = np.arange(256) / 255
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.cbrt(linear[rgb] @ CONES.T) @ LAB.T)


def oklab_to_linear(lab: Floats) -> Floats:
    """OKLab [..., 3] to linear sRGB [..., 3]; outside 0..1 where sRGB lacks the colour."""
    return np.asarray((lab @ LAB_BACK.T) ** 3 @ CONES_BACK.T)


def oklab_to_rgb(lab: Floats) -> Bytes:
    """OKLab [..., 3] to sRGB bytes [..., 3], clipped to what sRGB can show."""
    linear = np.clip(oklab_to_linear(lab), 0, 1)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * curve), dtype=np.uint8)


def palette(count: int) -> Floats:
    """`count` distinct colours in OKLab, [count, 3].

    Colour i has hue i x the golden angle (so that every prefix is spread over the circle),
    lightness LIGHTNESS[i mod 5], chroma STRENGTH[(i div 5) mod 4] x (CHROMA or what sRGB has).
    """
    index, steps = np.arange(count), np.linspace(CHROMA, 0, 65)[:, None]
    hue = index * np.pi * (3 - np.sqrt(5))
    lightness, chroma = np.broadcast_arrays(LIGHTNESS[index % 5], steps)
    options = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    linear = oklab_to_linear(options)
    first_shown = ((linear >= 0) & (linear <= 1)).all(axis=-1).argmax(axis=0)
    strength = STRENGTH[index // 5 % 4, None] ** (0, 1, 1)
    return np.asarray(options[first_shown, index] * strength)


def slot_colours(segmentation: Integers, owners: Integers) -> tuple[Integers, Floats]:
    """The slots seen, ascending [S], and a colour for each in OKLab [S, 3].

    Of the palette of S + SPARE, each slot in turn (largest region first) takes the free colour
    least like those of the regions it touches and, weaker, of those that they touch.
    """
    slots, sizes = np.unique(np.append(segmentation, owners), return_counts=True)
    region = np.searchsorted(slots, segmentation)
    touching = np.zeros((len(slots), len(slots)))
    sides = (region[:, :-1], region[:, 1:]), (region[:-1], region[1:])
    corners = (region[:-1, :-1], region[1:, 1:]), (region[:-1, 1:], region[1:, :-1])
    for one, other in sides + corners:
        touching[one, other] = touching[other, one] = 1
    near = touching + 0.3 * (touching @ touching > 0) + 0.002
    colours = palette(len(slots) + SPARE)
    likeness = (((colours[:, None] - colours) ** 2).sum(axis=-1) + 1e-4) ** -1.5
    chosen = np.empty(len(slots), dtype=np.int64)
    clash = np.zeros((len(slots), len(colours)))
    for slot in np.argsort(-sizes, kind="stable"):
        chosen[slot] = colour = np.argmin(clash[slot])
        clash += near[:, slot, None] * likeness[colour]
        clash[:, colour] = np.inf
    return slots, colours[chosen]


def enlarge(grid: npt.NDArray[Any], cell: Cell) -> npt.NDArray[Any]:
    """Per-token values [rows, cols, ...] as per-pixel ones."""
    return grid.repeat(cell[1], axis=0).repeat(cell[0], axis=1)


def kept_panel(photo: Bytes, cell: Cell, kept: Mask, frames: Bytes) -> Bytes:
    """The photo with kept patches untouched inside a frame, all others dim and nearly grey.

    photo [height, width, 3] and frames [rows, cols, 3] in sRGB, kept [rows, cols]; -> like photo.
    """
    bright = enlarge(kept, cell)
    dim = oklab_to_rgb(rgb_to_oklab(photo) * (0.42, 0.22, 0.22) + (0.085, 0, 0))
    panel = np.where(bright[..., None], photo, dim)
    x, y = (np.minimum(np.arange(side), np.arange(side)[::-1]) for side in cell)
    stroke = max(1, round(min(cell) / 11))
    frame = bright & np.tile(np.minimum(x, y[:, None]) < stroke, kept.shape)
    panel[frame] = enlarge(frames, cell)[frame]
    return panel


def slot_panel(photo: Bytes, cell: Cell, kept: Mask, region: Integers, colours: Floats) -> Bytes:
    """The photo's lightness in the colour of each region, borders on patch edges, a dot per token.

    photo [height, width, 3] in sRGB, kept, region [rows, cols] into colours [S, 3]; -> like photo.
    """
    light = rgb_to_oklab(photo)[..., :1]
    # Around the photo's own middle, so that a region's mean is near its colour in dark photos too.
    tone = np.clip(0.82 + 0.72 * (light - np.median(light)), 0.40, 1.06)
    panel = oklab_to_rgb(tone * enlarge(colours[region], cell)).astype(np.float64)

    pixel = enlarge(region, cell)
    border = np.zeros(pixel.shape, dtype=bool)
    for side in (slice(1, None), slice(-1))[: 2 if min(cell) >= 12 else 1]:
        border[side] |= pixel[1:] != pixel[:-1]
        border[:, side] |= pixel[:, 1:] != pixel[:, :-1]
    panel[border] = PAPER
    x, y = (np.arange(side) - (side - 1) / 2 for side in cell)
    distance = np.where(enlarge(kept, cell), np.tile(np.hypot(x, y[:, None]), kept.shape), np.inf)
    radius = 0.17 * min(cell)
    for edge, colour in ((1.4 * radius, PAPER), (radius, INK)):
        panel += np.clip(edge - distance + 0.5, 0, 1)[..., None] * (np.array(colour) - panel)
    return np.rint(panel).astype(np.uint8)


def built_in_font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own typeface at `size` px: the same on every machine."""
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))


def printable(text: str, font: ImageFont.FreeTypeFont) -> str:
    """`text` on one line in the characters the font has: accents dropped, the unknown as "?"."""
    absent = bytes(font.getmask("\uffff"))
    letters = []
    for letter in " ".join(text.split()):
        plain = "-" if unicodedata.category(letter) == "Pd" else LOOKALIKES.get(letter, letter)
        if "\ud800" <= plain <= "\udfff" or bytes(font.getmask(plain)) == absent:
            plain = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode() or "?"
        letters.append(plain)
    return "".join(letters)


def fit_text(text: str, font: ImageFont.FreeTypeFont, width: int, lines: int) -> list[str]:
    """`text` broken into at most `lines` lines of `width` px; what is left over becomes "…"."""
    rest, fitted = printable(text, font), list[str]()
    while rest and len(fitted) < lines:
        if font.getlength(rest) <= width:
            return [*fitted, rest]
        tail = "…" if len(fitted) == lines - 1 else ""
        sizes = range(len(rest))
        fits = bisect_right(sizes, width, key=lambda n: ceil(font.getlength(rest[:n] + tail)))
        space = rest.rfind(" ", 0, fits)
        end = max(1, fits - 1 if tail or space < 1 else space)
        fitted.append(rest[:end].rstrip() + tail)
        rest = rest[end:].lstrip()
    return fitted


def check(photo: Image.Image, kept: Integers, owner: Integers, segmentation: Integers) -> None:
    """ValueError, naming the argument, for what `draw_selection` cannot draw."""
    if photo.mode != "RGB":
        raise ValueError(f"photo: expected an RGB image, got mode {photo.mode!r}")
    expected = (("segmentation", segmentation, 2), ("ids", kept, 1), ("owners", owner, 1))
    for name, array, ndim in expected:
        if array.ndim != ndim or array.size == 0 or array.dtype.kind not in "iu":
            found = f"{array.dtype} of shape {array.shape}"
            raise ValueError(f"{name}: expected {ndim}-D integers, at least one, got {found}")
        if array.min() < 0:
            raise ValueError(f"{name}: expected no negative index, got {array.min()}")
    if kept.max() >= segmentation.size:
        raise ValueError(f"ids: expected below {segmentation.size} (the grid), got {kept.max()}")
    for at in np.flatnonzero(kept[1:] <= kept[:-1])[:1]:
        raise ValueError(f"ids: expected ascending and distinct, got {kept[at]}, {kept[at + 1]}")
    if len(owner) != len(kept):
        raise ValueError(f"owners: expected one per id ({len(kept)}), got {len(owner)}")


def start_picture(width: int, height: int, title: str, caption: str) -> tuple[Image.Image, int]:
    """A picture with title and caption above panels of this size (px), and the panels' top."""
    width = max(MIN_TEXT_WIDTH, width)
    large_font, soft_font, _ = map(built_in_font, FONT_SIZES)
    text = [(line, large_font, INK) for line in fit_text(title, large_font, width, 1)]
    text += [(line, soft_font, SOFT_INK) for line in fit_text(caption, soft_font, width, 3)]
    top = MARGIN + sum(round(1.4 * font.size) for _, font, _ in text) + GUTTER
    picture = Image.new("RGB", (width + 2 * MARGIN, top + height + MARGIN), PAPER)
    draw, y = ImageDraw.Draw(picture), MARGIN
    for line, font, ink in text:
        draw.text((MARGIN, y + round(0.8 * font.size)), line, ink, font, anchor="ls")
        y += round(1.4 * font.size)
    return picture, top


def paste_panel(
    picture: Image.Image, corner: tuple[int, int], heading: str, note: str, panel: Bytes
) -> None:
    """Pastes a panel [height, width, 3] under its heading, with the note beside it if that fits."""
    (x, y), width = corner, panel.shape[1]
    draw, font = ImageDraw.Draw(picture), built_in_font(FONT_SIZES[-1])
    draw.text((x, y + 18), "".join(fit_text(heading, font, width, 1)), INK, font, anchor="ls")
    if font.getlength(heading + note) + GUTTER <= width:
        draw.text((x + width, y + 18), note, SOFT_INK, font, anchor="rs")
    picture.paste(Image.fromarray(panel), (x, y + HEADING))


def draw_selection(
    photo: Image.Image,
    ids: Sequence[int],
    owners: Sequence[int],
    segmentation: Integers,
    title: str,
    caption: str,
) -> Image.Image:
    """The kept tokens and the slots' segmentation of one photo, as an RGB picture with a heading.

    photo: RGB, as the encoder saw it, of any size. ids: kept tokens [T], ascending and distinct,
    row-major over the grid. owners: the slot that owns each kept token [T]. segmentation: the slot
    that owns each token [rows, cols]. title is cut to one line, caption to three.
    Raises ValueError, naming the argument, for anything that does not fit this description.
    """
    kept_ids, owner, slot_of = np.asarray(ids), np.asarray(owners), np.asarray(segmentation)
    check(photo, kept_ids, owner, slot_of)
    rows, cols = slot_of.shape
    panorama = photo.width > PANORAMA * photo.height
    scale = (2 * PANEL + GUTTER if panorama else PANEL) / max(photo.size)
    # Whole pixels per patch keep every frame and border crisp.
    width = cols * max(MIN_CELL, round(scale * photo.width / cols))
    height = rows * max(MIN_CELL, round(scale * photo.height / rows))
    cell = width // cols, height // rows
    large = np.asarray(photo.resize((width, height), Image.Resampling.LANCZOS))
    slots, colours = slot_colours(slot_of, owner)
    region = np.searchsorted(slots, slot_of)
    framing, kept = region.copy(), np.zeros(slot_of.shape, dtype=bool)
    framing.flat[kept_ids], kept.flat[kept_ids] = np.searchsorted(slots, owner), True
    frames = oklab_to_rgb(colours)[framing]
    left = "kept tokens", "framed in their slot's colour", kept_panel(large, cell, kept, frames)
    right = "slots", "a dot on each kept token", slot_panel(large, cell, kept, region, colours)

    body = HEADING + height + (GUTTER + HEADING + height if panorama else 0)
    picture, y = start_picture(width if panorama else 2 * width + GUTTER, body, title, caption)
    x = MARGIN
    for heading, note, panel in (left, right):
        paste_panel(picture, (x, y), heading, note, panel)
        x, y = (x, y + HEADING + height + GUTTER) if panorama else (x + width + GUTTER, y)
    return picture
