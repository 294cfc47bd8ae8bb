"""The fuzz itself: short runs of it, that it covers everything, and that it sees what is wrong."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import backends, ops
from ocvtp_kernels.ops.registry import COMPOSED
from ocvtp_kernels.selectors.registry import METHODS
from tests.fuzz.__main__ import plan_of
from tests.fuzz.calls import Call, Context
from tests.fuzz.cases import NAMES, TARGETS, Case
from tests.fuzz.documented import arguments_of
from tests.fuzz.driver import Outcome, Plan, fuzz
from tests.fuzz.oracle import Rounding
from tests.fuzz.targets import DESCRIBED, LISTS
from tests.ops.cases import ARGUMENTS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as on Linux")


def test_everything_has_cases() -> None:
    fuzzed = {*backends.registered_ops(), *COMPOSED, *(f"select {method}" for method in METHODS)}
    methods = ("forward", "pick", "attend", "sample_slots", "packed")
    assert set(NAMES) == fuzzed | {"prepare"} | {f"OCPruner.{method}" for method in methods}


@pytest.mark.parametrize("name", [name for name in NAMES if name in DESCRIBED])
def test_docstrings_say_what_arguments_are_made_of(name: str) -> None:
    described = arguments_of(DESCRIBED[name], DESCRIBED)
    for parameter, annotation in DESCRIBED[name].__annotations__.items():
        if "Tensor" in str(annotation) and parameter != "return":
            argument = described[parameter]
            is_list = any(word in argument.said for word in LISTS)
            assert argument.layouts or is_list, f"{parameter}: no shape in {argument.said!r}"


def test_cases_are_the_same_again() -> None:
    for number in range(len(NAMES)):
        assert str(Case(3, number)) == str(Case(3, number))


def test_a_case_of_everything_in_seconds() -> None:
    outcomes = [Case(0, number).run() for number in range(len(NAMES))]
    assert not [outcome.finding for outcome in outcomes if outcome.finding]
    assert any(outcome.valid for outcome in outcomes)
    assert not all(outcome.valid for outcome in outcomes)


@pytest.mark.slow
def test_many_cases() -> None:
    report = fuzz(Plan(seed=0, last=1499, seconds=600.0))
    assert report.clean, report
    tallies = report.tallies.values()
    assert report.tallies.keys() == set(NAMES)
    assert 0.4 < sum(one.valid for one in tallies) / sum(one.cases for one in tallies) < 0.8
    assert all(0 < one.valid < one.cases for one in tallies)


def raising(error: BaseException) -> Callable[[Call], Callable[..., Any]]:
    def plant(call: Call) -> Callable[..., Any]:
        def function(*args: Any, **kwargs: Any) -> Any:
            raise error

        return function

    return plant


def of_result(change: Callable[[Tensor], Tensor]) -> Callable[[Call], Callable[..., Any]]:
    return lambda call: lambda **given: change(call.function(**given))


def writing(call: Call) -> Callable[..., Any]:
    def function(**given: Any) -> Any:
        given["distances"][0, 0, 0] += 1
        return call.function(**given)

    return function


def sharing(call: Call) -> Callable[..., Any]:
    return lambda distances, budget, **_: distances.view(torch.int64)[..., :budget, 0]


PLANTED: dict[str, tuple[Callable[[Call], Callable[..., Any]], str]] = {
    "another error": (raising(RuntimeError("of torch.matmul")), "RuntimeError at"),
    "an index": (raising(IndexError("budget: expected 3")), "IndexError at"),
    "an assertion": (raising(AssertionError()), "AssertionError at"),
    "no argument": (raising(ValueError("it is bad")), "ValueError at"),
    "another argument": (raising(ValueError("weights: expected none")), "ValueError at"),
    "words of a schema": (raising(RuntimeError("Expected a value of type 'int'")), "Runtime"),
    "other ids": (of_result(lambda ids: (ids + 1) % 30), "other ids, away from a tie"),
    "fewer ids": (of_result(lambda ids: ids[:, 1:].clone()), "not [2, 9]"),
    "another dtype": (of_result(Tensor.int), "torch.int32, not torch.int64"),
    "memory written": (writing, "memory was written to"),
    "memory shared": (sharing, "shares memory with an argument"),
    "other bits": (of_result(lambda ids: torch.rand(ids.shape)), "a second run has other bits"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_what_is_wrong_is_found(kind: str) -> None:
    plant, said = PLANTED[kind]
    case = Case(0, NAMES.index("farthest_select"))
    distances, first, budget = ARGUMENTS["farthest_select"](dtype=torch.float64)
    case.arguments = {"distances": distances.contiguous(), "first": first, "budget": budget}
    case.context = Context("default", "grad", None)
    assert case.run() == Outcome("farthest_select", True)
    case.call = replace(case.call, function=plant(case.call))
    assert said in case.run().finding


def off(call: Call) -> Callable[..., Any]:
    return lambda **given: call.function(**given) * (1 + 2.0**-18)


def of_other_slots(call: Call) -> Callable[..., Any]:
    return lambda slots_init, **given: call.function(slots_init=-slots_init, **given)


@pytest.mark.parametrize(
    ("name", "plant", "said"),
    [("gru_cell", off, "off by"), ("prune", of_other_slots, "output 1: other ids")],
)
@pytest.mark.parametrize("seed", range(5))
def test_what_no_rounding_explains_is_found(
    name: str, plant: Callable[[Call], Callable[..., Any]], said: str, seed: int
) -> None:
    case = Case(seed, NAMES.index(name))
    names = inspect.signature(DESCRIBED[name]).parameters
    case.arguments = dict(zip(names, ARGUMENTS[name](), strict=False))
    case.call = replace(case.call, function=DESCRIBED[name], is_direct=False)
    case.context = Context("default", "no_grad", None)
    assert case.run() == Outcome(name, True)
    case.call = replace(case.call, function=plant(case.call))
    assert said in case.run().finding


def test_roundings_move_what_is_computed_and_no_copies() -> None:
    numbers = torch.full((64,), 40.5, dtype=torch.float64)
    with Rounding(torch.Generator().manual_seed(0)):
        saturated = 1 - torch.sigmoid(numbers)
        sums = (numbers / 3).sum(dim=0, keepdim=True).expand(8) / 7
        copies = (numbers[::2], numbers.clone(), torch.cat([numbers, numbers]), numbers.abs())
        count = (numbers > 0).double().sum()
    assert 0 < saturated.abs().max() < 1e-15
    assert len(set(sums.tolist())) > 1
    assert all(bool((copy == 40.5).all()) for copy in copies)
    assert count == 64


@pytest.mark.slow
def test_crashes_hangs_and_floods_have_their_case(capfd: pytest.CaptureFixture[str]) -> None:
    report = fuzz(Plan(last=4, timeout=2.0, suite="tests.fuzz.planted"))
    assert {name: one.findings for name, one in report.tallies.items()} == {
        "fine": 0,
        "crash": 1,
        "hang": 1,
        "wrong": 1,
        "large": 1,
    }
    printed = capfd.readouterr().out
    for number, said in {
        1: "the call ends the process with -11",
        2: "the call hangs for 2 s",
        3: "is wrong",
        4: "can't allocate memory",
    }.items():
        assert said in printed
        assert f"python -m tests.fuzz --seed 0 --case {number}\n" in printed


def test_the_command_says_which_cases() -> None:
    assert plan_of([]) == Plan()
    assert plan_of(["--seed", "3", "--case", "7"]) == Plan(seed=3, first=7, last=7)
    assert plan_of(["--cases", "50", "--only", "prune"]) == Plan(last=49, only="prune")


def test_ops_are_found_by_their_names() -> None:
    assert {name for name in ops.__all__} <= TARGETS.keys()
