"""The performance model: its agreement with the estimate it was held against, and its parts.

`calibration.json` has the numbers of the kernels of commit 306cdd5, whose times on an H100
were estimated by hand, launch by launch, before there was a model. The kernels are gone; that the
model still says the same of them is what makes its word on others comparable.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)


from bench.compiled.budget import Budget
from bench.compiled.sass_time import Code, Phase
from bench.model import report
from bench.model.launches import Call, folded_to, launches_of, rounds_of, step_of
from bench.model.report import LOADS, beyond_the_least, key_of, rows_of
from bench.model.time import GAP_S, SILICON, Launched, Way, resident, time_of
from bench.model.trips import Branch, branches
from bench.ops.prune import steps as least_steps
from bench.workloads import Workload, square
from ocvtp_kernels.cost.work import Work
from ocvtp_kernels.ops.slot_attention.tiles import ONE_TILE
from tests.compiling import on_linux, run_python

H100 = SILICON["H100"]
CALIBRATION = json.loads(Path(__file__).with_name("calibration.json").read_text())
# Both of 64 images. The estimate of the first asks more of L2 than it grants it elsewhere, that of
# the second is less than the instructions take to issue.
BEYOND = {("ffn_down", 64), ("argmax", 64)}
FIRST, LAST = ["start", "encode_up+query", "encode_down", "layer_norm"], ["argmax", "resolve"]
ITERATION = ["slot_attention_fwd", "gru", "layer_norm", "ffn_up", "ffn_down", "layer_norm", "query"]


def call_of(values: dict[str, Any]) -> Call:
    def way(programs: int, phases: list[tuple[int, list[float]]]) -> Way:
        return Way(programs, [(times, Phase(*phase)) for times, phase in phases])

    return Call(
        [
            Launched(**{**one, "ways": [way(**each) for each in one["ways"]]})
            for one in values["launches"]
        ],
        values["footprint"],
    )


@pytest.mark.parametrize(
    "values", CALIBRATION["calls"], ids=lambda v: f"{v['batch']}x{v['num_tokens']}"
)
def test_the_model_says_what_was_estimated_of_the_kernels_before(values: dict[str, Any]) -> None:
    steps = rows_of(call_of(values), SILICON[CALIBRATION["chip"]])
    assert steps.pop("all")["us"] == pytest.approx(values["predicted_us"], rel=0.08)
    assert steps.keys() == values["predicted_step_us"].keys()
    for name, estimated in values["predicted_step_us"].items():
        each = steps[name]["us"] / steps[name]["launches"]
        within = each == pytest.approx(estimated, rel=0.35)
        assert within == ((name, values["batch"]) not in BEYOND), (name, each, estimated)


STEP = Phase(100, 150.0, 50.0, 32.0, 256)


def launched(programs: int = 132, warps: int = 4, **changes: Any) -> Launched:
    ways = [Way(programs, [(1, Phase(300, 400.0, 200.0, 0, 512)), (16, STEP)])]
    one = Launched("gru", "gru", "BLOCK_M 64", warps, 100, 40_000, False, 10**6, ways)
    return one._replace(**changes)


def test_what_a_multiprocessor_holds() -> None:
    assert resident(launched(), H100) == 4  # 13312 registers
    assert resident(launched(registers=40), H100) == 5  # 41 KiB of shared memory
    assert resident(launched(registers=32, shared=0, warps=1), H100) == 32
    assert resident(launched(registers=255, warps=8), H100) == 1


def test_a_second_wave_takes_as_long_again() -> None:
    one = time_of(launched(4 * 132), H100)
    two = time_of(launched(8 * 132), H100)
    assert (one.waves, two.waves) == (1, 2)
    assert two.seconds - GAP_S == pytest.approx(2 * (one.seconds - GAP_S))


def test_one_program_more_a_multiprocessor_takes_no_less() -> None:
    times = [time_of(launched(132 * n), H100).seconds for n in range(1, 9)]
    assert times == sorted(times)
    # Two programs hide each other's waits.
    assert times[1] - GAP_S < 2 * (times[0] - GAP_S)


def test_a_dependent_launch_hides_most_of_the_gap() -> None:
    gain = time_of(launched(), H100).seconds - time_of(launched(dependent=True), H100).seconds
    assert gain == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("step", "bound"),
    [
        (STEP, "latency"),
        (Phase(100, 150.0, 50.0, 1000.0, 256), "tensor"),
        (Phase(100, 150.0, 50.0, 64.0, 10**5), "L2"),
        (Phase(10**4, 10**4, 0.0, 64.0, 256), "issue"),
    ],
)
def test_what_is_busiest_bounds_a_launch(step: Phase, bound: str) -> None:
    one = launched(ways=[Way(132, [(16, step)])])
    assert time_of(one, H100).bound == bound


def test_memory_counts_where_a_call_does_not_fit_the_cache() -> None:
    large = launched(bytes=10**9, ways=[Way(132, [(1, Phase(1, 1, 0, 0, 10**6))])])
    inside, outside = (time_of(large, H100, footprint).seconds for footprint in (10**6, 10**9))
    assert outside > inside


def test_rounds_fit_the_loops_that_are_there() -> None:
    assert folded_to((2, 3, 4), 3) == (2, 3, 4)
    assert folded_to((2, 3, 4), 2) == (6, 4)
    assert folded_to((4,), 2) == (1, 4)
    code = Code([(0, True, STEP), (1, True, STEP), (0, False, STEP)], STEP)
    assert rounds_of(code, Branch(1, ((3, 8),), ((9,),)), 4) == [3, 24, 9]
    # A loop of the rest that is unrolled by four.
    branch = Branch(1, ((3, 8),), ((9,),), moved=STEP.bytes)
    assert rounds_of(code, branch, 4) == [3, 24, 2]


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("num_slots", [64, ONE_TILE, 192])
@pytest.mark.parametrize("batch", [1, 64])
def test_every_launch_of_the_pipeline_has_its_step_and_rounds(
    batch: int, num_slots: int, arch: int
) -> None:
    launched = launches_of(square(batch, 576, num_slots, "bfloat16"), arch)
    many = ["softmax_stats"] if num_slots > ONE_TILE else []
    expected = [*FIRST, *2 * [*many, *ITERATION], *many, *LAST]
    assert [step_of(one.kernel.__name__, one.arguments) for one in launched] == expected
    assert many or len(launched) <= report.MAX_LAUNCHES
    for one in launched:
        ways = branches(one)
        assert sum(way.programs for way in ways) == one.grid[0], one.kernel.__name__
        nests = [nest for way in ways for nest in (*way.products, *way.rest)]
        assert all(rounds >= 0 for nest in nests for rounds in nest)


def test_flops_and_bytes_are_those_of_all_warps_and_of_the_tensors() -> None:
    phases = [(2, Phase(*[0] * 7, fmas=10)), (3, Phase(*[0] * 7, fmas=1))]
    rows = rows_of(Call([launched(ways=[Way(5, phases)])] * 2, 0), H100)
    assert rows["all"]["flops"] == rows["gru"]["flops"] == 2 * 2 * 5 * 4 * (2 * 10 + 3)
    assert rows["all"]["bytes"] == rows["gru"]["bytes"] == 2 * 10**6


def test_more_than_the_formulas_allow_is_said() -> None:
    load = LOADS[0]
    least = sum(least_steps(load).values(), Work(0, 0))
    most = {"launches": 20, "flops": 1.35 * least.flops, "bytes": 1.7 * least.bytes}
    assert beyond_the_least(load, most) == []
    beyond = beyond_the_least(load, {name: 1.01 * value for name, value in most.items()})
    assert [sentence.split()[7] for sentence in beyond] == ["flops,", "bytes,", "launches,"]
    # With more slots than a tile holds there are more launches.
    assert beyond_the_least(LOADS[3], {"launches": 23, "flops": 1, "bytes": 1}) == []


@pytest.mark.parametrize("load", LOADS, ids=str)
@pytest.mark.parametrize("gpu", SILICON)
def test_the_budget_keeps_to_the_formulas(gpu: str, load: Workload) -> None:
    rows = Budget.read(report.BUDGET).groups[key_of(gpu, load)].rows
    assert beyond_the_least(load, rows["all"]) == []
    for name, work in least_steps(load).items():
        # The constants of the logits are another step's, and not on tensor cores.
        assert rows[name]["flops"] >= 0.99 * work.flops
        assert rows[name]["bytes"] >= 0.99 * work.bytes


def test_arguments_that_make_no_sense_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report.main(["--workload", "1,576"])
    assert "expected B,N,K" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.compile
@on_linux
def test_a_call_is_modelled_and_fits_the_budget(tmp_path: Path) -> None:
    command = ("-m", "bench", "model", "--archs", "90", "--workload", "1,576,64")
    said = run_python(tmp_path, *command)
    assert "## H100 B 1 N 576 K 64" in said and "| gru | 2 |" in said
