"""Qwen3.5."""

from __future__ import annotations

from tests.vlm.families._qwen import make_entry

ENTRY = make_entry("qwen3_5")
