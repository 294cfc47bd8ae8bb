"""Answers, logits and gradients of pruned prompts, beside the same computed by hand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("tokenizers")

from ocvtp_kernels import attach
from tests.vlm.families import (
    BUDGET,
    NEW,
    ByNorm,
    Entry,
    answer,
    answers,
    entries,
    generate,
    process,
    words,
)
from tests.vlm.families._suite import (
    ALL,
    CLOSE,
    DETAILS,
    PACKED,
    SAVINGS,
    SELECTOR,
    SELECTORS,
    TEXTS,
    check_answers,
    ids_of,
    labels_of,
    layers_of,
    loss_by_hand,
    whole_line,
)
from tests.vlm.models import CACHE_NAME, make_pruner
from tests.vlm.models_gemma3 import FILLS_STATIC, TELLS_TURNS
from tests.vlm.models_qwen import (
    IMAGE,
    WORDS,
    join,
    make_model,
    needs_encoded_images,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@SELECTOR
def test_keeping_all_changes_no_bit(entry: Entry, made: Any, selector: str) -> None:
    model, processor = made
    rows = entry.rows(TEXTS)

    def run() -> list[Tensor]:
        batch = process(processor, rows)
        output = generate(entry, model, batch, **DETAILS)
        with torch.no_grad():
            return [batch["input_ids"], model(**batch).logits, output.sequences, *output.logits]

    expected = run()
    with attach(model, processor, SELECTORS[selector](), ALL) as handle:
        for ours, theirs in zip(run(), expected, strict=True):
            assert torch.equal(ours, theirs)
        for ids in ids_of(handle):
            assert ids == sorted(set(ids))
        counts = [len(ids) for ids in ids_of(handle)]
    assert counts == [size for row in rows for size in whole_line(entry, model, row)[1]]


@SAVINGS
@pytest.mark.parametrize("selector", ["reference tokens", "final tokens"])
def test_pruned_is_as_by_hand(entry: Entry, made: Any, selector: str, savings: bool) -> None:
    model, processor = made
    rows = entry.rows(TEXTS)
    with attach(model, processor, SELECTORS[selector](), BUDGET, savings=savings) as handle:
        batch = process(processor, rows)
        assert not batch["attention_mask"].all()
        output = generate(entry, model, batch, **DETAILS)
        ids = ids_of(handle)
    assert ids == check_answers(entry, model, output, rows)
    assert torch.equal(output.sequences[:, :-NEW], batch["input_ids"])


@pytest.mark.parametrize(
    ("layer", "selector"),
    [
        (0, "final tokens"),
        (0, "reference tokens"),
        (2, "reference tokens"),
        (3, "reference tokens"),
    ],
)
def test_decided_on_another_layer(entry: Entry, made: Any, selector: str, layer: int) -> None:
    model, processor = made
    rows = entry.rows(TEXTS[1:3])
    with attach(model, processor, SELECTORS[selector](), BUDGET, reference_layer=layer) as handle:
        output = generate(entry, model, process(processor, rows), **DETAILS)
        ids = ids_of(handle)
    assert ids == check_answers(entry, model, output, rows, layer)


@needs_encoded_images("qwen3_vl")
@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("levels", [[0], [3], [1, 2], [2, 3], [0, 1, 3]], ids=str)
@torch.no_grad()
def test_features_of_other_layers_go_along(levels: list[int], layer: int) -> None:
    entry = entries()["qwen3_vl"]
    vision, text = {"deepstack_visual_indexes": levels}, {"num_hidden_layers": 3}
    model = make_model(name=entry.name, vision=vision, text=text)
    processor = entry.make_processor()
    rows = entry.rows(TEXTS)
    with attach(model, processor, ByNorm(), BUDGET, reference_layer=layer):
        logits = model(**process(processor, rows)).logits
    for row, found in zip(rows, logits, strict=True):
        expected = entry.logits(model, entry.see(model, row, BUDGET, layer=layer).line)
        torch.testing.assert_close(found[-len(expected) :], expected, **CLOSE)


def test_forward_is_as_by_hand(entry: Entry, made: Any) -> None:
    model, processor = made
    rows = entry.rows(TEXTS)
    with attach(model, processor, ByNorm(), BUDGET), torch.no_grad():
        logits = model(**process(processor, rows)).logits
    with torch.no_grad():
        for row, found in zip(rows, logits, strict=True):
            expected = entry.logits(model, entry.see(model, row, BUDGET).line)
            torch.testing.assert_close(found[-len(expected) :], expected, **CLOSE)


def test_pruning_changes_the_logits(entry: Entry, made: Any) -> None:
    model, processor = made
    rows = entry.rows(TEXTS[:1])
    plain = generate(entry, model, process(processor, rows), **DETAILS).logits[0]
    with attach(model, processor, ByNorm(), BUDGET):
        pruned = generate(entry, model, process(processor, rows), **DETAILS).logits[0]
    assert (pruned - plain).abs().max() > 0.01


@SELECTOR
@torch.no_grad()
def test_savings_change_nothing(entry: Entry, made: Any, selector: str) -> None:
    model, processor = made
    rows, found = entry.rows(TEXTS), []
    for savings in (True, False):
        with attach(model, processor, SELECTORS[selector](), BUDGET, savings=savings) as handle:
            logits = model(**process(processor, rows)).logits
            found.append((ids_of(handle), logits))
    (ids, saved), (same, whole) = found
    assert ids == same
    torch.testing.assert_close(saved, whole, **CLOSE)


@pytest.mark.parametrize(
    ("selector", "settings"),
    [
        ("pruner", {}),
        ("pruner", {"num_beams": 3, "num_return_sequences": 2}),
        ("reference tokens", {"num_beams": 3}),
        ("reference tokens", {"cache_implementation": "static"}),
        ("final tokens", {"use_cache": False}),
    ],
    ids=str,
)
def test_rows_of_a_batch_are_answered_as_alone(
    entry: Entry, made: Any, selector: str, settings: dict[str, Any]
) -> None:
    if entry.windows and "cache_implementation" in settings and not FILLS_STATIC:
        pytest.skip("before transformers 5.20 masks of images do not fit static caches")
    model, processor = made
    rows, copies = entry.rows(TEXTS), settings.get("num_return_sequences", 1)
    with attach(model, processor, SELECTORS[selector](), BUDGET) as handle:
        together = answers(entry, model, processor, rows, **settings)
        assert len(together) == copies * len(rows)
        ids, alone = ids_of(handle), []
        for index, row in enumerate(rows):
            mine = together[copies * index : copies * (index + 1)]
            assert torch.equal(answers(entry, model, processor, [row], **settings), mine)
            alone += ids_of(handle) if row[1] else []
        assert ids == alone


def test_samples_follow_their_prompts(entry: Entry, made: Any) -> None:
    model, processor = made
    with attach(model, processor, ByNorm(), BUDGET):
        batch = process(processor, entry.rows(TEXTS))
        drawn = generate(entry, model, batch, do_sample=True, num_return_sequences=3)
    assert torch.equal(drawn[:, :-NEW], batch["input_ids"].repeat_interleave(3, 0))


def test_text_alone_is_as_the_model_alone(entry: Entry, made: Any) -> None:
    model, processor = made
    rows = entry.rows(["what is red ?", "a cat ?"])
    expected = answers(entry, model, processor, rows)
    with attach(model, processor, ByNorm(), BUDGET) as handle:
        assert torch.equal(answers(entry, model, processor, rows), expected)
        assert handle.last is None


# Of two rows, the texts of two turns.
TURNS = {
    "photos, photos": (["{} what is this ?", "a {} and {} ?"], ["{} and {} blue ?", "{} red ."]),
    "photos, text": (["{} what is this ?", "a {} and {} ?"], ["red ?", "what cat ?"]),
    "text, photos": (["what is red ?", "a cat"], ["{} blue ?", "{} and {} ?"]),
    "some": (["{} what ?", "a cat ?"], ["red ?", "{} and {} ?"]),
}


@pytest.mark.parametrize(
    ("turns", "give"),
    [*((turns, "new") for turns in TURNS), ("photos, photos", "all"), ("some", "all")],
)
def test_a_conversation_goes_on(entry: Entry, made: Any, turns: str, give: str) -> None:
    if give == "all" and not entry.whole_prompt:
        pytest.skip("a cache takes the photos that it has not seen")
    texts, more = TURNS[turns]
    if entry.windows and "{}" in "".join(more) and not TELLS_TURNS:
        pytest.skip("before transformers 5.23 images of a later turn attend as text does")
    if not (entry.linear or entry.windows):
        check_conversation(entry, made, texts, more, give)
        return
    # Without a selector too, padding behind a cache changes what such a model answers.
    for text, next_text in zip(texts, more, strict=True):
        check_conversation(entry, made, [text], [next_text], give)


def check_conversation(
    entry: Entry, made: Any, texts: Sequence[str], more: Sequence[str], give: str
) -> None:
    model, processor = made
    rows = entry.rows(texts)
    next_rows = entry.rows(more, first=2)
    with attach(model, processor, ByNorm(), BUDGET):
        first, second = process(processor, rows), process(processor, next_rows)
        one = generate(entry, model, first, return_dict_in_generate=True)
        # Another conversation in between does not matter.
        generate(entry, model, process(processor, entry.rows(TEXTS)))
        ids = torch.cat([one.sequences, second["input_ids"]], 1)
        answered = torch.ones(len(rows), NEW, dtype=torch.long)
        mask = torch.cat([first["attention_mask"], answered, second["attention_mask"]], 1)
        batch = {"input_ids": ids, "attention_mask": mask}
        whole = second
        if give == "all":
            both = zip(rows, next_rows, strict=True)
            all_photos = [row[1] + next_row[1] for row, next_row in both]
            texts = [entry.image * len(photos) for photos in all_photos]
            whole = process(processor, list(zip(texts, all_photos, strict=True)))
            batch["mm_token_type_ids"] = (ids == IMAGE).int()
        taken = ("pixel_values", "image_grid_thw", "image_sizes")
        batch |= {name: whole[name] for name in taken if name in whole}
        if "token_type_ids" in first and "pixel_values" in whole:
            kinds = [first["token_type_ids"], torch.zeros_like(answered), second["token_type_ids"]]
            batch["token_type_ids"] = torch.cat(kinds, 1)
        cached = {CACHE_NAME: copy.deepcopy(one.past_key_values)}
        two = generate(entry, model, batch, **cached)
    assert torch.equal(two[:, :-NEW], ids)
    for index, (row, next_row) in enumerate(zip(rows, next_rows, strict=True)):
        with torch.no_grad():
            line = entry.see(model, row, BUDGET).line
            said, _ = answer(entry, model, line)
            assert one.sequences[index, -NEW:].tolist() == said
            line = join(line, words(model, said, line.following))
            line = join(line, entry.see(model, next_row, BUDGET, line.following).line)
        assert two[index, -NEW:].tolist() == answer(entry, model, line)[0]


@pytest.mark.parametrize(
    ("more", "is_even"),
    [
        # The first photo has a token less than the second one keeps.
        (["{} red ?", "{} ?"], True),
        (["{} ?", "{} ?"], False),
        (["red ?", "cat ?"], True),
        (["red ?", "what cat ?"], False),
    ],
    ids=str,
)
@needs_encoded_images("qwen3_5")
def test_rows_go_on_together_where_no_state_takes_padding(more: list[str], is_even: bool) -> None:
    entry = entries()["qwen3_5"]
    made, texts = (entry.make_model(), entry.make_processor()), ["{} what is this ?", "a {} ?"]
    if is_even:
        check_conversation(entry, made, texts, more, "new")
        return
    with pytest.raises(NotImplementedError, match=r"^past_key_values: .* as many columns each"):
        check_conversation(entry, made, texts, more, "new")


def test_other_ways_to_call(entry: Entry, made: Any) -> None:
    model, processor = made
    rows = entry.rows(TEXTS)
    with attach(model, processor, ByNorm(), BUDGET):
        batch = process(processor, rows)
        length, expected = batch["input_ids"].shape[1], generate(entry, model, batch)
        others = {name: value for name, value in batch.items() if name != "input_ids"}
        limits = {"max_length": length + NEW, "max_new_tokens": None}
        banned = {"suppress_tokens": list(entry.banned), "do_sample": False}
        for found in (
            model.generate(batch["input_ids"], **others, **banned, max_new_tokens=NEW),
            model.generate(inputs=batch["input_ids"], **others, **banned, max_new_tokens=NEW),
            generate(entry, model, batch, **limits),
        ):
            assert torch.equal(found, expected)
        del others["attention_mask"]
        with torch.no_grad():
            logits = model(**batch).logits
            as_given = model(batch["input_ids"], attention_mask=batch["attention_mask"], **others)
            assert torch.equal(as_given.logits, logits)
            last = model(**batch, logits_to_keep=1).logits
            torch.testing.assert_close(last, logits[:, -1:], **CLOSE)
            plain = model(**batch, return_dict=False)
            assert torch.equal(plain[0], logits)
            states = model(**batch, output_hidden_states=True).hidden_states
            assert states[-1].shape[:2] == logits.shape[:2]


def test_budgets(entry: Entry, made: Any) -> None:
    model, processor = made
    rows = entry.rows(TEXTS)
    with attach(model, processor, ByNorm(), BUDGET):
        expected = answers(entry, model, processor, rows)
    with attach(model, processor, ByNorm(), np.int64(BUDGET)):
        assert torch.equal(answers(entry, model, processor, rows), expected)
    refused: tuple[Any, ...] = (True, 5.0, "5", None)
    for bad in refused:
        with pytest.raises(TypeError, match="budget: expected a whole number"):
            attach(model, processor, ByNorm(), bad)
    for small in (0, -1, np.int64(0)):
        with pytest.raises(ValueError, match="budget: expected at least 1"):
            attach(model, processor, ByNorm(), small)


def test_a_reference_layer_that_is_not_there(entry: Entry, made: Any) -> None:
    model, processor = made
    depth = len(layers_of(entry, model))
    for layer in (depth, -1):
        with pytest.raises(ValueError, match=f"reference_layer: expected 0 to {depth - 1}, got"):
            attach(model, processor, ByNorm(), BUDGET, reference_layer=layer)


def test_a_pruner_of_another_width_is_refused(entry: Entry, made: Any) -> None:
    model, processor = made
    with pytest.raises(ValueError, match="expected enc_in_dim 32"):
        attach(model, processor, make_pruner(width=40), BUDGET)


def test_a_place_mean_takes_images_of_one_size(entry: Entry, made: Any) -> None:
    model, processor = made
    # Of other tokens than the photos have.
    pruner = make_pruner(enc_place_mean=True, pos_resolut=(7,))
    if entry.name not in ("llava", "gemma3"):
        with pytest.raises(ValueError, match=r"^pruner: .*a place mean of 7 tokens"):
            attach(model, processor, pruner, BUDGET)
        return
    with (
        attach(model, processor, pruner, BUDGET),
        pytest.raises(ValueError, match=r"^reference_tokens: expected size 7 .*the place mean"),
    ):
        answers(entry, model, processor, entry.rows(TEXTS))


@SELECTOR
def test_stages_are_timed(entry: Entry, made: Any, selector: str) -> None:
    model, processor = made
    with attach(model, processor, SELECTORS[selector](), BUDGET, timed=True) as handle:
        assert handle.last is None
        for _ in range(2):
            answers(entry, model, processor, entry.rows(TEXTS))
        assert handle.last is not None
        times = handle.last.times
    assert {"encoder", "pruner"} <= set(times) <= {"encoder", "pruner", "projector"}
    assert all(0 < seconds < 60 for seconds in times.values())


@pytest.mark.parametrize("selector", ["pruner", "reference tokens"])
def test_inference_mode(entry: Entry, made: Any, selector: str) -> None:
    model, processor = made
    rows = entry.rows(TEXTS)
    with attach(model, processor, SELECTORS[selector](), BUDGET):
        expected = answers(entry, model, processor, rows)
        with torch.inference_mode():
            batch = process(processor, rows)
            assert torch.equal(generate(entry, model, batch)[:, -NEW:], expected)
            assert model(**batch).logits.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(entry: Entry, dtype: torch.dtype) -> None:
    model, processor = entry.make_model().to(dtype), entry.make_processor()
    for selector in ("pruner", "reference tokens"):
        with attach(model, processor, SELECTORS[selector](), BUDGET) as handle:
            batch = process(processor, entry.rows(TEXTS))
            batch["pixel_values"] = batch["pixel_values"].to(dtype)
            output = generate(entry, model, batch, max_new_tokens=2, **DETAILS)
            assert all(logits.isfinite().all() for logits in output.logits)
            assert all(len(ids) <= BUDGET for ids in ids_of(handle))


@pytest.mark.parametrize(
    ("selector", "mode"),
    [("reference tokens", "eval"), ("reference tokens", "train"), ("final tokens", "eval")],
)
def test_gradients_are_as_by_hand(entry: Entry, selector: str, mode: str) -> None:
    model, processor = entry.make_model(), entry.make_processor()
    rows = entry.rows(TEXTS)
    expected = loss_by_hand(entry, model, rows, BUDGET)
    expected.backward()
    gradients = {name: part.grad for name, part in model.named_parameters()}
    model.zero_grad()
    if mode == "train":
        model.train()
        # Newer versions have another name for it.
        name = "activation_checkpointing_enable"
        getattr(model, name, model.gradient_checkpointing_enable)()
    with attach(model, processor, SELECTORS[selector](), BUDGET):
        batch = process(processor, rows)
        output = model(**batch, labels=labels_of(entry, batch), use_cache=False)
        output.loss.backward()
    torch.testing.assert_close(output.loss, expected, **CLOSE)
    for name, part in model.named_parameters():
        if gradients[name] is None:
            assert part.grad is None or not part.grad.any(), name
        else:
            torch.testing.assert_close(part.grad, gradients[name], rtol=1e-3, atol=1e-4)
    assert (
        model.get_submodule(entry.projector)
        .get_parameter(
            next(name for name, _ in model.get_submodule(entry.projector).named_parameters())
        )
        .grad.any()
    )


def test_every_family_that_can_be_attached_to_is_here() -> None:
    from ocvtp_kernels.vlm.family import families

    assert {name for family in families() for name in family.model_types} == set(entries())


def test_words_of_the_texts_are_known() -> None:
    assert {word for text in (*TEXTS, *PACKED) for word in text.split()} <= {*WORDS, "{}"}
