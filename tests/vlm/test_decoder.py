"""VLM-Pruner before a decoder layer of LLaVA-1.5."""

from __future__ import annotations

import copy
from typing import Any

import pytest

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("tokenizers")

import torch
import transformers
from torch import Tensor

from ocvtp_kernels.selectors.vlm_pruner import VLMPruner
from ocvtp_kernels.vlm.attach import attach
from tests.vlm.decoder_by_hand import (
    BUDGET,
    LAYERS,
    RUNS,
    Expected,
    Row,
    answer_by_hand,
    copies_for,
    loss_by_hand,
    make_deep_llava,
    prune_by_hand,
    split_row,
    use_attention,
)
from tests.vlm.models import (
    CACHE_NAME,
    IMAGE_ID,
    NEW,
    NUM_PATCHES,
    PHOTOS,
    TEXT_WIDTH,
    generate,
    make_llava_processor,
    prepare,
)

GRID, CLOSE = (4, 4), {"rtol": 1e-4, "atol": 1e-4}
BANNED = [2, IMAGE_ID]  # answers have the full length, and no placeholders
ATTENTION = pytest.mark.parametrize("attention", ["sdpa", "eager", "flat"])
CACHE = pytest.mark.parametrize("cache", ["dynamic", "static"])
PROCESSOR = make_llava_processor()


def read_rows(model: Any, inputs: Any) -> list[Row]:
    """The rows of a batch by themselves, without padding."""
    with torch.no_grad():
        output = model.model.get_image_features(pixel_values=inputs["pixel_values"])
    features = list(output.pooler_output)
    rows = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        tokens = ids[mask.bool()].tolist()
        count = tokens.count(IMAGE_ID) // NUM_PATCHES
        grids = [(GRID, True)] * count
        rows.append(split_row(model, tokens, IMAGE_ID, features[:count], grids))
        del features[:count]
    return rows


def answers_by_hand(model: Any, inputs: Any, selector: Any) -> list[Expected]:
    rows = read_rows(model, inputs)
    return [answer_by_hand(model, row, selector, BUDGET, BANNED) for row in rows]


def check_answer(output: Any, expected: list[Expected]) -> None:
    assert output.sequences[:, -NEW:].tolist() == [row.tokens for row in expected]
    scores = torch.stack(output.scores, 1)
    torch.testing.assert_close(scores, torch.stack([row.logits for row in expected]), **CLOSE)


@pytest.mark.parametrize(("attention", "cache"), RUNS)
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_answers_as_row_by_row_without_a_cache(attention: str, cache: str, layer: int) -> None:
    model, inputs = make_deep_llava(), prepare(PROCESSOR)
    selector = VLMPruner(layer=layer)
    expected = answers_by_hand(model, inputs, selector)
    use_attention(model, attention)
    with attach(model, PROCESSOR, selector, BUDGET) as handle:
        assert torch.equal(prepare(PROCESSOR)["input_ids"], inputs["input_ids"])
        output = generate(
            model,
            inputs,
            cache_implementation=cache,
            return_dict_in_generate=True,
            output_scores=True,
        )
        assert torch.equal(
            handle.last.ids, torch.stack([ids for row in expected for ids in row.ids])
        )
    check_answer(output, expected)
    whole = inputs["input_ids"].shape[1] + NEW - 1
    width = max(len(row.kept) for row in expected) + NEW - 1
    if cache == "dynamic":
        lengths = [part.keys.shape[2] for part in output.past_key_values.layers]
        assert lengths == [whole] * layer + [width] * (LAYERS - layer)
    else:
        lengths = [int(part.cumulative_length) for part in output.past_key_values.layers]
        assert lengths == [whole] * layer + [width] * (LAYERS - layer)


@ATTENTION
@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_forward_without_a_cache(attention: str, masked: bool) -> None:
    model = make_deep_llava()
    # Without a mask: rows of one length, one of which keeps fewer columns.
    words = "a cat " * (NUM_PATCHES // 2)
    prompts = None if masked else ["<image> red ?", f"{words}red ?"]
    inputs = prepare(PROCESSOR, prompts, None if masked else PHOTOS[:1])
    rows, selector = read_rows(model, inputs), VLMPruner()
    assert bool(inputs["attention_mask"].all()) is not masked
    if not masked:
        del inputs["attention_mask"]
    by_hand = [prune_by_hand(model, row, selector, BUDGET, 2) for row in rows]
    use_attention(model, attention)
    with attach(model, PROCESSOR, selector, BUDGET):
        output = model(**inputs, use_cache=False, output_hidden_states=True)
        plain = model(**inputs, use_cache=False)
        last = model(**inputs, logits_to_keep=1)
    torch.testing.assert_close(output.logits, plain.logits, **CLOSE)
    torch.testing.assert_close(plain.logits[:, -1:], last.logits, **CLOSE)
    shape = (*inputs["input_ids"].shape, TEXT_WIDTH)
    assert [tuple(state.shape) for state in output.hidden_states] == [shape] * (LAYERS + 1)
    for found, row, (hidden, _, kept) in zip(output.logits, rows, by_hand, strict=True):
        found = found[len(found) - len(row.vectors) :]
        torch.testing.assert_close(found[kept], model.lm_head(hidden), **CLOSE)
        for column in set(range(kept[0], len(found))) - set(kept):
            before = max(other for other in kept if other < column)
            assert torch.equal(found[column], found[before])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_keeping_all_changes_no_bit(attention: str) -> None:
    model, inputs = make_deep_llava(), prepare(PROCESSOR)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE_ID, -100)

    def run() -> list[Tensor]:
        whole = model(**inputs, labels=labels)
        parts = model(**inputs, labels=labels, return_dict=False)
        static = generate(model, inputs, cache_implementation="static")
        return [whole.loss, whole.logits, *parts[:2], generate(model, inputs), static]

    use_attention(model, attention)
    expected = run()
    with attach(model, PROCESSOR, VLMPruner(), NUM_PATCHES) as handle:
        for ours, theirs in zip(run(), expected, strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(handle.last.ids, torch.arange(NUM_PATCHES).expand(3, -1))


@CACHE
@pytest.mark.parametrize(
    "search",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3},
    ],
)
def test_beams_and_samples_answer_as_without_a_cache(cache: str, search: dict[str, Any]) -> None:
    model, copies = make_deep_llava(), copies_for(search)
    # Where generate repeats images by itself, it mixes up those of a row that has two.
    prompts = None if copies == 1 else ["<image> red ?", "a cat", "<image> two dogs ?"]
    photos = PHOTOS if copies == 1 else PHOTOS[:2]
    inputs = prepare(PROCESSOR, prompts, photos)
    with attach(model, PROCESSOR, VLMPruner(), BUDGET) as handle:
        answers = []
        for settings in ({"use_cache": False}, {"cache_implementation": cache}):
            torch.manual_seed(0)
            answers.append(generate(model, inputs, **search, **settings))
            assert handle.last.ids.shape == (len(photos) * copies, BUDGET)
    assert torch.equal(*answers)


def test_guessed_tokens_answer_as_one_by_one() -> None:
    model, inputs = make_deep_llava(), prepare(PROCESSOR, ["<image> a cat a cat a"], PHOTOS[:1])
    with attach(model, PROCESSOR, VLMPruner(), BUDGET):
        expected = generate(model, inputs)
        assert torch.equal(generate(model, inputs, prompt_lookup_num_tokens=3), expected)


@ATTENTION
def test_a_conversation_goes_on(attention: str) -> None:
    model, inputs, selector = make_deep_llava(), prepare(PROCESSOR), VLMPruner()
    rows = read_rows(model, inputs)
    embed = model.get_input_embeddings().weight.detach()
    use_attention(model, attention)
    with attach(model, PROCESSOR, selector, BUDGET):
        first = generate(model, inputs, return_dict_in_generate=True)
        question = torch.tensor([[7, 9, 11], [12, 7, 8], [10, 10, 9]])
        talk = torch.cat([first.sequences, question], 1)
        added = talk.shape[1] - inputs["input_ids"].shape[1]
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, added), value=1)
        cache = copy.deepcopy(first.past_key_values)
        more = {"input_ids": talk, "attention_mask": mask, CACHE_NAME: cache}
        second = generate(model, more, return_dict_in_generate=True, output_scores=True)
        with pytest.raises(NotImplementedError, match="past_key_values: images are pruned"):
            model(**inputs, **{CACHE_NAME: first.past_key_values})
        with pytest.raises(ValueError, match="filled by a prompt of 3 rows, got 2 rows"):
            model(input_ids=talk[:2, -1:], **{CACHE_NAME: first.past_key_values})
        first.past_key_values.crop(-added)
        with pytest.raises(ValueError, match="past_key_values: expected the 32 columns"):
            model(input_ids=talk[:, -1:], **{CACHE_NAME: first.past_key_values})
    use_attention(model, "sdpa")
    grown = []
    for row, tokens in zip(rows, talk[:, -added:], strict=True):
        following = row.positions.shape[1] + torch.arange(added).expand(3, -1)
        positions = torch.cat([row.positions, following], 1)
        grown.append(Row(torch.cat([row.vectors, embed[tokens]]), positions, row.images))
    check_answer(second, [answer_by_hand(model, row, selector, BUDGET, BANNED) for row in grown])


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_cache_that_is_reset_is_a_new_one(kind: str) -> None:
    model, one = make_deep_llava(), prepare(PROCESSOR, ["<image> red ?"], PHOTOS[:1])
    text = PROCESSOR(text=["red blue ?"], return_tensors="pt")
    expected = generate(model, text)
    with attach(model, PROCESSOR, VLMPruner(), BUDGET):
        pruned = generate(model, one)
        config = model.config.text_config
        cache: Any = transformers.DynamicCache(config=config)
        if kind == "static":
            cache = transformers.StaticCache(config=config, max_cache_len=64)
        assert torch.equal(generate(model, one, **{CACHE_NAME: cache}), pruned)
        cache.reset()
        if cache.get_seq_length():
            pytest.skip("a dynamic cache keeps its length when this transformers resets it")
        assert torch.equal(generate(model, text, **{CACHE_NAME: cache}), expected)
        cache.reset()
        assert torch.equal(generate(model, one, **{CACHE_NAME: cache}), pruned)


@pytest.mark.parametrize("every", [True, False])
def test_loss_is_of_the_kept_tokens(every: bool) -> None:
    model, inputs, selector = make_deep_llava(), prepare(PROCESSOR), VLMPruner()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    if not every:
        labels = labels.masked_fill(labels == IMAGE_ID, -100)
    losses = []
    for row, expected in zip(read_rows(model, inputs), labels, strict=True):
        given = expected[len(expected) - len(row.vectors) :].tolist()
        losses.append(loss_by_hand(model, row, given, selector, BUDGET))
    with attach(model, PROCESSOR, selector, BUDGET):
        output = model(**inputs, labels=labels)
        parts = model(**inputs, labels=labels, return_dict=False)
        output.loss.backward()
    torch.testing.assert_close(output.loss, torch.cat(losses).mean())
    assert torch.equal(parts[0], output.loss) and torch.equal(parts[1], output.logits)
    assert model.lm_head.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_padding_on_the_right() -> None:
    model, inputs = make_deep_llava(), prepare(PROCESSOR)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    lengths = mask.sum(1)
    turns = (lengths - mask.shape[1]).tolist()
    rolled = [
        torch.stack([row.roll(turn) for row, turn in zip(part, turns, strict=True)])
        for part in (ids, mask)
    ]
    token, one = torch.tensor([[7], [8], [9]]), torch.ones(3, 1, dtype=torch.long)
    with attach(model, PROCESSOR, VLMPruner(), BUDGET):
        left = model(**inputs)
        right = model(
            input_ids=rolled[0], attention_mask=rolled[1], pixel_values=inputs["pixel_values"]
        )
        answers = [
            model(
                input_ids=token,
                attention_mask=torch.cat([padded, one], 1),
                position_ids=position[:, None],
                **{CACHE_NAME: output.past_key_values},
            ).logits
            for output, padded, position in (
                (left, mask, torch.full_like(lengths, mask.shape[1])),
                (right, rolled[1], lengths),
            )
        ]
    for ours, theirs, length in zip(right.logits, left.logits, lengths.tolist(), strict=True):
        torch.testing.assert_close(ours[:length], theirs[-length:], **CLOSE)
    torch.testing.assert_close(*answers, **CLOSE)
