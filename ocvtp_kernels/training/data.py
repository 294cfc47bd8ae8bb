"""The images of a step and its random draws: functions of the seed and the step alone.

Nothing here has a state, so a resumed run sees the same images and draws.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from ocvtp_kernels.training.features import FeatureFolder

Item = TypeVar("Item")
Result = TypeVar("Result")


def keyed_seed(*key: object) -> int:
    """A seed for torch from any key, unlike that of every other key."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def keyed_generator(*key: object) -> torch.Generator:
    """A fresh generator on the CPU that depends on the key alone."""
    return torch.Generator("cpu").manual_seed(keyed_seed(*key))


class Split:
    """The images of both splits, and their order epoch by epoch.

    Args:
        features: at least 2 images.
        batch_size: images a step.
        seed: of the order, and of which images a limit leaves.
        limit: images used of both splits together, in their proportion; None for all.

    Attributes:
        train, val: indices into the features; batch_size: images a step, at most all there are;
        steps: steps an epoch, whole batches only.

    Raises:
        ValueError: there are not two images.
    """

    def __init__(
        self, features: FeatureFolder, batch_size: int, seed: int, limit: int | None = None
    ) -> None:
        if len(features) < 2:
            raise ValueError(
                f"features: expected at least 2 images to train and validate on, "
                f"got {len(features)}"
            )
        train, val = (list(part) for part in features.split())
        if limit is not None and limit < len(features):
            few = min(max(1, round(limit * len(val) / len(features))), limit - 1)
            train, val = _sample(train, limit - few, seed), _sample(val, few, seed)
        self.train, self.val, self.seed = train, val, seed
        self.batch_size = min(batch_size, len(train))
        self.steps = len(train) // self.batch_size

    def batch(self, step: int) -> list[int]:
        """The images of a step of the run, counted from 0."""
        epoch, index = divmod(step, self.steps)
        generator = keyed_generator(self.seed, "order", epoch)
        order = torch.randperm(len(self.train), generator=generator, device="cpu")
        rows = order[index * self.batch_size : (index + 1) * self.batch_size]
        return [self.train[row] for row in rows.tolist()]

    def identity(self, features: FeatureFolder) -> dict[str, Any]:
        """What a resumed run must share of the features, as JSON; what is long is hashed.

        That is the encoder, the images of both splits, and the contents of all shards, by the
        SHA-256 that the manifest has of them.
        """
        keys = ("encoder", "model", "reference_layer", "weights_sha256", "dtype")
        sizes = {"num_tokens": features.num_tokens, "width": features.width}
        parts = {"training images": self.train, "validation images": self.val}
        images = {
            key: _hash([(index, features.paths[index]) for index in part])
            for key, part in parts.items()
        }
        contents = _hash([shard["sha256"] for shard in features.manifest["shards"]])
        encoder = {key: features.manifest.get(key) for key in keys}
        return {**encoder, **sizes, **images, "contents": contents}

    def fingerprint(self, features: FeatureFolder) -> str:
        """A hash of `identity`."""
        return _hash(self.identity(features))


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _sample(indices: list[int], count: int, seed: int) -> list[int]:
    generator = keyed_generator(seed, "limit")
    order = torch.randperm(len(indices), generator=generator, device="cpu").tolist()
    return sorted(indices[i] for i in order[:count])


def estimate_place_mean(features: FeatureFolder, images: Sequence[int]) -> Tensor:
    """What a place's tokens have in common, beyond those of all places: float32 ``[N, C]``.

    The mean of the images' tokens at each place, less the mean over places. Images are read one
    after another and summed in float64, in which float16 adds up exactly.
    """
    total = torch.zeros(features.num_tokens, features.width, dtype=torch.float64, device="cpu")
    for tokens in prefetch(features, ([image] for image in images)):
        total += tokens[0].double()
    mean = total / len(images)
    return (mean - mean.mean(dim=0)).float()


def read_tokens(features: FeatureFolder, indices: Iterable[int]) -> Tensor:
    """Tokens of some images, ``[B, N, C]`` fp16 on the CPU, pinned where there is a GPU."""
    tokens = torch.stack([features[index] for index in indices])
    return tokens.pin_memory() if torch.cuda.is_available() else tokens


def prefetch(features: FeatureFolder, batches: Iterable[Sequence[int]]) -> Iterator[Tensor]:
    """Tokens of batch after batch, the next one read in a thread meanwhile."""
    return read_ahead(partial(read_tokens, features), batches, count=1, threads=1)


def read_ahead(
    read: Callable[[Item], Result], items: Iterable[Item], count: int, threads: int
) -> Generator[Result, None, None]:
    """``read`` of each item, in order, computed by threads up to ``count`` items ahead."""
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
