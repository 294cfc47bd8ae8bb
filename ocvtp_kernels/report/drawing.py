"""From matplotlib to inline SVG that takes its colours from the HTML page.

Colours are drawn as placeholders and replaced by CSS variables, and text stays text, so one
picture fits light and dark pages of any width.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, exp, floor, log, log10
from typing import Any

INK, SOFT, GRID, LOSS, CARD = (f"#0a000{i}" for i in range(1, 6))
SERIES = tuple(f"#0b00{i:02x}" for i in range(8))  # 0 is ours, 7 whatever comes after the seventh
STAND_INS = {INK: "ink", SOFT: "soft", GRID: "grid", LOSS: "loss", CARD: "card"} | {
    colour: f"s{i}" for i, colour in enumerate(SERIES)
}
KNOWN_VARIANTS = (
    "ocvtp", "eager", "compile", "published", "flashslice", "csrc", "colreduce",
)  # fmt: skip
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "*": "★"}
WIDTH = 4.4  # inches: 422 px at the browser's 96 px an inch, so that phones hardly shrink it
GAP = 0.075  # of the height, the minimum between two labels
MAX_TICKS = 5


Colours = dict[str, str]  # by the name that a legend shows


@dataclass(frozen=True)
class Picture:
    """An SVG element and the sentence under it."""

    svg: str
    caption: str


def draw(name: str, height: float, paint: Callable[[Any], None]) -> str:
    """One set of axes of ``height`` inches as an SVG element; ``name`` makes its ids unique."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 10.5,
        "text.color": INK,
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), GRID),
        **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), SOFT),
        "grid.linewidth": 0.8,
        "axes.axisbelow": True,
        **dict.fromkeys((f"axes.spines.{side}" for side in ("top", "right", "left")), False),
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_subplot()
        axes.tick_params(length=0, which="both")
        paint(axes)
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing, bbox_inches="tight")
    return _inline(file.getvalue())


def _inline(svg: str) -> str:
    """The bare SVG element, CSS colours in, and only the ids that something refers to."""
    svg = svg[svg.index("<svg") :]
    for colour, variable in STAND_INS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    used = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
    # Without a size of its own the picture takes the width that the page gives it.
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)


def apart(heights: dict[str, float]) -> dict[str, float]:
    """Label heights (0 to 1) moved up, then down from the top, until none covers another."""
    names = sorted(heights, key=lambda name: heights[name])
    at, below = [], -1.0
    for name in names:
        below = max(heights[name], below + GAP)
        at.append(below)
    above = 1 + GAP
    for i in reversed(range(len(at))):
        above = at[i] = min(at[i], above - GAP)
    return dict(zip(names, at, strict=True))


def nice_ticks(low: float, high: float) -> list[float]:
    """At most `MAX_TICKS` round numbers over a logarithmic range."""
    decades = range(floor(log10(low)) - 1, ceil(log10(high)) + 2)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(ticks) <= MAX_TICKS:
            break
    return ticks[:: ceil(len(ticks) / MAX_TICKS)] if ticks else [low, high]


def padded(values: Sequence[float], min_factor: float = 2.5) -> tuple[float, float]:
    """The values' range with a margin, at least a factor ``min_factor`` wide."""
    low, high = min(values), max(values)
    margin = max(log(min_factor) - log(high / low), 0) / 2 + 0.08 * log(max(high / low, min_factor))
    return low / exp(margin), high * exp(margin)
