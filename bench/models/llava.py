"""LLaVA models with random weights: real sizes made on the GPU, and tiny ones for the CPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from bench.ops.prune import pruner_of
from bench.workloads import BUDGETS, Workload
from ocvtp_kernels.selectors.at_random import RandomSelector
from ocvtp_kernels.selectors.interface import Selector
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector

TEXT_TOKENS = 32
BEFORE = 6  # text tokens in front of the image
TILES = 2  # LLaVA-NeXT's photo is so large that its tiles are a square of so many
HEADROOM = 1.2  # memory that a model needs to be made, over its weights
Mode = Literal["eager", "static"]


@dataclass(frozen=True)
class Shape:
    """The sizes of a LLaVA-1.5, or of a LLaVA-NeXT."""

    name: str
    budgets: tuple[int, ...]
    vision: dict[str, int] = field(hash=False)
    language: dict[str, int] = field(hash=False)
    slot_dim: int
    dtype: torch.dtype
    is_next: bool = False

    @property
    def grid(self) -> int:
        """Patches along one side of a crop."""
        return self.vision["image_size"] // self.vision["patch_size"]

    @property
    def crops(self) -> int:
        """Crops of an image: with LLaVA-NeXT the image scaled down, then its tiles."""
        return 1 + TILES**2 if self.is_next else 1

    @property
    def num_tokens(self) -> int:
        """Patches of all crops."""
        return self.crops * self.grid**2

    @property
    def num_packed(self) -> int:
        """Tokens that the model itself puts in the prompt: LLaVA-NeXT adds one a row of tiles."""
        return self.num_tokens + (TILES * self.grid if self.is_next else 0)

    @property
    def side(self) -> int:
        """Pixels along one side of the photo."""
        return self.vision["image_size"] * (TILES if self.is_next else 1)

    @property
    def image_id(self) -> int:
        """The placeholder's id."""
        return self.language["vocab_size"] - 1


CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
}
LLAMA_13B = {**LLAMA_7B, "hidden_size": 5120, "intermediate_size": 13824}
LLAMA_13B |= {"num_hidden_layers": 40, "num_attention_heads": 40}
TINY_CLIP = {**CLIP_L, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6}
TINY_CLIP |= {"num_attention_heads": 4, "image_size": 112}
TINY_LLAMA = {**LLAMA_7B, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
TINY_LLAMA |= {"num_attention_heads": 4, "vocab_size": 512}

HALF = torch.float16
LLAVA = Shape("LLaVA-1.5-7B", BUDGETS[576], CLIP_L, LLAMA_7B, 512, HALF)
LLAVA_13B = Shape("LLaVA-1.5-13B", BUDGETS[576], CLIP_L, LLAMA_13B, 512, HALF)
NEXT = Shape("LLaVA-NeXT-7B", BUDGETS[2880], CLIP_L, LLAMA_7B, 512, HALF, is_next=True)
TINY = Shape("tiny LLaVA-1.5", (8, 16), TINY_CLIP, TINY_LLAMA, 32, torch.float32)
TINY_NEXT = Shape(
    "tiny LLaVA-NeXT", (8, 16), TINY_CLIP, TINY_LLAMA, 32, torch.float32, is_next=True
)


class Choice(NamedTuple):
    """Which tokens the language model gets."""

    selector: Literal["unpruned", "random", "ocvtp"]
    budget: int  # tokens of an image


class Placeholders:
    """What `attach` needs of a processor: it writes an image's placeholders.

    Args:
        shape: of the model.
        batch: images in a prompt.
    """

    image_token = "<image>"

    def __init__(self, shape: Shape, batch: int) -> None:
        self._count = shape.num_packed
        self._inputs = {"image_sizes": [(shape.side, shape.side)] * batch}

    def replace_image_token(self, image_inputs: Any, image_idx: int, **_: Any) -> str:
        """The placeholders of an image."""
        return self.image_token * self._count

    def count(self) -> int:
        """Placeholders of one image, with whatever is attached."""
        return self.replace_image_token(self._inputs, 0).count(self.image_token)


class Vlm:
    """A model of a shape on a device, in evaluation.

    Raises:
        torch.OutOfMemoryError: there is too little memory for it.
    """

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape, self.device = shape, device
        if device.type == "cuda":
            require_memory(shape, device)
        with _made_as(shape.dtype, device):
            self.model = _build(shape).eval().requires_grad_(False)
        _spread(self.model, torch.Generator(device).manual_seed(0))

    def view(self) -> Any:
        """A model of the same parameters, which may have a handle of its own."""
        outer, inner = copy.copy(self.model), copy.copy(self.model.model)
        vars(outer)["_modules"] = {**vars(outer)["_modules"], "model": inner}
        return outer

    def pixels(self, batch: int, seed: int) -> Tensor:
        """Random images: ``[B, 3, H, W]``, or ``[B, crops, 3, H, W]``."""
        side, shape = self.shape.vision["image_size"], self.shape
        size = (batch, *([shape.crops] if shape.is_next else []), 3, side, side)
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(size, generator=generator, device=self.device).to(shape.dtype)

    def prompt(self, batch: int, placeholders: int) -> Tensor:
        """Random text around an image's placeholders, int64 ``[B, L]``."""
        generator = torch.Generator().manual_seed(7)
        text = torch.randint(3, self.shape.image_id, (batch, TEXT_TOKENS), generator=generator)
        image = torch.full((batch, placeholders), self.shape.image_id)
        return torch.cat([text[:, :BEFORE], image, text[:, BEFORE:]], dim=1).to(self.device)

    def image_arguments(self, batch: int) -> dict[str, Tensor]:
        """What the model takes beside pixels; on the host, where all of it is read."""
        sizes = torch.full((batch, 2), self.shape.side)
        return {"image_sizes": sizes} if self.shape.is_next else {}

    def workload(self, budget: int) -> Workload:
        """The pruner's sizes, one slot for each token to keep."""
        shape, dtype = self.shape, str(self.shape.dtype).removeprefix("torch.")
        width = shape.vision["hidden_size"]
        return Workload(1, shape.num_tokens, budget, budget, width, shape.slot_dim, dtype)

    def selector(self, choice: Choice) -> Selector:
        """The selector."""
        if choice.selector == "random":
            return RandomSelector(0)
        pruner = pruner_of(self.workload(choice.budget), self.device)
        return PrunerSelector(pruner.freeze())


def _build(shape: Shape) -> Any:
    import transformers

    settings = {
        "vision_config": transformers.CLIPVisionConfig(**shape.vision),
        "text_config": transformers.LlamaConfig(**shape.language),
        "image_token_index": shape.image_id,
        "image_token_id": shape.image_id,
    }
    if not shape.is_next:
        config: Any = transformers.LlavaConfig(**settings)
        return transformers.LlavaForConditionalGeneration(config)
    pinpoints = [[shape.side, shape.side]]
    config = transformers.LlavaNextConfig(**settings, image_grid_pinpoints=pinpoints)
    return transformers.LlavaNextForConditionalGeneration(config)


def require_memory(shape: Shape, device: torch.device) -> None:
    """Raises torch.OutOfMemoryError if a GPU has too little free memory for a model's weights."""
    with _made_as(shape.dtype, torch.device("meta")):
        weights = sum(parameter.nbytes for parameter in _build(shape).parameters())
    free = torch.cuda.mem_get_info(device)[0]
    if HEADROOM * weights > free:
        raise torch.OutOfMemoryError(
            f"the weights take {weights / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free"
        )


@contextmanager
def _made_as(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Parameters are made on the device in the dtype; 7 B of them in float32 would take long."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def _spread(model: Any, generator: torch.Generator) -> None:
    """Matrices that keep the scale of their inputs, so that every token has an influence."""
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
