"""The overlay picture: what it shows of the photo, its colours, its size, and what it refuses."""

import re

import numpy as np
import pytest
from PIL import Image, ImageChops

from ocvtp_kernels.cli import picture
from ocvtp_kernels.cli.picture import draw_selection, fit_text, kept_panel, slot_colours

CAPTION = "OC-pruner · 64 of 576 tokens · coverage 0.91 (random 0.86 ± 0.01)"


def photo_of(width: int, height: int) -> Image.Image:
    """A smooth mid-tone photo: nowhere so dark that dimming it could not be seen."""
    coarse = np.random.default_rng(7).integers(90, 230, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def blocks(rows: int, cols: int, side: int) -> np.ndarray:
    """A segmentation [rows, cols] into squares of `side` tokens, numbered row-major from 0."""
    row, col = np.divmod(np.arange(rows * cols), cols)
    return (row // side * -(-cols // side) + col // side).reshape(rows, cols)


def draw(photo: Image.Image, ids: list[int], segmentation: np.ndarray, **text: str) -> np.ndarray:
    """The drawn picture as an array, each id owned by the slot of its region."""
    owners = segmentation.ravel()[ids].tolist()
    words = {"title": "photo", "caption": CAPTION} | text
    return np.asarray(draw_selection(photo, ids, owners, segmentation, **words))


def left_panel(drawn: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels of the panel of kept tokens in a side-by-side picture."""
    bottom = len(drawn) - picture.MARGIN
    return drawn[bottom - height : bottom, picture.MARGIN : picture.MARGIN + width]


def test_kept_patches_show_the_photo_and_others_are_dim() -> None:
    photo, segmentation, ids = photo_of(336, 336), blocks(24, 24, 3), list(range(5, 576, 9))
    panel = left_panel(draw(photo, ids, segmentation), 672, 672)
    tokens = panel.reshape(24, 28, 24, 28, 3).swapaxes(1, 2).reshape(576, 28, 28, 3)
    large = np.asarray(photo.resize((672, 672), Image.Resampling.LANCZOS))
    truth = large.reshape(24, 28, 24, 28, 3).swapaxes(1, 2).reshape(576, 28, 28, 3)
    inside = np.s_[:, 4:-4, 4:-4]
    np.testing.assert_array_equal(tokens[ids][inside], truth[ids][inside])
    dim = np.setdiff1d(np.arange(576), ids)
    assert (tokens[dim].mean((1, 2, 3)) < 0.6 * truth[dim].mean((1, 2, 3))).all()


def test_frames_carry_the_colour_of_the_owner() -> None:
    segmentation, ids = blocks(24, 24, 3), np.array([0, 30, 300, 575])
    # The second token is owned by a slot other than that of its region.
    owners = segmentation.ravel()[ids] + [0, 1, 0, 0]
    drawn = draw_selection(photo_of(336, 336), ids, owners, segmentation, "photo", CAPTION)
    panel = left_panel(np.asarray(drawn), 672, 672)
    slots, colours = slot_colours(segmentation, owners)
    expected = picture.oklab_to_rgb(colours[np.searchsorted(slots, owners)])
    row, col = np.divmod(ids, 24)
    np.testing.assert_array_equal(panel[row * 28, col * 28 + 14], expected)
    np.testing.assert_array_equal(panel[row * 28 + 14, col * 28 + 27], expected)


@pytest.mark.parametrize("count", [1, 2, 64, 640])
def test_colours_are_distinct_and_neighbours_contrast(count: int) -> None:
    segmentation = np.random.default_rng(count).permutation(1024).reshape(32, 32) % count
    slots, colours = slot_colours(segmentation, np.zeros(1, dtype=np.int64))
    assert len(slots) == count
    assert len(np.unique(picture.oklab_to_rgb(colours), axis=0)) == count
    segmentation = blocks(26, 26, 1) % count
    slots, colours = slot_colours(segmentation, np.zeros(1, dtype=np.int64))
    shade = colours[np.searchsorted(slots, segmentation)]
    for axis in (0, 1):
        steps = np.linalg.norm(np.diff(shade, axis=axis), axis=-1)
        different = np.diff(segmentation, axis=axis) != 0
        # 0.02 in OKLab is about the least difference that the eye sees.
        assert (steps[different] > 0.05).all()


@pytest.mark.parametrize(
    ("size", "grid", "ids"),
    [
        ((336, 336), (24, 24), [0]),
        ((336, 336), (24, 24), list(range(576))),
        ((300, 201), (7, 11), [3, 76]),
        ((1000, 120), (8, 60), [0, 479]),
        ((90, 900), (60, 6), [359]),
        ((50, 50), (1, 1), [0]),
        ((640, 640), (200, 200), [0, 39999]),
    ],
)
def test_any_grid_and_photo_within_bounds(
    size: tuple[int, int], grid: tuple[int, int], ids: list[int]
) -> None:
    plain = draw(photo_of(*size), ids, blocks(*grid, max(2, max(grid) // 8)))
    assert 500 <= plain.shape[1] <= 1800
    assert plain.shape[0] <= 2000
    wordy = draw(
        photo_of(*size),
        ids,
        blocks(*grid, max(2, max(grid) // 8)),
        title="name" * 99,
        caption="word " * 999,
    )
    assert wordy.shape[1] == plain.shape[1]
    assert wordy.shape[0] <= plain.shape[0] + 80
    for edge in (wordy[:40], wordy[-40:], wordy[:, :40], wordy[:, -40:]):
        assert (edge == picture.PAPER).all()
    assert (
        ImageChops.difference(
            Image.fromarray(draw(photo_of(*size), ids, blocks(*grid, max(2, max(grid) // 8)))),
            Image.fromarray(plain),
        ).getbbox()
        is None
    )


def test_one_slot_draws_no_border() -> None:
    drawn = draw(photo_of(336, 336), [10], np.zeros((24, 24), dtype=np.int64))
    right = drawn[-48 - 672 : -48, -48 - 672 : -48]
    dark = np.argwhere((right == picture.PAPER).all(axis=-1))
    assert (dark // 28 == [0, 10]).all()


def test_small_patches_keep_their_middle() -> None:
    photo = np.full((8, 8, 3), 200, dtype=np.uint8)
    kept = np.array([[True, False], [False, False]])
    frames = np.zeros((2, 2, 3), dtype=np.uint8)
    panel = kept_panel(photo, (4, 4), kept, frames)
    assert (panel[1:3, 1:3] == 200).all()
    assert (panel[0, :4] == 0).all()


def test_text_is_wrapped_then_shortened() -> None:
    font = picture.built_in_font(24)
    lines = fit_text("the quick brown fox " * 9, font, 300, 3)
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert all(font.getlength(line) <= 300 for line in lines)
    assert " ".join(lines[:2]).startswith("the quick brown fox the quick")
    assert fit_text(CAPTION, font, 5000, 1) == [CAPTION]
    assert fit_text("  \n ", font, 300, 2) == []
    assert fit_text("Caf\u00e9\u2014\u732b 64\u00d764\udc80", font, 900, 1)[0].startswith(
        "Cafe-? 64x64"
    )
    # Even where no letter fits, each line takes one: the loop must end.
    assert len(fit_text("abc", font, 1, 2)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"photo": Image.new("L", (8, 8))}, "photo: expected an RGB image, got mode 'L'"),
        ({"segmentation": np.zeros(4, dtype=int)}, r"segmentation: expected 2-D.*\(4,\)"),
        ({"segmentation": np.zeros((2, 2))}, "segmentation: .*integers.*float64"),
        ({"segmentation": np.full((2, 2), -1)}, "segmentation: .*negative index, got -1"),
        ({"ids": []}, r"ids: .*at least one.*\(0,\)"),
        ({"ids": [0, 4]}, "ids: expected below 4.*got 4"),
        ({"ids": [-1, 0]}, "ids: .*negative index, got -1"),
        ({"ids": [2, 2]}, "ids: expected ascending and distinct, got 2, 2"),
        ({"ids": [3, 1]}, "ids: expected ascending and distinct, got 3, 1"),
        ({"ids": [True, False]}, "ids: .*integers.*bool"),
        ({"owners": [0]}, re.escape("owners: expected one per id (2), got 1")),
        ({"owners": [0, -3]}, "owners: .*negative index, got -3"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments = {
        "photo": photo_of(8, 8),
        "ids": [0, 3],
        "owners": [0, 0],
        "segmentation": np.zeros((2, 2), dtype=int),
        "title": "",
        "caption": "",
    }
    draw_selection(**arguments)
    with pytest.raises(ValueError, match=message):
        draw_selection(**arguments | change)
