"""Qwen2.5-VL: conversations, forward, limits, and what goes on and comes off."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("transformers", minversion="5.19")

from ocvtp_kernels.vlm.columns.prompt import new_images
from ocvtp_kernels.vlm.handle import Options
from ocvtp_kernels.vlm.qwen2_5_vl import FAMILY
from tests.vlm.models import CACHE_NAME
from tests.vlm.models_qwen import (
    IMAGE,
    PHOTO,
    WORDS,
    ByNorm,
    by_hand,
    choose,
    make_batch,
    make_model,
    make_photo,
)

BUDGET, STEPS = 7, 5
WIDE, SQUARE, SMALL = make_photo(10, 6), make_photo(4, 4, 1), make_photo(5, 3, 2)
FIRST = [(f"{PHOTO} what is this ?", [WIDE]), (f"that {PHOTO} and {PHOTO} ?", [SQUARE, SMALL])]
TEXT = [("what is this ?", []), ("that red cat and dog ?", [])]
GREEDY: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True}


def attach(model: Any, budget: int = BUDGET, **options: Any) -> Any:
    return FAMILY.attach(model, None, ByNorm(), budget, Options(**options))


@pytest.fixture
def model(one_thread: None) -> Any:
    return make_model()


def follow(
    sequences: Tensor, mask: Tensor, rows: list[tuple[str, list[Any]]]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A conversation so far with a next turn: ids and mask, and the next turn alone."""
    turn = make_batch(rows)
    seen = F.pad(mask, (0, sequences.shape[1] - mask.shape[1]), value=1)
    call = {
        "input_ids": torch.cat([sequences, turn["input_ids"]], 1),
        "attention_mask": torch.cat([seen, turn["attention_mask"]], 1),
    }
    return call, turn


def check_rows(
    model: Any, call: dict[str, Any], output: Any, photos: list[list[Any]], budget: int = BUDGET
) -> None:
    """The answer of every row is the one by hand to the whole conversation."""
    length = call["input_ids"].shape[1]
    assert torch.equal(output.sequences[:, :length], call["input_ids"])
    for row, images in enumerate(photos):
        tokens = call["input_ids"][row][call["attention_mask"][row].bool()].tolist()
        kept = [choose(model, photo, budget) for photo in images]
        answer, _ = by_hand(model, tokens, images, kept, STEPS)
        assert output.sequences[row, length:].tolist() == answer


@pytest.mark.parametrize("first", [FIRST, TEXT], ids=["photos", "text"])
@pytest.mark.parametrize("budget", [BUDGET, 16], ids=["all pruned", "one pruned"])
@pytest.mark.parametrize("give", ["all", "new"])
def test_a_conversation_goes_on(model: Any, first: Any, budget: int, give: str) -> None:
    photos = [list(row[1]) for row in first]
    with attach(model, budget):
        batch = make_batch(first)
        output = model.generate(**batch, max_new_tokens=STEPS, **GREEDY)
        if first is FIRST:
            # Another conversation in between does not matter, as it would to the model itself.
            model.generate(**make_batch([(f"{PHOTO} red ?", [SQUARE])]), max_new_tokens=1)
        call, _ = follow(output.sequences, batch["attention_mask"], [("red ?", []), ("a dog", [])])
        cache = copy.deepcopy(output.past_key_values)
        second = model.generate(**call, **{CACHE_NAME: cache}, max_new_tokens=STEPS, **GREEDY)
        check_rows(model, call, second, photos, budget)
        # A third turn with a photo in the second row.
        more = [("a cat .", []), (f"{PHOTO} and ?", [make_photo(6, 5, 4)])]
        call, turn = follow(second.sequences, call["attention_mask"], more)
        photos[1].append(more[1][1][0])
        if give == "all":
            rows = [(PHOTO * len(images), images) for images in photos]
            turn = make_batch(rows)
        call |= {name: turn[name] for name in ("pixel_values", "image_grid_thw")}
        third = model.generate(**call, **{CACHE_NAME: cache}, max_new_tokens=STEPS, **GREEDY)
        check_rows(model, call, third, photos, budget)


def test_a_conversation_after_a_prompt_that_fits(model: Any) -> None:
    first = [(f"{PHOTO} what ?", [make_photo(3, 2)]), ("red ?", [])]
    more = [(f"{PHOTO} and ?", [SQUARE]), (f"{PHOTO} dog", [WIDE])]
    with attach(model):
        batch = make_batch(first)
        output = model.generate(**batch, max_new_tokens=STEPS, **GREEDY)
        call, turn = follow(output.sequences, batch["attention_mask"], more)
        cache = output.past_key_values
        only_new = {name: turn[name] for name in ("pixel_values", "image_grid_thw")}
        with pytest.raises(ValueError, match="expected all images of the conversation"):
            model.generate(**call, **only_new, **{CACHE_NAME: cache}, max_new_tokens=1)
        photos = [first[0][1] + more[0][1], more[1][1]]
        turn = make_batch([(PHOTO * len(images), images) for images in photos])
        call |= {name: turn[name] for name in ("pixel_values", "image_grid_thw")}
        second = model.generate(**call, **{CACHE_NAME: cache}, max_new_tokens=STEPS, **GREEDY)
        check_rows(model, call, second, photos)


def test_a_conversation_branches_in_beams(model: Any) -> None:
    with attach(model):
        batch = make_batch(FIRST[:1])
        output = model.generate(**batch, max_new_tokens=STEPS, **GREEDY)
        call, turn = follow(output.sequences, batch["attention_mask"], [(f"{PHOTO} ?", [SQUARE])])
        images = {name: turn[name] for name in ("pixel_values", "image_grid_thw")}
        cached = copy.deepcopy(output.past_key_values)
        cached.batch_repeat_interleave(3)
        beams = {"num_beams": 3, "do_sample": False, "max_new_tokens": STEPS}
        branched = model.generate(**call, **images, **{CACHE_NAME: cached}, **beams)
        rows = make_batch([(PHOTO + PHOTO, [WIDE, SQUARE])])
        whole = call | {name: rows[name] for name in images}
        assert torch.equal(branched, model.generate(**whole, **beams))


def test_forward_prunes_and_labels_follow(model: Any) -> None:
    rows = [(f"{PHOTO} what is this ?", [WIDE]), (f"{PHOTO} cat ?", [SMALL])]
    batch = make_batch(rows)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels = labels.masked_fill(labels == IMAGE, -100)
    # A row's first token would be predicted from padding, where there is some.
    labels[torch.arange(2), batch["attention_mask"].argmax(1)] = -100
    with attach(model):
        output = model(**batch, labels=labels, use_cache=True)
        generated = model.generate(**batch, max_new_tokens=1, output_logits=True, **GREEDY)
    assert output.logits.shape[:2] == (2, 6 + BUDGET)
    torch.testing.assert_close(output.logits[:, -1], generated.logits[0], rtol=1e-4, atol=1e-4)
    output.loss.backward()
    assert all(p.grad is not None for p in model.model.visual.merger.parameters())
    losses = []
    for text, photos in rows:
        tokens = make_batch([(text, photos)])["input_ids"][0].tolist()
        kept = [choose(model, photo, BUDGET) for photo in photos]
        stop = tokens.index(IMAGE)
        end = len(tokens) - tokens[::-1].index(IMAGE)
        # Logits before every token but the first, and but the placeholders.
        for position in [*range(1, stop), *range(end, len(tokens))]:
            seen = kept if position > stop else []
            _, logits = by_hand(model, tokens[:position], photos, seen, 1)
            losses.append(F.cross_entropy(logits, torch.tensor([tokens[position]])))
    torch.testing.assert_close(output.loss.detach(), torch.stack(losses).mean(), rtol=1e-4, atol=0)


def test_decoding_by_forward_goes_on_where_generate_does(model: Any) -> None:
    batch = make_batch([(f"{PHOTO} what is this ?", [WIDE])])
    with attach(model), torch.no_grad():
        sequences = model.generate(**batch, max_new_tokens=3, do_sample=False)
        output = model(**batch, use_cache=True)
        answer = []
        for _ in range(3):
            answer.append(output.logits[:, -1].argmax(-1))
            output = model(
                input_ids=answer[-1][:, None],
                **{CACHE_NAME: output.past_key_values},
                mm_token_type_ids=torch.zeros(1, 1, dtype=torch.int),
            )
    assert sequences[0, -3:].tolist() == [int(token) for token in answer]


def test_limits_count_the_whole_prompt(model: Any) -> None:
    batch = make_batch(FIRST)
    length = batch["input_ids"].shape[1]
    with attach(model):
        assert model.generate(**batch, max_length=length + 4).shape[1] == length + 4
        assert model.generate(**batch, max_new_tokens=3).shape[1] == length + 3
        config = copy.deepcopy(model.generation_config)
        config.max_length = length + 2
        assert model.generate(**batch, generation_config=config).shape[1] == length + 2
        assert model.generate(batch.pop("input_ids"), config, **batch).shape[1] == length + 2


def test_calls_refuse(model: Any) -> None:
    batch = make_batch(FIRST)
    short = {**batch, "pixel_values": batch["pixel_values"][:240], "image_grid_thw": None}
    with attach(model):
        with pytest.raises(ValueError, match="image_grid_thw: needed"):
            model.generate(**short)
        short["image_grid_thw"] = batch["image_grid_thw"][:1]
        with pytest.raises(ValueError, match="row 1 has 31 image placeholders"):
            model.generate(**short)
        with pytest.raises(ValueError, match="input_ids: needed"):
            model.generate(inputs_embeds=torch.zeros(1, 4, 48), pixel_values=batch["pixel_values"])
        with pytest.raises(ValueError, match="mm_encoder_outputs: expected no images"):
            model.generate(**batch, mm_encoder_outputs={"image": None})
        with pytest.raises(NotImplementedError, match="logits_to_keep"):
            model(**batch, logits_to_keep=torch.tensor([3]))
        with pytest.raises(NotImplementedError, match="position_ids: expected none"):
            ids = F.pad(batch["input_ids"], (0, 9), value=WORDS.index("cat"))
            output = model.generate(**batch, max_new_tokens=2, **GREEDY)
            cached = {CACHE_NAME: output.past_key_values}
            model.generate(ids, **cached, position_ids=torch.zeros(3, *ids.shape))
        with pytest.raises(ValueError, match="attention_mask: expected"):
            model.generate(**batch | {"attention_mask": batch["attention_mask"][:, 1:]})
        output = model.generate(**batch, max_new_tokens=2, **GREEDY)
        cached = {CACHE_NAME: output.past_key_values}
        with pytest.raises(ValueError, match="expected the whole conversation"):
            model.generate(**batch, **cached)
        with pytest.raises(ValueError, match="filled by a prompt of 2 rows"):
            model.generate(batch["input_ids"][:1], **cached)
        with pytest.raises(NotImplementedError, match="continue a conversation with generate"):
            model(**batch, **cached)


def test_new_images_of_every_row() -> None:
    assert new_images([4, 6, 2, 3], [4, 0, 2], [6, 0, 3]) == [1, 3]
    assert new_images([6, 3], [4, 0, 2], [6, 0, 3]) == [0, 1]
    assert new_images([4, 2], [4, 2], [0, 0]) == []
    assert new_images([], [4, 2], [0, 0]) == []
    with pytest.raises(ValueError, match="pixel_values: expected the 1 images"):
        new_images([4, 6], [0], [4])


@pytest.mark.parametrize("eos", [None, 0], ids=["guessed", "all ones"])
def test_padding_without_a_mask_is_guessed_as_generate_does(model: Any, eos: int | None) -> None:
    model.generation_config.eos_token_id = eos
    batch = make_batch([*FIRST, ("red ?", [])])
    lone = {name: batch[name] for name in batch if name != "attention_mask"}
    if eos is not None:
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    with attach(model):
        expected = model.generate(**batch, max_new_tokens=STEPS, do_sample=False)
        assert torch.equal(model.generate(**lone, max_new_tokens=STEPS, do_sample=False), expected)


def test_positions_given_are_kept(model: Any) -> None:
    batch = make_batch(FIRST)
    positions, _ = model.model.get_rope_index(**batch)
    plain = model.generate(**batch, max_new_tokens=2)
    with attach(model), torch.no_grad():
        logits = model(**batch).logits
        for given in (positions, torch.cat([positions[:1], positions])):
            assert torch.equal(model(**batch, position_ids=given).logits, logits)
    assert torch.equal(model.generate(**batch, max_new_tokens=2), plain)
