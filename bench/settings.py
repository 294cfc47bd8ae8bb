"""The CPU as people use it: half precision, autocast, modes of autograd, many sizes, small ones.

A row is one way to use the package beside plain PyTorch used in the same way, in turns: times of
one thread are CPU time, of two the clock's. What needs a process of its own, memory and imports,
is measured in one.
"""

from __future__ import annotations

import contextlib
import copy
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from bench.cases import Outputs, outputs_of
from bench.gate import FACTOR, REGRET, Verdict
from bench.pruners import random_pruner
from bench.results import Result, SettingRow
from bench.timing import Call, Timing, measure, summary, tensors_of
from ocvtp_kernels import OCPruner, PrunerConfig, native, prepare
from ocvtp_kernels.greedy import reference as greedy
from ocvtp_kernels.importance import reference as importance
from ocvtp_kernels.selection import reference as selection
from ocvtp_kernels.selectors.interface import Evidence
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from ocvtp_kernels.slots import reference as slots
from ocvtp_kernels.training.autoencoder import OCAutoencoder

SECONDS = 4.0  # of a row
ROUNDS = (7, 60)
SMALL_CALLS = 50  # in a sample, at sizes where a call takes microseconds
SIZES = 500  # of images, where each has its own
PROCESSES = 5  # that are started to time an import
HALF = torch.bfloat16
OPS = torch.ops.ocvtp
TINY = PrunerConfig(
    enc_in_dim=64, enc_dims=(64, 32), init_num=4, init_dim=32, agg_embed_dim=32, agg_ffn_dim=64
)


class Pair(NamedTuple):
    """Ours and plain PyTorch, used alike."""

    ours: Call
    plain: Call
    check: Callable[[], Verdict]


class Setting(NamedTuple):
    """One way to use the package."""

    name: str
    what: str
    make: Callable[[], Pair]
    threads: tuple[int, ...] = (1, 2)
    calls: int = 1


def floats(ours: Callable[[], Outputs], plain: Callable[[], Outputs], exact: Call) -> Pair:
    """Outputs that are numbers: the error is within the budget of plain PyTorch's."""

    def check() -> Verdict:
        for got, near, truth in zip(ours(), plain(), tensors_of(exact()), strict=True):
            scale = truth.abs().max().item()
            error, allowed = ((value.double() - truth).abs().max().item() for value in (got, near))
            if error > FACTOR * allowed + torch.finfo(near.dtype).eps * scale:
                return Verdict(False, f"error {error:.3g}, plain PyTorch's {allowed:.3g}")
        return Verdict(True, "within the error budget")

    return Pair(ours, plain, check)


def pruning(
    ours: Callable[..., Outputs],
    dtype: torch.dtype,
    *,
    sizes: tuple[int, int, int],
    config: PrunerConfig | None = None,
    mode: Callable[[], contextlib.AbstractContextManager[Any]] = torch.no_grad,
) -> Pair:
    """`prune` as ``ours`` does it, called with a pruner that is not frozen, tokens and importance.

    Kept tokens hold as much of each slot's largest attention as the plain module's do.
    """
    batch, num_tokens, num_slots = sizes
    config = PrunerConfig() if config is None else config
    pruner = random_pruner(config, dtype=dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(batch, num_tokens, config.enc_in_dim, generator=generator).to(dtype)
    scores = torch.rand(batch, num_tokens, generator=generator)
    budget = min(num_slots, num_tokens)
    call = ours(pruner)

    def within(function: Callable[..., Any]) -> Call:
        def run() -> Any:
            with mode():
                return function(tokens, tokens, budget, scores, num_slots=num_slots)

        return run

    def check() -> Verdict:
        slots_init = pruner.sample_slots(batch, num_slots).double()
        _, attention = copy.deepcopy(pruner).double().attend(tokens.double(), slots_init)
        regrets = []
        for run in (within(call), within(pruner)):
            ids = run()[1]
            if ids.shape != (batch, budget) or bool((ids.diff(dim=1) <= 0).any()):
                return Verdict(False, f"expected {budget} distinct ascending ids")
            among = attention.gather(2, ids.unsqueeze(1).expand(-1, num_slots, -1)).amax(dim=2)
            regrets.append((1 - among / attention.amax(dim=2)).max().item())
        passed = regrets[0] <= max(REGRET, FACTOR * regrets[1]) or budget < num_slots
        return Verdict(passed, f"regret {regrets[0]:.2g}, the plain module's {regrets[1]:.2g}")

    return Pair(within(call), within(pruner), check)


def frozen(pruner: OCPruner) -> OCPruner:
    return copy.deepcopy(pruner).freeze()


def frozen_in_inference_mode(pruner: OCPruner) -> OCPruner:
    with torch.inference_mode():
        return copy.deepcopy(pruner).freeze()


def loaded_in_inference_mode(pruner: OCPruner) -> OCPruner:
    other = frozen(pruner)
    with torch.inference_mode():
        other.load_state_dict(pruner.state_dict())
    return other


def moved_in_inference_mode(pruner: OCPruner) -> OCPruner:
    other = frozen(pruner).double()
    with torch.inference_mode():
        return other.to(pruner.initializ.mean.dtype)


def without_native_kernels(pruner: OCPruner) -> Callable[..., Any]:
    plain = frozen(pruner)

    def run(*args: Any, **options: Any) -> Any:
        with (
            mock.patch.object(native, "why_not", lambda device: "left out"),
            mock.patch.object(native, "_warn_once", lambda: None),
        ):
            return plain(*args, **options)

    return run


def attached(pruner: OCPruner) -> Callable[..., Any]:
    selector = PrunerSelector(pruner)

    def run(tokens: Tensor, final: Tensor, budget: int, scores: Tensor, num_slots: int) -> Outputs:
        kept = selector(Evidence(tokens, final, importance=scores), budget)
        return kept.gather(final), kept.ids

    return run


def of_weights(weights: Callable[[], Sequence[Tensor]], pruner: OCPruner) -> Callable[..., Any]:
    def run(tokens: Tensor, final: Tensor, budget: int, scores: Tensor, num_slots: int) -> Outputs:
        slots_init = pruner.sample_slots(len(tokens), num_slots)
        return outputs_of(OPS.prune(tokens, final, list(weights()), slots_init, scores, budget))

    return run


def of_views(pruner: OCPruner) -> Callable[..., Any]:
    held = prepare(pruner.packed())
    return of_weights(lambda: [weight.view_as(weight) for weight in held], pruner)


def of_packed(pruner: OCPruner) -> Callable[..., Any]:
    return of_weights(pruner.packed, pruner)


def autocast() -> contextlib.AbstractContextManager[Any]:
    stack = contextlib.ExitStack()
    stack.enter_context(torch.no_grad())
    stack.enter_context(torch.autocast("cpu", dtype=HALF))
    return stack


def competition(batch: int, dtype: torch.dtype) -> list[Tensor]:
    shapes = [(batch, 64, 512), (batch, 576, 512), (batch, 576, 512)]
    return [draw(*shape, seed=i).to(dtype).requires_grad_() for i, shape in enumerate(shapes)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def compete(backward: bool) -> Pair:
    """`slot_attention` in bfloat16, 12 images."""
    inputs, scale, grad = competition(12, HALF), 512**-0.5, draw(12, 64, 512, seed=9)

    def bound(op: Callable[..., Any], given: Sequence[Tensor]) -> Callable[[], Outputs]:
        if not backward:
            return torch.no_grad()(lambda: tuple(op(*given, scale)[:2]))
        updates = op(*given, scale)[0]
        asked = grad.to(updates.dtype)
        return lambda: torch.autograd.grad(updates, given, asked, retain_graph=True)

    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    return floats(
        bound(OPS.slot_attention, inputs),
        bound(slots.slot_attention, inputs),
        bound(slots.slot_attention, wide),
    )


def iteration(dtype: torch.dtype, is_autocast: bool) -> Pair:
    """`slot_attention_step` and its gradients, 12 images."""
    inputs, scale, grad = competition(12, dtype), 512**-0.5, draw(12, 64, 512, seed=9)
    pruner = random_pruner(PrunerConfig(), dtype=dtype)
    weights = [w.detach().requires_grad_() for w in pruner.aggregat.step_weights()]

    def plain(q: Tensor, k: Tensor, v: Tensor, w: Sequence[Tensor], scale: float) -> Tensor:
        return slots.slot_attention_step(q, k, v, w, scale)[0]

    def bound(op: Callable[..., Tensor], exact: bool = False) -> Callable[[], Outputs]:
        change = (lambda t: t.detach().double().requires_grad_()) if exact else (lambda t: t)
        qkv, ws = [change(t) for t in inputs], [change(t) for t in weights]

        def run() -> Outputs:
            with torch.autocast("cpu", dtype=HALF, enabled=is_autocast and not exact):
                out = op(*qkv, ws, scale)
            return torch.autograd.grad(out, [*qkv, *ws], grad.to(out.dtype))

        return run

    return floats(bound(OPS.slot_attention_step), bound(plain), bound(plain, exact=True))


def training(dtype: torch.dtype, is_autocast: bool) -> Pair:
    """Forward and backward of the autoencoder, 4 images; plain: without the fused ops."""
    model = OCAutoencoder(PrunerConfig(agg_dropout=0.0, enc_dropout=0.0), dtype=dtype).eval()
    plain_slots = model.aggregat.forward
    tokens = draw(4, 576, 1024).to(dtype)
    draws = model.draw(4, 64, torch.Generator().manual_seed(0))

    def step(is_plain: bool, to: torch.dtype = dtype) -> Outputs:
        def aggregate(encoded: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
            found, logits = plain_slots(encoded, first)
            return found, logits.softmax(dim=1)

        patch = mock.patch.object(model.aggregat, "aggregate", aggregate)
        with (
            patch if is_plain else contextlib.nullcontext(),
            torch.autocast("cpu", dtype=HALF, enabled=is_autocast and to == dtype),
        ):
            out = model(tokens.to(to), noise=draws.noise.to(to), visible=draws.visible)
        loss = (out.reconstruction.to(to) - tokens.to(to)).square().mean()
        return (loss, *torch.autograd.grad(loss, list(model.aggregat.parameters())))

    def exact() -> Outputs:
        model.double()
        try:
            return step(True, torch.float64)
        finally:
            model.to(dtype)

    return floats(lambda: step(False), lambda: step(True), exact)


def received(mode: str, dtype: torch.dtype, heads: int, num_tokens: int, width: int) -> Pair:
    """`attention_received` of one image."""
    q, k = (draw(1, heads, num_tokens, width, seed=i).to(dtype) for i in range(2))
    reference = importance.attention_received
    return floats(
        lambda: (OPS.attention_received(q, k, mode),),
        lambda: (reference(q, k, mode),),
        lambda: (reference(q.double(), k.double(), mode),),
    )


def small(op: str, plain: Callable[..., Any], *inputs: Any) -> Pair:
    """A float op at a size where the host's time is all."""
    wide = [x.double() if isinstance(x, Tensor) else x for x in inputs]
    ours = getattr(OPS, op)
    count = len(tensors_of(ours(*inputs)))
    return floats(
        torch.no_grad()(lambda: tuple(tensors_of(ours(*inputs)))),
        torch.no_grad()(lambda: tuple(tensors_of(plain(*inputs))[:count])),
        lambda: tuple(tensors_of(plain(*wide))[:count]),
    )


def small_picks() -> Pair:
    """`prune_picks` of a prepared list beside the plain module's half."""
    pruner = random_pruner(TINY).requires_grad_(False)
    tokens, weights = draw(1, 16, 64), prepare(pruner.packed())
    slots_init = pruner.sample_slots(1, 4).contiguous()

    @torch.no_grad()
    def ours() -> Outputs:
        return outputs_of(OPS.prune_picks(tokens, weights, slots_init))

    @torch.no_grad()
    def plain() -> Outputs:
        _, logits = pruner.aggregat(pruner.encode_project(tokens), slots_init)
        scores = slots.log_attention(logits)
        return *selection.slot_picks(scores, 1), scores.amax(dim=1)

    def check() -> Verdict:
        return Verdict(torch.equal(ours()[0], plain()[0]), "ids exact")

    return Pair(ours, plain, check)


BIG = (1, 576, 64)
ODD = {"bfloat16": HALF, "float32": torch.float32}


def text(sizes: tuple[int, int, int]) -> str:
    return "prune B {} · N {} · K {}".format(*sizes)


def prunings() -> Iterator[Setting]:
    """`prune`, however it is called."""

    def setting(name: str, ours: Any, dtype: torch.dtype, sizes: Any = BIG, **more: Any) -> Setting:
        return Setting(name, text(sizes), lambda: pruning(ours, dtype, sizes=sizes, **more), (1, 2))

    for name, dtype in ODD.items():
        yield setting(f"{name}, without native kernels", without_native_kernels, dtype)
        for sizes in (BIG, (1, 49, 16), (8, 196, 64)):
            where = f"{name}, autocast to bfloat16"
            yield setting(where, frozen, dtype, sizes, mode=autocast)
    for sizes in (BIG, (1, 1024, 640), (64, 49, 49), (8, 196, 64)):
        yield setting("bfloat16", frozen, HALF, sizes)
    inference = {"mode": torch.inference_mode}
    for sizes in (BIG, (1, 49, 49)):
        here = (torch.float32, sizes)
        yield setting("a pruner that nobody froze, attached", attached, *here)
        yield setting("frozen in inference mode", frozen_in_inference_mode, *here, **inference)
        yield setting("frozen, moved in inference mode", moved_in_inference_mode, *here)
        yield setting("frozen, loaded in inference mode", loaded_in_inference_mode, *here)
        yield setting("prepared weights, as views of them", of_views, *here)
        yield setting("packed() at every call, not frozen", of_packed, *here)


def others() -> Iterator[Setting]:
    """What else there is."""
    for backward in (False, True):
        direction = "backward" if backward else "forward"
        what = f"slot_attention {direction} B 12 · N 576 · K 64"
        yield Setting("bfloat16", what, lambda b=backward: compete(b))
    for dtype, is_autocast in ((torch.float32, True), (HALF, False)):
        name = "float32, autocast to bfloat16" if is_autocast else "bfloat16"
        mode = (dtype, is_autocast)
        what = "slot_attention_step forward and backward B 12 · N 576 · K 64"
        yield Setting(name, what, lambda m=mode: iteration(*m))
        yield Setting(name, "training iteration B 4 · N 576 · K 64", lambda m=mode: training(*m))
    for sizes in (
        ("cls", torch.float16, 16, 577, 64),
        ("cls", torch.float16, 1, 577, 1024),
        ("cls", torch.float32, 16, 2880, 64),
        ("meanq", HALF, 1, 577, 1024),
    ):
        mode, dtype, heads, num_tokens, width = sizes
        what = f"attention_received {mode} H {heads} · N {num_tokens} · d {width}"
        name = str(dtype).removeprefix("torch.")
        yield Setting(name, what, lambda s=sizes: received(*s), calls=1 if mode == "meanq" else 5)


def smalls() -> Iterator[Setting]:
    """Sizes at which the host's time is all: B 1, N 16, K 4, D 32."""
    q, k, x = draw(1, 4, 32), draw(1, 16, 32, seed=1), draw(1, 16, 64, seed=2)
    shapes = ((1, 4, 32), (1, 4, 32), (96, 32), (96, 32), (96,), (96,))
    gru = [draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    made: dict[str, Callable[[], Pair]] = {
        "prune": lambda: pruning(frozen, torch.float32, sizes=(1, 16, 4), config=TINY),
        "prune_picks": small_picks,
        "merge": lambda: small("merge", selection.merge, q, k, x),
        "gru_cell": lambda: small("gru_cell", slots.gru_cell, *gru),
        "slot_attention": lambda: small("slot_attention", slots.slot_attention, q, k, k, 0.2),
        "channel_variance": lambda: small("channel_variance", greedy.channel_variance, x),
    }
    for name, make in made.items():
        yield Setting("tiny", f"{name} B 1 · N 16 · K 4", make, (1,), SMALL_CALLS)


def settings() -> list[Setting]:
    """All that are timed in this process."""
    return [*prunings(), *others(), *smalls()]


def run(result: Result, folder: Path, short: bool, deadline: float) -> int:
    """Measures every setting, saving after each; returns how many were refused."""
    rows: list[SettingRow] = []
    result.rows = rows
    threads_before = torch.get_num_threads()

    def keep(row: SettingRow) -> None:
        rows.append(row)
        print(describe(row), flush=True)
        result.save(folder)

    try:
        for setting in settings():
            for threads in setting.threads[: 1 if short else None]:
                if time.monotonic() > deadline:
                    print("out of time: settings are left out")
                    return sum(not row.gate.passed for row in rows)
                torch.set_num_threads(threads)
                keep(timed(setting, threads, 0.2 if short else SECONDS))
    finally:
        torch.set_num_threads(threads_before)
    for make in () if short else (*memories(), *imports()):
        keep(make())
    return sum(not row.gate.passed for row in rows)


def timed(setting: Setting, threads: int, seconds: float) -> SettingRow:
    """The setting's row."""
    pair = setting.make()
    verdict = pair.check()
    times: dict[str, Timing] = {}
    if verdict.passed:
        times = measure(
            {"ours": pair.ours, "plain": pair.plain},
            calls=setting.calls,
            seconds=seconds,
            rounds=ROUNDS,
            cpu_time=threads == 1,
        )
    ours, plain = times.get("ours"), times.get("plain")
    return row_of(setting.name, setting.what, threads, "s", ours, plain, verdict)


def row_of(
    name: str,
    what: str,
    threads: int,
    unit: str,
    ours: Timing | None,
    plain: Timing | None,
    verdict: Verdict,
) -> SettingRow:
    mine, theirs = (
        (None, None, None) if one is None else (one.median_s, one.p20_s, one.p80_s)
        for one in (ours, plain)
    )
    rounds = 0 if ours is None else ours.rounds
    return SettingRow(name, what, threads, unit, *mine, *theirs, rounds, verdict)


def describe(row: SettingRow) -> str:
    """A row as a line."""
    head = f"{row.setting:40} {row.what:64} {row.threads} threads "
    if row.median is None or row.plain_median is None:
        return f"{head} refused: {row.gate.note}"
    scale, unit = (1e3, "ms") if row.unit == "s" else (1e-6, "MB")
    return (
        f"{head}{row.median * scale:10.3f} {unit}, plain {row.plain_median * scale:10.3f} "
        f"{row.median / row.plain_median:6.2f}; {row.gate.note}"
    )


GROWTH = """
import sys
import torch
from bench.pruners import random_pruner
from ocvtp_kernels import PrunerConfig

torch.set_num_threads(2)
dtype, sizes = getattr(torch, sys.argv[2]), int(sys.argv[3])
pruner = random_pruner(PrunerConfig(), dtype=dtype).requires_grad_(False)
if sys.argv[1] == "ours":
    pruner.freeze()


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def prune(num_tokens):
    tokens = torch.randn(1, num_tokens, 1024, dtype=dtype)
    pruner(tokens, tokens, 64)


generator = torch.Generator().manual_seed(0)
with torch.no_grad():
    prune(64)
    prune(64 + 2 * sizes)
    before = resident()
    for more in torch.randperm(2 * sizes, generator=generator)[:sizes].tolist():
        prune(64 + more)
print(resident() - before)
"""


def memories() -> Iterator[Callable[[], SettingRow]]:
    """By how much a process grows over images that each have a size of their own."""
    for name in ODD:

        def make(name: str = name) -> SettingRow:
            grown = [
                float(output_of(["-c", GROWTH, who, name, str(SIZES)])) for who in ("ours", "plain")
            ]
            ours, plain = (summary([value], "host") for value in grown)
            what = f"memory after {SIZES} sizes of image"
            return row_of(name, what, 2, "bytes", ours, plain, Verdict(True, "resident memory"))

        yield make


def imports() -> Iterator[Callable[[], SettingRow]]:
    """What a process takes to start, beside one that imports torch alone."""
    for what, arguments in {
        "import ocvtp_kernels": ["-c", "import ocvtp_kernels"],
        "ocvtp --help": ["-m", "ocvtp_kernels.cli", "--help"],
    }.items():

        def make(what: str = what, arguments: list[str] = arguments) -> SettingRow:
            commands = {"ours": arguments, "plain": ["-c", "import torch"]}
            taken: dict[str, list[float]] = {name: [] for name in commands}
            # As an installed package is imported: compiled before.
            with tempfile.TemporaryDirectory() as cache:
                for turn in range(PROCESSES + 1):
                    for name, command in commands.items():
                        start = time.perf_counter()
                        output_of(["-X", f"pycache_prefix={cache}", *command])
                        if turn:
                            taken[name].append(time.perf_counter() - start)
            ours, plain = (summary(values, "host") for values in taken.values())
            verdict = Verdict(True, "beside import torch")
            return row_of("a new process", what, torch.get_num_threads(), "s", ours, plain, verdict)

        yield make


def output_of(arguments: Sequence[str]) -> str:
    """What this Python says to standard output."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
    )
    return done.stdout
