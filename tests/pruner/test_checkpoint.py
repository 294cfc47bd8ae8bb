import io
import json
import os
import pickle
import random
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from ocvtp_kernels import OCPruner
from ocvtp_kernels.pruner.checkpoint import CONFIG_KEY, WRAPPERS, read_checkpoint
from tests.cases import random_pruner, random_tokens, small_config


def state_of(pruner: OCPruner) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in pruner.state_dict().items()}


def assert_same_weights(pruner: OCPruner, state: dict[str, Tensor]) -> None:
    assert pruner.state_dict().keys() == state.keys()
    for key, value in pruner.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_parameter_names_are_the_authors() -> None:
    expected = {
        "encode_project.mlp.0.weight",
        "encode_project.mlp.0.bias",
        "encode_project.mlp.1.weight",
        "encode_project.mlp.1.bias",
        "encode_project.mlp.4.weight",
        "encode_project.mlp.4.bias",
        "initializ.mean",
        "initializ.logstd",
        "aggregat.norm_in.weight",
        "aggregat.norm_in.bias",
        "aggregat.proj_q.weight",
        "aggregat.proj_k.weight",
        "aggregat.proj_v.weight",
        "aggregat.norm_slots_0.weight",
        "aggregat.norm_slots_0.bias",
        "aggregat.gru.weight_ih",
        "aggregat.gru.weight_hh",
        "aggregat.gru.bias_ih",
        "aggregat.gru.bias_hh",
        "aggregat.norm_slots_1.weight",
        "aggregat.norm_slots_1.bias",
        "aggregat.ffn.mlp.0.weight",
        "aggregat.ffn.mlp.0.bias",
        "aggregat.ffn.mlp.3.weight",
        "aggregat.ffn.mlp.3.bias",
    }
    assert set(OCPruner(small_config()).state_dict()) == expected


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_the_authors_checkpoint_loads_without_its_decoder(
    tmp_path: Path, nested: bool, suffix: str
) -> None:
    state = state_of(random_pruner())
    saved: dict[str, object] = {**state, "decode.mask_token": torch.zeros(1, 1, 12)}
    path = tmp_path / f"weights{suffix}"
    torch.save({"state_dict": saved, "epoch": 3} if nested else saved, path)
    assert_same_weights(OCPruner.from_checkpoint(path, config=small_config()), state)


def test_safetensors_of_bare_weights(tmp_path: Path) -> None:
    state = state_of(random_pruner())
    save_file({**state, "decode.norm0.weight": torch.zeros(12)}, tmp_path / "w.safetensors")
    pruner = OCPruner.from_checkpoint(tmp_path / "w.safetensors", config=small_config())
    assert_same_weights(pruner, state)


@pytest.mark.parametrize("ln", ["pre", "post", None])
@pytest.mark.parametrize("dims", [(10,), (20, 10), (20, 15, 10)])
def test_without_a_config_the_shapes_tell(
    tmp_path: Path, ln: str | None, dims: tuple[int, ...]
) -> None:
    pruner = random_pruner(small_config(enc_ln=ln, enc_dims=dims))
    torch.save(pruner.state_dict(), tmp_path / "w.pth")
    again = OCPruner.from_checkpoint(tmp_path / "w.pth")
    tokens = random_tokens(2, 30, 12)
    assert torch.equal(pruner(tokens, tokens, 9).ids, again(tokens, tokens, 9).ids)
    assert again.config.init_num == 64 and again.config.agg_num_iter == 3


def test_other_weights_tell_no_config(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(3, 3)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="expected a pruner's state dict"):
        OCPruner.from_checkpoint(tmp_path / "w.pth")


def test_saved_weights_carry_their_config(tmp_path: Path) -> None:
    pruner = random_pruner()
    pruner.save_checkpoint(tmp_path / "deep" / "pruner.safetensors")
    again = OCPruner.from_checkpoint(tmp_path / "deep" / "pruner.safetensors")
    assert again.config == pruner.config
    assert not again.training
    assert_same_weights(again, state_of(pruner))
    tokens = random_tokens(2, 30, 12)
    assert torch.equal(pruner(tokens, tokens).ids, again(tokens, tokens).ids)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["pruner.safetensors"]
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert (tmp_path / "deep" / "pruner.safetensors").stat().st_mode == ordinary.stat().st_mode


def test_half_weights_are_cast(tmp_path: Path) -> None:
    torch.save(random_pruner().half().state_dict(), tmp_path / "w.pth")
    pruner = OCPruner.from_checkpoint(tmp_path / "w.pth", config=small_config())
    assert pruner.initializ.mean.dtype == torch.float32


def test_only_safetensors_are_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="safetensors"):
        random_pruner().save_checkpoint(tmp_path / "weights.pth")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pruner.safetensors"
    random_pruner().save_checkpoint(path)
    before = path.read_bytes()

    def half(aside: Path, data: bytes) -> int:
        with aside.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="disk full"):
        random_pruner(seed=1).save_checkpoint(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_wrong_shapes_and_keys_are_all_named(tmp_path: Path) -> None:
    state = state_of(random_pruner())
    del state["aggregat.gru.bias_hh"]
    state["initializ.mean"] = torch.zeros(1, 1, 11)
    state["aggregat.heads"] = torch.zeros(3)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError) as error:
        OCPruner.from_checkpoint(tmp_path / "w.pth", config=small_config())
    assert "missing aggregat.gru.bias_hh" in str(error.value)
    assert "unexpected aggregat.heads" in str(error.value)
    assert "initializ.mean has shape [1, 1, 11], the config expects [1, 1, 10]" in str(error.value)


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("a pickle ran code",))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a checkpoint",
        pickle.dumps(_Payload()),
        pickle.dumps({"weights": [1, 2, 3]}),
    ],
    ids=["empty", "text", "code", "plain pickle"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_weights(
    tmp_path: Path, content: bytes, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=path.name):
        OCPruner.from_checkpoint(path, config=small_config())
    assert "ran code" not in capsys.readouterr().out


@pytest.mark.parametrize("saved", [[1, 2], {"epoch": 3}, {"a": [1]}, torch.zeros(3), {}])
def test_torch_files_that_are_no_state_dict(tmp_path: Path, saved: object) -> None:
    torch.save(saved, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="state dict"):
        OCPruner.from_checkpoint(tmp_path / "w.pth", config=small_config())


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        OCPruner.from_checkpoint(tmp_path / "none.pth", config=small_config())
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(FileNotFoundError, match=r"folder\.pth"):
        OCPruner.from_checkpoint(tmp_path / "folder.pth", config=small_config())


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_file_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).write_bytes(b"secret")

    def refuse(self: Path, *arguments: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=name):
        read_checkpoint(tmp_path / name)


FORMATS = ("zip.pth", "legacy.pth", "w.safetensors")


def as_file(name: str, state: dict[str, Tensor]) -> bytes:
    """A state dict as one of `FORMATS`."""
    if name.endswith(".safetensors"):
        return save(state, {CONFIG_KEY: small_config().to_json()})
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=name.startswith("zip"))
    return buffer.getvalue()


def few_tensors(width: int = 3) -> dict[str, Tensor]:
    return {"initializ.mean": torch.ones(1, 1, width), "aggregat.proj_q.weight": torch.eye(width)}


def assert_cut_files_are_refused(path: Path, data: bytes, lengths: Iterable[int]) -> None:
    """Each is one ValueError that names the file, whatever the reader makes of it."""
    path.write_bytes(data)
    read_checkpoint(path)
    for length in sorted(lengths, reverse=True):
        # Not written anew: some file systems wait for the disk then.
        os.truncate(path, length)
        with pytest.raises(ValueError) as error:
            read_checkpoint(path)
        assert str(path) in str(error.value), length


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_off_anywhere_is_named(tmp_path: Path, name: str) -> None:
    data = as_file(name, few_tensors())
    assert_cut_files_are_refused(tmp_path / name, data, range(len(data)))


@pytest.mark.parametrize("name", FORMATS)
def test_a_larger_file_cut_off_is_named(tmp_path: Path, name: str) -> None:
    # A zip archive of more than 64 KiB is searched for its end otherwise than a small one.
    data = as_file(name, few_tensors(width=200))
    lengths = random.Random(0).sample(range(len(data)), 60)
    assert_cut_files_are_refused(tmp_path / name, data, [len(data) // 6, *lengths])


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_pruner_cut_off_anywhere_is_named(tmp_path: Path, name: str) -> None:
    config = small_config(enc_in_dim=4, enc_dims=(3, 2), init_dim=2, agg_embed_dim=2, agg_ffn_dim=3)
    data = as_file(name, state_of(random_pruner(config)))
    assert_cut_files_are_refused(tmp_path / name, data, range(len(data)))


def write_byte(path: Path, place: int, byte: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes([byte]))


# A flipped byte may name another pickle protocol, of which torch warns.
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", FORMATS)
def test_flipped_bytes_are_refused_or_read(tmp_path: Path, name: str) -> None:
    path, data, draw = tmp_path / name, as_file(name, few_tensors()), random.Random(0)
    path.write_bytes(data)
    refused = 0
    for place, byte in enumerate(data):
        write_byte(path, place, byte ^ draw.randrange(1, 256))
        try:
            state, _ = read_checkpoint(path)
            assert all(isinstance(value, Tensor) for value in state.values())
        except ValueError as error:
            assert str(path) in str(error), place
            refused += 1
        write_byte(path, place, byte)
    assert refused > 50


def garbage() -> dict[str, bytes]:
    picture, arrays, archive, tape = (io.BytesIO() for _ in range(4))
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    np.savez(arrays, weights=np.ones(3))
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", b"no pickle")
        file.writestr("archive/version", b"3")
    with tarfile.open(fileobj=tape, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("storages"))
    return {
        "noise": random.Random(0).randbytes(1000),
        "zeros": bytes(1000),
        "page": b"<!DOCTYPE html><html>404</html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 12\n",
        "json": b'{"initializ.mean": [1, 2]}',
        "png": picture.getvalue(),
        "npz": arrays.getvalue(),
        "zip": archive.getvalue(),
        "tar": tape.getvalue(),
        "long header": b"\xff" * 8 + b"{}",
    }


@pytest.mark.parametrize("kind", list(garbage()))
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_garbage_is_named(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(garbage()[kind])
    with pytest.raises(ValueError, match=path.name):
        read_checkpoint(path)


CONFIG = small_config().to_json()


@pytest.mark.parametrize(
    "config",
    [
        *("", "{", "null", "true", "3", '"init_num"', "[1]", "[[1]]", "{}", "[" * 100_000),
        CONFIG[:-1],
        json.dumps({**json.loads(CONFIG), "init_num": [7]}),
        json.dumps({**json.loads(CONFIG), "enc_dims": 20}),
        json.dumps({**json.loads(CONFIG), "transformer_activation": {}}),
    ],
)
def test_a_config_in_the_metadata_that_is_none(tmp_path: Path, config: str) -> None:
    path = tmp_path / "w.safetensors"
    save_file(random_pruner().state_dict(), path, {CONFIG_KEY: config})
    with pytest.raises(ValueError, match=r"w\.safetensors: bad config in the metadata"):
        OCPruner.from_checkpoint(path)


@pytest.mark.parametrize(
    "keys",
    [
        ("state_dict",),
        ("model_state_dict",),
        ("model",),
        ("model", "state_dict"),
        ("state_dict", "model"),
        ("model_state_dict", "model"),
    ],
)
def test_weights_beside_other_entries(tmp_path: Path, keys: tuple[str, ...]) -> None:
    state = state_of(random_pruner())
    saved: object = state
    for key in reversed(keys):
        saved = {
            "epoch": 3,
            "lr": torch.tensor(0.1),
            "optimizer_state_dict": {"state": {0: {"step": torch.tensor(2.0)}}, "groups": [{}]},
            "best": None,
            "hyper_parameters": {"name": "clip"},
            key: saved,
        }
    torch.save(saved, tmp_path / "w.pth")
    assert_same_weights(OCPruner.from_checkpoint(tmp_path / "w.pth", small_config()), state)


def test_a_key_without_weights_is_passed_over(tmp_path: Path) -> None:
    state = state_of(random_pruner())
    for model in ("clip", {}, None, 3):
        torch.save({"model": model, "model_state_dict": state}, tmp_path / "w.pth")
        assert_same_weights(OCPruner.from_checkpoint(tmp_path / "w.pth", small_config()), state)
    loop: dict[str, object] = {"epoch": 3}
    loop["model"] = loop
    torch.save(loop, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="state dict"):
        OCPruner.from_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "pruner.", "module._orig_mod.", "model.pruner.", "own."],
)
@pytest.mark.parametrize("name", FORMATS)
def test_a_prefix_of_all_names_is_removed(tmp_path: Path, name: str, prefix: str) -> None:
    state = state_of(random_pruner())
    saved = {**state, "decode.mask_token": torch.zeros(1, 1, 12)}
    (tmp_path / name).write_bytes(as_file(name, {prefix + key: v for key, v in saved.items()}))
    assert_same_weights(OCPruner.from_checkpoint(tmp_path / name, small_config()), state)
    whole, _ = read_checkpoint(tmp_path / name, with_decoder=True)
    assert whole.keys() == saved.keys()


def assert_read_from(wrapped: torch.nn.Module, pruner: OCPruner, path: Path) -> None:
    torch.save({"model": wrapped.state_dict(), "epoch": 1}, path)
    assert_same_weights(OCPruner.from_checkpoint(path, pruner.config), state_of(pruner))


def test_what_wrappers_save_is_read(tmp_path: Path) -> None:
    pruner = random_pruner()
    parallel = torch.nn.DataParallel(pruner)
    # The mean of several steps' weights has their number beside it.
    for wrapped in (parallel, AveragedModel(pruner), AveragedModel(parallel)):
        assert_read_from(wrapped, pruner, tmp_path / "w.pth")


@pytest.mark.slow
def test_what_a_compiled_pruner_saves_is_read(tmp_path: Path) -> None:
    pruner = random_pruner()
    compiled: Any = torch.compile(pruner)
    for wrapped in (compiled, torch.nn.DataParallel(compiled), AveragedModel(compiled)):
        assert_read_from(wrapped, pruner, tmp_path / "w.pth")


@pytest.mark.parametrize("wrapper", sorted(WRAPPERS))
def test_what_wrappers_of_parts_save_is_read(tmp_path: Path, wrapper: str) -> None:
    state = state_of(random_pruner())
    part = "encode_project."
    wrapped = {k.replace(part, f"{part}{wrapper}."): v for k, v in state.items()}
    torch.save({f"{wrapper}.{name}": value for name, value in wrapped.items()}, tmp_path / "w.pth")
    assert_same_weights(OCPruner.from_checkpoint(tmp_path / "w.pth", small_config()), state)
    torch.save({**wrapped, **state}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: expected names that differ without"):
        OCPruner.from_checkpoint(tmp_path / "w.pth", small_config())


@pytest.mark.parametrize("prefix", ["pruner.", "model.pruner.", "module.vision.selector."])
def test_the_pruner_of_a_larger_model_is_read(tmp_path: Path, prefix: str) -> None:
    state = state_of(random_pruner())
    others = {"lm_head.weight": torch.zeros(2, 2), "model.norm.weight": torch.zeros(2)}
    save_file({**others, **{prefix + k: v for k, v in state.items()}}, tmp_path / "w.safetensors")
    pruner = OCPruner.from_checkpoint(tmp_path / "w.safetensors", small_config())
    assert_same_weights(pruner, state)


@pytest.mark.parametrize("prefixes", [("student.", "teacher."), ("", "ema.")])
def test_of_several_pruners_none_is_chosen(tmp_path: Path, prefixes: tuple[str, str]) -> None:
    state = state_of(random_pruner())
    save_file(
        {p + k: v.clone() for p in prefixes for k, v in state.items()}, tmp_path / "w.safetensors"
    )
    with pytest.raises(ValueError, match=rf"w\.safetensors: expected one pruner.*'{prefixes[1]}'"):
        OCPruner.from_checkpoint(tmp_path / "w.safetensors", small_config())


def test_names_that_no_prefix_explains_are_refused(tmp_path: Path) -> None:
    state = state_of(random_pruner())
    half = {f"module.{k}" if k.startswith("aggregat.") else k: v for k, v in state.items()}
    for saved, words in (
        (half, "expected one pruner, got tensors under"),
        ({**state, "module.scale": torch.ones(1)}, "unexpected module.scale"),
        ({f"x{k}": v for k, v in state.items()}, "missing encode_project"),
        ({f"module.{k}": v for k, v in state.items() if "gru" not in k}, "missing aggregat.gru"),
        ({**{f"a.{k}": v for k, v in state.items()}, "a.heads": torch.ones(1)}, "unexpected heads"),
    ):
        torch.save(saved, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=words):
            OCPruner.from_checkpoint(tmp_path / "w.pth", small_config())
