"""Where kept tokens of a LLaVA stand; that original positions are right in every kind of call is
tested by `families`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", exc_type=ImportError)

from ocvtp_kernels import attach, make_selector
from ocvtp_kernels.selectors.at_random import RandomSelector
from ocvtp_kernels.vlm.positions import Places, shift_positions
from tests.vlm.models import make_llava, make_llava_processor, make_photo
from tests.vlm.models_next import make_llava_next, make_next_processor

BUDGET, NUM_PATCHES = 5, 16
TEXTS = ["what is <image> this ?", "<image> a cat <image> :", "red blue dogs ?"]


def prepare(processor: Any, texts: list[str] = TEXTS) -> dict[str, Any]:
    counts = [text.count("<image>") for text in texts]
    photos = [make_photo(number, (80, 70)) for number in range(sum(counts))]
    images = [[photos.pop(0) for _ in range(count)] for count in counts if count]
    return dict(processor(text=texts, images=images or None, padding=True, return_tensors="pt"))


def test_the_shift_is_as_counted_token_by_token() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, places, expected, totals = [], [], [], []
    for images in (2, 0, 3, 1):
        row, shifts, dropped = [False], [0], 0
        for _ in range(images):
            whole = int(torch.randint(1, 9, (), generator=generator))
            count = int(torch.randint(1, whole + 1, (), generator=generator))
            kept = torch.randperm(whole, generator=generator)[:count].sort().values
            places.append(Places(kept, whole))
            row += [True] * count + [False]
            shifts += [dropped + int(place) - index for index, place in enumerate(kept)]
            dropped += whole - count
            shifts.append(dropped)
        rows.append(row)
        expected.append(shifts)
        totals.append(dropped)
    length = max(map(len, rows))
    # Padded on the left.
    is_image = torch.tensor([[False] * (length - len(row)) + row for row in rows])
    found = shift_positions(is_image, places)
    assert found.following.tolist() == totals
    for shifts, row in zip(expected, found.columns.tolist(), strict=True):
        assert row[length - len(shifts) :] == shifts
        assert not any(row[: length - len(shifts)])


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@torch.no_grad()
def test_the_model_rotates_by_original_positions(family: str) -> None:
    if family == "llava":
        model, processor = make_llava(), make_llava_processor()
    else:
        model, processor = make_llava_next(), make_next_processor()
    seen = []
    rotary = model.model.language_model.rotary_emb
    rotary.register_forward_hook(lambda *call: seen.append(call[2][0]))
    model.generate(**prepare(processor), max_new_tokens=2, min_new_tokens=2, do_sample=False)
    with attach(model, processor, RandomSelector(), BUDGET, positions="original"):
        pruned = prepare(processor)
        model.generate(**pruned, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    whole, of_answer, shorter, of_other = seen
    assert shorter.shape[1] < whole.shape[1]
    # The last word stands where it stands in the whole prompt, and the answer behind it.
    assert torch.equal(shorter[:, -1], whole[:, -1])
    assert torch.equal(of_other, of_answer)


def test_a_mask_that_hides_nothing_may_be_left_out() -> None:
    model, processor = make_llava(), make_llava_processor()
    with attach(model, processor, RandomSelector(), BUDGET, positions="original"), torch.no_grad():
        inputs = prepare(processor, TEXTS[:1])
        logits = model(**inputs, use_cache=False).logits
        mask = inputs.pop("attention_mask")
        assert mask.all()
        assert torch.equal(model(**inputs, use_cache=False).logits, logits)
        assert torch.equal(model(**inputs).logits, logits)


def test_embeddings_instead_of_ids() -> None:
    model, processor = make_llava(), make_llava_processor()
    with attach(model, processor, RandomSelector(), BUDGET, positions="original"), torch.no_grad():
        inputs = prepare(processor)
        logits = model(**inputs).logits
        inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
        torch.testing.assert_close(model(**inputs).logits, logits)


@torch.no_grad()
def test_kept_at_consecutive_positions_answers_differ() -> None:
    model, processor = make_llava(), make_llava_processor()
    logits = {}
    for positions in (None, "original", "consecutive"):
        with attach(model, processor, RandomSelector(), BUDGET, positions=positions):
            logits[positions] = model(**prepare(processor)).logits
    assert torch.equal(logits[None], logits["original"])
    assert not torch.allclose(logits["original"], logits["consecutive"], atol=1e-3)


def test_a_cache_that_is_of_other_rows_or_cropped() -> None:
    model, processor = make_llava(), make_llava_processor()
    with attach(model, processor, RandomSelector(), BUDGET, positions="original"), torch.no_grad():
        inputs = prepare(processor)
        cache = model(**inputs, use_cache=True).past_key_values
        step = torch.full((2, 1), 7)
        with pytest.raises(ValueError, match="past_key_values: filled by a prompt of 3 rows"):
            model(input_ids=step, past_key_values=copy.deepcopy(cache))
        length = inputs["input_ids"].shape[1]
        cache.crop(-3)
        with pytest.raises(ValueError, match=f"got 3 rows and {length - 3} cached columns"):
            model(input_ids=torch.full((3, 1), 7), past_key_values=cache)


def test_chunks_of_a_prompt_have_no_known_positions() -> None:
    model, processor = make_llava(), make_llava_processor()
    with attach(model, processor, RandomSelector(), BUDGET) as handle:
        inputs = prepare(processor, TEXTS[:1])
        features = model.get_image_features(inputs["pixel_values"])
        features.pooler_output = [image.clone() for image in features.pooler_output]
        with pytest.raises(NotImplementedError, match="prefill_chunk_size"):
            model(inputs["input_ids"], mm_encoder_outputs={"image": features})
        handle.remove()


def test_other_positions_are_refused() -> None:
    model, processor = make_llava(), make_llava_processor()
    with pytest.raises(ValueError, match="positions: expected one of"):
        attach(model, processor, RandomSelector(), BUDGET, positions="absolute")
    in_decoder = make_selector("vlm-pruner", layer=1)
    for positions in ("original", "consecutive"):
        attach(model, processor, in_decoder, BUDGET, positions=positions).remove()


def test_a_family_that_keeps_positions_anyway() -> None:
    from tests.vlm import models_qwen

    model = models_qwen.make_model(name="qwen2_vl")
    processor = models_qwen.make_processor("qwen2_vl")
    with pytest.raises(ValueError, match="positions: expected 'original' for qwen2_vl"):
        attach(model, processor, RandomSelector(), BUDGET, positions="consecutive")


def test_a_language_model_without_rotary_positions() -> None:
    model, processor = make_llava(), make_llava_processor()
    del model.model.language_model.rotary_emb
    with pytest.raises(ValueError, match="positions: expected 'consecutive', as the language mod"):
        attach(model, processor, RandomSelector(), BUDGET, positions="original")
    with attach(model, processor, RandomSelector(), BUDGET):
        assert "forward" not in vars(model.model)
