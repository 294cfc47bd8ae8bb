"""End to end: Hugging Face LLaVA models at real size, with and without a pruner attached.

A row is one model, batch, selector, budget and mode (see `bench.llava_calls`). The variants of a
group (see `bench.llava_plan`) take turns, and none is timed that the gate refuses. TTFT runs from
pixels and ids on the device to the first new token's id on the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.gate import CheckResult, check_variant
from bench.llava_calls import MODES, NEW_TOKENS, Eager
from bench.llava_gate import why_model_is_wrong, why_wrong
from bench.llava_models import OCVTP, RANDOM, Choice, Shape, Vlm
from bench.llava_plan import Job, describe, empty_row, plan
from bench.llava_stages import split
from bench.results import EndToEnd, Result
from bench.timing import Call, Timing, first_line, measure, release
from bench.variants import Variant

BEFORE_SEEDS, AFTER_SEEDS = (1, 2), (3,)  # of the gate, before and after the timing
ROUNDS = (3, 15)
SECONDS = 8.0  # of all variants in turns
WARM = 3  # turns that `measure` takes before its rounds
NO_MEMORY = "out of memory"

Variation = tuple[str, Choice]  # a mode, and the tokens kept


@torch.no_grad()
def run(result: Result, folder: Path, device: torch.device, short: bool, deadline: float) -> int:
    """Times every job, saving after every row; returns how many variants were refused."""
    rows: list[EndToEnd] = []
    result.rows = rows
    refused = 0
    judged: dict[tuple[Shape, int], CheckResult] = {}
    vlm: Vlm | None = None
    unbelieved: dict[str, str] = {}
    for job in plan(device.type, short):
        name = f"{job.shape.name}, batch {job.batch}"
        if time.monotonic() > deadline:
            print(f"out of time: {name} and what comes after is left out")
            break
        if vlm is None or vlm.shape is not job.shape:
            vlm = None
            release(device)
            vlm, note = _build(job.shape, device)
            reason = note if vlm is None else why_model_is_wrong(vlm)
            if vlm is not None and reason is not None:
                unbelieved[job.shape.name] = reason
                refused += 1
                print(f"{job.shape.name} refused: {reason}", flush=True)
        if vlm is None:
            new: Iterable[EndToEnd] = (
                empty_row(job, choice, mode, note) for choice in job.choices for mode in MODES
            )
        elif job.shape.name in unbelieved:
            continue
        else:
            new = time_job(vlm, job, deadline, judged)
        for one in new:
            rows.append(one)
            refused += one.note.startswith("refused")
            print(describe(one), flush=True)
            result.save(folder)
        release(device)
    return refused


def _build(shape: Shape, device: torch.device) -> tuple[Vlm | None, str]:
    try:
        return Vlm(shape, device), ""
    except torch.OutOfMemoryError as error:
        return None, f"{NO_MEMORY}: {first_line(error)}"


def time_job(
    vlm: Vlm, job: Job, deadline: float, judged: dict[tuple[Shape, int], CheckResult]
) -> Iterator[EndToEnd]:
    """A row for each variant of a job; none of those that too little time is left for.

    ``judged`` remembers what the gate of `prune` says of a budget.
    """
    for group in job.groups:
        try:
            rows = _time_group(vlm, job, group, deadline, judged)
        except RuntimeError as error:
            note = f"refused: the timing fails: {type(error).__name__}: {first_line(error)}"
            rows = [empty_row(job, choice, mode, note) for mode, choice in group]
        if rows is None:
            names = ", ".join(dict.fromkeys(f"{c.selector} {c.budget}" for _, c in group))
            print(f"out of time: {job.shape.name}, batch {job.batch} is left out: {names}")
            return
        yield from rows
        release(vlm.device)


def _time_group(
    vlm: Vlm,
    job: Job,
    group: list[Variation],
    deadline: float,
    judged: dict[tuple[Shape, int], CheckResult],
) -> list[EndToEnd] | None:
    runs: dict[Variation, Eager] = {}
    rows: dict[Variation, EndToEnd] = {}
    for mode, choice in group:
        if time.monotonic() > deadline:
            return None
        prepared = _prepare(vlm, choice, job.batch, mode, judged)
        if isinstance(prepared, str):
            rows[mode, choice] = empty_row(job, choice, mode, prepared)
            release(vlm.device)
        else:
            runs[mode, choice] = prepared
    try:
        timings = _measure(runs, vlm.device, deadline)
    except torch.OutOfMemoryError:
        # The failing variant is unknown: all of them hold their caches.
        for mode, choice in runs:
            rows[mode, choice] = empty_row(job, choice, mode, f"{NO_MEMORY} while taking turns")
        runs, timings = {}, {}
    if timings is None:
        return None
    splits: dict[Choice, dict[str, float]] = {}
    for (mode, choice), one in runs.items():
        reason = why_wrong(one, AFTER_SEEDS)
        if reason is not None:
            note = f"refused: after the timing, {reason}"
            rows[mode, choice] = empty_row(job, choice, mode, note)
            continue
        if choice not in splits:
            splits[choice] = split(vlm, choice, job.batch)
        rows[mode, choice] = _row(one, job, splits[choice], timings)
    return [rows[variation] for variation in group]


def _prepare(
    vlm: Vlm,
    choice: Choice,
    batch: int,
    mode: str,
    judged: dict[tuple[Shape, int], CheckResult],
) -> Eager | str:
    """A run that may be timed, or the note why there is none."""
    if choice.selector == OCVTP:
        key = vlm.shape, choice.budget
        if key not in judged:
            case = vlm.pruning(choice.budget)
            judged[key] = check_variant(case, Variant("prune", case.call), "forward", seed=1)
        if not judged[key].passed:
            return f"refused: the pruner: {judged[key].note}"
    try:
        one = MODES[mode](vlm, choice, batch)
        reason = why_wrong(one, BEFORE_SEEDS)
    except torch.OutOfMemoryError:
        return NO_MEMORY
    return one if reason is None else f"refused: {reason}"


def _measure(
    runs: dict[Variation, Eager], device: torch.device, deadline: float
) -> dict[str, Timing] | None:
    """Timings of all calls of all runs in turns; None if the deadline is too near."""
    calls: dict[str, Call] = {}
    for (mode, choice), one in runs.items():
        calls[_name(mode, choice, "ttft")] = partial(_token, one.first)
        calls[_name(mode, choice, "prefill")] = partial(_token, one.prefill)
        calls[_name(mode, choice, "decode")] = one.decode
        calls[_name(mode, choice, "encode")] = one.encode
    if not calls:
        return {}
    start = time.monotonic()
    for call in calls.values():
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    now = time.monotonic()
    if now + (now - start) * (WARM + ROUNDS[0]) > deadline:
        return None
    return measure(calls, device=device, seconds=SECONDS, rounds=ROUNDS)


def _token(call: Callable[[], Tensor]) -> Tensor:
    return call().argmax(-1)


def _name(mode: str, choice: Choice, what: str) -> str:
    return f"{mode} {choice.selector} {choice.budget} {what}"


def _row(one: Eager, job: Job, stages: dict[str, float], timings: dict[str, Timing]) -> EndToEnd:
    choice = one.choice
    ttft, prefill, decode = (
        timings[_name(one.mode, choice, what)] for what in ("ttft", "prefill", "decode")
    )
    return replace(
        empty_row(job, choice, one.mode, one.note),
        stages=stages | {"prefill": prefill.median_s},
        ttft_s=ttft.median_s,
        ttft_p20_s=ttft.p20_s,
        ttft_p80_s=ttft.p80_s,
        rounds=ttft.rounds,
        decode_tokens_per_s=job.batch * NEW_TOKENS / decode.median_s,
        cache_bytes=one.cache_bytes(),
        pruner_added_s=pruner_added(one.mode, choice, timings),
    )


def pruner_added(mode: str, choice: Choice, timings: dict[str, Timing]) -> float | None:
    """Seconds that the OC-pruner adds to the encoder; None for other selectors.

    The median time of ``get_image_features`` with the OC-pruner, less that with the random
    selector at the same budget, both with the encoder's savings; eagerly the host counts where it
    is the slower, in a CUDA graph it does not. The projector takes as many tokens in both and
    cancels out. So this counts the pruner, what its importance costs in the encoder and the saving
    that it cannot have. The random selector's own top-k counts for it, and what hides behind the
    encoder on a GPU does not count. Noise may turn it negative.
    """
    ours, random = (
        timings.get(_name(mode, Choice(name, choice.budget), "encode")) for name in (OCVTP, RANDOM)
    )
    if choice.selector != OCVTP or ours is None or random is None:
        return None
    return ours.median_s - random.median_s
