"""A LLaVA in vLLM, asked with all tokens of a picture and with the few that the pruner keeps.

    python examples/serve_vllm.py photo.jpg "What is this?" --model llava-hf/llava-1.5-7b-hf \\
        --pruner /models/oc-pruner.safetensors

It needs vLLM in the same environment: see docs/serving.md, which has the same for `vllm serve`.
Without --model it is a tiny LLaVA of this repository, offline, which answers questions about drawn
scenes in one word: see docs/retention.md. None of this has been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file, save_file

TINY = Path(__file__).parents[1] / "bench" / "retention" / "tiny-llava"
PRUNER = "ocvtp/pruner.safetensors"  # in a model's folder
ALL = 10_000  # image tokens, more than there are: all are kept
WORDS = 32  # of an answer, at most


def copy_for_vllm(model: Path, folder: Path) -> Path:
    """Copies a LLaVA that transformers 5 saved, with the tower's names that vLLM reads.

    Released checkpoints have these names already.
    """
    copy = Path(shutil.copytree(model, folder / model.name))
    saved, read = "vision_tower.", "vision_tower.vision_model."
    weights = {
        name if name.startswith(read) else name.replace(saved, read, 1): tensor
        for name, tensor in load_file(copy / "model.safetensors").items()
    }
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def load(model: str | Path, pruner: str, **options: Any) -> Any:
    """Starts vLLM with the plug-in on."""
    # One process for everything, which starts sooner, and fewer lines in the log.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM

    overrides = {
        # By this name vLLM refuses to start where the plug-in is missing.
        "architectures": ["OcvtpLlavaForConditionalGeneration"],
        # The most that a request keeps. To save memory too, give the few here.
        "ocvtp": {"budget": ALL, "pruner": pruner},
    }
    return LLM(str(model), hf_overrides=overrides, enforce_eager=True, **options)


def ask(llm: Any, photo: Image.Image, question: str, budget: int) -> str:
    """The answer with ``budget`` image tokens, and the tokens of the whole prompt."""
    from vllm import SamplingParams

    content = [{"type": "image_pil", "image_pil": photo}, {"type": "text", "text": question}]
    (out,) = llm.chat(
        [{"role": "user", "content": content}],
        SamplingParams(temperature=0, max_tokens=WORDS),
        mm_processor_kwargs={"ocvtp_budget": budget},
        use_tqdm=False,
    )
    return f"{out.outputs[0].text.strip()}  ({len(out.prompt_token_ids)} prompt tokens)"


def main(arguments: list[str] | None = None) -> None:
    """Answers twice."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photo", type=Path, nargs="?", default=TINY.parent / "scene.png")
    parser.add_argument("question", nargs="?", default="what colour is the star ?")
    parser.add_argument("--model", metavar="HUB_ID_OR_DIR", help="a LLaVA-1.5; tiny if left out")
    parser.add_argument("--pruner", default=PRUNER, help="its weights: a path, or one in the model")
    parser.add_argument("--budget", type=int, help="image tokens to keep; 64, or 11 if it is tiny")
    given = parser.parse_args(arguments)
    if importlib.util.find_spec("vllm") is None:
        sys.exit("vLLM is not installed here: install it and ocvtp-kernels in one environment.")
    photo = Image.open(given.photo).convert("RGB")
    with tempfile.TemporaryDirectory() as folder:
        if given.model is None:
            # On a CPU vLLM reserves this share of the memory, whatever the option is called.
            options = {"dtype": "float32", "gpu_memory_utilization": 0.2}
            llm = load(copy_for_vllm(TINY, Path(folder)), given.pruner, **options)
        else:
            llm = load(given.model, given.pruner)
        budget = given.budget or (11 if given.model is None else 64)
        print(f"{given.photo}: {given.question}")
        print("all tokens:", ask(llm, photo, given.question, ALL))
        print("pruned:", ask(llm, photo, given.question, budget))


if __name__ == "__main__":
    main()
