"""Several selection methods on one photo: the tokens that each keeps, as record and picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image

from ocvtp_kernels.cli.report import Chance, require_finite
from ocvtp_kernels.cli.sheet import Panel, draw_sheet
from ocvtp_kernels.selectors.coverage import coverage
from ocvtp_kernels.selectors.interface import Selector, run_selector
from ocvtp_kernels.version import __version__
from ocvtp_kernels.vlm.encoder import Encoded


@dataclass(frozen=True)
class MethodResult:
    """The tokens that one method keeps of a photo."""

    method: str
    ids: list[int]
    found: int  # ids by the method's own rule; the rest fill the budget
    coverage: float


@dataclass(frozen=True)
class Comparison:
    """The tokens that every method keeps of one photo, at one budget."""

    encoded: Encoded
    budget: int  # as asked for; a photo of fewer tokens keeps them all
    results: list[MethodResult]
    left_out: dict[str, str]  # by method: the input that it lacks
    chance: Chance

    @property
    def num_tokens(self) -> int:
        """N, tokens before selection."""
        return self.encoded.inputs.final_tokens.shape[1]

    def coverage_line(self) -> str:
        """Budget, and the methods by their coverage, in one line."""
        best = sorted(self.results, key=lambda result: -result.coverage)
        listed = ", ".join(f"{result.method} {result.coverage:.3f}" for result in best)
        return (
            f"{min(self.budget, self.num_tokens)} of {self.num_tokens} tokens · coverage {listed} "
            f"({self.chance.seeds} random draws: {self.chance})"
        )

    def as_json(self, **about: Any) -> dict[str, Any]:
        """The record: ``about`` (photo, model, ...) first, then each method's result."""
        return {
            **about,
            "version": __version__,
            "budget": self.budget,
            "num_tokens": self.num_tokens,
            "grid": list(self.encoded.grid),
            "methods": [asdict(result) for result in self.results],
            "left_out": self.left_out,
            "random_coverage": asdict(self.chance),
        }

    def draw(self, title: str) -> Image.Image:
        """The picture, a panel a method."""
        panels = [Panel(one.method, f"{one.coverage:.3f}", one.ids) for one in self.results]
        kept = min(self.budget, self.num_tokens)
        caption = f"{kept} of {self.num_tokens} tokens, coverage beside each method"
        return draw_sheet(self.encoded.picture, self.encoded.grid, panels, title, caption)


@torch.inference_mode()
def compare_methods(
    encoded: Encoded, budget: int, selectors: Mapping[str, Selector | str]
) -> Comparison:
    """Selects by every method.

    Args:
        encoded: the photo.
        budget: T; a photo of fewer tokens keeps them all.
        selectors: by name; instead of a selector the reason why there is none.

    Raises:
        ValueError: the tokens hold NaN or inf, or no method can be used.
    """
    require_finite(encoded)
    inputs = encoded.inputs
    budget_here = min(budget, inputs.final_tokens.shape[1])
    results, left_out = [], {}
    for name, selector in selectors.items():
        if isinstance(selector, str):
            left_out[name] = selector
            continue
        try:
            selected = run_selector(selector, inputs, budget_here)
        except ValueError as error:
            left_out[name] = str(error)
            continue
        found = budget_here if selected.found is None else int(selected.found)
        share = float(coverage(inputs.final_tokens, selected.ids))
        results.append(MethodResult(name, selected.ids[0].tolist(), found, share))
    if not results:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise ValueError(f"method: none can be used: {reasons}")
    chance = Chance.of(inputs.final_tokens[0], budget_here)
    return Comparison(encoded, budget, results, left_out, chance)
