"""Reading and writing pruner checkpoints: the authors' ``.pth``, and safetensors."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.pruner.config import PrunerConfig

CONFIG_KEY = "ocvtp_config"
# The authors' checkpoints contain the training decoder, which pruning does not use.
DECODER_PREFIX = "decode."
# What a pruner consists of: the first part of its tensors' names.
PRUNER_PARTS = frozenset(("encode_project", "initializ", "aggregat"))
# The buffer of a pruner that has one.
PLACE_MEAN = "place_mean"
# What torch's wrappers put into names: DataParallel, compile, FSDP, checkpointing.
WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
# Where files of training runs have the weights, beside other entries.
WEIGHT_KEYS = ("state_dict", "model_state_dict", "model")


def read_checkpoint(
    path: str | Path, *, with_decoder: bool = False
) -> tuple[dict[str, Tensor], PrunerConfig | None]:
    """Reads a pruner's weights, without the decoder unless ``with_decoder``.

    Names may have a prefix, as wrappers (``module.``, ``_orig_mod.``) and larger models
    (``model.pruner.``) give them. It is found by the pruner's own names (`PRUNER_PARTS`), whatever
    it is, and removed; tensors without it belong to the larger model and are left out. Names that
    begin with no prefix are kept all, so a strange one among them is not overlooked. What wrappers
    of parts (`WRAPPERS`) put into the names is taken out.

    Args:
        path: ``.safetensors``, or anything ``torch.load(weights_only=True)`` reads: a state dict,
            bare or under one of the keys ``state_dict``, ``model_state_dict`` and ``model``, or
            under one within another, with any entries beside.
        with_decoder: read the decoder's weights too, which pruning does not use.

    Returns:
        the state dict on the CPU, and the config if the file carries one.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be opened.
        ValueError: the file is not a whole checkpoint of tensors, or has several pruners, under
            different prefixes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: no such file: {path}")
    # For an OSError that names the file: those of a reader may be about its contents.
    path.open("rb").close()
    if path.suffix == ".safetensors":
        state, config = _read_safetensors(path)
    else:
        state, config = _read_pickle(path), None
    prefix = _pruner_prefix(path, state)
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    state = {_without_wrappers(name): tensor for name, tensor in own.items()}
    if len(state) < len(own):
        raise ValueError(f"{path}: expected names that differ without {sorted(WRAPPERS)}")
    if with_decoder:
        return state, config
    return {k: v for k, v in state.items() if not k.startswith(DECODER_PREFIX)}, config


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], PrunerConfig | None]:
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    # A dtype that torch has no name for is another error than a damaged file.
    except Exception as error:
        raise ValueError(f"{path}: expected a safetensors file, got {_reason(error)}") from error
    if CONFIG_KEY not in metadata:
        return state, None
    try:
        return state, PrunerConfig.from_dict(json.loads(metadata[CONFIG_KEY]))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: bad config in the metadata: {error}") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file can make torch raise anything.
    except Exception as error:
        raise ValueError(f"{path}: expected a file of weights, got {_reason(error)}") from error
    loaded = _weights_in(loaded)
    if not isinstance(loaded, Mapping) or not loaded:
        raise ValueError(f"{path}: expected a state dict, got {type(loaded).__name__}")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: expected a state dict of tensors, got {type(value).__name__} at {key!r}"
            )
    return dict(loaded)


def _weights_in(loaded: object) -> object:
    """What is under the first of `WEIGHT_KEYS` that has entries, and so once more within it."""
    for _ in range(2):
        inner = [loaded.get(key) for key in WEIGHT_KEYS] if isinstance(loaded, Mapping) else []
        loaded = next((one for one in inner if isinstance(one, Mapping) and one), loaded)
    return loaded


def _without_wrappers(name: str) -> str:
    first, *rest = name.split(".")
    if first not in PRUNER_PARTS and not name.startswith(DECODER_PREFIX):
        return name
    return ".".join([first, *(part for part in rest if part not in WRAPPERS)])


def _pruner_prefix(path: Path, state: Mapping[str, Tensor]) -> str:
    """What the names of the one pruner in a state dict begin with; nothing if there is none.

    Raises:
        ValueError: there are several.
    """
    parts: dict[str, set[str]] = {}
    for name in state:
        names = name.split(".")
        for depth, part in enumerate(names):
            if part in PRUNER_PARTS:
                parts.setdefault("".join(f"{above}." for above in names[:depth]), set()).add(part)
                break
    prefixes = [prefix for prefix, own in parts.items() if own == PRUNER_PARTS] or list(parts)
    if len(prefixes) > 1:
        raise ValueError(f"{path}: expected one pruner, got tensors under {prefixes}")
    return prefixes[0] if prefixes else ""


def _reason(error: BaseException) -> str:
    """An error's type, and the first line of what it says."""
    if isinstance(error, pickle.UnpicklingError) and error.__context__ is not None:
        # What torch says around it tells how to load a file that is not trusted.
        error = error.__context__
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def infer_config(state: Mapping[str, Tensor]) -> PrunerConfig:
    """The config that follows from a state dict's names and shapes, with the published rest.

    The rest are the numbers of iterations and slots, the dropouts and the decoder.

    Raises:
        ValueError: the names are not a pruner's.
    """
    encode = {
        int(name.split(".")[2]): tensor
        for name, tensor in state.items()
        if name.startswith("encode_project.mlp.") and name.endswith(".weight")
    }
    linears = [encode[index] for index in sorted(encode) if encode[index].dim() == 2]
    hidden = state.get("aggregat.ffn.mlp.0.weight")
    if not linears or hidden is None or hidden.dim() != 2:
        raise ValueError("checkpoint: expected a pruner's state dict, got other names")
    norms = [index for index in encode if encode[index].dim() == 1]
    dim = linears[-1].shape[0]
    place_mean = state.get(PLACE_MEAN)
    return PrunerConfig(
        enc_in_dim=linears[0].shape[1],
        enc_dims=tuple(linear.shape[0] for linear in linears),
        enc_ln=None if not norms else "pre" if norms[0] == 0 else "post",
        init_dim=dim,
        agg_embed_dim=dim,
        agg_ffn_dim=hidden.shape[0],
        enc_place_mean=place_mean is not None,
        pos_resolut=PrunerConfig.pos_resolut if place_mean is None else (len(place_mean),),
    )


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises ValueError, naming every offender, unless keys and shapes are the expected ones."""
    problems = [f"missing {key}" for key in expected if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in expected]
    problems += [
        f"{key} has shape {list(state[key].shape)}, the config expects {list(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    problems += [
        f"{key} has dtype {state[key].dtype}, expected a floating one"
        for key in expected
        if key in state and not state[key].is_floating_point()
    ]
    if problems:
        raise ValueError("checkpoint: " + "; ".join(problems))


def write_checkpoint(path: str | Path, state: Mapping[str, Tensor], config: PrunerConfig) -> None:
    """Writes weights and config to one safetensors file, aside first, then renamed.

    Raises:
        ValueError: ``path`` does not end in ``.safetensors``.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path: expected a name ending in .safetensors, got {path.name!r}")
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    # A single key: safetensors writes several in any order, and equal files would differ.
    metadata = {CONFIG_KEY: config.to_json()}
    # Bytes of our own writing, as `save_file` leaves a file that its owner alone may read.
    atomic_write(path, save(tensors, metadata))
