"""An iteration is made of several ops: what does not fit is named by its own arguments' names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops
from ocvtp_kernels.ops.slot_attention.reference import StepWeights
from tests.ops.cases import ARGUMENTS

SPOILT = {
    "rank +1": lambda weight: weight[None],
    "rank -1": lambda weight: weight[0],
    "one more": lambda weight: torch.cat([weight, weight[:1]]),
    "one fewer": lambda weight: weight[1:],
    "dtype": Tensor.double,
    "device": lambda weight: weight.to("meta"),
    "sparse": Tensor.to_sparse,
}


def arguments() -> dict[str, Any]:
    names = ("slots", "k", "v", "weights", "scale")
    return dict(zip(names, ARGUMENTS["slot_attention_step"](), strict=True))


@pytest.mark.parametrize("place", range(len(StepWeights._fields)), ids=StepWeights._fields)
@pytest.mark.parametrize("way", SPOILT)
def test_a_weight_that_does_not_fit_is_named(way: str, place: int) -> None:
    given = arguments()
    weights = list(given["weights"])
    weights[place] = SPOILT[way](weights[place])
    # Others are measured by the hidden width, which is that of the first matrix.
    first = StepWeights._fields.index("ffn_w1")
    named = rf"{place}|{first + 1}|{first + 2}" if place == first else str(place)
    with pytest.raises((ValueError, TypeError), match=rf"^weights\[({named})\]: expected "):
        ops.slot_attention_step(**{**given, "weights": weights})


@pytest.mark.parametrize("name", ["slots", "k", "v"])
@pytest.mark.parametrize("way", SPOILT)
def test_a_tensor_that_does_not_fit_is_named(name: str, way: str) -> None:
    given = arguments()
    # By the tensor that is not like the slots: another one, where these change.
    others = "slots|k|v" if name != "slots" else r"slots|k|v|weights\[\d+\]"
    with pytest.raises((ValueError, TypeError), match=rf"^({others}): expected "):
        ops.slot_attention_step(**{**given, name: SPOILT[way](given[name])})


def test_autocast_takes_several_dtypes() -> None:
    given = arguments()
    expected = ops.slot_attention_step(**given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ops.slot_attention_step(**{**given, "k": given["k"].bfloat16()})
    torch.testing.assert_close(got, expected, rtol=0.1, atol=0.1)
