"""The names by which transformers passes on the cache, and unknown layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ocvtp_kernels.vlm.layer_call import (
    TESTED,
    cache_name,
    read_cache,
    require_known_layer,
    with_cache,
)

transformers = pytest.importorskip("transformers", exc_type=ImportError)

TAKES = "attention_mask=None, position_ids=None, position_embeddings=None"


def taking(arguments: str) -> Callable[..., Any]:
    function: Callable[..., Any] = eval(f"lambda {arguments}: hidden_states")
    return function


def layer_of(layer: str, attention: str) -> Any:
    return SimpleNamespace(
        forward=taking(layer), self_attn=SimpleNamespace(forward=taking(attention))
    )


def test_a_cache_is_read_by_either_name() -> None:
    assert read_cache({}) is read_cache({"cache": None}) is None
    assert read_cache({"past_key_values": 1}) == read_cache({"cache": 1}) == 1
    assert read_cache({"past_key_values": 1, "cache": 2}) == 2


@pytest.mark.filterwarnings("error")
def test_outputs_are_read_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    from transformers.modeling_outputs import BaseModelOutputWithPast

    name = "cache" if "cache" in BaseModelOutputWithPast.__annotations__ else "past_key_values"
    cache = transformers.DynamicCache()
    assert read_cache(BaseModelOutputWithPast(**{name: cache})) is cache
    assert read_cache(BaseModelOutputWithPast()) is None
    assert not caplog.records


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_is_put_by_the_name_it_has(name: str) -> None:
    function = taking(f"hidden_states, {name}=None, **others")
    assert cache_name(function) == name
    for given in ({}, {"cache": 1}, {"past_key_values": 1}, {"cache": 1, "past_key_values": 2}):
        assert with_cache({"x": 0, **given}, cache_name(function), 3) == {"x": 0, name: 3}


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_layers_of_either_name_are_known(name: str) -> None:
    takes = f"hidden_states, {TAKES}, {name}=None, **others"
    require_known_layer(layer_of(takes, takes))


@pytest.mark.parametrize(
    "takes",
    [
        f"hidden_states, {TAKES}, **others",
        f"hidden_states, {TAKES}, layer_past=None",
        f"hidden_states, {TAKES}, cache=None, skipped_columns=None",
        "hidden_states, attention_mask=None, cache=None, **others",
        "hidden_states, *rest, **others",
    ],
)
def test_other_layers_are_refused(takes: str) -> None:
    known = f"hidden_states, {TAKES}, cache=None"
    for layer in (layer_of(takes, known), layer_of(known, takes)):
        with pytest.raises(ValueError, match=rf"transformers {TESTED}, which take .* takes hidden"):
            require_known_layer(layer)


def test_a_layer_without_attention_is_refused() -> None:
    layer = SimpleNamespace(forward=taking(f"hidden_states, {TAKES}, cache=None"))
    with pytest.raises(ValueError, match=r"SimpleNamespace of transformers .* has no self_attn"):
        require_known_layer(layer)


def test_the_versions_that_are_named_are_those_that_are_tested() -> None:
    root = Path(__file__).parents[2]
    oldest, newest = TESTED.split(" to ")
    assert f"transformers>={oldest}" in (root / "pyproject.toml").read_text()
    assert f"transformers=={newest}." in (root / "constraints.txt").read_text()
