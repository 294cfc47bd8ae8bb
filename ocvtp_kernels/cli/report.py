"""The result of pruning one photo: ids, peaks and coverage, as a record and as a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ocvtp_kernels.cli.picture import draw_selection
from ocvtp_kernels.ops.prune.reference import attention_logits
from ocvtp_kernels.ops.slot_argmax import slot_topk
from ocvtp_kernels.ops.slot_attention.reference import log_attention
from ocvtp_kernels.pruner.modules import without_place_mean
from ocvtp_kernels.pruner.pruner import OCPruner
from ocvtp_kernels.selectors.coverage import coverage, random_coverage
from ocvtp_kernels.version import __version__
from ocvtp_kernels.vlm.encoder import Encoded

METHOD = "OC-pruner"
RANDOM_SEEDS = 20


@dataclass(frozen=True)
class Chance:
    """Coverage of random choices: mean and standard deviation over the seeds."""

    mean: float
    std: float
    seeds: int = RANDOM_SEEDS

    @classmethod
    def of(cls, tokens: Tensor, budget: int) -> Chance:
        """Of ``budget`` of the tokens ``[N, C]``."""
        drawn = random_coverage(tokens, budget, RANDOM_SEEDS)
        return cls(float(drawn.mean()), float(drawn.std()))

    def __str__(self) -> str:
        return f"random {self.mean:.3f} ± {self.std:.3f}"


@dataclass(frozen=True)
class Report:
    """One pruned photo."""

    encoded: Encoded
    budget: int  # as asked for; a photo of fewer tokens keeps them all
    ids: list[int]
    log_attention: Tensor  # [K, N] of the last iteration
    coverage: float
    chance: Chance

    @property
    def num_tokens(self) -> int:
        """N, tokens before pruning."""
        return self.log_attention.shape[1]

    def coverage_line(self) -> str:
        """Method, budget and coverage in one line."""
        kept = f"{len(self.ids)} of {self.num_tokens} tokens"
        if self.budget > self.num_tokens:
            kept = f"all {self.num_tokens} tokens (budget {self.budget})"
        return f"{METHOD} · {kept} · coverage {self.coverage:.3f} ({self.chance})"

    def as_json(self, **about: Any) -> dict[str, Any]:
        """The record: ``about`` (photo, model, ...) first, then what was kept and how well."""
        picks, peaks = slot_topk(self.log_attention)
        return {
            **about,
            "method": METHOD,
            "version": __version__,
            "budget": self.budget,
            "num_tokens": self.num_tokens,
            "kept": len(self.ids),
            "grid": list(self.encoded.grid),
            "ids": self.ids,
            "slots": [
                {"slot": slot, "id": pick, "peak": peak}
                for slot, (pick, peak) in enumerate(
                    zip(picks.flatten().tolist(), peaks.exp().tolist(), strict=True)
                )
            ],
            "padded": sorted(set(self.ids) - set(picks.flatten().tolist())),
            "coverage": self.coverage,
            "random_coverage": asdict(self.chance),
        }

    def draw(self, title: str) -> Image.Image:
        """The overlay picture."""
        owners = self.log_attention.argmax(dim=0)
        return draw_selection(
            self.encoded.picture,
            self.ids,
            owners[self.ids].tolist(),
            owners.view(self.encoded.grid).numpy(),
            title,
            self.coverage_line(),
        )


@torch.inference_mode()
def prune_encoded(pruner: OCPruner, encoded: Encoded, budget: int, padding: str) -> Report:
    """Prunes one encoded photo; one with fewer tokens than the budget keeps them all.

    Raises:
        ValueError: the tokens hold NaN or inf, or do not fit the pruner.
    """
    require_finite(encoded)
    inputs = encoded.inputs
    reference_tokens, final_tokens = inputs.reference_tokens, inputs.final_tokens
    kept = min(budget, reference_tokens.shape[1])
    out = pruner(
        reference_tokens, final_tokens, budget=kept, importance=inputs.importance, padding=padding
    )
    slots = pruner.sample_slots(1, kept)
    tokens = without_place_mean(reference_tokens, pruner.place_mean)
    logits = attention_logits(tokens, pruner.packed(), slots)
    return Report(
        encoded=encoded,
        budget=budget,
        ids=out.ids[0].tolist(),
        log_attention=log_attention(logits)[0],
        coverage=float(coverage(final_tokens, out.ids)),
        chance=Chance.of(final_tokens[0], kept),
    )


def require_finite(encoded: Encoded) -> None:
    """Raises ValueError if the tokens hold NaN or inf."""
    for name in ("reference_tokens", "final_tokens"):
        if not getattr(encoded.inputs, name).isfinite().all():
            raise ValueError(f"{name}: expected finite numbers, got NaN or inf")
