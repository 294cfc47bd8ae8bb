"""Images in tiles of one size, of which the model makes one token of every unit of patches.

All tiles of an image are one sequence of tokens, of which a selector keeps some. How many tiles an
image has is told by its placeholders, as such models are given tiles without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.selectors.interface import Selected, Selector, SelectorInputs
from ocvtp_kernels.selectors.oc_pruner import require_fit
from ocvtp_kernels.vlm.columns.pruning import ColumnPruning, require_outputs
from ocvtp_kernels.vlm.family import ImageReference, Tiles, WatchReference
from ocvtp_kernels.vlm.group_encoder import GroupEncoder, by_image
from ocvtp_kernels.vlm.handle import CallRecord, Handle, Options
from ocvtp_kernels.vlm.intercept import Intercepts, watch_layer
from ocvtp_kernels.vlm.layer_call import language_model_of, rotary_of
from ocvtp_kernels.vlm.replaced import Method
from ocvtp_kernels.vlm.towers import Tower
from ocvtp_kernels.vlm.units import as_units, average_units, join_units


class Run(NamedTuple):
    """Placeholders without others between them."""

    row: int
    start: int  # its first column
    length: int


def find_runs(is_image: Tensor) -> list[Run]:
    """The runs of placeholders, row by row; waits for the device.

    Args:
        is_image: bool ``[B, L]``.
    """
    # Where a run begins or ends, in turns.
    edges = pad(is_image.cpu().int(), (1, 1)).diff().nonzero().tolist()
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [Run(row, start, end - start) for (row, start), (_, end) in pairs]


class TileGroup:
    """Images of a call that have as many tiles.

    Attributes:
        images: their indices in the call.
        num_kept: tokens kept of each.
        ids: int64 ``[G, T]`` of the kept tokens, once they are known.
    """

    ids: Tensor

    def __init__(
        self, images: list[int], starts: list[int], tiles: int, size: int, budget: int
    ) -> None:
        self.images, self._starts, self._tiles = images, starts, tiles
        self.num_kept, self.is_pruned = min(size, budget), size > budget

    def take(self, tokens: Tensor) -> Tensor:
        """See `ImageGroup`; ``tokens`` are those of all tiles of the call, ``[P, M, ...]``."""
        count = len(self.images)
        if count * self._tiles == len(tokens):
            rows = tokens.reshape(count, -1, *tokens.shape[2:])
        else:
            images = [tokens[start : start + self._tiles] for start in self._starts]
            rows = torch.stack(images).flatten(1, 2)
        return gather_tokens(rows, self.ids) if hasattr(self, "ids") else rows

    def keep(self, selected: Selected) -> None:
        """See `ImageGroup`."""
        self.ids = selected.ids


class TileEncoder(GroupEncoder):
    """Encodes tiles; the candidates of an image are the units of all its tiles.

    Reference tokens, importance and keys of a unit are the mean of its patches', final tokens are
    what the projector takes: the channels of its patches side by side.

    Args:
        tiles: of the model's family.
        inner, selector, budget, options: as `GroupEncoder` has them.
    """

    one_size = False
    # Tiles lie beside and over each other, and each has a CLS token of its own.
    unavailable_fields = frozenset({"grid", "cls_token"})

    def __init__(
        self, tiles: Tiles, inner: Any, selector: Selector, budget: int, options: Options
    ) -> None:
        self.tiles = tiles
        _, self._merge = tiles.describe(inner)
        super().__init__(inner, selector, budget, options)

    def tower(self, inner: Any) -> Tower:
        return self.tiles.describe(inner)[0]

    def take_tiles(self, inner: Any, given: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The tiles of a call ``[P, 3, H, W]``, and the tower's other arguments ``[P, ...]``."""
        return given["pixel_values"], {}

    def arrange(self, tokens: Tensor) -> Tensor:
        return average_units(tokens, self._merge)

    def arrange_inputs(self, inputs: SelectorInputs) -> SelectorInputs:
        if self.selects_early:
            # The other fields are not read.
            return inputs._replace(final_tokens=join_units(inputs.final_tokens, self._merge))
        return as_units(inputs, self._merge, joins=True)

    def read(self, model: Any, input_ids: Tensor, given: dict[str, Any]) -> GivenTiles:
        """See `ImageEncoder`; waits for the device."""
        inner, pixels = model.model, given.get("pixel_values")
        if pixels is None:
            return GivenTiles(self, inner, given, [], 0)
        units = self.tiles.count_units(inner, pixels)
        tiles = self.tiles.count_tiles(inner, input_ids, units)
        return GivenTiles(self, inner, given, tiles, units)

    def encode(
        self, inner: Any, pixels: Tensor, tiles: list[int], record: CallRecord, **arguments: Any
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The ids int64 ``[T_i]`` and the projected tokens ``[T_i, D]`` kept of each image.

        Args:
            inner: the model.
            pixels: ``[P, 3, H, W]``, the tiles of all images in a row.
            tiles: how many each image has.
            record: of the call.
            arguments: of the tower.
        """
        tower = self.tower(inner)
        units = tower.count_patches(pixels) // self._merge**2
        alike: dict[int, list[int]] = {}
        for image, count in enumerate(tiles):
            alike.setdefault(count, []).append(image)
        starts = list(accumulate(tiles, initial=0))
        groups = [
            TileGroup(images, [starts[i] for i in images], count, count * units, self.budget)
            for count, images in alike.items()
        ]
        groups.sort(key=lambda group: not group.is_pruned)
        features = self.run(inner, arguments, tower, pixels, groups, record)
        for group in groups:
            if not group.is_pruned:
                ids = torch.arange(group.num_kept, device=pixels.device)
                group.ids = ids.repeat(len(group.images), 1)
        return by_image(groups, [group.ids for group in groups]), by_image(groups, features)


class GivenTiles(NamedTuple):
    """See `GivenImages`: the images of the whole conversation, or none where no tiles are given."""

    encoder: TileEncoder
    inner: Any
    given: dict[str, Any]
    tiles: list[int]  # of each image
    units: int  # tokens of a tile

    @property
    def sizes(self) -> list[int]:
        return [count * self.units for count in self.tiles]

    def encode(self, images: list[int], record: CallRecord) -> tuple[list[Tensor], Any]:
        tiles = [self.tiles[image] for image in images]
        pixels, arguments = self.encoder.take_tiles(self.inner, self.given)
        if len(pixels) not in (sum(tiles), sum(self.tiles)):
            raise ValueError(
                f"pixel_values: expected the {sum(self.tiles)} tiles of the images in input_ids, "
                f"got {len(pixels)}"
            )
        if len(pixels) > sum(tiles):

            def take(part: Tensor) -> Tensor:
                of_images = part.split(self.tiles)
                return torch.cat([of_images[image] for image in images])

            pixels, arguments = take(pixels), {key: take(part) for key, part in arguments.items()}
        ids, kept = self.encoder.encode(self.inner, pixels, tiles, record, **arguments)
        record.finish(ids)
        return ids, _as_output(kept)


def attach_to_tiles(
    read_tiles: Callable[[Any], Tiles],
    make_encoder: Callable[[Tiles, Any, Selector, int, Options], TileEncoder],
    model: Any,
    processor: Any,
    selector: Selector,
    budget: int,
    options: Options,
) -> Handle:
    """Attaches a selector to a model whose images come in tiles.

    As `attach_to_columns`: the processor is unchanged, ``generate`` returns the whole prompt before
    the answer, ``forward`` has logits of the kept columns. The budget is of an image with all its
    tiles. Kept tokens stay at the positions that they have in the whole prompt.

    Args:
        read_tiles: of a processor, what the family tells of its tiles.
        make_encoder: of the family.
        model: with its language model head.
        processor: the model's own.
        selector: chooses the tokens of an image ``[B, N]``, tile after tile, unit by unit.
        budget: T, at least 1.
        options: ``newlines`` is not used.

    Raises:
        ValueError: the model has no head or no rotary positions, the selector or the reference
            layer does not fit it, something is attached already, or transformers is older than
            5.19.
    """
    inner = getattr(model, "model", None)
    if inner is None or not hasattr(model, "lm_head"):
        raise ValueError(
            f"model: expected one for conditional generation, got {type(model).__name__}"
        )
    require_outputs(model)
    rotary_of(language_model_of(inner))
    encoder = make_encoder(read_tiles(processor), inner, selector, budget, options)
    pruning = ColumnPruning(encoder, Handle(options.timed))
    pruning.handle.replace_methods(
        (model, "generate", pruning.generate),
        (model, "forward", pruning.forward),
        (inner, "forward", forward),
    )
    return pruning.handle


def forward(original: Method, inner: Any, given: dict[str, Any]) -> Any:
    """What runs instead of the ``forward`` of the model without its head.

    Of position ids ``[2, B, L]`` the first row counts the columns that are there, and the second
    one is where they stand. Only the rotary embedding is told of it: elsewhere transformers takes
    a gap in the positions for the beginning of another sample, packed into the same row.
    """
    given = join_features(given)
    intercepts, positions = Intercepts(), given.get("position_ids")
    if positions is not None and positions.ndim == 3:
        counted, standing = positions[0], positions[-1]
        # A single column has no gaps.
        has_gaps = len(positions) > 1 and positions.shape[-1] > 1
        given = given | {"position_ids": counted if has_gaps else standing}
        if has_gaps:

            def rotate(
                original: Method, states: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any
            ) -> Any:
                return original(states, standing, *args, **kwargs)

            intercepts.replace(rotary_of(language_model_of(inner)), rotate)
    # Nested in another call, as by a hook, this one is not to be moved by it.
    with intercepts.active():
        return original(**given)


def join_features(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call with encoded images in one tensor ``[N, 1, D]``.

    Models that stack their tiles take a tensor, older ones of SmolVLM with an axis of a tile's
    tokens.
    """
    outputs = given.get("mm_encoder_outputs") or {}
    features = getattr(outputs.get("image"), "pooler_output", None)
    if not isinstance(features, list | tuple):
        return given
    joined = _as_output(torch.cat(list(features)).unsqueeze(1))
    return given | {"mm_encoder_outputs": outputs | {"image": joined}}


def find_reference(
    describe: Callable[[Any], tuple[Tower, int]],
    inner: Any,
    layer: int | None,
    selectors: Sequence[Selector],
) -> WatchReference:
    """See `InDecoder.find_reference`; of every tile.

    Args:
        describe: see `Tiles`.
    """
    tower, _ = describe(inner)
    for selector in selectors:
        require_fit(selector, tower.width, one_size=False)
    resolved = tower.resolve_reference(layer, len(tower.layers))
    return partial(_watch_reference, describe, resolved)


def _watch_reference(
    describe: Callable[[Any], tuple[Tower, int]],
    layer: int,
    inner: Any,
    _given: dict[str, Any],
    intercepts: Intercepts,
) -> Callable[[], list[ImageReference]]:
    tower, merge = describe(inner)
    read = watch_layer(intercepts, tower.layers[layer])

    def references() -> list[ImageReference]:
        units = average_units(read()[:, tower.num_prefix :], merge)
        return [ImageReference(tile) for tile in units]

    return references


def _as_output(features: Any) -> Any:
    """The encoder's output as ``mm_encoder_outputs`` has it."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    return BaseModelOutputWithPooling(pooler_output=features)
