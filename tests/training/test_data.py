from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ocvtp_kernels import PrunerConfig
from ocvtp_kernels.training.config import TrainConfig, pruner_config, published_shapes, read_config
from ocvtp_kernels.training.data import Split, keyed_generator, keyed_seed, prefetch
from tests.training.runs import features, write_features


def split_of(tmp_path: Path, count: int = 24, **changes: int) -> Split:
    folder = features(write_features(tmp_path / "features", count))
    return Split(folder, **{"batch_size": 4, "seed": 0, **changes})


def test_an_epoch_is_every_image_once(tmp_path: Path) -> None:
    split = split_of(tmp_path)
    assert len(split.train) == 22 and split.steps == 5
    for epoch in range(3):
        batches = [split.batch(epoch * split.steps + place) for place in range(split.steps)]
        seen = [image for batch in batches for image in batch]
        assert all(len(batch) == 4 for batch in batches)
        assert len(set(seen)) == 20 and set(seen) <= set(split.train)
    assert split.batch(0) != split.batch(split.steps)


def test_the_order_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    one, other = split_of(tmp_path), split_of(tmp_path)
    assert [one.batch(step) for step in (7, 0)] == [other.batch(step) for step in (7, 0)]
    assert split_of(tmp_path, seed=1).batch(0) != one.batch(0)


def test_a_small_folder_is_one_batch(tmp_path: Path) -> None:
    split = split_of(tmp_path, count=3)
    assert split.batch_size == len(split.train) < 3 and split.steps == 1
    with pytest.raises(ValueError, match=r"^features: expected at least 2 images"):
        split_of(tmp_path / "one", count=1)


@pytest.mark.parametrize("limit", [2, 3, 10, 23, 24, 99])
def test_a_limit_keeps_both_splits(tmp_path: Path, limit: int) -> None:
    whole, split = split_of(tmp_path), split_of(tmp_path, limit=limit)
    assert len(split.train) + len(split.val) == min(limit, 24)
    assert split.train and set(split.train) <= set(whole.train)
    assert split.val and set(split.val) <= set(whole.val)


def test_tokens_come_in_order(tmp_path: Path) -> None:
    folder = features(write_features(tmp_path / "features"))
    batches = [[3, 1], [20], [0, 2, 23]]
    for indices, tokens in zip(batches, prefetch(folder, batches), strict=True):
        assert torch.equal(tokens, torch.stack([folder[index] for index in indices]))


def test_keys_are_told_apart() -> None:
    keys = [(0, "step", 1), (0, "step", 11), (1, "step", 1), (0, "order", 1), (0, "step1", 1)]
    seeds = {keyed_seed(*key) for key in keys}
    assert len(seeds) == len(keys) and all(0 <= seed < 2**63 for seed in seeds)
    draws = [torch.rand(3, generator=keyed_generator("a", 1)) for _ in range(2)]
    assert torch.equal(*draws)


def test_published_shapes_are_the_published_config() -> None:
    assert published_shapes(576, 1024) == PrunerConfig()
    with pytest.raises(ValueError, match=r"^pruner: expected a config"):
        published_shapes(576, 36)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("limit", 1),
        ("batch_size", True),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("grad_clip", -1.0),
        ("warmup_epochs", -1),
        ("slots", ()),
        ("slots", (0,)),
        ("slots", "16"),
        ("seed", -1),
        ("mixed_precision", "fp16"),
        ("start", "zeros"),
        ("target_scale", 0),
        ("norm_mode", "mean"),
        ("power_p", -0.5),
        ("cap_w", 0),
        ("reduce_channel", "max"),
        ("checkpoint_every", 0),
        ("patience", None),
    ],
)
def test_bad_settings(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        TrainConfig(**{name: value})  # type: ignore[arg-type]


def test_config_files(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"epochs": 2, "pruner": {"init_num": 8}}')
    settings, keys = read_config(path)
    assert settings == {"epochs": 2} and keys == {"init_num": 8}
    assert pruner_config(keys, 576, 64).init_num == 8
    path.write_text(PrunerConfig().to_json())
    settings, keys = read_config(path)
    assert settings == {} and pruner_config(keys, 576, 1024) == PrunerConfig()
    with pytest.raises(ValueError, match=r"^pruner: expected enc_in_dim 64 and pos_resolut of 576"):
        pruner_config(keys, 576, 64)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="expected a JSON object, got list"):
        read_config(path)
    with pytest.raises(ValueError, match=r"^config: unknown keys \['epoch'\]"):
        TrainConfig.from_dict({"epoch": 3})


def test_config_files_in_toml(tmp_path: Path) -> None:
    pytest.importorskip("tomllib")
    path = tmp_path / "c.toml"
    path.write_text("slots = [8, 16]\n[pruner]\ninit_num = 8\n")
    settings, keys = read_config(path)
    assert TrainConfig.from_dict(settings).slots == (8, 16) and keys == {"init_num": 8}
    path.write_text("slots = [")
    with pytest.raises(ValueError, match="expected TOML"):
        read_config(path)
