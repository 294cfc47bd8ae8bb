"""What vLLM is told of a model with an ``ocvtp`` setting before it makes its plans."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig


class PositionsConfig(VerifyAndUpdateConfig):
    """Makes vLLM ask a model where tokens stand, if kept ones stand at original positions."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Changes the config of a model, not that of its language model, which stays as it is."""
        from ocvtp_kernels.serving.vllm.settings import keeps_positions, read_settings

        config = model_config.hf_config
        settings = read_settings(config)
        if settings is None or not keeps_positions(settings, config):
            return
        if not model_config.uses_mrope:
            # Of three positions a token, with no channels: the language model has one of them.
            config.rope_parameters = {"mrope_section": [0, 0, 0]}
