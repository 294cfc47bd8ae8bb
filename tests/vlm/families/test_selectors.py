"""Every selector that a family has the inputs of, in the encoder and in the decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("tokenizers")

from ocvtp_kernels import attach, make_selector
from ocvtp_kernels.selectors.interface import SelectorInputs, needs_of, place_of
from ocvtp_kernels.selectors.registry import METHODS
from tests.vlm.families import (
    BUDGET,
    NEW,
    ByNorm,
    Entry,
    Line,
    answers,
    generate,
    largest,
    process,
    words,
)
from tests.vlm.families._suite import (
    ALL,
    CLOSE,
    DETAILS,
    TEXTS,
    count_placeholders,
    ids_of,
    whole_line,
)
from tests.vlm.models_qwen import (
    join,
)

pytestmark = pytest.mark.usefixtures("one_thread")


OPTIONS: dict[str, dict[str, Any]] = {
    "vlm-pruner": {"place": "encoder"},
    "tome": {"place": "encoder"},
}
# Those of the decoder keep other numbers on the way to the budget.
BEFORE_DECODER = [
    method
    for method in METHODS
    if place_of(make_selector(method, **OPTIONS.get(method, {}))) != "decoder"
]


@pytest.mark.parametrize("method", BEFORE_DECODER)
def test_every_selector_keeps_the_budget_or_is_refused(
    entry: Entry, made: Any, method: str
) -> None:
    model, processor = made
    rows = entry.rows(TEXTS)
    selector = make_selector(method, **OPTIONS.get(method, {}))
    missing = sorted(needs_of(selector) - entry.fields)
    if missing:
        with pytest.raises(ValueError, match=f"{missing[0]}: needed by"):
            attach(model, processor, selector, BUDGET)
        return
    sizes = [size for row in rows for size in whole_line(entry, model, row)[1]]
    with attach(model, processor, selector, BUDGET) as handle:
        assert answers(entry, model, processor, rows).shape == (len(rows), NEW)
        kept = ids_of(handle)
    assert [len(ids) for ids in kept] == [min(size, BUDGET) for size in sizes]
    assert all(ids == sorted(set(ids)) for ids in kept)


def test_a_selector_is_given_what_it_asks_for(entry: Entry, made: Any) -> None:
    model, processor = made
    given: list[SelectorInputs] = []

    class Asking(ByNorm):
        def __call__(self, inputs: SelectorInputs, budget: int) -> Tensor:
            given.append(inputs)
            return super().__call__(inputs, budget)

    selector = Asking()
    selector.needs = entry.fields
    with attach(model, processor, selector, BUDGET):
        answers(entry, model, processor, entry.rows(TEXTS))
    assert given
    for inputs in given:
        images, tokens = inputs.reference_tokens.shape[:2]
        for name in entry.fields - {"grid", "cls_token"}:
            assert getattr(inputs, name).shape[:2] == (images, tokens)
        if inputs.grid is not None:
            assert inputs.grid[0] * inputs.grid[1] == tokens
    with attach(model, processor, ByNorm(), BUDGET), pytest.raises(ValueError, match="attached"):
        attach(model, processor, selector, BUDGET)
    selector.needs = entry.fields | {"text"}
    with pytest.raises(ValueError, match="text: needed by Asking"):
        attach(model, processor, selector, BUDGET)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in BEFORE_DECODER])
def test_methods_between_layers_are_refused_with_a_reason(
    entry: Entry, made: Any, method: str
) -> None:
    model, processor = made
    if not entry.no_decoder:
        pytest.skip("it takes them")
    reason = f"{entry.name}, as {entry.no_decoder}"
    with pytest.raises(ValueError, match=f"^pruner: .* stands in the decoder.* for {reason}"):
        attach(model, processor, make_selector(method), BUDGET)


class InDecoder(ByNorm):
    """Keeps the tokens of the largest norm before a layer of the decoder."""

    place = "decoder"
    needs = frozenset({"final_tokens"})

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def __call__(self, inputs: SelectorInputs, budget: int) -> Tensor:
        return largest(inputs.final_tokens, budget)


@torch.no_grad()
def decode_by_hand(
    entry: Entry, model: Any, line: Line, sizes: list[int], layer: int
) -> tuple[Tensor, list[list[int]]]:
    """Logits of the kept columns of a whole row, and the ids of its photos, layer by layer."""
    text = entry.text_of(model)
    tokens, positions, hidden = torch.tensor(line.tokens), line.positions, line.embeddings[None]
    deep, ids = list(line.deep), []
    for index, block in enumerate(text.layers):
        if index == layer:
            photos = (tokens == entry.image_id).nonzero()[:, 0].split([*sizes])
            columns = [int(column) for column in (tokens != entry.image_id).nonzero()]
            for photo in photos:
                ids.append(largest(hidden[0, photo], BUDGET).tolist())
                columns += photo[ids[-1]].tolist()
            columns.sort()
            visual = torch.isin(tokens, torch.tensor(entry.banned))
            is_kept = torch.isin(visual.nonzero()[:, 0], torch.tensor(columns))
            deep = [level[is_kept] for level in deep]
            tokens, positions, hidden = tokens[columns], positions[:, columns], hidden[:, columns]
        given = positions[:1] if entry.axes == 1 else positions[:, None]
        causal = torch.full((len(tokens),) * 2, -torch.inf).triu(1)[None, None]
        rotary = text.rotary_emb(hidden, given)
        hidden = block(hidden, attention_mask=causal, position_embeddings=rotary).clone()
        if index < len(deep):
            hidden[0, torch.isin(tokens, torch.tensor(entry.banned))] += deep[index]
    return model.lm_head(text.norm(hidden)[0]), ids


@pytest.mark.parametrize("layer", [1, 2])
def test_before_a_layer_of_the_decoder_is_as_by_hand(entry: Entry, made: Any, layer: int) -> None:
    model, processor = made
    rows = entry.rows(TEXTS)
    with attach(model, processor, InDecoder(layer), BUDGET) as handle:
        output = generate(entry, model, process(processor, rows), **DETAILS)
        kept = ids_of(handle)
    for row, tokens, logits in zip(
        rows, output.sequences[:, -NEW:].tolist(), torch.stack(output.logits, 1), strict=True
    ):
        line, sizes = whole_line(entry, model, row)[0], count_placeholders(entry, model, row)
        for token, found in zip(tokens, logits, strict=True):
            expected, ids = decode_by_hand(entry, model, line, sizes, layer)
            torch.testing.assert_close(found, expected[-1], **CLOSE)
            line = join(line, words(model, [token], line.following))
        assert ids == [kept.pop(0) for _ in ids]
    assert not kept


@pytest.mark.parametrize("budget", [BUDGET, ALL], ids=["pruned", "all"])
def test_vlm_pruner_in_the_decoder(entry: Entry, made: Any, budget: int) -> None:
    model, processor = made
    rows = entry.rows(TEXTS)
    if "grid" not in entry.fields:
        with pytest.raises(ValueError, match="grid: needed by VLMPruner"):
            attach(model, processor, make_selector("vlm-pruner"), budget)
        return
    batch = process(processor, rows)
    expected = generate(entry, model, batch)
    with torch.no_grad():
        logits = model(**batch).logits
    sizes = [size for row in rows for size in whole_line(entry, model, row)[1]]
    with attach(model, processor, make_selector("vlm-pruner"), budget) as handle:
        assert torch.equal(process(processor, rows)["input_ids"], batch["input_ids"])
        found = generate(entry, model, batch)
        kept = ids_of(handle)
        assert [len(ids) for ids in kept] == [min(size, budget) for size in sizes]
        assert all(ids == sorted(set(ids)) for ids in kept)
        static = generate(entry, model, batch, cache_implementation="static")
        assert torch.equal(static, found)
        with torch.no_grad():
            same = torch.equal(model(**batch).logits, logits)
        assert same == (budget == ALL)
        if budget == ALL:
            assert torch.equal(found, expected)
        for row, tokens in zip(rows, found[:, -NEW:], strict=True):
            assert torch.equal(answers(entry, model, processor, [row])[0], tokens)
