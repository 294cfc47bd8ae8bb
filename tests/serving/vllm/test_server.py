"""``vllm serve`` with the plug-in, asked as its users ask it, on two tensor-parallel ranks."""

from __future__ import annotations

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from tests.serving.vllm.asking import NEW, Answer, ask_hugging_face
from tests.serving.vllm.checkpoints import PRUNER, Checkpoint

K, FEW, PATIENCE = 16, 5, 240.0
LONG_NAME = "OcvtpLlavaForConditionalGeneration"
CORES = sorted(os.sched_getaffinity(0))
ENVIRONMENT = os.environ | {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    "VLLM_LOGGING_LEVEL": "INFO",
    "VLLM_CPU_OMP_THREADS_BIND": f"{CORES[0]}|{CORES[-1]}",  # a core a rank
}


def as_url(photo: Image.Image) -> str:
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class Server:
    """A running ``vllm serve``."""

    def __init__(self, checkpoint: Checkpoint, log: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.log = log
        command = [str(Path(sys.executable).parent / "vllm"), "serve", str(checkpoint.folder)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
        command += ["--enforce-eager", "--max-model-len", "2048", "--served-model-name", "tiny"]
        command += ["--limit-mm-per-prompt.image", "4", "--block-size", "32", *options]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command, env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT
            )
        self.url = f"http://127.0.0.1:{port}/v1"
        self.client = openai.OpenAI(base_url=self.url, api_key="none", max_retries=0)

    def wait(self) -> None:
        """Until it answers."""
        start = time.monotonic()
        while time.monotonic() - start < PATIENCE:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            try:
                self.client.models.list()
            except openai.APIConnectionError:
                time.sleep(0.5)
            else:
                return
        raise TimeoutError(self.log.read_text()[-4000:])

    def chat(self, photos: list[Image.Image], text: str, **extra: Any) -> Answer:
        """The prompt's length and the ids of the answer."""
        content: list[Any] = [
            {"type": "image_url", "image_url": {"url": as_url(photo)}} for photo in photos
        ]
        content.append({"type": "text", "text": text})
        body = {"min_tokens": NEW, "return_token_ids": True} | extra
        response = self.client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": content}],
            temperature=0,
            max_tokens=NEW,
            extra_body=body,
        )
        ids = response.choices[0].model_extra["token_ids"]
        return response.usage.prompt_tokens, list(ids)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


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
    options = [f"--hf-overrides.ocvtp.budget={K}", f"--hf-overrides.ocvtp.pruner={PRUNER}"]
    options += ["--hf-overrides.architectures+", LONG_NAME, "--tensor-parallel-size", "2"]
    options.append("--trust-request-mm-kwargs")
    started = Server(chats, tmp_path_factory.mktemp("server") / "log.txt", *options)
    try:
        started.wait()
        yield started
    finally:
        if started.process.poll() is None:
            started.stop()


def test_chats_equal_hugging_face(server: Server, chats: Checkpoint) -> None:
    for budget, extra in (
        (K, {}),
        (FEW, {"mm_processor_kwargs": {"ocvtp_budget": FEW}}),
        (K, {}),  # from its caches
    ):
        want = ask_hugging_face(chats, budget)
        for (text, numbers), answer in zip(chats.cases, want, strict=True):
            words = text.removeprefix("USER : ").removesuffix(" ASSISTANT :").replace("<image>", "")
            photos = [chats.photos[number] for number in numbers]
            assert server.chat(photos, words.strip(), **extra) == answer
    assert server.log.read_text().count(f"ocvtp: 144 to {K} tokens per image") == 1


@pytest.mark.parametrize("budget", [K + 1, 0, "5", 2.5, True])
def test_a_wrong_budget_is_a_bad_request(server: Server, chats: Checkpoint, budget: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=f"ocvtp_budget: expected 1 to {K}"):
        server.chat([chats.photos[0]], "red ?", mm_processor_kwargs={"ocvtp_budget": budget})
    assert server.chat([chats.photos[0]], "red ?")[0] == K + 6


def test_without_the_plug_in_the_long_name_does_not_start(chats: Checkpoint) -> None:
    overrides = {"architectures": [LONG_NAME], "ocvtp": {"budget": K, "pruner": PRUNER}}
    script = f"import vllm; vllm.LLM({str(chats.folder)!r}, hf_overrides={overrides!r})"
    environment = os.environ | {"VLLM_PLUGINS": "lora_filesystem_resolver"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert LONG_NAME in done.stderr and "not supported" in done.stderr
