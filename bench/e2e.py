"""A vision-language model stage by stage, random weights: all tokens against budgets.

encoder (CLIP) -> pruner -> projector -> prefill and decode (Llama), each timed apart, at batch 1.
The pruner's stage is importance from the queries and keys of one encoder layer, and `prune`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench.cases import CASES, Case
from bench.gate import judge
from bench.results import EndToEnd, Result
from bench.shapes import Workload
from bench.timing import Call, measure
from bench.variants import Variant

if TYPE_CHECKING:
    from transformers import CLIPVisionModel, LlamaForCausalLM

TEXT_TOKENS = 32
# A token decoded from the cache against the same token of one pass over everything.
CACHE_TOLERANCE = 5e-2


@dataclass(frozen=True)
class Shape:
    """The sizes of a vision-language model."""

    name: str
    crops: int
    budgets: tuple[int, ...]
    vision: dict[str, int]
    language: dict[str, int]
    slot_dim: int
    dtype: torch.dtype

    @property
    def num_tokens(self) -> int:
        """Patches of all crops."""
        return self.crops * (self.vision["image_size"] // self.vision["patch_size"]) ** 2


CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
}
TINY_CLIP = {**CLIP_L, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6}
TINY_CLIP |= {"num_attention_heads": 4, "image_size": 112}
TINY_LLAMA = {**LLAMA_7B, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
TINY_LLAMA |= {"num_attention_heads": 4, "vocab_size": 512}

LLAVA = Shape("LLaVA-1.5-7B", 1, (64, 128, 192), CLIP_L, LLAMA_7B, 512, torch.float16)
NEXT = Shape("LLaVA-NeXT-7B", 5, (160, 320, 640), CLIP_L, LLAMA_7B, 512, torch.float16)
TINY = Shape("tiny", 1, (8, 16), TINY_CLIP, TINY_LLAMA, 32, torch.float32)


class Model:
    """The stages of a shape; language models are built once for shapes that share them."""

    def __init__(self, shape: Shape, device: torch.device, language: Any = None) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

        self.shape, self.device = shape, device
        width, language_width = shape.vision["hidden_size"], shape.language["hidden_size"]
        with _made_as(shape.dtype, device):
            self.tower: CLIPVisionModel = CLIPVisionModel(CLIPVisionConfig(**shape.vision)).eval()
            self.projector = nn.Sequential(
                nn.Linear(width, language_width),
                nn.GELU(),
                nn.Linear(language_width, language_width),
            )
            self.language: LlamaForCausalLM = (
                LlamaForCausalLM(LlamaConfig(**shape.language)).eval()
                if language is None
                else language
            )
        self.reference_layer = shape.vision["num_hidden_layers"] // 3 + 1

    def random(self, *size: int, seed: int = 0) -> Tensor:
        """Normal values in the model's dtype."""
        generator = torch.Generator(self.device).manual_seed(seed)
        values = torch.randn(size, generator=generator, device=self.device)
        return values.to(self.shape.dtype)

    def pixels(self, seed: int = 0) -> Tensor:
        """A random image."""
        side = self.shape.vision["image_size"]
        return self.random(self.shape.crops, 3, side, side, seed=seed)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Reference and final tokens ``[1, N, C]``, CLS removed, crops in a row."""
        states = self.tower(pixels, output_hidden_states=True).hidden_states
        reference, final = states[self.reference_layer], states[-2]
        return reference[:, 1:].flatten(0, 1)[None], final[:, 1:].flatten(0, 1)[None]

    def prefill(self, tokens: Tensor, text: Tensor) -> Any:
        """The language model's output on projected tokens and the text after them."""
        return self.language(
            inputs_embeds=torch.cat([tokens, text], dim=1), use_cache=True, logits_to_keep=1
        )

    def step(self, embedding: Tensor, cache: Any) -> Any:
        """One more token, which the cache keeps."""
        return self.language(inputs_embeds=embedding, past_key_values=cache, use_cache=True)


@contextmanager
def _made_as(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Parameters are made on the device in the dtype; 7 B of them in float32 would take long."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def why_wrong(model: Model) -> str | None:
    """The sentence why the model's stages cannot be believed, or None."""
    width = model.shape.language["hidden_size"]
    text = model.random(1, TEXT_TOKENS + 1, width, seed=3)
    logits = []
    for seed in (1, 2):
        reference, final = model.encode(model.pixels(seed))
        if not bool(reference.isfinite().all() and final.isfinite().all()):
            return "encoder tokens are not finite"
        tokens = model.projector(final)
        cache = model.prefill(tokens, text[:, :-1]).past_key_values
        cached = model.step(text[:, -1:], cache).logits[:, -1].double()
        whole = model.prefill(tokens, text).logits[:, -1].double()
        error = ((cached - whole).norm() / whole.norm()).item()
        # Written so that NaN is refused.
        if not error <= CACHE_TOLERANCE:
            return f"a token decoded from the cache is off by {error:.1e} of its norm"
        logits.append(whole)
    if torch.equal(logits[0], logits[1]):
        return "two images give the same logits"
    return None


def pruning(model: Model, budget: int) -> Case:
    """The pruner's case at the model's sizes."""
    shape = model.shape
    dtype = str(shape.dtype).removeprefix("torch.")
    width = shape.vision["hidden_size"]
    load = Workload(1, shape.num_tokens, budget, budget, width, shape.slot_dim, dtype)
    return CASES["prune"](load, model.device)


def calls_of(model: Model, budget: int, case: Case | None) -> dict[str, Call]:
    """The stages as calls, on random images and texts; without a case all tokens are kept."""
    shape = model.shape
    heads = shape.vision["num_attention_heads"]
    size = (shape.crops, heads, shape.num_tokens // shape.crops, shape.vision["hidden_size"])
    q, k = (model.random(*size[:3], size[3] // heads, seed=seed) for seed in (5, 6))
    pixels = model.pixels()
    reference, final = model.encode(pixels)
    text = model.random(1, TEXT_TOKENS, shape.language["hidden_size"], seed=7)
    kept = final
    calls: dict[str, Call] = {"encoder": lambda: model.encode(pixels)}
    if case is not None:
        slots_init = case.inputs(0)[2]

        def prune() -> Any:
            received = torch.ops.ocvtp.attention_received(q, k, "meanq").flatten()[None]
            return case.call(reference, final, slots_init, received)

        calls["pruner"] = prune
        kept = prune()[0]
    projected = model.projector(kept)
    cache = model.prefill(projected, text).past_key_values
    calls["projector"] = lambda: model.projector(kept)
    calls["prefill"] = lambda: model.prefill(projected, text)
    # The cache grows by a token a call, as it does in use.
    calls["decode_per_token"] = lambda: model.step(text[:, :1], cache)
    return calls


@torch.no_grad()
def run(result: Result, folder: Path, device: torch.device, short: bool, deadline: float) -> int:
    """Times every shape and budget, saving after each; returns how many were refused."""
    shapes = (TINY,) if device.type == "cpu" else (LLAVA,) if short else (LLAVA, NEXT)
    rows: list[EndToEnd] = []
    result.rows = rows
    refused, language = 0, None
    for shape in shapes:
        model = Model(shape, device, language)
        language = model.language
        reason = why_wrong(model)
        if reason is not None:
            print(f"{shape.name} refused: {reason}")
            refused += 1
            continue
        for budget in (shape.num_tokens, *shape.budgets):
            if time.monotonic() > deadline:
                print(f"out of time: {shape.name} from budget {budget} on is left out")
                break
            case = pruning(model, budget) if budget < shape.num_tokens else None
            if case is not None:
                verdict = judge(case, Variant("prune", case.call), "forward", seed=1)
                if not verdict.passed:
                    print(f"{shape.name} {budget}: the pruner is refused: {verdict.note}")
                    refused += 1
                    continue
            timings = measure(
                calls_of(model, budget, case), device=device, seconds=3.0, rounds=(5, 20)
            )
            stages = {"pruner": 0.0} | {name: one.median_s for name, one in timings.items()}
            rows.append(EndToEnd(shape.name, budget, shape.num_tokens, stages))
            print(describe(rows[-1]), flush=True)
            result.save(folder)
    return refused


def describe(row: EndToEnd) -> str:
    """A row as a line of the table."""
    stages = ", ".join(f"{name} {value * 1e3:.3f} ms" for name, value in row.stages.items())
    return f"{row.model} {row.budget} of {row.num_tokens}: {stages}"
