"""What no op takes, and that the error names the argument, whichever way the op is called."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from tests.cases import running
from tests.ops.cases import ARGUMENTS, op
from tests.test_structure import EVERY_OP

PLAIN = pytest.mark.parametrize("backend", ["plain", "reference"])


def quantized(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.quint8)


NO_TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "None": lambda tensor: None,
    "sparse_coo": lambda tensor: tensor.to_sparse(),
    "sparse_csr": lambda tensor: tensor.reshape(-1, tensor.shape[-1]).to_sparse_csr(),
    "mkldnn": lambda tensor: tensor.float().contiguous().to_mkldnn(),
    "quantized": quantized,
    "nested": lambda tensor: torch.nested.nested_tensor(list(tensor)),
    "jagged": lambda tensor: torch.nested.nested_tensor(list(tensor), layout=torch.jagged),
}


def refused(call: Callable[..., Any], *arguments: Any, name: str, kind: Any) -> str:
    """What the error says, which names the argument."""
    with pytest.raises(kind, match=rf"^{name}(\[\d+\])?: expected ") as caught:
        call(*arguments)
    return str(caught.value)


@EVERY_OP
@pytest.mark.parametrize("kind", NO_TENSORS)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_dense_tensor_is_named(op: Any, autocast: bool, kind: str) -> None:
    arguments = ARGUMENTS[op.__name__](dtype=torch.float32)
    for place, name in enumerate(list(inspect.signature(op).parameters)[: len(arguments)]):
        value = arguments[place]
        if not isinstance(value, Tensor) or (kind == "jagged" and value.dim() < 2):
            continue
        given = [*arguments[:place], NO_TENSORS[kind](value), *arguments[place + 1 :]]
        annotation = get_type_hints(op)[name]
        if kind == "None" and type(None) in get_args(annotation):
            continue
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            refused(op, *given, name=name, kind=TypeError)
            if kind != "jagged":  # a subclass of Tensor, which refuses by itself
                overload = getattr(torch.ops.ocvtp, op.__name__).default
                refused(overload, *given, name=name, kind=TypeError)


@EVERY_OP
@pytest.mark.parametrize("kind", [kind for kind in NO_TENSORS if kind not in ("None", "jagged")])
@pytest.mark.filterwarnings("ignore")
def test_one_of_two_that_fit_no_kernel_is_named(op: Any, kind: str) -> None:
    """The dispatcher looks for a kernel of all kinds and devices at once."""
    arguments = ARGUMENTS[op.__name__](dtype=torch.float32)
    places = [place for place, value in enumerate(arguments) if isinstance(value, Tensor)]
    names = "|".join(list(inspect.signature(op).parameters)[: len(arguments)])
    for place, other in itertools.permutations(places, 2):
        given = list(arguments)
        given[place] = NO_TENSORS[kind](given[place])
        given[other] = given[other].to("meta")
        for call in (op, getattr(torch.ops.ocvtp, op.__name__).default):
            refused(call, *given, name=f"({names})", kind=(TypeError, ValueError))


@EVERY_OP
def test_numbers_of_another_kind_are_named(op: Any) -> None:
    arguments = ARGUMENTS[op.__name__]()
    for name, kind in get_type_hints(op).items():
        kinds = {bool, int, float} & {kind, *get_args(kind)}
        if name == "return" or not kinds:
            continue
        place = list(inspect.signature(op).parameters).index(name)
        others = [torch.tensor(1), "1", [1]] + ([1, 0.5] if bool in kinds else [True])
        for other in others + ([2.5] if int in kinds else []):
            if place < len(arguments):
                given = [*arguments[:place], other, *arguments[place + 1 :]]
                refused(op, *given, name=name, kind=TypeError)
            else:
                with pytest.raises(TypeError, match=rf"^{name}: expected "):
                    op(*arguments, **{name: other})


@EVERY_OP
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64, torch.int32])
def test_dtypes_that_are_not_computed_in_are_named(op: Any, dtype: torch.dtype) -> None:
    arguments = ARGUMENTS[op.__name__]()
    first, value = next(iter(inspect.signature(op).parameters)), arguments[0]
    name = {"x": "h"}.get(first, first)  # which the GRU's input is measured by
    place = list(inspect.signature(op).parameters).index(name)
    value = arguments[place]
    given = [*arguments[:place], value.to(dtype), *arguments[place + 1 :]]
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            refused(op, *given, name=name, kind=TypeError)


def test_autocast_of_no_floating_argument_is_refused_by_the_check() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = torch.zeros(1, 3, 2, dtype=torch.int64)
        refused(op("channel_variance"), tokens, name="tokens", kind=TypeError)


@EVERY_OP
@PLAIN
def test_no_output_is_memory_of_an_argument(op: Any, backend: str) -> None:
    arguments = list(ARGUMENTS[op.__name__]())
    if op.__name__ == "match_select":
        arguments[2] = arguments[1].shape[1]  # nothing to drop
    with running(backend):
        results = torch.utils._pytree.tree_leaves(op(*arguments))
    tensors = torch.utils._pytree.tree_leaves(arguments)
    memory = {t.untyped_storage().data_ptr() for t in tensors if isinstance(t, Tensor)}
    assert not memory & {result.untyped_storage().data_ptr() for result in results}


IDS: dict[str, tuple[str, int]] = {
    "farthest_select": ("first", 1),
    "match_select": ("ranked", 1),
    "centrifugal_select": ("pivots", 1),
    "resolve_picks": ("topk_ids", 0),
}


@PLAIN
@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("off", [-1000, 1000])
def test_ids_of_no_token_are_named_in_plain_pytorch_too(backend: str, name: str, off: int) -> None:
    arguments, (argument, place) = list(ARGUMENTS[name]()), IDS[name]
    if arguments[place] is None:
        arguments[place] = torch.zeros(2, dtype=torch.int64)
    arguments[place] = arguments[place] + off
    with running(backend):
        said = refused(op(name), *arguments, name=argument, kind=ValueError)
    assert re.search(r"ids of tokens, 0 to \d+, got -?\d+$", said)


@pytest.mark.parametrize("kind", [kind for kind in NO_TENSORS if kind not in ("None", "jagged")])
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_dense_tensor_is_named_where_a_gradient_is_to_come(kind: str) -> None:
    x, h, w_ih, *others = ARGUMENTS["gru_cell"]()
    weight = NO_TENSORS[kind](w_ih)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            given = (x, h.clone().requires_grad_(), weight, *others)
            refused(op("gru_cell"), *given, name="w_ih", kind=TypeError)


DIFFERENTIABLE = {
    "slot_attention": ("k", 1),
    "slot_attention_with_attention": ("k", 1),
    "slot_attention_step": ("weights", 3),
    "gru_cell": ("w_ih", 2),
    "merge": ("k", 1),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("backend", ["reference", "plain", "portable"])
def test_tensors_of_inference_mode_are_named_where_a_gradient_is_to_come(
    name: str, backend: str
) -> None:
    arguments, (argument, place) = list(ARGUMENTS[name]()), DIFFERENTIABLE[name]
    wanted = 2 if name == "merge" else 0
    arguments[wanted] = arguments[wanted].clone().requires_grad_()
    with torch.inference_mode():
        value = arguments[place]
        is_list = isinstance(value, list)
        arguments[place] = [one.clone() for one in value] if is_list else value.clone()
    with running(backend):
        said = refused(op(name), *arguments, name=argument, kind=ValueError)
    assert "inference mode" in said
    with torch.no_grad():
        op(name)(*arguments)
