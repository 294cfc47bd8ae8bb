"""vLLM's CPU runner, which does not ask a model whether its positions follow from its images."""

from __future__ import annotations

from typing import Any


def mend_cpu_runner() -> None:
    """Makes the CPU runner ask, as the GPU runner does; nothing on other platforms."""
    from vllm.platforms import current_platform

    if current_platform.device_type != "cpu":
        return
    from vllm.model_executor.models.interfaces import supports_multimodal_pruning
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    original = CPUModelRunner.load_model
    if original.__module__ == __name__:
        return  # by an earlier call

    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        config = self.model_config.multimodal_config
        self.is_multimodal_pruning_enabled = bool(
            config is not None
            and config.is_multimodal_pruning_enabled()
            and supports_multimodal_pruning(self.get_model())
        )

    CPUModelRunner.load_model = load_model
