"""VLM-Pruner before a decoder layer of Qwen2.5-VL."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("tokenizers")

from ocvtp_kernels.selectors.vlm_pruner import VLMPruner
from ocvtp_kernels.vlm.attach import attach
from tests.vlm.decoder_by_hand import (
    BUDGET,
    LAYERS,
    NEW,
    RUNS,
    Row,
    answer_by_hand,
    copies_for,
    loss_by_hand,
    make_deep_qwen,
    prune_by_hand,
    split_row,
    use_attention,
)
from tests.vlm.models import CACHE_NAME
from tests.vlm.models_qwen import IMAGE, PHOTO, make_batch, make_photo, make_processor

# Of 12, 4 and 20 tokens: the second has fewer than the budget and stays whole.
PHOTOS = [make_photo(4, 3, 0), make_photo(2, 2, 1), make_photo(5, 4, 2)]
ROWS = [
    (f"what {PHOTO} is this ?", PHOTOS[:1]),
    (f"{PHOTO} and {PHOTO} . red", PHOTOS[1:]),
    ("a cat ?", []),
]
BANNED = [IMAGE, IMAGE + 1]
ATTENTION = pytest.mark.parametrize("attention", ["sdpa", "eager", "flat"])
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def read_rows(model: Any, inputs: dict[str, Tensor]) -> list[Row]:
    """The rows of a batch by themselves, without padding."""
    with torch.no_grad():
        output = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    features = list(output.pooler_output)
    rows = []
    masks = inputs["attention_mask"].bool()
    for (_, photos), ids, mask in zip(ROWS, inputs["input_ids"], masks, strict=True):
        grids = [((photo.height // 28, photo.width // 28), False) for photo in photos]
        tokens = ids[mask].tolist()
        rows.append(split_row(model, tokens, IMAGE, features[: len(photos)], grids))
        del features[: len(photos)]
    return rows


def generate(model: Any, inputs: dict[str, Tensor], **kwargs: Any) -> Any:
    settings = {"max_new_tokens": NEW, "do_sample": False, "suppress_tokens": BANNED}
    return model.generate(**inputs, **settings | kwargs)


@pytest.mark.parametrize(("attention", "cache"), RUNS)
@pytest.mark.parametrize("layer", [1, 2])
def test_answers_as_row_by_row_without_a_cache(attention: str, cache: str, layer: int) -> None:
    model, inputs, selector = make_deep_qwen(), make_batch(ROWS), VLMPruner(layer=layer)
    rows = read_rows(model, inputs)
    expected = [answer_by_hand(model, row, selector, BUDGET, BANNED) for row in rows]
    use_attention(model, attention)
    with attach(model, make_processor(), selector, BUDGET) as handle:
        output = generate(
            model,
            inputs,
            cache_implementation=cache,
            return_dict_in_generate=True,
            output_scores=True,
        )
        ids = [image for row in expected for image in row.ids]
        assert [image.tolist() for image in handle.last.ids] == [image.tolist() for image in ids]
    assert output.sequences[:, -NEW:].tolist() == [row.tokens for row in expected]
    scores = torch.stack(output.scores, 1)
    torch.testing.assert_close(scores, torch.stack([row.logits for row in expected]), **CLOSE)
    whole = inputs["input_ids"].shape[1] + NEW - 1
    width = max(len(row.kept) for row in expected) + NEW - 1
    lengths = [int(part.get_seq_length()) for part in output.past_key_values.layers]
    assert lengths == [whole] * layer + [width] * (LAYERS - layer)


@ATTENTION
def test_forward_and_loss(attention: str) -> None:
    model, inputs, selector = make_deep_qwen(), make_batch(ROWS), VLMPruner()
    rows = read_rows(model, inputs)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    use_attention(model, attention)
    with attach(model, make_processor(), selector, BUDGET) as handle:
        output = model(**inputs, labels=labels, use_cache=False)
        assert [len(ids) for ids in handle.last.ids] == [BUDGET, 4, BUDGET]
    use_attention(model, "sdpa")
    losses = []
    for row, found, expected in zip(rows, output.logits, labels, strict=True):
        hidden, _, kept = prune_by_hand(model, row, selector, BUDGET, 2)
        start = len(found) - len(row.vectors)
        torch.testing.assert_close(found[start:][kept], model.lm_head(hidden), **CLOSE)
        losses.append(loss_by_hand(model, row, expected[start:].tolist(), selector, BUDGET))
    torch.testing.assert_close(output.loss, torch.cat(losses).mean())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_keeping_all_changes_no_bit(attention: str) -> None:
    model, inputs = make_deep_qwen(), make_batch(ROWS)
    labels = inputs["input_ids"]

    def run() -> list[Tensor]:
        output = model(**inputs, labels=labels)
        static = generate(model, inputs, cache_implementation="static")
        return [output.loss, output.logits, generate(model, inputs), static]

    use_attention(model, attention)
    expected = run()
    with attach(model, make_processor(), VLMPruner(), 20) as handle:
        for ours, theirs in zip(run(), expected, strict=True):
            assert torch.equal(ours, theirs)
        assert [ids.tolist() for ids in handle.last.ids] == [[*range(n)] for n in (12, 4, 20)]


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize(
    "search", [{"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "num_beams": 2}]
)
def test_beams_answer_as_without_a_cache(cache: str, search: dict[str, Any]) -> None:
    model, inputs = make_deep_qwen(), make_batch(ROWS)
    with attach(model, make_processor(), VLMPruner(), BUDGET) as handle:
        answers = []
        for settings in ({"use_cache": False}, {"cache_implementation": cache}):
            torch.manual_seed(0)
            answers.append(generate(model, inputs, **search, **settings))
            sizes = [BUDGET, 4, BUDGET] * copies_for(search)
            assert sorted(len(ids) for ids in handle.last.ids) == sorted(sizes)
    assert torch.equal(*answers)


def test_a_conversation_goes_on() -> None:
    model, inputs, selector = make_deep_qwen(), make_batch(ROWS), VLMPruner()
    rows = read_rows(model, inputs)
    embed = model.get_input_embeddings().weight.detach()
    with attach(model, make_processor(), selector, BUDGET):
        first = generate(model, inputs, return_dict_in_generate=True)
        question = torch.tensor([[7, 9, 11], [12, 7, 8], [10, 10, 9]])
        talk = torch.cat([first.sequences, question], 1)
        added = talk.shape[1] - inputs["input_ids"].shape[1]
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, added), value=1)
        cache = first.past_key_values
        more = {"input_ids": talk, "attention_mask": mask, CACHE_NAME: cache}
        with pytest.raises(NotImplementedError, match="past_key_values: images are pruned"):
            model(**inputs, **{CACHE_NAME: cache})
        second = generate(model, more)
    for row, tokens, answer in zip(rows, talk[:, -added:], second[:, -NEW:], strict=True):
        following = row.positions.max() + 1 + torch.arange(added).expand(3, -1)
        positions = torch.cat([row.positions, following], 1)
        grown = Row(torch.cat([row.vectors, embed[tokens]]), positions, row.images)
        assert answer_by_hand(model, grown, selector, BUDGET, BANNED).tokens == answer.tolist()
