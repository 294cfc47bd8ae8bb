"""End to end: Hugging Face LLaVA models at real size, with and without a pruner attached.

A row is one model, batch, selector, budget and mode (see `bench.models.calls`). The variants of a
group (see `bench.models.plan`) take turns, and none is timed that the gate refuses. TTFT runs from
pixels and ids on the device to the first new token's id on the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.gate import NO_MEMORY, check_variant, time_gated
from bench.models.calls import MODES, NEW_TOKENS, Eager
from bench.models.gate import why_model_is_wrong, why_wrong
from bench.models.llava import Choice, Shape, Vlm
from bench.models.plan import Job, Variation, plan
from bench.models.stages import split
from bench.ops import case_of
from bench.report.tables import models_table
from bench.results import OURS, CheckResult, ModelRow, ModelTimes, Results, Stage, Times
from bench.timing import Call, first_line, measure, release
from bench.variants import Variant

BEFORE_SEEDS, AFTER_SEEDS = (1, 2), (3,)  # of the gate, before and after the timing
ROUNDS = (3, 15)
SECONDS = {"cpu": 2.0, "cuda": 8.0}  # of all variants in turns
WARM = 3  # turns that `measure` takes before its rounds

Checks = dict[tuple[Shape, int], CheckResult]  # of `prune` at a model's budgets


@torch.no_grad()
def run(results: Results, folder: Path, device: torch.device, short: bool, deadline: float) -> int:
    """Times every job, saving after every group; returns how many variants were refused."""
    refused = 0
    checks: Checks = {}
    vlm: Vlm | None = None
    note = ""  # why the model is not timed
    for job in plan(device.type, short):
        if time.monotonic() > deadline:
            print(f"out of time: {job} and what comes after is left out")
            break
        if vlm is None or vlm.shape is not job.shape:
            vlm, note = None, ""
            release(device)
            try:
                vlm = Vlm(job.shape, device)
                if wrong := why_model_is_wrong(vlm):
                    note = f"refused: {wrong}"
            except torch.OutOfMemoryError as error:
                vlm, note = None, f"{NO_MEMORY}: {first_line(error)}"
        print(job, flush=True)
        timed = time_job(vlm, job, deadline, checks) if vlm is not None and not note else None
        for rows in timed or [job.rows(note)]:
            results.rows += rows
            refused += sum(row.note.startswith("refused") for row in rows)
            print(models_table(rows), flush=True)
            results.save(folder)
        release(device)
    return refused


def time_job(vlm: Vlm, job: Job, deadline: float, checks: Checks) -> Iterator[list[ModelRow]]:
    """The rows of each group of a job; none of those that too little time is left for."""
    for group in job.groups:
        try:
            yield _time_group(vlm, job, group, deadline, checks)
        except TimeoutError:
            names = ", ".join(dict.fromkeys(f"{c.selector} {c.budget}" for _, c in group))
            print(f"out of time: {job} is left out: {names}")
            return
        except RuntimeError as error:
            note = f"refused: the timing fails: {type(error).__name__}: {first_line(error)}"
            yield [job.row(one, None, note) for one in group]
        release(vlm.device)


def _time_group(
    vlm: Vlm, job: Job, group: list[Variation], deadline: float, checks: Checks
) -> list[ModelRow]:
    named = {_name(one): one for one in group}
    runs: dict[str, Eager] = {}

    def check(name: str, after: bool) -> CheckResult:
        if not after and time.monotonic() > deadline:
            raise TimeoutError
        try:
            if not after:
                pruner = _check_pruner(vlm, named[name][1], checks)
                if not pruner.passed:
                    return CheckResult(False, f"the pruner: {pruner.note}")
                mode, choice = named[name]
                runs[name] = MODES[mode](vlm, choice, job.batch)
            reason = why_wrong(runs[name], AFTER_SEEDS if after else BEFORE_SEEDS)
        except torch.OutOfMemoryError:
            reason = NO_MEMORY
        if reason is not None:
            runs.pop(name, None)
            release(vlm.device)
        return CheckResult(reason is None, reason or "")

    def timed(names: list[str]) -> dict[str, Times]:
        return _measure({name: runs[name] for name in names}, vlm.device, deadline)

    results, times = time_gated(named, check, timed)
    splits: dict[Choice, dict[Stage, float]] = {}
    rows = []
    for name, one in named.items():
        if not results[name].passed:
            note = results[name].note
            refused = "" if note.startswith(NO_MEMORY) else "refused: "
            rows.append(job.row(one, None, refused + note))
            continue
        _, choice = one
        if choice not in splits:
            splits[choice] = split(vlm, choice, job.batch)
        found = ModelTimes(
            ttft=times[f"{name} ttft"],
            stages={**splits[choice], "prefill": times[f"{name} prefill"].median},
            decode_tokens_per_s=job.batch * NEW_TOKENS / times[f"{name} decode"].median,
            cache_bytes=runs[name].cache_bytes(),
            pruner_added_s=pruner_added(one, times),
        )
        rows.append(job.row(one, found, runs[name].note))
    return rows


def _check_pruner(vlm: Vlm, choice: Choice, checks: Checks) -> CheckResult:
    """The gate of `prune` at a model's size, asked once for a budget."""
    key = vlm.shape, choice.budget
    if choice.selector == "ocvtp" and key not in checks:
        case = case_of("prune", vlm.workload(choice.budget), vlm.device)
        checks[key] = check_variant(case, Variant(OURS, case.call), "forward", seed=1)
    return checks[key] if choice.selector == "ocvtp" else CheckResult(True, "")


def _measure(runs: dict[str, Eager], device: torch.device, deadline: float) -> dict[str, Times]:
    """Times of all calls of all runs in turns.

    Raises:
        TimeoutError: the deadline is too near.
    """
    calls: dict[str, Call] = {}
    for name, call in runs.items():
        calls[f"{name} ttft"] = partial(_token, call.first)
        calls[f"{name} prefill"] = partial(_token, call.prefill)
        calls[f"{name} decode"] = call.decode
        calls[f"{name} encode"] = call.encode
    start = time.monotonic()
    for each in calls.values():
        each()
    if device.type == "cuda":
        torch.cuda.synchronize()
    now = time.monotonic()
    if now + (now - start) * (WARM + ROUNDS[0]) > deadline:
        raise TimeoutError
    return measure(calls, device=device, seconds=SECONDS[device.type], rounds=ROUNDS)


def _token(call: Callable[[], Tensor]) -> Tensor:
    return call().argmax(-1)


def _name(one: Variation) -> str:
    mode, choice = one
    return f"{mode} {choice.selector} {choice.budget}"


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
    random = times.get(f"{_name((mode, choice._replace(selector='random')))} encode")
    if choice.selector != "ocvtp" or random is None:
        return None
    return times[f"{_name(one)} encode"].median - random.median
