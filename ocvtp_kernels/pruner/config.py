"""The pruner's configuration, in the authors' own keys."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from ocvtp_kernels.checks import require_one_of
from ocvtp_kernels.ops.prune.weights import ENCODE_NORMS

TRUNCATIONS = (None, "bi-level")

# The keys that fix the pruner's shapes; a file without one of them describes no pruner.
REQUIRED_KEYS = ("enc_in_dim", "enc_dims", "init_num", "init_dim", "agg_embed_dim", "agg_ffn_dim")


@dataclasses.dataclass(frozen=True)
class PrunerConfig:
    """Shapes and rules of an OC-pruner and of the decoder it is trained with.

    Field names, meanings and defaults are those of the published ``oc-vlm_64.json``
    (arXiv 2511.20439), so ``PrunerConfig()`` is the published pruner. Widths are channels,
    ``enc_dims`` the widths after each Linear of the encode MLP; the last of them, ``init_dim``
    and ``agg_embed_dim`` are the slot width D and must agree.

    ``enc_place_mean`` alone is not the authors': the pruner then has a place mean, which is taken
    off the reference tokens before the encode MLP, and takes images of ``pos_resolut`` tokens
    only. See `OCPruner`.

    Raises:
        ValueError: a value is of the wrong type or out of range, or the widths disagree.
    """

    enc_in_dim: int = 1024
    enc_dims: tuple[int, ...] = (2048, 512)
    enc_ln: str | None = "pre"
    enc_dropout: float = 0.0
    init_num: int = 64
    init_dim: int = 512
    agg_num_iter: int = 3
    agg_embed_dim: int = 512
    agg_ffn_dim: int = 2048
    agg_dropout: float = 0.01
    agg_trunc_bp: str | None = "bi-level"
    pos_resolut: tuple[int, ...] = (576,)
    pos_embed_dim: int = 1024
    proj1_in_dim: int = 1024
    proj1_out_dim: int = 1024
    proj1_norm_dim: int = 1024
    proj1_bias: bool = False
    proj2_in_dim: int = 512
    proj2_out_dim: int = 1024
    proj2_norm_dim: int = 1024
    proj2_bias: bool = False
    transformer_d_model: int = 1024
    transformer_nhead: int = 4
    transformer_feedforward: int = 4096
    transformer_dropout: float = 0.0
    transformer_activation: str = "gelu"
    transformer_batch_first: bool = True
    transformer_norm_first: bool = True
    transformer_bias: bool = False
    backbone_nlayer: int = 4
    dec_dim: int = 1024
    enc_place_mean: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int":
                require_whole(field.name, value)
            elif field.type == "float":
                _require_rate(field.name, value)
            elif field.type == "tuple[int, ...]":
                object.__setattr__(self, field.name, _as_widths(field.name, value))
            elif field.type == "bool" and not isinstance(value, bool):
                raise ValueError(f"{field.name}: expected true or false, got {value!r}")
            elif field.type == "str" and not isinstance(value, str):
                raise ValueError(f"{field.name}: expected a name, got {value!r}")
        require_one_of("enc_ln", self.enc_ln, ENCODE_NORMS)
        require_one_of("agg_trunc_bp", self.agg_trunc_bp, TRUNCATIONS)
        if not self.enc_dims[-1] == self.init_dim == self.agg_embed_dim:
            raise ValueError(
                "enc_dims, init_dim, agg_embed_dim: expected one slot width, got "
                f"enc_dims[-1]={self.enc_dims[-1]}, init_dim={self.init_dim}, "
                f"agg_embed_dim={self.agg_embed_dim}"
            )

    @property
    def slot_dim(self) -> int:
        """The slot width D."""
        return self.agg_embed_dim

    @property
    def num_places(self) -> int:
        """N of the images that the decoder, and a place mean, are made for."""
        return math.prod(self.pos_resolut)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PrunerConfig:
        """Builds a config from the authors' keys.

        Keys that fix the pruner's shapes must be there; the others default to the published
        values.

        Raises:
            ValueError: these are no keys and values, a key is unknown or missing (all of them are
                named), or a value is bad.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"config: expected keys and values, got {type(values).__name__}")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known, key=str)
        if unknown:
            raise ValueError(f"config: unknown keys {unknown}; known are {sorted(known)}")
        missing = [key for key in REQUIRED_KEYS if key not in values]
        if missing:
            raise ValueError(f"config: missing keys {missing}")
        return cls(**values)

    @classmethod
    def from_json(cls, path: str | Path) -> PrunerConfig:
        """Reads the authors' JSON file, e.g. ``oc-vlm_64.json``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a JSON object, or `from_dict` refuses it.
        """
        values = read_json_object(Path(path))
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_json(self) -> str:
        """The config as the authors' JSON: every key of theirs, and ours where it is on."""
        values = dataclasses.asdict(self)
        if not self.enc_place_mean:
            del values["enc_place_mean"]
        return json.dumps(values, indent=2)


def read_json_object(path: Path) -> dict[str, Any]:
    """The keys and values of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a JSON object, got bad JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def is_number(value: object) -> TypeGuard[float]:
    """Whether a setting is a float, or an int that one can hold; true and false are neither."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, float)


def require_whole(name: str, value: object, minimum: int = 1) -> None:
    """Raises ValueError unless a setting is an int of at least ``minimum``."""
    if not is_number(value) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name}: expected a whole number of at least {minimum}, got {value!r}")


def _require_rate(name: str, value: object) -> None:
    if not is_number(value) or not 0.0 <= value < 1.0:
        raise ValueError(f"{name}: expected a number in [0, 1), got {value!r}")


def _as_widths(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{name}: expected a list of whole numbers, got {value!r}")
    for width in value:
        require_whole(name, width)
    return tuple(value)
