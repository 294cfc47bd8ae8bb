"""Reading and writing pruner checkpoints: the authors' ``.pth``, and safetensors."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.pruner.config import PrunerConfig

CONFIG_KEY = "ocvtp_config"
# The authors' checkpoints contain the training decoder, which pruning does not use.
DECODER_PREFIX = "decode."


def read_checkpoint(
    path: str | Path, *, with_decoder: bool = False
) -> tuple[dict[str, Tensor], PrunerConfig | None]:
    """Reads a pruner's weights, without the decoder unless ``with_decoder``.

    Args:
        path: ``.safetensors``, or anything ``torch.load(weights_only=True)`` reads: a state dict,
            bare or under the key ``state_dict``.
        with_decoder: read the decoder's weights too, which pruning does not use.

    Returns:
        the state dict on the CPU, and the config if the file carries one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: no such file: {path}")
    if path.suffix == ".safetensors":
        state, config = _read_safetensors(path)
    else:
        state, config = _read_pickle(path), None
    if with_decoder:
        return state, config
    return {k: v for k, v in state.items() if not k.startswith(DECODER_PREFIX)}, config


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], PrunerConfig | None]:
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file, got {error}") from error
    if CONFIG_KEY not in metadata:
        return state, None
    try:
        return state, PrunerConfig.from_dict(json.loads(metadata[CONFIG_KEY]))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: bad config in the metadata: {error}") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path}: expected a file of weights, got {reason}") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded:
        raise ValueError(f"{path}: expected a state dict, got {type(loaded).__name__}")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: expected a state dict of tensors, got {type(value).__name__} at {key!r}"
            )
    return dict(loaded)


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
    return PrunerConfig(
        enc_in_dim=linears[0].shape[1],
        enc_dims=tuple(linear.shape[0] for linear in linears),
        enc_ln=None if not norms else "pre" if norms[0] == 0 else "post",
        init_dim=dim,
        agg_embed_dim=dim,
        agg_ffn_dim=hidden.shape[0],
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
