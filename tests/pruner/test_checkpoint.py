import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ocvtp_kernels import OCPruner
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
