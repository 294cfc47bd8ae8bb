"""Gemma 3: the projector pools squares of patches to tokens, of which the kept ones are projected.

Each crop of pan-and-scan has placeholders of its own, and counts as an image with its own budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ocvtp_kernels.selectors.interface import Selector, SelectorInputs
from ocvtp_kernels.vlm import positions
from ocvtp_kernels.vlm.family import Family
from ocvtp_kernels.vlm.handle import CallRecord, Handle, Options
from ocvtp_kernels.vlm.image_processors import find_processor_class
from ocvtp_kernels.vlm.intercept import Intercepts
from ocvtp_kernels.vlm.placeholders import AllImages, PlaceholderPruning, Placeholders, as_output
from ocvtp_kernels.vlm.positions import Places, tell_places
from ocvtp_kernels.vlm.replaced import Method, Run
from ocvtp_kernels.vlm.towers import Tower
from ocvtp_kernels.vlm.units import as_units, average_units

if TYPE_CHECKING:
    from ocvtp_kernels.vlm.tower_encoder import TowerEncoder

# The tower's output, behind its last norm.
FINAL_LAYER = -1


def attach(model: Any, processor: Any, selector: Selector, budget: int, options: Options) -> Handle:
    """Attaches a selector to a ``Gemma3ForConditionalGeneration`` or ``Gemma3Model``.

    Candidates are the pooled tokens. The tokens of an image attend to each other in both
    directions, the kept ones too: the processor derives ``token_type_ids`` from the shortened
    prompt. The windows of local layers count the columns that are there, not positions: where
    tokens are dropped they reach further back in the whole prompt. An image with no more tokens
    than the budget runs bitwise as the model alone.

    Args:
        model: the model.
        processor: its ``Gemma3Processor``.
        selector: chooses among the pooled tokens ``[B, N]`` of all images and crops of a call.
        budget: tokens kept of each image, and of each crop; at least 1.
        options: ``newlines`` is not used.

    Raises:
        ValueError: the tower is of no known type or its patches fill no squares, the selector
            merges in the tower, it or the reference layer does not fit the model, something is
            attached already, or transformers is too old.
    """
    inner = model.base_model
    pruning = GemmaPruning(inner, selector, budget, options)
    return pruning.attach(inner, processor, GemmaPlaceholders(budget))


class GemmaPlaceholders(Placeholders):
    """As `Placeholders`, in the sequence of every crop."""

    def replace_image_token(self, original: Method, processor: Any, given: dict[str, Any]) -> str:
        """The text of an image and its crops, each with at most ``budget`` placeholders."""
        token, count = processor.tokenizer.image_token, processor.image_seq_length
        text: str = original(**given)
        return text.replace(token * count, token * min(self.budget, count))


# Whether the running call of a model encodes its images by itself. Outside they are a plain list,
# as hooks that move arguments call ``to`` too.
_JOINS: ContextVar[bool] = ContextVar("ocvtp_joins", default=False)


class Features(list[Tensor]):
    """Features of images ``[T, D]``, as many of each; the model's forward calls ``to`` on them."""

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """One tensor ``[images, T, D]``, moved and cast as ``Tensor.to`` has it."""
        return torch.stack(self).to(*args, **kwargs)


class GemmaPruning(PlaceholderPruning):
    """As `PlaceholderPruning`; the fields of a pooled token are the mean of its patches'.

    Attributes:
        merge: height and width of what is pooled, in patches.
    """

    normed = True

    def __init__(self, inner: Any, selector: Selector, budget: int, options: Options) -> None:
        projector = inner.multi_modal_projector
        self.merge: int = projector.kernel_size
        if projector.patches_per_image % self.merge:
            raise ValueError(
                f"model: expected a side of patches that is a multiple of the {self.merge} that "
                f"are pooled, got {projector.patches_per_image}"
            )
        super().__init__(inner, selector, budget, options)

    def final_layer(self, inner: Any, given: dict[str, Any]) -> int:
        return FINAL_LAYER

    def plan_merges(
        self, inner: Any, given: dict[str, Any], tower: Tower, pixels: Tensor
    ) -> Sequence[int]:
        raise ValueError(
            f"pruner: {type(self.selector).__name__} merges tokens inside the tower, whose whole "
            'grid this model pools; place="encoder" merges what is pooled'
        )

    def choose_forward(self) -> Run:
        return _place_and_join if self.keeps_positions else _join

    def get_image_features(self, original: Method, inner: Any, given: dict[str, Any]) -> Any:
        """As the model's own, with ``pooler_output`` a list of ``[min(budget, N), D]``."""
        tower, pixels = self.tower(inner), given["pixel_values"]
        num_tokens = tower.count_patches(pixels) // self.merge**2
        if self.budget >= num_tokens:
            ids = torch.arange(num_tokens, device=pixels.device).repeat(len(pixels), 1)
            return self.run_unpruned(partial(_split, original), given, ids)
        record, images = self.handle.begin(), AllImages(self.budget)
        (features,) = self.run(inner, given, tower, pixels, [images], record)
        record.finish(images.ids, groups=images.groups)
        kept = _list(features)
        if self.keeps_positions:
            tell_places(kept, [Places(ids, num_tokens) for ids in images.ids])
        return as_output(kept, given.get("return_dict"))

    def arrange(self, tokens: Tensor) -> Tensor:
        return average_units(tokens, self.merge)

    def arrange_inputs(self, inputs: SelectorInputs) -> SelectorInputs:
        return as_units(inputs, self.merge, joins=False)

    def project(self, inner: Any, tokens: Tensor, record: CallRecord) -> Tensor:
        """The projector's output of pooled tokens ``[G, T, C]``."""
        projector, intercepts = inner.multi_modal_projector, Intercepts()

        def take(_original: Method, patches: Tensor) -> Tensor:
            return patches.flatten(2)[..., : tokens.shape[1]]

        intercepts.replace(projector.avg_pool, take)
        # As many tokens as it has patches, which it brings into a grid.
        missing = projector.patches_per_image**2 - tokens.shape[1]
        with intercepts.active():
            return super().project(inner, F.pad(tokens, (0, 0, 0, missing)), record)


def _list(features: Tensor) -> list[Tensor]:
    """The images of ``[images, T, D]``."""
    return Features(features) if _JOINS.get() else list(features)


def _split(original: Method, **given: Any) -> Any:
    """The model's own features as a list."""
    output = original(**given)
    if hasattr(output, "pooler_output"):
        output.pooler_output = _list(output.pooler_output)
    return output


def _join(original: Method, _inner: Any, given: dict[str, Any]) -> Any:
    """Runs the ``forward`` of a model with `Features` in place of a list."""
    outputs = given.get("mm_encoder_outputs") or {}
    features = getattr(outputs.get("image"), "pooler_output", None)
    if isinstance(features, list):
        joined = as_output(Features(features), return_dict=True)
        given = given | {"mm_encoder_outputs": outputs | {"image": joined}}
    token = _JOINS.set(True)
    try:
        return original(**given)
    finally:
        _JOINS.reset(token)


def _place_and_join(original: Method, inner: Any, given: dict[str, Any]) -> Any:
    """`positions.forward` around `_join`."""

    def run(**moved: Any) -> Any:
        return _join(original, inner, moved)

    return positions.forward(run, inner, given)


def open_photos(inner: Any, processor: Any, name: str, reference_layer: int | None) -> TowerEncoder:
    """See `OpenPhotos`; of a photo the whole one alone."""
    from ocvtp_kernels.vlm.tower_encoder import PhotoUnits, TowerEncoder

    tower, merge = Tower.of(inner.vision_tower), inner.multi_modal_projector.kernel_size
    if processor is None:
        high, wide = tower.image_size
        processor = find_processor_class("Gemma3ImageProcessor")(
            size={"height": high, "width": wide}
        )
    units = PhotoUnits(merge, normed=True, settings={"do_pan_and_scan": False})
    return TowerEncoder(tower, processor, name, reference_layer, FINAL_LAYER, units)


FAMILY = Family(
    "Gemma 3",
    ("gemma3",),
    attach,
    no_decoder="most of its layers attend within windows, and its images in both directions",
    open_photos=open_photos,
    renumbers=True,
)
