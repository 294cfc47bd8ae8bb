"""Methods in the decoder on one photo and a question, for `ocvtp prune --model`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ocvtp_kernels.selectors.interface import Selector
from ocvtp_kernels.text import describe_error
from ocvtp_kernels.vlm.attach import attach
from ocvtp_kernels.vlm.encoder import Encoded
from ocvtp_kernels.vlm.family import find_family

NO_LANGUAGE_MODEL = "needs a language model"


class KeptInDecoder(NamedTuple):
    """What a method in the decoder keeps of one photo."""

    ids: list[int]  # after the last stage, ascending
    stages: list[tuple[int, int]]  # before which layer tokens are dropped, and how many are left


class DecoderPhotos:
    """A vision-language model that is asked about photos, in float32 on the CPU.

    Args:
        model: of a family whose image tokens are one grid, with its head or without; becomes
            float32.
        tokenizer: the model's own, with the chat template of its processor if there is one.
        reference_layer: as `attach` has it.
    """

    def __init__(self, model: Any, tokenizer: Any, reference_layer: int | None = None) -> None:
        self.model, self.tokenizer = model.float().eval(), tokenizer
        self.reference_layer = reference_layer

    @torch.inference_mode()
    def keep(
        self, encoded: Encoded, selector: Selector, budget: int, question: str
    ) -> KeptInDecoder:
        """What `attach` keeps of a photo in front of a question.

        Args:
            encoded: the photo, by the encoder of the same model.
            selector: of the place "decoder".
            budget: T; a photo of fewer tokens keeps them all.
            question: without the photo's placeholder.

        Raises:
            ValueError: the question has a placeholder, the selector does not fit the model, or its
                tokens of the photo are not those of the encoder.
        """
        rows, columns = encoded.grid
        token = self.model.config.image_token_id
        before, after = self._split_prompt(question)
        input_ids = torch.tensor([before + [token] * (rows * columns) + after])
        given = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        # Qwen's models tell images from text by it where they number positions.
        if "mm_token_type_ids" in inspect.signature(self.model.forward).parameters:
            given["mm_token_type_ids"] = (input_ids == token).int()
        layer = self.reference_layer
        with attach(self.model, None, selector, budget, reference_layer=layer) as handle:
            self.model(**given, **encoded.given)
            last = handle.last
        assert last is not None
        stages = [(layer, len(ids[0])) for layer, ids in last.stages]
        return KeptInDecoder(last.ids[0].tolist(), stages)

    def _split_prompt(self, question: str) -> tuple[list[int], list[int]]:
        """The prompt's token ids, before and behind the photo's placeholder."""
        token = self.model.config.image_token_id
        if self.tokenizer.chat_template is None:
            prompt = f"{self.tokenizer.convert_ids_to_tokens(token)}\n{question}"
        else:
            content = [{"type": "image"}, {"type": "text", "text": question}]
            prompt = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        ids: list[int] = self.tokenizer(prompt)["input_ids"]
        if ids.count(token) != 1:
            raise ValueError(
                f"question: expected a prompt with one placeholder of a photo, got "
                f"{ids.count(token)}: {prompt!r}"
            )
        place = ids.index(token)
        return ids[:place], ids[place + 1 :]


def open_decoder(
    model: Any, source: str | Path, reference_layer: int | None = None
) -> DecoderPhotos:
    """The language model of a Hugging Face model, with its tokenizer.

    Args:
        model: loaded from ``source``.
        source: hub id or directory.
        reference_layer: as `attach` has it.

    Raises:
        ValueError: methods in the decoder cannot be drawn of this model; the message is a reason,
            without the name of an argument.
    """
    from transformers import AutoTokenizer, ProcessorMixin

    family = find_family(model.config.model_type)
    if family is not None and family.no_decoder:
        raise ValueError(f"is not supported for {family.name}, as {family.no_decoder}")
    if family is None or family.in_decoder is None:
        raise ValueError(NO_LANGUAGE_MODEL)
    if family.in_decoder.read_grids is None:
        raise ValueError(f"needs image tokens that are one grid, which {family.name}'s are not")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        # Not of a processor, as some need torchvision.
        settings, _ = ProcessorMixin.get_processor_dict(source)
    except (ImportError, OSError, ValueError, KeyError) as error:
        reason = f"needs the model's tokenizer, which cannot be loaded: {describe_error(error)}"
        raise ValueError(reason) from error
    tokenizer.chat_template = settings.get("chat_template")
    return DecoderPhotos(model, tokenizer, reference_layer)
