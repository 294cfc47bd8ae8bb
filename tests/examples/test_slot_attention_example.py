from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "slot_attention.py"


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[tuple[float, float]]:
    """Loss and FG-ARI of each line; the last one is plain PyTorch's."""
    runpy.run_path(str(EXAMPLE))["main"](arguments)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("step 0: ")
    assert printed[-1].startswith("the same in plain PyTorch: ")
    rows = [re.findall(r"loss ([\d.]+), FG-ARI (-?[\d.]+)", line) for line in printed]
    return [(float(loss), float(ari)) for ((loss, ari),) in rows]


def test_learns_and_is_the_same_in_plain_pytorch(capsys: pytest.CaptureFixture[str]) -> None:
    start, end, plain = run(["--steps", "40"], capsys)
    assert end[0] < 0.9 * start[0]
    assert plain == pytest.approx(end, abs=2e-3)
    assert plain[0] == pytest.approx(end[0], abs=2e-5)


@pytest.mark.slow
def test_slots_come_to_agree_with_objects(capsys: pytest.CaptureFixture[str]) -> None:
    # Half of the example's steps; how far a seed gets in them differs with the CPU's rounding.
    start, *_, end, plain = run(["--steps", "500"], capsys)
    assert end[0] < 0.6 * start[0]
    assert end[1] > start[1] + 0.05
    assert plain[0] == pytest.approx(end[0], abs=2e-5)


def test_scenes_are_drawn_as_told() -> None:
    example = runpy.run_path(str(EXAMPLE))
    pictures, objects = example["draw_scenes"](20, seed=3)
    side = example["SIDE"]
    assert pictures.shape == (20, 3, side, side) and objects.shape == (20, side * side)
    assert pictures.abs().max() <= 1 and set(objects.unique().tolist()) == {0, 1, 2, 3}
    ground = pictures.flatten(2).mT[objects == 0]
    assert torch.equal(ground, ground[:1].expand_as(ground))


def test_fg_ari_is_one_where_slots_are_objects() -> None:
    example = runpy.run_path(str(EXAMPLE))
    pictures, objects = example["draw_scenes"](20, seed=3)
    shares = torch.nn.functional.one_hot(objects).mT.float()
    _, ari = example["evaluate"](
        lambda pictures, noise: (pictures, shares), pictures, objects, None
    )
    assert ari == 1
    _, ari = example["evaluate"](
        lambda pictures, noise: (pictures, shares[:, :1]), pictures, objects, None
    )
    assert ari == 0
