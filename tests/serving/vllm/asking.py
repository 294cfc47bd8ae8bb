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
from tests.serving.vllm.checkpoints import Checkpoint

NEW, BLOCK = 24, 32
# The length of a prompt, and the ids of its answer.
Answer = tuple[int, list[int]]


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
    config = transformers.AutoConfig.from_pretrained(checkpoint.folder)
    kind = getattr(transformers, config.architectures[0])
    model = kind.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    processor = transformers.AutoProcessor.from_pretrained(checkpoint.folder)
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
        # A Qwen's prompt keeps its placeholders.
        grids = inputs["image_grid_thw"].prod(1) // 4 if "image_grid_thw" in inputs else None
        ids = kept()
        dropped = int(grids.sum()) - sum(map(len, ids)) if grids is not None and len(ids) else 0
        answers.append((length - dropped, output[0, length:].tolist()))
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
