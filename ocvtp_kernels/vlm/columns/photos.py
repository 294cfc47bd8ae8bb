"""Photos of any size, encoded for `ocvtp prune --model`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import SelectorInputs
from ocvtp_kernels.vlm.columns.tower import UnitTower
from ocvtp_kernels.vlm.image_processors import as_picture, find_processor_class
from ocvtp_kernels.vlm.intercept import Intercepts
from ocvtp_kernels.vlm.towers import resolve_reference

if TYPE_CHECKING:
    from PIL import Image

    from ocvtp_kernels.vlm.encoder import Encoded


class UnitPhotos:
    """A vision encoder at the photo's own resolution, in float32 on the CPU.

    Tokens are merged units: reference tokens the mean of the patches of a unit, final tokens what
    the merger makes of it. There is no importance, and N depends on the photo.

    Args:
        tower: describes the encoder, which becomes float32.
        processor: the model's image processor.
        name: what the model is called in records.
        reference_layer: index of the block whose output the decision is made on; if None by the
            depth, as `resolve_reference` has it.

    Raises:
        ValueError: the encoder has no such block.
    """

    num_tokens: int | None = None

    def __init__(
        self, tower: UnitTower, processor: Any, name: str, reference_layer: int | None = None
    ) -> None:
        tower.visual.float().eval()
        self.tower, self.processor, self.name, self.width = tower, processor, name, tower.width
        self.reference_layer = resolve_reference(reference_layer, len(tower.blocks))

    @torch.inference_mode()
    def encode(self, photo: Image.Image) -> Encoded:
        """Encodes an RGB photo of any size."""
        # Here, as attaching needs no Pillow.
        from ocvtp_kernels.vlm.encoder import Encoded

        processed = self.processor(photo, return_tensors="pt")
        pixels, grid = processed["pixel_values"].float(), processed["image_grid_thw"]
        visual, tower = self.tower.visual, self.tower
        arguments = tower.arguments(grid, pixels.device)
        # Of one block, since all hidden states of a large photo would be gigabytes.
        states: list[Tensor] = []
        intercepts = Intercepts()
        intercepts.watch(tower.blocks[self.reference_layer], states.append)
        with intercepts.active():
            output = visual(pixels, grid_thw=grid, return_dict=True, **arguments)
        rows, columns = (int(side) // tower.merge for side in grid[0, 1:])
        order = tower.unit_order(arguments)
        reference_tokens = tower.average_units(
            states[0], None if order is None else order.argsort()
        )
        picture = as_picture(self._join_patches(pixels, rows, columns), self.processor)
        inputs = SelectorInputs(
            reference_tokens[None], output.pooler_output[None], grid=(rows, columns)
        )
        given = {"pixel_values": pixels, "image_grid_thw": grid}
        return Encoded(picture, inputs, (rows, columns), given)

    def _join_patches(self, pixels: Tensor, rows: int, columns: int) -> Tensor:
        """The image ``[3, H, W]`` that ``pixels`` ``[patches, 3 * time * height * width]`` are.

        Patches come unit by unit, and a photo is repeated over time.
        """
        merge, patch = self.tower.merge, self.tower.visual.config.patch_size
        units = pixels.reshape(rows, columns, merge, merge, 3, -1, patch, patch)[:, :, :, :, :, 0]
        side = merge * patch
        return units.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * side, columns * side)


def open_units(
    make_tower: Callable[[Any], UnitTower],
    processor_class: str,
    model: Any,
    processor: Any,
    name: str,
    reference_layer: int | None,
) -> UnitPhotos:
    """The photos' encoder of a model, with its saved image processor if that cuts units.

    Args:
        make_tower: describes the model's vision encoder.
        processor_class: of the image processor that is made otherwise.
        model, processor, name, reference_layer: as `OpenPhotos` has them.
    """
    visual = model.visual
    if not hasattr(processor, "merge_size"):
        processor = find_processor_class(processor_class)(
            patch_size=visual.config.patch_size,
            merge_size=visual.spatial_merge_size,
            temporal_patch_size=visual.config.temporal_patch_size,
        )
    return UnitPhotos(make_tower(visual), processor, name, reference_layer)
