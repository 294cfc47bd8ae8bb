"""Methods that drop image tokens in the decoder, in stages, beside the same computed by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("tokenizers")

from ocvtp_kernels import attach, make_selector
from ocvtp_kernels.selectors.dart import DART
from ocvtp_kernels.selectors.interface import Stage
from ocvtp_kernels.selectors.oc_progressive import OCProgressive
from tests.vlm.decoder_by_hand import RUNS, copies_for, use_attention
from tests.vlm.families import BUDGET, NEW, TEXT_LAYERS, Entry, answers, entries, generate, process
from tests.vlm.families._schedules import (
    METHODS,
    Answer,
    ByStage,
    Decoded,
    answer,
    dart,
    decode,
    go_on,
    losses,
    oc_progressive,
    pyramiddrop,
    read_prompt,
    sparsevlm,
)
from tests.vlm.families._suite import ALL, CLOSE, DETAILS, TEXTS, ids_of, labels_of
from tests.vlm.models import CACHE_NAME, make_photo, make_pruner
from tests.vlm.models_qwen import make_photo as make_qwen_photo
from tests.vlm.next_by_hand import PHOTOS

pytestmark = pytest.mark.usefixtures("one_thread")


KINDS = ("llava", "qwen2_5_vl")  # positions of one dimension, and of three


def some(name: str, values: Iterable[Any], *quick: Any) -> pytest.MarkDecorator:
    """Runs a test over values, of which those that are not ``quick`` ones are slow.

    They are tried on `KINDS` of families alone.
    """
    slow = pytest.mark.slow(families=KINDS)
    params = [pytest.param(value, marks=[] if value in quick else [slow]) for value in values]
    return pytest.mark.parametrize(name, params)


# Of several photos a row, of text alone; of Qwens a photo within the budget beside a larger one.
MIXED = (*TEXTS, "{} and {} and {} cat ?")
# Where generate repeats images by itself, it mixes up those of a row that has two.
SEARCHED = TEXTS if copies_for({"num_beams": 3}) == 1 else [TEXTS[0], *TEXTS[2:]]
STAGED = ["pyramiddrop", "sparsevlm", "oc-progressive"]
QUICK = ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl"]


@contextmanager
def attending(model: Any, kind: str) -> Iterator[None]:
    """The language model attends by another kind, see `use_attention`."""
    use_attention(model, kind)
    try:
        yield
    finally:
        use_attention(model, "sdpa")


def stages_in(handle: Any) -> ByStage:
    return [(layer, [image.tolist() for image in ids]) for layer, ids in handle.last.stages]


def check_stages(handle: Any, rows: Sequence[Decoded]) -> None:
    """Those of the rows in turn, of the photos of each."""
    stages = stages_in(handle)
    expected: ByStage = [
        (layer, [image for row in rows for image in row.stages[number][1]])
        for number, (layer, _) in enumerate(rows[0].stages)
    ]
    assert stages == expected
    assert ids_of(handle) == stages[-1][1]


def check_output(output: Any, expected: Sequence[Answer]) -> None:
    assert output.sequences[:, -NEW:].tolist() == [row.tokens for row in expected]
    logits = torch.stack([row.logits for row in expected])
    torch.testing.assert_close(torch.stack(output.logits, 1), logits, **CLOSE)


_MODEL_OF = cache(lambda name: entries()[name].make_model())  # to which nothing is ever attached


@cache
def answers_by_hand(
    name: str, method: str, texts: tuple[str, ...] = tuple(TEXTS), consecutive: bool = False
) -> list[Answer]:
    """Of a row a text."""
    entry, model = entries()[name], _MODEL_OF(name)
    prompts = [read_prompt(entry, model, row) for row in entry.rows(texts)]
    rule = METHODS[method].rule
    return [answer(entry, model, prompt, rule, consecutive=consecutive) for prompt in prompts]


@pytest.mark.parametrize("method", METHODS)
def test_a_schedule_is_as_by_hand(entry: Entry, made: Any, method: str) -> None:
    model, processor = made
    expected = answers_by_hand(entry.name, method, MIXED)
    batch = process(processor, entry.rows(MIXED))
    assert not batch["attention_mask"].all()
    for kind in ("sdpa", "eager"):
        with (
            attending(model, kind),
            attach(model, processor, METHODS[method].make(), BUDGET) as handle,
        ):
            output = generate(entry, model, batch, **DETAILS)
            check_stages(handle, [row.first for row in expected])
        check_output(output, expected)


@pytest.mark.parametrize("method", ["dart", "sparsevlm"])
def test_prompts_that_end_with_a_photo_are_as_by_hand(entry: Entry, made: Any, method: str) -> None:
    model, processor = made
    texts = ("what is {}", "{} red {}", "{} cat ?")
    expected = answers_by_hand(entry.name, method, texts)
    with attach(model, processor, METHODS[method].make(), BUDGET) as handle:
        batch = process(processor, entry.rows(texts))
        check_output(generate(entry, model, batch, **DETAILS), expected)
        check_stages(handle, [row.first for row in expected])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("pivots", [(2, 0), (1, 1), (4, 4), (9, 2)])
def test_dart_of_other_pivots(name: str, pivots: tuple[int, int]) -> None:
    entry = entries()[name]
    model, processor = entry.make_model(), entry.make_processor()
    norm = entry.text_of(model).norm.weight
    norm.data = torch.linspace(0, 3, len(norm))  # of ones, it would change no cosine
    rows, (of_image, of_text) = entry.rows(MIXED), pivots
    rule = dart(1, of_image, of_text)
    expected = [decode(entry, model, read_prompt(entry, model, row), rule) for row in rows]
    selector = make_selector("dart", layer=1, num_image_pivots=of_image, num_text_pivots=of_text)
    with attach(model, processor, selector, BUDGET) as handle:
        answers(entry, model, processor, rows)
        check_stages(handle, expected)


class Twice(DART):
    """DART in two stages."""

    def stages(self, budget: int, depth: int) -> tuple[Stage, ...]:
        return Stage(1, partial(min, 9), self), Stage(2, partial(min, budget), self)


@pytest.mark.parametrize("name", KINDS)
def test_pivots_of_a_later_stage_are_among_what_is_left(name: str) -> None:
    entry, model = entries()[name], _MODEL_OF(name)
    rows = entry.rows((*TEXTS, "what is {}", "{} red {}"))
    rule = replace(dart(1, 2, 2), steps=[(1, 9), (2, BUDGET)])
    expected = [decode(entry, model, read_prompt(entry, model, row), rule) for row in rows]
    model, processor = entry.make_model(), entry.make_processor()
    with attach(model, processor, Twice(1, 2, 2), BUDGET) as handle:
        answers(entry, model, processor, rows)
        check_stages(handle, expected)


@some("method", METHODS, "sparsevlm")
def test_a_row_alone_is_as_by_hand(entry: Entry, made: Any, method: str) -> None:
    model, processor = made
    for text in TEXTS[:2]:
        expected = answers_by_hand(entry.name, method, (text,))
        with attach(model, processor, METHODS[method].make(), BUDGET) as handle:
            batch = process(processor, entry.rows([text]))
            check_output(generate(entry, model, batch, **DETAILS), expected)
            check_stages(handle, [row.first for row in expected])


@some("run", RUNS, ("sdpa", "static"), ("flat", "dynamic"))
@some("method", ["pyramiddrop", "sparsevlm"], "pyramiddrop")
def test_every_layer_has_a_cache_of_its_columns(
    entry: Entry, made: Any, method: str, run: tuple[str, str]
) -> None:
    model, processor = made
    attention, kind = run
    expected = answers_by_hand(entry.name, method)
    batch = process(processor, entry.rows(TEXTS))
    selector = METHODS[method].make()
    with attending(model, attention), attach(model, processor, selector, BUDGET) as handle:
        output = generate(entry, model, batch, cache_implementation=kind, **DETAILS)
        check_stages(handle, [row.first for row in expected])
    check_output(output, expected)
    layers = output.past_key_values.layers
    lengths = [
        int(part.cumulative_length if kind == "static" else part.keys.shape[2]) for part in layers
    ]
    widths = [max(row.first.widths[index] for row in expected) for index in range(TEXT_LAYERS)]
    assert lengths == [width + NEW - 1 for width in widths]
    assert len(set(lengths)) == TEXT_LAYERS


@some("name", QUICK, "llava_next", "qwen2_5_vl")
@pytest.mark.parametrize("method", ["pyramiddrop", "oc-progressive"])
def test_schedules_by_default(name: str, method: str) -> None:
    entry = entries()[name]
    model, processor, budget = entry.make_deep(4), entry.make_processor(), 4
    rule = pyramiddrop([(1, 16), (2, 8), (3, 4)])
    options: dict[str, Any] = {}
    if method == "oc-progressive":
        rule, options = oc_progressive(rule.steps, make_pruner()), {"pruner": make_pruner()}
    rows = entry.rows(TEXTS)
    prompts = [read_prompt(entry, model, row) for row in rows]
    expected = [answer(entry, model, prompt, rule, budget) for prompt in prompts]
    with attach(model, processor, make_selector(method, **options), budget) as handle:
        check_output(generate(entry, model, process(processor, rows), **DETAILS), expected)
        check_stages(handle, [row.first for row in expected])


@pytest.mark.parametrize("recycle", [True, False])
@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
def test_sparsevlm_of_a_published_budget(name: str, recycle: bool) -> None:
    entry = entries()[name]
    model, processor = entry.make_deep(4), entry.make_processor()
    # Of 88 tokens with the newlines, and of 80.
    photo = make_photo(4, PHOTOS[4][:2]) if name == "llava_next" else make_qwen_photo(10, 8)
    rows = [(f"{entry.image} what is this ?", [photo]), *entry.rows(["a {} red ?"])]
    rule = sparsevlm([(1, 66), (2, 30), (3, 17)], recycle)
    prompts = [read_prompt(entry, model, row) for row in rows]
    expected = [answer(entry, model, prompt, rule, 64) for prompt in prompts]
    with attach(model, processor, make_selector("sparsevlm", recycle=recycle), 64) as handle:
        check_output(generate(entry, model, process(processor, rows), **DETAILS), expected)
        check_stages(handle, [row.first for row in expected])
        kept = [len(ids[0]) for _, ids in stages_in(handle)]
        assert kept == ([67, 32, 18] if recycle else [66, 30, 17])


@some("method", METHODS, "pyramiddrop", "sparsevlm")
@torch.no_grad()
def test_photos_within_the_budget_change_no_bit(entry: Entry, made: Any, method: str) -> None:
    model, processor = made
    batch = process(processor, entry.rows(TEXTS))
    labels = labels_of(entry, batch)

    def run() -> list[Tensor]:
        output = model(**batch, labels=labels)
        static = generate(entry, model, batch, cache_implementation="static")
        return [output.loss, output.logits, generate(entry, model, batch), static]

    expected = run()
    with attach(model, processor, METHODS[method].make(), ALL) as handle:
        for ours, theirs in zip(run(), expected, strict=True):
            assert torch.equal(ours, theirs)
        for _, ids in stages_in(handle):
            assert all(image == [*range(len(image))] for image in ids)
        assert [layer for layer, _ in stages_in(handle)] == [
            layer for layer, _ in METHODS[method].rule.steps
        ]


@some("method", METHODS, "sparsevlm")
@torch.no_grad()
def test_text_alone_changes_no_bit(entry: Entry, made: Any, method: str) -> None:
    model, processor = made
    batch = process(processor, entry.rows(["what is red ?", "a cat ?"]))
    expected = [generate(entry, model, batch), model(**batch).logits]
    with attach(model, processor, METHODS[method].make(), BUDGET) as handle:
        for ours, theirs in zip(
            [generate(entry, model, batch), model(**batch).logits], expected, strict=True
        ):
            assert torch.equal(ours, theirs)
        assert handle.last is None


@some("attention", ["sdpa", "eager", "flat"], "sdpa")
@some("method", ["pyramiddrop", "sparsevlm"], "sparsevlm")
@torch.no_grad()
def test_forward_without_a_cache(entry: Entry, made: Any, method: str, attention: str) -> None:
    model, processor = made
    make, rule = METHODS[method]
    rows = entry.rows(TEXTS)
    by_hand = [decode(entry, model, read_prompt(entry, model, row), rule) for row in rows]
    with attending(model, attention), attach(model, processor, make(), BUDGET) as handle:
        batch = process(processor, rows)
        output = model(**batch, use_cache=False, output_hidden_states=True)
        check_stages(handle, by_hand)
        plain = model(**batch, use_cache=False)
        last = model(**batch, logits_to_keep=1)
    torch.testing.assert_close(output.logits, plain.logits, **CLOSE)
    torch.testing.assert_close(plain.logits[:, -1:], last.logits, **CLOSE)
    shape = (*batch["input_ids"].shape, model.config.text_config.hidden_size)
    assert [tuple(state.shape) for state in output.hidden_states] == [shape] * (TEXT_LAYERS + 1)
    for mask, found, row in zip(batch["attention_mask"], output.logits, by_hand, strict=True):
        found, kept = found[mask.bool()], row.columns.tolist()
        torch.testing.assert_close(found[kept], model.lm_head(row.hidden), **CLOSE)
        for column in set(range(kept[0], len(found))) - set(kept):
            before = max(other for other in kept if other < column)
            assert torch.equal(found[column], found[before])


@some("method", STAGED, "sparsevlm")
@torch.no_grad()
def test_padding_on_the_right(entry: Entry, made: Any, method: str) -> None:
    model, processor = made
    make, rule = METHODS[method]
    rows = entry.rows(TEXTS)
    prompts = [read_prompt(entry, model, row) for row in rows]
    expected = [answer(entry, model, prompt, rule, steps=2) for prompt in prompts]
    tokenizer = processor.tokenizer
    before, tokenizer.padding_side = tokenizer.padding_side, "right"
    try:
        batch = process(processor, rows, padding_side="right")
    finally:
        tokenizer.padding_side = before
    mask = batch["attention_mask"]
    assert mask[:, 0].all() and not mask.all()
    with attach(model, processor, make(), BUDGET) as handle:
        output = model(**batch, use_cache=True)
        check_stages(handle, [row.first for row in expected])
        following = torch.tensor([[prompt.line.following] for prompt in prompts])
        second = model(
            input_ids=torch.tensor([row.tokens[:1] for row in expected]),
            attention_mask=torch.cat([mask, torch.ones(len(rows), 1, dtype=torch.long)], 1),
            position_ids=following if entry.axes == 1 else following.expand(3, -1, -1),
            **{CACHE_NAME: output.past_key_values},
        )
    for index, row in enumerate(expected):
        found = output.logits[index][mask[index].bool()]
        by_hand = model.lm_head(row.first.hidden)
        torch.testing.assert_close(found[row.first.columns], by_hand, **CLOSE)
        torch.testing.assert_close(second.logits[index, -1], row.logits[1], **CLOSE)


@some("attention", ["sdpa", "flat"], "sdpa")
@some("method", ["fastv", *STAGED], "sparsevlm")
def test_a_conversation_goes_on(entry: Entry, made: Any, method: str, attention: str) -> None:
    with attending(made[0], attention):
        check_conversation(entry, made, method)


def check_conversation(entry: Entry, made: Any, method: str, consecutive: bool = False) -> None:
    model, processor = made
    said = answers_by_hand(entry.name, method, consecutive=consecutive)
    positions = "consecutive" if consecutive else "original"
    make, rule = METHODS[method]
    batch = process(processor, entry.rows(TEXTS))
    question = torch.tensor([[7, 9, 11], [12, 7, 8], [10, 10, 9], [9, 7, 12]])
    with attach(model, processor, make(), BUDGET, positions=positions) as handle:
        first = generate(entry, model, batch, **DETAILS)
        check_output(first, said)
        check_stages(handle, [row.first for row in said])
        talk = torch.cat([first.sequences, question], 1)
        added = talk.shape[1] - batch["input_ids"].shape[1]
        mask = torch.nn.functional.pad(batch["attention_mask"], (0, added), value=1)
        cache = first.past_key_values
        more = {"input_ids": talk, "attention_mask": mask, CACHE_NAME: copy.deepcopy(cache)}
        second = generate(entry, model, more, **DETAILS)
        with pytest.raises(NotImplementedError, match="past_key_values: images are pruned"):
            model(**batch, **{CACHE_NAME: cache})
        with pytest.raises(ValueError, match="filled by a prompt of 4 rows, got 3 rows"):
            model(input_ids=talk[:3, -1:], **{CACHE_NAME: cache})
    by_hand = _MODEL_OF(entry.name)
    expected = [
        answer(
            entry,
            by_hand,
            go_on(by_hand, row.prompt, asked),
            rule,
            chosen=row.first.chosen,
            consecutive=consecutive,
        )
        for row, asked in zip(said, question.tolist(), strict=True)
    ]
    check_output(second, expected)


@pytest.mark.parametrize("name", ["llava", "llava_next"])
@some("method", METHODS, "fastv", "pyramiddrop", "sparsevlm")
def test_consecutive_positions(name: str, method: str) -> None:
    entry = entries()[name]
    model, processor = entry.make_model(), entry.make_processor()
    check_conversation(entry, (model, processor), method, consecutive=True)
    consecutive = answers_by_hand(name, method, consecutive=True)
    batch, selector = process(processor, entry.rows(TEXTS)), METHODS[method].make()
    with attach(model, processor, selector, BUDGET, positions="consecutive"):
        output = generate(entry, model, batch, cache_implementation="static", **DETAILS)
    check_output(output, consecutive)
    original = answers_by_hand(name, method)
    assert not torch.allclose(consecutive[0].logits, original[0].logits, atol=1e-3)


def test_consecutive_positions_are_refused_where_there_are_none(entry: Entry, made: Any) -> None:
    model, processor = made
    if not entry.whole_prompt:
        pytest.skip("a LLaVA has them")
    with pytest.raises(ValueError, match=f"positions: expected 'original' for {entry.name}"):
        attach(model, processor, make_selector("fastv"), BUDGET, positions="consecutive")


@some("kind", ["dynamic", "static"], "dynamic")
@some("method", ["fastv", *STAGED], "sparsevlm")
def test_beams_and_samples_are_as_by_hand(entry: Entry, made: Any, method: str, kind: str) -> None:
    model, processor = made
    make, rule = METHODS[method]
    rows = entry.rows(SEARCHED)
    prompts = [read_prompt(entry, model, row) for row in rows]
    chosen = [decode(entry, model, prompt, rule).chosen for prompt in prompts]
    settings: dict[str, Any] = {"cache_implementation": kind, "num_return_sequences": 2}
    with attach(model, processor, make(), BUDGET):
        batch = process(processor, rows)
        drawn = generate(entry, model, batch, do_sample=True, **settings, **DETAILS)
        beams = generate(
            entry, model, batch, num_beams=3, output_scores=True, **settings, **DETAILS
        )
    logits = torch.stack(drawn.logits, 1)
    for index in range(2 * len(rows)):
        prompt, kept = prompts[index // 2], chosen[index // 2]
        sampled, best = (
            answer(
                entry,
                model,
                prompt,
                rule,
                chosen=kept,
                given=found.sequences[index, -NEW:].tolist(),
            )
            for found in (drawn, beams)
        )
        torch.testing.assert_close(logits[index], sampled.logits, **CLOSE)
        chances = best.logits.log_softmax(-1).gather(1, torch.tensor(best.tokens)[:, None])
        torch.testing.assert_close(beams.sequences_scores[index], chances.mean(), **CLOSE)


@some("search", [{"num_beams": 3}, {"do_sample": True}], {"num_beams": 3})
def test_beams_and_samples_are_as_without_a_cache(
    entry: Entry, made: Any, search: dict[str, Any]
) -> None:
    model, processor = made
    found = []
    with attach(model, processor, METHODS["oc-progressive"].make(), BUDGET):
        batch = process(processor, entry.rows(SEARCHED))
        for settings in ({"use_cache": False}, {}, {"cache_implementation": "static"}):
            torch.manual_seed(0)
            found.append(generate(entry, model, batch, **search, **settings))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@some("layer", [0, 3], 3)
def test_the_pruner_reads_another_layer(entry: Entry, made: Any, layer: int) -> None:
    model, processor = made
    make, rule = METHODS["oc-progressive"]
    rows = entry.rows(TEXTS)
    prompts = [read_prompt(entry, model, row, layer) for row in rows]
    expected = [answer(entry, model, prompt, rule) for prompt in prompts]
    with attach(model, processor, make(), BUDGET, reference_layer=layer) as handle:
        check_output(generate(entry, model, process(processor, rows), **DETAILS), expected)
        check_stages(handle, [row.first for row in expected])


def test_newlines_go_before_the_first_count() -> None:
    entry = entries()["llava_next"]
    model, processor = entry.make_model(), entry.make_processor()
    # The first photo has 48 tokens and 4 newlines.
    steps, rows = [(1, 50), (2, BUDGET)], entry.rows(TEXTS[:1])
    rule = oc_progressive(steps, make_pruner())
    expected = [answer(entry, model, read_prompt(entry, model, row), rule) for row in rows]
    assert len(expected[0].first.stages[0][1][0]) == 48
    with attach(model, processor, OCProgressive(make_pruner(), steps), BUDGET) as handle:
        check_output(generate(entry, model, process(processor, rows), **DETAILS), expected)
        check_stages(handle, [row.first for row in expected])


def test_a_place_mean_counts_by_the_tokens_ids() -> None:
    entry = entries()["llava"]
    model, processor = entry.make_model(), entry.make_processor()
    pruner = make_pruner(enc_place_mean=True, pos_resolut=(16,))
    generator = torch.Generator().manual_seed(1)
    place_mean = torch.randn(pruner.place_mean.shape, generator=generator)
    pruner.place_mean.copy_(place_mean)
    steps = METHODS["oc-progressive"].rule.steps
    rule = oc_progressive(steps, make_pruner(pos_resolut=(16,)), place_mean)
    prompts = [read_prompt(entry, model, row) for row in entry.rows(TEXTS)]
    expected = [answer(entry, model, prompt, rule) for prompt in prompts]
    without = answers_by_hand("llava", "oc-progressive")
    assert [row.first.stages for row in expected] != [row.first.stages for row in without]
    with attach(model, processor, OCProgressive(pruner, steps), BUDGET) as handle:
        batch = process(processor, entry.rows(TEXTS))
        check_output(generate(entry, model, batch, **DETAILS), expected)
        check_stages(handle, [row.first for row in expected])


@some("checkpoints", ["none", "reentrant", "not reentrant"], "reentrant", "not reentrant")
@some("method", STAGED, "sparsevlm")
def test_gradients_of_two_stages_are_as_by_hand(
    entry: Entry, method: str, checkpoints: str
) -> None:
    model, processor = entry.make_model(), entry.make_processor()
    make, rule = METHODS[method]
    rows = entry.rows(TEXTS)
    batch = process(processor, rows)
    labels, mask = labels_of(entry, batch), batch["attention_mask"].bool()
    by_row = []
    for row, targets, attended in zip(rows, labels, mask, strict=True):
        prompt = read_prompt(entry, model, row)
        prompt = prompt._replace(line=entry.see(model, row, ALL).line)  # with its gradients
        by_row.append(losses(entry, model, prompt, rule, targets[attended].tolist()))
    expected = torch.cat(by_row).mean()
    expected.backward()
    gradients = {name: part.grad for name, part in model.named_parameters()}
    model.zero_grad()
    if checkpoints != "none":
        model.train()
        name = "activation_checkpointing_enable"
        enable = getattr(model, name, model.gradient_checkpointing_enable)
        enable({"use_reentrant": checkpoints == "reentrant"})
    with attach(model, processor, make(), BUDGET):
        output = model(**batch, labels=labels, use_cache=False)
        output.loss.backward()
        parts = model(**batch, labels=labels, use_cache=False, return_dict=False)
    torch.testing.assert_close(output.loss, expected, **CLOSE)
    assert torch.equal(parts[0], output.loss) and torch.equal(parts[1], output.logits)
    for name, part in model.named_parameters():
        if gradients[name] is None:
            assert part.grad is None or not part.grad.any(), name
        else:
            torch.testing.assert_close(part.grad, gradients[name], rtol=1e-3, atol=1e-4)
    assert model.lm_head.weight.grad.any()


@some("method", METHODS, "pyramiddrop", "sparsevlm")
def test_no_layer_is_asked_for_its_attention(entry: Entry, made: Any, method: str) -> None:
    model, processor = made
    config, asked, maps = model.config, [], []

    def note(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        settings = (config, config.text_config, config.vision_config)
        asked.append(given.get("output_attentions"))
        asked.extend(getattr(each, "output_attentions", None) for each in settings)
        maps.append(config.text_config._attn_implementation)

    def look(_module: Any, _args: Any, output: Any) -> None:
        assert output[1] is None

    hooks = [
        part.register_forward_pre_hook(note, with_kwargs=True)
        for part in model.modules()
        if hasattr(part, "self_attn") or hasattr(part, "q_proj")
    ]
    for layer in entry.text_of(model).layers:
        hooks.append(layer.self_attn.register_forward_hook(look))
    with attach(model, processor, METHODS[method].make(), BUDGET):
        answers(entry, model, processor, entry.rows(TEXTS))
    for hook in hooks:
        hook.remove()
    assert asked and not any(asked) and set(maps) == {"sdpa"}
