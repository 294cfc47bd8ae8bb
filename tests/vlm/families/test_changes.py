"""What others change about a model counts, before and after a selector is attached."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("tokenizers")

from ocvtp_kernels import attach
from ocvtp_kernels.selectors.interface import SelectorInputs
from tests.vlm.families import (
    BUDGET,
    ByNorm,
    Entry,
    answers,
    generate,
    process,
)
from tests.vlm.families._suite import (
    CLOSE,
    DETAILS,
    SELECTORS,
    TEXTS,
    check_answers,
    describe,
    ids_of,
    layers_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


class Rolled(nn.Linear):
    """A layer that computes more than its weights say."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) + tokens.sum(-1, keepdim=True) * 0.1


def change_with_hooks(entry: Entry, model: Any) -> None:
    for layer in layers_of(entry, model):
        layer.register_forward_hook(lambda _part, _args, output: output * 1.1)
        layer.mlp.register_forward_hook(lambda _part, _args, output: output.roll(1, -1))


def change_forwards(entry: Entry, model: Any) -> None:
    """Set on the modules themselves, as offloading does."""
    parts = [*layers_of(entry, model), model.get_submodule(entry.projector)]
    for part in parts:
        stock = part.forward

        @functools.wraps(stock)
        def changed(*args: Any, stock: Any = stock, **kwargs: Any) -> Any:
            return stock(*args, **kwargs) * 1.1

        part.forward = changed


def change_attention_modules(entry: Entry, model: Any) -> None:
    def scale(_part: Any, _args: Any, output: Any) -> Any:
        is_tuple = isinstance(output, tuple)
        return (output[0] * 1.5, *output[1:]) if is_tuple else output * 1.5

    for layer in layers_of(entry, model):
        [attention] = [
            part
            for name, part in layer.named_children()
            if name in ("self_attn", "attn", "attention")
        ]
        attention.register_forward_hook(scale)


def change_layers(entry: Entry, model: Any) -> None:
    for part in model.get_submodule(entry.tower).modules():
        if type(part) is nn.Linear:
            part.__class__ = Rolled


def change_projector(entry: Entry, model: Any) -> None:
    projector = model.get_submodule(entry.projector)
    projector.register_forward_pre_hook(lambda _part, args: (args[0] * 2,))
    projector.register_forward_hook(lambda _part, _args, output: output.roll(1, -1))


def change_attention(entry: Entry, model: Any) -> None:
    model.set_attn_implementation({"vision_config": "eager"})


CHANGES = [
    *(change_with_hooks, change_forwards, change_layers, change_projector),
    *(change_attention, change_attention_modules),
]


@pytest.mark.parametrize(
    ("change", "selector"),
    [*((change, "reference tokens") for change in CHANGES), (change_with_hooks, "final tokens")],
)
def test_what_others_changed_counts(
    entry: Entry, made: Any, change: Callable[..., None], selector: str
) -> None:
    model, processor = entry.make_model(), entry.make_processor()
    rows = entry.rows(TEXTS[1:3])
    batch = process(processor, rows)
    # Before the model has run, so that transformers sees what others made of a layer's output.
    change(entry, model)
    before = describe(model, processor)
    with attach(model, processor, SELECTORS[selector](), BUDGET) as handle:
        output = generate(entry, model, process(processor, rows), **DETAILS)
        assert ids_of(handle) == check_answers(entry, model, output, rows)
    assert describe(model, processor) == before
    whole = generate(entry, model, batch, **DETAILS).logits[0]
    stock = generate(entry, made[0], batch, **DETAILS).logits[0]
    same = torch.allclose(whole, stock, rtol=1e-4, atol=1e-4)
    assert same == (change is change_attention)


def test_what_others_change_later_counts_and_stays(entry: Entry) -> None:
    model, processor = entry.make_model(), entry.make_processor()
    rows = entry.rows(TEXTS)
    handle = attach(model, processor, ByNorm(), BUDGET)
    answers(entry, model, processor, rows)
    change_with_hooks(entry, model)
    change_forwards(entry, model)
    output = generate(entry, model, process(processor, rows), **DETAILS)
    assert ids_of(handle) == check_answers(entry, model, output, rows)
    handle.remove()
    whole = answers(entry, model, processor, rows)
    again = entry.make_model()
    change_with_hooks(entry, again)
    change_forwards(entry, again)
    assert torch.equal(answers(entry, again, processor, rows), whole)


@torch.no_grad()
def test_a_selector_that_asks_another_model(entry: Entry, made: Any) -> None:
    other, theirs = entry.make_model(), entry.make_processor()
    model, processor = made
    rows, asked = entry.rows(TEXTS), entry.rows(TEXTS[1:3], first=5)

    class Asks(ByNorm):
        def __call__(self, inputs: SelectorInputs, budget: int) -> Tensor:
            found.append(answers(entry, other, theirs, asked))
            return super().__call__(inputs, budget)

    found: list[Tensor] = []
    with attach(other, theirs, ByNorm(), BUDGET + 1):
        expected = answers(entry, other, theirs, asked)
        with attach(model, processor, Asks(), BUDGET):
            output = generate(entry, model, process(processor, rows), **DETAILS)
            check_answers(entry, model, output, rows)
            # Here forward encodes the photos by itself.
            [alone] = entry.rows(TEXTS[:1])
            logits = model(**process(processor, [alone])).logits[0, -1]
            by_hand = entry.logits(model, entry.see(model, alone, BUDGET).line)[-1]
            torch.testing.assert_close(logits, by_hand, **CLOSE)
    assert found and all(torch.equal(tokens, expected) for tokens in found)


ATEN = torch.ops.aten


class LinearOnly(Tensor):
    """A weight that knows how to be multiplied, as those of quantised layers, and nothing else."""

    held: Any

    @staticmethod
    def __new__(cls, inner: Tensor) -> LinearOnly:
        made: LinearOnly = Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=inner.device
        )
        made.held = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"LinearOnly({tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, op: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        plain = [part.held if isinstance(part, cls) else part for part in args]
        if op in (ATEN.t.default, ATEN.detach.default, ATEN.alias.default):
            return cls(op(*plain))
        if op in (ATEN.linear.default, ATEN.mm.default, ATEN.addmm.default):
            return op(*plain, **(kwargs or {}))
        raise NotImplementedError(f"LinearOnly has no {op}")


@pytest.mark.parametrize(
    ("selector", "savings"),
    [("pruner", True), ("pruner", False), ("reference tokens", True), ("reference tokens", False)],
)
def test_weights_that_are_no_plain_tensors(entry: Entry, selector: str, savings: bool) -> None:
    model, processor = entry.make_model(), entry.make_processor()
    rows = entry.rows(TEXTS)
    with attach(model, processor, SELECTORS[selector](), BUDGET, savings=savings) as handle:
        expected = generate(entry, model, process(processor, rows), **DETAILS)
        ids = ids_of(handle)
        for part in model.get_submodule(entry.tower).modules():
            if isinstance(part, nn.Linear):
                weight = LinearOnly(part.weight.detach())
                part.weight = nn.Parameter(weight, requires_grad=False)
        found = generate(entry, model, process(processor, rows), **DETAILS)
        assert ids_of(handle) == ids
    assert torch.equal(found.sequences, expected.sequences)
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
