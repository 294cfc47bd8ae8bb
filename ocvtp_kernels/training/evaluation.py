"""Reconstruction errors of selections: how much of an image the kept tokens preserve."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.pruner.config import is_number
from ocvtp_kernels.pruner.modules import SlotPrior, without_place_mean
from ocvtp_kernels.pruner.pruner import OCPruner
from ocvtp_kernels.selectors.coverage import coverage
from ocvtp_kernels.training.autoencoder import OCAutoencoder
from ocvtp_kernels.training.config import published_shapes
from ocvtp_kernels.training.data import keyed_generator, keyed_seed, prefetch
from ocvtp_kernels.training.features import FeatureFolder
from ocvtp_kernels.training.folder import read_run
from ocvtp_kernels.training.start import start_as_kmeans

RUN_FILE = "run.json"
# Of an image whose tokens are all equal; errors are divided by the variance.
MIN_VARIANCE = 1e-12


class Measures(NamedTuple):
    """Of a selection, image by image: float64 ``[B]`` on the CPU."""

    decoded: Tensor | None  # error of the decoder shown the kept tokens alone, over the variance
    nearest: Tensor  # error of each token's nearest kept token, over the variance
    farthest: Tensor  # the same of the twentieth of the tokens where it is largest
    coverage: Tensor  # mean cosine to the nearest kept token; higher is better


# Those of `Measures` that are errors.
ERRORS = ("decoded", "nearest", "farthest")


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
        return _select(self.pruner, tokens, budget, seed)

    def decode(self, tokens: Tensor, ids: Tensor, seed: int) -> Tensor:
        """All tokens from the kept ones alone: ``[B, N, C]``, ``[B, T]`` -> ``[B, N, C]``.

        T slots are made of the T kept tokens as the pruner makes them of all, and the decoder
        sees the kept tokens at their positions and the mask token elsewhere, so nothing of a token
        that is not kept enters.
        """
        model = self.autoencoder
        kept = gather_tokens(without_place_mean(tokens, model.place_mean), ids)
        initial = _initial_slots(model.initializ, tokens.shape[0], ids.shape[1], seed)
        slots, _ = model.aggregat.aggregate(model.encode_project(kept), initial)
        visible = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        visible.scatter_(1, ids, True)
        reconstruction: Tensor = model.decode(tokens, slots, visible)[0]
        return reconstruction / self.target_scale


class Untrained:
    """The pruner that `ocvtp train --start kmeans` begins with, its encode MLP random.

    Args:
        features: of whose tokens it is, with the published proportions at their width.

    Raises:
        ValueError: the width does not divide so.
    """

    def __init__(self, features: FeatureFolder, device: torch.device) -> None:
        config = published_shapes(features.num_tokens, features.width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(0, "weights"))
            pruner = OCPruner(config)
        start_as_kmeans(pruner)
        self.pruner = pruner.to(device).eval().requires_grad_(False).freeze()

    def select(self, tokens: Tensor, budget: int, seed: int) -> Tensor:
        """As `Trained.select`."""
        return _select(self.pruner, tokens, budget, seed)


def _select(pruner: OCPruner, tokens: Tensor, budget: int, seed: int) -> Tensor:
    noise = _initial_slots(pruner.initializ, tokens.shape[0], budget, seed)
    ids: Tensor = pruner(tokens, tokens[..., :1], budget, slots_init=noise).ids
    return ids


def _initial_slots(prior: SlotPrior, batch: int, count: int, seed: int) -> Tensor:
    """Initial slots of a seed, alike for all images: ``[batch, count, D]``."""
    generator = keyed_generator(seed, "evaluation")
    noise = torch.randn(1, count, prior.mean.shape[-1], generator=generator, device="cpu")
    slots: Tensor = prior.mean + noise.to(prior.mean) * prior.logstd.exp()
    return slots.expand(batch, -1, -1)


def measure(trained: Trained | None, tokens: Tensor, ids: Tensor, seed: int) -> Measures:
    """Measures a selection on tokens, those that it was made from or others of the same places.

    Errors are squared distances, mean over tokens, over the image's variance (the mean squared
    distance of its tokens to their mean): 1 is the error of the mean token alone.

    Args:
        trained: whose decoder reconstructs; nothing is decoded if None.
        tokens: ``[B, N, C]``; ids: int64 ``[B, T]``.
        seed: of the slots' noise.
    """
    variance = (tokens - tokens.mean(dim=1, keepdim=True)).double().square().sum(-1).mean(-1)
    variance = variance.clamp(min=MIN_VARIANCE)
    decoded = None
    if trained is not None:
        error = (trained.decode(tokens, ids, seed) - tokens).double().square().sum(-1).mean(-1)
        decoded = (error / variance).cpu()
    nearest = nearest_errors(tokens, ids)
    farthest = nearest.topk(-(-tokens.shape[1] // 20), dim=1).values
    return Measures(
        decoded,
        (nearest.mean(dim=1) / variance).cpu(),
        (farthest.mean(dim=1) / variance).cpu(),
        coverage(tokens, ids).double().cpu(),
    )


def nearest_errors(tokens: Tensor, ids: Tensor) -> Tensor:
    """Squared distance of each token to the nearest kept one: float64 ``[B, N]``."""
    tokens = tokens.double()
    distances = torch.cdist(tokens, gather_tokens(tokens, ids))
    return distances.amin(dim=-1).square()


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
    """Measures of one way to select at one budget: float64 ``[seeds, images]`` each.

    Nothing is decoded where the judge has no decoder.
    """

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
    trained: Trained | Untrained | None = None
    features: FeatureFolder | None = None


@dataclass(frozen=True)
class Judge:
    """Tokens on which selections are measured, and the decoder that reconstructs them, if any."""

    name: str
    trained: Trained | None
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
    device: torch.device | str = "cpu",
) -> Iterator[Result]:
    """Every contender at every budget, on the judge's tokens of some images.

    Args:
        device: where all that is trained is, and where it is measured.

    Raises:
        ValueError: a budget is not 1 to the number of tokens; there are no images.
    """
    num_tokens = judge.features.num_tokens
    for budget in budgets:
        if not 1 <= budget <= num_tokens:
            raise ValueError(f"budgets: expected 1 to {num_tokens} tokens, got {budget}")
    if not images:
        raise ValueError("features: expected images to evaluate on, got none")
    batches = [images[at : at + batch_size] for at in range(0, len(images), batch_size)]
    measured: dict[tuple[int, str], list[Measures]] = {}  # [seeds, images of a batch] each
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
                    row.append(measure(judge.trained, tokens, ids, seed))
                of_batch = _join(torch.stack, row)
                measured.setdefault((budget, contender.name), []).append(of_batch)
    for (budget, name), parts in sorted(measured.items(), key=lambda item: item[0][0]):
        yield Result(name, judge.name, budget, _join(partial(torch.cat, dim=-1), parts))


def _join(join: Callable[[list[Tensor]], Tensor], parts: Sequence[Measures]) -> Measures:
    """Measure by measure; what was not decoded stays None."""
    decoded = [part.decoded for part in parts if part.decoded is not None]
    return Measures(
        join(decoded) if decoded else None,
        join([part.nearest for part in parts]),
        join([part.farthest for part in parts]),
        join([part.coverage for part in parts]),
    )
