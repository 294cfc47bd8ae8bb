"""Settings of a training run; the defaults are the published ones."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ocvtp_kernels.checks import require_one_of
from ocvtp_kernels.pruner.config import PrunerConfig, is_number, read_json_object, require_whole
from ocvtp_kernels.training.loss import AreaWeightedMSE

PRECISIONS = ("no", "bf16")
STARTS = ("random", "kmeans")
PRUNER_KEY = "pruner"
PUBLISHED = "published"
PRESETS = (PUBLISHED, "kept-start")
# K of the preset that keeps its start, powers of two, so that small budgets are trained too.
SMALLEST_SLOTS, LARGEST_SLOTS = 4, 128
# By prefix of a parameter's name, the key of its share of the learning rate.
SHARES = {"encode_project": "encode_lr", "initializ": "slots_lr", "aggregat": "slots_lr"}
# A resumed run may change these, as they change no result.
FREE_KEYS = ("checkpoint_every",)
# The published widths of slots, encode MLP, slot FFN and decoder FFN, in token widths.
SLOT_SHARE, ENCODE_SHARE, AGGREGATE_SHARE, FEEDFORWARD_SHARE = 0.5, 2, 2, 4
PUBLISHED_HEADS = 4


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; the defaults are those of arXiv 2511.20439.

    Args:
        epochs: passes over the training split.
        limit: images used of the folder, a fixed draw of both splits; None for all.
        batch_size: images a step, over all processes; fewer where the training split has fewer.
        lr, start_lr, end_lr: AdamW's learning rate at its height, at step 0 and at the end.
        warmup_epochs: linear from ``start_lr`` to ``lr``, at most half of the run; then a cosine.
        weight_decay: AdamW's.
        grad_clip: the largest norm of the whole gradient.
        slots: one of these K is drawn for each step; validation takes all of them.
        patience: epochs without a better validation loss before the run ends early.
        seed: of weights, order of images, K, noise, masks and dropout.
        start: weights to start from, "random" as published, or "kmeans" for short runs (see
            `start_as_kmeans`).
        encode_lr, slots_lr: shares of the learning rate for the encode MLP, and for Slot Attention
            and the slots it starts from; 0 leaves them as they start.
        mixed_precision: "no" or "bf16" (autocast).
        checkpoint_every: steps from one checkpoint to the next; each epoch ends with one too.
        target_scale: what tokens are multiplied by before the decoder's output is compared with
            them. Its output starts at a deviation near 1, so tokens of another want a scale that
            brings them there; where the pruner begins with a LayerNorm nothing else changes.
        power_p, cap_w, norm_mode, reduce_channel: of `AreaWeightedMSE`; ``power_p`` 0 is the
            plain mean squared error.

    Raises:
        ValueError: a value is of the wrong type or out of range.
    """

    epochs: int = 30
    limit: int | None = None
    batch_size: int = 12
    lr: float = 1e-3
    start_lr: float = 1e-6
    end_lr: float = 1e-8
    warmup_epochs: float = 4.0
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    slots: tuple[int, ...] = (16, 32, 64, 128)
    patience: int = 5
    seed: int = 0
    start: str = "random"
    encode_lr: float = 1.0
    slots_lr: float = 1.0
    mixed_precision: str = "no"
    checkpoint_every: int = 200
    target_scale: float = 1.0
    power_p: float = 0.5
    cap_w: float = 10.0
    norm_mode: str = "mean1"
    reduce_channel: str = "mean"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "checkpoint_every"):
            require_whole(name, getattr(self, name))
        if self.limit is not None:
            require_whole("limit", self.limit, 2)
        require_whole("seed", self.seed, 0)
        for name in ("start_lr", "end_lr", "warmup_epochs", "weight_decay", *SHARES.values()):
            _require_number(name, getattr(self, name), above=False)
        for name in ("lr", "grad_clip", "target_scale"):
            _require_number(name, getattr(self, name), above=True)
        if not isinstance(self.slots, (list, tuple)) or not self.slots:
            raise ValueError(f"slots: expected a list of whole numbers, got {self.slots!r}")
        for count in self.slots:
            require_whole("slots", count)
        object.__setattr__(self, "slots", tuple(self.slots))
        require_one_of("start", self.start, STARTS)
        require_one_of("mixed_precision", self.mixed_precision, PRECISIONS)
        self.loss()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Builds settings from keys.

        Raises:
            ValueError: these are no keys and values, a key is unknown (all of them are named), or a
                value is bad.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"config: expected keys and values, got {type(values).__name__}")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"config: unknown keys {unknown}; known are {sorted(known)}")
        return cls(**values)

    @classmethod
    def preset(cls, name: str, num_tokens: int, **changes: Any) -> TrainConfig:
        """The settings of a preset, but for the changes; `preset_keys` has the pruner's too.

        Raises:
            ValueError: there is no such preset, or `from_dict` refuses the changes.
        """
        return cls.from_dict({**preset_keys(name, num_tokens)[0], **changes})

    def loss(self) -> AreaWeightedMSE:
        """The loss, one value an image."""
        return AreaWeightedMSE(
            self.power_p, self.cap_w, self.norm_mode, self.reduce_channel, reduction="none"
        )

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, counted from 0."""
        total = self.epochs * steps_per_epoch
        warmup = round(min(self.warmup_epochs, self.epochs / 2) * steps_per_epoch)
        if step < warmup:
            return self.start_lr + (self.lr - self.start_lr) * step / warmup
        share = (step - warmup) / max(total - 1 - warmup, 1)
        return self.end_lr + (self.lr - self.end_lr) * (1 + math.cos(math.pi * share)) / 2

    def as_json(self) -> dict[str, Any]:
        """Every key, as JSON has it."""
        return {**dataclasses.asdict(self), "slots": list(self.slots)}


def preset_keys(name: str, num_tokens: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a preset sets: keys of `TrainConfig`, and keys of `PrunerConfig`.

    "published" sets nothing. "kept-start" is for short runs, and keeps what soft k-means has: the
    encode MLP stays, Slot Attention learns slowly, and the pruner has a place mean. Its K are the
    powers of two from 4 to 128, at most a third of the tokens.

    Args:
        num_tokens: N of an image.

    Raises:
        ValueError: there is no such preset.
    """
    require_one_of("preset", name, PRESETS)
    if name == PUBLISHED:
        return {}, {}
    largest = max(SMALLEST_SLOTS, min(LARGEST_SLOTS, num_tokens // 3))
    exponents = range(SMALLEST_SLOTS.bit_length() - 1, largest.bit_length())
    train = {
        "start": "kmeans",
        "encode_lr": 0.0,
        "slots_lr": 0.05,
        "warmup_epochs": 0.5,
        "slots": tuple(min(1 << exponent, num_tokens) for exponent in exponents),
    }
    return train, {"enc_place_mean": True}


def published_shapes(num_tokens: int, width: int) -> PrunerConfig:
    """The published pruner's proportions for tokens of another width.

    Args:
        num_tokens: N of the tokens ``[B, N, C]``.
        width: C of them, a multiple of 8.

    Returns:
        A config whose slots are half as wide as the tokens, and whose encode MLP is twice as wide.

    Raises:
        ValueError: the width does not divide so.
    """
    if width % (2 * PUBLISHED_HEADS):
        raise ValueError(
            f"pruner: expected a config, as a token width of {width} is no multiple of"
            f" {2 * PUBLISHED_HEADS}"
        )
    slot_dim = round(SLOT_SHARE * width)
    return PrunerConfig(
        enc_in_dim=width,
        enc_dims=(ENCODE_SHARE * width, slot_dim),
        init_dim=slot_dim,
        agg_embed_dim=slot_dim,
        agg_ffn_dim=AGGREGATE_SHARE * width,
        pos_resolut=(num_tokens,),
        pos_embed_dim=width,
        proj1_in_dim=width,
        proj1_out_dim=width,
        proj1_norm_dim=width,
        proj2_in_dim=slot_dim,
        proj2_out_dim=width,
        proj2_norm_dim=width,
        transformer_d_model=width,
        transformer_nhead=PUBLISHED_HEADS,
        transformer_feedforward=FEEDFORWARD_SHARE * width,
        dec_dim=width,
    )


def read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Reads a config file: keys of `TrainConfig`, and under ``pruner`` keys of `PrunerConfig`.

    Among the former may be ``preset``, a name for `preset_keys`. The authors' own JSON, which has
    the pruner's keys alone, is read as that.

    Args:
        path: ``.json`` or, from Python 3.11 on, ``.toml``.

    Returns:
        the settings given, and the pruner's keys, None if the file has none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not of that form.
    """
    values = _read_toml(path) if path.suffix == ".toml" else read_json_object(path)
    if "enc_in_dim" in values:
        return {}, values
    pruner = values.pop(PRUNER_KEY, None)
    if pruner is not None and not isinstance(pruner, dict):
        raise ValueError(f"{path}: {PRUNER_KEY}: expected keys and values, got {pruner!r}")
    return values, pruner


def pruner_config(keys: Mapping[str, Any] | None, num_tokens: int, width: int) -> PrunerConfig:
    """The pruner to train: the published shapes at the tokens' width, but for the keys given.

    Raises:
        ValueError: a key is bad, or the pruner is for other tokens.
    """
    if keys is None:
        return published_shapes(num_tokens, width)
    try:
        base = dataclasses.asdict(published_shapes(num_tokens, width))
    except ValueError:
        base = {}
    config = PrunerConfig.from_dict({**base, **keys})
    if config.enc_in_dim != width or math.prod(config.pos_resolut) != num_tokens:
        raise ValueError(
            f"pruner: expected enc_in_dim {width} and pos_resolut of {num_tokens} tokens to fit the"
            f" features, got {config.enc_in_dim} and {list(config.pos_resolut)}"
        )
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    if sys.version_info >= (3, 11):
        import tomllib

        try:
            return tomllib.loads(data.decode())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: expected TOML, got {error}") from error
    raise ValueError(f"{path}: expected JSON, as TOML is read from Python 3.11 on")


def _require_number(name: str, value: object, *, above: bool) -> None:
    if not is_number(value) or not math.isfinite(value) or value < 0 or (above and value == 0):
        bound = "above 0" if above else "of at least 0"
        raise ValueError(f"{name}: expected a finite number {bound}, got {value!r}")
