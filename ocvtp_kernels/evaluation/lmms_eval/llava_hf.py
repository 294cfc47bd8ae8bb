"""LLaVA-1.5 and LLaVA-NeXT in lmms-eval."""

from __future__ import annotations

from lmms_eval.models.chat.llava_hf import LlavaHf as ChatLlava
from lmms_eval.models.simple.llava_hf import LlavaHf as SimpleLlava

from ocvtp_kernels.evaluation.lmms_eval.model import PrunedModel


class _Pruned(PrunedModel):
    processor_name = "_image_processor"
    reads_authors = True


class Simple(_Pruned, SimpleLlava):
    """lmms-eval's, with `PrunedModel`."""


class Chat(_Pruned, ChatLlava):
    """lmms-eval's for chat messages, with `PrunedModel`."""
