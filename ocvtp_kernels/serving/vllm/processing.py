"""How many placeholders an image gets: what the processors of all families share.

Mixed into vLLM's own classes, which do as before where a model has no ``ocvtp`` setting.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig

from ocvtp_kernels.serving.vllm.positions import longest_prompt
from ocvtp_kernels.serving.vllm.settings import (
    BUDGET,
    Settings,
    fingerprint,
    read_settings,
    request_budget,
)


class PrunedInfo:
    """Mixin of a ``ProcessingInfo``: counts that the encoder's budget and profiling follow."""

    ctx: Any

    @cached_property
    def ocvtp(self) -> Settings | None:
        """The model's settings."""
        return read_settings(self.ctx.model_config.hf_config)

    @cached_property
    def hash_suffix(self) -> str:
        """Behind an image's hash, so that caches that servers share tell settings apart."""
        assert self.ocvtp is not None
        config = self.ctx.model_config
        return f"-ocvtp-{fingerprint(self.ocvtp, config.model, config.revision)}"

    def get_num_image_tokens(self, **image: Any) -> int:
        """Tokens of an image, at most the budget."""
        count: int = super().get_num_image_tokens(**image)  # type: ignore[misc]
        settings = self.ocvtp
        return count if settings is None else self.count_kept(count, settings.budget, **image)

    def count_kept(self, count: int, budget: int, **image: Any) -> int:
        """What is kept of an image's ``count`` tokens."""
        return min(count, budget)

    def count_unpruned(self, **image: Any) -> int:
        """Tokens of an image without pruning."""
        count: int = super().get_num_image_tokens(**image)  # type: ignore[misc]
        return count

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int] | None:
        """Of images the count without pruning: vLLM profiles as many as it encodes at once."""
        counts: Mapping[str, int] | None = super().get_mm_max_tokens_per_item(  # type: ignore[misc]
            seq_len, mm_counts
        )
        if self.ocvtp is None:
            return counts
        counts = counts or self.count_videos(seq_len, mm_counts)
        return {**counts, "image": self.count_most_tokens()[0]}

    def count_videos(self, seq_len: int, mm_counts: Mapping[str, int]) -> dict[str, int]:
        """Tokens of the longest video, by modality, where vLLM's own class counts none."""
        return {}

    def count_arguments(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What counts take beside the size of an image; ``kwargs`` are those of a request."""
        return {}

    def count_most_tokens(self) -> tuple[int, int]:
        """Tokens of the largest image without pruning, and those that are kept of it."""
        size = self.get_image_size_with_most_features()  # type: ignore[attr-defined]
        image = {"image_width": size.width, "image_height": size.height} | self.count_arguments({})
        return self.count_unpruned(**image), self.get_num_image_tokens(**image)


class PrunedProcessor:
    """Mixin of a ``MultiModalProcessor``: placeholders of a request, and its budget."""

    info: Any

    def _read_budget(self, kwargs: Mapping[str, Any]) -> tuple[int | None, dict[str, Any]]:
        """The budget of a request, and what its kwargs have beside; None without a setting."""
        others = {name: value for name, value in kwargs.items() if name != BUDGET}
        settings = self.info.ocvtp
        if settings is None:
            if BUDGET in kwargs:
                raise ValueError(f"{BUDGET}: expected none, as this model has no ocvtp setting")
            return None, others
        return request_budget(settings, kwargs), others

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        budget, others = self._read_budget(hf_kwargs)
        outputs = super()._apply_hf_processor_main(mm_items, others)  # type: ignore[misc]
        images = mm_items.get_all_counts().get("image", 0)
        if budget is not None and images:
            outputs[BUDGET] = torch.full((images,), budget)
        return outputs

    def _get_mm_fields_config(
        self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any]
    ) -> Any:
        _, others = self._read_budget(hf_processor_mm_kwargs)
        fields = super()._get_mm_fields_config(hf_inputs, others)  # type: ignore[misc]
        return {**fields, BUDGET: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        budget, others = self._read_budget(hf_processor_mm_kwargs)
        updates: Sequence[Any] = super()._get_prompt_updates(  # type: ignore[misc]
            mm_items, others, out_mm_kwargs
        )
        if budget is None:
            return updates

        def fewer(update: Any) -> Any:
            if update.modality != "image":
                return update
            placeholders = self._fewer_placeholders(mm_items, update.replacement, budget)
            return dataclasses.replace(update, replacement=placeholders)

        return [fewer(update) for update in updates]

    def _fewer_placeholders(
        self, mm_items: Any, placeholders: Callable[[int], list[int]], budget: int
    ) -> Callable[[int], list[int]]:
        """The placeholders of the image of an index, of those it would have."""
        return lambda index: placeholders(index)[:budget]

    def _get_mm_hashes(self, inputs: Any) -> Any:
        hashes = dict(super()._get_mm_hashes(inputs))  # type: ignore[misc]
        if self.info.ocvtp is not None and "image" in hashes:
            hashes["image"] = [each + self.info.hash_suffix for each in hashes["image"]]
        return hashes


class NarrowProcessor(PrunedProcessor):
    """As `PrunedProcessor`, of a model of one position a token, which may have no more of them."""

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        output = super().apply(inputs, timing_ctx)  # type: ignore[misc]
        model_config = self.info.ctx.model_config
        if self.info.ocvtp is None or not model_config.uses_mrope:
            return output
        length, most = len(output["prompt_token_ids"]), longest_prompt(model_config)
        for index, kept in enumerate(output["mm_placeholders"].get("image", ())):
            length += self._count_whole(inputs, index) - kept.get_num_embeds()
        if length > most:
            raise ValueError(
                f"ocvtp.positions: expected a prompt of at most {most} tokens with those that are "
                f"dropped, as they keep their positions, got {length}; where the server's are "
                "'consecutive', kept tokens count alone"
            )
        return output

    def _count_whole(self, inputs: Any, index: int) -> int:
        images = inputs.mm_data_items["image"]
        # One that was sent before may be a name alone.
        if images.get(index) is None:
            whole, _ = self.info.count_most_tokens()
            return int(whole)
        size = images.get_image_size(index)
        image = {"image_width": size.width, "image_height": size.height}
        others = self.info.count_arguments(inputs.hf_processor_mm_kwargs)
        return int(self.info.count_unpruned(**image, **others))
