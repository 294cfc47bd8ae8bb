"""Qwen3.5 with experts."""

from __future__ import annotations

from tests.vlm.families._qwen import make_entry

ENTRY = make_entry("qwen3_5_moe", like="qwen3_5")
