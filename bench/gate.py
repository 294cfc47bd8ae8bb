"""The correctness gate: a variant must be right on two fresh inputs before it is timed.

Floats keep the error budget of CONTRIBUTING; ids are exact off ties in float32 and float64, and in
half precision the kept tokens hold 99 % of each slot's largest attention. Between the two checks
the first outputs are poisoned and the inputs overwritten in place, which exposes a variant that
returns earlier results or leaves outputs unwritten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from bench.cases import Case, Function, Inputs, Outputs, outputs_of
from bench.results import CheckResult, Times
from bench.timing import StaleReplay, first_line, poison
from bench.variants import Run, Variant, bind_backward, draw_grads
from ocvtp_kernels.dtypes import product_dtype

FACTOR = 2.0  # of plain PyTorch's error
# Plain PyTorch's error is the largest of several draws, as a single small one may be exact.
YARDSTICK_SEEDS = (101, 102, 103)
REGRET = 1e-2  # of a slot's largest attention, in half precision
NO_MEMORY = "out of memory"
FAILURES = (RuntimeError, ValueError, TypeError, ImportError)  # of a variant that cannot run


def time_gated(
    names: Collection[str],
    check: Callable[[str, bool], CheckResult],
    measure: Callable[[list[str]], dict[str, Times]],
) -> tuple[dict[str, CheckResult], dict[str, Times]]:
    """Checks variants, times those that pass in turns, and checks these again.

    Args:
        names: of the variants.
        check: of one of them, before or, if True, after the timing.
        measure: times some of them in turns, captured under these names.

    Returns:
        each one's check, and all that was timed, of those too that fail afterwards.
    """
    checks = {name: check(name, False) for name in names}
    times: dict[str, Times] = {}
    while passed := [name for name in names if checks[name].passed]:
        try:
            times = measure(passed)
            break
        except StaleReplay as stale:
            checks[stale.variant] = CheckResult(False, str(stale))
        except torch.OutOfMemoryError:
            # The failing variant is unknown: all of them hold memory while they take turns.
            checks |= dict.fromkeys(passed, CheckResult(False, f"{NO_MEMORY} while taking turns"))
    for name in passed:
        again = check(name, True)
        if not again.passed:
            checks[name] = CheckResult(False, f"after the timing, {again.note}")
    return checks, times


def check_variant(case: Case, variant: Variant, direction: str, seed: int) -> CheckResult:
    """Runs a variant on two different inputs, poisoning in between, and checks both outputs."""

    def check() -> str:
        inputs, grads = fresh(case, direction, seed)
        run = variant.bind(case, direction, inputs, grads)
        if direction == "forward":
            _check_forward(truth_of(case, seed), variant, _run(run))
            overwrite(inputs, case.inputs(seed + 1))
            note = _check_forward(truth_of(case, seed + 1), variant, _run(run))
        else:
            _check_backward(truth_of(case, seed), variant, _run(run), grads)
            # The forward pass keeps its inputs, so only the gradients may be overwritten.
            overwrite(grads, draw_grads(case, inputs, seed + 2))
            _check_backward(truth_of(case, seed), variant, _run(run), grads)
            inputs, grads = fresh(case, direction, seed + 1)
            run = variant.bind(case, direction, inputs, grads)
            note = _check_backward(truth_of(case, seed + 1), variant, _run(run), grads)
        return note

    return result_of(check)


def result_of(check: Callable[[], str]) -> CheckResult:
    """A check's note, or why it refuses or fails."""
    try:
        return CheckResult(True, check())
    except Refused as refusal:
        return CheckResult(False, str(refusal))
    except torch.OutOfMemoryError:
        return CheckResult(False, NO_MEMORY)
    except FAILURES as error:
        return CheckResult(False, f"it fails: {type(error).__name__}: {first_line(error)}")


class Refused(Exception):
    """Outputs are wrong; the message says how."""


def fresh(case: Case, direction: str, seed: int) -> tuple[Inputs, Inputs]:
    """Inputs and, for the backward pass, gradients of the outputs."""
    inputs = case.inputs(seed)
    return inputs, draw_grads(case, inputs, seed) if direction == "backward" else ()


def overwrite(targets: Inputs, sources: Inputs) -> None:
    """Writes other values into the same memory."""
    with torch.no_grad():
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)


def _run(run: Run) -> Outputs:
    """Copies of a call's outputs, which are poisoned."""
    outputs = run()
    kept = tuple(output.clone() for output in outputs)
    poison(outputs)
    return kept


class Truth:
    """What forward calls on the inputs of a seed are held against, computed when asked for."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.inputs = case, case.inputs(seed)
        self._wide = tuple(_double(tensor) for tensor in self.inputs)
        dtype: torch.dtype = getattr(torch, case.workload.compute_dtype)
        self.is_half, self.eps = dtype.itemsize < 4, torch.finfo(dtype).eps

    @cached_property
    def oracle(self) -> Outputs:
        """In float64."""
        with torch.no_grad():
            return outputs_of(self.case.reference(*self._wide))

    @cached_property
    def yardstick(self) -> Outputs:
        """Of plain PyTorch at the given dtype, in the workload's mode."""
        return _in_mode(self.case, self.case.reference, self.inputs)

    @cached_property
    def scores(self) -> Tensor:
        """What ids are picked by, in float64."""
        assert self.case.scores is not None
        with torch.no_grad():
            scores: Tensor = self.case.scores(*self._wide)
        return scores

    @cached_property
    def near(self) -> Tensor:
        """The scores at the given dtype, which show the tokens that tie within rounding."""
        assert self.case.scores is not None
        return _in_mode(self.case, self.case.scores, self.inputs)[0].double()


@lru_cache(maxsize=2)
def truth_of(case: Case, seed: int) -> Truth:
    """The truth of a seed, once for all variants."""
    return Truth(case, seed)


def _check_forward(truth: Truth, variant: Variant, outputs: Outputs) -> str:
    """How accurate the outputs are, in a few words.

    Raises:
        Refused: they are wrong.
    """
    case, oracle = truth.case, truth.oracle
    if case.kind == "exact":
        pairs = zip(outputs, oracle, strict=True)
        require(
            all(_double(actual).equal(exact) for actual, exact in pairs),
            "ids differ from the reference's",
        )
        return "ids exact"
    if case.kind == "kept":
        return _kept(truth, outputs, variant.plain)
    errors = plain_errors(case, "forward")
    if case.kind == "floats":
        rounding = torch.finfo(case.workload.torch_dtype).eps if variant.rounds else 0.0
        is_autocast = case.workload.mode == "autocast"
        return _floats(outputs, truth.yardstick, oracle, errors, rounding, is_autocast)
    note = _argmax(truth, outputs[0], variant.plain)
    return f"{note}, {_floats(outputs[1:], truth.yardstick[1:], oracle[1:], errors[1:])}"


def _check_backward(truth: Truth, variant: Variant, outputs: Outputs, grads: Inputs) -> str:
    """How accurate the gradients are, in a few words.

    Raises:
        Refused: they are wrong.
    """
    case = truth.case
    if case.kind == "kept":
        return _scattered(truth, outputs[0], grads[0], variant.plain)
    wide, wide_grads = (tuple(_double(t) for t in ts) for ts in (truth.inputs, grads))
    oracle = bind_backward(case, case.reference, wide, wide_grads)()
    yardstick = bind_backward(case, case.reference, truth.inputs, grads)()
    return _floats(outputs, yardstick, oracle, plain_errors(case, "backward"))


def _in_mode(case: Case, function: Function, inputs: Inputs) -> Outputs:
    """A function's outputs in the workload's mode; none of them is marked as inference mode's."""
    found = Variant("plain", function).bind(case, "forward", inputs)()
    return tuple(output.clone() for output in found)


@lru_cache(maxsize=2)
def plain_errors(case: Case, direction: str) -> tuple[float, ...]:
    """Plain PyTorch's largest error in each output, as a share of the output's largest value."""
    draws = []
    for seed in YARDSTICK_SEEDS:
        inputs, grads = fresh(case, direction, seed)
        plain = Variant("plain", case.reference).bind(case, direction, inputs, grads)()
        wide, wide_grads = (tuple(_double(t) for t in ts) for ts in (inputs, grads))
        oracle = Variant("oracle", case.reference).bind(case, direction, wide, wide_grads)()
        draws.append([_error(*pair) / _scale(pair[1]) for pair in zip(plain, oracle, strict=True)])
    return tuple(max(errors) for errors in zip(*draws, strict=True))


def _error(actual: Tensor, exact: Tensor) -> float:
    return (actual.double() - exact).abs().max().item()


def _scale(exact: Tensor) -> float:
    """The largest absolute value, at least the smallest normal float64."""
    return max(exact.abs().max().item(), torch.finfo(torch.float64).tiny)


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def require(right: bool, sentence: str) -> None:
    """Raises `Refused` with the sentence unless something is right."""
    if not right:
        raise Refused(sentence)


def _floats(
    outputs: Outputs,
    yardstick: Outputs,
    oracle: Outputs,
    errors: tuple[float, ...],
    rounding: float = 0.0,
    is_autocast: bool = False,
) -> str:
    require(len(outputs) == len(oracle), f"{len(outputs)} outputs instead of {len(oracle)}")
    worst = 0.0
    for index, (actual, plain, exact) in enumerate(zip(outputs, yardstick, oracle, strict=True)):
        require(actual.shape == exact.shape, f"output {index} has shape {list(actual.shape)}")
        # Under autocast an op stays in float32 on a CPU that multiplies no half precision.
        stays = is_autocast and actual.dtype == product_dtype(plain.dtype, plain.device)
        require(stays or actual.dtype == plain.dtype, f"output {index} is {actual.dtype}")
        scale = _scale(exact)
        plain_error = max(_error(plain, exact), errors[index] * scale)
        allowed = FACTOR * plain_error + max(rounding, torch.finfo(plain.dtype).eps) * scale
        error = _error(actual, exact)
        # In this form NaN is refused.
        require(error <= allowed, f"output {index}: error {error:.2e}, allowed {allowed:.2e}")
        worst = max(worst, error / allowed)
    return f"error {worst:.2f} of the budget"


def _slack(truth: Truth, plain: bool) -> float:
    """How far below a slot's best log-attention a pick may lie."""
    scores, near = truth.scores, truth.near
    if not truth.is_half:
        scale = scores.abs().max().item() * truth.eps
        return FACTOR * (near - scores).abs().max().item() + scale
    slack = -math.log1p(-REGRET)
    if not plain:
        return slack
    own = scores.amax(-1) - scores.gather(-1, near.argmax(-1, keepdim=True)).squeeze(-1)
    return max(slack, FACTOR * own.max().item())


def _argmax(truth: Truth, ids: Tensor, plain: bool) -> str:
    scores = truth.scores
    require(ids.dtype == torch.int64, f"ids are {ids.dtype}")
    require(bool(((ids >= 0) & (ids < scores.shape[-1])).all()), "ids out of range")
    lost = scores.amax(-1) - scores.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return _regret(truth, lost.max().item(), _slack(truth, plain))


def _regret(truth: Truth, lost: float, slack: float) -> str:
    regret = -math.expm1(-lost)
    note = "" if truth.is_half else ", which is no tie"
    require(lost <= slack, f"ids lose {regret:.1e} of a slot's largest attention{note}")
    return f"regret {regret:.1e}" if lost > 0 else "ids exact"


def _kept(truth: Truth, outputs: Outputs, plain: bool) -> str:
    tokens, ids = outputs
    final_tokens, importance = truth.inputs[truth.case.wrt[0]], truth.inputs[-1]
    oracle, scores = truth.oracle[1], truth.scores
    require(ids.shape == oracle.shape and ids.dtype == torch.int64, "ids of another shape or dtype")
    require(bool((ids[:, 1:] > ids[:, :-1]).all()), "ids not ascending and distinct")
    require(bool(((ids >= 0) & (ids < final_tokens.shape[1])).all()), "ids out of range")
    rows = ids.unsqueeze(-1).expand(-1, -1, final_tokens.shape[2])
    require(
        torch.equal(tokens, final_tokens.gather(1, rows)), "tokens are not the rows that ids name"
    )
    if torch.equal(ids, oracle):
        return "ids exact"
    slack, best = _slack(truth, plain), scores.amax(-1, keepdim=True)
    by_slot = ids.unsqueeze(1).expand(-1, scores.shape[1], -1)
    lost = (best.squeeze(-1) - scores.gather(-1, by_slot).amax(-1)).max().item()
    note = _regret(truth, lost, slack)
    # Kept tokens that no slot picks are padding; no token left out may be more important.
    inside = torch.zeros_like(importance, dtype=torch.bool).scatter(1, ids, True)
    picked = (scores >= best - slack).any(dim=1)
    padding = importance.masked_fill(~inside | picked, math.inf).amin(-1)
    outside = importance.masked_fill(inside, -math.inf).amax(-1)
    require(bool((padding >= outside).all()), "padding is not the most important tokens")
    return note


def _scattered(truth: Truth, grad: Tensor, given: Tensor, plain: bool) -> str:
    """The gradient of a gather: the given rows at the kept tokens, zero elsewhere."""
    final_tokens = truth.inputs[truth.case.wrt[0]]
    require(grad.shape == final_tokens.shape, f"the gradient has shape {list(grad.shape)}")
    rows = (grad != 0).any(-1)
    require(bool((rows.sum(-1) == given.shape[1]).all()), "another number of rows has a gradient")
    ids = rows.nonzero()[:, 1].view(given.shape[:2])
    where = ids.unsqueeze(-1).expand_as(given)
    require(torch.equal(grad.gather(1, where), given), "the gradient is not the rows given")
    return _kept(truth, (final_tokens.gather(1, where), ids), plain)
