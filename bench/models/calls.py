"""A LLaVA's answer as calls: first token, prefill and decoding, eagerly or with a static cache.

Both take the image's tokens from ``get_image_features``, which `attach` replaces. "eager" is the
model's own forward and a cache that grows. "static" has a `StaticCache`, and on CUDA everything up
to the first token, and a decoding step, are CUDA graphs: with a pruner all shapes are known. What
waits for the device cannot be captured, as the way in which LLaVA-NeXT packs unpruned images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.models.llava import BEFORE, Choice, Mode, Placeholders, Vlm
from bench.timing import first_line, no_waiting
from ocvtp_kernels.vlm.attach import attach
from ocvtp_kernels.vlm.handle import Handle
from ocvtp_kernels.vlm.layer_call import cache_name, read_cache

NEW_TOKENS = 8  # decoded in one sample


class Eager:
    """A prompt with one image a row, and what a model does with it.

    Args:
        vlm: the model; a view of it is pruned.
        choice: the tokens kept.
        batch: rows.
    """

    note = ""

    def __init__(self, vlm: Vlm, choice: Choice, batch: int) -> None:
        self.vlm, self.choice, self.batch = vlm, choice, batch
        self.view, self.handle, self.placeholders = pruned_view(vlm, choice, batch)
        self.pixels = vlm.pixels(batch, 0)
        self.image_arguments = vlm.image_arguments(batch)
        self.input_ids = vlm.prompt(batch, self.placeholders)
        self.length = self.input_ids.shape[1]
        self.cache: Any = None
        self._cache_name = cache_name(self.view.forward)
        self.embeddings = self.embed()

    def features(self) -> Tensor:
        """The image's tokens in the language model's width, ``[B, T, D]``."""
        output = self.view.model.get_image_features(self.pixels, **self.image_arguments)
        return torch.stack(list(output.pooler_output))

    def encode(self) -> Tensor:
        """`features`, in the way that the first token gets them."""
        return self.features()

    def embed(self) -> Tensor:
        """Text and image, ``[B, L, D]``."""
        embeddings: Tensor = self.view.get_input_embeddings()(self.input_ids)
        embeddings[:, BEFORE : BEFORE + self.placeholders] = self.features()
        return embeddings

    def first(self) -> Tensor:
        """From pixels and ids to the logits ``[B, V]`` of the first new token; fills the cache."""
        self.cache = None
        return self._forward(
            input_ids=self.input_ids, pixel_values=self.pixels, **self.image_arguments
        )

    def prefill(self) -> Tensor:
        """The language model's part of `first`, on the last embeddings."""
        self.cache = None
        return self._forward(inputs_embeds=self.embeddings)

    def step(self, token: Tensor) -> Tensor:
        """Logits ``[B, V]`` after one more token ``[B, 1]``, which the cache keeps."""
        return self._forward(input_ids=token, **{self._cache_name: self.cache})

    def rewind(self) -> None:
        """Leaves the prompt alone in the cache."""
        for layer in self.cache.layers:
            layer.keys = layer.keys[:, :, : self.length]
            layer.values = layer.values[:, :, : self.length]

    def decode(self) -> Tensor:
        """`NEW_TOKENS` tokens from the cache, each the likeliest."""
        token = self._extend()
        self.rewind()
        return token

    def cache_bytes(self) -> int:
        """Bytes of keys and values once the prompt and `NEW_TOKENS` tokens are in the cache."""
        self._extend()
        count = sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)
        self.rewind()
        return int(count)

    def _extend(self) -> Tensor:
        token = self.input_ids[:, -1:]
        for _ in range(NEW_TOKENS):
            token = self.step(token).argmax(-1, keepdim=True)
        return token

    def _forward(self, **arguments: Any) -> Tensor:
        output = self.view(**arguments, use_cache=True, logits_to_keep=1)
        self.cache = read_cache(output)
        logits: Tensor = output.logits[:, -1]
        return logits


class Static(Eager):
    """The same with a `StaticCache` of the prompt and `NEW_TOKENS` tokens.

    On CUDA the calls are CUDA graphs; ``note`` says which part could not be captured and why.
    """

    def __init__(self, vlm: Vlm, choice: Choice, batch: int) -> None:
        from transformers import StaticCache

        super().__init__(vlm, choice, batch)
        size, device = self.length + NEW_TOKENS, vlm.device
        self.cache = StaticCache(config=self.view.config, max_cache_len=size)
        self._columns = torch.arange(size, device=device)
        self._rows = torch.arange(self.length, device=device)[None]
        # A mask of our own: the model would read the cache's length on the host to make one.
        self._mask = (self._columns <= self._rows[0][:, None])[None, None]
        self._position = torch.full((1, 1), self.length, device=device)
        self._token = self.input_ids[:, -1:].clone()
        self._fill()  # makes the cache's tensors
        self._run_step = self._graph("a decoding step", self._advance) or self._advance
        self._run_prefill = self._graph("the prefill", self._fill) or self._fill
        encode = self._graph("the encoder", self.features)
        whole = None if encode is None else self._graph("the first token", self._encode_and_fill)
        self._run_encode = encode or self.features
        self._run_first = whole or self._encode_then_run
        self.prefill()

    def first(self) -> Tensor:
        return self._run_first()

    def encode(self) -> Tensor:
        return self._run_encode()

    def prefill(self) -> Tensor:
        return self._run_prefill()

    def step(self, token: Tensor) -> Tensor:
        self._token.copy_(token)
        return self._run_step()

    def rewind(self) -> None:
        """Later tokens are masked, and overwritten by the next decoding."""
        self._set_length(self.length)

    def decode(self) -> Tensor:
        # The graph passes each token on to the next step.
        self._token.copy_(self.input_ids[:, -1:])
        for _ in range(NEW_TOKENS):
            self._run_step()
        self.rewind()
        return self._token

    def _set_length(self, length: int) -> None:
        lengths = [layer.cumulative_length for layer in self.cache.layers]
        torch._foreach_zero_(lengths)
        torch._foreach_add_(lengths, length)
        self._position.fill_(self.length)

    def _fill(self) -> Tensor:
        self._set_length(0)
        return self._forward(
            inputs_embeds=self.embeddings,
            attention_mask=self._mask,
            position_ids=self._rows,
            **{self._cache_name: self.cache},
        )

    def _encode_and_fill(self) -> Tensor:
        self.embeddings.copy_(self.embed())
        return self._fill()

    def _encode_then_run(self) -> Tensor:
        self.embeddings.copy_(self.embed())
        return self._run_prefill()

    def _advance(self) -> Tensor:
        logits = self._forward(
            input_ids=self._token,
            attention_mask=(self._columns <= self._position)[None, None],
            position_ids=self._position,
            **{self._cache_name: self.cache},
        )
        self._token.copy_(logits.argmax(-1, keepdim=True))
        self._position.add_(1)
        return logits

    def _graph(self, what: str, call: Callable[[], Tensor]) -> Callable[[], Tensor] | None:
        """The call as a CUDA graph, which returns the same tensor every time; on the CPU as it is.

        None where it cannot be captured, which the note then says.
        """
        if not is_captured_on(self.vlm.device):
            return call
        try:
            for _ in range(2):
                call()
                self.rewind()
            # Run first without capture: a failed capture leaves the allocator in a bad state.
            with no_waiting():
                call()
            self.rewind()
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                output = call()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            torch.cuda.synchronize()
            self.rewind()
            self.note += f"{'; ' if self.note else ''}{what} is no CUDA graph: {first_line(error)}"
            return None

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


def is_captured_on(device: torch.device) -> bool:
    """Whether a device has graphs."""
    return device.type == "cuda"


MODES: dict[Mode, type[Eager]] = {"eager": Eager, "static": Static}


def pruned_view(
    vlm: Vlm, choice: Choice, batch: int, timed: bool = False
) -> tuple[Any, Handle | None, int]:
    """A view of the model that keeps what is chosen, its handle, and the placeholders an image."""
    view, processor = vlm.view(), Placeholders(vlm.shape, batch)
    handle = None
    if choice.selector != "unpruned":
        selector = vlm.selector(choice)
        # As the published pruners have them; the gate's own pass is given no positions.
        handle = attach(
            view, processor, selector, choice.budget, timed=timed, positions="consecutive"
        )
    return view, handle, processor.count()
