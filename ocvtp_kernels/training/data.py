"""Which images a step sees and what it draws: functions of a seed and of where a run stands.

Nothing here has a state, so a run that goes on in the middle sees what it would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ocvtp_kernels.training.features import FeatureFolder


def keyed_seed(*key: object) -> int:
    """A seed for torch from any key, unlike that of every other key."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def keyed_generator(*key: object) -> torch.Generator:
    """A fresh generator on the CPU that depends on the key alone."""
    return torch.Generator().manual_seed(keyed_seed(*key))


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
            train, val = _some(train, limit - few, seed), _some(val, few, seed)
        self.train, self.val, self.seed = train, val, seed
        self.batch_size = min(batch_size, len(train))
        self.steps = len(train) // self.batch_size

    def batch(self, step: int) -> list[int]:
        """The images of a step of the run, counted from 0."""
        epoch, place = divmod(step, self.steps)
        generator = keyed_generator(self.seed, "order", epoch)
        order = torch.randperm(len(self.train), generator=generator)
        rows = order[place * self.batch_size : (place + 1) * self.batch_size]
        return [self.train[row] for row in rows.tolist()]

    def fingerprint(self, features: FeatureFolder) -> str:
        """Of images, splits and encoder: a run goes on only with the same."""
        about = {
            key: features.manifest.get(key)
            for key in ("encoder", "model", "reference_layer", "weights_sha256", "dtype")
        }
        text = [str(about), f"{features.num_tokens} x {features.width}"]
        for part in (self.train, self.val):
            text += ["split", *(features.paths[index] for index in part)]
        return hashlib.sha256("\n".join(text).encode()).hexdigest()


def _some(indices: list[int], count: int, seed: int) -> list[int]:
    order = torch.randperm(len(indices), generator=keyed_generator(seed, "limit")).tolist()
    return sorted(indices[place] for place in order[:count])


def read_tokens(features: FeatureFolder, indices: Iterable[int]) -> Tensor:
    """Tokens of some images, ``[B, N, C]`` fp16 on the CPU, pinned where there is a GPU."""
    tokens = torch.stack([features[index] for index in indices])
    return tokens.pin_memory() if torch.cuda.is_available() else tokens


def prefetch(features: FeatureFolder, batches: Iterable[Sequence[int]]) -> Iterator[Tensor]:
    """Tokens of batch after batch, the next one read while the last is worked on."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        waiting = None
        for indices in batches:
            coming = reader.submit(read_tokens, features, indices)
            if waiting is not None:
                yield waiting.result()
            waiting = coming
        if waiting is not None:
            yield waiting.result()
