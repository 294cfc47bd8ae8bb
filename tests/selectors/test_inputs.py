"""Selectors on `SelectorInputs` that do not fit, on padding, and under autocast."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, reads_of, run_selector
from ocvtp_kernels.selectors.registry import METHODS, make_selector, select
from tests.selectors.cases import Images
from tests.selectors.test_select import EVERY, EVERY_VARIANT, assert_alike


def inputs_of(images: Images) -> SelectorInputs:
    return SelectorInputs(images.tokens, images.tokens, **images.inputs)


SPOILT = {
    "rank": lambda value: value[0],
    "batch": lambda value: torch.cat([value, value[:1]]),
    "tokens": lambda value: value[:, 1:],
    "device": lambda value: value.to("meta"),
    "dtype": lambda value: value.to(torch.int64),
    "float8": lambda value: value.to(torch.float8_e4m3fn),
    "sparse": Tensor.to_sparse,
    "nested": lambda value: torch.nested.nested_tensor(list(value)),
    "NumPy": lambda value: value.numpy(),
    "list": Tensor.tolist,
}


@EVERY
@pytest.mark.parametrize("way", SPOILT)
@pytest.mark.filterwarnings("ignore")
def test_a_field_that_does_not_fit_is_named(method: str, way: str) -> None:
    images = Images(3, torch.float32)
    inputs, selector = inputs_of(images), make_selector(method)
    for name in reads_of(selector) - {"grid", "num_heads", "valid"}:
        value = getattr(inputs, name)
        if way == "tokens" and name in ("text", "cls_token", "text_pivots"):
            continue
        if name == "reference_tokens" and way in ("batch", "tokens", "device"):
            continue  # what the others are measured by
        with pytest.raises((ValueError, TypeError), match=f"^{name}: expected "):
            spoilt: Any = SPOILT[way](value)
            run_selector(selector, inputs._replace(**{name: spoilt}), images.budget)


@pytest.mark.parametrize(
    ("grid", "error"),
    [(3, TypeError), ((3,), TypeError), ((2.0, 4), TypeError), ((-2, -4), ValueError)],
)
def test_a_grid_that_is_none_is_named(grid: Any, error: type[Exception]) -> None:
    tokens, scores = torch.randn(2, 8, 6), torch.rand(2, 8)
    with pytest.raises(error, match=r"^grid: expected "):
        select(tokens, 3, "hiprune", importance=scores, shallow_importance=scores, grid=grid)


@EVERY
def test_padding_is_never_kept_or_refused(method: str) -> None:
    images = Images(4, torch.float32)
    valid = torch.zeros(images.tokens.shape[:2], dtype=torch.bool)
    valid[:, ::2] = True
    budget = int(valid[0].sum()) - 1
    inputs = inputs_of(images)._replace(valid=valid)
    if method == "random":
        ids = run_selector(make_selector(method), inputs, budget).ids
        assert valid.gather(1, ids).all()
    else:
        with pytest.raises(ValueError, match=r"^valid: not read by"):
            run_selector(make_selector(method), inputs, budget)


def test_a_selector_that_says_that_it_reads_padding_gets_it() -> None:
    class FirstValid:
        wants = frozenset({"valid"})

        def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
            assert inputs.valid is not None
            return Selected(inputs.valid.to(torch.uint8).topk(budget, dim=1).indices.sort().values)

    tokens = torch.randn(1, 6, 4)
    valid = torch.tensor([[False, True, True, False, True, False]])
    inputs = SelectorInputs(tokens, tokens, valid=valid)
    assert run_selector(FirstValid(), inputs, 3).ids.tolist() == [[1, 2, 4]]
    with pytest.raises(TypeError, match=r"^valid: expected dtype torch.bool"):
        run_selector(FirstValid(), inputs._replace(valid=valid.float()), 3)


@EVERY_VARIANT
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(method: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    for tokens in (torch.float32, torch.bfloat16):
        images = Images(6, tokens)
        expected = images.select(method, **options)
        with torch.autocast("cpu", dtype=dtype):
            assert_alike(images.select(method, **options), expected)


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("random", {"seed": 1.5}),
    ("random", {"seed": None}),
    ("hiprune", {"anchor_share": "x"}),
    ("hiprune", {"anchor_share": float("nan")}),
    ("scope", {"alpha": None}),
    ("vispruner", {"important_share": torch.ones(2)}),
    ("vispruner", {"drop": True}),
    ("prumerge", {"neighbours": np.float32(3)}),
    ("visionzip", {"heads": 2.0}),
    ("vlm-pruner", {"spread": -0.1}),
    ("vlm-pruner", {"spread": float("nan")}),
    ("vlm-pruner", {"step": "1"}),
    ("vlm-pruner", {"threshold": None}),
    ("vlm-pruner", {"own_share": 1.5}),
    ("vlm-pruner", {"place": "nowhere"}),
    ("fastv", {"layer": True}),
    ("dart", {"num_text_pivots": None}),
    ("idpruner", {"score": ["importance"]}),
    ("idpruner", {"trade_off": "x"}),
    ("id-selection", {"gamma": None}),
    ("holov", {"num_patches": 1.5}),
    ("holov", {"alpha": float("nan")}),
    ("apet", {"num_basis": 2.0}),
    ("tome", {"heads": 2.0}),
    ("pyramiddrop", {"schedule": 3}),
    ("sparsevlm", {"seed": None}),
    ("sparsevlm", {"as_published": 1}),
    *((method, {"as_published": 1}) for method in ("divprune", "cdpruner", "trim", "hiprune")),
    *((method, {"as_published": "no"}) for method in ("visionzip", "vlm-pruner", "holov", "dart")),
]


@pytest.mark.parametrize(("method", "options"), OPTIONS)
def test_an_option_of_another_kind_is_named(method: str, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises((ValueError, TypeError), match=f"^{name}: expected "):
        make_selector(method, **options)


def test_every_method_is_among_the_options() -> None:
    without = {"fastervlm", "prumerge+"}  # of no option, or of the one that another has
    assert {method for method, _ in OPTIONS} == METHODS.keys() - without
