"""`ocvtp features`: towers' tokens on disk, exit codes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from ocvtp_kernels.cli import app
from ocvtp_kernels.cli.photo import open_photo
from ocvtp_kernels.training.feature_encoders import make_reference_encoder
from ocvtp_kernels.training.features import FeatureFolder
from ocvtp_kernels.vlm.encoder import DescriptorEncoder
from ocvtp_kernels.vlm.tower_encoder import TowerEncoder, load_tower_encoder
from ocvtp_kernels.vlm.towers import Tower
from tests.cli.shelf import MODELS, save_models
from tests.vlm import (
    models,
)
from tests.vlm.models import DEPTH, NUM_PATCHES, WIDTH


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["features", *(str(argument) for argument in arguments)])


def make_photo(path: Path, seed: int = 0, size: tuple[int, int] = (90, 70)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    sizes = [(90, 70), (60, 120), (56, 56), (300, 200)]
    for number, size in enumerate(sizes):
        make_photo(tmp_path / "photos" / f"{number % 2}" / f"{number}.png", number, size)
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models."""
    folder = tmp_path_factory.mktemp("shelf")
    save_models(folder)
    models.make_tower(seed=1).save_pretrained(folder / "other")
    models.make_tower().half().save_pretrained(folder / "half")
    return folder


def assert_near_float16(stored: torch.Tensor, tokens: torch.Tensor) -> None:
    """Rounded to float16, but for what a batch adds up in another order."""
    torch.testing.assert_close(stored.float(), tokens, rtol=2**-10, atol=2e-5)


def test_without_a_model_the_descriptors_tokens(photos: Path, tmp_path: Path) -> None:
    result = run(photos, "--output", tmp_path / "out", "--shard-size", 3)
    assert result.exit_code == 0, result.output
    assert f"4 images, 2 shards: {tmp_path / 'out'}" in result.stdout
    folder = FeatureFolder(tmp_path / "out")
    folder.verify()
    assert folder.paths == ["0/0.png", "0/2.png", "1/1.png", "1/3.png"]
    assert folder.manifest["encoder"] == "patch descriptor" and folder.manifest["model"] is None
    assert folder.manifest["reference_layer"] is None
    assert (folder.num_tokens, folder.width, folder.grid) == (576, 64, (24, 24))
    for index, name in enumerate(folder.paths):
        tokens = DescriptorEncoder().encode(open_photo(photos / name)).inputs.reference_tokens
        assert_near_float16(folder[index], tokens[0])


@pytest.mark.parametrize("layer", [None, 0, DEPTH - 1])
@pytest.mark.parametrize("model", MODELS)
def test_a_towers_reference_tokens(
    shelf: Path, photos: Path, tmp_path: Path, model: str, layer: int | None
) -> None:
    options = [] if layer is None else ["--reference-layer", layer]
    result = run(photos, "--output", tmp_path / "out", "--model", shelf / model, *options)
    assert result.exit_code == 0, result.output
    folder = FeatureFolder(tmp_path / "out")
    encoder = load_tower_encoder(shelf / model, layer)
    assert isinstance(encoder, TowerEncoder)
    assert folder.manifest["model"] == str(shelf / model)
    assert folder.manifest["reference_layer"] == encoder.reference_layer
    assert (folder.num_tokens, folder.width) == (NUM_PATCHES, WIDTH)
    for index, name in enumerate(folder.paths):
        encoded = encoder.encode(open_photo(photos / name))
        assert folder.grid == encoded.grid
        assert_near_float16(folder[index], encoded.inputs.reference_tokens[0])


def test_a_batch_is_stored_as_the_encoder_gave_it(
    shelf: Path, photos: Path, tmp_path: Path
) -> None:
    run(photos, "--output", tmp_path / "out", "--model", shelf / "clip")
    folder = FeatureFolder(tmp_path / "out")
    encoder = make_reference_encoder(load_tower_encoder(shelf / "clip"))
    pixels = torch.stack([encoder.prepare(open_photo(photos / name)) for name in folder.paths])
    assert torch.equal(
        torch.stack([folder[index] for index in range(4)]), encoder.encode(pixels).half()
    )


def test_weights_saved_in_half_are_run_in_float32_on_the_cpu(
    shelf: Path, photos: Path, tmp_path: Path
) -> None:
    result = run(photos, "--output", tmp_path / "out", "--model", shelf / "half")
    assert result.exit_code == 0, result.output
    if not torch.cuda.is_available():
        shard = FeatureFolder(tmp_path / "out").manifest["shards"][0]
        assert shard["computed_in"] == "cpu float32"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_weights_saved_in_half_are_run_in_half_on_a_gpu(
    shelf: Path, photos: Path, tmp_path: Path
) -> None:
    for device, where in (("cuda", "cuda float16"), ("cpu", "cpu float32")):
        output = tmp_path / device
        run(photos, "--output", output, "--model", shelf / "half", "--device", device)
        assert FeatureFolder(output).manifest["shards"][0]["computed_in"] == where
    folders = [FeatureFolder(tmp_path / device) for device in ("cuda", "cpu")]
    assert folders[0].manifest["weights_sha256"] == folders[1].manifest["weights_sha256"]
    near, exact = (torch.stack([folder[i] for i in range(4)]).float() for folder in folders)
    assert (near - exact).norm() < 0.01 * exact.norm()


def test_run_again_it_goes_on(shelf: Path, photos: Path, tmp_path: Path) -> None:
    arguments = (photos, "--output", tmp_path / "out", "--model", shelf / "clip", "--shard-size", 2)
    assert run(*arguments, "--limit", 3).exit_code == 0
    assert FeatureFolder(tmp_path / "out").paths == ["0/0.png", "0/2.png", "1/1.png"]
    result = run(*arguments)
    assert result.exit_code == 0 and "4 images, 3 shards" in result.stdout
    assert len(FeatureFolder(tmp_path / "out")) == 4
    assert run(*arguments, "--limit", 1).exit_code == 0
    assert len(FeatureFolder(tmp_path / "out")) == 4


def test_bad_images_are_reported_and_skipped(photos: Path, tmp_path: Path) -> None:
    whole = (photos / "0" / "0.png").read_bytes()
    (photos / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (photos / "notes.jpg").write_text("not an image")
    for _ in range(2):
        result = run(photos, "--output", tmp_path / "out")
        assert result.exit_code == 1
        for bad in ("truncated.png", "notes.jpg"):
            assert f"skipped {bad}: not a whole image" in result.output
        assert "2 of 6 images were skipped" in result.output
        folder = FeatureFolder(tmp_path / "out")
        assert len(folder) == 4
        skipped = folder.manifest["skipped"]
        assert [one["path"] for one in skipped] == ["notes.jpg", "truncated.png"]


def test_bad_images_alone_leave_a_manifest_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert run(tmp_path / "photos", "--output", tmp_path / "out").exit_code == 1
    folder = FeatureFolder(tmp_path / "out")
    assert len(folder) == 0 and len(folder.manifest["skipped"]) == 1
    assert folder.split() == ([], [])


def test_another_model_or_layer_is_refused(shelf: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(photos, "--output", out, "--model", shelf / "clip").exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for options, words in (
        (["--model", shelf / "other"], "weights_sha256"),
        (["--model", shelf / "siglip"], "encoder 'clip_vision_model', now 'siglip_vision_model'"),
        (
            ["--model", shelf / "clip", "--reference-layer", 0],
            f"reference_layer {DEPTH // 3}, now 0",
        ),
        ([], f"width {WIDTH}, now 64"),
    ):
        result = run(photos, "--output", out, *options)
        assert result.exit_code == 2 and words in result.output, result.output
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_other_weights_in_the_same_place_are_refused(photos: Path, tmp_path: Path) -> None:
    tower = models.make_tower()
    arguments = (photos, "--output", tmp_path / "out", "--model", tmp_path / "tower")
    tower.save_pretrained(tmp_path / "tower")
    assert run(*arguments).exit_code == 0
    layers = Tower.of(tower).layers
    # What comes behind the reference layer makes no difference to its tokens.
    torch.nn.init.ones_(layers[-1].mlp.fc1.weight)
    tower.save_pretrained(tmp_path / "tower")
    assert run(*arguments).exit_code == 0
    torch.nn.init.ones_(layers[DEPTH // 3].mlp.fc1.weight)
    tower.save_pretrained(tmp_path / "tower")
    result = run(*arguments)
    assert result.exit_code == 2 and "another weights_sha256" in result.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch-size", "0"], "batch_size: expected at least 1"),
        (["--shard-size", "0"], "shard_size: expected at least 1"),
        (["--limit", "0"], "limit: expected at least 1"),
        (["--device", "tpu"], "device: expected cpu or cuda, got 'tpu'"),
        (["--reference-layer", "3"], "reference_layer: expected a model"),
        (["--model", "no/such/model/here"], "model: cannot load"),
    ],
)
def test_wrong_options_write_nothing(
    photos: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    result = run(photos, "--output", tmp_path / "out", *options)
    assert result.exit_code == 2 and words in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(photos: Path, tmp_path: Path) -> None:
    result = run(photos, "--output", tmp_path / "out", "--device", "cuda")
    assert result.exit_code == 2 and "sees no GPU" in result.output


def test_a_tower_of_photos_at_their_own_size_is_refused(
    shelf: Path, photos: Path, tmp_path: Path
) -> None:
    result = run(photos, "--output", tmp_path / "out", "--model", shelf / "qwen")
    assert result.exit_code == 2 and "as many tokens" in result.output
    assert not (tmp_path / "out").exists()


def test_folders_without_images_are_misuse(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    photo = photos / "0" / "0.png"
    for folder, output, words in (
        (tmp_path / "empty", tmp_path / "out", "found none"),
        (tmp_path / "nowhere", tmp_path / "out", "expected a folder"),
        (photo, tmp_path / "out", "image_dir: expected a folder"),
        (photos, photo, "output: expected a folder, got a file"),
    ):
        result = run(folder, "--output", output)
        assert result.exit_code == 2 and words in result.output
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"name": "an app"}))
    result = run(photos, "--output", tmp_path)
    assert result.exit_code == 2 and "expected a manifest of format" in result.output
    assert json.loads((tmp_path / "manifest.json").read_text()) == {"name": "an app"}


def flip_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_photo_replaced_by_one_of_as_many_bytes_is_noticed(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    for name in ("a.bmp", "b.ppm", "c.tif"):
        make_photo(photos / name, 0)
    assert run(photos, "--output", out).exit_code == 0
    for name in ("a.bmp", "b.ppm", "c.tif"):
        before, size = (photos / name).read_bytes(), (photos / name).stat().st_size
        make_photo(photos / name, 1)
        assert (photos / name).stat().st_size == size
        result = run(photos, "--output", out)
        words = f"ocvtp features: {name}: has {size} bytes as before, but other contents"
        assert result.exit_code == 2 and words in result.stderr
        (photos / name).write_bytes(before)
    assert run(photos, "--output", out).exit_code == 0


def test_a_damaged_shard_ends_it(photos: Path, tmp_path: Path) -> None:
    arguments = (photos, "--output", tmp_path / "out", "--shard-size", 2)
    assert run(*arguments, "--limit", 3).exit_code == 0
    flip_last_bit(tmp_path / "out" / "features-00000.safetensors")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    result = run(*arguments)
    assert result.exit_code == 2
    assert "out/features-00000.safetensors: expected SHA-256" in result.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_verifying_names_everything_that_is_not_as_recorded(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(photos, "--output", out, "--shard-size", 1).exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    whole = run("--verify", "--output", out)
    assert whole.exit_code == 0 and f"4 images, 4 shards, as recorded: {out}" in whole.stdout
    assert run(photos, "--output", out, "--verify").exit_code == 0

    flip_last_bit(photos / "0" / "2.png")
    (photos / "1" / "1.png").unlink()
    # Images alone are wrong, which it sees where it is given them.
    assert run("--verify", "--output", out).exit_code == 0
    result = run("--verify", photos, "--output", out)
    assert result.exit_code == 1
    size = (photos / "0" / "2.png").stat().st_size
    changed = f"changed 0/2.png: has {size} bytes as before, but other contents"
    assert result.stdout.splitlines() == [changed, "changed 1/1.png: is missing"]
    assert "2 damaged or changed" in result.stderr

    flip_last_bit(out / "features-00001.safetensors")
    (out / "features-00002.safetensors").unlink()
    (out / "features-00003.safetensors").write_bytes(b"")
    for arguments, count in (((), 3), ((photos,), 5)):
        result = run("--verify", "--output", out, *arguments)
        lines = result.stdout.splitlines()
        assert result.exit_code == 1 and len(lines) == count
        for line, number in zip(lines, (1, 2, 3), strict=False):
            assert line.startswith(f"damaged {out / f'features-0000{number}.safetensors'}: ")
        assert f"{count} damaged or changed" in result.stderr
    now = {path.name: path.read_bytes() for path in out.iterdir()}
    assert now["manifest.json"] == before["manifest.json"]


def test_verifying_a_folder_that_recorded_sizes_alone_says_so(photos: Path, tmp_path: Path) -> None:
    run(photos, "--output", tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["shards"][0]["image_sha256"]
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "version": 1}))
    flip_last_bit(photos / "0" / "2.png")
    result = run("--verify", photos, "--output", tmp_path)
    assert result.exit_code == 0 and "of 4 images only the size is recorded" in result.stderr
    (photos / "0" / "2.png").write_bytes(b"short")
    result = run("--verify", photos, "--output", tmp_path)
    assert result.exit_code == 1 and "changed 0/2.png: has 5 bytes, not" in result.stdout


def test_verifying_nothing_is_misuse(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "manifest.json").write_text('{"format": ')
    run(photos, "--output", tmp_path / "out")
    for arguments, words in (
        (("--output", tmp_path / "nowhere"), "nowhere/manifest.json: no such file"),
        (("--output", tmp_path / "cut"), "cut/manifest.json: expected JSON"),
        ((tmp_path / "nowhere", "--output", tmp_path / "out"), "image_dir: expected a folder"),
        ((), "Missing option"),
    ):
        result = run("--verify", *arguments)
        assert result.exit_code == 2 and words in result.output
    result = run("--output", tmp_path / "out")
    assert result.exit_code == 2 and "image_dir: expected a folder of images" in result.output
