"""What an evaluation keeps of its images: arguments of the models here, of ``--model_args``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocvtp_kernels.checks import require_one_of
from ocvtp_kernels.pruner.config import PrunerConfig
from ocvtp_kernels.pruner.pruner import OCPruner
from ocvtp_kernels.selectors.interface import Selector
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from ocvtp_kernels.selectors.registry import PRUNER, check_choice, make_selector
from ocvtp_kernels.vlm.attach import attach
from ocvtp_kernels.vlm.handle import NEWLINES, POSITIONS, Handle


@dataclass(frozen=True)
class Settings:
    """The arguments, as `attach` and `OCPruner.from_checkpoint` take them.

    Attributes:
        budget: tokens kept of an image; 0 prunes nothing.
        pruner: file of the object-centric pruner.
        config: JSON of its config, in the authors' keys; the file's own if None.
        method: "oc-pruner", or one of `METHODS`.
        importance: whether attention received fills the gaps of the object-centric pruner.
        reference_layer: vision layer the decision is made on; that of `attach` if None.
        newlines: LLaVA-NeXT's newline tokens: "drop" or "all".
        positions: of the kept tokens: "consecutive" or "original".
    """

    budget: int
    pruner: str | None = None
    config: str | None = None
    method: str = PRUNER
    importance: bool = True
    reference_layer: int | None = None
    newlines: str = "drop"
    positions: str | None = None

    def attach(self, model: Any, processor: Any) -> Handle | None:
        """Prunes a model; None where nothing is pruned.

        Raises:
            ValueError: there is no such file, or `attach` refuses the model.
        """
        if self.budget == 0:
            return None
        selector = self._make_selector(model.device)
        return attach(
            model,
            processor,
            selector,
            self.budget,
            reference_layer=self.reference_layer,
            newlines=self.newlines,
            positions=self.positions,
        )

    def _make_selector(self, device: Any) -> Selector:
        if self.pruner is None:
            return make_selector(self.method)
        for name, path in (("pruner", self.pruner), ("config", self.config)):
            if path is not None and not Path(path).is_file():
                raise ValueError(f"{name}: found no file {path!r}")
        config = None if self.config is None else PrunerConfig.from_json(self.config)
        pruner = OCPruner.from_checkpoint(self.pruner, config)
        return PrunerSelector(pruner.to(device).freeze(), importance=self.importance)


def read_settings(given: Mapping[str, Any], otherwise: Mapping[str, Any]) -> Settings:
    """The settings of arguments, which are texts, numbers or bools, or None where they are not set.

    Args:
        given: the arguments.
        otherwise: of those that are not given.

    Raises:
        ValueError: the budget is missing, or a value is none of those expected.
    """
    values = {name: value for name, value in given.items() if value is not None}
    if values.get("method", PRUNER) != PRUNER:
        otherwise = {**otherwise, "pruner": None, "config": None}
    values = {**otherwise, **values}
    if "budget" not in values:
        raise ValueError("budget: expected a number of tokens to keep, or 0 for all, got none")
    for name in ("budget", "reference_layer"):
        if values.get(name) is not None:
            values[name] = _whole(name, values[name])
    for name in ("pruner", "config"):
        if values.get(name) is not None:
            values[name] = str(values[name])
    if "importance" in values:
        values["importance"] = _truth("importance", values["importance"])
    settings = Settings(**values)
    require_one_of("newlines", settings.newlines, NEWLINES)
    require_one_of("positions", settings.positions, (None, *POSITIONS))
    if settings.budget > 0:
        check_choice(settings.method, settings.pruner)
    return settings


def _whole(name: str, value: Any) -> int:
    # lmms-eval makes an int of 64, and a float of -1.
    text = str(value).removesuffix(".0")
    if not text.isdecimal():
        raise ValueError(f"{name}: expected a whole number, at least 0, got {value!r}")
    return int(text)


def _truth(name: str, value: Any) -> bool:
    text = str(value).lower()
    if text not in ("true", "false"):
        raise ValueError(f"{name}: expected True or False, got {value!r}")
    return text == "true"
