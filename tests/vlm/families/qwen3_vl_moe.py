"""Qwen3-VL with experts."""

from __future__ import annotations

from tests.vlm.families._qwen import make_entry

ENTRY = make_entry("qwen3_vl_moe", like="qwen3_vl")
