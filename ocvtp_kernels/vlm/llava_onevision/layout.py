"""Positions of an image's tokens in LLaVA-OneVision, and which of a call's images form a batch.

As in LLaVA-NeXT, but the grid of a large image is interpolated to fewer rows and columns, and
an image beside others of its prompt has one crop and one newline.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import Selected
from ocvtp_kernels.vlm.llava_next.layout import (
    CPU,
    MAX_SIZES,
    KeepCounts,
    Layout,
    Layouts,
    PackedGroup,
)
from ocvtp_kernels.vlm.towers import count_prefix


def pack(
    config: Any,
    crops: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    newline: Tensor | None = None,
    limit: str | None = None,
) -> list[Tensor]:
    """Images ``[crops, patches, D]`` as the model packs them: ``[V, D]``, or with newlines.

    Args:
        config: of a LLaVA-OneVision.
        crops: of each image.
        sizes: height and width of each image.
        newline: ``[D]``; None: no newlines.
        limit: ``vision_aspect_ratio``, the config's if None.
    """
    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

    # Of the model it reads the config alone.
    packed, _ = LlavaOnevisionModel.pack_image_features(
        SimpleNamespace(config=config),
        crops,
        sizes,
        image_newline=newline,
        vision_aspect_ratio=limit or config.vision_aspect_ratio,
    )
    images: list[Tensor] = packed
    return images


def lay_out(config: Any, height: int, width: int, in_tiles: bool = True) -> Layout:
    """Layout of an image of ``height`` times ``width`` pixels, on the CPU.

    Of an interpolated image ``tokens`` are those of the packed sequence without newlines, counted
    from 0, and ``rows``, of which there are more, are those of all patches.

    Args:
        config: of a LLaVA-OneVision; ids are packed in place of features.
        height, width: size of the image before it is scaled.
        in_tiles: whether the image has tiles, or the whole image is its only crop.
    """
    from transformers.models.llava_onevision.modeling_llava_onevision import (
        image_size_to_num_patches,
    )

    vision, size, num_crops = config.vision_config, (height, width), 1
    if in_tiles:
        num_crops = image_size_to_num_patches(size, config.image_grid_pinpoints, vision.image_size)
    patches = (vision.image_size // vision.patch_size) ** 2
    # Whatever the default device is; float64 holds every id exactly.
    ids = torch.arange(num_crops * patches, dtype=torch.float64, device=CPU)
    crops = [ids.view(num_crops, patches, 1)]
    newline = torch.tensor([-1.0], dtype=torch.float64, device=CPU)
    packed = pack(config, crops, [size], newline)[0].flatten()
    is_newline = packed < 0
    positions = (~is_newline).nonzero().flatten()
    # So large a limit leaves every grid as it is.
    whole = pack(config, crops, [size], newline, f"anyres_max_{num_crops}")[0]
    if len(whole) > len(packed):
        tokens, used = torch.arange(len(positions), device=CPU), ids.long()
    else:
        tokens, order = packed[positions].long().sort()
        positions, used = positions[order], tokens
    rows = used + count_prefix(vision) * (used // patches + 1)
    return Layout(num_crops, tokens, positions, rows, is_newline.nonzero().flatten())


class OnevisionLayouts(Layouts):
    """As `Layouts`.

    Args:
        config: of a LLaVA-OneVision.
    """

    def of(
        self, size: tuple[int, int], device: torch.device = CPU, in_tiles: bool = True
    ) -> Layout:
        """Layout of an image of ``size`` (height, width), see `lay_out`, on ``device``."""
        # An image of one crop is not laid out by its size.
        size = size if in_tiles else (0, 0)
        key = (*size, device)
        layout = self._cache.get(key)
        if layout is None:
            # Tensors made in inference mode could not be used in training later.
            with torch.inference_mode(False):
                if device == CPU:
                    layout = lay_out(self._config, *size, in_tiles)
                else:
                    layout = self.of(size, CPU, in_tiles).to(device)
            # Replaced as a whole, since other threads may read it.
            kept = list(self._cache.items())[-(MAX_SIZES - 1) :]
            self._cache = dict(kept) | {key: layout}
        return layout


class InterpolatedGroup(PackedGroup):
    """Images whose grids are interpolated: their tokens are those that the language model reads.

    Attributes:
        rows: those of all patches of an image.
    """

    def __init__(
        self,
        config: Any,
        sizes: list[tuple[int, int]],
        images: list[int],
        counts: KeepCounts,
        layouts: list[Layout],
        starts: list[int],
    ) -> None:
        super().__init__(images, counts, layouts, starts)
        self._config, self._sizes, self._num_crops = config, sizes, layouts[0].num_crops

    def take_patches(self, tokens: Tensor) -> Tensor:
        """Of the tower's output of all crops ``[P, ...]`` all patches: ``[G, crops * N, ...]``."""
        return super().take(tokens)

    def take(self, tokens: Tensor) -> Tensor:
        """The patches, interpolated as the model does its features, but in float32 at least."""
        wide = torch.promote_types(tokens.dtype, torch.float32)
        return self.interpolate(self.take_patches(tokens).to(wide)).to(tokens.dtype)

    def interpolate(self, patches: Tensor) -> Tensor:
        """``[G, V, ...]`` of all patches ``[G, crops * N, ...]``, in their dtype."""
        images, rows = patches.shape[:2]
        crops = patches.reshape(images, self._num_crops, rows // self._num_crops, -1)
        packed = pack(self._config, crops.unbind(), self._sizes)
        return torch.stack(packed).reshape(images, -1, *patches.shape[2:])

    def keep(self, selected: Selected) -> None:
        """See `PackedGroup`; the patches stay."""
        self.tokens = self.tokens.gather(1, selected.ids)
        self.positions = self.positions.gather(1, selected.ids)


def group_images(
    config: Any,
    sizes: list[tuple[int, int]],
    layouts: list[Layout],
    counts: list[KeepCounts],
    length: int,
) -> list[PackedGroup]:
    """Groups images that have and keep the same numbers of tokens; pruned ones come first.

    Args:
        config: of the model.
        sizes: height and width of each image.
        layouts: of each image.
        counts: what each keeps.
        length: tokens that the tower makes of a crop.
    """
    starts = list(accumulate((layout.num_crops * length for layout in layouts), initial=0))
    alike: dict[tuple[int, int, KeepCounts], list[int]] = {}
    for image, (layout, each) in enumerate(zip(layouts, counts, strict=True)):
        alike.setdefault((len(layout.rows), len(layout.tokens), each), []).append(image)
    groups: list[PackedGroup] = []
    for (num_rows, num_tokens, each), images in alike.items():
        of_group = images, each, [layouts[i] for i in images], [starts[i] for i in images]
        if num_rows == num_tokens:
            groups.append(PackedGroup(*of_group))
        else:
            groups.append(InterpolatedGroup(config, [sizes[i] for i in images], *of_group))
    return sorted(groups, key=lambda group: not group.is_pruned)
