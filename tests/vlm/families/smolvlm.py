"""SmolVLM: the code of Idefics3; here a tag is one token, as of SmolVLM2."""

from __future__ import annotations

from tests.vlm.families.idefics3 import make_entry
from tests.vlm.models_tiles import WHOLE

ENTRY = make_entry("smolvlm", special=(WHOLE, "<row_1_col_1>"), like="idefics3")
