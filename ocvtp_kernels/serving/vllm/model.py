"""A model whose images keep a fixed number of tokens: what the classes of all families share."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.logger import init_logger
from vllm.model_executor.models.utils import StageMissingLayer
from vllm.multimodal import MULTIMODAL_REGISTRY

from ocvtp_kernels.selectors.interface import Selector
from ocvtp_kernels.serving.vllm.settings import BUDGET, Settings, load_selector, read_settings
from ocvtp_kernels.serving.vllm.slices import split_runs

# vLLM shows the messages of its own loggers.
logger = init_logger(f"vllm.{__name__}")


class PrunedModel:
    """Mixin of a model of vLLM, before its class.

    A family says what `begin_pruning`, `count_tokens` and `embed_images` do. Without an ``ocvtp``
    setting all is as vLLM's own.

    Attributes:
        ocvtp: the settings; None where nothing is pruned.
        tower_name: of the attribute that is the vision encoder.
    """

    tower_name: str

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        model_config = vllm_config.model_config
        settings = read_settings(model_config.hf_config)
        if settings is not None:
            _refuse(self.unsupported(vllm_config))
            self.prepare(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        # Where it gets no images, vLLM builds no tower.
        has_tower = not isinstance(getattr(self, self.tower_name), StageMissingLayer)
        self.ocvtp = settings if has_tower else None
        if settings is None or not has_tower:
            return
        device = vllm_config.device_config.device
        selector = load_selector(settings, model_config.model, device, model_config.revision)
        # So many tokens vLLM encodes at once without pruning.
        self.slice_size = int(vllm_config.scheduler_config.max_num_encoder_input_tokens)
        layer = self.begin_pruning(settings, selector, model_config)
        whole, kept = MULTIMODAL_REGISTRY.get_processing_info(model_config).count_most_tokens()
        logger.info_once(
            "ocvtp: %d to %d tokens per image (the largest), by %s on vision layer %d",
            *(whole, kept, settings.method, layer),
        )

    def unsupported(self, vllm_config: Any) -> dict[str, bool]:
        """What pruning would not see or get wrong, by name: whether the engine is set to it."""
        model_config, lora = vllm_config.model_config, vllm_config.lora_config
        mm_config = model_config.multimodal_config
        return {
            "mm_encoder_tp_mode='data'": mm_config.mm_encoder_tp_mode == "data",
            "enable_mm_embeds": mm_config.enable_mm_embeds,
            "enable_tower_connector_lora": lora is not None and lora.enable_tower_connector_lora,
            "compile_mm_encoder": vllm_config.compilation_config.compile_mm_encoder,
            # Its second level forgets all weights, and fetches those of the model alone again.
            "enable_sleep_mode": model_config.enable_sleep_mode,
            "video_pruning_rate": bool(mm_config.video_pruning_rate),
            # The server's budget is that of its setting.
            f"mm_processor_kwargs[{BUDGET!r}]": BUDGET in (mm_config.mm_processor_kwargs or {}),
        }

    def prepare(self, vllm_config: Any) -> None:
        """What has to be done before vLLM builds a model that prunes."""

    def begin_pruning(self, settings: Settings, selector: Selector, model_config: Any) -> int:
        """Takes the selector, once the model is built; returns the reference layer.

        Raises:
            ValueError: the selector or the settings do not fit the model.
        """
        raise NotImplementedError

    def count_tokens(self, image_input: Any) -> list[int]:
        """Tokens that the tower makes of each image."""
        raise NotImplementedError

    def count_kept(self, image_input: Any, image: int, size: int, budget: int) -> int:
        """Placeholders of an image of ``size`` tokens in the prompt."""
        return min(budget, size)

    def embed_images(self, image_input: Any, images: list[int], budget: int) -> list[Tensor]:
        """The kept tokens ``[T_i, D]`` of some images."""
        raise NotImplementedError

    def embed_unpruned(self, **kwargs: Any) -> Any:
        """As vLLM's own ``embed_multimodal``."""
        return super().embed_multimodal(**kwargs)  # type: ignore[misc]

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """As vLLM's own, of the kept tokens."""
        budgets = kwargs.pop(BUDGET, None)
        if self.ocvtp is None or kwargs.get("pixel_values") is None:
            return self.embed_unpruned(**kwargs)
        image_input = self._parse_and_validate_image_input(**kwargs)  # type: ignore[attr-defined]
        sizes = self.count_tokens(image_input)
        # Of the requests, on the CPU.
        wanted = [self.ocvtp.budget] * len(sizes) if budgets is None else [int(k) for k in budgets]
        features: dict[int, Tensor] = {}
        for budget in sorted(set(wanted)):
            alike = [image for image, each in enumerate(wanted) if each == budget]
            for run in split_runs([sizes[image] for image in alike], self.slice_size):
                images = alike[run]
                features |= zip(images, self.embed_images(image_input, images, budget), strict=True)
        expected = [
            self.count_kept(image_input, image, *each)
            for image, each in enumerate(zip(sizes, wanted, strict=True))
        ]
        counts = [len(features[image]) for image in range(len(sizes))]
        if counts != expected:
            # vLLM takes the first rows of too many without a word.
            raise RuntimeError(f"ocvtp: expected {expected} tokens of the images, got {counts}")
        return [features[image] for image in range(len(sizes))]


def _refuse(unsupported: dict[str, bool]) -> None:
    """Raises ValueError if the engine is set to any of these."""
    for name, is_set in unsupported.items():
        if is_set:
            raise ValueError(f"{name}: not supported with an ocvtp setting")
