"""End to end: Hugging Face LLaVA models at real size, with and without a pruner attached.

A row is one model, batch, selector, budget and mode (see `bench.models.calls`). The variants of a
group (see `bench.models.plan`) take turns, and none is timed that the gate refuses. TTFT runs from
pixels and ids on the device to the first new token's id on the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.gate import check_variant
from bench.models.calls import MODES, NEW_TOKENS, Eager
from bench.models.gate import why_model_is_wrong, why_wrong
from bench.models.llava import Choice, Shape, Vlm
from bench.models.plan import Job, Variation, describe, plan
from bench.models.stages import split
from bench.ops import case_of
from bench.results import OURS, CheckResult, ModelRow, ModelTimes, Results, Stage, Times
from bench.timing import Call, first_line, measure, release
from bench.variants import Variant

BEFORE_SEEDS, AFTER_SEEDS = (1, 2), (3,)  # of the gate, before and after the timing
ROUNDS = (3, 15)
SECONDS = 8.0  # of all variants in turns
WARM = 3  # turns that `measure` takes before its rounds
NO_MEMORY = "out of memory"

Checks = dict[tuple[Shape, int], CheckResult]  # of `prune` at a model's budgets


@torch.no_grad()
def run(results: Results, folder: Path, device: torch.device, short: bool, deadline: float) -> int:
    """Times every job, saving after every row; returns how many variants were refused."""
    refused = 0
    checks: Checks = {}
    vlm: Vlm | None = None
    wrong: str | None = None
    for job in plan(device.type, short):
        if time.monotonic() > deadline:
            print(f"out of time: {job} and what comes after is left out")
            break
        new: Iterable[ModelRow] = ()
        if vlm is None or vlm.shape is not job.shape:
            vlm = None
            release(device)
            try:
                vlm = Vlm(job.shape, device)
                wrong = why_model_is_wrong(vlm)
            except torch.OutOfMemoryError as error:
                note = f"{NO_MEMORY}: {first_line(error)}"
                vlm, wrong = None, None
                new = [job.row(one, None, note) for group in job.groups for one in group]
            if wrong is not None:
                refused += 1
                print(f"{job.shape.name} refused: {wrong}", flush=True)
        if vlm is not None and wrong is None:
            new = time_job(vlm, job, deadline, checks)
        for row in new:
            results.rows.append(row)
            refused += row.note.startswith("refused")
            print(describe(row), flush=True)
            results.save(folder)
        release(device)
    return refused


def time_job(vlm: Vlm, job: Job, deadline: float, checks: Checks) -> Iterator[ModelRow]:
    """A row for each variant of a job; none of those that too little time is left for."""
    for group in job.groups:
        try:
            rows = _time_group(vlm, job, group, deadline, checks)
        except RuntimeError as error:
            note = f"refused: the timing fails: {type(error).__name__}: {first_line(error)}"
            rows = [job.row(one, None, note) for one in group]
        if rows is None:
            names = ", ".join(dict.fromkeys(f"{c.selector} {c.budget}" for _, c in group))
            print(f"out of time: {job} is left out: {names}")
            return
        yield from rows
        release(vlm.device)


def _time_group(
    vlm: Vlm, job: Job, group: list[Variation], deadline: float, checks: Checks
) -> list[ModelRow] | None:
    runs: dict[Variation, Eager] = {}
    notes: dict[Variation, str] = {}  # why there are no times
    for one in group:
        if time.monotonic() > deadline:
            return None
        prepared = _prepare(vlm, one, job.batch, checks)
        if isinstance(prepared, str):
            notes[one] = prepared
            release(vlm.device)
        else:
            runs[one] = prepared
    try:
        times = _measure(runs, vlm.device, deadline)
    except torch.OutOfMemoryError:
        # The failing variant is unknown: all of them hold their caches.
        notes |= dict.fromkeys(runs, f"{NO_MEMORY} while taking turns")
        runs, times = {}, {}
    if times is None:
        return None
    splits: dict[Choice, dict[Stage, float]] = {}
    measured: dict[Variation, ModelTimes] = {}
    for one, call in runs.items():
        reason = why_wrong(call, AFTER_SEEDS)
        if reason is not None:
            notes[one] = f"refused: after the timing, {reason}"
            continue
        _, choice = one
        if choice not in splits:
            splits[choice] = split(vlm, choice, job.batch)
        measured[one] = ModelTimes(
            ttft=times[_name(one, "ttft")],
            stages={**splits[choice], "prefill": times[_name(one, "prefill")].median},
            decode_tokens_per_s=job.batch * NEW_TOKENS / times[_name(one, "decode")].median,
            cache_bytes=call.cache_bytes(),
            pruner_added_s=pruner_added(one, times),
        )
        notes[one] = call.note
    return [job.row(one, measured.get(one), notes[one]) for one in group]


def _prepare(vlm: Vlm, one: Variation, batch: int, checks: Checks) -> Eager | str:
    """Calls that may be timed, or the note why there are none."""
    mode, choice = one
    if choice.selector == "ocvtp":
        key = vlm.shape, choice.budget
        if key not in checks:
            case = case_of("prune", vlm.workload(choice.budget), vlm.device)
            checks[key] = check_variant(case, Variant(OURS, case.call), "forward", seed=1)
        if not checks[key].passed:
            return f"refused: the pruner: {checks[key].note}"
    try:
        call = MODES[mode](vlm, choice, batch)
        reason = why_wrong(call, BEFORE_SEEDS)
    except torch.OutOfMemoryError:
        return NO_MEMORY
    return call if reason is None else f"refused: {reason}"


def _measure(
    runs: dict[Variation, Eager], device: torch.device, deadline: float
) -> dict[str, Times] | None:
    """Times of all calls of all runs in turns; None if the deadline is too near."""
    calls: dict[str, Call] = {}
    for one, call in runs.items():
        calls[_name(one, "ttft")] = partial(_token, call.first)
        calls[_name(one, "prefill")] = partial(_token, call.prefill)
        calls[_name(one, "decode")] = call.decode
        calls[_name(one, "encode")] = call.encode
    if not calls:
        return {}
    start = time.monotonic()
    for each in calls.values():
        each()
    if device.type == "cuda":
        torch.cuda.synchronize()
    now = time.monotonic()
    if now + (now - start) * (WARM + ROUNDS[0]) > deadline:
        return None
    return measure(calls, device=device, seconds=SECONDS, rounds=ROUNDS)


def _token(call: Callable[[], Tensor]) -> Tensor:
    return call().argmax(-1)


def _name(one: Variation, what: str) -> str:
    mode, choice = one
    return f"{mode} {choice.selector} {choice.budget} {what}"


def pruner_added(one: Variation, times: dict[str, Times]) -> float | None:
    """Seconds that the OC-pruner adds to the encoder; None for other selectors.

    The median time of ``get_image_features`` with the OC-pruner, less that with the random
    selector at the same budget, both with the encoder's savings; eagerly the host counts where it
    is the slower, in a CUDA graph it does not. The projector takes as many tokens in both and
    cancels out. So this counts the pruner, what its importance costs in the encoder and the saving
    that it cannot have. The random selector's own top-k counts for it, and what hides behind the
    encoder on a GPU does not count. Noise may turn it negative.
    """
    mode, choice = one
    random = times.get(_name((mode, choice._replace(selector="random")), "encode"))
    if choice.selector != "ocvtp" or random is None:
        return None
    return times[_name(one, "encode")].median - random.median
