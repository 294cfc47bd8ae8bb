"""Ways to use the CPU: half precision, autocast, modes of autograd, many sizes, small ones.

A row is one way to use the package and plain PyTorch used in the same way, interleaved: times of
one thread are CPU time, of two wall time. Memory and imports are measured in new processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.results import Result, SettingRow, setting_row
from bench.settings_ops import (
    TINY,
    draw,
    iteration,
    received,
    slot_attention,
    small,
    small_picks,
    training,
)
from bench.settings_processes import imports, memories
from bench.settings_prune import (
    HALF,
    Pair,
    attached,
    autocast,
    frozen,
    frozen_in_inference_mode,
    loaded_in_inference_mode,
    moved_in_inference_mode,
    of_packed,
    of_views,
    pruning,
    without_native_kernels,
)
from bench.timing import Timing, measure
from ocvtp_kernels import ops

SECONDS = 4.0  # of a row
ROUNDS = (7, 60)
# Calls in a sample where one takes microseconds; fewer would not average over drift.
SMALL_CALLS = 300
BIG = (1, 576, 64)
DTYPES = {"bfloat16": HALF, "float32": torch.float32}


class Setting(NamedTuple):
    """One way to use the package."""

    name: str
    what: str
    make: Callable[[], Pair]
    threads: tuple[int, ...] = (1, 2)
    calls: int = 1


def text(sizes: tuple[int, int, int]) -> str:
    return "prune B {} · N {} · K {}".format(*sizes)


def prunings() -> Iterator[Setting]:
    """`prune`, however it is called."""

    def setting(name: str, ours: Any, dtype: torch.dtype, sizes: Any = BIG, **more: Any) -> Setting:
        return Setting(name, text(sizes), lambda: pruning(ours, dtype, sizes=sizes, **more))

    for name, dtype in DTYPES.items():
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
    """Other ops."""
    for backward in (False, True):
        direction = "backward" if backward else "forward"
        what = f"slot_attention {direction} B 12 · N 576 · K 64"
        yield Setting("bfloat16", what, lambda b=backward: slot_attention(b))
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
    """Sizes at which host overhead dominates: B 1, N 16, K 4, D 32."""
    q, k, x = draw(1, 4, 32), draw(1, 16, 32, seed=1), draw(1, 16, 64, seed=2)
    shapes = ((1, 4, 32), (1, 4, 32), (96, 32), (96, 32), (96,), (96,))
    gru = [draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    made: dict[str, Callable[[], Pair]] = {
        "prune": lambda: pruning(frozen, torch.float32, sizes=(1, 16, 4), config=TINY),
        "prune_picks": small_picks,
        "merge": lambda: small("merge", ops.merge.reference, q, k, x),
        "gru_cell": lambda: small("gru_cell", ops.gru_cell.reference, *gru),
        "slot_attention": lambda: small(
            "slot_attention", ops.slot_attention_with_attention.reference, q, k, k, 0.2
        ),
        "channel_variance": lambda: small("channel_variance", ops.channel_variance.reference, x),
    }
    for name, make in made.items():
        yield Setting("tiny", f"{name} B 1 · N 16 · K 4", make, (1,), SMALL_CALLS)


def settings() -> list[Setting]:
    """All settings that are timed in this process."""
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
    check = pair.check()
    times: dict[str, Timing] = {}
    if check.passed:
        times = measure(
            {"ours": pair.ours, "plain": pair.plain},
            calls=setting.calls,
            seconds=seconds,
            rounds=ROUNDS,
            cpu_time=threads == 1,
        )
    ours, plain = times.get("ours"), times.get("plain")
    return setting_row(setting.name, setting.what, threads, "s", ours, plain, check)


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
