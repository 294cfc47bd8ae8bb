"""One case: a call is made, changed, run and judged."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels import BackendUnavailable
from tests.fuzz.calls import (
    Call,
    Context,
    described,
    is_refused_by_its_type,
    names_an_argument,
)
from tests.fuzz.changes import in_other_memory, of_other_values, spoilt
from tests.fuzz.draw import Draw, has_memory, map_tensors, tensors_of
from tests.fuzz.driver import Outcome
from tests.fuzz.oracle import (
    Oracle,
    Snapshot,
    Wanted,
    Wrong,
    check_fake,
    check_kept,
    is_same,
    require,
)
from tests.fuzz.targets import targets

TARGETS = targets()
NAMES = tuple(TARGETS)


class Case:
    """A call with all that is done to it, and what holds around it."""

    def __init__(self, seed: int, number: int) -> None:
        self.draw = draw = Draw(seed, number)
        self.target = NAMES[number % len(NAMES)]
        torch.manual_seed(number)
        self.call: Call = TARGETS[self.target](draw)
        self.context = Context.of(draw, self.call)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.arguments = self._changed(dict(self.call.arguments))

    def _changed(self, given: dict[str, Any]) -> dict[str, Any]:
        draw = self.draw
        values, memory = draw.choice((0.0, 0.0, 0.3)), draw.choice((0.0, 0.3, 0.3))

        def other(tensor: Tensor) -> Tensor:
            tensor = of_other_values(draw, tensor) if draw.chance(values) else tensor
            return in_other_memory(draw, tensor) if draw.chance(memory) else tensor

        given = map_tensors(other, given)
        for _ in range(draw.choice((0, 0, 0, 1, 1, 2))):
            if not given or draw.chance(0.05):
                given = self._with_other_names(given)
                continue
            name = draw.choice(list(given))
            changed = spoilt(draw, given[name])
            # Nobody has the memory for sizes without a bound.
            is_size = name in self.call.sizes and is_large(changed)
            given[name] = given[name] if is_size else changed
        return given

    def _with_other_names(self, given: dict[str, Any]) -> dict[str, Any]:
        """An argument too many or too few."""
        if given and self.draw.chance(0.5):
            given.pop(self.draw.choice(list(given)))
            return given
        return {**given, "nothing": self.draw.choice((None, 1, torch.zeros(1)))}

    def __str__(self) -> str:
        lines = [f"{self.target}, {self.context}"]
        lines += [f"    {name} = {described(value)}" for name, value in self.arguments.items()]
        return "\n".join(lines)

    def run(self) -> Outcome:
        """Runs and judges the call."""
        snapshot = Snapshot(self.arguments)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                valid = self._judged(snapshot)
        except Wrong as wrong:
            return Outcome(self.target, True, f"{wrong}\n{self}")
        except Exception:
            return Outcome(self.target, True, f"the oracle failed\n{traceback.format_exc()}{self}")
        return valid

    def _judged(self, snapshot: Snapshot) -> Outcome:
        call, context = self.call, self.context
        try:
            with context.on():
                result = call.function(**self.arguments)
        except BackendUnavailable as error:
            is_forced = context.backend == "triton"
            return Outcome(self.target, False, "" if is_forced else f"{error!r}\n{self}")
        except Exception as error:
            snapshot.check()
            if self._is_refusal(error) or self._is_for_a_cpu_to_refuse():
                return Outcome(self.target, False)
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{last.filename.rpartition('ocvtp_kernels/')[2]}:{last.lineno}"
            said = str(error).split("\n")[0][:300]
            found = f"{type(error).__name__} at {where}: {said}\n{self}"
            return Outcome(self.target, False, found)
        if self._is_for_a_cpu_to_refuse():
            return Outcome(self.target, False)
        self._check(result, snapshot)
        return Outcome(self.target, True)

    def _is_refusal(self, error: Exception) -> bool:
        call = self.call
        if names_an_argument(error, call.names | self.arguments.keys()):
            return True
        return call.is_direct and is_refused_by_its_type(error, self.arguments)

    def _is_for_a_cpu_to_refuse(self) -> bool:
        """Whether Triton's kernels were given ids past the tokens, which a CPU alone looks at."""
        if self.context.backend != "triton":
            return False
        try:
            with replace(self.context, backend="default").on():
                self.call.function(**self.arguments)
        except Exception as error:
            return self._is_refusal(error)
        return False

    def _check(self, result: Any, snapshot: Snapshot) -> None:
        call, context, draw = self.call, self.context, self.draw
        results = call.named(result)
        tensors = list(results.values())
        snapshot.check()
        if call.fake:
            snapshot.check_apart(tensors)
        if tensors and tensors[0].device.type != "cpu":
            require(all(one.device == tensors[0].device for one in tensors), "devices differ")
            return
        with context.on():
            again = tensors_of(call.function(**self.arguments))
        require(all(map(is_same, tensors, again)), "a second run has other bits")
        seed, given = draw.getrandbits(63), tensors_of(self.arguments)
        wanted = Wanted.of(tensors if call.has_gradients else [], given, seed)
        gradients = wanted.gradients(tensors, given)
        snapshot.check()
        self._check_ids(results)
        if context.autocast is not None and not call.ignores_autocast:
            return
        if call.fake and draw.chance(0.3):
            check_fake(call, self.arguments, tensors)
        oracle = Oracle(call, self.arguments, draw)
        oracle.compute(wanted)
        oracle.check(results, gradients)
        if draw.chance(0.3):
            dense = map_tensors(dense_copy, self.arguments)
            with context.on():
                oracle.check(call.named(call.function(**dense)), [])

    def _check_ids(self, results: Mapping[str, Tensor]) -> None:
        """What holds of ids whatever the numbers are."""
        call, ids = self.call, results.get("ids")
        if ids is None and call.kept:
            ids = next(iter(results.values()))
        if ids is None:
            return
        if call.kept:
            check_kept(call, ids, self._num_tokens())
        if has_memory(valid := self.arguments.get("valid")):
            require(bool(valid.gather(1, ids).all()), "padding is kept")
        for name, source in call.rows.items():
            if name in results:
                tokens = self.arguments[source].detach()
                rows = [image[kept] for image, kept in zip(tokens, ids, strict=True)]
                expected = torch.stack(rows) if rows else tokens.new_empty(results[name].shape)
                require(is_same(results[name].detach(), expected), f"{name} are not those rows")

    def _num_tokens(self) -> int:
        """Of tokens ``[B, N, ...]``, keys or importance."""
        given = self.arguments
        for name in ("reference_tokens", "final_tokens", "tokens", "importance"):
            if isinstance(given.get(name), Tensor) and has_memory(given[name]):
                return int(given[name].shape[1])
        return int(given["num_tokens"])


def is_large(value: Any) -> bool:
    return isinstance(value, Integral) and value > 4096


def dense_copy(tensor: Tensor) -> Tensor:
    if not has_memory(tensor):
        return tensor
    return tensor.detach().clone(memory_format=torch.contiguous_format).resolve_neg()


def run_case(seed: int, number: int) -> Outcome:
    """Makes, runs and judges a case."""
    try:
        case = Case(seed, number)
    except Exception:
        target = NAMES[number % len(NAMES)]
        return Outcome(target, False, f"there is no such case\n{traceback.format_exc()}")
    outcome = case.run()
    # Once an error of torch, which prints no bfloat16 under float16, is gone, autocast is on again.
    torch.set_autocast_enabled("cpu", False)
    return outcome
