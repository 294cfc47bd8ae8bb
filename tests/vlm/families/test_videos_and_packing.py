"""Models whose prompt loses columns: videos, and samples packed into one row."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("tokenizers")

from ocvtp_kernels import attach
from tests.vlm.families import (
    BUDGET,
    NEW,
    ByNorm,
    Entry,
    Row,
    answer,
    entries,
    generate,
    process,
)
from tests.vlm.families._suite import (
    ALL,
    CLOSE,
    DETAILS,
    PACKED,
    ids_of,
    labels_of,
    loss_by_hand,
    whole_line,
)
from tests.vlm.models_qwen import (
    IMAGE,
    PAD,
    PHOTO,
    VIDEO,
    WORDS,
    Visual,
    choose,
    lay,
    look,
    needs_encoded_images,
    see_video,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def make_video(
    model: Any, frames: int = 2, height: int = 2, width: int = 3
) -> tuple[dict[str, Tensor], list[int]]:
    """Patches, grid and placeholders of a video of so many merged tokens."""
    vision = model.config.vision_config
    generator = torch.Generator().manual_seed(3)
    channels = 3 * vision.temporal_patch_size * vision.patch_size**2
    patches = torch.randn(frames * height * width * 4, channels, generator=generator)
    grid = torch.tensor([[frames, 2 * height, 2 * width]])
    start, end, time = (WORDS.index(word) for word in ("<|vision_start|>", "<|vision_end|>", "."))
    if model.config.model_type.startswith("qwen3"):
        # The frames one by one, each behind its time.
        tokens = [time, start, *[VIDEO] * height * width, end] * frames
    else:
        tokens = [start, *[VIDEO] * frames * height * width, end]
    return {"pixel_values_videos": patches, "video_grid_thw": grid}, tokens


def tell_apart(ids: Tensor) -> dict[str, Tensor]:
    """A prompt whose placeholders are told apart, as a processor does."""
    kinds = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}


@pytest.mark.parametrize("budget", [BUDGET, ALL], ids=["pruned", "all"])
@pytest.mark.parametrize("order", ["photo, video", "video, photo"])
def test_videos_stay_whole(entry: Entry, made: Any, order: str, budget: int) -> None:
    model, processor = made
    video, of_video = make_video(model)
    photo = entry.make_photo(0)
    batch = process(processor, [(PHOTO, [photo])])
    parts = {"photo": batch["input_ids"][0].tolist(), "video": of_video}
    first, second = (parts[name] for name in order.split(", "))
    ids = torch.tensor([[*first, WORDS.index("and"), *second, WORDS.index("?")]])
    batch |= video | tell_apart(ids)
    with attach(model, processor, ByNorm(), budget) as handle:
        output = generate(entry, model, batch, **DETAILS)
        kept = ids_of(handle)
        with torch.no_grad():
            logits = model(**batch).logits[0]
    with torch.no_grad():
        chosen = choose(model, photo, budget)
        assert kept == [chosen.tolist()]
        seen: dict[str, list[Visual]] = {"photo": [look(model, photo, 0).keep(chosen)]}
        seen["video"] = see_video(model, *video.values())
        visuals = [visual for name in order.split(", ") for visual in seen[name]]
        line = lay(model, ids[0].tolist(), visuals)
        torch.testing.assert_close(logits, entry.logits(model, line), **CLOSE)
    tokens, by_hand = answer(entry, model, line)
    assert output.sequences[0, -NEW:].tolist() == tokens
    torch.testing.assert_close(torch.cat(output.logits), by_hand, **CLOSE)
    assert torch.equal(output.sequences[:, :-NEW], ids)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
def test_videos_in_a_batch(entry: Entry, made: Any, settings: dict[str, Any]) -> None:
    model, processor = made
    video, of_video = make_video(model)
    photos = [entry.make_photo(number) for number in (0, 1)]
    images = process(processor, [(PHOTO, [photo]) for photo in photos])
    of_photos = [ids[ids != PAD].tolist() for ids in images["input_ids"]]
    rows = [[*of_photos[0], *of_video, WORDS.index("?")], [*of_photos[1], WORDS.index("cat")]]
    length, copies = max(len(row) for row in rows), settings.get("num_return_sequences", 1)
    ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])
    batch = video | images | tell_apart(ids) | {"attention_mask": (ids != PAD).long()}
    with attach(model, processor, ByNorm(), BUDGET):
        together = generate(entry, model, batch, **settings)[:, -NEW:]
        for index, (photo, row) in enumerate(zip(photos, rows, strict=True)):
            alone = process(processor, [(PHOTO, [photo])]) | tell_apart(torch.tensor([row]))
            alone |= video if index == 0 else {}
            found = generate(entry, model, alone, **settings)[:, -NEW:]
            assert torch.equal(found, together[copies * index : copies * (index + 1)])


def test_a_video_alone_is_as_the_model_alone(entry: Entry, made: Any) -> None:
    model, processor = made
    video, tokens = make_video(model)
    batch = video | tell_apart(torch.tensor([[*tokens, WORDS.index("?")]]))
    expected = generate(entry, model, batch)
    with attach(model, processor, ByNorm(), BUDGET):
        assert torch.equal(generate(entry, model, batch), expected)


def pack(
    entry: Entry, model: Any, processor: Any, packed: Sequence[Sequence[Row]]
) -> tuple[dict[str, Any], Tensor]:
    """Rows of several samples each, which only their positions tell apart, and labels."""
    ids, kinds, positions, labels = [], [], [], []
    for row in packed:
        samples = [process(processor, [sample]) for sample in row]
        ids.append(torch.cat([sample["input_ids"] for sample in samples], 1))
        if entry.windows:
            kinds.append(torch.cat([sample["token_type_ids"] for sample in samples], 1))
        labels.append(torch.cat([labels_of(entry, sample) for sample in samples], 1))
        places = []
        for sample in samples:
            tokens = sample["input_ids"]
            text = torch.arange(tokens.shape[1]).expand(1, 1, -1)
            vision = text.expand(3, -1, -1)
            if "image_grid_thw" in sample:
                names = ("mm_token_type_ids", "image_grid_thw")
                given = {name: sample[name] for name in names}
                vision, _ = model.model.get_rope_index(tokens, **given)
            places.append(torch.cat([text, vision]) if entry.axes == 3 else text[0])
        positions.append(torch.cat(places, -1))
    photos = [photo for row in packed for _, some in row for photo in some]
    images = process(processor, [(entry.image * len(photos), photos)])
    taken = ("pixel_values", "image_grid_thw", "image_sizes")
    batch = {name: images[name] for name in taken if name in images}
    batch |= {"input_ids": torch.cat(ids), "position_ids": torch.cat(positions, -2)}
    if entry.windows:
        batch["token_type_ids"] = torch.cat(kinds)
    return batch, torch.cat(labels)


def attend_within_bounds(
    module: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Any, **given: Any
) -> tuple[Tensor, None]:
    """Attention as flash attention is called for samples of given bounds."""
    assert mask is None
    repeats = queries.shape[1] // keys.shape[1]
    keys, values = (part.repeat_interleave(repeats, 1) for part in (keys, values))
    bounds = given["cu_seq_lens_q"]
    assert torch.equal(bounds, given["cu_seq_lens_k"]) and bounds[-1] == queries.shape[2]
    assert bounds.diff().max() <= given["max_length_q"]
    sample = torch.bucketize(torch.arange(queries.shape[2]), bounds[1:], right=True)
    allowed = (sample[:, None] == sample).tril()
    mixed = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=allowed, scale=given["scaling"]
    )
    return mixed.transpose(1, 2), None


def keep_states_apart(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    """Linear attention as its kernels compute it, which begin anew with each sample of a row."""
    module = sys.modules[type(model).__module__]
    convolve, update = module.causal_conv1d_fn, module.torch_chunk_gated_delta_rule

    def convolve_samples(states: Tensor, *args: Any, seq_idx: Any = None, **given: Any) -> Tensor:
        if seq_idx is None:
            return convolve(states, *args, **given)
        assert seq_idx.shape == (1, states.shape[2]) and seq_idx.dtype == torch.int32
        sizes = seq_idx[0].unique_consecutive(return_counts=True)[1].tolist()
        return torch.cat([convolve(part, *args, **given) for part in states.split(sizes, 2)], 2)

    def update_samples(
        *tokens: Tensor, cu_seqlens: Any = None, seq_idx: Any = None, **given: Any
    ) -> Any:
        if cu_seqlens is None:
            return update(*tokens, **given)
        sizes = cu_seqlens.diff().tolist()
        rates = [given.pop(name).split(sizes, 1) for name in ("g", "beta")]
        samples = zip(*(part.split(sizes, 1) for part in tokens), *rates, strict=True)
        mixed = [update(*part, g=g, beta=beta, **given)[0] for *part, g, beta in samples]
        return torch.cat(mixed, 1), None

    monkeypatch.setattr(module, "causal_conv1d_fn", convolve_samples)
    monkeypatch.setattr(module, "torch_chunk_gated_delta_rule", update_samples)


@torch.no_grad()
def skip_where_samples_mix(entry: Entry, model: Any, processor: Any) -> None:
    """Transformers 5.24 looks up whose image a column of a packed row is at another column."""
    if not entry.windows:
        return
    rows = entry.rows(PACKED)
    found = model(**pack(entry, model, processor, [rows])[0], use_cache=False).logits[0]
    whole = [entry.logits(model, whole_line(entry, model, row)[0]) for row in rows]
    if not torch.allclose(found, torch.cat(whole), rtol=1e-4, atol=1e-4):
        pytest.skip("this transformers mixes the images of packed samples, pruned or not")


def skip_without_bounds(entry: Entry) -> None:
    if entry.linear:
        pytest.skip("without bounds samples pass into one another's states, pruned or not")


@pytest.mark.parametrize("budget", [BUDGET, ALL], ids=["pruned", "all"])
@pytest.mark.parametrize(
    ("texts", "attention"),
    [
        (PACKED[1:], "sdpa"),
        (PACKED[::-1], "eager"),
        (PACKED[:3], "bounds"),
    ],
    ids=["text first", "4, eager", "bounds"],
)
def test_packed_samples_are_as_alone(
    entry: Entry,
    made: Any,
    texts: list[str],
    budget: int,
    attention: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if attention != "bounds":
        skip_without_bounds(entry)
    elif entry.windows:
        pytest.skip("its images attend in both directions, of which bounds tell nothing")
    model, processor = made
    skip_where_samples_mix(entry, model, processor)
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register("bounds", attend_within_bounds)
    AttentionMaskInterface.register("bounds", flash_attention_mask)
    rows, bounds = entry.rows(texts), {}
    try:
        with attach(model, processor, ByNorm(), budget), torch.no_grad():
            batch, labels = pack(entry, model, processor, [rows])
            if attention == "bounds":
                sizes = [process(processor, [row])["input_ids"].shape[1] for row in rows]
                ends = torch.tensor([0, *sizes]).cumsum(0).int()
                bounds = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
                bounds |= {"max_length_q": max(sizes), "max_length_k": max(sizes)}
                if entry.linear:
                    keep_states_apart(monkeypatch, model)
                    samples = torch.arange(len(rows), dtype=torch.int32)
                    bounds["seq_idx"] = samples.repeat_interleave(ends.diff())[None]
            model.set_attn_implementation({"text_config": attention})
            output = model(**batch, **bounds, labels=labels, use_cache=False)
    finally:
        model.set_attn_implementation({"text_config": "sdpa"})
    with torch.no_grad():
        lines = [entry.see(model, row, budget).line for row in rows]
        expected = torch.cat([entry.logits(model, line) for line in lines])
        torch.testing.assert_close(output.logits[0], expected, **CLOSE)
        loss = loss_by_hand(entry, model, rows, budget)
    torch.testing.assert_close(output.loss, loss, **CLOSE)


@pytest.mark.parametrize("lengths", ["the same", "others"])
def test_several_rows_of_packed_samples(entry: Entry, made: Any, lengths: str) -> None:
    model, processor = made
    skip_without_bounds(entry)
    skip_where_samples_mix(entry, model, processor)
    rows = entry.rows(["red red {} what ?", "a cat ?", "{} ?"])
    if lengths == "the same":
        # Photos of the same sizes.
        others = entry.rows(["{} red ?", "a red cat what ?", "{} ?"], first=4)
    else:
        others = entry.rows(["a cat ?"])
    with attach(model, processor, ByNorm(), BUDGET), torch.no_grad():
        total, given = (
            sum(process(processor, [sample])["input_ids"].shape[1] for sample in row)
            for row in (rows, others)
        )
        others += [("red " * (total - given), [])] if total > given else []
        batch, labels = pack(entry, model, processor, [rows, others])
        output = model(**batch, labels=labels, use_cache=False)
        for row, logits in zip((rows, others), output.logits, strict=True):
            lines = [entry.see(model, sample, BUDGET).line for sample in row]
            expected = torch.cat([entry.logits(model, line) for line in lines])
            torch.testing.assert_close(logits[-len(expected) :], expected, **CLOSE)
        loss = loss_by_hand(entry, model, [*rows, *others], BUDGET)
    torch.testing.assert_close(output.loss, loss, **CLOSE)


@needs_encoded_images("qwen3_5")
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_states_take_no_padding_of_rows_with_positions(use_cache: bool) -> None:
    entry = entries()["qwen3_5"]
    model, processor = entry.make_model(), entry.make_processor()
    # As long with photos of 16 and 4 tokens, of which 5 and 4 are kept.
    rows = [*entry.rows(["red {} ?"], 1), *entry.rows(["{}" + " a red cat" * 4 + " and ?"], 2)]
    batch = process(processor, rows)
    assert batch.pop("attention_mask").all()
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw")
    vision, _ = model.model.get_rope_index(**{name: batch[name] for name in names})
    text = torch.arange(vision.shape[2]).expand(1, 2, -1)
    positions = torch.cat([text, vision])
    with attach(model, processor, ByNorm(), BUDGET):
        logits = model(**batch, position_ids=positions, use_cache=use_cache).logits
        packed = torch.cat([text % 4, vision])
        with pytest.raises(NotImplementedError, match=r"^position_ids: .*but no linear attention"):
            model(**batch, position_ids=packed, use_cache=use_cache)
    for row, found in zip(rows, logits, strict=True):
        expected = entry.logits(model, entry.see(model, row, BUDGET).line)
        torch.testing.assert_close(found[-len(expected) :], expected, **CLOSE)
