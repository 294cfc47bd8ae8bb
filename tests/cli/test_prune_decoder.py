"""``ocvtp prune --method`` of methods that drop tokens in the decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

import ocvtp_kernels as ocvtp
from ocvtp_kernels.cli.methods import MethodResult
from ocvtp_kernels.cli.photo import open_photo
from ocvtp_kernels.cli.prune import NO_CHECKPOINT, QUESTION
from ocvtp_kernels.selectors.interface import place_of
from ocvtp_kernels.selectors.registry import METHODS, make_selector
from ocvtp_kernels.vlm.decoder.photos import NO_LANGUAGE_MODEL
from tests.cli.test_prune import make_photo, run
from tests.cli.test_prune_methods import prune
from tests.vlm import models, models_next, models_onevision, models_qwen

BUDGET = 5
TINY = Path(__file__).parents[2] / "bench" / "retention" / "tiny-llava"
SCENE, TINY_PRUNER = TINY.parent / "scene.png", TINY / "ocvtp" / "pruner.safetensors"
IN_DECODER = ["fastv", "dart", "pyramiddrop", "sparsevlm", "vlm-pruner"]
QWEN_TEMPLATE = """
{%- for message in messages %}{% for part in message['content'] %}
{{- '<|vision_start|> <|image_pad|> <|vision_end|>' if part['type'] == 'image' else part['text'] }}
{%- endfor %}{% endfor %}"""


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return make_photo(tmp_path / "garden.png")


def save(folder: Path, *parts: Any) -> Path:
    for part in parts:
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a chat template."""
    model = models.make_llava(text_config=models.make_text_config(num_hidden_layers=4))
    return save(tmp_path_factory.mktemp("llava"), model, models.make_llava_processor())


def by_method(record: dict[str, Any]) -> dict[str, Any]:
    return {one["method"]: one for one in record["methods"]}


def assert_kept(
    result: dict[str, Any], model: Any, processor: Any, selector: Any, budget: int, batch: Any
) -> None:
    """That a method kept what it keeps for a user who generates."""
    with ocvtp.attach(model, processor, selector, budget) as handle, torch.no_grad():
        model.generate(**batch, max_new_tokens=1, do_sample=False)
    last = handle.last
    assert last is not None
    assert result["place"] == "decoder" and result["ids"] == last.ids[0].tolist()
    stages = [{"layer": layer, "num_tokens": len(ids[0])} for layer, ids in last.stages]
    assert result["stages"] == stages and stages[-1]["num_tokens"] == len(result["ids"])


@pytest.mark.parametrize("method", [*IN_DECODER, "oc-progressive"])
def test_a_saved_llava_keeps_the_same_tokens_when_it_answers(tmp_path: Path, method: str) -> None:
    options: dict[str, Any] = {}
    if method == "oc-progressive":
        options = {"pruner": ocvtp.OCPruner.from_checkpoint(TINY_PRUNER)}
    budget, question = 64 if method == "sparsevlm" else 22, "what colour is the star ?"
    given = ["--model", TINY, "--budget", budget, "--checkpoint", TINY_PRUNER]
    record = prune(SCENE, tmp_path, *given, "--method", method, "--question", question)
    model = transformers.AutoModelForImageTextToText.from_pretrained(TINY, dtype=torch.float32)
    processor = transformers.AutoProcessor.from_pretrained(TINY)
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    ]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    batch = processor(text=prompt, images=Image.open(SCENE).convert("RGB"), return_tensors="pt")
    selector = make_selector(method, **options)
    (result,) = record["methods"]
    assert_kept(result, model.eval(), processor, selector, budget, batch)
    assert record["question"] == question and not record["left_out"]


def test_merging_in_the_tower_is_that_of_the_attached_model(tmp_path: Path) -> None:
    record = prune(SCENE, tmp_path, "--model", TINY, "--budget", 22, "--method", "tome")
    (result,) = record["methods"]
    model = transformers.AutoModelForImageTextToText.from_pretrained(TINY, dtype=torch.float32)
    processor = transformers.AutoProcessor.from_pretrained(TINY)
    pixels = processor.image_processor(Image.open(SCENE).convert("RGB"), return_tensors="pt")
    with ocvtp.attach(model.eval(), processor, make_selector("tome"), 22) as handle:
        with torch.no_grad():
            model.model.get_image_features(pixels["pixel_values"])
        last = handle.last
    assert last is not None and last.groups is not None and result["place"] == "tower"
    assert result["ids"] == last.ids[0].tolist()
    assert result["groups"] == last.groups[0].tolist()
    assert record["num_tokens"] == len(result["groups"])
    assert MethodResult(**result | {"stages": []}).note == f"merged · {result['coverage']:.3f}"


def test_every_method_of_a_model(tmp_path: Path) -> None:
    given = ["--model", TINY, "--budget", 22, "--checkpoint", TINY_PRUNER, "--method", "all"]
    record = prune(SCENE, tmp_path, *given)
    assert set(record["left_out"]) == {"trim", "sparsevlm"}
    assert record["left_out"]["sparsevlm"].startswith("budget: expected one of 64, 96, 128, 192")
    places = {name: one["place"] for name, one in by_method(record).items()}
    assert places == {
        name: place if (place := place_of(METHODS[name]())) in ("decoder", "tower") else "encoder"
        for name in METHODS.keys() - record["left_out"].keys()
    } | {"oc-pruner": "encoder", "oc-progressive": "decoder"}
    for name, one in by_method(record).items():
        assert one["ids"] == sorted(set(one["ids"])) and len(one["ids"]) == 22, name
        assert bool(one["stages"]) == (one["place"] == "decoder") == (one["found"] is None)


def test_without_a_chat_template_the_photo_stands_before_the_question(
    photo: Path, llava: Path, tmp_path: Path
) -> None:
    given = ["--model", llava, "--budget", BUDGET, "--method", "all"]
    record = prune(photo, tmp_path / "out", *given)
    assert record["question"] == QUESTION
    assert record["left_out"]["oc-progressive"] == NO_CHECKPOINT
    processor = models.make_llava_processor()
    model = transformers.LlavaForConditionalGeneration.from_pretrained(llava).eval()
    batch = models.prepare(processor, [f"<image>\n{QUESTION}"], [open_photo(photo)])
    for method in ("fastv", "dart", "pyramiddrop", "vlm-pruner"):
        result = by_method(record)[method]
        assert_kept(result, model, processor, make_selector(method), BUDGET, batch)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_qwen_keeps_the_same_tokens_when_it_answers(tmp_path: Path, name: str) -> None:
    model = models_qwen.make_model(name=name, text={"num_hidden_layers": 4})
    processor = models_qwen.make_processor(name)
    folder = save(tmp_path / "model", model, processor.image_processor, processor.tokenizer)
    (folder / "chat_template.jinja").write_text(QWEN_TEMPLATE)
    photo, question = make_photo(tmp_path / "garden.png", size=(170, 130)), "what is this ?"
    record = prune(
        *(photo, tmp_path, "--model", folder, "--budget", BUDGET),
        *("--method", "all", "--question", question),
    )
    prompt = f"<|vision_start|> <|image_pad|> <|vision_end|>{question}"
    batch = models_qwen.process(processor, [(prompt, [open_photo(photo)])])
    for method in ("fastv", "dart", "pyramiddrop", "vlm-pruner"):
        result = by_method(record)[method]
        assert_kept(result, model, processor, make_selector(method), BUDGET, batch)
    # The photo fits whole.
    record = prune(photo, tmp_path, "--model", folder, "--budget", 40, "--method", "pyramiddrop")
    (result,) = record["methods"]
    num_tokens = record["num_tokens"]
    assert result["ids"] == list(range(num_tokens))
    assert [stage["num_tokens"] for stage in result["stages"]] == [num_tokens] * 3


def make_clip(folder: Path) -> None:
    save(folder, models.make_tower())


def make_next(folder: Path) -> None:
    save(folder, models_next.make_llava_next(), models_next.make_next_processor())


def make_onevision(folder: Path) -> None:
    processor = models_onevision.make_onevision_processor()
    save(folder, models_onevision.make_onevision(), processor.image_processor)


def make_linear(folder: Path) -> None:
    processor = models_qwen.make_processor("qwen3_5")
    save(folder, models_qwen.make_model(name="qwen3_5"), processor.image_processor)


def make_untold(folder: Path) -> None:
    save(folder, models.make_llava(), models.make_llava_processor().image_processor)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_clip, NO_LANGUAGE_MODEL),
        (make_next, "needs image tokens that are one grid, which LLaVA-NeXT's are not"),
        (make_onevision, "needs image tokens that are one grid, which LLaVA-OneVision's are not"),
        (make_linear, "is not supported for Qwen3.5, as most of its layers are linear attention"),
        (make_untold, "needs the model's tokenizer, which cannot be loaded: "),
    ],
)
def test_a_model_without_a_decoder_that_can_be_drawn(
    photo: Path, tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(tmp_path / "model")
    given = ["--model", tmp_path / "model", "--budget", BUDGET]
    record = prune(photo, tmp_path / "out", *given, "--method", "all")
    if make is not make_linear:  # whose keys are not known
        assert by_method(record)["vlm-pruner"]["place"] == "encoder"
    for method in set(IN_DECODER) - {"vlm-pruner"}:
        assert record["left_out"][method].startswith(reason), method
    assert record["question"] is None
    result = run("prune", photo, *given, "--method", "fastv", "--output", tmp_path / "none")
    assert result.exit_code == 1 and reason in result.output
    result = run("prune", photo, *given, "--method", "all", "--question", "Who?")
    assert result.exit_code == 2
    assert f"question: expected none, as nothing is asked: {reason}" in result.output


def test_a_llava_that_takes_the_cls_token_too_is_no_grid(photo: Path, tmp_path: Path) -> None:
    text = models.make_text_config(num_hidden_layers=4)
    model = models.make_llava(text_config=text, vision_feature_select_strategy="full")
    save(tmp_path / "model", model, models.make_llava_processor())
    record = prune(
        *(photo, tmp_path / "out", "--model", tmp_path / "model", "--budget", BUDGET),
        *("--method", "all"),
    )
    for method in ("fastv", "dart", "pyramiddrop", "vlm-pruner"):
        assert "an image of 17 tokens whose grid is (4, 4)" in record["left_out"][method]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "all"], NO_LANGUAGE_MODEL),
        (["--model", "MODEL", "--method", "divprune"], "stands before the language model"),
    ],
)
def test_a_question_that_nothing_asks(
    photo: Path, llava: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    options = [str(llava) if option == "MODEL" else option for option in options]
    given = ["--question", "Who?", "--budget", BUDGET, "--output", tmp_path / "out"]
    result = run("prune", photo, *options, *given)
    assert result.exit_code == 2 and "question: expected none" in result.output
    assert words in result.output and not (tmp_path / "out").exists()


def test_what_a_decoder_cannot_do_is_the_reason(photo: Path, llava: Path, tmp_path: Path) -> None:
    given = ["--model", llava, "--budget", BUDGET, "--output", tmp_path / "out"]
    result = run("prune", photo, *given, "--method", "fastv", "--question", "Which <image>?")
    assert result.exit_code == 1
    assert "question: expected a prompt with one placeholder of a photo, got 2" in result.output
    result = run("prune", photo, *given, "--method", "oc-progressive")
    assert result.exit_code == 2 and NO_CHECKPOINT in result.output
