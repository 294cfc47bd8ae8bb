from __future__ import annotations

import io
from functools import cache
from itertools import combinations, pairwise
from typing import Any
from unittest import mock

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from bench.report.pictures import COLOURS, STYLE, apart, log_axis, pictures, png
from bench.results import OURS, Results
from bench.workloads import CUDA
from tests.bench.report.samples import cpu, gpu, model_row, model_rows, op_row, results


def crowded() -> list[Results]:
    """A GPU's full lists of workloads and ops, whose lines lie close together."""
    ours = ((OURS, 1.0), ("eager", 1.05), ("csrc", 0.95), ("published", 40.0))
    prune = [
        op_row("prune", variant, 1e-4 * load.batch * factor, method, **vars(load))
        for load in CUDA.prune
        for variant, factor in ours
        for method in ("graph", "events")
    ]
    single = [
        op_row(f"an_op_with_a_long_name_{i}", variant, (1e-5 + 1e-6 * i) * factor, "graph",
               dtype="bfloat16", batch=batch)
        for i in range(16)
        for batch in (1, 8, 64)
        for variant, factor in ours[:2]
    ]  # fmt: skip
    kept = (64, 128, 192)
    models = [model_row("unpruned", 576, 0.5), *(model_row("ocvtp", k, k / 1e3) for k in kept)]
    return [results("prune", prune), results("ops", single), results("e2e", models)]


DEVICES = {"cpu": cpu, "gpu": lambda: gpu("graph", "events"), "crowded": crowded}
CROWDED = pytest.param("crowded", marks=pytest.mark.slow)


@cache
def drawn(device: str) -> dict[str, Figure]:
    return pictures(DEVICES[device]())


@cache
def drawn_texts(device: str, name: str) -> list[tuple[str, Any]]:
    """Every text that is drawn, with what it covers."""
    found: list[tuple[str, Any]] = []
    draw = Text.draw

    def keep(one: Text, renderer: Any) -> None:
        draw(one, renderer)
        if one.get_visible() and one.get_text().strip():
            found.append((one.get_text(), Text.get_window_extent(one, renderer)))

    with mock.patch.object(Text, "draw", keep), matplotlib.rc_context(STYLE):
        FigureCanvasAgg(drawn(device)[name]).draw()
    return found


@pytest.mark.parametrize("device", ["cpu", "gpu", CROWDED])
def test_no_text_covers_another_or_leaves_the_picture(device: str) -> None:
    for name, figure in drawn(device).items():
        texts = drawn_texts(device, name)
        assert texts
        for (one, a), (other, b) in combinations(texts, 2):
            width = min(a.x1, b.x1) - max(a.x0, b.x0)
            height = min(a.y1, b.y1) - max(a.y0, b.y0)
            # Boxes of neighbours may touch by their margins.
            covers = width > 1 and height > 0.25 * min(a.height, b.height)
            assert not covers, f"{name}: {one!r} and {other!r}"
        for one, box in texts:
            inside = min(box.x0, box.y0) >= -1 and box.x1 <= figure.bbox.x1 + 1
            assert inside and box.y1 <= figure.bbox.y1 + 1, f"{name}: {one!r}"


@pytest.mark.parametrize("device", ["gpu", CROWDED])
def test_a_png_is_wide_small_and_the_same_each_time(device: str) -> None:
    once, again = (
        {name: png(figure) for name, figure in pictures(DEVICES[device]()).items()}
        for _ in range(2)
    )
    assert once == again
    for content in once.values():
        image = Image.open(io.BytesIO(content))
        assert image.width > 700 and len(content) < 250_000 and "Software" not in image.info


@pytest.mark.parametrize(
    "device, name, said",
    [
        ("gpu", "overview", ["Time per call of prune; ours is ahead in 7 of 9 comparisons",
                             "100 µs, by graph", "400 µs · 4.00×", "5.00 ms, launched · 5.00×",
                             "prune\nahead in 5 of 7"]),
        ("cpu", "overview", ["published selectors\nahead in 1 of 2"]),
        ("gpu", "latency_batch", ["Prune against batch: ours is ahead in 5 of 7 comparisons",
                                  "N 576 · K 64 · bfloat16", "1", "8"]),
        ("cpu", "latency_tokens", ["B 1 · float32", "576\nK 64", "2880\nK 160"]),
        ("gpu", "roofline", ["Roofline: ours reaches 50.0 TFLOP/s at most "
                             "(prune forward, bfloat16)",
                             "prune · bfloat16 · products 10.0 TFLOP/s, copies 100 GB/s"]),
        ("gpu", "ratios_prune", ["bfloat16, by graph", "bfloat16, launched"]),
        ("cpu", "ratios_ops", ["usage, 1 thread, CPU time", "prune · autocast · float32"]),
        ("cpu", "stages", ["imaginary, batch 1", "eager, all 576", "eager, 64 of 576",
                           "static, 64 of 576", "100 ms · 5.00×", "the whole, measured",
                           "Time to the first token: 5.00× at best "
                           "(imaginary, eager, 64\nof 576)"]),
        ("cpu", "selectors", ["N 576 · T 64 · C 1024 · float32 · B 1", "oc-pruner",
                              "N 576 · T 192 · C 1024 · float32 · B 1"]),
    ],
)  # fmt: skip
def test_a_picture_says(device: str, name: str, said: list[str]) -> None:
    assert {*said} <= {one for one, _ in drawn_texts(device, name)}


def test_latency_is_drawn_where_there_are_two_sizes() -> None:
    assert "latency_tokens" not in drawn("gpu")
    (axes,) = drawn("gpu")["latency_batch"].axes
    styles = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert {(COLOURS[OURS], "-"), (COLOURS[OURS], "--"), (COLOURS["eager"], "-")} <= styles
    # A spread is drawn round every line.
    assert len(axes.collections) == len(axes.lines) == 6


def test_the_roofline_holds_the_measured_ceilings() -> None:
    axes, *_ = drawn("gpu")["roofline"].axes
    (roof,) = axes.lines
    assert roof.get_ydata()[-1] == 10.0 and roof.get_xdata()[1] == pytest.approx(100.0)
    # A dot per variant and workload, the graph's where there are two methods; and what is shaded.
    assert len(axes.collections) == 1 + 4 + 3


def test_ratios_have_their_spread() -> None:
    axes = drawn("gpu")["ratios_prune"].axes[1]
    low, high = axes.get_xlim()
    assert low < 0.65 and high > 6.1
    spreads, dots = axes.collections
    assert [pytest.approx(edge, abs=0.01) for edge in (0.65, 0.98)] in [
        path.vertices[:, 0].tolist() for path in spreads.get_paths()
    ]
    assert min(dots.get_offsets()[:, 0]) == pytest.approx(0.8)


def test_stages_and_selectors_are_what_was_measured() -> None:
    (axes,) = drawn("cpu")["stages"].axes
    widths = [patch.get_width() for patch in axes.patches]
    assert widths == [pytest.approx(ttft / 5) for ttft in (0.5, 0.1, 0.1)] * 4
    _, dots = drawn("cpu")["selectors"].axes[0].collections
    assert dots.get_offsets().tolist() == [[1e-4, 0.501], [1e-3, 0.501]]


def test_what_has_no_times_is_not_drawn() -> None:
    refused = [op_row("prune", OURS, None, batch=batch) for batch in (1, 8)]
    bare = [row for row in model_rows() if getattr(row, "times", None) is None]
    files = [results("prune", refused), results("e2e", bare), results("selectors", [])]
    assert pictures(files) == {}


def test_labels_stand_apart_and_below_the_top() -> None:
    at = apart({"a": 0.99, "b": 0.5, "c": 0.5, "d": 0.98}, 0.1)
    heights = sorted(at.values())
    assert all(b - a > 0.0999 for a, b in pairwise(heights))
    assert max(heights) <= 0.9 + 1e-9 and at["b"] == 0.5


@pytest.mark.parametrize("low, high", [(1e-5, 1e-1), (0.9, 1.1), (2e-3, 3e-3), (0.5, 200)])
def test_ticks_are_few_and_the_values_inside(low: float, high: float) -> None:
    axes = Figure().subplots()
    log_axis(axes, "x", [low, high], str)
    left, right = axes.get_xlim()
    assert left < low and high < right
    assert 1 <= sum(left <= tick <= right for tick in axes.get_xticks()) <= 7
