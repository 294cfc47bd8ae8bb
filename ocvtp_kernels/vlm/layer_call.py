"""Argument names with which transformers calls decoder layers and their attention.

The key-value cache is ``cache``; before transformers 5.24 it was ``past_key_values``, which is
deprecated since.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

CACHE_NAMES = ("cache", "past_key_values")  # where a call has both, the first one counts
CALL = "ocvtp_call"  # ours, which transformers passes on to the layers
TESTED = "5.16 to 5.24"  # versions of transformers

# Beside the cache: what pruning replaces and so must be there, and what may be there.
_LAYER_NEEDS = {"hidden_states", "attention_mask", "position_ids", "position_embeddings"}
_ATTENTION_NEEDS = {"hidden_states", "attention_mask", "position_embeddings"}
_KNOWN = _LAYER_NEEDS | set(CACHE_NAMES) | {"use_cache", "output_attentions"}


def language_model_of(inner: Any) -> Any:
    """The language model of a model without its head, by either name; None where there is none."""
    return getattr(inner, "language_model", getattr(inner, "text_model", None))


def rotary_of(text: Any) -> Any:
    """The rotary embedding of a language model.

    Raises:
        ValueError: it has none.
    """
    rotary = getattr(text, "rotary_emb", None)
    if rotary is None:
        raise ValueError(
            f"model: expected a language model of rotary positions, got {type(text).__name__}"
        )
    return rotary


def read_cache(given: Mapping[str, Any]) -> Any:
    """The cache among the arguments or the outputs of a call, by either name; None without one."""
    names = list(given)  # reading the deprecated name from an output would warn
    return next((given[name] for name in CACHE_NAMES if name in names), None)


def cached_length(cache: Any) -> int:
    """Columns in a key-value cache, 0 without one."""
    return 0 if cache is None else int(cache.get_seq_length())


def cache_name(function: Callable[..., Any]) -> str:
    """The name by which a function of transformers takes the cache."""
    names = inspect.signature(function).parameters
    return next(name for name in CACHE_NAMES if name in names)


def with_cache(given: Mapping[str, Any], name: str, cache: Any) -> dict[str, Any]:
    """The arguments of a call with another cache, which is called ``name``."""
    others = {key: value for key, value in given.items() if key not in CACHE_NAMES}
    return others | {name: cache}


def require_known_layer(layer: Any) -> None:
    """Raises ValueError unless a decoder layer and its attention take the known arguments."""
    attention = getattr(layer, "self_attn", None)
    for owner, needs in ((layer, _LAYER_NEEDS), (attention, _ATTENTION_NEEDS)):
        parameters = {} if owner is None else inspect.signature(owner.forward).parameters
        named = {
            name
            for name, parameter in parameters.items()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }
        if needs <= named <= _KNOWN and not named.isdisjoint(CACHE_NAMES):
            continue
        import transformers

        other = "has no self_attn" if owner is None else f"takes {', '.join(parameters)}"
        raise ValueError(
            f"model: pruning in the decoder knows the layers of transformers {TESTED}, which take "
            f"{', '.join(sorted(needs))} and {' or '.join(CACHE_NAMES)}; "
            f"{type(layer if owner is None else owner).__name__} of transformers "
            f"{transformers.__version__} {other}"
        )
