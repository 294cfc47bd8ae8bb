"""Qwen2.5-VL in lmms-eval."""

from __future__ import annotations

from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL as ChatQwen
from lmms_eval.models.simple.qwen2_5_vl import Qwen2_5_VL as SimpleQwen

from ocvtp_kernels.evaluation.lmms_eval.model import PrunedModel


class Simple(PrunedModel, SimpleQwen):
    """lmms-eval's, with `PrunedModel`."""


class Chat(PrunedModel, ChatQwen):
    """lmms-eval's for chat messages, with `PrunedModel`."""
