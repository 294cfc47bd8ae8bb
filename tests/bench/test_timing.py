from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.timing import (
    Sample,
    StaleReplay,
    copies_for_cold_cache,
    filler_of_caches,
    measure,
    poison,
    side_stream,
    summary,
    tensors_of,
)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def test_variants_take_turns() -> None:
    seen: list[str] = []
    calls = {name: (lambda name=name: seen.append(name)) for name in "abc"}
    timings = measure(calls, rounds=(6, 6))
    turns = ["".join(seen[-18:])[i : i + 3] for i in range(0, 18, 3)]
    assert turns == ["abc", "bca", "cab"] * 2
    assert all(timing.rounds == 6 and timing.method == "host" for timing in timings.values())


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 5), (60.0, 9)])
def test_rounds_follow_the_time_there_is(seconds: float, rounds: int) -> None:
    timing = measure({"one": lambda: None}, seconds=seconds, rounds=(5, 9))["one"]
    assert timing.rounds == rounds


def test_a_sample_is_divided_by_its_calls() -> None:
    sizes: list[int] = []
    measure({"one": lambda: sizes.append(1)}, calls=3, rounds=(4, 4))
    # Warm-up, one sample to see how long it takes, four rounds.
    assert len(sizes) == 4 + 3 + 4 * 3


def test_work_before_and_samples_elsewhere_take_turns() -> None:
    seen: list[str] = []

    def elsewhere() -> float:
        seen.append("there")
        return 2.0

    timings = measure(
        {"here": lambda: seen.append("here")},
        rounds=(5, 5),
        seconds=0.0,
        before=lambda: seen.append("before"),
        elsewhere={"there": Sample(elsewhere, "graph")},
    )
    assert seen[-15:] == 2 * ["there", "before", "here", "before", "here", "there"] + seen[-3:]
    assert timings["there"].median == 2.0 and timings["there"].method == "graph"


def test_caches_are_filled_by_other_memory() -> None:
    assert filler_of_caches(torch.device("cpu"))().nbytes >= 2**27  # type: ignore[attr-defined]


def test_median_and_spread() -> None:
    timing = summary([5.0, 1.0, 2.0, 4.0, 3.0, 100.0], "host")
    assert (timing.p20, timing.median, timing.p80) == (2.0, 3.5, 5.0)
    assert timing.rounds == 6


def test_poison_reaches_every_output() -> None:
    outputs = (torch.ones(3), [torch.ones(2, dtype=torch.int64)], None)
    poison(outputs)
    floats, ids = tensors_of(outputs)
    assert floats.isnan().all() and (ids == -1).all()


def test_two_copies_on_the_cpu() -> None:
    assert copies_for_cold_cache(10**9, torch.device("cpu")) == 2


@pytest.mark.gpu
@needs_gpu
def test_copies_pass_three_times_the_cache() -> None:
    device = torch.device("cuda")
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    for size in (10**4, 10**7, 10**9):
        assert copies_for_cold_cache(size, device) * size > 3 * cache


@pytest.mark.gpu
@needs_gpu
def test_graphs_are_timed() -> None:
    device = torch.device("cuda")
    with side_stream(device):
        x = torch.randn(64, 64, device=device)
        timings = measure(
            {"graph": lambda: x @ x, "events": lambda: x @ x}, device=device, capture=["graph"]
        )
    assert timings["graph"].method == "graph" and timings["events"].method == "events"


@pytest.mark.gpu
@needs_gpu
def test_a_kernel_beside_the_graph_is_found_out() -> None:
    device = torch.device("cuda")
    with side_stream(device):
        x = torch.randn(64, 64, device=device)
        known = x @ x

        def lazy() -> Tensor:
            return known

        with pytest.raises(StaleReplay) as error:
            measure({"lazy": lazy}, device=device, capture=["lazy"])
    assert error.value.variant == "lazy"
