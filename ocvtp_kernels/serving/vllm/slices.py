"""Images in slices, so that the encoder's memory is that of an engine without pruning.

vLLM plans how many images it encodes at once by the tokens that they keep.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def split_runs(sizes: Sequence[int], limit: int) -> Iterator[slice]:
    """Slices of consecutive images of at most ``limit`` tokens in all, or of one larger image.

    Args:
        sizes: tokens of each image before pruning.
        limit: tokens of a slice.
    """
    start, total = 0, 0
    for image, size in enumerate(sizes):
        if image > start and total + size > limit:
            yield slice(start, image)
            start, total = image, 0
        total += size
    if start < len(sizes):
        yield slice(start, len(sizes))
