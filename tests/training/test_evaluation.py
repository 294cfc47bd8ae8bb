from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ocvtp_kernels.training.config import TrainConfig, published_shapes
from ocvtp_kernels.training.evaluation import (
    GRID,
    RANDOM,
    Contender,
    Judge,
    Trained,
    Untrained,
    evaluate,
    grid_ids,
    measure,
    nearest_errors,
    random_ids,
)
from ocvtp_kernels.training.evaluation_report import Line, as_csv, as_markdown, best_layers, lines
from ocvtp_kernels.training.folder import RunFolder
from ocvtp_kernels.training.loop import Trainer
from tests.cases import random_tokens
from tests.training.cases import random_autoencoder
from tests.training.runs import features, write_features


def trained_case() -> Trained:
    autoencoder = random_autoencoder().float().requires_grad_(False)
    return Trained(autoencoder, autoencoder.pruner().freeze(), 1.0)


@pytest.mark.parametrize("grid", [(24, 24), (1, 5), (5, 1), (7, 11), (16, 9)])
def test_a_grid_has_exactly_its_budget(grid: tuple[int, int]) -> None:
    num_tokens = grid[0] * grid[1]
    for budget in range(1, num_tokens + 1):
        ids = grid_ids(grid, budget).tolist()
        assert ids == sorted(set(ids)) and len(ids) == budget
        assert ids[0] >= 0 and ids[-1] < num_tokens
    for budget in (0, num_tokens + 1):
        with pytest.raises(ValueError, match=r"^budget: expected 1 to"):
            grid_ids(grid, budget)


def test_a_grid_is_even() -> None:
    assert grid_ids((4, 4), 4).tolist() == [5, 7, 13, 15]
    rows, columns = grid_ids((24, 24), 64) // 24, grid_ids((24, 24), 64) % 24
    assert sorted(set(rows.tolist())) == sorted(set(columns.tolist())) == list(range(1, 24, 3))


def test_random_ids_depend_on_image_and_seed_alone() -> None:
    whole = random_ids(6, 50, 9, seed=1)
    parts = torch.cat([random_ids(4, 50, 9, 1), random_ids(2, 50, 9, 1, first=4)])
    assert torch.equal(whole, parts)
    assert all(len(set(row)) == 9 and row == sorted(row) for row in whole.tolist())
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, random_ids(6, 50, 9, seed=2))


def test_nearest_errors_are_the_formula() -> None:
    tokens = random_tokens(2, 5, 8)
    ids = torch.tensor([[0, 3], [1, 4]])
    expected = [
        [min(float((t - image[i]).double().square().sum()) for i in own) for t in image]
        for image, own in zip(tokens, ids.tolist(), strict=True)
    ]
    errors = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(nearest_errors(tokens, ids), errors, rtol=1e-5, atol=1e-9)
    assert nearest_errors(tokens, torch.arange(5).expand(2, -1)).abs().max() < 1e-9


@pytest.mark.parametrize(("num_tokens", "count"), [(5, 1), (20, 1), (21, 2), (60, 3)])
def test_the_mean_and_the_farthest_of_nearest_errors(num_tokens: int, count: int) -> None:
    tokens, ids = random_tokens(2, num_tokens, 8), torch.tensor([[0, 3], [1, 4]])
    errors = nearest_errors(tokens, ids)
    variance = tokens.double().var(dim=1, correction=0).sum(-1)
    largest = errors.sort(descending=True).values[:, :count]
    measured = measure(None, tokens, ids, 0)
    assert measured.decoded is None
    torch.testing.assert_close(measured.nearest, errors.mean(1) / variance, rtol=1e-5, atol=0)
    torch.testing.assert_close(measured.farthest, largest.mean(1) / variance, rtol=1e-5, atol=0)


def test_the_decoder_knows_nothing_of_tokens_not_kept() -> None:
    trained = trained_case()
    tokens, ids = random_tokens(3, 5, 8), torch.tensor([[0, 2], [1, 4], [2, 3]])
    before = trained.decode(tokens, ids, seed=0)
    changed = random_tokens(3, 5, 8, seed=9)
    kept = F.one_hot(ids, 5).sum(1, keepdim=True).mT.bool()
    after = trained.decode(torch.where(kept, tokens, changed), ids, seed=0)
    assert torch.equal(before, after)
    assert not torch.equal(before, trained.decode(torch.where(kept, changed, tokens), ids, 0))


def test_errors_are_over_the_variance() -> None:
    trained = trained_case()
    tokens, ids = random_tokens(3, 5, 8), torch.tensor([[0, 2], [1, 4], [2, 3]])
    first, second = measure(trained, tokens, ids, 0), measure(trained, 3 * tokens, ids, 0)
    torch.testing.assert_close(first.nearest, second.nearest, rtol=1e-5, atol=0)
    variance = tokens.var(dim=1, correction=0).sum(-1)
    decoded = (trained.decode(tokens, ids, 0) - tokens).square().sum(-1).mean(-1) / variance
    torch.testing.assert_close(first.decoded.float(), decoded, rtol=1e-5, atol=0)
    flat = torch.ones(1, 5, 8)
    assert measure(trained, flat, ids[:1], 0).nearest.item() == 0


def test_results_do_not_depend_on_the_batches(tmp_path: Path) -> None:
    folder = features(write_features(tmp_path / "features"))
    trained = trained_case()
    contenders = [Contender("ours", trained, folder), RANDOM, GRID]
    judge = Judge("tokens", trained, folder)
    tables = []
    for batch_size in (2, 16):
        found = list(evaluate(contenders, judge, range(7), [1, 3, 5], (0, 1), batch_size))
        assert [(r.budget, r.method) for r in found] == [
            (budget, name) for budget in (1, 3, 5) for name in ("ours", "random", "uniform grid")
        ]
        assert all(values.shape == (2, 7) for r in found for values in r.measures)
        tables.append(lines(found))
    for one, other in zip(*tables, strict=True):
        assert one[:4] == other[:4] and one[-2:] == other[-2:] == (7, 2)
        assert one[4:7] == pytest.approx(other[4:7], rel=1e-4, abs=1e-6)
    at_all = [line for line in tables[0] if line.budget == 5 and line.measure == "coverage"]
    assert [line.mean for line in at_all] == pytest.approx([1, 1, 1])
    text = as_csv(tables[0])
    assert len(text.splitlines()) == 1 + len(tables[0])
    assert as_markdown(tables[0], "Title").count("| uniform grid |") == 4


def test_bad_requests(tmp_path: Path) -> None:
    folder = features(write_features(tmp_path / "features"))
    judge = Judge("tokens", trained_case(), folder)
    with pytest.raises(ValueError, match=r"^budgets: expected 1 to 5 tokens, got 6"):
        list(evaluate([RANDOM], judge, [0], [6]))
    with pytest.raises(ValueError, match=r"^features: expected images"):
        list(evaluate([RANDOM], judge, [], [1]))


def test_a_checkpoint_for_other_tokens_is_refused(tmp_path: Path) -> None:
    folder = features(write_features(tmp_path / "features", width=16))
    path = tmp_path / "best.safetensors"
    random_autoencoder().save_checkpoint(path)
    with pytest.raises(ValueError, match="expected an autoencoder of 5 tokens of 16 channels"):
        Trained.load(path, folder, torch.device("cpu"))
    trained_case().pruner.save_checkpoint(tmp_path / "pruner.safetensors")
    with pytest.raises(ValueError, match="missing decode"):
        Trained.load(tmp_path / "pruner.safetensors", folder, torch.device("cpu"))


def test_the_untrained_pruner_is_what_training_begins_with(tmp_path: Path) -> None:
    folder = features(write_features(tmp_path / "features"))
    state = torch.get_rng_state()
    untrained = Untrained(folder, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    config, shapes = TrainConfig(start="kmeans", batch_size=4), published_shapes(5, 8)
    trainer = Trainer(folder, RunFolder(tmp_path / "run"), config, shapes)
    expected = trainer.model.pruner().state_dict()
    found = untrained.pruner.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_a_judge_without_a_decoder_measures_the_same_but_for_what_is_decoded(
    tmp_path: Path,
) -> None:
    folder = features(write_features(tmp_path / "features"))
    other = features(write_features(tmp_path / "other", width=16, seed=1))
    trained = trained_case()
    untrained = Contender("untrained", Untrained(other, torch.device("cpu")), other)
    contenders = [Contender("ours", trained, folder), untrained, RANDOM]
    found = [
        list(evaluate(contenders, Judge("tokens", decoder, folder), range(5), [2, 4], (0, 1), 2))
        for decoder in (trained, None)
    ]
    for whole, part in zip(*found, strict=True):
        assert (whole.method, whole.budget) == (part.method, part.budget)
        assert part.measures.decoded is None and whole.measures.decoded is not None
        for one, other in zip(whole.measures[1:], part.measures[1:], strict=True):
            assert torch.equal(one, other)
    table = lines(found[1])
    assert {line.measure for line in table} == {"nearest", "farthest", "coverage"}
    assert len(table) == 3 * 2 * 3


def test_the_best_layers_are_those_of_the_lowest_error() -> None:
    errors = {
        (2, "layer 1"): 0.72,
        (2, "layer 3"): 0.56,
        (2, "random"): 0.8,
        (4, "layer 1"): 0.08,
        (4, "layer 3"): 0.14,
        (4, "random"): 0.2,
        (5, "layer 1"): 1e-17,
        (5, "layer 3"): 3e-17,
        (5, "random"): 1e-17,
    }
    table = [
        Line("the final tokens", measure, *key, sign * mean, 0.0, 0.0, 1, 1)
        for measure, sign in (("farthest", 1), ("nearest", -1), ("coverage", -1))
        for key, mean in errors.items()
    ]
    text = best_layers(table)
    # Over all layer 1, though the sum of errors is lower on layer 3.
    assert text.endswith(
        "2 tokens layer 3 (0.700), 4 tokens layer 1 (0.400), over all **layer 1** (0.650)."
    )
    assert best_layers([line for line in table if line.budget == 5]) == ""
