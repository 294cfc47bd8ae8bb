"""What a family of vision-language models tells about itself; nothing else names one.

A family is a folder here with a `FAMILY`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ocvtp_kernels.selectors.interface import Selector
from ocvtp_kernels.vlm.handle import Handle, Options
from ocvtp_kernels.vlm.intercept import Intercepts

if TYPE_CHECKING:
    from ocvtp_kernels.vlm.encoder import Encoder
    from ocvtp_kernels.vlm.towers import Tower

# Takes the model, its processor, the selector, the budget and the options.
Attach = Callable[[Any, Any, Selector, int, Options], Handle]
# Takes the inner model, its image processor (None: none was saved), the name that records call it
# by, and the reference layer (None: by the depth).
OpenPhotos = Callable[[Any, Any, str, int | None], "Encoder"]


class ImageReference(NamedTuple):
    """The reference tokens of an image."""

    tokens: Tensor  # [V, C]
    ids: Tensor | None = None  # int64 [V], ascending: the image's tokens that they are; None: all


# Of the inner model, the arguments of a call of its ``get_image_features`` and the intercepts that
# will be active in it: what returns the reference tokens of each image afterwards.
WatchReference = Callable[[Any, dict[str, Any], Intercepts], Callable[[], list[ImageReference]]]


class Tiles(NamedTuple):
    """What a family tells of its tiles.

    Attributes:
        describe: of the inner model: its tower, and height and width of a unit in patches.
        count_tiles: of the inner model, ``input_ids`` ``[B, L]`` and the tokens of a tile: the
            tiles of each image, row by row. Waits for the device; raises ValueError where the
            placeholders are no whole tiles.
    """

    describe: Callable[[Any], tuple[Tower, int]]
    count_tiles: Callable[[Any, Tensor, int], list[int]]

    def count_units(self, inner: Any, pixel_values: Tensor) -> int:
        """Tokens of a tile, of ``pixel_values`` ``[..., H, W]``."""
        tower, merge = self.describe(inner)
        return tower.count_patches(pixel_values) // merge**2


@dataclass(frozen=True)
class InDecoder:
    """What pruning between decoder layers needs to know of a family.

    Attributes:
        find_reference: of the inner model, the reference layer asked for (None: by the depth) and
            the selectors: how to watch the reference tokens. Raises ValueError if they do not fit.
        read_grids: of the inner model and the arguments of its ``get_image_features``: rows and
            columns of the tokens of each image; None where these are no grid.
        stacked_ids: whether all images have as many tokens, so that their ids are one tensor.
        read_tiles: of models whose images come in tiles: of the processor, what there is to know
            of them. What `find_reference` watches is then of every tile.
    """

    find_reference: Callable[[Any, int | None, Sequence[Selector]], WatchReference]
    read_grids: Callable[[Any, dict[str, Any]], list[tuple[int, int]]] | None = None
    stacked_ids: bool = False
    read_tiles: Callable[[Any], Tiles] | None = None


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: what people call it.
        model_types: of its models' configs.
        attach: see `ocvtp_kernels.attach`.
        in_decoder: None where decoder methods are not supported.
        no_decoder: why they are not, a clause for errors.
        open_photos: makes the encoder of `ocvtp prune --model`; None: its tower is one that
            `ocvtp_kernels.vlm.towers` knows, of images of one size.
        renumbers: whether kept tokens can stand at consecutive positions.
    """

    name: str
    model_types: tuple[str, ...]
    attach: Attach
    in_decoder: InDecoder | None = None
    no_decoder: str = ""
    open_photos: OpenPhotos | None = None
    renumbers: bool = False


@lru_cache(1)
def families() -> tuple[Family, ...]:
    """All families, by the names of their folders."""
    package = importlib.import_module("ocvtp_kernels.vlm")
    names = sorted(each.name for each in pkgutil.iter_modules(package.__path__) if each.ispkg)
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    return tuple(module.FAMILY for module in modules if hasattr(module, "FAMILY"))


def find_family(model_type: Any) -> Family | None:
    """The family of a config's ``model_type``, or None."""
    return next((each for each in families() if model_type in each.model_types), None)


def model_types() -> str:
    """All known types, for an error."""
    return ", ".join(name for family in families() for name in family.model_types)
