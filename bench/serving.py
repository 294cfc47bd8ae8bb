"""Requests a second and time to the first token of a server: ``python -m bench serving``.

One ``vllm serve`` answers requests that keep all tokens of their image and requests that keep a
budget, in turns, so that both meet the same server, the same images and the same moment. Without
``--model`` it is a tiny one of random weights, which says nothing but that all of it runs.
``vllm bench serve`` measures.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from PIL import Image

from bench.checkout import commit
from bench.machine import device_name
from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.installing import installed_version
from ocvtp_kernels.markdown import markdown_table
from ocvtp_kernels.serving.vllm.settings import BUDGET

VLLM = [sys.executable, "-m", "vllm.entrypoints.cli.main"]
WHOLE = 1_000_000  # more tokens than any image has
STARTUP_SECONDS = 1800.0  # seconds until a server answers, its download included


class Server:
    """A running ``vllm serve``, stopped at the end of a ``with`` block.

    Args:
        model: folder or hub id; requests name it "served".
        log: file of its messages.
        options: of the command.
        environment: variables beside those of this process.
    """

    def __init__(
        self, model: str, log: Path, options: Sequence[str], environment: dict[str, str]
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = log
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", "served"]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*VLLM, "serve", model, *address, *options],
                env=os.environ | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def client(self) -> Any:
        """OpenAI's, of this server."""
        import openai

        url = f"http://127.0.0.1:{self.port}/v1"
        return openai.OpenAI(base_url=url, api_key="none", max_retries=0)

    def __enter__(self) -> Server:
        import openai

        start = time.monotonic()
        while time.monotonic() - start < STARTUP_SECONDS:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended:\n{self.log.read_text()[-4000:]}")
            try:
                self.client.models.list()
            except openai.APIConnectionError:
                time.sleep(0.5)
            else:
                return self
        self.__exit__()
        raise TimeoutError(f"no answer in {STARTUP_SECONDS} s:\n{self.log.read_text()[-4000:]}")

    def __exit__(self, *_error: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(120)

    def chat(self, photos: Sequence[Image.Image], text: str, tokens: int, **extra: Any) -> Any:
        """The response to one message.

        Args:
            photos: in front of the text.
            text: of the message.
            tokens: of the answer, at most.
            extra: fields of the request that OpenAI's client does not know.
        """
        content: list[Any] = [
            {"type": "image_url", "image_url": {"url": _as_url(photo)}} for photo in photos
        ]
        return self.client.chat.completions.create(
            model="served",
            messages=[{"role": "user", "content": [*content, {"type": "text", "text": text}]}],
            temperature=0,
            max_tokens=tokens,
            extra_body=extra,
        )


def _as_url(photo: Image.Image) -> str:
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class Point(NamedTuple):
    """What was measured of one budget at one number of requests at a time."""

    budget: int | None  # None: all tokens
    concurrency: int
    requests_per_second: list[float]  # of each round
    ttft_ms: list[float]  # the median's of each round
    ttft_p99_ms: list[float]


def ask_for(budget: int | None) -> dict[str, Any]:
    """The fields of a request that keeps ``budget`` tokens of its image."""
    return {} if budget is None else {"mm_processor_kwargs": {BUDGET: budget}}


def require_pruned(server: Server, budget: int, size: tuple[int, int]) -> tuple[int, int]:
    """Prompt tokens of a question with all tokens of its image, and with the budget.

    Raises:
        RuntimeError: the prompts are not as long as they should be.
    """
    photo = Image.effect_noise(size, 100).convert("RGB")

    def count(kept: int | None) -> int:
        response = server.chat([photo], "what is this ?", 1, **ask_for(kept))
        return int(response.usage.prompt_tokens)

    whole, few, one = count(None), count(budget), count(1)
    if few - one != budget - 1 or whole <= few:
        raise RuntimeError(
            f"expected prompts of {budget - 1} tokens more than with one of the image's, and of "
            f"fewer than with all; got {one} with one, {few} with {budget}, {whole} with all"
        )
    return whole, few


def measure(
    server: Server, arguments: argparse.Namespace, budget: int | None, concurrency: int, seed: int
) -> Any:
    """One run of ``vllm bench serve``, as it saves it."""
    width, height = arguments.image
    with TemporaryDirectory() as folder:
        command = [*VLLM, "bench", "serve", "--backend", "openai-chat", "--port", str(server.port)]
        command += ["--endpoint", "/v1/chat/completions", "--model", "served"]
        command += ["--tokenizer", arguments.model, "--dataset-name", "random-mm", "--ignore-eos"]
        command += ["--random-input-len", str(arguments.text), "--disable-tqdm"]
        command += ["--random-output-len", str(arguments.answer), "--temperature", "0"]
        command += ["--random-mm-bucket-config", f"{{({height}, {width}, 1): 1.0}}"]
        command += ["--random-mm-limit-mm-per-prompt", '{"image": 1, "video": 0}']
        command += ["--max-concurrency", str(concurrency), "--seed", str(seed)]
        command += ["--num-prompts", str(arguments.prompts), "--num-warmups", "1"]
        command += ["--extra-body", json.dumps(ask_for(budget))]
        command += ["--save-result", "--result-dir", folder, "--result-filename", "result.json"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"vllm bench serve failed:\n{(done.stdout + done.stderr)[-4000:]}")
        result = json.loads((Path(folder) / "result.json").read_text())
    if result["completed"] != arguments.prompts:
        raise RuntimeError(f"only {result['completed']} of {arguments.prompts} requests completed")
    return result


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All that is measured, as the result file has it."""
    setting = {"budget": WHOLE, "pruner": str(Path(arguments.pruner).resolve())}
    options = ["--hf-overrides", json.dumps({"ocvtp": setting}), "--trust-request-mm-kwargs"]
    options += ["--no-enable-prefix-caching", *shlex.split(arguments.server)]
    points = {
        (budget, concurrency): Point(budget, concurrency, [], [], [])
        for concurrency in arguments.concurrency
        for budget in (None, *arguments.budget)
    }
    log = arguments.output.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with Server(arguments.model, log, options, {"VLLM_CPU_KVCACHE_SPACE": "1"}) as server:
        lengths = [require_pruned(server, each, arguments.image) for each in arguments.budget]
        for seed in range(arguments.rounds):
            for (budget, concurrency), point in points.items():
                result = measure(server, arguments, budget, concurrency, seed)
                point.requests_per_second.append(result["request_throughput"])
                point.ttft_ms.append(result["median_ttft_ms"])
                point.ttft_p99_ms.append(result["p99_ttft_ms"])
    return {
        "model": arguments.name,
        "device": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "versions": {name: installed_version(name) for name in ("torch", "vllm", "transformers")},
        "commit": commit(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "image": arguments.image,
        "text": arguments.text,
        "answer": arguments.answer,
        "prompt_tokens": {
            str(each): few for each, (_, few) in zip(arguments.budget, lengths, strict=True)
        }
        | {"all": lengths[0][0]},
        "points": [point._asdict() for point in points.values()],
    }


def as_markdown(result: dict[str, Any]) -> str:
    """The result as a page: medians of the rounds, and the least and most of them."""
    rows = []
    whole: dict[int, float] = {}
    for values in result["points"]:
        point = Point(**values)
        rate = statistics.median(point.requests_per_second)
        if point.budget is None:
            whole[point.concurrency] = rate
        spread = f"{min(point.requests_per_second):.2f}–{max(point.requests_per_second):.2f}"
        rows.append(
            [
                str(point.concurrency),
                "all" if point.budget is None else str(point.budget),
                f"{rate:.2f} ({spread})",
                f"{rate / whole[point.concurrency]:.2f}×",
                f"{statistics.median(point.ttft_ms):.0f}",
                f"{statistics.median(point.ttft_p99_ms):.0f}",
            ]
        )
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    width, height = result["image"]
    head = ["at a time", "kept", "requests/s", "of all", "TTFT ms", "p99 TTFT ms"]
    return (
        f"{result['model']} on {result['device']}, {versions}, commit {result['commit']}, "
        f"{result['date']}: one image of {width} x {height}, {result['text']} tokens of text, "
        f"{result['answer']} of answer, prompts of {result['prompt_tokens']} tokens.\n\n"
        + markdown_table(head, rows)
    )


def read_arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command's arguments."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    def size(text: str) -> tuple[int, int]:
        width, _, height = text.partition("x")
        return int(width), int(height)

    parser = argparse.ArgumentParser(prog="python -m bench serving", description=__doc__)
    parser.add_argument("--model", help="folder or hub id; a tiny LLaVA if not given")
    parser.add_argument("--pruner", help="file of the pruner for the model")
    parser.add_argument("--budget", type=numbers, help="tokens kept: 64, or 128,64")
    parser.add_argument("--concurrency", type=numbers, default=[1, 4], help="requests at a time")
    parser.add_argument("--prompts", type=int, default=16, help="requests of a run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, in turns")
    parser.add_argument("--image", type=size, default=(336, 336), help="width x height in pixels")
    parser.add_argument("--text", type=int, default=32, help="tokens of text of a prompt")
    parser.add_argument("--answer", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--server", default="", help="more options for vllm serve, in one text")
    parser.add_argument("--output", type=Path, default=Path("build/bench/serving.json"))
    arguments = parser.parse_args(given)
    if arguments.model is not None and (arguments.pruner is None or arguments.budget is None):
        parser.error("--model: needs --pruner and --budget too")
    arguments.name = arguments.model
    return arguments


def main(given: Sequence[str]) -> int:
    """Measures, saves and prints; returns the exit status."""
    arguments = read_arguments(given)
    with TemporaryDirectory() as folder:
        if arguments.model is None:
            from tests.serving.vllm.checkpoints import make_checkpoint

            made = make_checkpoint("llava", Path(folder) / "tiny")
            arguments.model, arguments.pruner = str(made.folder), made.pruner
            arguments.name = "A tiny LLaVA of random weights"
            arguments.budget = arguments.budget or [16]
            arguments.server = f"--dtype float32 --enforce-eager {arguments.server}"
        result = run(arguments)
    atomic_write(arguments.output, json.dumps(result, indent=1) + "\n")
    print(as_markdown(result))
    return 0
