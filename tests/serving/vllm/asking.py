"""The same prompts asked of vLLM and of Hugging Face's model: prompt lengths and greedy ids."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import transformers

import ocvtp_kernels as ocvtp
from ocvtp_kernels.vlm.columns.tiles import find_runs
from tests.serving.vllm.checkpoints import Checkpoint

NEW, BLOCK = 24, 32
# The length of a prompt, and the ids of its answer.
Answer = tuple[int, list[int]]


def load(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """Hugging Face's model in float32, and its processor."""
    config = transformers.AutoConfig.from_pretrained(checkpoint.folder)
    kind = getattr(transformers, config.architectures[0])
    model = kind.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    return model, transformers.AutoProcessor.from_pretrained(checkpoint.folder)


def ask_hugging_face(
    checkpoint: Checkpoint,
    budget: int | None,
    selector: Any = None,
    process: Callable[..., Any] = lambda processor, **inputs: processor(**inputs),
    **options: Any,
) -> list[Answer]:
    """What the model answers with the selector attached, the pruner if None.

    Args:
        checkpoint: of the model, with its prompts.
        budget: None: nothing is attached.
        selector: chooses the tokens.
        process: makes the model's inputs.
        options: of `attach`.
    """
    model, processor = load(checkpoint)
    if budget is None:
        return _generate(checkpoint, model, partial(process, processor), lambda: [])
    if selector is None:
        selector = ocvtp.OCPruner.from_checkpoint(checkpoint.pruner)
    with ocvtp.attach(model, processor, selector, budget, **options) as handle:
        return _generate(checkpoint, model, partial(process, processor), lambda: handle.last.ids)


def _generate(
    checkpoint: Checkpoint, model: Any, process: Callable[..., Any], kept: Callable[[], Any]
) -> list[Answer]:
    answers = []
    for text, numbers in checkpoint.cases:
        photos = [checkpoint.photos[number] for number in numbers] or None
        inputs = process(text=text, images=photos, return_tensors="pt")
        length = inputs.input_ids.shape[1]
        with torch.no_grad():
            output = model.generate(
                **inputs, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW
            )
        ids, dropped = kept() if photos else [], 0
        if len(ids) and not model.config.model_type.startswith("llava"):
            # Others' prompts keep their placeholders.
            placeholders = inputs.input_ids == model.config.image_token_id
            dropped = int(placeholders.sum()) - sum(map(len, ids))
        answers.append((length - dropped, output[0, length:].tolist()))
    return answers


@torch.no_grad()
def ask_without_gaps(checkpoint: Checkpoint, budget: int) -> list[Answer]:
    """What the model of tiles answers, without `attach`, on the kept tokens one behind the other.

    `attach` says which those are.
    """
    model, processor = load(checkpoint)
    selector = ocvtp.OCPruner.from_checkpoint(checkpoint.pruner)
    answers = []
    for text, numbers in checkpoint.cases:
        photos = [checkpoint.photos[number] for number in numbers] or None
        inputs = processor(text=text, images=photos, return_tensors="pt")
        embeddings = model.get_input_embeddings()(inputs.input_ids)[0]
        stays = torch.ones(len(embeddings), dtype=torch.bool)
        if photos:
            with ocvtp.attach(model, processor, selector, budget) as handle:
                model(**inputs)
            is_image = inputs.input_ids[0] == model.config.image_token_id
            pooled = model.model.get_image_features(inputs["pixel_values"]).pooler_output
            embeddings[is_image] = pooled.flatten(0, 1)
            stays = ~is_image
            for run, ids in zip(find_runs(is_image[None]), handle.last.ids, strict=True):
                stays[run.start + ids] = True
        answer = model.generate(
            inputs_embeds=embeddings[stays][None], do_sample=False, max_new_tokens=NEW
        )
        answers.append((int(stays.sum()), answer[0].tolist()))
    return answers


@contextmanager
def engine(checkpoint: Checkpoint, ocvtp: dict[str, Any] | None, **settings: Any) -> Iterator[Any]:
    """An engine of vLLM in this process, on the checkpoint with an ``ocvtp`` setting."""
    from vllm import LLM

    overrides = dict(settings.pop("hf_overrides", {}))
    if ocvtp is not None:
        needs_pruner = ocvtp.get("method", "oc-pruner") == "oc-pruner"
        overrides["ocvtp"] = ({"pruner": checkpoint.pruner} if needs_pruner else {}) | ocvtp
    defaults: dict[str, Any] = {
        "model": str(checkpoint.folder),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 2048,
        "block_size": BLOCK,
        "limit_mm_per_prompt": {"image": 4},
        "distributed_executor_backend": "uni",
        "hf_overrides": overrides,
    }
    llm = LLM(**defaults | settings)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def prompts_of(checkpoint: Checkpoint, budgets: Sequence[int | None] = (None,)) -> list[Any]:
    """The cases as vLLM takes them, each with every budget of its own; None: the server's."""
    prompts = []
    for text, numbers in checkpoint.cases:
        for budget in budgets if numbers else budgets[:1]:
            prompt: dict[str, Any] = {"prompt": text}
            if numbers:
                photos = [checkpoint.photos[number] for number in numbers]
                prompt["multi_modal_data"] = {"image": photos}
            if budget is not None and numbers:
                prompt["mm_processor_kwargs"] = {"ocvtp_budget": budget}
            prompts.append(prompt)
    return prompts


def generate(llm: Any, prompts: Sequence[Any]) -> list[Any]:
    """The outputs of vLLM."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=NEW, min_tokens=NEW)
    outputs: list[Any] = llm.generate(prompts, sampling, use_tqdm=False)
    return outputs


def answers_of(outputs: Sequence[Any]) -> list[Answer]:
    """The answers among vLLM's outputs."""
    return [(len(each.prompt_token_ids), list(each.outputs[0].token_ids)) for each in outputs]


def ask(llm: Any, prompts: Sequence[Any]) -> list[Answer]:
    """What vLLM answers."""
    return answers_of(generate(llm, prompts))
