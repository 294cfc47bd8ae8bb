"""Qwen2-VL."""

from __future__ import annotations

from tests.vlm.families._qwen import make_entry

ENTRY = make_entry("qwen2_vl", like="qwen2_5_vl")
