import json
import os
from pathlib import Path

import pytest

from ocvtp_kernels import PrunerConfig

# The published oc-vlm_64.json, key for key.
PUBLISHED = {
    "enc_in_dim": 1024,
    "enc_dims": [2048, 512],
    "enc_ln": "pre",
    "enc_dropout": 0.0,
    "init_num": 64,
    "init_dim": 512,
    "agg_num_iter": 3,
    "agg_embed_dim": 512,
    "agg_ffn_dim": 2048,
    "agg_dropout": 0.01,
    "agg_trunc_bp": "bi-level",
    "pos_resolut": [576],
    "pos_embed_dim": 1024,
    "proj1_in_dim": 1024,
    "proj1_out_dim": 1024,
    "proj1_norm_dim": 1024,
    "proj1_bias": False,
    "proj2_in_dim": 512,
    "proj2_out_dim": 1024,
    "proj2_norm_dim": 1024,
    "proj2_bias": False,
    "transformer_d_model": 1024,
    "transformer_nhead": 4,
    "transformer_feedforward": 4096,
    "transformer_dropout": 0.0,
    "transformer_activation": "gelu",
    "transformer_batch_first": True,
    "transformer_norm_first": True,
    "transformer_bias": False,
    "backbone_nlayer": 4,
    "dec_dim": 1024,
}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.json"
    path.write_text(text)
    return path


def test_the_published_file_loads_unchanged_and_is_the_default(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(PUBLISHED))
    assert PrunerConfig.from_json(path) == PrunerConfig()


def test_json_round_trip(tmp_path: Path) -> None:
    config = PrunerConfig(enc_ln=None, init_num=192)
    assert PrunerConfig.from_json(written(tmp_path, config.to_json())) == config


def test_a_null_norm_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps({**PUBLISHED, "enc_ln": None, "agg_trunc_bp": None}))
    assert PrunerConfig.from_json(path).enc_ln is None


def test_unknown_keys_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps({**PUBLISHED, "agg_heads": 4, "zeta": 1}))
    with pytest.raises(ValueError, match=r"unknown keys \['agg_heads', 'zeta'\]"):
        PrunerConfig.from_json(path)


@pytest.mark.parametrize(
    "key", ["enc_in_dim", "enc_dims", "init_num", "init_dim", "agg_embed_dim", "agg_ffn_dim"]
)
def test_missing_keys_are_named(tmp_path: Path, key: str) -> None:
    values = {k: v for k, v in PUBLISHED.items() if k != key}
    with pytest.raises(ValueError, match=key):
        PrunerConfig.from_json(written(tmp_path, json.dumps(values)))


@pytest.mark.parametrize("text", ["", "[1]", "{", "\x00"])
def test_a_file_that_is_no_json_object(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="JSON object"):
        PrunerConfig.from_json(written(tmp_path, text))


@pytest.mark.parametrize("values", [None, True, 3, 0.5, "enc_in_dim", [1], ["enc_dims"], [[]]])
def test_what_is_no_keys_and_values(values: object) -> None:
    with pytest.raises(ValueError, match=r"^config: expected keys and values, got"):
        PrunerConfig.from_dict(values)  # type: ignore[arg-type]


def test_a_file_cut_off_anywhere_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(PUBLISHED))
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        with pytest.raises(ValueError, match=r"config\.json: expected a JSON object"):
            PrunerConfig.from_json(path)


@pytest.mark.parametrize(
    "data", [b"\xff\xfe{}", b"\xef\xbb\xbf", b"[" * 100_000, b'{"a": 1e', b"null"]
)
def test_bytes_that_are_no_json_object(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"config\.json: expected a JSON object"):
        PrunerConfig.from_json(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("enc_in_dim", 0),
        ("enc_in_dim", "1024"),
        ("init_num", True),
        ("agg_num_iter", 2.5),
        ("enc_dims", []),
        ("enc_dims", [2048, -512]),
        ("enc_ln", "middle"),
        ("agg_dropout", 1.5),
        ("agg_trunc_bp", "full"),
        ("proj1_bias", 1),
        ("init_dim", 256),
        ("transformer_activation", None),
        ("transformer_activation", []),
        ("enc_dropout", float("nan")),
        ("enc_in_dim", 10**400),
        ("pos_resolut", {}),
    ],
)
def test_bad_values_are_named(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        PrunerConfig.from_dict({**PUBLISHED, key: value})
