from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

import ocvtp_kernels as ocvtp
from tests.training.runs import write_features

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_pruner.py"


def run(arguments: list[str], capsys: pytest.CaptureFixture[str], crops: int = 16) -> str:
    main = runpy.run_path(str(EXAMPLE))["main"]
    main.__globals__["CROPS"] = crops
    main(arguments)
    return capsys.readouterr().out


def losses(printed: str) -> list[float]:
    return [float(line.split()[-1]) for line in printed.splitlines() if line.startswith("step")]


def check(printed: str, output: Path) -> None:
    """The loss fell, and the file holds the pruner that was trained."""
    assert losses(printed)[-1] < 0.7 * losses(printed)[0]
    assert f"{output / 'pruner.safetensors'}: keeps 64 of 576 tokens" in printed
    pruner = ocvtp.OCPruner.from_checkpoint(output / "pruner.safetensors")
    assert pruner.config.enc_in_dim == 64
    tokens = torch.randn(1, 576, 64)
    assert len(set(pruner(tokens, tokens, budget=9).ids[0].tolist())) == 9


def test_trains_saves_and_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run(["--steps", "16", "--output", str(tmp_path)], capsys, crops=2)
    assert len(losses(printed)) == 2
    check(printed, tmp_path)


@pytest.mark.slow
def test_keeps_more_than_random_tokens_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run(["--output", str(tmp_path)], capsys)
    check(printed, tmp_path)
    pruned, at_random = (float(line.split()[-1]) for line in printed.splitlines()[-2:])
    assert pruned > at_random


def test_on_features_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = write_features(tmp_path / "features", count=40, grid=(10, 10), width=16)
    arguments = ["--features", str(features), "--steps", "16", "--budget", "7"]
    printed = run([*arguments, "--output", str(tmp_path)], capsys)
    assert losses(printed)[-1] < losses(printed)[0]
    assert "keeps 7 of 100 tokens" in printed
    pruner = ocvtp.OCPruner.from_checkpoint(tmp_path / "pruner.safetensors")
    assert pruner.config.enc_in_dim == 16


def test_without_photos_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(SystemExit, match="Give --features"):
        runpy.run_path(str(EXAMPLE))["main"]([])
