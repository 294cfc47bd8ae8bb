"""One photo, one question: a LLaVA's answer with all image tokens, and with the pruner's few.

    python examples/llava.py photo.jpg "What is this?" --model llava-hf/llava-1.5-7b-hf

Without --model it runs a tiny LLaVA with random weights, offline; its answers mean nothing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from ocvtp_kernels import OCPruner, PrunerConfig, attach

TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "USER", "ASSISTANT", ":", "?"]
TOKENS += ["what", "is", "in", "this", "picture", "a", "cat", "rocket", "and", "red", "blue"]


def make_tiny() -> tuple[Any, Any]:
    """A LLaVA of 576 image tokens, small enough to be made on the spot."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({t: i for i, t in enumerate(TOKENS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    side = {"height": 336, "width": 336}
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=side),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            **sizes, num_hidden_layers=6, image_size=336, patch_size=14
        ),
        text_config=transformers.LlamaConfig(
            **sizes, num_hidden_layers=2, vocab_size=len(TOKENS), pad_token_id=0, eos_token_id=2
        ),
        image_token_id=TOKENS.index("<image>"),
        image_seq_length=576,
    )
    torch.manual_seed(0)
    return transformers.LlavaForConditionalGeneration(config), processor


def load(source: str | None) -> tuple[Any, Any]:
    """The model and its processor, of the hub or of a folder; the tiny one if None."""
    if source is None:
        model, processor = make_tiny()
    else:
        # Half precision is several times slower than float32 on most CPUs.
        dtype = torch.float16 if torch.cuda.is_available() else torch.float32
        model = transformers.AutoModelForImageTextToText.from_pretrained(source, dtype=dtype)
        processor = transformers.AutoProcessor.from_pretrained(source)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), processor


@torch.inference_mode()
def answer(model: Any, processor: Any, photo: Image.Image, question: str, length: int) -> str:
    """The model's answer, after a line with the tokens and the seconds it took."""
    prompt = f"USER: <image>\n{question} ASSISTANT:"
    inputs = processor(text=prompt, images=photo, return_tensors="pt").to(model.device, model.dtype)
    image_tokens = int((inputs["input_ids"] == model.config.image_token_id).sum())
    start = time.perf_counter()
    # Random weights would answer with placeholders too.
    suppressed = [model.config.image_token_id]
    out = model.generate(
        **inputs, max_new_tokens=length, do_sample=False, suppress_tokens=suppressed
    )
    text = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    seconds = time.perf_counter() - start
    return f"{image_tokens} image tokens, {seconds:.2f} s\n  {text.strip()}"


def make_photo() -> Image.Image:
    """A made-up picture."""
    ramp = Image.linear_gradient("L").resize((640, 427))
    return Image.merge("RGB", (ramp, ramp.transpose(Image.Transpose.ROTATE_180), ramp))


def main(arguments: list[str] | None = None) -> None:
    """Answers twice, and prints the times of the encoder, the pruner and the projector."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photo", type=Path, nargs="?", help="a made-up picture if left out")
    parser.add_argument("question", nargs="?", default="what is in this picture ?")
    parser.add_argument("--model", metavar="HUB_ID_OR_DIR", help="a tiny random one if left out")
    parser.add_argument("--checkpoint", help="the pruner's weights; random ones if left out")
    parser.add_argument("--budget", type=int, default=64, help="image tokens to keep")
    parser.add_argument("--length", type=int, default=32, help="tokens to answer at most")
    given = parser.parse_args(arguments)
    model, processor = load(given.model)
    width = model.config.vision_config.hidden_size
    if given.checkpoint:
        pruner = OCPruner.from_checkpoint(given.checkpoint)
    else:
        print("The pruner has random weights: give --checkpoint for trained ones.")
        pruner = OCPruner(PrunerConfig(enc_in_dim=width)).eval()
    pruner = pruner.to(model.device).freeze()
    photo = make_photo() if given.photo is None else Image.open(given.photo).convert("RGB")

    def run() -> str:
        return answer(model, processor, photo, given.question, given.length)

    run()  # the first call is slower
    print("all tokens:", run())
    with attach(model, processor, pruner, given.budget, timed=True) as handle:
        run()
        print("pruned:", run())
        last = handle.last
    if last is not None:
        print("stages:", ", ".join(f"{name} {s * 1e3:.1f} ms" for name, s in last.times.items()))
        print("kept tokens of the image:", last.ids[0].tolist())


if __name__ == "__main__":
    main()
