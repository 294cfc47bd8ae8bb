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
    assert len(rows) == 4 * 2 * 3
    assert {row["method"] for row in rows} == {"oc-pruner", "random", "uniform grid"}
    assert {row["measure"] for row in rows} == {"decoded", "nearest", "farthest", "coverage"}
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


def test_the_reference_layer_is_chosen(tmp_path: Path) -> None:
    """Of tokens with the regions of the final ones, and tokens with others."""
    for name, seed in (("good", 0), ("poor", 1), ("final", 0)):
        write_features(tmp_path / name, grid=(4, 6), width=32, seed=seed)
    first = ("--features", tmp_path / "poor", "--features", tmp_path / "good")
    options = (*first, "--final-features", tmp_path / "final", "--budgets", "4,6,24")
    for more in ((), ("--names", "one,other")):
        out = tmp_path / f"layers-{len(more)}"
        result = run(*options, "--images", "all", *more, "--output", out)
        assert result.exit_code == 0, result.output
        poor, good = ("one", "other") if more else map(str, first[1::2])
        rows = read(out)
        assert {row["judge"] for row in rows} == {"the final tokens"}
        assert {row["measure"] for row in rows} == {"nearest", "farthest", "coverage"}
        error = {
            (row["method"], row["budget"]): float(row["mean"])
            for row in rows
            if row["measure"] == "farthest"
        }
        assert {name for name, _ in error} == {poor, good, "random"}
        for budget in ("4", "6"):
            assert error[good, budget] < 0.9 * error[poor, budget]
        share = error[good, "4"] / error["random", "4"]
        text = (out / "table.md").read_text()
        assert f": 4 tokens {good} ({share:.3f}), 6 tokens {good}" in text
        assert f"), over all **{good}** (" in text and text in result.stdout
        assert "24 tokens" not in text
        assert Image.open(out / "errors.png").width == 3 * 630


def test_the_reference_layer_of_trained_pruners(there: Path) -> None:
    first = ("--features", there / "features-0", "--features", there / "features-1")
    options = (*first, "--final-features", there / "features-0", "--budgets", 2)
    trained = ("--checkpoint", there / "0.safetensors", "--checkpoint", there / "1.safetensors")
    for name, more in (("trained", trained), ("untrained", ())):
        result = run(*options, *more, "--names", "a,b", "--output", there / name)
        assert result.exit_code == 0, result.output
    alone = (*first[:2], *trained[:2], "--budgets", 2, "--output", there / "alone")
    assert run(*alone).exit_code == 0
    rows, other, own = (read(there / name) for name in ("trained", "untrained", "alone"))
    found = [[row["mean"] for row in table if row["measure"] == "nearest"] for table in (rows, own)]
    assert found[0][0] == found[1][0] and found[0][2] == found[1][1]
    assert [row["mean"] for row in rows[:2]] != [row["mean"] for row in other[:2]]


def test_layers_of_other_images_and_other_counts_are_refused(there: Path) -> None:
    write_features(there / "final", count=23)
    first = ("--features", there / "features-0", "--features", there / "features-1")
    for folder, more, message in (
        ("final", (), "expected the images and the grid of"),
        ("features-0", ("--checkpoint", there / "0.safetensors"), "checkpoint: expected 2 or 0"),
        ("features-0", ("--names", "one"), "one for each --features"),
        ("features-0", ("--names", "random,x"), "and not random"),
        ("features-0", ("--features", there / "features-0"), "expected different folders"),
    ):
        options = (*first, "--final-features", there / folder, *more)
        result = run(*options, "--budgets", 2, "--output", there / "out")
        assert result.exit_code == 2 and message in result.stderr, result.output
    assert not (there / "out").exists()


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
        (["--checkpoint", "x"], "checkpoint: expected 1 for 1 --features, got 2"),
        (["--features", "x"], "features: expected one folder, or several along with"),
        (["--final-features", "x", "--ablate", "loss"], "final_features: expected without"),
    ],
)
def test_misuse(there: Path, options: list[str], message: str) -> None:
    first = ("--features", there / "features-0", "--checkpoint", there / "0.safetensors")
    result = run(*first, "--output", there / "out", *options)
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert not (there / "out").exists()


def test_a_checkpoint_that_is_not_there(there: Path) -> None:
    options = ("--features", there / "features-0", "--checkpoint", "nowhere.safetensors")
    result = run(*options, "--output", there / "out")
    assert result.exit_code == 2 and "no such file" in result.stderr, result.output


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
