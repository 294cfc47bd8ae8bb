"""A plug-in of vLLM that keeps a fixed number of tokens of every image.

vLLM finds `register` by the entry point ``vllm.general_plugins`` of the installed package and calls
it in each of its processes. Nothing else of this folder is imported before a model is loaded.
"""

from __future__ import annotations

import logging
import re

# The module here that has the pruned class, by the architecture that vLLM knows.
ARCHITECTURES = {
    "LlavaForConditionalGeneration": "llava",
    "LlavaNextForConditionalGeneration": "llava_next",
    "Qwen2VLForConditionalGeneration": "qwen2_vl",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
    "Qwen3VLMoeForConditionalGeneration": "qwen3_vl",
    "Qwen3_5ForConditionalGeneration": "qwen3_5",
    "Qwen3_5MoeForConditionalGeneration": "qwen3_5",
    "LlavaOnevisionForConditionalGeneration": "llava_onevision",
    "InternVLForConditionalGeneration": "internvl",
}
# Of the architectures that only this plug-in has: without it vLLM refuses to start on them.
PREFIX = "Ocvtp"
# Versions of vLLM whose classes those here were made for.
TRIED = ((0, 32), (0, 33))

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM shows the messages of its own loggers


def register() -> None:
    """Registers the pruned classes, under vLLM's own names and under those with `PREFIX`.

    Without an ``ocvtp`` setting on a model's config they behave as vLLM's own; where they were not
    tried, models that nobody wants pruned stay vLLM's. May be called any number of times.
    """
    import vllm
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from ocvtp_kernels.serving.vllm.config import PositionsConfig

    is_tried = tuple(int(part) for part in re.findall(r"\d+", vllm.__version__)[:2]) in TRIED
    for architecture, module in ARCHITECTURES.items():
        pruned = f"{__name__}.{module}:{PREFIX}{architecture}"
        # What vLLM itself does to a config stays; it does so for models of M-RoPE alone.
        config = MODELS_CONFIG_MAP.get(architecture, PositionsConfig)
        for name in (PREFIX + architecture, *([architecture] if is_tried else [])):
            vllm.ModelRegistry.register_model(name, pruned)
            MODELS_CONFIG_MAP[name] = config
    if is_tried:
        from ocvtp_kernels.serving.vllm.cpu_runner import mend_cpu_runner

        mend_cpu_runner()
    else:
        logger.warning(
            "ocvtp: not tried with vLLM %s; only architectures named %s... are pruned",
            *(vllm.__version__, PREFIX),
        )
