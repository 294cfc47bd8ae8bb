"""``vllm serve`` with the plug-in, asked as its users ask it, on two tensor-parallel ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest
from PIL import Image

from bench.serving import Server
from tests.serving.vllm.asking import NEW, Answer, ask_hugging_face
from tests.serving.vllm.checkpoints import PRUNER, Checkpoint

K, FEW = 16, 5
LONG_NAME = "OcvtpLlavaForConditionalGeneration"
CORES = sorted(os.sched_getaffinity(0))
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    "VLLM_LOGGING_LEVEL": "INFO",
    "VLLM_CPU_OMP_THREADS_BIND": f"{CORES[0]}|{CORES[-1]}",  # a core a rank
}


def answer(server: Server, photos: list[Image.Image], text: str, **extra: Any) -> Answer:
    """The prompt's length and the ids of the answer."""
    extra = {"min_tokens": NEW, "return_token_ids": True} | extra
    response = server.chat(photos, text, NEW, **extra)
    return response.usage.prompt_tokens, list(response.choices[0].model_extra["token_ids"])


@pytest.fixture(scope="module")
def chats(checkpoint: Callable[[str], Checkpoint]) -> Checkpoint:
    """The checkpoint with prompts as the chat template writes them."""
    made = checkpoint("llava")
    cases = [
        ("USER : <image> what is in this picture ? ASSISTANT :", [0]),
        ("USER : <image> <image> two dogs ? ASSISTANT :", [1, 2]),
        ("USER : red blue ? ASSISTANT :", []),
    ]
    return replace(made, cases=cases)


@pytest.fixture(scope="module")
def server(chats: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ["--hf-overrides.ocvtp.budget", str(K), "--hf-overrides.ocvtp.pruner", PRUNER]
    options += ["--hf-overrides.architectures+", LONG_NAME, "--tensor-parallel-size", "2"]
    options += ["--trust-request-mm-kwargs", "--dtype", "float32", "--enforce-eager"]
    options += ["--max-model-len", "2048", "--block-size", "32"]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with Server(str(chats.folder), log, options, ENVIRONMENT) as started:
        yield started


def test_chats_equal_hugging_face(server: Server, chats: Checkpoint) -> None:
    for budget, extra in (
        (K, {}),
        (FEW, {"mm_processor_kwargs": {"ocvtp_budget": FEW}}),
        (K, {}),  # from its caches
    ):
        want = ask_hugging_face(chats, budget)
        for (text, numbers), want_ in zip(chats.cases, want, strict=True):
            words = text.removeprefix("USER : ").removesuffix(" ASSISTANT :").replace("<image>", "")
            photos = [chats.photos[number] for number in numbers]
            assert answer(server, photos, words.strip(), **extra) == want_
    assert server.log.read_text().count(f"ocvtp: 144 to {K} tokens per image") == 1


@pytest.mark.parametrize("budget", [K + 1, 0, "5", 2.5, True])
def test_a_wrong_budget_is_a_bad_request(server: Server, chats: Checkpoint, budget: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=f"ocvtp_budget: expected 1 to {K}"):
        answer(server, [chats.photos[0]], "red ?", mm_processor_kwargs={"ocvtp_budget": budget})
    assert answer(server, [chats.photos[0]], "red ?")[0] == K + 6


def test_without_the_plug_in_the_long_name_does_not_start(chats: Checkpoint) -> None:
    overrides = {"architectures": [LONG_NAME], "ocvtp": {"budget": K, "pruner": PRUNER}}
    script = f"import vllm; vllm.LLM({str(chats.folder)!r}, hf_overrides={overrides!r})"
    environment = os.environ | {"VLLM_PLUGINS": "lora_filesystem_resolver"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert LONG_NAME in done.stderr and "not supported" in done.stderr
