from __future__ import annotations

from typing import Any

import pytest
import transformers

import ocvtp_kernels as ocvtp
from tests.evaluation.lmms_eval.running import evaluate, make
from tests.serving.vllm.checkpoints import Checkpoint, make_checkpoint

BUDGET = 3
TEMPLATE = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }} {% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|> <|image_pad|> <|vision_end|> {% else %}{{ c['text'] }} {% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A Qwen2.5-VL of random weights."""
    made = make_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("qwen") / "model")
    processor = transformers.AutoProcessor.from_pretrained(made.folder)
    processor.chat_template = TEMPLATE
    processor.save_pretrained(made.folder)
    return made


def qwen(name: str, simple: bool, checkpoint: Checkpoint, **arguments: Any) -> Any:
    # Its pictures become 4 by 4 tokens.
    pixels = {"min_pixels": 16 * 28**2, "max_pixels": 16 * 28**2}
    return make(name, simple, pretrained=str(checkpoint.folder), **pixels, **arguments)


@pytest.mark.parametrize("simple", [False, True], ids=["chat", "simple"])
def test_answers_equal_those_of_attach(simple: bool, checkpoint: Checkpoint) -> None:
    plain, _ = evaluate(qwen("qwen2_5_vl", simple, checkpoint))
    own = qwen("qwen2_5_vl", simple, checkpoint)
    pruner = ocvtp.OCPruner.from_checkpoint(checkpoint.pruner)
    ocvtp.attach(own.model, own.processor, pruner, BUDGET)
    want, _ = evaluate(own)
    model = qwen("qwen2_5_vl_ocvtp", simple, checkpoint, budget=BUDGET, pruner=checkpoint.pruner)
    answers, _ = evaluate(model)
    assert any(answers) and answers == want != plain
    assert model.handle.last.ids[0].shape[-1] == BUDGET
    unpruned, _ = evaluate(qwen("qwen2_5_vl_ocvtp", simple, checkpoint, budget=0))
    assert unpruned == plain
