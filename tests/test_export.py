"""An exported pruner is saved to a file, and keeps the same tokens in another process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ocvtp_kernels import OCPruner, Selected, SelectorInputs, select
from ocvtp_kernels.pruner.pruner import Picks, Pruned
from tests.build_cases import ROOT
from tests.cases import random_pruner, random_tokens

BUDGET = 7
LOAD = """
import sys
import torch
import ocvtp_kernels
program, given, got = sys.argv[1:]
out = torch.export.load(program).module()(*torch.load(given))
torch.save([type(out).__name__, *(value for value in out if isinstance(value, torch.Tensor))], got)
"""


class Picking(nn.Module):
    def __init__(self, pruner: OCPruner) -> None:
        super().__init__()
        self.pruner = pruner

    def forward(self, tokens: Tensor) -> Picks:
        return self.pruner.pick(tokens)


class Selecting(nn.Module):
    def forward(self, tokens: Tensor) -> Selected:
        return select(tokens, BUDGET, "divprune")


class Pruning(nn.Module):
    """With a pruner that takes one kind of tokens."""

    def __init__(self, pruner: OCPruner) -> None:
        super().__init__()
        self.pruner = pruner

    def forward(self, tokens: Tensor) -> Pruned:
        kept: Pruned = self.pruner(tokens, tokens, BUDGET)
        return kept


def frozen() -> OCPruner:
    return random_pruner().freeze()


MODULES = {
    "frozen": (lambda: Pruning(frozen()), Pruned),
    "plain": (lambda: Pruning(random_pruner().requires_grad_(False)), Pruned),
    "picks": (lambda: Picking(frozen()), Picks),
    "selected": (Selecting, Selected),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_an_exported_module_is_loaded_in_another_process(name: str, tmp_path: Path) -> None:
    make, kind = MODULES[name]
    module: Any = make()
    sizes = ({1: torch.export.Dim("count", min=9, max=99)},)
    program = torch.export.export(module, (random_tokens(2, 40, 12),), dynamic_shapes=sizes)
    tokens = random_tokens(2, 57, 12)
    expected = module(tokens)
    assert isinstance(expected, kind)
    paths = [str(tmp_path / name) for name in ("program.pt2", "given.pt", "got.pt")]
    torch.export.save(program, paths[0])
    torch.save((tokens,), paths[1])
    subprocess.run([sys.executable, "-c", LOAD, *paths], cwd=ROOT, check=True)
    named, *values = torch.load(paths[2])
    assert named == kind.__name__
    wanted = [value for value in expected if isinstance(value, Tensor)]
    assert len(values) == len(wanted)
    for value, want in zip(values, wanted, strict=True):
        torch.testing.assert_close(value, want)


def test_a_frozen_pruner_itself_is_exported_and_saved(tmp_path: Path) -> None:
    pruner, tokens = frozen(), random_tokens(2, 40, 12)
    program = torch.export.export(pruner, (tokens, tokens, BUDGET))
    torch.export.save(program, tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2").module()
    assert torch.equal(loaded(tokens, tokens, BUDGET).ids, pruner(tokens, tokens, BUDGET).ids)


def test_programs_saved_with_the_former_name_of_the_inputs_load() -> None:
    spec = pytree.tree_structure(SelectorInputs(torch.zeros(1), torch.zeros(1)))
    text = pytree.treespec_dumps(spec)
    assert pytree.treespec_loads(text.replace("SelectorInputs", "Evidence")) == spec
