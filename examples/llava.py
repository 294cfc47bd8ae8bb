"""One picture, one question: a LLaVA's answer with all image tokens, and with the pruner's few.

    python examples/llava.py photo.jpg "What is this?" --model llava-hf/llava-1.5-7b-hf

Without --model it is a tiny LLaVA of this repository, offline, which answers questions about drawn
scenes in one word: see docs/retention.md.
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

TINY = Path(__file__).parents[1] / "bench" / "retention" / "tiny-llava"
PRUNER = "ocvtp/pruner.safetensors"  # in a model's folder
WORDS = 32  # of an answer, at most


def load(source: str | Path) -> tuple[Any, Any]:
    """The model and its processor, of the hub or of a folder."""
    # Half precision is several times slower than float32 on most CPUs.
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    model = transformers.AutoModelForImageTextToText.from_pretrained(source, dtype=dtype)
    processor = transformers.AutoProcessor.from_pretrained(source)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), processor


@torch.inference_mode()
def answer(model: Any, processor: Any, photo: Image.Image, question: str) -> str:
    """The model's answer, and the image tokens and the seconds it took."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=prompt, images=photo, return_tensors="pt").to(model.device, model.dtype)
    image_tokens = int((inputs["input_ids"] == model.config.image_token_id).sum())
    start = time.perf_counter()
    out = model.generate(**inputs, max_new_tokens=WORDS, do_sample=False)
    text = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    seconds = time.perf_counter() - start
    return f"{text.strip()}  ({image_tokens} image tokens, {seconds * 1e3:.0f} ms)"


def main(arguments: list[str] | None = None) -> None:
    """Answers twice, and prints the times of the encoder, the pruner and the projector."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photo", type=Path, nargs="?", default=TINY.parent / "scene.png")
    parser.add_argument("question", nargs="?", default="what colour is the star ?")
    parser.add_argument("--model", metavar="HUB_ID_OR_DIR", default=TINY)
    parser.add_argument("--checkpoint", help=f"the pruner's weights; the model's {PRUNER} if any")
    parser.add_argument("--budget", type=int, help="image tokens to keep; a ninth if left out")
    given = parser.parse_args(arguments)
    model, processor = load(given.model)
    vision = model.config.vision_config
    checkpoint = given.checkpoint or Path(given.model) / PRUNER
    if given.checkpoint or checkpoint.is_file():
        pruner = OCPruner.from_checkpoint(checkpoint)
    else:
        print("The pruner has random weights: give --checkpoint for trained ones.")
        pruner = OCPruner(PrunerConfig(enc_in_dim=vision.hidden_size)).eval()
    pruner = pruner.to(model.device).freeze()
    # The published 64 of 576.
    budget = given.budget or max(1, (vision.image_size // vision.patch_size) ** 2 // 9)
    photo = Image.open(given.photo).convert("RGB")

    def run() -> str:
        return answer(model, processor, photo, given.question)

    run()  # the first call is slower
    print(f"{given.photo}: {given.question}")
    print("all tokens:", run())
    with attach(model, processor, pruner, budget, timed=True) as handle:
        run()
        print("pruned:", run())
        last = handle.last
    if last is not None:
        print("stages:", ", ".join(f"{name} {s * 1e3:.1f} ms" for name, s in last.times.items()))
        print("kept tokens of the image:", last.ids[0].tolist())


if __name__ == "__main__":
    main()
