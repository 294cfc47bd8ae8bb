"""Drawn scenes and questions about them, from a seed, by NumPy alone.

A scene has two to five objects of five shapes and six colours on a muted background. Its questions
are of six kinds, and the answers of a kind are about equally frequent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

SIDE = 80  # pixels
PATCH = 8
GRID = SIDE // PATCH
COLOURS = {
    "red": (215, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 215, 50),
    "purple": (160, 60, 190),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
PLURALS = ("circles", "squares", "triangles", "stars", "crosses")
NUMBERS = ("zero", "one", "two", "three")
PLACES = ("northwest", "northeast", "southwest", "southeast")
SIZES = {"small": 5.0, "medium": 8.0, "large": 12.0}  # radius in pixels
KINDS = ("colour", "shape", "exists", "count", "where", "relation")
QUESTIONS = 8  # of a scene
PLAN = ("colour", "colour", "shape", "shape", "exists", "count", "where", "relation")
WORDS = (
    *("what", "colour", "is", "the", "shape", "there", "a", "how", "many", "where", "left", "of"),
    *("above", "?", "yes", "no", *COLOURS, *SHAPES, *PLURALS, *NUMBERS, *PLACES),
)

Array: TypeAlias = NDArray[Any]

# Pixel centres.
_Y, _X = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) + 0.5


class Thing(NamedTuple):
    """An object of a scene: its centre and radius are in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    size: str


class Question(NamedTuple):
    """A question whose answer is one word; ``size`` is that of the object asked about, or ""."""

    kind: str
    text: str
    answer: str
    size: str = ""


class Scene(NamedTuple):
    """A picture and what is asked about it."""

    pixels: Array  # uint8 [SIDE, SIDE, 3]
    shapes: Array  # uint8 [GRID * GRID]: of the object on a patch, 1 + its place in SHAPES, or 0
    colours: Array  # the same in COLOURS
    questions: list[Question]


def make_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes of a seed; those of a smaller count are their beginning."""
    rng = np.random.default_rng(seed)
    times_used: Counter[tuple[str, str]] = Counter()
    return [_make_scene(rng, times_used) for _ in range(count)]


def _make_scene(rng: np.random.Generator, times_used: Counter[tuple[str, str]]) -> Scene:
    while True:
        things = _place_things(rng)
        pool = _askable(things, rng)
        # A scene may not have enough different questions.
        if len({each.text for kind in KINDS for each in pool[kind]}) >= QUESTIONS + 2:
            break
    return Scene(*_draw(things, rng), _choose(pool, rng, times_used))


def _place_things(rng: np.random.Generator) -> list[Thing]:
    count = int(rng.integers(2, 6))
    # Scenes with one shape several times, for counting.
    favourite = SHAPES[rng.integers(len(SHAPES))] if rng.random() < 0.4 else None
    things: list[Thing] = []
    for _ in range(60):
        if len(things) == count:
            break
        size = list(SIZES)[rng.integers(len(SIZES))]
        radius = SIZES[size] * rng.uniform(0.92, 1.1)
        x, y = rng.uniform(radius + 1, SIDE - radius - 1, 2)
        if any(
            math.hypot(x - each.x, y - each.y) < 1.1 * (radius + each.radius) + 2 for each in things
        ):
            continue
        repeated = favourite if rng.random() < 0.6 else None
        shape = repeated or SHAPES[rng.integers(len(SHAPES))]
        colour = list(COLOURS)[rng.integers(len(COLOURS))]
        things.append(Thing(shape, colour, float(x), float(y), float(radius), size))
    return things


def _draw(things: list[Thing], rng: np.random.Generator) -> tuple[Array, Array, Array]:
    image = _background(rng)
    shapes, colours = np.zeros((2, GRID, GRID), np.uint8)
    most = np.full((GRID, GRID), 0.15)  # a patch with less of an object is background
    for each in things:
        covered = _coverage(each, rng.uniform(-0.3, 0.3))
        paint = np.array(COLOURS[each.colour]) + rng.uniform(-18, 18, 3)
        paint = paint + rng.normal(0, 5, (SIDE, SIDE, 1))
        image = image + (paint - image) * covered[..., None]
        share = covered.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3))
        on_it = share > most
        most[on_it] = share[on_it]
        shapes[on_it] = 1 + SHAPES.index(each.shape)
        colours[on_it] = 1 + list(COLOURS).index(each.colour)
    return np.clip(image, 0, 255).astype(np.uint8), shapes.ravel(), colours.ravel()


def _background(rng: np.random.Generator) -> Array:
    """A gradient of two muted colours with blotches, stripes or nothing on it, and noise."""
    base, other = rng.uniform(60, 185, 2)[:, None] + rng.uniform(-22, 22, (2, 3))
    angle = rng.uniform(0, 2 * math.pi)
    along = ((_X * math.cos(angle) + _Y * math.sin(angle)) / (1.42 * SIDE) + 1) / 2
    image = base + (other - base) * along[..., None]
    pattern = rng.integers(3)
    if pattern == 0:
        coarse = rng.normal(0, 14, (GRID, GRID, 1))
        image = image + np.kron(coarse, np.ones((PATCH, PATCH, 1)))
    elif pattern == 1:
        frequency, angle = rng.uniform(0.2, 0.9), rng.uniform(0, math.pi)
        wave = np.sin(frequency * (_X * math.cos(angle) + _Y * math.sin(angle)))
        image = image + 14 * wave[..., None]
    return image + rng.normal(0, 6, (SIDE, SIDE, 1))


def _coverage(thing: Thing, turn: float) -> Array:
    """How much of each pixel an object turned by ``turn`` radians covers, from its signed distance.

    No drawing library, so that pictures do not depend on its version.
    """
    r, dx, dy = thing.radius, _X - thing.x, _Y - thing.y
    u = math.cos(turn) * dx + math.sin(turn) * dy
    v = -math.sin(turn) * dx + math.cos(turn) * dy
    if thing.shape == "circle":
        inside = r * 0.95 - np.hypot(u, v)
    elif thing.shape == "square":
        inside = r * 0.85 - np.maximum(abs(u), abs(v))
    elif thing.shape == "triangle":
        k = r * 0.62
        inside = np.minimum.reduce([k - v, k + v * 0.5 - u * 0.866, k + v * 0.5 + u * 0.866])
    elif thing.shape == "cross":
        width, length = r * 0.32, r * 0.98
        upright = np.minimum(width - abs(u), length - abs(v))
        inside = np.maximum(upright, np.minimum(width - abs(v), length - abs(u)))
    else:
        outer, inner = r * 1.1, r * 0.45
        phi = np.mod(np.arctan2(u, -v), 2 * math.pi / 5)
        phi = np.minimum(phi, 2 * math.pi / 5 - phi)
        ix, iy = inner * math.cos(math.pi / 5), inner * math.sin(math.pi / 5)
        edge = outer * iy / (np.cos(phi) * iy - np.sin(phi) * (ix - outer))
        inside = edge - np.hypot(u, v)
    return np.clip(inside + 0.5, 0, 1)


def _askable(things: list[Thing], rng: np.random.Generator) -> dict[str, list[Question]]:
    """All questions of each kind that have one answer."""
    shapes, colours = Counter(t.shape for t in things), Counter(t.colour for t in things)
    lone = [each for each in things if shapes[each.shape] == 1]
    middle = SIDE / 2
    return {
        "colour": [
            Question("colour", f"what colour is the {t.shape} ?", t.colour, t.size) for t in lone
        ],
        "shape": [
            Question("shape", f"what shape is {t.colour} ?", t.shape, t.size)
            for t in things
            if colours[t.colour] == 1
        ],
        "exists": list(_existence(things, rng)),
        "count": [
            Question("count", f"how many {plural} ?", NUMBERS[shapes[shape]])
            for shape, plural in zip(SHAPES, PLURALS, strict=True)
            if shapes[shape] < len(NUMBERS)
        ],
        "where": [
            Question(
                "where",
                f"where is the {t.shape} ?",
                PLACES[2 * (t.y > middle) + (t.x > middle)],
                t.size,
            )
            for t in lone
            if abs(t.x - middle) > 5 and abs(t.y - middle) > 5
        ],
        "relation": list(_relations(lone)),
    }


def _existence(things: list[Thing], rng: np.random.Generator) -> Iterator[Question]:
    """Of every object there is; and two that are not, one of a colour and a shape that are."""
    there = {(each.colour, each.shape): each.size for each in things}
    for (colour, shape), size in there.items():
        yield Question("exists", f"is there a {colour} {shape} ?", "yes", size)
    colours, shapes = sorted({t.colour for t in things}), sorted({t.shape for t in things})
    for some_colours, some_shapes in ((colours, shapes), (COLOURS, SHAPES)):
        absent = [(c, s) for c in some_colours for s in some_shapes if (c, s) not in there]
        if absent:
            colour, shape = absent[rng.integers(len(absent))]
            yield Question("exists", f"is there a {colour} {shape} ?", "no")


def _relations(things: list[Thing]) -> Iterator[Question]:
    for a in things:
        for b in things:
            if a is b:
                continue
            size = min(a.size, b.size, key=list(SIZES).index)
            for words, gap in (("left of", b.x - a.x), ("above", b.y - a.y)):
                if abs(gap) > 8:
                    text = f"is the {a.shape} {words} the {b.shape} ?"
                    yield Question("relation", text, "yes" if gap > 0 else "no", size)


def _choose(
    pool: dict[str, list[Question]],
    rng: np.random.Generator,
    times_used: Counter[tuple[str, str]],
) -> list[Question]:
    """As many as a scene has: of each kind in turn, the one whose answer came least often."""
    chosen: list[Question] = []
    plan = list(PLAN)
    while len(chosen) < QUESTIONS:
        kind = plan.pop(0) if plan else KINDS[rng.integers(len(KINDS))]
        asked = {each.text for each in chosen}
        left = [each for each in pool[kind] if each.text not in asked]
        if left:
            frequency = [times_used[kind, each.answer] + rng.random() for each in left]
            chosen.append(left[int(np.argmin(frequency))])
            times_used[kind, chosen[-1].answer] += 1
    return chosen
