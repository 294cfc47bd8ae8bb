"""Models with layers of linear attention, which vLLM on a CPU computes in bfloat16 alone.

There greedy answers may part where two tokens are about as good. So every token that vLLM says has
to be about as good, to Hugging Face's model with `attach`, as the best one behind the same text.
Image tokens are kept at random, as others may be kept where two are about as good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import ocvtp_kernels as ocvtp
from tests.serving.vllm.asking import NEW, answers_of, engine, prompts_of
from tests.serving.vllm.checkpoints import Checkpoint
from tests.vlm.models_qwen import IMAGE, VIDEO, WORDS

ALL, BUDGET = 4000, 8
BANNED = [IMAGE, VIDEO, WORDS.index("</s>")]
# Prompts are split in the middle of images.
CHUNKED = {"max_num_batched_tokens": 48, "max_num_seqs": 4}
RANDOM = {"method": "random", "options": {"seed": 3}}
SLACK = 0.15  # logits have a standard deviation of 1.4


def say(llm: Any, prompts: Sequence[Any]) -> list[list[int]]:
    """Greedy ids."""
    from vllm import SamplingParams

    allowed = [token for token in range(len(WORDS)) if token not in BANNED]
    sampling = SamplingParams(temperature=0, max_tokens=NEW, allowed_token_ids=allowed)
    return [said for _, said in answers_of(llm.generate(prompts, sampling, use_tqdm=False))]


@torch.no_grad()
def losses(made: Checkpoint, said: Sequence[list[int]], budget: int) -> list[float]:
    """By how much the worst token of each case's answer falls short of the best one."""
    config = transformers.AutoConfig.from_pretrained(made.folder)
    kind = getattr(transformers, config.architectures[0])
    model = kind.from_pretrained(made.folder, dtype=torch.float32).eval()
    processor = transformers.AutoProcessor.from_pretrained(made.folder)
    found = []
    with ocvtp.attach(model, processor, ocvtp.make_selector("random", seed=3), budget):
        for (text, numbers), tokens in zip(made.cases, said, strict=True):
            photos = [made.photos[number] for number in numbers] or None
            batch = dict(processor(text=text, images=photos, return_tensors="pt"))
            answer = torch.tensor([tokens])
            added = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
            added["mm_token_type_ids"] = torch.zeros_like(answer)
            batch |= {name: torch.cat([batch[name], added[name]], 1) for name in added}
            logits: Tensor = model(**batch, logits_to_keep=NEW + 1).logits[0, :-1]
            logits[:, BANNED] = -torch.inf
            chosen = logits.gather(1, answer.T)[:, 0]
            found.append(float((logits.amax(1) - chosen).max()))
    return found


@pytest.mark.parametrize("setting", [{}, CHUNKED], ids=["whole", "chunked"])
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_answers_are_as_good(
    name: str, setting: dict[str, int], checkpoint: Callable[[str], Checkpoint]
) -> None:
    made = checkpoint(name)
    prompts, fewer = prompts_of(made), prompts_of(made, (BUDGET,))
    with engine(made, None, dtype="bfloat16", **setting) as llm:
        plain = say(llm, prompts)
    with engine(made, {"budget": ALL} | RANDOM, dtype="bfloat16", **setting) as llm:
        assert say(llm, prompts) == plain
        together = say(llm, [each for pair in zip(prompts, fewer, strict=True) for each in pair])
        alone = [say(llm, [prompt])[0] for prompt in fewer]
    for answers in (together[1::2], alone):
        assert max(losses(made, answers, BUDGET)) < SLACK
    assert max(losses(made, together[::2], ALL)) < SLACK
    # To a model that has all tokens other answers are better.
    assert max(losses(made, alone, ALL)) > 5 * SLACK
