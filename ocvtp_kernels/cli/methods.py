"""Several selection methods on one photo: the tokens that each keeps, as record and picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ocvtp_kernels.cli.report import Chance, require_finite
from ocvtp_kernels.cli.sheet import Panel, draw_sheet
from ocvtp_kernels.selectors.coverage import coverage
from ocvtp_kernels.selectors.interface import Selector, place_of, run_selector
from ocvtp_kernels.version import __version__
from ocvtp_kernels.vlm.encoder import Encoded

if TYPE_CHECKING:
    from ocvtp_kernels.vlm.decoder.photos import DecoderPhotos


@dataclass(frozen=True)
class StageResult:
    """How many tokens a stage in the decoder leaves."""

    layer: int  # from 0, before which the others are dropped
    num_tokens: int


@dataclass(frozen=True)
class MethodResult:
    """The tokens that one method keeps of a photo."""

    method: str
    place: str  # where it ran: "decoder", "tower", or "encoder", on whose output all others do here
    ids: list[int]  # after the last stage
    found: int | None  # ids by the method's own rule, the rest fill the budget; None: not told
    stages: list[StageResult]  # in the decoder
    coverage: float
    groups: list[int] | None = None  # of each token the place in ids of the one that it merged into

    @property
    def note(self) -> str:
        """Coverage, behind the tokens that stages leave, or that all others merged into these."""
        counts = ", ".join(str(stage.num_tokens) for stage in self.stages)
        said = "merged" if self.groups else counts
        return f"{said} · {self.coverage:.3f}" if said else f"{self.coverage:.3f}"


@dataclass(frozen=True)
class Comparison:
    """The tokens that every method keeps of one photo, at one budget."""

    encoded: Encoded
    budget: int  # as asked for; a photo of fewer tokens keeps them all
    question: str | None  # that methods in the decoder ask; None: there is no language model
    results: list[MethodResult]
    left_out: dict[str, str]  # by method the reason, such as an input that it lacks
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
            "question": self.question,
            "methods": [asdict(result) for result in self.results],
            "left_out": self.left_out,
            "random_coverage": asdict(self.chance),
        }

    def draw(self, title: str) -> Image.Image:
        """The picture, a panel a method."""
        panels = [Panel(one.method, one.note, one.ids) for one in self.results]
        kept = min(self.budget, self.num_tokens)
        caption = f"{kept} of {self.num_tokens} tokens, coverage beside each method"
        if any(one.stages for one in self.results):
            caption += f"; in the decoder, asked {self.question!r}: tokens behind each stage"
        return draw_sheet(self.encoded.picture, self.encoded.grid, panels, title, caption)


@torch.inference_mode()
def compare_methods(
    encoded: Encoded,
    budget: int,
    selectors: Mapping[str, Selector | str],
    decoder: DecoderPhotos | str,
    question: str,
) -> Comparison:
    """Selects by every method: those of the place "decoder" there, all others of the encoder.

    Args:
        encoded: the photo.
        budget: T; a photo of fewer tokens keeps them all.
        selectors: by name; instead of a selector the reason why there is none.
        decoder: of the encoder's model; or the reason why there is none.
        question: about the photo, for the decoder.

    Raises:
        ValueError: the tokens hold NaN or inf, or no method can be used.
    """
    require_finite(encoded)
    results, left_out = [], {}
    for name, selector in selectors.items():
        try:
            results.append(_run(name, selector, encoded, budget, decoder, question))
        except ValueError as error:
            left_out[name] = str(error)
    if not results:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise ValueError(f"method: none can be used: {reasons}")
    tokens = encoded.inputs.final_tokens[0]
    chance = Chance.of(tokens, min(budget, len(tokens)))
    asked = None if isinstance(decoder, str) else question
    return Comparison(encoded, budget, asked, results, left_out, chance)


def _run(
    name: str,
    selector: Selector | str,
    encoded: Encoded,
    budget: int,
    decoder: DecoderPhotos | str,
    question: str,
) -> MethodResult:
    """What one method keeps; arguments as those of `compare_methods`.

    Raises:
        ValueError: the reason why it cannot run.
    """
    if isinstance(selector, str):
        raise ValueError(selector)
    tokens = encoded.inputs.final_tokens
    if place_of(selector) == "decoder":
        if isinstance(decoder, str):
            raise ValueError(decoder)
        kept = decoder.keep(encoded, selector, budget, question)
        share = float(coverage(tokens, torch.tensor([kept.ids])))
        stages = [StageResult(*stage) for stage in kept.stages]
        return MethodResult(name, "decoder", kept.ids, None, stages, share)
    budget_here, place = min(budget, tokens.shape[1]), "encoder"
    if (
        place_of(selector) == "tower"
        and encoded.merge is not None
        and budget_here < tokens.shape[1]
    ):
        selected, place = encoded.merge(selector, budget_here), "tower"
    else:
        selected = run_selector(selector, encoded.inputs, budget_here)
    found = budget_here if selected.found is None else int(selected.found)
    share = float(coverage(tokens, selected.ids))
    groups = None if selected.groups is None else selected.groups[0].tolist()
    return MethodResult(name, place, selected.ids[0].tolist(), found, [], share, groups)
