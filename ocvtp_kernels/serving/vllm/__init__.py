"""A plug-in of vLLM that keeps a fixed number of tokens of every image.

vLLM finds `register` by the entry point ``vllm.general_plugins`` of the installed package and calls
it in each of its processes. Nothing else of this folder is imported before a model is loaded.
"""

from __future__ import annotations

# The module here that has the pruned class, by the architecture that vLLM knows.
ARCHITECTURES = {
    "LlavaForConditionalGeneration": "llava",
    "LlavaNextForConditionalGeneration": "llava_next",
    "Qwen2VLForConditionalGeneration": "qwen2_vl",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
}
# Of the architectures that only this plug-in has: without it vLLM refuses to start on them.
PREFIX = "Ocvtp"


def register() -> None:
    """Registers the pruned classes, under vLLM's own names and under those with `PREFIX`.

    Without an ``ocvtp`` setting on a model's config they behave as vLLM's own. May be called any
    number of times.
    """
    from vllm import ModelRegistry

    from ocvtp_kernels.serving.vllm.cpu_runner import mend_cpu_runner

    for architecture, module in ARCHITECTURES.items():
        pruned = f"{__name__}.{module}:{PREFIX}{architecture}"
        ModelRegistry.register_model(architecture, pruned)
        ModelRegistry.register_model(PREFIX + architecture, pruned)
    mend_cpu_runner()
