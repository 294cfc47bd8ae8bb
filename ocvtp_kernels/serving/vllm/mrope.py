"""A model that vLLM asks where tokens stand: the Qwens, and others at original positions.

vLLM asks models of M-RoPE alone, so others are taken for such, whose images are one token wide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.rotary_embedding import DynamicNTKScalingRotaryEmbedding
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase

from ocvtp_kernels.serving.vllm.model import PrunedModel
from ocvtp_kernels.serving.vllm.positions import (
    NUM_DIGITS,
    Span,
    expand_prompt,
    longest_prompt,
    narrow_positions,
    place_tokens,
)
from ocvtp_kernels.serving.vllm.settings import Settings, keeps_positions
from ocvtp_kernels.vlm.handle import Options


class PositionedModel(PrunedModel):
    """Mixin of a model of M-RoPE positions, before its class.

    Where vLLM does not take it for one, nothing is done.

    Attributes:
        keeps_positions: whether kept tokens stand where they do in the whole prompt.
        media_tokens: of the config, the ids of placeholders.
        remedy: a setting that allows what positions do not, for errors.
    """

    keeps_positions = False
    media_tokens: tuple[str, ...] = ("image_token_id",)
    remedy = ""
    config: Any

    def unsupported(self, vllm_config: Any) -> dict[str, bool]:
        names = super().unsupported(vllm_config)
        if not vllm_config.model_config.uses_mrope:
            return names
        # A draft model, and later stages of a pipeline, are not told where kept tokens stand.
        return names | {
            f"speculative_config{self.remedy}": vllm_config.speculative_config is not None,
            f"pipeline_parallel_size{self.remedy}": (
                vllm_config.parallel_config.pipeline_parallel_size > 1
            ),
        }

    def prepare(self, vllm_config: Any) -> None:
        if vllm_config.model_config.uses_mrope:
            # vLLM then asks for positions again once images are encoded, and makes room for
            # positions behind the end of a pruned prompt. No video is pruned: there is no rate.
            config = vllm_config.model_config.multimodal_config
            object.__setattr__(config, "is_multimodal_pruning_enabled", _always)

    def begin_positions(self, settings: Settings, model_config: Any) -> None:
        """To be called by `begin_pruning`.

        Raises:
            ValueError: the setting does not fit the model.
            RuntimeError: vLLM was not told of the setting.
        """
        self.keeps_positions = keeps_positions(settings, model_config.hf_config)
        if self.keeps_positions != model_config.uses_mrope:
            raise RuntimeError("ocvtp: this vLLM has not asked the plug-in about positions")
        self.supports_multimodal_pruning = self.keeps_positions
        self._width = self.config.get_text_config().hidden_size

    def count_whole(self, data: Any) -> int:
        """Placeholders of an image without pruning.

        Args:
            data: of the image, what vLLM keeps on the CPU of it.
        """
        raise NotImplementedError

    def span_of(self, feature: Any) -> Span:
        """The placeholders of an image, or a video with the text between its frames."""
        offset, length = feature.mm_position.offset, feature.mm_position.length
        if feature.modality != "image":
            return Span(offset, length, length)
        if feature.mm_position.is_embed is not None:
            # Tokens that are no placeholders may be around them.
            places = feature.mm_position.is_embed.nonzero()
            offset, length = offset + int(places[0]), len(places)
        return Span(offset, length, self.count_whole(feature.data))

    def media_ids(self) -> list[int]:
        """The ids of placeholders."""
        return [getattr(self.config, name) for name in self.media_tokens]

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[Tensor, int]:
        """As vLLM's own, of the prompt with all tokens of its images."""
        if self.ocvtp is None:
            return super().get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc]
        features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        spans = [self.span_of(feature) for feature in features]
        whole = expand_prompt(input_tokens, spans)
        moved = [
            _move(feature, offset - span.offset)
            for feature, span, offset in zip(features, spans, whole.offsets, strict=True)
        ]
        positions, _ = super().get_mrope_input_positions(whole.tokens, moved)  # type: ignore[misc]
        kept = positions[:, whole.columns]
        # vLLM hands this tensor to `recompute_mrope_positions`, which no longer knows how far an
        # image reaches that no text follows, and need not read positions to know it.
        kept.following = int(positions.max()) + 1
        return kept, kept.following - len(input_tokens)

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """The embeddings without places, and the positions with those of kept tokens.

        Args:
            input_ids: of the whole prompt, L of them.
            multimodal_embeddings: of the images and videos, or parts of them, in this step.
            mrope_positions: ``[3, L]``.
            num_computed_tokens: of the prompt, before this step.

        Returns:
            the embeddings, the positions, and what is added to an index behind the prompt to make
            it a position.
        """
        if self.ocvtp is None:
            return super().recompute_mrope_positions(  # type: ignore[misc]
                input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens
            )
        following = getattr(mrope_positions, "following", None)
        if following is not None and not multimodal_embeddings:
            # Of every answer, at every token of it.
            return [], mrope_positions, following - len(input_ids)
        positions = mrope_positions.clone()
        ids = torch.as_tensor(input_ids, device=positions.device)
        is_media = torch.isin(ids, torch.tensor(self.media_ids(), device=ids.device))
        columns = is_media[num_computed_tokens:].nonzero().flatten() + num_computed_tokens
        embeddings, done = [], 0
        for features in multimodal_embeddings:
            end = done + len(features)
            if features.shape[1] % self._width == NUM_DIGITS:
                place_tokens(positions, columns[done:end], features[:, -NUM_DIGITS:])
                features = features[:, :-NUM_DIGITS]
            embeddings.append(features)
            done = end
        if following is None:
            following = int(positions.max()) + 1
        return embeddings, positions, following - len(ids)


class NarrowModel:
    """Mixin of a model of one position a token, between `PositionedModel` and its class.

    To vLLM its images are one token wide, so that rows count the tokens.
    """

    supports_mrope = True
    language_model: Any

    def begin_narrow(self, settings: Settings, model_config: Any, layer: int | None) -> Options:
        """To be called by `begin_pruning`, as `begin_positions`: the options of its encoder.

        Args:
            settings, model_config: as `begin_positions` has them.
            layer: the reference layer.
        """
        self.begin_positions(settings, model_config)  # type: ignore[attr-defined]
        keeps_positions: bool = self.keeps_positions  # type: ignore[attr-defined]
        if keeps_positions:
            # Of a prompt that is taken, and of the longest answer behind it.
            room = longest_prompt(model_config) + model_config.max_model_len
            make_room(self.language_model, room)
        positions = "original" if keeps_positions else "consecutive"
        # A side stream is tried on Hugging Face's models alone.
        return Options(layer, newlines=settings.newlines, overlap=False, positions=positions)

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[Tensor, int]:
        """As vLLM's own of other models."""
        spans = [self.span_of(feature) for feature in mm_features]  # type: ignore[attr-defined]
        images = [(span.offset, span.whole) for span in spans]
        return narrow_positions(len(input_tokens), images), 0

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As vLLM's own, whose language model gets the rows."""
        rows = positions if positions.dim() == 1 else positions[1]
        return super().forward(  # type: ignore[misc]
            input_ids, rows, intermediate_tensors, inputs_embeds, **kwargs
        )


def make_room(model: nn.Module, length: int) -> None:
    """Gives the rotary embeddings of a model ``length`` positions, which vLLM has in a table.

    Raises:
        ValueError: an embedding depends on their number, as YaRN's does.
    """
    for module in model.modules():
        if not isinstance(module, RotaryEmbeddingBase) or len(module.cos_sin_cache) >= length:
            continue
        table = module.cos_sin_cache
        if isinstance(module, DynamicNTKScalingRotaryEmbedding):
            # It scales by their ratio, which stays.
            module.max_trained_positions *= length / module.max_position_embeddings
        module.max_position_embeddings = length
        longer = module._compute_cos_sin_cache().to(table)
        if len(longer) < length or not torch.allclose(longer[: len(table)], table):
            raise ValueError(
                f"ocvtp.positions: expected 'consecutive', as the {type(module).__name__} of the "
                f"language model has {len(table)} positions, of {length} for the original ones"
            )
        module.cos_sin_cache = longer
        if getattr(module, "cos_sin_cache_bf16", None) is not None:
            module.cos_sin_cache_bf16 = longer.to(torch.bfloat16)


def _move(feature: Any, distance: int) -> Any:
    """An image or a video that many tokens further behind in its prompt."""
    position = feature.mm_position
    moved = dataclasses.replace(position, offset=position.offset + distance)
    return dataclasses.replace(feature, mm_position=moved)


def _always() -> bool:
    return True
