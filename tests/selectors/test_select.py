"""What all methods share: exact budgets, ties, batches, strides, dtypes, tracing, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import (
    Selected,
    SelectorInputs,
    needs_of,
    reads_of,
    run_selector,
)
from ocvtp_kernels.selectors.registry import METHODS, make_selector, select
from tests.cases import assert_kept
from tests.selectors.cases import HEADS, PUBLISHED, WAYS, Images, on

EVERY = pytest.mark.parametrize("method", METHODS)
VARIANTS: list[tuple[str, dict[str, Any]]] = [(method, {}) for method in METHODS]
VARIANTS += [(method, {"as_published": True}) for method in PUBLISHED]
EVERY_VARIANT = pytest.mark.parametrize(("method", "options"), VARIANTS)


def changed(images: Images, change: Any) -> tuple[Tensor, dict[str, Any]]:
    """Tokens and inputs with ``change`` applied to every tensor."""
    inputs = {
        name: change(value) if isinstance(value, Tensor) else value
        for name, value in images.inputs.items()
    }
    return change(images.tokens), inputs


def letterbox(value: Tensor) -> Tensor:
    """The first half of an image's tokens are padding, all alike."""
    if value.dim() == 1 or value.shape[1] < 9:
        return value
    padding = value[:, :1].expand(-1, value.shape[1] // 2, *value.shape[2:])
    return torch.cat([padding, value[:, padding.shape[1] :]], dim=1)


def repeat(value: Tensor) -> Tensor:
    """Three different tokens an image, again and again."""
    if value.dim() == 1 or value.shape[1] < 9:
        return value
    return value[:, torch.arange(value.shape[1]) % 3]


def poison(value: Tensor) -> Tensor:
    """The third token of every image is NaN."""
    if value.dim() == 1 or value.shape[1] < 9:
        return value
    return value.clone().index_fill_(1, torch.tensor([2]), torch.nan)


AWKWARD = {
    "letterboxed": letterbox,
    "repeated": repeat,
    "alike": torch.ones_like,
    "zero": torch.zeros_like,
    "nan": poison,
}


@EVERY
@pytest.mark.parametrize("awkward", AWKWARD)
def test_exactly_the_budget_is_kept(method: str, awkward: str) -> None:
    for seed in range(12):
        images = Images(seed, torch.float32)
        tokens, inputs = changed(images, AWKWARD[awkward])
        num_tokens = tokens.shape[1]
        for budget in {1, 2, images.budget, num_tokens - 1, num_tokens}:
            for way in WAYS:
                with on(way):
                    selected = select(tokens, budget, method, **inputs)
                assert_kept(selected.ids, budget, num_tokens)
                assert selected.tokens is not None
                assert selected.tokens.shape == (len(tokens), budget, tokens.shape[2])
                if selected.order is not None:
                    assert torch.equal(selected.order.sort(dim=1).values, selected.ids)


@pytest.mark.parametrize(
    "method",
    [
        *("divprune", "hiprune", "fastervlm", "cdpruner", "scope", "prumerge", "trim"),
        *("vlm-pruner", "fastv", "pyramiddrop", "idpruner", "id-selection", "apet", "dart"),
    ],
)
def test_a_token_that_is_nan_is_kept_last(method: str) -> None:
    images = Images(3, torch.float32)
    # Anchors bring their neighbours, whatever these are.
    options: dict[str, Any] = {"anchor_share": 0.0} if method == "hiprune" else {}
    tokens, inputs = changed(images, poison)
    for way in WAYS:
        with on(way):
            selected = select(tokens, tokens.shape[1] - 1, method, **inputs, **options)
        assert not (selected.ids == 2).any()


@EVERY_VARIANT
def test_an_image_alone_keeps_the_same(method: str, options: dict[str, Any]) -> None:
    if method == "cdpruner" and options:
        pytest.skip("as published, the images of a batch share one range")
    for seed in range(10):
        images = Images(seed)
        whole = images.select(method, **options)
        for index in range(len(images.tokens)):
            here = slice(index, index + 1)
            tokens, inputs = changed(images, lambda value, here=here: value[here])
            alone = select(tokens, images.budget, method, **inputs, **options)
            for name, value in alone._asdict().items():
                if isinstance(value, Tensor):
                    torch.testing.assert_close(getattr(whole, name)[here], value)


def strided(value: Tensor) -> Tensor:
    """The same values, last dimension first in memory, NaN between and around them."""
    wide = value.new_full([2 * size + 1 for size in reversed(value.shape)], torch.nan)
    view = wide.permute(*reversed(range(wide.dim())))[(slice(1, None, 2),) * wide.dim()]
    return view.copy_(value)


@EVERY_VARIANT
@pytest.mark.parametrize("way", WAYS)
def test_strides_change_nothing(way: str, method: str, options: dict[str, Any]) -> None:
    for seed in range(5):
        images = Images(seed)
        tokens, inputs = changed(images, strided)
        assert not tokens.is_contiguous()
        with on(way):
            dense = images.select(method, **options)
            views = select(tokens, images.budget, method, **inputs, **options)
        assert_alike(dense, views)


def assert_alike(one: Selected, other: Selected) -> None:
    """The same ids, and tokens to rounding."""
    for name, value in one._asdict().items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, getattr(other, name))
        else:
            assert value == getattr(other, name)


@EVERY_VARIANT
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_tokens_are_scored_in_float32(
    method: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    images = Images(7, torch.float32)
    tokens, inputs = changed(images, lambda value: value.to(dtype))
    wide = {name: v.float() if isinstance(v, Tensor) else v for name, v in inputs.items()}
    half = select(tokens, images.budget, method, **inputs, **options)
    full = select(tokens.float(), images.budget, method, **wide, **options)
    assert torch.equal(half.ids, full.ids)
    assert half.tokens is not None and half.tokens.dtype == dtype
    assert half.extra is None or half.extra.dtype == dtype


@EVERY_VARIANT
def test_no_images_are_no_ids(method: str, options: dict[str, Any]) -> None:
    images = Images(5)
    tokens, inputs = changed(images, lambda value: value[:0])
    selected = select(tokens, images.budget, method, **inputs, **options)
    assert selected.ids.shape == (0, images.budget - selected.extra_counted)


@EVERY_VARIANT
def test_nothing_is_read_that_it_does_not_say(method: str, options: dict[str, Any]) -> None:
    images, selector = Images(5), make_selector(method, **options)
    given = {"final_tokens": images.tokens, **images.inputs}

    def of(names: frozenset[str]) -> Selected:
        fields: dict[str, Any] = {n: given.get(n) for n in names - {"reference_tokens"}}
        inputs = SelectorInputs(images.tokens, fields.pop("final_tokens", None), **fields)
        return run_selector(selector, inputs, images.budget)

    assert of(needs_of(selector)).ids.shape[0] == len(images.tokens)
    selected, whole = of(reads_of(selector)), images.select(method, **options)
    assert torch.equal(selected.ids, whole.ids)
    if selected.tokens is not None:
        assert whole.tokens is not None
        assert torch.equal(selected.tokens, whole.tokens)


@EVERY_VARIANT
@pytest.mark.parametrize("empty", [("tokens",), ("keys",), ("tokens", "keys", "text")])
def test_rows_without_channels_are_kept_as_others(
    method: str, options: dict[str, Any], empty: tuple[str, ...]
) -> None:
    images = Images(5)
    tokens, inputs = changed(images, torch.clone)
    tokens = tokens[..., :0] if "tokens" in empty else tokens
    if "tokens" in empty:
        for name in ("cls_token", "text_pivots"):
            inputs[name] = inputs[name][..., :0]
    inputs["keys"] = inputs["keys"][..., :0] if "keys" in empty else inputs["keys"]
    if "text" in empty:
        inputs["text"], inputs["text_tokens"] = inputs["text"][..., :0], tokens
    selected = select(tokens, images.budget, method, **inputs, **options)
    assert selected.ids.shape == (len(tokens), images.budget - selected.extra_counted)
    assert selected.tokens is not None
    assert selected.tokens.shape == (*selected.ids.shape, tokens.shape[2])


@EVERY_VARIANT
def test_it_compiles_to_one_graph(method: str, options: dict[str, Any]) -> None:
    images = Images(11)

    def run(tokens: Tensor, inputs: dict[str, Any]) -> Selected:
        return select(tokens, images.budget, method, **inputs, **options)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_alike(run(images.tokens, images.inputs), compiled(images.tokens, images.inputs))


def test_visionzip_as_published_counts_the_cls_token() -> None:
    images = Images(1)
    selected = images.select("visionzip", as_published=True)
    assert selected.extra is not None and selected.tokens is not None
    assert torch.equal(selected.extra[:, 0], images.inputs["cls_token"])
    assert selected.tokens.shape[1] + selected.extra_counted == images.budget


def test_visionzip_takes_the_heads_of_the_inputs() -> None:
    images = Images(3)
    images.budget, given = 12, {"contextual": 4}
    inputs = SelectorInputs(images.tokens, images.tokens, num_heads=HEADS)
    inputs = inputs._replace(**{name: images.inputs[name] for name in ("cls_attention", "keys")})
    one = run_selector(make_selector("visionzip", **given), inputs, images.budget)
    other = images.select("visionzip", heads=HEADS, **given)
    assert one.tokens is not None and other.tokens is not None
    assert torch.equal(one.tokens, other.tokens)
    whole = images.select("visionzip", **given)
    assert whole.tokens is not None and not torch.equal(one.tokens, whole.tokens)


@pytest.mark.parametrize(("counted", "fits"), [(0, False), (1, True), (2, False)])
def test_fewer_ids_need_extra_tokens_that_count(counted: int, fits: bool) -> None:
    class Short:
        def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
            ids = torch.arange(budget - 1).expand(len(inputs.final_tokens), -1)
            return Selected(ids, extra=inputs.final_tokens[:, :1], extra_counted=counted)

    tokens = torch.zeros(2, 6, 4)
    if fits:
        assert run_selector(Short(), SelectorInputs(tokens, tokens), 4).ids.shape == (2, 3)
    else:
        with pytest.raises(ValueError, match=rf"expected ids of shape \(2, {4 - counted}\)"):
            run_selector(Short(), SelectorInputs(tokens, tokens), 4)


def test_an_unknown_method_lists_all() -> None:
    with pytest.raises(ValueError, match=r"method: .*'best'") as error:
        select(torch.zeros(1, 4, 4), 2, "best")
    assert all(method in str(error.value) for method in (*METHODS, "oc-progressive"))


@pytest.mark.parametrize(("method", "there"), [("visionzip", "contextual"), ("fastervlm", "none")])
def test_an_unknown_option_lists_the_options(method: str, there: str) -> None:
    with pytest.raises(TypeError, match=f"ratio: {method} takes no such option; .*{there}"):
        make_selector(method, ratio=0.5)


def test_a_fixed_option_is_no_option() -> None:
    with pytest.raises(TypeError, match=r"spatial: .* it has: neighbours"):
        make_selector("prumerge+", spatial=False)


@EVERY
def test_a_missing_input_lists_what_there_is(method: str) -> None:
    missing: frozenset[str] = getattr(make_selector(method), "needs", frozenset())
    missing = missing - {"final_tokens", "reference_tokens", "grid"}
    if not missing:
        pytest.skip("it reads tokens alone")
    with pytest.raises(ValueError, match=f"{min(missing)}: needed by .* final_tokens, grid"):
        select(torch.randn(1, 9, 4), 2, method)


WRONG = [
    ("fastervlm", {"cls_attention": torch.zeros(2, 9)}, "cls_attention: expected size 8"),
    ("fastervlm", {"cls_attention": torch.zeros(2, 8, 1)}, "cls_attention: expected shape"),
    ("vlm-pruner", {"keys": torch.zeros(1, 8, 4)}, "keys: expected size 2"),
    ("vlm-pruner", {"keys": torch.zeros(2, 8, 4), "grid": (3, 3)}, "grid: expected 8 cells"),
    ("trim", {"text": torch.zeros(2, 5)}, "text_tokens: needed by TRIM"),
    ("cdpruner", {"text": torch.zeros(2, 5)}, "text_tokens: needed beside text"),
    (
        "cdpruner",
        {"text": torch.zeros(2, 5), "text_tokens": torch.zeros(2, 8, 6)},
        "text_tokens: expected width 5",
    ),
    (
        "visionzip",
        {"cls_attention": torch.zeros(2, 8), "keys": torch.zeros(2, 8, 4), "heads": 3},
        "keys: expected a width of 3 heads",
    ),
    (
        "visionzip",
        {"cls_attention": torch.zeros(2, 8), "keys": torch.zeros(2, 8, 4), "contextual": 4},
        "contextual: expected at most 3",
    ),
    (
        "dart",
        {"keys": torch.zeros(2, 8, 4), "text_pivots": torch.zeros(2, 3, 5)},
        "text_pivots: expected size 6 in dimension 2 to match final_tokens",
    ),
    ("idpruner", {"score": "relevance"}, "relevance: needed by IDPruner"),
]


@pytest.mark.parametrize(("method", "given", "message"), WRONG)
def test_what_does_not_fit_is_named(method: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(torch.randn(2, 8, 6), 3, method, **given)


OUT_OF_RANGE = [
    ("vispruner", {"important_share": 1.5}, ValueError),
    ("vispruner", {"drop": 0}, ValueError),
    ("vispruner", {"drop": 2.5}, TypeError),
    ("hiprune", {"anchor_share": -0.1}, ValueError),
    ("visionzip", {"contextual": -1}, ValueError),
    ("visionzip", {"heads": 0}, ValueError),
    ("prumerge", {"neighbours": -1}, ValueError),
    ("scope", {"alpha": -1.0}, ValueError),
    ("vlm-pruner", {"pivots": 0}, ValueError),
    ("fastv", {"layer": 0}, ValueError),
    ("fastv", {"layer": 1.5}, TypeError),
    ("dart", {"layer": 0}, ValueError),
    ("dart", {"num_image_pivots": 0}, ValueError),
    ("dart", {"num_text_pivots": -1}, ValueError),
    ("idpruner", {"trade_off": 1.5}, ValueError),
    ("idpruner", {"score": "keys"}, ValueError),
    ("id-selection", {"gamma": -1.0}, ValueError),
    ("id-selection", {"gamma": float("inf")}, ValueError),
    ("id-selection", {"score": None}, ValueError),
    ("holov", {"alpha": -0.1}, ValueError),
    ("holov", {"num_patches": 0}, ValueError),
    ("holov", {"score": "text_attention"}, ValueError),
    ("apet", {"num_basis": 0}, ValueError),
    ("apet", {"merge": 1}, TypeError),
    ("sparsevlm", {"recycle": 1}, TypeError),
    ("sparsevlm", {"schedule": [(0, 4)]}, ValueError),
    ("pyramiddrop", {"schedule": [(2, 4), (2, 3)]}, ValueError),
]


@pytest.mark.parametrize(("method", "options", "error"), OUT_OF_RANGE)
def test_an_option_out_of_range_is_named(
    method: str, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(options))):
        make_selector(method, **options)


def test_the_range_of_relevance_may_be_nothing() -> None:
    images = Images(2)
    images.inputs["text_tokens"] = images.inputs["text_tokens"][:, :1].expand(
        -1, images.tokens.shape[1], -1
    )
    same = images.select("cdpruner")
    images.inputs["text"] = None
    assert torch.equal(same.ids, images.select("cdpruner").ids)
