"""Methods of several stages attached and taken off, copied, in threads; what is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("tokenizers")

import ocvtp_kernels as ocvtp
from ocvtp_kernels import attach, make_selector
from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, Stage, reads_of
from tests.vlm.families import BUDGET, NEW, Entry, Row, answers, entries, generate, process
from tests.vlm.families._schedules import (
    METHODS,
    Rule,
    TwoStages,
    answer,
    decode,
    keep_by_norm,
    read_prompt,
)
from tests.vlm.families._suite import (
    CLOSE,
    DETAILS,
    PACKED,
    TEXTS,
    describe,
    ids_of,
    run_in_threads,
    skip_without_grid,
)
from tests.vlm.families.test_schedules import check_output, check_stages, some, stages_in
from tests.vlm.families.test_videos_and_packing import pack
from tests.vlm.models_qwen import make_model, needs_encoded_images

pytestmark = pytest.mark.usefixtures("one_thread")


@some("method", METHODS, "pyramiddrop", "sparsevlm")
def test_every_thread_gets_the_answer_that_it_gets_alone(
    entry: Entry, method: str, quick_switches: None
) -> None:
    model, processor = entry.make_model(), entry.make_processor()
    texts = [TEXTS[:1], TEXTS[:2], TEXTS[1:2], TEXTS[2:]]
    batches = [process(processor, entry.rows(some, index)) for index, some in enumerate(texts)]
    with attach(model, processor, METHODS[method].make(), BUDGET) as handle:
        alone, stages, found = [], [], []
        for batch in batches:
            alone.append(generate(entry, model, batch))
            stages.append(stages_in(handle))

        def ask(index: int) -> None:
            torch.set_num_threads(1)
            for _ in range(3):
                same = torch.equal(generate(entry, model, batches[index]), alone[index])
                found.append(same and stages_in(handle) in stages)

        run_in_threads(*(partial(ask, index) for index in range(len(batches))))
    assert len(found) == 12 and all(found)


@pytest.mark.parametrize("duplicate", ["pickled", "copied"])
@some("method", METHODS, "fastv", "sparsevlm", "oc-progressive")
def test_a_copy_prunes_as_the_original(entry: Entry, method: str, duplicate: str) -> None:
    model, processor = entry.make_model(), entry.make_processor()
    rows = entry.rows(TEXTS)
    with attach(model, processor, METHODS[method].make(), BUDGET) as handle:
        both = (model, processor)
        twin, theirs = (
            copy.deepcopy(both) if duplicate == "copied" else pickle.loads(pickle.dumps(both))
        )
        expected = answers(entry, model, processor, rows)
        assert torch.equal(answers(entry, twin, theirs, rows), expected)
        own = ocvtp.Handle.of(twin)
        assert own is not None and own is not handle and stages_in(own) == stages_in(handle)
        own.remove()
        assert torch.equal(answers(entry, model, processor, rows), expected)
    whole = answers(entry, model, processor, rows)
    assert torch.equal(answers(entry, twin, theirs, rows), whole)


@some("method", METHODS, "fastv", "sparsevlm", "oc-progressive")
def test_removing_restores_everything(entry: Entry, method: str) -> None:
    model, processor = entry.make_model(), entry.make_processor()
    rows = entry.rows(TEXTS)
    with torch.no_grad():
        expected = model(**process(processor, rows)).logits
        before = describe(model, processor)
        names = [set(vars(part)) for part in model.modules()]
        with attach(model, processor, METHODS[method].make(), BUDGET):
            pruned = model(**process(processor, rows)).logits
        assert not torch.allclose(pruned, expected, atol=1e-3)
        assert describe(model, processor) == before
        assert [set(vars(part)) for part in model.modules()] == names
        assert torch.equal(model(**process(processor, rows)).logits, expected)


@some("method", METHODS, "pyramiddrop", "sparsevlm")
def test_stages_are_timed(entry: Entry, made: Any, method: str) -> None:
    model, processor = made
    with attach(model, processor, METHODS[method].make(), BUDGET, timed=True) as handle:
        assert handle.last is None
        for _ in range(2):
            answers(entry, model, processor, entry.rows(TEXTS))
            assert set(handle.last.times) == {"encoder", "pruner"}
            assert all(0 < seconds < 60 for seconds in handle.last.times.values())


@some("method", METHODS, "fastv", "pyramiddrop", "sparsevlm")
@torch.no_grad()
def test_packed_samples_are_refused_where_text_is_asked(
    entry: Entry, made: Any, method: str
) -> None:
    model, processor = made
    rows, make = entry.rows(PACKED[1:]), METHODS[method].make
    reads_text = bool(reads_of(make()) & {"text_attention", "text_pivots"})
    with attach(model, processor, make(), BUDGET) as handle:
        batch, _ = pack(entry, model, processor, [rows])
        ends = torch.tensor([0, batch["input_ids"].shape[1]], dtype=torch.int32)
        if reads_text:
            with pytest.raises(NotImplementedError, match="position_ids: rows of several samples"):
                model(**batch, use_cache=False)
            with pytest.raises(NotImplementedError, match="cu_seq_lens_q: not supported by meth"):
                model(**batch, cu_seq_lens_q=ends, use_cache=False)
            return
        logits = model(**batch, use_cache=False).logits[0]
        by_hand = [
            decode(entry, model, read_prompt(entry, model, row), METHODS[method].rule)
            for row in rows
        ]
        check_stages(handle, by_hand)
    start = 0
    for row, expected in zip(rows, by_hand, strict=True):
        found = logits[start:][expected.columns]
        torch.testing.assert_close(found, model.lm_head(expected.hidden), **CLOSE)
        start += process(processor, [row])["input_ids"].shape[1]


@torch.no_grad()
def test_vlm_pruner_takes_packed_samples(entry: Entry, made: Any) -> None:
    skip_without_grid(entry)
    model, processor = made
    rows = entry.rows(PACKED[1:])
    with attach(model, processor, make_selector("vlm-pruner"), BUDGET) as handle:
        batch, _ = pack(entry, model, processor, [rows])
        logits, start = model(**batch, use_cache=False).logits[0], 0
        ids = ids_of(handle)
        for row in rows:
            alone = process(processor, [row])
            expected = model(**alone).logits[0]
            if row[1]:
                assert ids_of(handle) == [ids.pop(0) for _ in row[1]]
            is_text = alone["input_ids"][0] != entry.image_id
            found = logits[start : start + len(is_text)][is_text]
            torch.testing.assert_close(found, expected[is_text], **CLOSE)
            start += len(is_text)


class Steps(TwoStages):
    """Stages before some layers, of any counts."""

    def __init__(self, layers: Sequence[Any], count: int = 9) -> None:
        self.layers, self.count = layers, count

    def stages(self, budget: int, depth: int) -> tuple[Stage, ...]:
        return tuple(Stage(layer, partial(min, self.count), self) for layer in self.layers)


@pytest.mark.parametrize(
    ("selector", "error", "message"),
    [
        (partial(make_selector, "fastv", layer=3), ValueError, "layer: expected 1 to 2, got 3"),
        (partial(Steps, [0, 1]), ValueError, "layer: expected 1 to 2, got 0"),
        (partial(Steps, [1, 3]), ValueError, "layer: expected 1 to 2, got 3"),
        (partial(Steps, [2, 1]), ValueError, r"layer: expected rising layers, .* got \[2, 1\]"),
        (partial(Steps, [1, 1]), ValueError, r"layer: expected rising layers, .* got \[1, 1\]"),
        (partial(Steps, []), ValueError, r"layer: expected rising layers, at least one, got \[\]"),
        (partial(Steps, [1.0]), TypeError, "layer: expected a whole number, got 1.0"),
        (partial(make_selector, "pyramiddrop"), ValueError, "schedule: expected one for a decoder"),
        (partial(make_selector, "sparsevlm"), ValueError, "budget: expected one of 64, 96, 128"),
    ],
)
def test_layers_that_are_none_are_refused(
    entry: Entry, made: Any, selector: Callable[[], Any], error: type[Exception], message: str
) -> None:
    model, processor = made
    before = describe(model, processor)
    with pytest.raises(error, match=message):
        attach(model, processor, selector(), BUDGET)
    assert describe(model, processor) == before


def test_a_stage_keeps_a_token_at_least(entry: Entry, made: Any) -> None:
    model, processor = made
    with (
        attach(model, processor, Steps([1], 0), BUDGET),
        pytest.raises(ValueError, match="stages: expected at least 1 token of an image, got"),
    ):
        answers(entry, model, processor, entry.rows(TEXTS))


class MergesNormed(TwoStages):
    """Replaces hidden states by some that are behind the last norm."""

    final_norm = True

    def __call__(self, inputs: SelectorInputs, budget: int) -> Any:
        ids = super().__call__(inputs, budget)
        return Selected(ids, gather_tokens(inputs.final_tokens, ids))


def test_states_behind_the_last_norm_are_not_merged(entry: Entry, made: Any) -> None:
    model, processor = made
    with (
        attach(model, processor, MergesNormed(), BUDGET),
        pytest.raises(ValueError, match="final_norm: expected no tokens of MergesNormed"),
    ):
        answers(entry, model, processor, entry.rows(TEXTS))


def test_a_language_model_without_a_last_norm_is_refused(entry: Entry) -> None:
    model, processor = entry.make_model(), entry.make_processor()
    del entry.text_of(model).norm
    with pytest.raises(ValueError, match="model: expected a language model with a last norm"):
        attach(model, processor, make_selector("dart"), BUDGET)
    attach(model, processor, make_selector("fastv"), BUDGET).remove()


def fuse_projections(attention: Any) -> None:
    attention.qkv_proj = attention.q_proj
    del attention.q_proj


def forget_scaling(attention: Any) -> None:
    del attention.scaling


def norm_all_heads(attention: Any) -> None:
    attention.q_norm = nn.RMSNorm(attention.q_proj.out_features)


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (fuse_projections, "q_proj"),
        (forget_scaling, "scaling"),
        (norm_all_heads, "q_norm of single heads"),
    ],
)
def test_attention_that_cannot_be_taken_apart_is_refused(
    entry: Entry, change: Callable[[Any], None], missing: str
) -> None:
    model, processor = entry.make_model(), entry.make_processor()
    attention = entry.text_of(model).layers[1].self_attn
    change(attention)
    before = describe(model, processor)
    for method, (make, _) in METHODS.items():
        if "text_attention" not in make().needs:
            attach(model, processor, make(), BUDGET).remove()
            continue
        message = f"own modules; {type(attention).__name__} has no {missing}"
        with pytest.raises(ValueError, match=message):
            attach(model, processor, make(), BUDGET)
        assert describe(model, processor) == before, method


class Breaks(TwoStages):
    """Fails once, at its second stage."""

    failures = 1

    def __call__(self, inputs: SelectorInputs, budget: int) -> Tensor:
        if budget == BUDGET and self.failures:
            self.failures -= 1
            raise ArithmeticError
        return super().__call__(inputs, budget)


def test_an_error_between_two_stages_leaves_the_model_usable(entry: Entry, made: Any) -> None:
    model, processor = made
    rows = entry.rows(TEXTS)
    with attach(model, processor, TwoStages(), BUDGET):
        expected = answers(entry, model, processor, rows)
    with attach(model, processor, Breaks(), BUDGET):
        with pytest.raises(ArithmeticError):
            answers(entry, model, processor, rows)
        assert torch.equal(answers(entry, model, processor, rows), expected)


@needs_encoded_images("qwen3_vl")
@pytest.mark.parametrize("steps", [[(1, 9), (2, BUDGET)], [(2, 7), (4, BUDGET)]], ids=str)
@pytest.mark.parametrize("by_layer", [True, False])
@torch.no_grad()
def test_stages_within_the_layers_of_deepstack(steps: Any, by_layer: bool) -> None:
    entry = entries()["qwen3_vl"]
    vision, text = {"deepstack_visual_indexes": [0, 1, 3]}, {"num_hidden_layers": 5}
    model, processor = make_model(name=entry.name, vision=vision, text=text), entry.make_processor()
    rows = entry.rows(TEXTS)
    prompts = [read_prompt(entry, model, row) for row in rows]
    assert len(prompts[0].line.deep) == 3

    class Own(TwoStages):
        def stages(self, budget: int, depth: int) -> tuple[Stage, ...]:
            return tuple(Stage(layer, partial(min, count), self) for layer, count in steps)

    expected = [answer(entry, model, prompt, Rule(steps, keep_by_norm)) for prompt in prompts]
    with attach(model, processor, Own(), BUDGET) as handle:
        batch = process(processor, rows)
        check_output(generate(entry, model, batch, **DETAILS), expected)
        check_stages(handle, [row.first for row in expected])
        logits = model(**batch, output_hidden_states=by_layer, use_cache=False).logits
    for mask, found, row in zip(batch["attention_mask"], logits, expected, strict=True):
        kept = found[mask.bool()][row.first.columns]
        torch.testing.assert_close(kept, model.lm_head(row.first.hidden), **CLOSE)


@some("method", METHODS, "sparsevlm")
def test_the_encoder_runs_once_a_prompt(entry: Entry, made: Any, method: str) -> None:
    model, processor = made
    runs: list[int] = []
    hook = model.get_submodule(entry.tower).register_forward_hook(lambda *_: runs.append(1))
    with attach(model, processor, METHODS[method].make(), BUDGET):
        answers(entry, model, processor, entry.rows(TEXTS))
    hook.remove()
    assert len(runs) == 1


# The text of others is the guessed one too, since the prompt's first call has it.
@some("method", METHODS, "pyramiddrop", "sparsevlm")
@torch.no_grad()
def test_an_answer_to_learn_chooses_nothing(entry: Entry, made: Any, method: str) -> None:
    model, processor = made
    prompt = process(processor, entry.rows(TEXTS[:2]))
    tokens = torch.tensor([[7, 11, 9, 12], [10, 8, 7, 11]])
    fill = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    batch = {
        name: torch.cat([part, fill.get(name, torch.zeros_like(tokens))], 1)
        if part.shape == prompt["input_ids"].shape
        else part
        for name, part in prompt.items()
    }
    labels = batch["input_ids"].clone()
    labels[:, : -tokens.shape[1]] = -100
    with attach(model, processor, METHODS[method].make(), BUDGET) as handle:
        model(**prompt)
        expected = stages_in(handle)
        model(**batch, labels=labels)
        assert stages_in(handle) == expected
        model(**batch)
        unlabelled = stages_in(handle)
        model(**batch, labels=batch["input_ids"])
        assert stages_in(handle) == unlabelled
    reads_text = method not in ("oc-progressive", "its own")
    assert (unlabelled != expected) == reads_text


@pytest.mark.parametrize("method", ["oc-progressive", "its own"])
def test_guessed_tokens_answer_as_one_by_one(entry: Entry, made: Any, method: str) -> None:
    model, processor = made
    batch = process(processor, entry.rows(["{} a cat a cat a"]))
    with attach(model, processor, METHODS[method].make(), BUDGET):
        expected = generate(entry, model, batch)
        assert torch.equal(generate(entry, model, batch, prompt_lookup_num_tokens=3), expected)


@some("dtype", [torch.bfloat16, torch.float16], torch.bfloat16)
@some("method", METHODS, "sparsevlm")
def test_half_precision(entry: Entry, method: str, dtype: torch.dtype) -> None:
    model, processor = entry.make_model().to(dtype), entry.make_processor()
    with attach(model, processor, METHODS[method].make(), BUDGET) as handle:
        batch = process(processor, entry.rows(TEXTS))
        batch["pixel_values"] = batch["pixel_values"].to(dtype)
        output = generate(entry, model, batch, max_new_tokens=2, **DETAILS)
        assert all(logits.isfinite().all() for logits in output.logits)
        for _, ids in stages_in(handle):
            assert all(image == sorted(set(image)) for image in ids)


@pytest.mark.parametrize("positions", ["original", "consecutive"])
@some("method", ["pyramiddrop", "sparsevlm"], "pyramiddrop")
def test_decoding_compiles_into_one_graph(method: str, positions: str) -> None:
    entry = entries()["llava"]
    model, processor = entry.make_model(), entry.make_processor()
    batch = process(processor, entry.rows(TEXTS))
    compiled = transformers.CompileConfig(backend="eager", fullgraph=True)
    # As generate does by itself on CUDA.
    compiled._compile_all_devices = True
    with attach(model, processor, METHODS[method].make(), BUDGET, positions=positions):
        expected = generate(entry, model, batch, max_new_tokens=2 * NEW)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        static = {"cache_implementation": "static", "compile_config": compiled}
        found = generate(entry, model, batch, max_new_tokens=2 * NEW, **static)
        assert torch.equal(found, expected)
        assert dict(torch._dynamo.utils.counters["stats"])["unique_graphs"] == 1
        assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@torch.no_grad()
def test_what_is_kept_depends_on_no_other_row(name: str) -> None:
    entry = entries()[name]
    model, processor = entry.make_model(), entry.make_processor()
    rows = entry.rows([*TEXTS, "{} and {} is {} red red blue ?"])
    for method, (make, _) in METHODS.items():

        def ask(rows: Sequence[Row], method: str = method) -> None:
            if method == "dart":  # norms of rotated keys depend on positions, which generate tells
                answers(entry, model, processor, rows)
            else:
                model(**process(processor, rows))

        with attach(model, processor, make(), BUDGET) as handle:
            ask(rows)
            together = stages_in(handle)
            for row in rows:
                if row[1]:
                    ask([row])
                    for (_, ids), (_, alone) in zip(together, stages_in(handle), strict=True):
                        assert [ids.pop(0) for _ in alone] == alone
