"""Qwen3-VL."""

from __future__ import annotations

from tests.vlm.families._qwen import make_entry

ENTRY = make_entry("qwen3_vl")
