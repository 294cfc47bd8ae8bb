"""What a server keeps of its images: the ``ocvtp`` setting of a model's config, and of a request.

Set by ``--hf-overrides.ocvtp.budget 64 --hf-overrides.ocvtp.pruner FILE``, or in ``config.json``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from ocvtp_kernels.checks import require_bool, require_one_of, whole_number
from ocvtp_kernels.pruner.pruner import OCPruner
from ocvtp_kernels.selectors.interface import Selector, SelectorAttributes, place_of
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from ocvtp_kernels.selectors.registry import PRUNER, check_choice, make_selector
from ocvtp_kernels.vlm.handle import NEWLINES, POSITIONS

# The key in `mm_processor_kwargs` by which a request asks for fewer tokens.
BUDGET = "ocvtp_budget"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """The keys of the ``ocvtp`` setting.

    Attributes:
        budget: tokens kept of an image, at least 1.
        pruner: file of the object-centric pruner: in the model's folder or repository, or any.
        method: "oc-pruner", or one of `METHODS`.
        options: of the method, see `make_selector`.
        importance: whether attention received fills the gaps of the object-centric pruner.
        reference_layer: vision layer the decision is made on; by the depth if None, as `attach`.
        newlines: LLaVA-NeXT's newline tokens: "drop" or "all".
        positions: where kept tokens, and all behind them, stand: "original" or "consecutive"; if
            None as `keeps_positions` says.
        dtype: that the object-centric pruner computes in, whatever the model's is.
    """

    budget: int
    pruner: str | None = None
    method: str = PRUNER
    options: Mapping[str, Any] = field(default_factory=dict)
    importance: bool = True
    reference_layer: int | None = None
    newlines: str = "drop"
    positions: str | None = None
    dtype: str = "float32"


def read_settings(hf_config: Any) -> Settings | None:
    """The settings of a model's config; None where it has none.

    Raises:
        ValueError, TypeError: a key is unknown, the budget is missing, or a value is none of those
            expected.
    """
    given = getattr(hf_config, "ocvtp", None)
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise TypeError(f"ocvtp: expected keys and values, got {given!r}")
    known = [each.name for each in fields(Settings)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"ocvtp: unknown keys {unknown}; expected some of {known}")
    if "budget" not in given:
        raise ValueError("ocvtp.budget: expected a number of tokens to keep, got none")
    settings = Settings(**given)
    whole_number("ocvtp.budget", settings.budget, 1)
    check_choice(settings.method, settings.pruner, prefix="ocvtp.")
    if not isinstance(settings.options, Mapping):
        raise TypeError(f"ocvtp.options: expected keys and values, got {settings.options!r}")
    if settings.options and settings.method == PRUNER:
        raise ValueError(f"ocvtp.options: expected none with {PRUNER!r}, got {settings.options!r}")
    require_bool("ocvtp.importance", settings.importance)
    if settings.reference_layer is not None:
        whole_number("ocvtp.reference_layer", settings.reference_layer, 0)
    require_one_of("ocvtp.newlines", settings.newlines, NEWLINES)
    if settings.positions is not None:
        require_one_of("ocvtp.positions", settings.positions, POSITIONS)
    require_one_of("ocvtp.dtype", settings.dtype, tuple(DTYPES))
    return settings


def keeps_positions(settings: Settings, hf_config: Any) -> bool:
    """Whether kept tokens stand at their original positions: by default where they can.

    Raises:
        ValueError: the model has other positions than those asked for.
    """
    rope = getattr(hf_config.get_text_config(), "rope_parameters", None)
    possible: tuple[str, ...] = ("original", "consecutive")
    if not rope:
        possible = ("consecutive",)
    elif "mrope_section" in rope:
        # Those of a grid, whatever is kept of it.
        possible = ("original",)
    positions = possible[0] if settings.positions is None else settings.positions
    if positions not in possible:
        raise ValueError(
            f"ocvtp.positions: expected {possible[0]!r} for {hf_config.model_type}, "
            f"got {positions!r}"
        )
    return positions == "original"


def request_budget(settings: Settings, processor_kwargs: Mapping[str, Any]) -> int:
    """Tokens that a request keeps of each image.

    Args:
        settings: the server's.
        processor_kwargs: ``mm_processor_kwargs`` of the request.

    Raises:
        ValueError: it asks for more than the server's budget, which the encoder's budget is
            planned by, or for no whole number, or among the arguments of one processor.
    """
    for name, value in processor_kwargs.items():
        if isinstance(value, Mapping) and BUDGET in value:
            raise ValueError(f"{BUDGET}: expected beside {name}, got it within")
    wanted = processor_kwargs.get(BUDGET, settings.budget)
    is_whole = isinstance(wanted, int) and not isinstance(wanted, bool)
    if not is_whole or not 1 <= wanted <= settings.budget:
        raise ValueError(
            f"{BUDGET}: expected 1 to {settings.budget}, the server's budget, got {wanted!r}"
        )
    return int(wanted)


def load_selector(
    settings: Settings, model: str, device: torch.device | str, revision: str | None = None
) -> Selector:
    """The selector of the settings.

    Args:
        settings: the server's.
        model: the model's folder, or its id on a hub.
        device: of the model.
        revision: of the hub.

    Raises:
        ValueError: as `find_pruner`; or the method may keep fewer tokens than the budget, or stands
            between layers of the decoder or the tower.
        TypeError: the method has no such option.
    """
    if settings.method == PRUNER:
        # vLLM builds models under a default device and dtype of its own.
        with torch.device("cpu"):
            pruner = OCPruner.from_checkpoint(
                find_pruner(settings, model, revision), dtype=DTYPES[settings.dtype]
            )
        return PrunerSelector(pruner.to(device).freeze(), importance=settings.importance)
    selector = make_selector(settings.method, **settings.options)
    if not getattr(selector, "exact", SelectorAttributes.exact):
        raise ValueError(
            f"ocvtp.options: expected {settings.method!r} to keep exactly the budget, "
            f"which it does not with {dict(settings.options)}"
        )
    place = place_of(selector)
    if place == "decoder":
        raise ValueError(
            f"ocvtp.method: {settings.method!r} drops tokens between decoder layers, which vLLM's "
            "cache, of one length for all layers, does not allow"
        )
    if place == "tower":
        raise ValueError(
            f"ocvtp.method: {settings.method!r} merges tokens inside the tower, whose layers are "
            'vLLM\'s own; expected ocvtp.options {"place": "encoder"}, which merges its output'
        )
    return selector


def find_pruner(settings: Settings, model: str, revision: str | None = None) -> Path:
    """The pruner's file: in the model's folder or repository, or as it is named.

    Raises:
        ValueError: there is none, or it lies where vLLM loads it as weights of the model.
    """
    assert settings.pruner is not None
    folder = Path(model)
    places = (folder / settings.pruner, Path(settings.pruner))
    path = next((place for place in places if place.is_file()), None)
    if path is None and not folder.is_dir():
        path = _fetch(settings.pruner, model, revision)
    if path is None:
        raise ValueError(f"ocvtp.pruner: found no file {settings.pruner!r}, nor in {model!r}")
    is_beside = path.suffix == ".safetensors" and path.resolve().parent == folder.resolve()
    if is_beside and not any(folder.glob("*.safetensors.index.json")):
        raise ValueError(
            f"ocvtp.pruner: {str(path)!r} lies beside the model's weights, where vLLM loads it as "
            "some of them; expected it in a folder of its own"
        )
    return path


def _fetch(name: str, model: str, revision: str | None) -> Path | None:
    """A file of a hub's repository, None where it is not there or cannot be fetched."""
    from transformers.utils import cached_file

    try:
        found = cached_file(model, name, revision=revision)
    except OSError:
        return None
    return None if found is None else Path(found)


def fingerprint(settings: Settings, model: str, revision: str | None = None) -> str:
    """A short text that differs wherever settings or the pruner's weights do."""
    # Where a file lies does not matter, what is in it does.
    values = json.dumps(asdict(settings) | {"pruner": None}, sort_keys=True, default=str)
    digest = hashlib.sha256(values.encode())
    if settings.method == PRUNER:
        digest.update(find_pruner(settings, model, revision).read_bytes())
    return digest.hexdigest()[:16]
