"""Removed, attached twice, copied, pickled, saved and sent to other processes."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("tokenizers")

import ocvtp_kernels as ocvtp
from ocvtp_kernels import attach, make_selector
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from tests.vlm.families import (
    BUDGET,
    NEW,
    ByNorm,
    Entry,
    answers,
    generate,
    process,
)
from tests.vlm.families._suite import (
    SELECTORS,
    TEXTS,
    Collate,
    describe,
    ids_of,
    skip_without_grid,
)
from tests.vlm.models import make_pruner

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("by_block", [True, False])
def test_removing_restores_everything(entry: Entry, by_block: bool) -> None:
    model, processor = entry.make_model(), entry.make_processor()
    rows = entry.rows(TEXTS)
    expected = answers(entry, model, processor, rows)
    tokens = process(processor, rows)["input_ids"]
    before = describe(model, processor)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    methods = [model.forward, model.generate, model.model.get_image_features, model.model.forward]
    methods.append(processor.replace_image_token)
    handle = attach(model, processor, PrunerSelector(make_pruner()), BUDGET)
    if by_block:
        with handle:
            assert not torch.equal(answers(entry, model, processor, rows), expected)
    else:
        answers(entry, model, processor, rows)
        handle.remove()
        handle.remove()
    assert describe(model, processor) == before
    restored = [model.forward, model.generate, model.model.get_image_features, model.model.forward]
    assert [*restored, processor.replace_image_token] == methods
    after = model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], value) for name, value in weights.items())
    assert torch.equal(process(processor, rows)["input_ids"], tokens)
    assert torch.equal(answers(entry, model, processor, rows), expected)


def test_attaching_twice_is_refused(entry: Entry, made: Any) -> None:
    model, processor = made
    with attach(model, processor, ByNorm(), BUDGET):
        expected = answers(entry, model, processor, entry.rows(TEXTS))
        for other in (ByNorm(), make_selector("random")):
            with pytest.raises(ValueError, match="attached already"):
                attach(model, processor, other, BUDGET)
            with pytest.raises(ValueError, match="attached already"):
                attach(model, entry.make_processor(), other, BUDGET)
        assert torch.equal(answers(entry, model, processor, entry.rows(TEXTS)), expected)
    attach(model, processor, ByNorm(), BUDGET).remove()


def test_the_handle_of_a_model(entry: Entry, made: Any) -> None:
    model, processor = made
    assert ocvtp.Handle.of(model) is None
    with attach(model, processor, ByNorm(), BUDGET) as handle:
        assert ocvtp.Handle.of(model) is handle
    assert ocvtp.Handle.of(model) is None


def pickle_together(model: Any, processor: Any) -> Any:
    return pickle.loads(pickle.dumps((model, processor)))


def pickle_apart(model: Any, processor: Any) -> Any:
    return pickle.loads(pickle.dumps(model)), pickle.loads(pickle.dumps(processor))


def save_whole(model: Any, processor: Any) -> Any:
    file = io.BytesIO()
    torch.save((model, processor), file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def copy_deep(model: Any, processor: Any) -> Any:
    return copy.deepcopy((model, processor))


def copy_model(model: Any, processor: Any) -> Any:
    return copy.deepcopy(model), processor


def copy_twice(model: Any, processor: Any) -> Any:
    return pickle_together(*copy_deep(model, processor))


@pytest.mark.parametrize(
    ("duplicate", "selector", "used"),
    [
        (pickle_together, "pruner", False),
        (pickle_apart, "reference tokens", False),
        pytest.param(save_whole, "pruner", False, marks=pytest.mark.slow),
        (copy_deep, "pruner", True),
        (copy_model, "reference tokens", True),
        pytest.param(copy_twice, "final tokens", False, marks=pytest.mark.slow),
    ],
)
def test_a_copy_prunes_as_the_original(
    entry: Entry, duplicate: Callable[..., Any], selector: str, used: bool
) -> None:
    model, processor = entry.make_model(), entry.make_processor()
    rows = entry.rows(TEXTS[1:3])
    handle = attach(model, processor, SELECTORS[selector](), BUDGET)
    # A LLaVA that has run holds functions of transformers that cannot be pickled.
    if used:
        answers(entry, model, processor, rows)
    twin, theirs = duplicate(model, processor)
    expected = answers(entry, model, processor, rows)
    assert torch.equal(answers(entry, twin, theirs, rows), expected)
    # Weights are the copy's own.
    with torch.no_grad():
        model.lm_head.weight.neg_()
        assert torch.equal(answers(entry, twin, theirs, rows), expected)
        model.lm_head.weight.neg_()
    own = ocvtp.Handle.of(twin)
    assert own is not None and own is not handle and ocvtp.Handle.of(model) is handle
    assert ids_of(own) == ids_of(handle)
    own.remove()
    assert ocvtp.Handle.of(twin) is None and ocvtp.Handle.of(model) is handle
    assert torch.equal(answers(entry, model, processor, rows), expected)
    handle.remove()
    whole = answers(entry, model, processor, rows)
    assert torch.equal(answers(entry, twin, processor, rows), whole)
    if duplicate not in (pickle_apart, copy_model):
        assert torch.equal(answers(entry, twin, theirs, rows), whole)
        attach(twin, theirs, SELECTORS[selector](), BUDGET)
        assert torch.equal(answers(entry, twin, theirs, rows), expected)


@pytest.mark.parametrize("duplicate", [pickle_together, copy_model])
def test_a_copy_prunes_in_its_decoder(entry: Entry, duplicate: Callable[..., Any]) -> None:
    skip_without_grid(entry)
    model, processor = entry.make_model(), entry.make_processor()
    rows = entry.rows(TEXTS)
    with attach(model, processor, make_selector("vlm-pruner"), BUDGET) as handle:
        twin, theirs = duplicate(model, processor)
        expected = answers(entry, model, processor, rows)
        assert torch.equal(answers(entry, twin, theirs, rows), expected)
        own = ocvtp.Handle.of(twin)
        assert own is not None and own is not handle and ids_of(own) == ids_of(handle)
        own.remove()
        assert torch.equal(answers(entry, model, processor, rows), expected)
    whole = answers(entry, model, processor, rows)
    assert torch.equal(answers(entry, twin, theirs, rows), whole)


def test_a_pickled_processor_is_small(entry: Entry) -> None:
    model, processor = entry.make_model(), entry.make_processor()
    alone = len(pickle.dumps(processor))
    assert len(pickle.dumps(model)) > 300_000
    with attach(model, processor, PrunerSelector(make_pruner()), BUDGET):
        rows = entry.rows(TEXTS)
        attached = pickle.dumps(processor)
        assert len(attached) < alone + 16_000
        tokens = process(pickle.loads(attached), rows)["input_ids"]
        assert torch.equal(tokens, process(processor, rows)["input_ids"])


def test_a_saved_model_is_whole(entry: Entry, tmp_path: Any) -> None:
    model, processor = entry.make_model(), entry.make_processor()
    rows = entry.rows(TEXTS)
    batch = process(processor, rows)
    expected = generate(entry, model, batch)
    names = list(model.state_dict())
    with attach(model, processor, ByNorm(), BUDGET):
        answers(entry, model, processor, rows)
        assert list(model.state_dict()) == names
        model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(generate(entry, loaded, batch), expected)
    assert not {"forward", "generate", "get_image_features"} & vars(loaded.model).keys()
    assert ocvtp.Handle.of(loaded) is None


@pytest.mark.slow
def test_workers_of_a_loader_prune(entry: Entry, made: Any) -> None:
    model, processor = made
    rows = entry.rows(TEXTS)
    with attach(model, processor, ByNorm(), BUDGET):
        expected = answers(entry, model, processor, rows)
        loader: Any = torch.utils.data.DataLoader(
            range(len(rows)),  # type: ignore[arg-type]
            len(rows),
            collate_fn=Collate(processor, rows),
            num_workers=1,
            multiprocessing_context="spawn",
        )
        [batch] = loader
        assert torch.equal(generate(entry, model, batch)[:, -NEW:], expected)
