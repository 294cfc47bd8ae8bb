"""Reconstruction errors of selections: how much of an image the kept tokens preserve."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.pruner.config import is_number
from ocvtp_kernels.pruner.pruner import OCPruner
from ocvtp_kernels.selectors.coverage import coverage
from ocvtp_kernels.training.autoencoder import OCAutoencoder
from ocvtp_kernels.training.data import keyed_generator, prefetch
from ocvtp_kernels.training.features import FeatureFolder
from ocvtp_kernels.training.folder import read_run

RUN_FILE = "run.json"
# Of an image whose tokens are all equal; errors are divided by the variance.
MIN_VARIANCE = 1e-12


class Measures(NamedTuple):
    """Of a selection, image by image: float64 ``[B]`` on the CPU."""

    decoded: Tensor  # error of the decoder that is shown the kept tokens alone, over the variance
    nearest: Tensor  # error of each token's nearest kept token, over the variance
    coverage: Tensor  # mean cosine to the nearest kept token; higher is better


# Those of `Measures` that are errors.
ERRORS = ("decoded", "nearest")


class Trained(NamedTuple):
    """A trained autoencoder, frozen for evaluation, and its pruner."""

    autoencoder: OCAutoencoder
    pruner: OCPruner
    target_scale: float

    @classmethod
    def load(cls, path: Path, features: FeatureFolder, device: torch.device) -> Trained:
        """Reads a checkpoint that holds the decoder.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it has no decoder, or is for other tokens than the features, or the
                ``run.json`` beside it is damaged.
        """
        autoencoder = OCAutoencoder.from_checkpoint(path, device=device).eval()
        num_tokens, width = autoencoder.decode.num_tokens, autoencoder.config.enc_in_dim
        if (num_tokens, width) != (features.num_tokens, features.width):
            raise ValueError(
                f"{path}: expected an autoencoder of {features.num_tokens} tokens of"
                f" {features.width} channels, got one of {num_tokens} of {width}"
            )
        autoencoder.requires_grad_(False)
        scale, run = 1.0, path.with_name(RUN_FILE)
        if run.is_file():
            scale = read_run(run)["train"].get("target_scale")
            if not is_number(scale) or not 0 < scale < math.inf:
                raise ValueError(f"{run}: target_scale: expected a number above 0, got {scale!r}")
        return cls(autoencoder, autoencoder.pruner().freeze(), scale)

    def select(self, tokens: Tensor, budget: int, seed: int) -> Tensor:
        """The pruner's selection among tokens ``[B, N, C]``: int64 ``[B, budget]``.

        As many slots as kept tokens, from the noise of the seed; without importance, which
        features do not hold, gaps are filled by the slots' own attention.
        """
        noise = self.slots(tokens.shape[0], budget, seed)
        ids: Tensor = self.pruner(tokens, tokens[..., :1], budget, slots_init=noise).ids
        return ids

    def decode(self, tokens: Tensor, ids: Tensor, seed: int) -> Tensor:
        """All tokens from the kept ones alone: ``[B, N, C]``, ``[B, T]`` -> ``[B, N, C]``.

        T slots are made of the T kept tokens as the pruner makes them of all, and the decoder
        sees the kept tokens at their positions and the mask token elsewhere, so nothing of a token
        that is not kept enters.
        """
        model = self.autoencoder
        kept = gather_tokens(tokens, ids)
        initial = self.slots(tokens.shape[0], ids.shape[1], seed)
        slots, _ = model.aggregat.aggregate(model.encode_project(kept), initial)
        visible = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        visible.scatter_(1, ids, True)
        reconstruction: Tensor = model.decode(tokens, slots, visible)[0]
        return reconstruction / self.target_scale

    def slots(self, batch: int, count: int, seed: int) -> Tensor:
        """Initial slots of a seed, alike for all images: ``[batch, count, D]``."""
        prior = self.autoencoder.initializ
        generator = keyed_generator(seed, "evaluation")
        noise = torch.randn(1, count, prior.mean.shape[-1], generator=generator, device="cpu")
        slots: Tensor = prior.mean + noise.to(prior.mean) * prior.logstd.exp()
        return slots.expand(batch, -1, -1)


def measure(trained: Trained, tokens: Tensor, ids: Tensor, seed: int) -> Measures:
    """Measures a selection on the tokens that it was made from.

    Errors are squared distances, mean over tokens, over the image's variance (the mean squared
    distance of its tokens to their mean): 1 is the error of the mean token alone.

    Args:
        trained: whose decoder reconstructs.
        tokens: ``[B, N, C]``; ids: int64 ``[B, T]``.
        seed: of the slots' noise.
    """
    variance = (tokens - tokens.mean(dim=1, keepdim=True)).double().square().sum(-1).mean(-1)
    variance = variance.clamp(min=MIN_VARIANCE)
    decoded = (trained.decode(tokens, ids, seed) - tokens).double().square().sum(-1).mean(-1)
    return Measures(
        (decoded / variance).cpu(),
        (nearest_error(tokens, ids) / variance).cpu(),
        coverage(tokens, ids).double().cpu(),
    )


def nearest_error(tokens: Tensor, ids: Tensor) -> Tensor:
    """Squared distance to the nearest kept token, mean over tokens: float64 ``[B]``."""
    tokens = tokens.double()
    distances = torch.cdist(tokens, gather_tokens(tokens, ids))
    return distances.amin(dim=-1).square().mean(dim=-1)


def random_ids(batch: int, num_tokens: int, budget: int, seed: int, first: int = 0) -> Tensor:
    """Tokens at random, each image its own: int64 ``[batch, budget]``, ascending.

    Args:
        first: index of the batch's first image, so that the batch size does not matter.
    """
    rows = []
    for image in range(first, first + batch):
        generator = keyed_generator(seed, "random", image)
        order = torch.randperm(num_tokens, generator=generator, device="cpu")
        rows.append(order[:budget].sort().values)
    return torch.stack(rows)


def grid_ids(grid: tuple[int, int], budget: int) -> Tensor:
    """``budget`` tokens spread evenly over a grid: int64 ``[budget]``, ascending, distinct.

    The number of rows makes the spacing about equal in both directions; the budget is spread
    evenly over the rows, and each row's tokens evenly over its width.

    Raises:
        ValueError: the budget is not 1 to the number of tokens.
    """
    height, width = grid
    if not 1 <= budget <= height * width:
        raise ValueError(f"budget: expected 1 to {height * width}, got {budget}")
    rows = round((budget * height / width) ** 0.5)
    rows = min(max(rows, -(-budget // width), 1), height, budget)
    ids = []
    for row in range(rows):
        y = (2 * row + 1) * height // (2 * rows)
        count = (row + 1) * budget // rows - row * budget // rows
        ids += [y * width + (2 * i + 1) * width // (2 * count) for i in range(count)]
    return torch.tensor(ids)


@dataclass(frozen=True)
class Result:
    """Measures of one way to select at one budget: float64 ``[seeds, images]`` each."""

    method: str
    judge: str
    budget: int
    measures: Measures


@dataclass(frozen=True)
class Contender:
    """A way to select tokens.

    Its ids are those of the tokens of ``features``, by ``trained``; "random" and "grid" need
    neither.
    """

    name: str
    trained: Trained | None = None
    features: FeatureFolder | None = None


@dataclass(frozen=True)
class Judge:
    """Tokens on which selections are measured, and the decoder that reconstructs them."""

    name: str
    trained: Trained
    features: FeatureFolder


RANDOM, GRID = Contender("random"), Contender("uniform grid")


@torch.no_grad()
def evaluate(
    contenders: Sequence[Contender],
    judge: Judge,
    images: Sequence[int],
    budgets: Sequence[int],
    seeds: Sequence[int] = (0, 1, 2),
    batch_size: int = 16,
) -> Iterator[Result]:
    """Every contender at every budget, on the judge's tokens of some images.

    Raises:
        ValueError: a budget is not 1 to the number of tokens; there are no images.
    """
    num_tokens = judge.features.num_tokens
    for budget in budgets:
        if not 1 <= budget <= num_tokens:
            raise ValueError(f"budgets: expected 1 to {num_tokens} tokens, got {budget}")
    if not images:
        raise ValueError("features: expected images to evaluate on, got none")
    device = judge.trained.autoencoder.initializ.mean.device
    batches = [images[at : at + batch_size] for at in range(0, len(images), batch_size)]
    measured: dict[tuple[int, str], list[Tensor]] = {}  # [measures, seeds, images of a batch]
    for number, tokens in enumerate(prefetch(judge.features, batches)):
        tokens = tokens.to(device).float()
        for contender in contenders:
            own = tokens
            if contender.features is not None and contender.features is not judge.features:
                rows = [contender.features[image] for image in batches[number]]
                own = torch.stack(rows).to(device).float()
            for budget in budgets:
                row = []
                for seed in seeds:
                    if contender.trained is not None:
                        ids = contender.trained.select(own, budget, seed)
                    elif contender is RANDOM:
                        first = number * batch_size
                        ids = random_ids(len(tokens), num_tokens, budget, seed, first).to(device)
                    else:
                        ids = grid_ids(judge.features.grid, budget).expand(len(tokens), -1)
                        ids = ids.to(device)
                    row.append(torch.stack(measure(judge.trained, tokens, ids, seed)))
                measured.setdefault((budget, contender.name), []).append(torch.stack(row, dim=1))
    for (budget, name), parts in sorted(measured.items(), key=lambda item: item[0][0]):
        yield Result(name, judge.name, budget, Measures(*torch.cat(parts, dim=-1)))
