"""What validation tells of the slots: the figures, their file, the card and the warning."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ocvtp_kernels.training import AreaWeightedMSE
from ocvtp_kernels.training.config import TrainConfig
from ocvtp_kernels.training.data import keyed_generator
from ocvtp_kernels.training.folder import RunFolder
from ocvtp_kernels.training.health import Health, read_health, slot_figures
from ocvtp_kernels.training.loop import Trainer
from ocvtp_kernels.training.run import train
from tests.cases import random_tokens
from tests.training.cases import tiny_config
from tests.training.runs import features, write_features

SETTINGS = {"epochs": 2, "batch_size": 4, "slots": (2, 3), "warmup_epochs": 1}
ROW = Health(1, 4, 0.5, 0.75, 0.5, 0.25, 0.125)


def settings(**changes: object) -> TrainConfig:
    return TrainConfig(**{**SETTINGS, **changes})  # type: ignore[arg-type]


def owned(owners: list[int], num_slots: int) -> Tensor:
    """Attention ``[1, K, N]`` of 0.9 to each token's slot."""
    one_hot = torch.nn.functional.one_hot(torch.tensor(owners), num_slots).T.double()
    return (one_hot * (0.9 - 0.1 / (num_slots - 1)) + 0.1 / (num_slots - 1))[None]


def test_a_slot_without_tokens_and_two_that_pick_one() -> None:
    # Slot 2 owns nothing; its largest attention is at token 0, as that of slot 0.
    attention = torch.tensor([[[0.6, 0.5, 0.1], [0.1, 0.2, 0.7], [0.3, 0.3, 0.2]]])
    distinct, empty, _ = slot_figures(attention, (1, 3))[0].tolist()
    assert distinct == pytest.approx(2 / 3) and empty == pytest.approx(1 / 3)


@pytest.mark.parametrize("grid", [(3, 4), (1, 12), (12, 1)])
def test_the_figures_are_the_formulas(grid: tuple[int, int]) -> None:
    attention = (3 * random_tokens(3, 5, 12, dtype=torch.float64)).softmax(dim=1)
    places = list(itertools.product(range(grid[0]), range(grid[1])))
    for image, figures in zip(attention.tolist(), slot_figures(attention, grid), strict=True):
        picks = {max(range(12), key=slot.__getitem__) for slot in image}
        owners = {max(range(5), key=lambda k: image[k][n]) for n in range(12)}
        within = total = 0.0
        for side in range(2):
            mean = sum(place[side] for place in places) / 12
            total += sum((place[side] - mean) ** 2 for place in places)
            for slot in image:
                center = sum(a * p[side] for a, p in zip(slot, places, strict=True)) / sum(slot)
                within += sum(
                    a * (p[side] - center) ** 2 for a, p in zip(slot, places, strict=True)
                )
        expected = [len(picks) / 5, 1 - len(owners) / 5, within / total]
        assert figures.tolist() == pytest.approx(expected, abs=1e-12)


def test_spread_tells_patches_from_slots_of_any_place() -> None:
    patches = owned([0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3], 4)
    stripes = owned([0, 1, 2, 3, 2, 3, 0, 1, 1, 0, 3, 2, 3, 2, 1, 0], 4)
    uniform = torch.full((1, 4, 16), 0.25)
    spreads = [slot_figures(each, (4, 4))[0, 2].item() for each in (patches, stripes, uniform)]
    assert spreads[0] < 0.5 < 0.9 < spreads[1] <= spreads[2] + 1e-9
    assert spreads[2] == pytest.approx(1)
    # On a line the same slots lie apart.
    assert slot_figures(owned([0] * 4 + [1] * 4, 2), (1, 8))[0, 2] < 0.6


def test_slots_of_no_attention_are_no_nan() -> None:
    attention = torch.zeros(2, 3, 4)
    attention[:, 0] = 1
    assert (
        slot_figures(attention, (2, 2)).tolist()
        == [[pytest.approx(1 / 3), pytest.approx(2 / 3), 1]] * 2
    )


def test_validation_measures_what_its_images_say(tmp_path: Path) -> None:
    folder = features(write_features(tmp_path / "features"))
    trainer = train(folder, tmp_path / "run", settings(target_scale=2.0), tiny_config())
    val_loss = trainer._validate()
    images = trainer.split.val
    assert len(images) <= trainer.split.batch_size
    tokens = torch.stack([folder[image] for image in images]).float()
    assert [row.num_slots for row in trainer.health] == [2, 3]
    for row in trainer.health:
        draws = trainer.model.draw(
            len(images), row.num_slots, keyed_generator(0, "validation", 0, row.num_slots)
        )
        with torch.no_grad():
            out = trainer.model(tokens, noise=draws.noise, visible=draws.visible)
            zeroed, _ = trainer.model.decode(tokens, 0 * out.slots, draws.visible)
        loss = AreaWeightedMSE()
        assert row.loss == pytest.approx(loss(out.reconstruction, 2 * tokens, out.attention).item())
        assert row.loss_without_slots == pytest.approx(
            loss(zeroed, 2 * tokens, out.attention).item()
        )
        assert row[4:] == pytest.approx(slot_figures(out.attention, (1, 5)).mean(0).tolist())
    assert val_loss == pytest.approx(sum(row.loss for row in trainer.health) / 2)


def test_a_row_an_epoch_and_k_is_written_printed_and_in_the_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = features(write_features(tmp_path / "features"))
    trainer = train(folder, tmp_path / "run", settings(slots=(3, 2, 3)), tiny_config())
    rows = read_health(tmp_path / "run" / "health.csv")
    assert [row[:2] for row in rows] == [(1, 3), (1, 2), (2, 3), (2, 2)]
    printed = capsys.readouterr()
    assert all(str(row) in printed.err for row in rows) and "epoch" not in printed.out
    card = (tmp_path / "run" / "README.md").read_text()
    for row in rows:
        line = "| " + " | ".join(row.cells()) + " |"
        assert (line in card) == (row.epoch == trainer.best_epoch), row


def test_figures_do_not_depend_on_where_a_run_was_stopped(tmp_path: Path) -> None:
    folder = features(write_features(tmp_path / "features"))
    train(folder, tmp_path / "whole", settings(), tiny_config())
    whole = (tmp_path / "whole" / "health.csv").read_bytes()

    class Stopped(Exception):
        pass

    class Stopping(Trainer):
        def _checkpoint(self) -> None:
            # Rows of the second epoch are written, and its checkpoint is not.
            if self.step == self.total:
                raise Stopped
            super()._checkpoint()

    run = RunFolder(tmp_path / "stopped")
    with pytest.raises(Stopped):
        Stopping(folder, run, settings(), tiny_config()).run()
    assert run.health.read_bytes() == whole
    stopped = Trainer(folder, run, settings(), tiny_config())
    assert whole.startswith(run.health.read_bytes()) and len(read_health(run.health)) == 2
    stopped.run()
    assert run.health.read_bytes() == whole


def test_a_run_of_a_version_without_the_file_goes_on(tmp_path: Path) -> None:
    folder = features(write_features(tmp_path / "features"))
    run = RunFolder(tmp_path / "run")
    trainer = train(folder, run.path, settings(), tiny_config())
    state = next(run.checkpoints.glob(f"step-{trainer.total:08d}/state.json"))
    text = state.read_text()
    state.write_text("\n".join(line for line in text.split("\n") if "health_bytes" not in line))
    run.health.unlink()
    assert train(folder, run.path, settings(), tiny_config()).step == trainer.total
    assert read_health(run.health) == [] and run.card.exists()


def test_a_file_that_is_short_or_damaged_ends_the_run(tmp_path: Path) -> None:
    folder = features(write_features(tmp_path / "features"))
    run = RunFolder(tmp_path / "run")
    train(folder, run.path, settings(), tiny_config())
    text = run.health.read_text()
    for bad, words in ((text[:-9], "expected at least"), (text.replace(",2,", ",a,"), "line 2")):
        run.health.write_text(bad)
        with pytest.raises(ValueError, match=f"health.csv: {words}".replace(".", r"\.")):
            train(folder, run.path, settings(), tiny_config())


def test_a_row_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "health.csv"
    path.write_text("epoch,K,loss,loss_without_slots,distinct,empty,spread\n" + ROW.line())
    assert read_health(path) == [ROW]
    path.write_text("step\n")
    with pytest.raises(ValueError, match="expected the columns epoch, K"):
        read_health(path)


def test_slots_that_pick_the_same_tokens_are_warned_of_once(tmp_path: Path) -> None:
    folder = features(write_features(tmp_path / "features"))
    # As many slots as twice the tokens pick at most half.
    config = settings(slots=(2, 11))
    with pytest.warns(UserWarning, match=r"health\.csv: epoch 1: K 11: .*0\.5 K distinct") as seen:
        train(folder, tmp_path / "run", config, tiny_config())
    assert len([one for one in seen if "K 11" in str(one.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(folder, tmp_path / "other", settings(slots=(2,), start="kmeans"), tiny_config())
