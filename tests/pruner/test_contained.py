"""A pruner as a part of other modules: loaded through them, made on meta, copied, exported."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import set_model_state_dict

from ocvtp_kernels import OCPruner
from tests.cases import random_pruner, random_tokens, small_config

TOKENS = random_tokens(3, 40, 12)
BUDGET = 7


class Around(nn.Module):
    """A model with a pruner and a layer of its own."""

    def __init__(self, pruner: OCPruner) -> None:
        super().__init__()
        self.pruner, self.head = pruner, nn.Linear(12, 4, dtype=pruner.initializ.mean.dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        ids: Tensor = self.pruner(tokens, tokens, BUDGET).ids
        return ids


def ids_of(pruner: OCPruner, **options: Any) -> Tensor:
    tokens = TOKENS.to(pruner.initializ.mean.dtype)
    return pruner(tokens, tokens, BUDGET, **options).ids


OLD, NEW = random_pruner(), random_pruner(seed=1)
WANTED = ids_of(NEW)
Load = Callable[[OCPruner], Any]


def prefixed(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in module.state_dict().items()}


def sharded(pruner: OCPruner) -> nn.Module:
    """The pruner within a model sharded over one process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = Around(pruner)
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(pruner, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def load_sharded(pruner: OCPruner) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    model = sharded(pruner)
    mesh = next(model.parameters()).device_mesh  # type: ignore[attr-defined]
    state = Around(NEW).state_dict()
    model.load_state_dict({k: distribute_tensor(v, mesh, [Shard(0)]) for k, v in state.items()})


LOADS: dict[str, Load] = {
    "itself": lambda p: p.load_state_dict(NEW.state_dict()),
    "parent": lambda p: Around(p).load_state_dict(Around(NEW).state_dict()),
    "grandparent": lambda p: nn.Sequential(Around(p)).load_state_dict(
        nn.Sequential(Around(NEW)).state_dict()
    ),
    "list": lambda p: nn.ModuleList([p, p]).load_state_dict(nn.ModuleList([NEW, NEW]).state_dict()),
    "assigned": lambda p: Around(p).load_state_dict(Around(NEW).state_dict(), assign=True),
    "some keys": lambda p: Around(p).load_state_dict(prefixed("pruner.", NEW), strict=False),
    "copied": lambda p: Around(p).load_state_dict(copy.deepcopy(Around(NEW).state_dict())),
    "compiled": lambda p: torch.compile(p, backend="eager").load_state_dict(
        prefixed("_orig_mod.", NEW)
    ),
    "compiled parent": lambda p: torch.compile(Around(p), backend="eager").load_state_dict(
        prefixed("_orig_mod.", Around(NEW))
    ),
    "DataParallel": lambda p: nn.DataParallel(p).load_state_dict(prefixed("module.", NEW)),
    "distributed checkpoint": lambda p: set_model_state_dict(Around(p), Around(NEW).state_dict()),
}


@pytest.fixture(params=[False, True], ids=["plain", "frozen"])
def pruner(request: pytest.FixtureRequest) -> OCPruner:
    made = copy.deepcopy(OLD)
    return made.freeze() if request.param else made


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_loaded_weights_count_whoever_loads_them(load: str, mode: Any, pruner: OCPruner) -> None:
    was_frozen, changes = pruner.frozen, pruner.changes
    with mode():
        LOADS[load](pruner)
    assert pruner.frozen == was_frozen and pruner.changes > changes
    assert torch.equal(ids_of(pruner), WANTED)
    assert torch.equal(ids_of(pruner, num_slots=1030), ids_of(NEW, num_slots=1030))
    assert torch.equal(pruner.pick(TOKENS).picks, NEW.pick(TOKENS).picks)
    for got, want in zip(pruner.packed(), NEW.packed(), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_assigned_in_another_dtype_count(dtype: torch.dtype, pruner: OCPruner) -> None:
    other = random_pruner(seed=1, dtype=dtype)
    Around(pruner).load_state_dict(Around(other).state_dict(), assign=True)
    assert torch.equal(ids_of(pruner), ids_of(other.freeze() if pruner.frozen else other))


def test_a_failed_load_leaves_no_stale_fold(pruner: OCPruner) -> None:
    state = Around(NEW).state_dict()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        Around(pruner).load_state_dict({**state, "other": torch.zeros(1)})
    assert torch.equal(ids_of(pruner), WANTED)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_weights_loaded_through_distributed_wrappers_count(group: None, pruner: OCPruner) -> None:
    again = copy.deepcopy(pruner)
    parallel = nn.parallel.DistributedDataParallel(Around(pruner), find_unused_parameters=True)
    parallel.load_state_dict(prefixed("module.", Around(NEW)))
    assert torch.equal(parallel(TOKENS), WANTED)
    load_sharded(again)
    assert torch.equal(again(TOKENS, TOKENS, BUDGET).ids, WANTED)
    assert torch.equal(again.packed()[1], NEW.packed()[1])
    assert torch.equal(again.freeze()(TOKENS, TOKENS, BUDGET).ids, WANTED)


@pytest.mark.parametrize(
    "name",
    [
        *("encode_project.mlp.1.weight", "aggregat.proj_q.weight", "aggregat.norm_in.weight"),
        *("aggregat.gru.weight_hh", "aggregat.gru.bias_ih", "aggregat.ffn.mlp.3.bias"),
    ],
)
@pytest.mark.parametrize("kind", ["flat", "freed"])
def test_what_a_shard_leaves_of_a_tensor_is_refused_by_name(kind: str, name: str) -> None:
    pruner = copy.deepcopy(OLD)
    parameter = pruner.get_parameter(name)
    if kind == "freed":
        parameter.untyped_storage().resize_(0)
    else:
        parameter.data = parameter.data.flatten()[:-1].clone()
    for read in (pruner.packed, pruner.freeze):
        with pytest.raises(
            ValueError, match=f"^{name}: expected a whole tensor".replace(".", r"\.")
        ):
            read()


def on_meta(frozen: bool) -> Around:
    with torch.device("meta"):
        model = Around(OCPruner(small_config()))
    return Around(model.pruner.freeze()) if frozen else model.eval()


def assigned(model: Around) -> None:
    model.load_state_dict(Around(NEW).state_dict(), assign=True)


def put_in_place(model: Around) -> None:
    """As accelerate and transformers do: parameter by parameter, without load_state_dict."""
    for name, value in Around(NEW).state_dict().items():
        owner, _, key = name.rpartition(".")
        module = model.get_submodule(owner)
        module._parameters[key] = nn.Parameter(value.clone(), requires_grad=False)


def emptied(model: Around) -> None:
    model.to_empty(device="cpu").load_state_dict(Around(NEW).state_dict())


def set_by_accelerate(model: Around) -> None:
    from accelerate.utils import set_module_tensor_to_device

    for name, value in Around(NEW).state_dict().items():
        set_module_tensor_to_device(model, name, "cpu", value)


def swapped(model: Around) -> None:
    for name, value in Around(NEW).state_dict().items():
        torch.utils.swap_tensors(model.get_parameter(name), nn.Parameter(value.clone()))


@pytest.mark.parametrize("frozen", [False, True], ids=["plain", "frozen"])
@pytest.mark.parametrize("load", [assigned, put_in_place, emptied, set_by_accelerate, swapped])
def test_a_pruner_made_on_meta_is_the_one_that_was_loaded(
    load: Callable[[Around], None], frozen: bool
) -> None:
    model = on_meta(frozen)
    assert model.pruner.initializ.mean.is_meta
    load(model)
    pruner = model.pruner
    assert torch.equal(model(TOKENS), WANTED)
    assert torch.equal(ids_of(pruner, num_slots=1030), ids_of(NEW, num_slots=1030))
    for options in ({}, {"padding": "random", "num_slots": 2}):
        assert torch.equal(ids_of(pruner, **options), ids_of(NEW, **options))
    assert torch.equal(pruner.pick(TOKENS).picks, NEW.pick(TOKENS).picks)
    assert torch.equal(pruner.sample_slots(2, 5), NEW.sample_slots(2, 5))
    assert torch.equal(pruner.frozen_copy()(TOKENS, TOKENS, BUDGET).ids, WANTED)
    assert pruner.frozen == frozen


@pytest.mark.parametrize("frozen", [False, True], ids=["plain", "frozen"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_from_pretrained_of_a_model_with_a_pruner(
    frozen: bool, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")

    class Config(transformers.PretrainedConfig):  # type: ignore[misc, name-defined]
        model_type = "with-pruner"

    class Model(transformers.PreTrainedModel):  # type: ignore[misc, name-defined]
        config_class = Config

        def __init__(self, config: Config, frozen: bool = False) -> None:
            super().__init__(config)
            self.pruner = OCPruner(small_config())
            if frozen:
                self.pruner.freeze()
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            pass

    saved = Model(Config())
    saved.pruner.load_state_dict(NEW.state_dict())
    saved.save_pretrained(tmp_path)
    options = {} if dtype is None else {"dtype": dtype}
    model = Model.from_pretrained(tmp_path, frozen=frozen, **options).eval()
    want = copy.deepcopy(NEW).to(dtype or torch.float32)
    want = want.freeze() if frozen else want
    assert torch.equal(ids_of(model.pruner), ids_of(want))
    assert torch.equal(ids_of(model.pruner.freeze()), ids_of(want.freeze()))


@pytest.fixture(params=[torch.float64, torch.bfloat16, torch.float16, "meta"], ids=str)
def default(request: pytest.FixtureRequest) -> Iterator[None]:
    """Another default dtype or device."""
    if request.param == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(request.param)
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def test_defaults_of_torch_change_no_ids(default: None, tmp_path: Path) -> None:
    pruner = OCPruner(small_config(), device="cpu", dtype=torch.float32).eval()
    pruner.load_state_dict(NEW.state_dict())
    pruner.save_checkpoint(tmp_path / "pruner.safetensors")
    read = OCPruner.from_checkpoint(
        tmp_path / "pruner.safetensors", device="cpu", dtype=torch.float32
    )
    hooked = copy.deepcopy(pruner)
    hooked.aggregat.proj_q.register_forward_hook(lambda *inputs: None)
    for made in (pruner, read, pruner.frozen_copy(), read.freeze(), hooked.freeze()):
        assert torch.equal(ids_of(made), WANTED)
    for options in ({"num_slots": 1030}, {"padding": "random"}, {"top_k": 2}):
        want = ids_of(NEW, **options)
        assert torch.equal(ids_of(pruner, **options), want)
        assert torch.equal(ids_of(read, **options), want)


INSIDE: dict[str, Load] = {
    "asked for many slots": lambda p: p.sample_slots(1, 1030),
    "called": lambda p: ids_of(p, num_slots=1030),
    "cast": lambda p: p.double().float(),
    "cast by its parent": lambda p: Around(p).double().float(),
    "moved and cast": lambda p: p.to("cpu", torch.float64).to(torch.float32),
    "loaded": lambda p: p.load_state_dict(NEW.state_dict()),
    "loaded by its parent": lambda p: Around(p).load_state_dict(Around(NEW).state_dict()),
    "frozen": lambda p: p.freeze().unfreeze(),
    "copied": lambda p: p.frozen_copy(),
    "packed": lambda p: p.packed(),
    "padded": lambda p: ids_of(p, padding="random"),
}


@pytest.mark.parametrize("act", INSIDE)
def test_what_happened_in_inference_mode_hinders_no_training(act: str) -> None:
    pruner = copy.deepcopy(OLD).train()
    with torch.inference_mode():
        INSIDE[act](pruner)
    slots, attention = pruner.attend(TOKENS, num_slots=1030)
    (slots.square().sum() + attention.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in pruner.parameters())
    pruner.train().zero_grad()
    out, _ = pruner.aggregat.aggregate(pruner.encode_project(TOKENS), pruner.sample_slots(3, 9))
    out.square().sum().backward()
    assert pruner.initializ.logstd.grad is not None


def test_tokens_made_in_inference_mode_are_taken(pruner: OCPruner) -> None:
    with torch.inference_mode():
        tokens, slots = TOKENS.clone(), OLD.sample_slots(3, 9)
    want = OLD(TOKENS, TOKENS, BUDGET, slots_init=slots.clone())
    for given in (slots, slots.clone()):
        got = pruner(tokens, tokens, BUDGET, slots_init=given)
        assert torch.equal(got.ids, want.ids)
        pruner.pick(tokens, slots_init=given)
        slots_out, attention = pruner.attend(tokens, given)
        if not pruner.frozen:
            (slots_out.sum() + attention.square().sum()).backward()
            assert pruner.aggregat.proj_q.weight.grad is not None


COPIES: dict[str, Callable[[OCPruner], OCPruner]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda pruner: pickle.loads(pickle.dumps(pruner)),
    "saved": lambda pruner: _saved(pruner),
    "of its parent": lambda pruner: copy.deepcopy(Around(pruner)).pruner,
    "frozen": lambda pruner: pruner.frozen_copy(),
}


def _saved(pruner: OCPruner) -> OCPruner:
    file = io.BytesIO()
    torch.save(pruner, file)
    file.seek(0)
    loaded: OCPruner = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_loaded_alone(kind: str, pruner: OCPruner) -> None:
    before = ids_of(pruner)
    twin = COPIES[kind](pruner)
    assert torch.equal(ids_of(twin), before)
    Around(twin).load_state_dict(Around(NEW).state_dict())
    assert torch.equal(ids_of(twin), WANTED) and torch.equal(ids_of(pruner), before)
    Around(pruner).load_state_dict(Around(NEW).state_dict())
    assert torch.equal(ids_of(pruner), WANTED)


class AllOf(nn.Module):
    """Every method that takes tokens."""

    def __init__(self, pruner: OCPruner) -> None:
        super().__init__()
        self.pruner = pruner

    def forward(self, tokens: Tensor, importance: Tensor) -> Any:
        pruner = self.pruner
        return (
            pruner(tokens, tokens, BUDGET, importance, top_k=2),
            pruner(tokens, tokens, BUDGET, padding="random"),
            pruner.pick(tokens, 5),
            pruner.attend(tokens, num_slots=1030),
        )


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("trained", [False, True], ids=["fixed", "trained"])
def test_an_export_takes_any_batch_and_any_count(
    strict: bool, trained: bool, pruner: OCPruner
) -> None:
    pruner.requires_grad_(trained and not pruner.frozen)
    model, example = AllOf(pruner).eval(), (TOKENS, TOKENS[..., 0].contiguous())
    batch = torch.export.Dim("batch", min=1, max=99)
    count = torch.export.Dim("count", min=BUDGET, max=999)
    sizes = ({0: batch, 1: count}, {0: batch, 1: count})
    program = torch.export.export(model, example, dynamic_shapes=sizes, strict=strict).module()
    for images, tokens in ((1, 40), (5, BUDGET), (2, 333)):
        given = random_tokens(images, tokens, 12)
        inputs = (given, given[..., 0].contiguous())
        with torch.no_grad():
            got, want = program(*inputs), model(*inputs)
        for one, other in zip(
            torch.utils._pytree.tree_leaves(got),
            torch.utils._pytree.tree_leaves(want),
            strict=True,
        ):
            torch.testing.assert_close(one, other)


def test_a_compiled_parent_prunes_with_what_was_loaded_since(pruner: OCPruner) -> None:
    torch._dynamo.reset()
    model = Around(pruner).eval().requires_grad_(False)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(TOKENS), ids_of(OLD))
    compiled.load_state_dict(prefixed("_orig_mod.", Around(NEW)))
    assert torch.equal(compiled(TOKENS), WANTED)


@pytest.mark.parametrize("seed", [1.5, True, "0", 2**63, -(2**63) - 1])
def test_other_noise_seeds_are_refused(seed: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="noise_seed: expected"):
        OCPruner(small_config(), noise_seed=seed)
