from __future__ import annotations

import csv
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from ocvtp_kernels.cli import app
from tests.training.cases import random_autoencoder
from tests.training.runs import write_features


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *(str(argument) for argument in arguments)])


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Two folders of features of the same images and two checkpoints."""
    for seed in (0, 1):
        write_features(tmp_path / f"features-{seed}", seed=seed)
        random_autoencoder(seed=seed).float().save_checkpoint(tmp_path / f"{seed}.safetensors")
    return tmp_path


def read(path: Path) -> list[dict[str, str]]:
    with (path / "table.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_table_and_picture(there: Path) -> None:
    out = there / "out"
    options = ("--features", there / "features-0", "--checkpoint", there / "0.safetensors")
    result = run(*options, "--budgets", "4,2", "--seeds", "0,1,5", "--output", out)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["errors.png", "table.csv", "table.md"]
    rows = read(out)
    assert len(rows) == 3 * 2 * 3
    assert {row["method"] for row in rows} == {"oc-pruner", "random", "uniform grid"}
    assert {row["measure"] for row in rows} == {"decoded", "nearest", "coverage"}
    assert {(row["seeds"], row["images"]) for row in rows} == {("3", "2")}
    assert "| tokens kept | 2 | 4 |" in (out / "table.md").read_text()
    assert Image.open(out / "errors.png").width > 1000
    again = there / "again"
    run(*options, "--budgets", "2,4", "--seeds", "0,1,5", "--batch-size", 1, "--output", again)
    for one, other in zip(rows, read(again), strict=True):
        assert float(one["mean"]) == pytest.approx(float(other["mean"]), rel=1e-4)


def test_all_images_and_a_limit(there: Path) -> None:
    options = ("--features", there / "features-0", "--checkpoint", there / "0.safetensors")
    for more, count in (((), "24"), (("--limit", 5), "5")):
        out = there / count
        result = run(*options, "--budgets", "2", "--images", "all", *more, "--output", out)
        assert result.exit_code == 0, result.output
        assert {row["images"] for row in read(out)} == {count}


def test_ablations(there: Path) -> None:
    first = ("--features", there / "features-0", "--checkpoint", there / "0.safetensors")
    second = ("--other-checkpoint", there / "1.safetensors", "--budgets", "2,3")
    layer = ("--other-features", there / "features-1", "--names", "layer 8,layer -2")
    for name, more in (("layer", layer), ("loss", ("--names", "AW-MSE,MSE"))):
        out = there / name
        result = run(*first, "--ablate", name, *second, *more, "--output", out)
        assert result.exit_code == 0, result.output
        rows = read(out)
        called = more[-1].split(",") if isinstance(more[-1], str) else []
        assert {row["method"] for row in rows} == {*called, "random"}
        assert {row["judge"] for row in rows} == {f"tokens and decoder of {c}" for c in called}
        assert (out / "errors.png").exists() and (out / "table.md").exists()
    # On the same tokens both judges see the same nearest tokens.
    nearest = [row for row in read(there / "loss") if row["measure"] == "nearest"]
    half = len(nearest) // 2
    assert [row["mean"] for row in nearest[:half]] == [row["mean"] for row in nearest[half:]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budgets", "6"], "budgets: expected 1 to 5 tokens, got 6"),
        (["--budgets", "x"], "budgets: expected whole numbers"),
        (["--images", "some"], "images: expected one of"),
        (["--ablate", "size"], "ablate: expected one of"),
        (["--ablate", "loss"], "other_checkpoint: expected along with --ablate"),
        (["--ablate", "layer", "--other-checkpoint", "x"], "other_features: expected along"),
        (["--names", "a,b"], "names: expected two, along with --ablate"),
        (["--device", "tpu"], "device: expected cpu or cuda"),
        (["--checkpoint", "nowhere.safetensors"], "no such file"),
    ],
)
def test_misuse(there: Path, options: list[str], message: str) -> None:
    first = ("--features", there / "features-0", "--checkpoint", there / "0.safetensors")
    result = run(*first, "--output", there / "out", *options)
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert not (there / "out").exists()


def test_other_images_are_refused(there: Path) -> None:
    write_features(there / "features-1", count=23)
    first = ("--features", there / "features-0", "--checkpoint", there / "0.safetensors")
    second = (
        "--other-features",
        there / "features-1",
        "--other-checkpoint",
        there / "1.safetensors",
    )
    result = run(*first, "--ablate", "layer", *second, "--output", there / "out")
    assert result.exit_code == 2 and "expected the images and the grid of" in result.stderr


@pytest.mark.parametrize("number", [0, 1])
def test_damaged_features_are_refused(there: Path, number: int) -> None:
    shard = there / f"features-{number}" / "features-00001.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    first = ("--features", there / "features-0", "--checkpoint", there / "0.safetensors")
    second = ("--other-features", there / "features-1")
    second += ("--other-checkpoint", there / "1.safetensors")
    out = there / "out"
    result = run(*first, "--budgets", 2, "--ablate", "layer", *second, "--output", out)
    assert result.exit_code == 2 and f"{shard}: expected SHA-256" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize("name", ["0.safetensors", "run.json"])
def test_files_that_are_cut_off_are_named(there: Path, name: str) -> None:
    path = there / name
    path.write_bytes(path.read_bytes()[:900] if path.exists() else b'{"train": {')
    options = ("--features", there / "features-0", "--checkpoint", there / "0.safetensors")
    result = run(*options, "--budgets", 2, "--output", there / "out")
    assert result.exit_code == 2 and f"ocvtp evaluate: {path}: expected" in result.stderr
